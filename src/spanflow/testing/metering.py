"""Capture what instruments measure during a block of code, in memory."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from spanflow.testing.matching import matches, wish

if TYPE_CHECKING:  # the SDK is imported only when metrics are captured
    from opentelemetry.sdk.metrics import Exemplar
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData

_Key: TypeAlias = tuple[str, tuple[tuple[str, Any], ...]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What an instrument measured with one set of attributes.

    Attributes:
        name: of the instrument.
        unit: of the values, ``s`` for durations.
        attributes: that came with each of the values.
        count: how many values a histogram took; 0 for a counter.
        sum: of the values, or the change of a counter.
        exemplars: some of the values, each with the span in which it was measured.
    """

    name: str
    unit: str
    attributes: Mapping[str, Any]
    count: int = 0
    sum: float = 0
    exemplars: "tuple[Exemplar, ...]" = ()


class Metrics:
    """What was measured during one test. Made by the ``metrics`` fixture and by ``capture_metrics()``."""

    def __init__(self, reader: "InMemoryMetricReader") -> None:
        self._reader = reader
        self._measured: dict[_Key, Measured] = {}
        reader.get_metrics_data()  # what came before is not this test's

    def find(self, name: str = "*", attributes: Mapping[str, Any] | None = None) -> tuple[Measured, ...]:
        """Return what was measured so far under this name with these attributes.

        Args:
            name: of the instrument; ``*`` and ``?`` stand for any characters.
            attributes: what must be among the attributes; ``...`` stands for any value.
        """
        self._read()
        return tuple(each for each in self._measured.values() if matches(each.name, each.attributes, name, attributes))

    def one(self, name: str = "*", attributes: Mapping[str, Any] | None = None) -> Measured:
        """Return the only one that ``find`` finds. Raises AssertionError, with a list, if there is not just one."""
        found = self.find(name, attributes)
        if len(found) != 1:
            listed = "\n".join(str(each) for each in self.find()) or "(nothing measured)"
            raise AssertionError(f"Wanted one measurement {wish(name, attributes)}, found {len(found)} in\n{listed}")
        return found[0]

    def _read(self) -> None:
        """Add up what was measured since the last time."""
        data: MetricsData | None = self._reader.get_metrics_data()
        for resource in data.resource_metrics if data is not None else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        self._add(metric.name, metric.unit or "", point)

    def _add(self, name: str, unit: str, point: Any) -> None:
        attributes = dict(point.attributes or {})
        key = (name, tuple(sorted(attributes.items())))
        before = self._measured.get(key, Measured(name, unit, attributes))
        self._measured[key] = replace(
            before,
            count=before.count + getattr(point, "count", 0),
            sum=before.sum + (point.sum if hasattr(point, "sum") else point.value),
            exemplars=(*before.exemplars, *point.exemplars),
        )


@contextmanager
def capture_metrics() -> Generator[Metrics]:
    """Capture what is measured in the body. What pytest's ``metrics`` fixture does, for any test framework.

    A run that outlives its block is measured in the next one: values, unlike spans, do not say where they come from.

    Raises:
        SpanflowError: the application has set a meter provider. It can be set once in a process.

    Example:
        >>> import asyncio
        >>> from spanflow import Workflow, step
        >>> @step
        ... async def double(value: int) -> int:
        ...     return 2 * value
        >>> async def main() -> None:
        ...     await (await Workflow("numbers", input=int).then(double).create_run()).start(21)
        >>> with capture_metrics() as metrics:
        ...     asyncio.run(main())
        >>> metrics.one("spanflow.step.duration", {"spanflow.step.id": "double"}).count
        1
    """
    from spanflow.testing.reading import installed_reader  # here, since it imports the SDK

    yield Metrics(installed_reader())
