"""Makes the source distribution: what maturin makes, with the modes that the files have here.

    python ci/source_distribution.py FOLDER

The running Python's environment must have maturin. That leaves the data's modes out, so that the `trio-offload` command would
arrive without the permission to be executed wherever pip builds a wheel from the sources.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make(folder: Path) -> Path:
    """The path of the archive in the folder."""
    with tempfile.TemporaryDirectory() as scratch:
        manifest = ROOT / "worker-bin" / "Cargo.toml"
        maturin = Path(sys.executable).with_name("maturin")
        subprocess.run([maturin, "sdist", "--manifest-path", manifest, "--out", scratch], check=True)
        (made,) = Path(scratch).iterdir()
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(made) as source, tarfile.open(folder / made.name, "w:gz") as target:
            for member in source:
                if member.isfile() and _is_executable(member.name):
                    member.mode |= 0o111
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return folder / made.name


def _is_executable(name: str) -> bool:
    """Of a member: the first part of its name is the release's."""
    return os.access(ROOT / name.partition("/")[2], os.X_OK)


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
