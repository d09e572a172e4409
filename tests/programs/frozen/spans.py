"""An app with OpenTelemetry: its job has the span of its caller, and makes a child of it."""

import trio
from frozen_package.work import has_span
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import trio_offload
import trio_offload.telemetry


async def main():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trio_offload.telemetry.instrument(tracer_provider=provider)
    print(await trio_offload.run_sync(has_span))
    print(*sorted(span.name for span in exporter.get_finished_spans()))


if __name__ == "__main__":
    trio.run(main)
