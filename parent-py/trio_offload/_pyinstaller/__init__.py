"""PyInstaller's hooks for trio_offload, found by the entry point group ``pyinstaller40``."""

from __future__ import annotations

import os


def get_hook_dirs() -> list[str]:
    """Return the folders with hooks.

    See "Providing PyInstaller Hooks with your Package" in PyInstaller's manual.
    """
    return [os.path.dirname(__file__)]
