"""Which spans of a very wide run are left out, and how many those are."""

_SLOW = 10  # times the mean of its kind so far
_SLOW_FROM = 100_000_000  # ns: below it, what is slow is noise


class LeftOut:
    """Counts what a run leaves out, by the span that stands in for it, and knows what is slow for its kind."""

    __slots__ = ("_begun_before", "_by_span", "_durations", "total")

    def __init__(self) -> None:
        self.total = 0
        self._by_span: dict[int, int] = {}
        self._begun_before: set[int] = set()
        self._durations: dict[str, tuple[int, int]] = {}

    def add(self, span_id: int) -> None:
        """Count one more below this span."""
        self.total += 1
        self._by_span[span_id] = self._by_span.get(span_id, 0) + 1

    def take(self, span_id: int) -> int:
        """Return how many were left out below this span, which is about to end; 0 where nobody can tell."""
        number = self._by_span.pop(span_id, 0)
        return 0 if span_id in self._begun_before else number

    def begun_before(self, span_id: int) -> None:
        """Remember that an earlier stretch of the run began this span, and left out nobody knows how many."""
        self._begun_before.add(span_id)

    def is_slow(self, name: str, duration: int) -> bool:
        """Tell whether this took far longer (ns) than others of its name did so far."""
        count, total = self._durations.get(name, (0, 0))
        self._durations[name] = count + 1, total + duration
        return duration >= _SLOW_FROM and duration * count > total * _SLOW if count else duration >= _SLOW_FROM
