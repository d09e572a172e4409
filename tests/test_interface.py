"""The public interface, beside the predecessor's: ``import trio_offload as trio_parallel`` is the whole migration.

Where trio-parallel is installed it is asked itself; what it promises is written down here too, so that its absence makes
nothing pass.
"""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import itertools
import math
import pickle
import pydoc
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from running import PROGRAMS, Ended, run, run_script

import trio_offload
from trio_offload import BrokenWorkerError, LocateError, RemoteError, WorkerContext, WorkerStartError, WorkerType, _options
from trio_offload._documented import documented
from trio_offload._options import ContextOptions, MapSettings

OF_THE_PREDECESSOR = [
    "BrokenWorkerError",
    "WorkerContext",
    "WorkerType",
    "cache_scope",
    "configure_default_context",
    "current_default_worker_limiter",
    "default_context_statistics",
    "open_worker_context",
    "run_sync",
]
OF_EARLIER_RELEASES = ["atexit_shutdown_grace_period", "current_default_process_limiter"]
OURS = [
    "AbandonedLockError",
    "Actor",
    "ActorStatistics",
    "Barrier",
    "BoundedSemaphore",
    "BrokenBarrierError",
    "CapacityLimiter",
    "Condition",
    "CrashRecord",
    "DeadlockError",
    "Event",
    "FailedItemsError",
    "JobExitError",
    "JobProgress",
    "LocateError",
    "Lock",
    "Process",
    "RLock",
    "ReceiveChannel",
    "RemoteError",
    "Results",
    "Semaphore",
    "SendChannel",
    "SharedArray",
    "SharedCounter",
    "SharedObject",
    "Stream",
    "StreamStatistics",
    "WaitingJob",
    "WorkQueue",
    "WorkerContextCounters",
    "WorkerContextStatistics",
    "WorkerMemoryError",
    "WorkerStartError",
    "WorkerStatistics",
    "WorkerTimeoutError",
    "callback",
    "map",
    "open_actor",
    "open_channel",
    "open_process",
    "prewarm",
    "retire_when",
    "share",
    "starmap",
    "stream",
]

CONTEXT_PARAMETERS = [
    ("idle_timeout", inspect.Parameter.POSITIONAL_OR_KEYWORD, 600.0),
    ("init", inspect.Parameter.POSITIONAL_OR_KEYWORD, bool),
    ("retire", inspect.Parameter.POSITIONAL_OR_KEYWORD, bool),
    ("grace_period", inspect.Parameter.POSITIONAL_OR_KEYWORD, 30.0),
    ("worker_type", inspect.Parameter.POSITIONAL_OR_KEYWORD, "spawn"),
]
# What the predecessor has not: it comes behind, and by name only.
OUR_CONTEXT_PARAMETERS = [
    ("memory_limit", inspect.Parameter.KEYWORD_ONLY, None),
    ("min_idle", inspect.Parameter.KEYWORD_ONLY, 0),
    ("report_interval", inspect.Parameter.KEYWORD_ONLY, 1.0),
    ("max_waiting_jobs", inspect.Parameter.KEYWORD_ONLY, 1000),
    ("stall_report", inspect.Parameter.KEYWORD_ONLY, 60.0),
    ("forward_logging", inspect.Parameter.KEYWORD_ONLY, None),
    ("keep_handlers", inspect.Parameter.KEYWORD_ONLY, ()),
    ("output", inspect.Parameter.KEYWORD_ONLY, "inherit"),
    ("crash_dir", inspect.Parameter.KEYWORD_ONLY, None),
    ("trace", inspect.Parameter.KEYWORD_ONLY, None),
    ("report", inspect.Parameter.KEYWORD_ONLY, None),
    ("forkserver_preload", inspect.Parameter.KEYWORD_ONLY, ()),
    ("forkserver_threads", inspect.Parameter.KEYWORD_ONLY, ()),
]
CALL_PARAMETERS = [
    ("sync_fn", inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty),
    ("args", inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.empty),
    ("kill_on_cancel", inspect.Parameter.KEYWORD_ONLY, False),
    ("cancellable", inspect.Parameter.KEYWORD_ONLY, False),
    ("limiter", inspect.Parameter.KEYWORD_ONLY, None),
]
PARAMETERS: dict[str, list[tuple[str, Any, Any]]] = {
    "run_sync": CALL_PARAMETERS,
    "WorkerContext.run_sync": [("self", inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty), *CALL_PARAMETERS],
    "WorkerContext.statistics": [("self", inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty)],
    "open_worker_context": CONTEXT_PARAMETERS,
    "cache_scope": CONTEXT_PARAMETERS,
    "configure_default_context": CONTEXT_PARAMETERS,
    "current_default_worker_limiter": [],
    "default_context_statistics": [],
}


