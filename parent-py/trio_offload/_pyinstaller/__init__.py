"""How PyInstaller collects trio_offload into an app. It finds this package by the entry point group ``pyinstaller40``."""

from __future__ import annotations

import os


def get_hook_dirs() -> list[str]:
    """The folders with hooks (PyInstaller's manual, «Providing PyInstaller Hooks with your Package»)."""
    return [os.path.dirname(__file__)]
