"""Payloads of 50 MB: kept whole by every durable store, through a suspension and another runtime."""

import hashlib

from pydantic import BaseModel

from spanflow import Runtime, StepContext, Workflow, step
from tests.stores.conftest import Open

SIZE = 50_000_000


class Digest(BaseModel):
    wanted: str


@step
async def download(size: int) -> str:
    return "zebra " * (size // 6)


@step
async def compare(text: str, ctx: StepContext) -> bool:
    digest = await ctx.suspend({"length": len(text)}, resume=Digest)
    return hashlib.sha256(text.encode()).hexdigest() == digest.wanted


async def test_a_payload_of_50_mb_is_there_for_whoever_goes_on_with_the_run(open_durable: Open) -> None:
    workflow = Workflow("mirror", input=int).then(download).then(compare)
    async with Runtime(open_durable(), workflows=[workflow]) as first:
        run = await first.create_run(workflow, run_id="r-1")
        result = await run.start(SIZE)
    assert (result.status, result.suspended) == ("suspended", {"compare": {"length": SIZE // 6 * 6}})
    wanted = hashlib.sha256(b"zebra " * (SIZE // 6)).hexdigest()
    async with Runtime(open_durable(), workflows=[workflow]) as second:
        again = await second.get_run("r-1")
        assert (await again.resume(Digest(wanted=wanted))).unwrap() is True
