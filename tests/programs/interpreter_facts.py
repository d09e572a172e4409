"""What one can see of an interpreter from within, as values that JSON holds. Imports nothing that Python has not imported.

Each fact is of one kind: the same in a process and in one that claims to be the same Python.
"""

import _tracemalloc  # built in, as the next one is
import os
import sys


def facts():
    """Everything, by name."""
    found = {name: text_of(getattr(sys, name, None)) for name in ATTRIBUTES}
    found["flags"] = {name: getattr(sys.flags, name) for name in FLAGS if hasattr(sys.flags, name)}
    found["xoptions"] = dict(sorted(sys._xoptions.items()))
    found["recursion limit"] = sys.getrecursionlimit()
    found["switch interval"] = sys.getswitchinterval()
    found["dlopen flags"] = sys.getdlopenflags()
    found["encoding of files' names"] = [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()]
    found["default encoding"] = sys.getdefaultencoding()
    if hasattr(sys, "get_int_max_str_digits"):
        found["digits"] = sys.get_int_max_str_digits()
    if hasattr(sys, "_is_gil_enabled"):
        found["GIL"] = sys._is_gil_enabled()
    for name in ("get_lazy_imports", "get_lazy_imports_filter", "is_remote_debug_enabled"):
        if hasattr(sys, name):
            found[name] = repr(getattr(sys, name)())
    found["traced allocations"] = [_tracemalloc.is_tracing(), _tracemalloc.get_traceback_limit()]
    if hasattr(sys, "is_stack_trampoline_active"):
        found["perf trampoline"] = sys.is_stack_trampoline_active()
    found["processors"] = os.cpu_count()
    found["frozen standard library"] = repr(os.__spec__.origin)
    # A code object without debug ranges knows lines and no columns.
    found["debug ranges"] = hasattr(facts.__code__, "co_positions") and repr(next(compile("a", "b", "eval").co_positions()))
    found["asserts"] = asserts_run()
    found["docstrings"] = facts.__doc__ is not None
    found["working directory"] = working_directory()
    found["environment"] = {repr(name): repr(value) for name, value in os.environb.items()}
    found["umask"] = umask()
    found["locale"] = locale()
    found["opened text"] = opened_text()
    found["streams"] = {name: stream_of(getattr(sys, name)) for name in ("stdin", "stdout", "stderr")}
    found["warning filters"] = filters()
    return found


# `inspect` and `interactive` are left out: they are about the end of a main program, and a worker has none.
FLAGS = (
    "debug",
    "optimize",
    "dont_write_bytecode",
    "no_user_site",
    "no_site",
    "ignore_environment",
    "verbose",
    "bytes_warning",
    "quiet",
    "hash_randomization",
    "isolated",
    "dev_mode",
    "utf8_mode",
    "warn_default_encoding",
    "safe_path",
    "int_max_str_digits",
    "gil",
    "thread_inherit_context",
    "context_aware_warnings",
    "lazy_imports",
)

ATTRIBUTES = (
    "version",
    "hexversion",
    "api_version",
    "abiflags",
    "copyright",
    "platform",
    "byteorder",
    "maxsize",
    "maxunicode",
    "executable",
    "_base_executable",
    "prefix",
    "exec_prefix",
    "base_prefix",
    "base_exec_prefix",
    "platlibdir",
    "_stdlib_dir",
    "path",
    "argv",
    "orig_argv",
    "warnoptions",
    "dont_write_bytecode",
    "pycache_prefix",
    "float_repr_style",
    "_git",
    "implementation",
    "abi_info",
    "tracebacklimit",
    "_framework",
    "_multiarch",
    "thread_info",
    "hash_info",
    "builtin_module_names",
    "stdlib_module_names",
    "float_info",
    "int_info",
)


def text_of(value):
    return repr(sorted(value)) if isinstance(value, frozenset) else repr(value)


def stream_of(stream):
    if stream is None:
        return None
    names = ("encoding", "errors", "line_buffering", "write_through", "mode", "name")
    found = {name: getattr(stream, name, None) for name in names}
    found["unbuffered"] = type(getattr(stream, "buffer", None)).__name__
    return found


def asserts_run():
    try:
        assert not __name__
    except AssertionError:
        return True
    return False


def working_directory():
    try:
        return repr(os.getcwdb())
    except FileNotFoundError:
        return None


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def locale():
    import _locale

    # Without a second argument it asks and changes nothing. Of the other categories Python promises nothing: it takes them from
    # the environment when it coerces the C locale (PEP 538), and only then.
    return _locale.setlocale(_locale.LC_CTYPE)


def opened_text():
    with open(os.devnull) as file:
        return [file.encoding, file.errors]


def filters():
    import _warnings

    warnings = sys.modules.get("warnings", _warnings)
    return [
        [action, pattern(message), f"{category.__module__}.{category.__qualname__}", pattern(module), line]
        for action, message, category, module, line in warnings.filters
    ]


def pattern(value):
    return value if value is None or isinstance(value, str) else [value.pattern, value.flags]
