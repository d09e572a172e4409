"""Collect the worker executable and the worker's modules, which import statements do not show."""

from PyInstaller.utils.hooks import collect_submodules

from trio_offload._interpreter.locate import worker_executable

# As a binary, it stays executable and PyInstaller collects its libraries. The folder is that of
# libpython.
binaries = [(worker_executable(), ".")]
hiddenimports = collect_submodules("trio_offload_worker")
