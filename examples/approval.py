"""Suspend and resume: a refund that a person has to approve.

    uv run examples/approval.py 250                 # asks you
    uv run examples/approval.py 250 --answer no     # answers by itself
    uv run examples/approval.py 20                  # small enough: nobody is asked

Look at ``refund``: it asks with ``await ctx.suspend(...)`` as if that were a function call. A suspended run holds
nothing, not even an event loop; ``run.resume`` runs the step again from its top, and this time the call returns the
answer. In the tree it is one trace: the first attempt, the wait with its true length, the attempt that went through.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from spanflow import InvalidInput, StepContext, Workflow, configure_tracing, step


class Ask(BaseModel):
    question: str


class Decision(BaseModel):
    answer: Literal["yes", "no"]


@step
async def refund(amount: int, ctx: StepContext) -> str:
    if amount > 100:
        decision = await ctx.suspend(Ask(question=f"Refund {amount} EUR?"), resume=Decision)
        if decision.answer == "no":
            return "refused"
    return f"{amount} EUR refunded"  # what must not happen twice takes ctx.idempotency_key along


refunds = Workflow("refunds", input=int).then(refund)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Refund an amount; more than 100 EUR must be approved.")
    parser.add_argument("amount", nargs="?", type=int, default=250)
    parser.add_argument("--answer", help="yes or no; without it, you are asked")
    options = parser.parse_args(argv)
    with configure_tracing(service_name="refunds", console=True):
        run = asyncio.run(refunds.create_run())
        result = asyncio.run(run.start(options.amount))
        while result.status == "suspended":
            ask: Ask = result.suspended["refund"]
            print(f"suspended: {ask.question}")
            try:
                result = asyncio.run(run.resume({"answer": options.answer or input("yes or no? ")}))
            except InvalidInput as error:  # the run still waits
                print(f"error: {error}", file=sys.stderr)
                if options.answer:
                    return 2
            except (EOFError, KeyboardInterrupt):
                print("\nNobody answered.", file=sys.stderr)
                result = asyncio.run(run.cancel())
        print(f"{result.result if result.status == 'success' else result.status}\ntrace_id  {result.trace_id}")
        return 0 if result.status == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
