"""What a run of a plan must come to, and when: the contract's semantics, written a second time.

Nothing runs here. Bodies that run side by side are evaluated one after the other, each to its end; the earliest
outcome that stops the others then cuts what they would have done later. Times are seconds since the stretch began.
Where two things happen in the same moment either may be first: then several outcomes are allowed, and facts of that
moment are not certain.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from tests.properties.plans import (
    ANSWER,
    LOST,
    STEP_ADDS,
    SURVIVED_ADDS,
    TOOL_ADDS,
    Ask,
    Await,
    Body,
    Branch,
    Call,
    Condition,
    Emit,
    Fail,
    Foreach,
    Keep,
    Leave,
    Loop,
    Mark,
    Nested,
    OnError,
    Parallel,
    Part,
    Pause,
    Reshape,
    Scenario,
    Take,
    Task,
    Then,
    ToolTask,
    Tries,
    strikes,
)


class Unpredictable(Exception):
    """Two things of different meaning happen in one moment, and what follows depends on which is first."""


class Moment(NamedTuple):
    """A stretch, from 1, and seconds since it began."""

    stretch: int
    seconds: float

    def later(self, seconds: float) -> "Moment":
        return Moment(self.stretch, self.seconds + seconds)


OPEN = Moment(2**31, math.inf)

Kind = Literal["attempt", "frame", "delay", "wait", "suspension", "tool", "state"]


@dataclass(frozen=True)
class Fact:
    """Something that takes its time at a path.

    Attributes:
        hows: the ways in which it may have ended; none where that does not matter.
        certain: whether it has happened at all.
        value: what a field of the state was set to.
        event: what a wait was for.
    """

    kind: Kind
    path: str
    start: Moment
    end: Moment
    hows: frozenset[str]
    certain: bool = True
    value: int = 0
    event: str = ""

    def cut(self, at: Moment) -> "Fact | None":
        """Return what is left of this when everything is stopped at a moment."""
        if self.start > at:
            return None
        certain = self.certain and self.start < at
        if self.kind == "state":
            return replace(self, certain=certain)
        hows = self.hows
        if self.end > at:
            hows = frozenset({"canceled"})
        elif self.end == at and hows:
            hows |= {"canceled"}
        return replace(self, end=min(self.end, at), hows=hows, certain=certain)


@dataclass(frozen=True)
class Gave:
    value: int | tuple[int, ...]


@dataclass(frozen=True)
class Failed:
    """The last part of the exception's type, and the path of the step that failed, where a step did."""

    type: str
    path: str | None = None


@dataclass(frozen=True)
class Bailed:
    value: int


@dataclass(frozen=True)
class Aborted:
    """Canceled: by the step at a path, or from outside."""

    path: str | None = None


@dataclass(frozen=True)
class Suspended:
    pass


Outcome = Gave | Failed | Bailed | Aborted | Suspended

_SUSPENDED = frozenset({Suspended()})
_HOW: dict[type[Outcome], str] = {
    Gave: "success",
    Failed: "failed",
    Bailed: "bailed",
    Aborted: "canceled",
    Suspended: "suspended",
}
_STATUS = _HOW | {Bailed: "success"}


@dataclass(frozen=True)
class Came:
    """What something came to, when, and what happened meanwhile.

    Several outcomes mean any of them; then none of them is one that something goes on with.
    """

    at: Moment
    outcomes: frozenset[Outcome]
    facts: tuple[Fact, ...] = ()

    @property
    def given(self) -> Gave | None:
        only = next(iter(self.outcomes))
        return only if isinstance(only, Gave) else None

    @property
    def suspended(self) -> bool:
        return self.outcomes == _SUSPENDED

    @property
    def hows(self) -> frozenset[str]:
        return frozenset(_HOW[type(each)] for each in self.outcomes)

    def stops(self, on_error: OnError) -> bool:
        """Tell whether this stops what runs beside it."""
        kinds = (Bailed, Aborted, Failed) if on_error == "fail" else (Bailed, Aborted)
        stopping = {isinstance(each, kinds) for each in self.outcomes}
        if len(stopping) > 1:
            raise Unpredictable
        return stopping.pop()

    def after(self, facts: Iterable[Fact]) -> "Came":
        return replace(self, facts=(*facts, *self.facts))

    def cut(self, at: Moment) -> tuple[Fact, ...]:
        return tuple(left for fact in self.facts if (left := fact.cut(at)) is not None)