def parameters_of(package: Any, name: str) -> list[tuple[str, Any, Any]]:
    found = package
    for part in name.split("."):
        found = getattr(found, part)
    return [
        (parameter.name, parameter.kind, getattr(parameter.default, "value", parameter.default))
        for parameter in inspect.signature(found).parameters.values()
    ]


# --- names and signatures ----------------------------------------------------------------------------------


def test_all_is_all() -> None:
    assert sorted(trio_offload.__all__) == sorted(OF_THE_PREDECESSOR + OF_EARLIER_RELEASES + OURS)
    public = [
        name for name in dir(trio_offload) if not name.startswith("_") and not inspect.ismodule(getattr(trio_offload, name))
    ]
    assert sorted(public) == sorted(trio_offload.__all__)


def test_everything_that_the_predecessor_has_is_here() -> None:
    trio_parallel = pytest.importorskip("trio_parallel")
    theirs = [
        name for name, value in vars(trio_parallel).items() if not name.startswith("_") and not inspect.ismodule(value)
    ]
    assert sorted(theirs) == sorted(OF_THE_PREDECESSOR)


def test_names_of_jobs_that_talk_are_imported_late() -> None:
    code = (
        "import sys, trio_offload; print(any('trio_offload._sync' in name for name in sys.modules)); "
        "trio_offload.callback; print('trio_offload._sync.callbacks' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\nTrue\n"
    with pytest.raises(AttributeError, match="module 'trio_offload' has no attribute 'call_back'"):
        getattr(trio_offload, "call_back")  # noqa: B009


@pytest.mark.parametrize("name", PARAMETERS)
def test_signatures(name: str) -> None:
    expected = PARAMETERS[name]
    if expected is CONTEXT_PARAMETERS:
        expected = [*expected, *OUR_CONTEXT_PARAMETERS]
    elif name.endswith("run_sync"):
        expected = [*expected, *((name, inspect.Parameter.KEYWORD_ONLY, None) for name in ("timeout", "grace", "progress"))]
    assert parameters_of(trio_offload, name) == expected


@pytest.mark.parametrize("name", PARAMETERS)
def test_signatures_of_the_predecessor(name: str) -> None:
    assert parameters_of(pytest.importorskip("trio_parallel"), name) == PARAMETERS[name]


def test_older_names() -> None:
    assert parameters_of(trio_offload, "atexit_shutdown_grace_period") == [
        ("grace_period", inspect.Parameter.POSITIONAL_OR_KEYWORD, -1.0)
    ]
    assert parameters_of(trio_offload, "current_default_process_limiter") == []
    for name in OF_EARLIER_RELEASES:
        assert "Older name" in (inspect.getdoc(getattr(trio_offload, name)) or "")


@pytest.mark.parametrize("name", trio_offload.__all__)
def test_names_are_those_that_users_write(name: str) -> None:
    """In tracebacks, pickles and documentation."""
    found = getattr(trio_offload, name)
    assert found.__module__ == "trio_offload"
    assert found.__qualname__ == name
    assert (found.__doc__ or "").strip()
    assert pickle.loads(pickle.dumps(found)) is found
    assert b"trio_offload._" not in pickle.dumps(found)


def test_the_version() -> None:
    assert trio_offload.__version__.count(".") >= 2
    try:
        installed = importlib.metadata.version("trio-offload")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is used without being installed")
    assert installed == trio_offload.__version__


# --- types -------------------------------------------------------------------------------------------------


def test_worker_types() -> None:
    assert {member.name: member.value for member in WorkerType} == {
        "SPAWN": "spawn",
        "FORKSERVER": "forkserver",
        "FORK": "fork",
    }
    assert WorkerType("spawn") is WorkerType.SPAWN
    assert isinstance(WorkerType.SPAWN, str)
    assert WorkerType.SPAWN == "spawn"  # type: ignore[comparison-overlap,unused-ignore]


def test_exceptions() -> None:
    assert BrokenWorkerError.__mro__[1] is RuntimeError
    assert issubclass(WorkerStartError, BrokenWorkerError)
    assert issubclass(LocateError, WorkerStartError)
    assert issubclass(RemoteError, RuntimeError)
    assert not issubclass(RemoteError, BrokenWorkerError)


@pytest.mark.parametrize(
    "error",
    [
        BrokenWorkerError("it broke"),
        WorkerStartError("it did not start"),
        LocateError("it is nowhere"),
        RemoteError("ValueError", "a message", "Traceback"),
    ],
    ids=repr,
)
def test_exceptions_travel(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert again.args == error.args
    assert str(again) == str(error)


def test_an_error_without_a_process_has_its_attributes() -> None:
    error = BrokenWorkerError("it broke")
    assert (error.process, error.pid, error.exitcode, error.signal) == (None, None, None, None)
    assert str(error) == "it broke"


def test_a_remote_error_says_all() -> None:
    error = RemoteError("spam.Eggs", "a message", "Traceback of the worker")
    assert (error.type_name, error.message, error.traceback_text) == ("spam.Eggs", "a message", "Traceback of the worker")
    assert all(part in str(error) for part in error.args)


def test_a_context_is_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="open_worker_context"):
        WorkerContext()


async def test_a_context_shows_what_it_was_opened_with() -> None:
    async with trio_offload.open_worker_context(5, float, int, math.inf, WorkerType.SPAWN) as context:
        assert isinstance(context, WorkerContext)
        assert (context.idle_timeout, context.init, context.retire, context.grace_period, context.worker_type) == (
            5,
            float,
            int,
            math.inf,
            WorkerType.SPAWN,
        )
        for name, *_ in CONTEXT_PARAMETERS:
            with pytest.raises(AttributeError):
                setattr(context, name, getattr(context, name))
        assert len({context, context}) == 1
        for name, *_ in CONTEXT_PARAMETERS:
            assert name in repr(context)


async def test_statistics_are_a_record() -> None:
    async with trio_offload.open_worker_context() as context:
        statistics = context.statistics()
        assert (statistics.idle_workers, statistics.running_workers) == (0, 0)
        with pytest.raises(AttributeError):
            statistics.idle_workers = 5  # type: ignore[misc]
        assert statistics == context.statistics() == trio_offload.WorkerContextStatistics(0, 0)
        assert pickle.loads(pickle.dumps(statistics)) == statistics


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"idle_timeout": [-1]}, TypeError, "idle_timeout must be a number of seconds, got [-1]"),
        ({"idle_timeout": "5"}, TypeError, "idle_timeout must be a number of seconds, got '5'"),
        ({"idle_timeout": True}, TypeError, "idle_timeout must be a number of seconds, got True"),
        ({"idle_timeout": -1}, ValueError, "idle_timeout must be 0 seconds or more, got -1. Use math.inf for no limit"),
        ({"idle_timeout": math.nan}, ValueError, "idle_timeout must be 0 seconds or more, got nan"),
        ({"grace_period": None}, TypeError, "grace_period must be a number of seconds, got None"),
        ({"grace_period": -0.001}, ValueError, "grace_period must be 0 seconds or more, got -0.001"),
        ({"grace_period": -math.inf}, ValueError, "grace_period must be 0 seconds or more, got -inf"),
        ({"init": 0}, TypeError, "init must be a callable that takes no arguments, got 0"),
        ({"init": None}, TypeError, "init must be a callable that takes no arguments, got None"),
        ({"retire": None}, TypeError, "retire must be a callable that takes no arguments, got None"),
        (
            {"worker_type": "wrong"},
            ValueError,
            "WorkerType.SPAWN, WorkerType.FORKSERVER or WorkerType.FORK, or 'spawn', 'forkserver' or 'fork', got 'wrong'",
        ),
        ({"worker_type": None}, ValueError, "'forkserver' or 'fork', got None"),
        (
            {"max_waiting_jobs": -1},
            ValueError,
            "max_waiting_jobs must be 0 or more, got -1",
        ),
        (
            {"stall_report": 0},
            ValueError,
            "stall_report must be more than 0 seconds, got 0. Use None for no report",
        ),
        (
            {"report_interval": 0.001},
            ValueError,
            "report_interval must be 0.01 seconds or more, got 0.001. Use math.inf for no reports",
        ),
        ({"crash_dir": 5}, TypeError, "crash_dir must be a path, got 5"),
        ({"report": 5}, TypeError, "report must be a path, got 5"),
        ({"trace": 5}, TypeError, "trace must be a path, got 5"),
        # As a function of one's own would say it, with its name.
        (
            {"idle_timout": 5},
            TypeError,
            "{}(): got an unexpected keyword argument 'idle_timout'. Did you mean 'idle_timeout'?",
        ),
        ({"colour": "red"}, TypeError, "{}(): got an unexpected keyword argument 'colour'"),
    ],
    ids=repr,
)
async def test_wrong_arguments(options: dict[str, Any], kind: type[Exception], told: str) -> None:
    for opening in (trio_offload.open_worker_context, trio_offload.cache_scope):
        with pytest.raises(kind, match=re.escape(told.format(opening.__name__))):
            async with opening(**options):
                pytest.fail("it was opened")
    before = trio_offload._default.default_context._current
    with pytest.raises(kind, match=re.escape(told.format("configure_default_context"))):
        trio_offload.configure_default_context(**options)
    assert trio_offload._default.default_context._current is before


