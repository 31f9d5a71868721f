"""A bounded queue between the spans that end and the exporter: it slows runs down before it loses a span.

The SDK's batch processor drops the oldest spans without telling how many, forgets a batch that the back end did not
take, and knows of no timeout. Here a batch stays until it is taken or refused; while the queue is crowded, runs wait
for room as long as the back end takes anything, and plain threads do when it is full. An event loop never waits.
What is lost all the same is counted exactly: for the run it belongs to, in a metric and in one log line.
"""

import asyncio
import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from opentelemetry import context as context_api
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import TraceFlags

from spanflow.tracing import metrics
from spanflow.tracing.backpressure import Owner, ending
from spanflow.tracing.delivery import Delivery
from spanflow.tracing.marks import EXPORTS, Mark, may_block

_logger = logging.getLogger("spanflow")

PATIENCE = 5.0  # s
_RECENT = 1.0  # s: at the end of a process, a back end that has failed for longer gets no further try
_RETRIES = (1.0, 2.0, 5.0)  # s before a batch is tried again; always the first while somebody waits
_UNANSWERED = 2  # tries of a batch that gets no answer in time: the back end may have taken it each time
_CROWDED = 8  # runs wait where this part of the queue is taken; the others are for what is under way, or cannot wait
_RESERVED = 1024  # places beyond the queue for spans that others hang from
_FRAMES = ("invoke_workflow ", "foreach ", "run.started")

Reason = Literal["queue_full", "refused", "unanswered", "shutdown"]
_REASONS: dict[Reason, str] = {
    "queue_full": "found the queue full (OTEL_BSP_MAX_QUEUE_SIZE)",
    "refused": "were refused",
    "unanswered": "got no answer",
    "shutdown": "were left when tracing was shut down",
}


