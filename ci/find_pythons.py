"""Prints the CPythons of this machine that the project supports, one path a line, the running one first.

    python ci/find_pythons.py          one of each minor version
    python ci/find_pythons.py --all    every build: a machine may have several of one minor version

Looked at: this interpreter, what pyenv has, and python3.X on PATH. One without a shared libpython, or without the
modules that make an environment, cannot be used; it is named on standard error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MINORS = range(10, 16)

# Runs in the candidate. The real path of the standard library tells two builds apart; sys.prefix does not, where a
# link or a virtual environment comes between.
PROBE = """
import os, sys, sysconfig
if sys.implementation.name != "cpython":
    sys.exit("it is not CPython")
try:
    import ensurepip, venv
except ModuleNotFoundError as error:
    sys.exit(f"it lacks the module {error.name} (Debian: apt-get install python3-venv)")
folders = [sysconfig.get_config_var("LIBDIR"), os.path.join(sys.base_exec_prefix, "lib")]
multiarch = sysconfig.get_config_var("MULTIARCH")
folders += [os.path.join(folder, multiarch) for folder in folders if multiarch]
library = f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so"
if not any(os.path.exists(os.path.join(folder, library)) for folder in folders):
    sys.exit(f"there is no {library} in {', '.join(dict.fromkeys(folders))} (Debian: apt-get install libpython3-dev)")
print(sys.version_info[1], os.path.realpath(os.__file__), sys.version.split()[0])
"""


def candidates() -> list[Path]:
    found = [Path(sys.executable)]
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    for minor in MINORS:
        # The newest of each minor version first: 3.11.10 comes after 3.11.7.
        versions = sorted((root / "versions").glob(f"3.{minor}.*"), key=lambda path: _number(path.name), reverse=True)
        found += [path / "bin" / "python" for path in versions]
        for folder in os.get_exec_path():
            program = shutil.which(f"python3.{minor}", path=folder)
            # pyenv's shims are not interpreters; what they stand for is listed already.
            if program is not None and not Path(folder).is_relative_to(root):
                found.append(Path(program))
    return found


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else -1 for part in version.split("."))


def pythons(every_build: bool = False) -> list[Path]:
    """The usable interpreters, the running one first."""
    chosen: list[Path] = []
    seen: set[object] = set()
    refused: set[str] = set()
    for path in candidates():
        if not path.exists():
            continue
        answer = subprocess.run([path, "-I", "-c", PROBE], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if answer.returncode != 0:
            reason = (answer.stderr.strip().splitlines() or ["it does not run"])[-1]
            if reason not in refused:
                print(f"{path} is left out: {reason}", file=sys.stderr)
                refused.add(reason)
            continue
        minor, build, _version = answer.stdout.split()
        if int(minor) not in MINORS or (identity := build if every_build else minor) in seen:
            continue
        seen.add(identity)
        chosen.append(path)
    return chosen


if __name__ == "__main__":
    for python in pythons("--all" in sys.argv[1:]):
        print(python)