def test_too_many_positional_arguments() -> None:
    with pytest.raises(TypeError, match=r"open_worker_context\(\): too many positional arguments"):
        trio_offload.open_worker_context(5, bool, bool, 5, WorkerType.SPAWN, 10**9)  # type: ignore[call-arg,unused-ignore]


# --- options, each stated once ------------------------------------------------------------------------------

TAKES_OPTIONS = ["open_worker_context", "cache_scope", "configure_default_context"]


def fields_of(record: Any) -> list[str]:
    return [field.name for field in attrs.fields(record)]


@pytest.mark.parametrize("name", TAKES_OPTIONS)
def test_each_option_is_in_the_help(name: str) -> None:
    function = getattr(trio_offload, name)
    assert list(inspect.signature(function).parameters) == fields_of(ContextOptions)
    shown = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert all(f"{option}: " in shown for option in fields_of(ContextOptions))
    # Hints can be evaluated, and a size may be text.
    hints = typing.get_type_hints(function)
    assert list(hints) == [*fields_of(ContextOptions), "return"]
    assert hints["memory_limit"] == int | str | None


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (trio_offload.open_worker_context, ContextOptions),
        (trio_offload.map, MapSettings),
        (WorkerContext.map, MapSettings),
    ],
)
def test_each_option_has_its_paragraph(function: Any, options: Any) -> None:
    """In the order of the parameters."""
    _, _, arguments = (inspect.getdoc(function) or "").partition("Args:\n")
    described = re.findall(r"^    (\w+): ", arguments.partition("\nRaises:")[0], re.MULTILINE)
    assert [name for name in described if name not in ("fn", "items")] == fields_of(options)


