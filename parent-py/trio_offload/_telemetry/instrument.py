"""Switch telemetry on and off."""

from __future__ import annotations

from typing import Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from .._default import default_context
from .contexts import Contexts
from .hooks import Hooks
from .instruments import Instruments
from .recorder import Recorder

_installed: tuple[Hooks, Instruments] | None = None


def instrument(*, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> None:
    """Record a span for each call and its job, and the figures of ``statistics()`` as metrics.

    ::

        from trio_offload import telemetry

        telemetry.instrument()  # before the first call

    It holds for all calls of this program. Call it at the start: the metrics cover the default
    context, and contexts that are opened later. A second call replaces the first.
    ``docs/telemetry.md`` lists the spans and the metrics.

    Args:
        tracer_provider: Makes the spans. The default is the global one.
        meter_provider: Makes the instruments. The default is the global one.
    """
    global _installed
    uninstrument()
    recorder, contexts = Recorder(tracer_provider, meter_provider), Contexts()
    for context in default_context.all_contexts():
        contexts.add(context._pool)
    hooks = Hooks(recorder, contexts)
    _installed = hooks, Instruments(recorder, contexts)
    hooks.install()


def uninstrument() -> None:
    """Stop recording. A job in progress ends without a span.

    ::

        telemetry.instrument()
        try:
            await trio_offload.run_sync(math.factorial, 20)
        finally:
            telemetry.uninstrument()  # later calls are not recorded
    """
    global _installed
    if _installed is not None:
        hooks, instruments = _installed
        _installed = None
        instruments.is_on = False
        hooks.remove()


class Instrumentor:
    """The entry point for ``opentelemetry-instrument``."""

    def instrument(self, **options: Any) -> None:
        """As the function, with the providers among these options."""
        instrument(tracer_provider=options.get("tracer_provider"), meter_provider=options.get("meter_provider"))

    def uninstrument(self, **options: Any) -> None:
        """As the function."""
        uninstrument()
