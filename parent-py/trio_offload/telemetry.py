"""OpenTelemetry: spans of calls and of their jobs, and metrics of workers.

It needs the package ``opentelemetry-api``, which ``pip install "trio-offload[otel]"`` brings. Only
an import of this module imports that package. See ``docs/telemetry.md``.
"""

try:
    import opentelemetry.metrics
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        'trio_offload.telemetry needs the package opentelemetry-api: pip install "trio-offload[otel]"', name=_error.name
    ) from None

from trio_offload_worker import publish as _publish

from ._telemetry.instrument import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]

_publish(__name__, *(globals()[name] for name in __all__))
del opentelemetry
