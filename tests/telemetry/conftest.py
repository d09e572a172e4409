"""Telemetry that is switched on for a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from telemetry_support import Metrics, Spans

from trio_offload import WorkerContext, telemetry
from trio_offload._default import default_context
from trio_offload._options import ContextOptions


@pytest.fixture
def exporters(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Spans, Metrics]]:
    # Other tests have used the default context, whose counters only grow.
    monkeypatch.setattr(default_context, "_replaced", [])
    monkeypatch.setattr(default_context, "_current", WorkerContext._create(ContextOptions()))
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    tracers, meters = TracerProvider(shutdown_on_exit=False), MeterProvider([reader], shutdown_on_exit=False)
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.instrument(tracer_provider=tracers, meter_provider=meters)
    yield Spans(exporter, tracers.get_tracer("test")), Metrics(reader)
    telemetry.uninstrument()
    default_context.shutdown()
    meters.shutdown()
    tracers.shutdown()


@pytest.fixture
def spans(exporters: tuple[Spans, Metrics]) -> Spans:
    return exporters[0]


@pytest.fixture
def metrics(exporters: tuple[Spans, Metrics]) -> Metrics:
    return exporters[1]