def came(at: Moment, outcome: Outcome, *facts: Fact) -> Came:
    return Came(at, frozenset({outcome}), facts)


@dataclass
class Expected:
    """What a whole run must come to.

    Attributes:
        outcomes: any of these.
        facts: of all stretches.
        finishes: the status that each stretch may end with.
        suspended: the paths that wait at the end of each stretch but the last.
    """

    outcomes: frozenset[Outcome] = frozenset()
    facts: list[Fact] = field(default_factory=list[Fact])
    finishes: list[frozenset[str]] = field(default_factory=list[frozenset[str]])
    suspended: list[list[str]] = field(default_factory=list[list[str]])


def predict(scenario: Scenario) -> Expected:
    """Return what a run of this scenario must come to. Raises Unpredictable where nobody can tell."""
    return Reference(scenario).predict()


class Reference:
    """Walks a plan, stretch by stretch, and remembers between them what a journal would."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._expected = Expected()
        self._stretch = 0
        self._over: dict[str, frozenset[Outcome]] = {}  # what steps and frames came to
        self._decided: set[str] = set()
        self._executions: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._answers: Counter[str] = Counter()
        self._opened: dict[str, Moment] = {}  # frames in which something waits for an answer
        self._waiting: dict[str, Moment] = {}  # questions, and when they were asked
        self._answered: dict[str, Moment] = {}  # the question that this stretch answers

    def predict(self) -> Expected:
        found = self._walk()
        at = self._scenario.canceled_after
        if at is not None:
            self._cancel(found, Moment(1, at))
            return self._expected
        self._note(found)
        while found.suspended:
            waiting = sorted(self._waiting)
            chosen = {"first": waiting[:1], "last": waiting[-1:], "all": waiting}[self._scenario.answering]
            for path in chosen:
                if found.suspended and path in self._waiting:
                    found = self._answer(path)
                    self._note(found)
        return self._expected

    def _answer(self, path: str) -> Came:
        self._answers[path] += 1
        self._answered = {path: self._waiting.pop(path)}
        return self._walk()

    def _walk(self) -> Came:
        self._stretch += 1
        return self._parts(self._scenario.plan, "", self._scenario.value, Moment(self._stretch, 0))

    def _cancel(self, found: Came, at: Moment) -> None:
        """Cancel the run in its first stretch, or when that has suspended before."""
        if found.at == at:
            raise Unpredictable
        if found.at > at:
            self._note(Came(at, frozenset({Aborted()}), found.cut(at)))
            return
        self._note(found)
        if found.suspended:
            self._note(came(Moment(2, 0), Aborted()))

    def _note(self, found: Came) -> None:
        """Take over what happened in a stretch, and what it leaves open."""
        expected = self._expected
        if self._stretch > 200:
            raise Unpredictable
        _refuse_mixed_up_events(found.facts)
        for fact in found.facts:
            if fact.kind == "frame" and fact.end == OPEN:
                self._opened[fact.path] = fact.start
            else:
                expected.facts.append(fact)
                if fact.kind == "frame":
                    self._opened.pop(fact.path, None)
            if fact.kind == "attempt" and "suspended" in fact.hows:
                self._waiting[fact.path] = fact.end
        self._close(found)
        expected.finishes.append(frozenset(_STATUS[type(each)] for each in found.outcomes))
        expected.outcomes = found.outcomes
        if found.suspended:
            expected.suspended.append(sorted(self._waiting))

    def _close(self, found: Came) -> None:
        """Cancel what waits, or holds what waits, in a frame or a run that is over."""
        frames = [fact for fact in found.facts if fact.kind == "frame" and fact.end < OPEN]
        kinds: list[tuple[Kind, dict[str, Moment]]] = [("frame", self._opened), ("suspension", self._waiting)]
        for kind, left in kinds:
            for path, start in list(left.items()):
                ends = [fact.end for fact in frames if path.startswith((f"{fact.path}/", f"{fact.path}["))]
                if not found.suspended:
                    ends.append(found.at)
                if ends:
                    del left[path]
                    certain = start < min(ends)
                    closed = Fact(kind, path, start, min(ends), frozenset({"canceled"}), certain)
                    self._expected.facts.append(closed)

    # ------------------------------------------------------------ workflows and what they are made of

    def _parts(self, plan: Nested, prefix: str, value: int, at: Moment) -> Came:
        facts: tuple[Fact, ...] = ()
        for index, part in enumerate(plan.parts):
            found = self._part(part, str(index), prefix, value, at, plan.tries).after(facts)
            if found.given is None:
                return found
            assert isinstance(found.given.value, int)
            value, at, facts = found.given.value, found.at, found.facts
        return came(at, Gave(value), *facts)

    def _part(self, part: Part, n: str, prefix: str, value: int, at: Moment, tries: Tries | None) -> Came:
        match part:
            case Then(body):
                return self._body(body, f"{prefix}s{n}", value, at, tries)
            case Parallel(arms, on_error):
                found = [
                    self._body(arm, f"{prefix}s{n}{letter}", value, at, tries)
                    for letter, arm in zip("abc", arms, strict=False)
                ]
                return self._summed(_joined(found, on_error), f"{prefix}sum{n}", tries)
            case Branch():
                return self._branch(part, n, prefix, value, at, tries)
            case Foreach():
                return self._foreach(part, n, prefix, value, at, tries)
            case Loop():
                return self._loop(part, n, prefix, value, at, tries)
            case Reshape(divisor):
                return self._map(f"{prefix}map{n}", value + STEP_ADDS, at, tries, fails=strikes(divisor, value))
            case Pause(seconds):
                return self._wait(f"{prefix}sleep{n}", "", at, seconds, Gave(value))
            case Await():
                return self._await(part, f"{prefix}event{n}", at)

    def _body(self, body: Body, path: str, value: int, at: Moment, tries: Tries | None) -> Came:
        match body:
            case Task():
                task = body if body.tries is not None else replace(body, tries=tries)
                return self._step(path, at, task.tries, lambda start: self._attempt(task, path, value, start))
            case ToolTask(divisor=divisor):
                fails = strikes(divisor, value)
                return self._step(path, at, tries, lambda start: _tool_attempt(path, value, start, fails))
            case Nested():
                return self._framed(path, at, lambda: self._parts(body, f"{path}/", value, at))

    def _summed(self, found: Came, path: str, tries: Tries | None) -> Came:
        """Go on with the sum of what was given."""
        if found.given is None:
            return found
        assert isinstance(found.given.value, tuple)
        return self._map(path, sum(found.given.value), found.at, tries).after(found.facts)

    def _framed(self, path: str, at: Moment, inside: Callable[[], Came]) -> Came:
        """Evaluate what stands inside a nested run or a foreach, unless it is over since an earlier stretch."""
        if path in self._over:
            return Came(at, self._over[path])
        found, start = inside(), self._opened.get(path, at)
        if found.suspended:
            return found.after([Fact("frame", path, start, OPEN, frozenset())])
        self._over[path] = found.outcomes
        return found.after([Fact("frame", path, start, found.at, found.hows)])

    def _foreach(self, part: Foreach, n: str, prefix: str, value: int, at: Moment, tries: Tries | None) -> Came:
        path = f"{prefix}s{n}"
        listed = self._map(f"{prefix}list{n}", value, at, tries)
        found = self._framed(path, listed.at, lambda: self._items(part, path, value, listed.at, tries))
        return self._summed(found.after(listed.facts), f"{prefix}sum{n}", tries)

    def _items(self, part: Foreach, path: str, value: int, at: Moment, tries: Tries | None) -> Came:
        """Hand the items, in their order, to whichever worker is free first."""
        free = [at] * min(part.concurrency, part.items)
        found: list[Came] = []
        for index in range(part.items):
            start = min(free)
            stopped = [each.at for each in found if each.stops(part.on_error)]
            if start > min(stopped, default=OPEN) or start == OPEN:
                break
            item = self._body(part.body, f"{path}[{index}]", value + index, start, tries)
            found.append(item)
            free[free.index(start)] = OPEN if item.stops(part.on_error) else item.at
        joined = _joined(found, part.on_error, lost=part.on_error == "collect")
        return replace(joined, at=max(joined.at, at)) if found else came(at, Gave(()))

    def _branch(self, part: Branch, n: str, prefix: str, value: int, at: Moment, tries: Tries | None) -> Came:
        chosen: list[tuple[str, Body]] = []
        for index, (letter, (condition, body)) in enumerate(zip("abc", part.arms, strict=False)):
            at, verdict = self._decide(condition, f"{prefix}branch{n}?{index}", value, at)
            if isinstance(verdict, Failed):
                return came(at, verdict)
            if verdict:
                chosen.append((f"{prefix}s{n}{letter}", body))
                if part.mode == "first":
                    break
        if not chosen and part.default is not None:
            chosen.append((f"{prefix}s{n}d", part.default))
        if not chosen:
            return came(at, Failed("NoBranchMatched", f"{prefix}branch{n}"))
        found = [self._body(body, path, value, at, tries) for path, body in chosen]
        if part.mode == "first":
            return found[0]
        return self._summed(_joined(found, "fail"), f"{prefix}sum{n}", tries)

    def _loop(self, part: Loop, n: str, prefix: str, value: int, at: Moment, tries: Tries | None) -> Came:
        facts: tuple[Fact, ...] = ()
        for iteration in range(1, part.cap + 1):
            path = f"{prefix}s{n}#{iteration}"
            found = self._body(part.body, path, value, at, tries).after(facts)
            if found.given is None:
                return found
            assert isinstance(found.given.value, int)
            value, facts = found.given.value, found.facts
            at, verdict = self._decide(part.condition, f"{path}?", value, found.at)
            if isinstance(verdict, Failed):
                return came(at, verdict, *facts)
            if verdict == part.until:
                return came(at, Gave(value), *facts)
        return came(at, Failed("LoopLimit", f"{prefix}s{n}"), *facts)

    def _decide(self, condition: Condition, key: str, value: int, at: Moment) -> tuple[Moment, bool | Failed]:
        """Ask a condition, once in a run."""
        if key not in self._decided:
            self._decided.add(key)
            at = at.later(condition.seconds)
            if strikes(condition.breaks, value):
                return at, Failed("Boom")
        return at, condition.verdict(value)

    def _map(self, path: str, given: int, at: Moment, tries: Tries | None, *, fails: bool = False) -> Came:
        outcome = Failed("Boom", path) if fails else Gave(given)
        return self._step(path, at, tries, lambda start: came(start, outcome))

    # ------------------------------------------------------------ steps

    def _step(self, path: str, at: Moment, tries: Tries | None, attempt: Callable[[Moment], Came]) -> Came:
        """Try until the step succeeds, leaves, or may not be tried again."""
        if path in self._over:
            return Came(at, self._over[path])
        if path in self._waiting:
            return came(at, Suspended())
        facts: tuple[Fact, ...] = ()
        if path in self._answered:
            facts = (Fact("suspension", path, self._answered.pop(path), at, frozenset({"answered"})),)
        while True:
            self._executions[path] += 1
            found = attempt(at)
            facts += (Fact("attempt", path, at, found.at, found.hows), *found.facts)
            at, delay = found.at, None
            if isinstance(next(iter(found.outcomes)), Failed):
                self._failures[path] += 1
                delay = _delay(tries, self._failures[path])
            if delay is None:
                if not found.suspended:
                    self._over[path] = found.outcomes
                return replace(found, facts=facts)
            if delay:
                facts += (Fact("delay", path, at, at.later(delay), frozenset({"waited"})),)
                at = at.later(delay)

    def _attempt(self, task: Task, path: str, value: int, start: Moment) -> Came:
        found = self._run_actions(task, path, value, start)
        if task.timeout is None or found.at <= start.later(task.timeout):
            return found
        late = start.later(task.timeout)
        return came(late, Failed("StepTimeout", path), *found.cut(late))

    def _run_actions(self, task: Task, path: str, value: int, start: Moment) -> Came:
        facts: list[Fact] = []
        at, questions = start, 0
        for action in task.done:
            outcome: Outcome | None = None
            match action:
                case Take(seconds):
                    at = at.later(seconds)
                case Keep():
                    facts.append(Fact("state", path, at, at, frozenset(), value=value))
                case Call():
                    call, gave = _called(action, path, value, at)
                    facts.append(call)
                    at = call.end
                    if gave is None:
                        outcome = Failed("Boom", path)
                    else:
                        value = gave
                case Ask():
                    questions += 1
                    value += ANSWER
                    if questions > self._answers[path]:
                        outcome = Suspended()
                case Fail(divisor, executions):
                    if strikes(divisor, value) and self._executions[path] <= executions:
                        outcome = Failed("Boom", path)
                case Leave(how, divisor):
                    if strikes(divisor, value):
                        wrong = Failed("InvalidOutput", path)
                        outcome = {"bail": Bailed(value), "abort": Aborted(path), "wrong output": wrong}[how]
                case Emit() | Mark():
                    pass
            if outcome is not None:
                return came(at, outcome, *facts)
        return came(at, Gave(value + STEP_ADDS), *facts)

    # ------------------------------------------------------------ waits

    def _wait(self, path: str, event: str, at: Moment, seconds: float, outcome: Outcome) -> Came:
        if path in self._over:
            return Came(at, self._over[path])
        self._over[path] = frozenset({outcome})
        found = came(at.later(seconds), outcome)
        return found.after([Fact("wait", path, at, found.at, found.hows, event=event)])

    def _await(self, part: Await, path: str, at: Moment) -> Came:
        comes = {"early": 0.0, "late": float(part.after), "never": math.inf}[part.comes]
        if part.timeout is not None and comes > part.timeout:
            return self._wait(path, part.event, at, part.timeout, Failed("EventTimeout", path))
        return self._wait(path, part.event, at, comes, Gave(ANSWER))


def _tool_attempt(path: str, value: int, start: Moment, fails: bool) -> Came:
    hows = frozenset({"failed" if fails else "success"})
    outcome = Failed("Boom", path) if fails else Gave(value + TOOL_ADDS)
    return came(start, outcome, Fact("tool", path, start, start, hows))


def _called(call: Call, path: str, value: int, at: Moment) -> tuple[Fact, int | None]:
    """Return the fact of a tool call, and the value that the step goes on with, None where the call fails it."""
    streams = call.kind == "streaming"
    if streams and call.iterates and call.leaves:  # its end is left to whoever closes what was left
        return Fact("tool", path, at, at, frozenset()), value + TOOL_ADDS
    fails = strikes(call.divisor, value)
    end = at if call.kind == "plain" else at.later(call.seconds)
    fact = Fact("tool", path, at, end, frozenset({"failed" if fails else "success"}))
    if not fails:
        return fact, value + TOOL_ADDS
    return fact, value + SURVIVED_ADDS if call.survives else None


def _delay(tries: Tries | None, failures: int) -> int | None:
    """Return the seconds before the next attempt, None where there is none."""
    return tries.delay_after(failures) if tries is not None and failures < tries.attempts else None


def _joined(found: Sequence[Came], on_error: OnError, *, lost: bool = False) -> Came:
    """Return what bodies that ran side by side came to; with ``lost``, failures count for something."""
    stopping = [each for each in found if each.stops(on_error)]
    if stopping:
        at = min(each.at for each in stopping)
        first = [each for each in stopping if each.at == at]
        facts = [fact for each in found for fact in (each.facts if first == [each] else each.cut(at))]
        return Came(at, frozenset(outcome for each in first for outcome in each.outcomes), tuple(facts))
    at = max((each.at for each in found), default=Moment(0, 0))
    facts = [fact for each in found for fact in each.facts]
    if any(each.suspended for each in found):
        return came(at, Suspended(), *facts)
    if not lost and any(each.given is None for each in found):
        return came(at, Failed("ExceptionGroup"), *facts)
    values = [each.given.value if each.given is not None else LOST for each in found]
    return came(at, Gave(tuple(value for value in values if isinstance(value, int))), *facts)


def _refuse_mixed_up_events(facts: Sequence[Fact]) -> None:
    """Raise Unpredictable where two waits for events of one name may take each other's."""
    waits = [fact for fact in facts if fact.event.startswith("late")]
    for number, one in enumerate(waits):
        for other in waits[number + 1 :]:
            if one.event != other.event:
                continue
            overlap = one.start != other.start and max(one.start, other.start) <= min(one.end, other.end)
            if overlap or len(one.hows) > 1 or len(other.hows) > 1:
                raise Unpredictable