def test_each_option_has_its_docstring() -> None:
    tree = ast.parse(Path(_options.__file__).read_text())
    for record in (ContextOptions, MapSettings):
        (node,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == record.__name__)
        described = [
            ast.unparse(field.target)
            for field, text in itertools.pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        ]
        assert described == fields_of(record)


WITH_ATTRIBUTES = {
    "WorkerType": ["SPAWN", "FORKSERVER", "FORK"],
    "WorkerContext": fields_of(ContextOptions),
    "BrokenWorkerError": ["crash", "in_hand", "item", "item_index"],
    "WorkerMemoryError": ["limit", "reached", "crash", "in_hand", "item", "item_index"],
    "WorkerStartError": ["crash", "in_hand", "item", "item_index"],
    "WorkerTimeoutError": ["crash", "item", "item_index"],
    "LocateError": ["crash", "in_hand", "item", "item_index"],
    "JobExitError": ["item", "item_index"],
    "RemoteError": ["item", "item_index"],
    "CrashRecord": fields_of(trio_offload.CrashRecord),
    "WaitingJob": fields_of(trio_offload.WaitingJob),
    "WorkerStatistics": fields_of(trio_offload.WorkerStatistics),
    "WorkerContextCounters": fields_of(trio_offload.WorkerContextCounters),
    "WorkerContextStatistics": fields_of(trio_offload.WorkerContextStatistics),
}


