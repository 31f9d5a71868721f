"""How hypothesis draws plans and scenarios, and how many of them."""

import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.properties.plans import (
    Action,
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
)

NIGHTLY = int(os.environ.get("SPANFLOW_PROPERTY_EXAMPLES", "0"))
"""How many examples a test tries, where CI's number is too small. Then each session tries others."""

CI_EXAMPLES = 100
DEPTH = 3  # of nested workflows

examples = settings(
    max_examples=NIGHTLY or CI_EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
"""The settings of each property."""

more_examples = settings(examples, max_examples=NIGHTLY or 3 * CI_EXAMPLES)
"""For the property that holds the most."""

_seconds = st.sampled_from([0, 1, 3, 10])
_timeouts = st.sampled_from([None, None, 0.5, 2.5, 7.5])
_seldom = st.sampled_from([0, 0, 0, 0, 2, 3, 5, 1])  # divisors
_on_error: Any = st.sampled_from(["collect", "fail"])
_kinds: Any = st.sampled_from(["async", "plain", "streaming"])

_calls: st.SearchStrategy[Action] = st.builds(
    Call,
    _kinds,
    seconds=_seconds,
    divisor=_seldom,
    survives=st.booleans(),
    iterates=st.booleans(),
    leaves=st.booleans(),
)
_actions: st.SearchStrategy[Action] = st.one_of(
    st.builds(Take, _seconds),
    st.builds(Emit),
    st.builds(Keep),
    st.builds(Mark),
    _calls,
    _calls,
    st.builds(Ask),
    st.builds(Ask),
    st.builds(Fail, st.sampled_from([0, 1, 2, 3]), st.sampled_from([1, 1, 2, 99])),
    st.builds(Leave, st.sampled_from(["bail", "abort", "wrong output"]), _seldom),
)
_tries = st.sampled_from([None, Tries(3, 1, 2), Tries(2, 5, 3), Tries(3, 0), None])
_tasks = st.builds(
    Task,
    st.lists(_actions, min_size=1, max_size=4).map(tuple),
    in_thread=st.sampled_from([False, False, False, True]),
    tries=_tries,
    timeout=_timeouts,
)
_conditions = st.builds(
    Condition,
    st.integers(1, 3),
    holds=st.booleans(),
    breaks=st.sampled_from([0, 0, 0, 5]),
    calls=st.booleans(),
    seconds=_seconds,
)
_waits = st.one_of(
    st.builds(Await, st.sampled_from(["early", "late"]), after=st.sampled_from([1, 4]), timeout=_timeouts),
    st.builds(Await, st.sampled_from(["late", "late", "never"]), after=st.sampled_from([1, 4]), timeout=st.just(7.5)),
)


@st.composite
def bodies(draw: st.DrawFn, depth: int) -> Body:
    """Draw what may stand anywhere; ``depth`` workflows may stand in one another."""
    kind = draw(st.sampled_from(["task", "task", "task", "tool"] + ["nested"] * bool(depth)))
    if kind == "nested":
        return draw(workflows(depth - 1))
    return draw(_tasks if kind == "task" else st.builds(ToolTask, _kinds, _seldom))


@st.composite
def parts(draw: st.DrawFn, depth: int) -> Part:
    body = bodies(depth)
    some = st.lists(body, min_size=2, max_size=3).map(tuple)
    arms = st.lists(st.tuples(_conditions, body), min_size=1, max_size=3).map(tuple)
    kinds: dict[str, st.SearchStrategy[Part]] = {
        "then": st.builds(Then, body),
        "parallel": st.builds(Parallel, some, _on_error),
        "branch": st.builds(Branch, arms, st.none() | body, st.sampled_from(["first", "all"])),
        "foreach": st.builds(Foreach, body, st.sampled_from([2, 3, 4, 1, 0]), st.integers(1, 3), _on_error),
        "loop": st.builds(Loop, body, _conditions, st.booleans(), st.sampled_from([2, 3, 1])),
        "reshape": st.builds(Reshape, _seldom),
        "pause": st.builds(Pause, st.sampled_from([2, 0, 10_000_000]), st.booleans()),
        "await": _waits,
    }
    return draw(kinds[draw(st.sampled_from(["then", "parallel", "foreach", *kinds]))])


@st.composite
def workflows(draw: st.DrawFn, depth: int) -> Nested:
    least, most = (2, 5) if depth == DEPTH else (1, 3)
    return Nested(tuple(draw(st.lists(parts(depth), min_size=least, max_size=most))), draw(_tries))


plans = workflows(DEPTH)

_joins = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=3).map(tuple)

scenarios = st.builds(
    Scenario,
    plans,
    value=st.integers(0, 12),
    answering=st.sampled_from(["first", "last", "all"]),
    canceled_after=st.sampled_from([None, None, None, 0, 1, 4]),
    through_json=st.booleans(),
    joins=_joins,
)
