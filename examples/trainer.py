"""Train a model in a worker: its progress is shown, and it can be stopped without losing the model.

    python trainer.py

The job reports each step with ``from_worker.progress``. Cancelling its call does not kill it, as
``kill_on_cancel`` is false. It is told, and returns the model that it has so far. One that does not
notice is killed after its ``grace``.
"""

from __future__ import annotations

import random
import sys

import trio

import trio_offload
from trio_offload_worker import from_worker


def train(points: list[tuple[float, float]], steps: int) -> tuple[float, float, int]:
    """Fit a line through the points. Return its slope, its offset and the number of steps taken."""
    slope = offset = 0.0
    for step in range(1, steps + 1):
        errors = [slope * x + offset - y for x, y in points]
        slope -= 0.1 * sum(error * x for error, (x, _) in zip(errors, points, strict=True)) / len(points)
        offset -= 0.1 * sum(errors) / len(points)
        loss = sum(error * error for error in errors) / len(points)
        from_worker.progress(step, steps, f"loss {loss:.4f}")
        if from_worker.cancelled():
            break
    return slope, offset, step


class Display:
    """Shows the progress of one training, and stops it at a certain step."""

    def __init__(self, stop_at: float) -> None:
        self.stopping = trio.CancelScope()
        self._stop_at = stop_at

    def show(self, done: float, total: float | None, note: str | None) -> None:
        """Print the progress. Cancel the call once that step has been seen."""
        print(f"step {done} of {total}, {note}", file=sys.stderr)
        if done >= self._stop_at:
            self.stopping.cancel()


async def run(points: list[tuple[float, float]], steps: int, stop_at: float) -> None:
    """Train, and print the model."""
    display = Display(stop_at)
    with display.stopping:
        slope, offset, taken = await trio_offload.run_sync(train, points, steps, progress=display.show, grace=30)
        how = "finished" if taken == steps else "stopped early"
        print(f"{how}: y = {slope:.1f} x + {offset:.1f}")


async def main() -> None:
    """Train twice: to the end, and for far too long, so that somebody stops it."""
    chance = random.Random(1)
    points = [(x, 2 * x + 1 + chance.gauss(0, 0.01)) for x in (chance.random() for _ in range(100))]
    await run(points, steps=2000, stop_at=float("inf"))
    await run(points, steps=10**9, stop_at=1000)


if __name__ == "__main__":
    trio.run(main)
