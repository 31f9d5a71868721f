"""One measuring process: OpenTelemetry's provider is global, so tracing on and off each need their own.

``python -m benchmarks.worker --tracing on --rounds 40 --case sequential10`` prints one JSON line per case.
``--profile`` instead prints where spanflow's side of the case spends its time.
"""

import argparse
import asyncio
import cProfile
import gc
import json
import sys
from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from benchmarks.cases import NAMES, Case, cases
from benchmarks.measure import measure

Tracing = Literal["on", "off"]


class Found(TypedDict):
    """One measured case; times are seconds a step, one for each round."""

    case: str
    title: str
    tracing: Tracing
    floor: list[float]
    spanflow: list[float]
    ratio: float
    ratio_of_minima: float


class Discard(SpanExporter):
    """Takes spans and drops them: what encoding and the network cost is the same for both sides."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def turn_tracing_on() -> Callable[[], object]:
    """Set up the SDK with the queue of ``configure_tracing``, so that no span is lost; return how to empty it."""
    processor = BatchSpanProcessor(Discard(), max_queue_size=65_536, max_export_batch_size=2_048)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
    return processor.force_flush


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=__doc__)
    parser.add_argument("--tracing", choices=["on", "off"], required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--case", action="append", choices=NAMES)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(argv)
    settle = turn_tracing_on() if options.tracing == "on" else _nothing
    all_cases = cases(trace.get_tracer("floor"))
    gc.collect()
    gc.freeze()
    for name in options.case or NAMES:
        if options.profile:
            _profile(all_cases[name], options.rounds)
        else:
            sys.stdout.write(json.dumps(_measured(all_cases[name], options.tracing, options.rounds, settle)) + "\n")
            sys.stdout.flush()


def _measured(case: Case, tracing: Tracing, rounds: int, settle: Callable[[], object]) -> Found:
    timing = measure(case, rounds, settle)
    return Found(
        case=case.name,
        title=case.title,
        tracing=tracing,
        floor=timing.floor,
        spanflow=timing.spanflow,
        ratio=timing.ratio,
        ratio_of_minima=timing.ratio_of_minima,
    )


def _profile(case: Case, rounds: int) -> None:
    async def work() -> None:
        for _ in range(rounds):
            await case.spanflow()

    profile = cProfile.Profile()
    profile.runcall(asyncio.run, work())
    profile.print_stats("tottime")


def _nothing() -> None:
    """What is left to export where nothing is traced."""


if __name__ == "__main__":
    main()
