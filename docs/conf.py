"""Configuration of the documentation site, for Sphinx. `ci/docs` builds it."""

from __future__ import annotations

import sys
from pathlib import Path

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

# Every unresolved reference is a warning, and `ci/docs` turns warnings into errors.
nitpicky = False
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings: list[str] = []

autodoc_typehints = "signature"
autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True, "undoc-members": False}
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
