"""Exporters that keep what they get, as the tests of telemetry ask them."""

from __future__ import annotations

from typing import Any

import attrs
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Tracer


@attrs.frozen
class Spans:
    """The spans that have ended, and a tracer of the test's own."""

    exporter: InMemorySpanExporter
    tracer: Tracer

    def named(self, *names: str) -> list[ReadableSpan]:
        """The spans with one of these names, in the order of their ends."""
        return [span for span in self.exporter.get_finished_spans() if span.name in names]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def names(self) -> list[str]:
        return sorted(span.name for span in self.exporter.get_finished_spans())


@attrs.frozen
class Metrics:
    """The metrics, as they are read now."""

    reader: InMemoryMetricReader

    def points(self) -> dict[str, list[Any]]:
        """The data points of each instrument, by its name and unit."""
        data: Any = self.reader.get_metrics_data()
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        return {f"{metric.name} {metric.unit}": list(metric.data.data_points) for metric in scope.metrics}

    def value(self, name: str, **attributes: Any) -> Any:
        """The value of the one point with these attributes, whose dots are written as ``__``."""
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        (point,) = [point for point in self.points()[name] if wanted.items() <= dict(point.attributes).items()]
        return point.value


def span_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.span_id, "016x")


def parent_id(span: ReadableSpan) -> str:
    """The ID of the parent. Empty for the root of a trace."""
    return "" if span.parent is None else format(span.parent.span_id, "016x")
