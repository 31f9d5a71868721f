"""`spanflow doctor`: why no trace shows up, and what to change."""

from collections.abc import Iterable
from dataclasses import asdict

from spanflow.cli.history import read_history
from spanflow.cli.terminal import FAILED, OK, marked, write, write_json
from spanflow.ports import RunQuery, Store
from spanflow.tracing.checkup import Check, Checkup

_RECENT = 20  # runs whose lost spans are counted


async def examine(checkup: Checkup, store: Store | None, *, send: bool, as_json: bool) -> int:
    """Print each check as it is done. Return 0 where nothing keeps traces from showing up."""
    done: list[Check] = []
    trace_id: str | None = None

    def note(checks: Iterable[Check]) -> None:
        for check in checks:
            done.append(check)
            if not as_json:
                _write(check)

    note(checkup.examine())
    if send:
        sent = checkup.send()
        trace_id = sent.trace_id if sent.check.ok else None
        note([sent.check])
    if store is not None:
        try:
            note([await _lost_spans(store)])
        finally:
            await store.aclose()
    wrong = sum(check.ok is False for check in done)
    if as_json:
        write_json({"ok": not wrong, "trace_id": trace_id, "checks": [asdict(check) for check in done]})
        return FAILED if wrong else OK
    write()
    if wrong:
        write(f"{wrong} {'thing keeps' if wrong == 1 else 'things keep'} traces from showing up as they should.")
        return FAILED
    write("All is well." if send else "All is well, as far as one sees without sending a span: add --send.")
    return OK


async def _lost_spans(store: Store) -> Check:
    """Look for runs whose spans could not be handed over, or not in time."""
    found = await store.find(RunQuery(limit=_RECENT))
    losses = [(run.run_id, (await read_history(store, run.run_id)).state.spans_dropped) for run in found]
    losses = [(run_id, lost) for run_id, lost in losses if lost]
    if not losses:
        said = f"none by the end of any of the last {len(found)} runs in this store; the log has what was lost later"
        return Check("lost spans", True, said)
    total = sum(lost for _, lost in losses)
    return Check(
        "lost spans",
        False,
        f"{total}, in {len(losses)} of the last {len(found)} runs: {', '.join(run_id for run_id, _ in losses)}.",
        "See above whether the receiver takes spans; then give it, or OTEL_BSP_MAX_QUEUE_SIZE, more room.",
    )


def _write(check: Check) -> None:
    mark = "note" if check.ok is None else "ok" if check.ok else "WRONG"
    write(f"{marked(mark)}  {check.name:<11}  {check.said}")
    if check.advice:
        write(f"{'':<5}  {'':<11}  {check.advice}")
