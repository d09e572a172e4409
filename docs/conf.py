"""Configuration of the documentation site, for Sphinx. `ci/docs` builds it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.util import logging

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "parent-py"))

project = "trio-offload"
author = "the trio-offload authors"
copyright = author  # Sphinx's name
version = release = (ROOT / "parent-py/trio_offload/_version.py").read_text().partition('"')[2].partition('"')[0]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown"}
# The source directory is the project's root: pages link to ARCHITECTURE.md and its like.
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "docs/**",
    "benchmarks/README.md",
    "benchmarks/results/bench.md",
    "benchmarks/results/before-and-after.md",
]
exclude_patterns = ["docs/_static"]

# Of options, and of a few attributes and results. They have no public name.
TYPES_WITHOUT_A_PAGE = (
    "ActorStreams",
    "Address",
    "Callback",
    "CapacityLimiterStatistics",
    "ChannelStatistics",
    "ConditionStatistics",
    "FailedItem",
    r"JobHandles\.\w+",
    "Lease",
    "Limiter",
    "LockStatistics",
    "MapOptions",
    "MovedConnection",
    "MovedEnd",
    "MultiprocessingConnection",
    "ProcessChannel",
    "ReceivedDescriptor",
    "ShowProgress",
    "Signals",
    "WaitStatistics",
    "WorkQueueStatistics",
    "WorkerOptions",
    "WorkerProcess",
)
# Every unresolved reference is a warning, and `ci/docs` turns warnings into errors.
nitpicky = True
nitpick_ignore_regex = [
    # Of other projects: their inventories would need a network.
    (r"py:.*", rf"({'|'.join(sorted(sys.stdlib_module_names))}|trio|outcome|opentelemetry)(\..*)?"),
    # Type variables.
    (r"py:class", r"(.*\.)?(\w+Type|ArgumentTypes|Parameters)"),
    (r"py:class", rf"(.*\.)?({'|'.join(TYPES_WITHOUT_A_PAGE)})"),
]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings: list[str] = []

autodoc_typehints = "signature"
autodoc_member_order = "groupwise"
# The members of our own base classes too, without those of Python's.
autodoc_default_options = {
    "members": True,
    "undoc-members": False,
    "inherited-members": "BaseException, Enum, str, int, tuple, Generic, Protocol, ABC",
}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Attributes of a class that its docstring describes are not described again.
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"trio-offload {version}"
html_show_sourcelink = False
html_copy_source = False
# A signature is broken into lines by parameters.
maximum_signature_line_length = 80
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True


def resolve_public_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Link a name of a private module, as types in signatures have it, to the public name."""
    domain = env.get_domain("py")
    prefix, _, name = node.get("reftarget", "").rpartition(".")
    if prefix and not prefix.startswith("trio_offload"):
        return None  # Trio has a CapacityLimiter too
    for module in ("trio_offload", "trio_offload.connection", "trio_offload_worker", "trio_offload_worker.from_worker"):
        if (target := f"{module}.{name}") in domain.objects:
            page = node.get("refdoc", env.docname)
            return domain.resolve_xref(env, page, app.builder, "obj", target, node, contnode)
    return None


def check_members(app: Any, env: Any) -> None:
    """Warn of public members that the reference leaves out."""
    documented = env.get_domain("py").objects
    for name, entry in documented.items():
        if entry.objtype not in ("class", "exception") or entry.aliased:
            continue
        module, _, class_name = name.rpartition(".")
        described = getattr(importlib.import_module(module), class_name)
        for member in dir(described):
            owner = next((base for base in described.__mro__ if member in vars(base)), object)
            is_ours = owner.__module__.startswith("trio_offload") and not member.startswith("_")
            if is_ours and f"{name}.{member}" not in documented:
                logging.getLogger(__name__).warning("%s.%s is not in the reference", name, member)


def name_classes(
    app: Any, what: str, name: str, described: Any, options: Any, signature: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Write a default that is a class as its name. Sphinx cannot read the whole signature otherwise."""
    return signature and re.sub(r"<class '([\w.]+)'>", r"\1", signature), result


def setup(app: Any) -> None:
    app.connect("autodoc-process-signature", name_classes)
    app.connect("missing-reference", resolve_public_name)
    app.connect("env-check-consistency", check_members)