class ExportQueue(SpanProcessor):
    """Queues spans that end, and exports them in batches on a thread of its own; again after a fork.

    Args:
        delivery: takes batches to where they belong, and says what became of them.
        size: spans that are held at most.
        batch_size: spans in a batch at most.
        delay: s after which a batch that is not full goes out.
        patience: s without a batch taken, after which nobody waits for the back end any more.
    """

    never_blocks = True  # an event loop, that is

    def __init__(
        self, delivery: Delivery, size: int, batch_size: int, delay: float, *, patience: float = PATIENCE
    ) -> None:
        self._delivery = delivery
        self._patience = patience
        self.size = size
        self._batch_size = batch_size
        self._delay = delay
        self._high = max(size // _CROWDED, min(batch_size, size // 2))
        self._nearly, self._low = size * 7 // 8, self._high // 2
        self._closing = self._closed = self._warned = False
        self._reset()
        self._on_start: list[Callable[[], None]] = []
        if hasattr(os, "register_at_fork"):
            reset = weakref.WeakMethod(self._reset)
            os.register_at_fork(after_in_child=lambda: None if (found := reset()) is None else found())

    def _reset(self) -> None:
        """Begin anew: also in a forked process, where what is queued is the parent's to export."""
        self.crowded = self.full = self.losing = False
        self.sent = 0
        self.lost: Counter[Reason] = Counter()
        self._unreported: Counter[Reason] = Counter()
        self._queue: deque[ReadableSpan | Mark] = deque()
        self._in_hand: list[Sequence[ReadableSpan]] = []
        self._changed = threading.Condition()
        self._awake, self._hurry = threading.Event(), threading.Event()
        self._waiters: list[Mark] = []
        self._marks = 0
        self._stalled = False
        self._moved_at = self._failing_since = 0.0
        self._worker: threading.Thread | None = None
        self._calm = -1  # the length up to which a span is just queued; none before the worker runs

    # ---------------------------------------------------------------- spans come in

    def on_end(self, span: ReadableSpan) -> None:
        context = span.context
        if context is None or not context.trace_flags & TraceFlags.SAMPLED:
            return
        held = vars(span)
        held["spanflow_owner"] = ending.owner
        for name in ("_events", "_links"):  # an empty one takes 0.8 kB while the span waits
            if type(kept := held.get(name)) is BoundedList and not kept.dropped and not kept:
                held[name] = ()
        length = len(self._queue)
        if length >= self._calm and not self._admits(span, length):
            return
        self._queue.append(span)
        if length >= self._batch_size - 1 and not self._awake.is_set():
            self._awake.set()

    def _admits(self, span: ReadableSpan, length: int) -> bool:
        if self._worker is None and not self._closed:
            self._start()
        if self._closed:
            self._lose((span,), "shutdown")
            if not self._warned:
                self._warned = True
                _logger.warning("A span ended after tracing was shut down. Such spans are dropped.")
            return False
        if length < self._high:
            return True
        if not self._stalled:
            self.crowded = True
            self.full = self.full or length >= self._nearly
        if length < self.size:
            return True
        if not self._stalled and may_block():
            self._wait_on_thread()
        places = self.size + _RESERVED if span.name.startswith(_FRAMES) else self.size
        if len(self._queue) < places:
            return True
        self._lose((span,), "queue_full")
        return False

    def _wait_on_thread(self) -> None:
        with self._changed:
            self._ask_for_room()
            while len(self._queue) >= self.size and not self._closed:
                if not self._changed.wait(self._patience_left()) and self._patience_left() <= 0:
                    self._stall()
                    return

    def _start(self) -> None:
        with self._changed:
            if self._worker is not None or self._closed:
                return
            self._worker = threading.Thread(target=self._work, name=EXPORTS, daemon=True)
            self._worker.start()
            self._calm = self._high
            self._moved_at = time.monotonic()
        for call in self._on_start:
            call()

    def on_start_in_process(self, call: Callable[[], None]) -> None:
        """Call back when the first span is queued in this process, and again in each process forked from it."""
        self._on_start.append(call)

    # ---------------------------------------------------------------- runs wait

    async def room(self) -> None:
        """Return when there is room again, or when the back end has taken nothing for five seconds."""
        while self.crowded and not self._stalled:
            waiter = Mark(asyncio.get_running_loop())
            with self._changed:
                self._ask_for_room()
                self._waiters.append(waiter)
            if not await waiter.reached_within(self._patience_left()) and self._patience_left() <= 0:
                self._stall()

    async def drained(self) -> None:
        """Return when it is known what became of all spans queued so far, after five seconds at the latest."""
        mark = Mark(asyncio.get_running_loop())
        if self._put(mark):
            await mark.reached_within(self._patience)

    def _ask_for_room(self) -> None:
        if self._patience_left() <= 0:
            self._moved_at = time.monotonic()  # nobody has waited meanwhile: patience begins now
        self._awake.set()
        self._hurry.set()

    def _patience_left(self) -> float:
        return self._moved_at + self._patience - time.monotonic()

    def _stall(self) -> None:
        """Stop waiting, until the back end takes something again."""
        with self._changed:
            self._stalled = True
            self._let_go()

    def _let_go(self) -> None:
        self.crowded = self.full = False
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.set()
        self._changed.notify_all()

    # ---------------------------------------------------------------- batches go out

    def _work(self) -> None:
        key: str = getattr(context_api, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
        context_api.attach(context_api.set_value(key, True))  # no spans of exporting spans
        queue = self._queue
        while not self._closed:
            due = not self._awake.wait(self._delay)
            self._awake.clear()
            while queue and (due or self._is_waited_for() or self._closing or len(queue) >= self._batch_size):
                due = False
                mark = self._take_batch()
                metrics.guarded(self._export)
                if mark is not None:
                    with self._changed:
                        self._marks -= 1
                    mark.set()

    def _take_batch(self) -> "Mark | None":
        """Take a batch in hand, up to the next mark, which is returned."""
        batch: list[ReadableSpan] = []
        mark: Mark | None = None
        with self._changed:
            while self._queue and len(batch) < self._batch_size and mark is None:
                item = self._queue.popleft()
                if isinstance(item, Mark):
                    mark = item
                else:
                    batch.append(item)
            self._in_hand = [batch] if batch else []
        return mark

    def _export(self) -> None:
        """Deliver what is in hand; return when the last of it was taken, or is lost."""
        tries = unanswered = 0
        while self._in_hand:
            batch = self._in_hand[-1]
            verdict = self._delivery.deliver(batch)
            if verdict.kind == "sent":
                self._moved(len(batch))
            elif verdict.kind == "too_large" and len(batch) > 1:
                half = len(batch) // 2
                with self._changed:
                    if self._in_hand:
                        self._in_hand[-1:] = [batch[half:], batch[:half]]
            elif verdict.kind in ("refused", "too_large"):
                self._refused("refused")
            elif verdict.kind == "unanswered" and (unanswered := unanswered + 1) >= _UNANSWERED:
                self._refused("unanswered")
            elif self._gives_up():
                self._abandon()
            else:
                pause = max(verdict.pause, _RETRIES[0] if self._is_waited_for() else _RETRIES[min(tries, 2)])
                tries += 1
                self._hurry.wait(min(pause, 0.2) if self._closing else pause)
                self._hurry.clear()

    def _is_waited_for(self) -> bool:
        return bool(self._waiters or self._marks or self.crowded)

    def _gives_up(self) -> bool:
        """Tell whether a batch that could not be delivered is not tried again: only when the process ends."""
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        return self._closing and now - self._failing_since >= _RECENT

    def _moved(self, number: int) -> None:
        with self._changed:
            if not self._in_hand:  # given up meanwhile, and counted
                return
            self._in_hand.pop()
            self.sent += number
            self._moved_at = time.monotonic()
            self._stalled = self.losing = False
            self._failing_since = 0.0
            if len(self._queue) <= self._low and not self._in_hand:
                self._let_go()
                self._report()
            else:
                self._changed.notify_all()

    def _refused(self, reason: Reason) -> None:
        """Lose a batch that is in hand. Waiting would not help: more of them would be lost just as well."""
        with self._changed:
            if not self._in_hand:
                return
            batch = self._in_hand.pop()
            self.losing = True
            self._lose(batch, reason)
            self._stalled = True
            self._let_go()

    # ---------------------------------------------------------------- what is lost

    def _lose(self, spans: Iterable[ReadableSpan], reason: Reason) -> None:
        owners: Counter[Owner] = Counter()
        number = 0
        for span in spans:
            number += 1
            owner: Owner | None = getattr(span, "spanflow_owner", None)
            scope = span.instrumentation_scope
            if owner is not None and scope is not None and scope.name == "spanflow":
                owners[owner] += 1
        with self._changed:
            self.lost[reason] += number
            self._unreported[reason] += number
            for owner, own in owners.items():
                owner.lose(own)
        metrics.count_dropped(number, reason)

    def _abandon(self) -> None:
        """Lose all that is left: nobody will take it before the process ends."""
        with self._changed:
            left = [span for batch in self._in_hand for span in batch]
            self._in_hand = []
            marks = [item for item in self._queue if isinstance(item, Mark)]
            left += [item for item in self._queue if not isinstance(item, Mark)]
            self._queue.clear()
            self._lose(left, "shutdown")
            self._marks = 0
            self._let_go()
        for mark in marks:
            mark.set()

    def _report(self) -> None:
        """Say how many spans were lost since this was last said: in one line, when it is over."""
        with self._changed:
            lost, self._unreported = self._unreported, Counter()
        total = lost.total()
        if total:
            parts = ", ".join(f"{number:,} {_REASONS[reason]}" for reason, number in lost.items())
            ended = self.sent + self.lost.total()
            _logger.warning("%s of %s spans were dropped: %s.", f"{total:,}", f"{ended:,}", parts)

    # ---------------------------------------------------------------- flush and end

    def force_flush(self, timeout_millis: int | None = 30_000) -> bool:
        """Export all that is queued; return whether it was taken, all of it and in time."""
        lost = self.lost.total()
        mark = Mark()
        if not self._put(mark):
            return not self._queue
        reached = mark.wait(None if timeout_millis is None else timeout_millis / 1000)
        return reached and self.lost.total() == lost

    def shutdown(self) -> None:
        """Export what is left, as `close` does."""
        self.close()

    def close(self, timeout: float = 30.0) -> bool:
        """Export what is left, and lose what the back end does not take: at the latest after ``timeout`` seconds.

        Waits as long as batches are taken, and no longer than five seconds for one. What ends later is lost. Return
        whether all that was left was taken.
        """
        with self._changed:
            if self._closing:
                return True
            self._closing = True
            lost = self.lost.total()
        self._awake.set()
        self._hurry.set()
        until = time.monotonic() + timeout
        with self._changed:
            self._moved_at = time.monotonic()
            while self._queue or self._in_hand:
                left = min(until - time.monotonic(), self._patience_left())
                if self._worker is None or left <= 0:
                    if self._in_hand:
                        self._delivery.complain_of_silence()
                    self._abandon()
                else:
                    self._changed.wait(left)
            self._closed, self._calm = True, -1
            self._let_go()
        self._awake.set()
        self._report()
        self._delivery.close()
        return self.lost.total() == lost

    def _put(self, mark: "Mark") -> bool:
        """Queue a mark that is reached when all before it is delivered or lost. Return False where nothing is."""
        with self._changed:
            if self._worker is None or self._closed or not (self._queue or self._in_hand):
                return False
            self._marks += 1
            self._queue.append(mark)
        self._awake.set()
        self._hurry.set()
        return True
