"""Plans that come to the same whenever what happens in them: a kill that delays a part changes nothing else."""

from dataclasses import replace

from tests.properties.plans import (
    Await,
    Body,
    Branch,
    Call,
    Fail,
    Foreach,
    Leave,
    Loop,
    Nested,
    Parallel,
    Part,
    Pause,
    Reshape,
    Task,
    Then,
    ToolTask,
)


def is_steady(plan: Nested) -> bool:
    """Tell whether nothing in a plan races: neither with a timeout, nor with what may stop it from beside."""
    return steadied(plan) == plan


def steadied(plan: Nested, *, beside: bool = False) -> Nested:
    """Return a plan without its races. ``beside`` says that it runs beside others, which it may not stop."""
    return replace(plan, parts=tuple(_part(part, beside) for part in plan.parts))


def _part(part: Part, beside: bool) -> Part:
    match part:
        case Then(body):
            return Then(_body(body, beside))
        case Parallel(arms, on_error):
            arms = tuple(_body(arm, True) for arm in arms)
            return Parallel(arms, "collect" if any(map(_may_fail, arms)) else on_error)
        case Branch(arms, default, mode):
            concurrent = mode == "all" and len(arms) > 1
            arms = tuple((condition, _body(body, beside or concurrent)) for condition, body in arms)
            if concurrent and any(_may_fail(body) for _, body in arms):
                mode = "first"
            return replace(part, arms=arms, mode=mode, default=default and _body(default, beside))
        case Foreach(body, items, concurrency, on_error):
            concurrent = min(items, concurrency) > 1
            body = _body(body, beside or concurrent)
            return replace(part, body=body, on_error="collect" if concurrent and _may_fail(body) else on_error)
        case Loop(body):
            return replace(part, body=_body(body, beside))
        case Await(comes):
            return part if comes == "never" else replace(part, timeout=None)
        case Reshape() | Pause():
            return part


def _body(body: Body, beside: bool) -> Body:
    match body:
        case Nested():
            return steadied(body, beside=beside)
        case Task():
            leaves = ("bail", "abort") if beside else ()
            actions = tuple(each for each in body.actions if not (isinstance(each, Leave) and each.how in leaves))
            return replace(body, actions=actions, timeout=None)
        case ToolTask():
            return body


def _may_fail(body: Body) -> bool:
    match body:
        case Nested(parts):
            return any(map(_part_may_fail, parts))
        case ToolTask(divisor=divisor):
            return divisor > 0
        case Task(actions):
            return any(
                (isinstance(each, Call) and each.divisor > 0 and not each.survives)
                or (isinstance(each, Fail | Leave) and each.divisor > 0)
                for each in actions
            )


def _part_may_fail(part: Part) -> bool:
    match part:
        case Then(body):
            return _may_fail(body)
        case Parallel(arms):
            return any(map(_may_fail, arms))
        case Branch() | Loop():  # no arm may match, a condition may break, a cap may be met
            return True
        case Reshape(divisor):
            return divisor > 0
        case Foreach(body):
            return _may_fail(body)
        case Await(comes):
            return comes == "never"
        case Pause():
            return False