@pytest.mark.parametrize("name", WITH_ATTRIBUTES)
def test_strings_below_attributes_are_in_the_help(name: str) -> None:
    cls = getattr(trio_offload, name)
    _, _, described = (inspect.getdoc(cls) or "").partition("\n\nAttributes:\n")
    assert re.findall(r"^    (\w+): \S", described, re.MULTILINE) == WITH_ATTRIBUTES[name]
    shown = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    # `pydoc` reads the docstring past a metaclass.
    if type(cls) is type:
        assert all(line in shown for line in described.splitlines())


def test_a_member_has_its_own_help() -> None:
    shown = pydoc.render_doc(WorkerType, renderer=pydoc.plaintext)
    for member in WorkerType:
        assert (member.__doc__ or "").startswith("A worker is ")
        assert (member.__doc__ or "").splitlines()[0] in shown
    assert "experiments" in (WorkerType.FORK.__doc__ or "")
    assert "experiments" not in (WorkerType.SPAWN.__doc__ or "")


def test_a_class_without_its_source_keeps_its_docstring() -> None:
    @documented
    class Frozen:
        """How it is."""

        crash = None
        """Not in a module's source at its top."""

    assert Frozen.__doc__ == Frozen().__doc__ == "How it is."


def test_there_is_no_docstring_where_python_drops_them() -> None:
    code = "import trio_offload as t; print(t.WorkerType.__doc__, t.WorkerType.FORK.__doc__, t.CrashRecord.__doc__)"
    ran = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "None None None\n"


@pytest.mark.parametrize(("page", "options"), [("interface.md", ContextOptions), ("map.md", MapSettings)])
def test_each_option_is_in_the_documents(page: str, options: Any) -> None:
    text = (Path(__file__).parent.parent / "docs" / page).read_text()
    assert [name for name in fields_of(options) if not re.search(rf"[`(,| ]{name}(`|=)", text)] == []


@pytest.mark.parametrize("function", [trio_offload.map, WorkerContext.map, trio_offload.starmap, WorkerContext.starmap])
def test_a_checker_sees_the_options_of_map(function: Any) -> None:
    """They are stated for it in a TypedDict, and for Python in a record: the two are equal."""
    parameters = inspect.signature(function).parameters
    options = {name: parameter.annotation for name, parameter in parameters.items() if name in fields_of(MapSettings)}
    assert list(options) == fields_of(MapSettings)
    for name in ("return_outcomes", "return_items"):
        assert options.pop(name) is bool  # it chooses the overload
    assert options == typing.get_type_hints(_options.MapOptions)
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in options)


def test_a_misspelt_option_of_map() -> None:
    with pytest.raises(TypeError, match=r"map\(\): got an unexpected .*'chunksize'\. Did you mean 'chunk_size'\?"):
        trio_offload.map(abs, [1], chunksize=5)  # type: ignore[call-overload,unused-ignore]
    with pytest.raises(TypeError, match=r"starmap\(\): got an unexpected .*'chunksize'\. Did you mean 'chunk_size'\?"):
        trio_offload.starmap(pow, [(1, 2)], chunksize=5)  # type: ignore[call-overload,unused-ignore]


def test_outside_of_trio() -> None:
    with pytest.raises(RuntimeError):
        trio_offload.current_default_worker_limiter()
    assert trio_offload.default_context_statistics().running_workers == 0
    assert trio_offload.atexit_shutdown_grace_period() == 30.0


@pytest.mark.leaves_default_workers
def test_each_run_has_a_limiter_of_its_own() -> None:
    async def change() -> trio.CapacityLimiter:
        limiter = trio_offload.current_default_worker_limiter()
        limiter.total_tokens = 77
        assert trio_offload.current_default_worker_limiter().total_tokens == 77
        return limiter

    async def look() -> trio.CapacityLimiter:
        limiter = trio_offload.current_default_worker_limiter()
        assert limiter.total_tokens != 77
        return limiter

    assert trio.run(change) is not trio.run(look)


# --- meaning -----------------------------------------------------------------------------------------------

LAST_LINE = "all held"


def contract(package: str) -> Ended:
    return run([sys.executable, PROGRAMS / "predecessor_contract.py", package])


def test_what_programs_rely_on() -> None:
    assert contract("trio_offload").lines()[-1] == LAST_LINE


@pytest.mark.slow
def test_programs_may_rely_on_it_with_the_predecessor_too() -> None:
    """So the contract is the predecessor's, and not what we take for it."""
    pytest.importorskip("trio_parallel")
    assert contract("trio_parallel").lines()[-1] == LAST_LINE


