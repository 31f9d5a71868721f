"""Suspend in one process, approve in another: a refund that waits for a person longer than its process lives.

    uv run examples/durable_approval.py start 250          # asks for approval, and ends
    uv run examples/durable_approval.py list               # which refunds are there, and what they wait for
    uv run examples/durable_approval.py approve RUN_ID     # perhaps a week later; --no refuses
    uv run examples/durable_approval.py wait RUN_ID        # what became of it

Runs are kept in ``refunds/runs.db``, or in another folder with ``--folder``. Kill ``start`` with Ctrl-C or ``kill -9``
while it checks the account (``--slowly 60``): once its lease of two seconds is over, ``wait`` takes the run over. It is
one trace all the same: the attempt that died is in it as ``spanflow.process_lost``, the wait with its true length.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from spanflow import Runtime, SpanflowError, SQLiteStore, StepContext, Workflow, WorkflowResult, configure_tracing, step

LEASE = 2.0  # s; short, so that a killed run does not keep you waiting


class Refund(BaseModel):
    amount: int
    slowly: float = 0.0


class Ask(BaseModel):
    question: str


class Decision(BaseModel):
    approved: bool


@step
async def check_account(refund: Refund) -> Refund:
    await asyncio.sleep(refund.slowly)  # kill it here
    return refund


@step
async def approve(refund: Refund, ctx: StepContext) -> Refund | None:
    decision = await ctx.suspend(Ask(question=f"Refund {refund.amount} EUR?"), resume=Decision)
    return refund if decision.approved else None


@step
async def pay(refund: Refund | None, ctx: StepContext) -> str:
    if refund is None:
        return "refused"
    return f"{refund.amount} EUR refunded"  # what must not happen twice takes ctx.idempotency_key along


refunds = Workflow("refunds", input=Refund, output=str).then(check_account).then(approve).then(pay)


def show(result: WorkflowResult[str]) -> None:
    asked = ", ".join(str(Ask.model_validate(payload).question) for payload in result.suspended.values())
    print(f"{result.status}: {asked or result.result or result.error}")
    print(f"run_id    {result.run_id}\ntrace_id  {result.trace_id}", flush=True)


async def start(runtime: Runtime, amount: int, slowly: float) -> None:
    run = await runtime.create_run(refunds)
    print(f"started   {run.run_id}", flush=True)
    show(await run.start(Refund(amount=amount, slowly=slowly)))


async def list_runs(runtime: Runtime) -> None:
    for found in await runtime.find_runs(workflow=refunds):
        print(f"{found.run_id}  {found.status:<9}  trace {found.trace_id}")


async def decide(runtime: Runtime, run_id: str, approved: bool) -> None:
    run = await runtime.get_run(run_id)
    show(await run.resume(Decision(approved=approved)))


async def wait(runtime: Runtime, run_id: str) -> None:
    """Show what became of a run, taking it over if its process has died."""
    run = await runtime.get_run(run_id)
    while (result := await run.wait()).status == "running":  # noqa: ASYNC110  # in another process, dead or alive
        await asyncio.sleep(0.1)
    show(result)


async def execute(options: argparse.Namespace) -> None:
    async with Runtime(SQLiteStore(options.folder / "runs.db"), workflows=[refunds], lease=LEASE) as runtime:
        match options.command:
            case "start":
                await start(runtime, options.amount, options.slowly)
            case "list":
                await list_runs(runtime)
            case "approve":
                await decide(runtime, options.run_id, not options.no)
            case _:
                await wait(runtime, options.run_id)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Refunds that wait for approval, in whatever process it is given.")
    parser.add_argument("--folder", type=Path, default=Path("refunds"), help="where runs are kept (./refunds)")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = commands.add_parser("start", help="ask for a refund")
    starting.add_argument("amount", nargs="?", type=int, default=250)
    starting.add_argument("--slowly", type=float, default=0.0, help="seconds that the check of the account takes")
    commands.add_parser("list", help="list the refunds")
    approving = commands.add_parser("approve", help="approve a refund that waits")
    approving.add_argument("run_id")
    approving.add_argument("--no", action="store_true", help="refuse it")
    commands.add_parser("wait", help="show what became of a refund").add_argument("run_id")
    options = parser.parse_args(argv)
    with configure_tracing(service_name="refunds", console=True):
        try:
            options.folder.mkdir(parents=True, exist_ok=True)
            asyncio.run(execute(options))
        except SpanflowError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nStopped. The run is kept: go on with it by `wait`.", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
