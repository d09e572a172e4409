"""Jobs for the tests of ``trio-offload top``."""

from __future__ import annotations

import os
import time

from trio_offload_worker import from_worker


def wait_for(path: str) -> None:
    """Run until a file exists."""
    while not os.path.exists(path):
        time.sleep(0.01)


def tell_and_wait_for(path: str) -> None:
    """The same, half done."""
    from_worker.progress(2, 4, note="in the middle")
    wait_for(path)


def wait_under_another_name(path: str) -> None:
    """For a test that changes its name: names are remembered."""
    wait_for(path)


def spin_for(path: str) -> None:
    """Use a processor until a file exists."""
    while not os.path.exists(path):
        pass