EXAMPLES = {
    "minimal": """
        import trio, trio_offload as trio_parallel
        from operator import add

        async def parallel_add():
            return await trio_parallel.run_sync(add, 1, 2)

        if __name__ == "__main__":
            assert add(1, 2) == trio.run(parallel_add) == 3
            print("done")
    """,
    "the event loop is free": """
        import trio, trio_offload as trio_parallel, time

        async def check_scheduling_latency(cancel_scope):
            turns = 0
            while not finished:
                await trio.lowlevel.checkpoint()
                turns += 1
            assert turns > 1000
            print("done")

        finished = False

        async def amain():
            global finished
            async with trio.open_nursery() as nursery:
                nursery.start_soon(check_scheduling_latency, nursery.cancel_scope)
                await trio_parallel.run_sync(time.sleep, 1)
                finished = True

        if __name__ == "__main__":
            trio.run(amain)
    """,
    "busy functions of the main script": """
        import trio, trio_offload as trio_parallel, time

        def loop(i=0):
            deadline = time.perf_counter() + 0.2
            while time.perf_counter() < deadline:
                i += 1
            assert i > 100

        async def amain():
            async with trio.open_nursery() as nursery:
                for i in range(4):
                    nursery.start_soon(trio_parallel.run_sync, loop)
            print("done")

        if __name__ == "__main__":
            trio.run(amain)
    """,
    "cancellation": """
        import trio, trio_offload as trio_parallel, time

        def hello_delayed_world():
            print("Hello", flush=True)
            time.sleep(1000)
            print("world!")

        async def amain():
            await trio_parallel.run_sync(bool)
            with trio.move_on_after(5) as scope:
                await trio_parallel.run_sync(hello_delayed_world, cancellable=True)
            assert scope.cancelled_caught
            print("done")

        if __name__ == "__main__":
            trio.run(amain)
    """,
    "workers that leave": """
        import trio, trio_offload as trio_parallel, os

        def worker(i):
            return os.getpid()

        def after_single_use():
            return True

        WORKER_HAS_BEEN_USED = False

        def after_dual_use():
            global WORKER_HAS_BEEN_USED
            if WORKER_HAS_BEEN_USED:
                return True
            WORKER_HAS_BEEN_USED = True
            return False

        async def count(retire):
            pids = []

            async def one(i):
                pids.append(await ctx.run_sync(worker, i))

            async with trio_parallel.open_worker_context(retire=retire) as ctx:
                async with trio.open_nursery() as nursery:
                    for i in range(10):
                        nursery.start_soon(one, i)
            return max(map(pids.count, pids))

        async def amain():
            trio_parallel.current_default_worker_limiter().total_tokens = 4
            print("single use", await count(after_single_use))
            print("dual use", await count(after_dual_use))
            print("done")

        if __name__ == "__main__":
            trio.run(amain)
    """,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_predecessors_manual(tmp_path: Path, name: str) -> None:
    ended = run_script(tmp_path, EXAMPLES[name])
    assert ended.lines()[-1] == "done"
    assert ended.stderr == ""
    if name == "cancellation":
        assert ended.lines() == ["Hello", "done"]
    if name == "workers that leave":
        assert ended.lines() == ["single use 1", "dual use 2", "done"]


def test_windows_is_refused_in_one_sentence(tmp_path: Path) -> None:
    ended = run_script(tmp_path, "import sys\nsys.platform = 'win32'\nimport trio_offload", expect=1)
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("ImportError: trio-offload does not support Windows yet")
    assert "trio/" not in ended.stderr


def test_the_import_is_light(tmp_path: Path) -> None:
    """It starts no process and no thread, and does not import what only some programs need."""
    ended = run_script(
        tmp_path,
        """
        import sys, threading, os, trio
        before = set(sys.modules)
        import trio_offload
        new = set(sys.modules) - before
        rare = {"multiprocessing", "rich", "cloudpickle", "importlib.metadata", "sysconfig", "numpy", "json", "tricycle"}
        rare |= {f"trio_offload.{name}" for name in ("_forked", "_map", "_template", "_trace", "_interpreter.archive")}
        print(sorted(rare & new))
        print(threading.active_count(), os.listdir("/proc/self/task").__len__())
        print(open(f"/proc/self/task/{os.getpid()}/children").read())
        """,
    )
    assert ended.lines() == ["[]", "1 1", ""]
