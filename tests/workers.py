"""Workers outside of a context, begun as a context begins them."""

from __future__ import annotations

from typing import Any

from trio_offload import WorkerContext
from trio_offload._launch.forkserver import ForkserverLauncher
from trio_offload._launch.select import launcher_for
from trio_offload._launch.template import Template
from trio_offload._options import ContextOptions
from trio_offload._worker.launcher import Launcher
from trio_offload._worker.worker import Worker


def make_launcher(*args: Any, **options: Any) -> Launcher:
    """The launcher of a context with these options."""
    return launcher_for(ContextOptions(*args, **options))


def begin_worker(*args: Any, **options: Any) -> Worker:
    """A worker with these options, whose start has begun; :meth:`Worker.finish` must follow."""
    return make_launcher(*args, **options).begin()


async def start_worker(*args: Any, **options: Any) -> Worker:
    """A worker with these options that takes calls."""
    worker = begin_worker(*args, **options)
    await worker.finish(cancellable=False)
    return worker


def template_of(context: WorkerContext) -> Template | None:
    """The template of a context, if it has one."""
    launcher = context._launcher
    return launcher._current if isinstance(launcher, ForkserverLauncher) else None
