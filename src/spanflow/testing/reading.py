"""The meter provider for tests. Imported only where metrics are captured: it imports the SDK."""

from opentelemetry import metrics
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, UpDownCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from opentelemetry.sdk.resources import Resource

from spanflow.errors import SpanflowError

_installed: list[InMemoryMetricReader] = []


def installed_reader() -> InMemoryMetricReader:
    """Return the reader of this process, after setting a meter provider for it. Each reading is what is new.

    Raises:
        SpanflowError: there is a meter provider already; it cannot be given another reader.
    """
    if not _installed:
        kinds = (Counter, Histogram, UpDownCounter)
        reader = InMemoryMetricReader(dict.fromkeys(kinds, AggregationTemporality.DELTA))
        provider = MeterProvider([reader], Resource.get_empty(), shutdown_on_exit=False)
        metrics.set_meter_provider(provider)
        if metrics.get_meter_provider() is not provider:
            raise SpanflowError(
                f"Metrics cannot be captured: this process has a meter provider, {metrics.get_meter_provider()!r},"
                " and it can be set only once. Set none for tests."
            )
        _installed.append(reader)
    return _installed[0]
