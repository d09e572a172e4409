"""What trio_offload needs in an app and no import statement shows: the worker executable and the worker's modules."""

from PyInstaller.utils.hooks import collect_submodules

from trio_offload._interpreter.locate import worker_executable

# Among the binaries, so that it stays executable and its libraries are looked for; where libpython lies.
binaries = [(worker_executable(), ".")]
hiddenimports = collect_submodules("trio_offload_worker")
