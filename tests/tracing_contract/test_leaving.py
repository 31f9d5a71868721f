"""However a process ends, what it has queued arrives or is counted; a dead back end delays the end a little."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from socket import create_server
from textwrap import dedent

import pytest

from tests.otlp_receiver import OtlpReceiver, WireProtocol
from tests.tracing_contract.processes import in_process, in_process_within

ONE_RUN = """
import signal, time, warnings
from spanflow import Workflow, configure_tracing, step

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later: fork beside threads

@step
async def item(value: int) -> int:
    return value + 1

async def run():
    return (await (await Workflow("one", input=int).then(item).create_run()).start(1)).unwrap()

setup = configure_tracing()
"""

TIMED = """
import atexit, time
atexit.register(lambda: show(took=time.monotonic() - ends))  # registered first, called last
"""


@pytest.fixture(params=["grpc", "http/protobuf"])
def protocol(request: pytest.FixtureRequest) -> WireProtocol:
    return request.param


def names_of(receiver: OtlpReceiver) -> list[str]:
    return sorted(span.name for span in receiver.spans())


RUN = ["invoke_workflow one", "step item"]


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("sys.exit(3)", 3),
        ("raise KeyError('unhandled')", 1),
        ("signal.raise_signal(signal.SIGTERM)", -signal.SIGTERM),
        ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
    ],
)
def test_what_is_queued_arrives_however_the_process_ends(protocol: WireProtocol, ending: str, code: int) -> None:
    with OtlpReceiver(protocol) as receiver:
        in_process_within(200, f"{ONE_RUN}asyncio.run(run())\n{ending}", receiver.environment, code)
        assert names_of(receiver) == RUN


def test_a_terminated_event_loop_leaves_nothing_behind(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        script = """
        async def main():
            await run()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

        asyncio.run(main())
        """
        in_process_within(200, ONE_RUN + dedent(script), receiver.environment, -signal.SIGTERM)
        assert names_of(receiver) == RUN


def test_a_handler_of_the_application_for_sigterm_is_left_alone() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + ONE_RUN.replace(
            "import signal, ", "import "
        )
        script = f"import signal, sys\n{script}asyncio.run(run())\nsignal.raise_signal(signal.SIGTERM)"
        in_process_within(200, script, receiver.environment, 7)
        assert names_of(receiver) == RUN


def test_tracing_can_be_configured_outside_of_the_main_thread() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        script = ONE_RUN.replace("setup = configure_tracing()", "") + dedent("""
        import threading
        thread = threading.Thread(target=configure_tracing)
        thread.start()
        thread.join()
        asyncio.run(run())
        """)
        in_process(script, **receiver.environment)
        assert names_of(receiver) == RUN


@pytest.mark.parametrize("before", ["pass", "asyncio.run(run())", "asyncio.run(run()); setup.flush()"])
def test_the_children_of_a_pre_fork_server_export_what_they_run(protocol: WireProtocol, before: str) -> None:
    with OtlpReceiver(protocol) as receiver:
        script = f"""
        {before}
        for _ in range(3):
            if os.fork() == 0:
                asyncio.run(run())
                sys.exit(0)  # as a worker of gunicorn ends
        for _ in range(3):
            assert os.wait()[1] == 0
        """
        in_process(ONE_RUN + dedent(script), **receiver.environment)
        spans = receiver.spans()
    runs = 3 if before == "pass" else 4
    assert sorted(span.name for span in spans) == sorted(RUN * runs)
    assert len({span.span_id for span in spans}) == 2 * runs
    assert len({str(span.resource["process.pid"]) for span in spans}) == runs


def test_a_forked_child_that_flushes_may_leave_as_it_likes(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        script = """
        child = os.fork()
        if child == 0:
            asyncio.run(run())
            os._exit(0 if setup.flush() else 1)
        assert os.waitpid(child, 0)[1] == 0
        """
        in_process(ONE_RUN + dedent(script), **receiver.environment)
        assert names_of(receiver) == RUN


def test_a_worker_that_is_terminated_exports_what_it_has_queued(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        script = """
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            asyncio.run(run())
            os.write(told, b".")
            while True:
                time.sleep(1)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        show(code=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """
        ended = in_process(ONE_RUN + dedent(script), **receiver.environment)
        assert ended.facts["code"] == -signal.SIGTERM
        assert names_of(receiver) == RUN


POOL = """
import asyncio, multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from spanflow import Workflow, configure_tracing, step

@step
async def item(value: int) -> int:
    return value + 1

async def run():
    return (await (await Workflow("one", input=int).then(item).create_run()).start(1)).unwrap()

def work(_=None):
    return asyncio.run(run())

setup = configure_tracing()

if __name__ == "__main__":
    context = multiprocessing.get_context("{method}")
    process = context.Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 0
    with ProcessPoolExecutor(2, context) as pool:
        assert list(pool.map(work, range(4))) == [2] * 4
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_export_what_they_run(
    protocol: WireProtocol, method: str, tmp_path: "os.PathLike[str]"
) -> None:
    program = os.path.join(tmp_path, "program.py")
    with open(program, "w") as file:
        file.write(POOL.replace("{method}", method))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    with OtlpReceiver(protocol) as receiver:
        environment = {**kept, **receiver.environment}
        done = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, timeout=200)
        assert (done.returncode, done.stderr) == (0, "")
        assert names_of(receiver) == sorted(RUN * 5)


@pytest.mark.parametrize("what", ["closed", "deaf"])
def test_a_dead_back_end_delays_the_end_of_a_process_by_a_bounded_time(protocol: WireProtocol, what: str) -> None:
    server = create_server(("127.0.0.1", 0), backlog=20)
    with closing(server):
        port = server.getsockname()[1]
        if what == "closed":
            server.close()
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
        ended = in_process_within(200, f"{TIMED}{ONE_RUN}asyncio.run(run())\nends = time.monotonic()", endpoint)
    assert ended.facts["took"] < (4.5 if what == "closed" else 12)  # 1 and 5 s, and what a busy machine adds
    assert "2 of 2 spans were dropped: 2 were left when tracing was shut down." in ended.stderr
    cause = "nothing listens on" if what == "closed" else "it does not answer in time"
    assert ended.stderr.count(f"http://127.0.0.1:{port}") == ended.stderr.count(cause) == 1
    assert len(ended.stderr.splitlines()) == 2


def test_nothing_to_export_costs_the_end_of_a_process_nothing() -> None:
    with closing(create_server(("127.0.0.1", 0))) as server:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}"}
        ended = in_process(f"{TIMED}{ONE_RUN}ends = time.monotonic()", **endpoint)
    assert ended.facts["took"] < 4  # it does not answer, for which five are given
    assert ended.stderr == ""


def test_what_ends_after_the_shutdown_is_lost_and_said_once() -> None:
    with OtlpReceiver("http/protobuf") as receiver:
        ended = in_process(f"{ONE_RUN}setup.shutdown()\nasyncio.run(run())", **receiver.environment)
        assert receiver.spans() == []
    assert ended.stderr == "A span ended after tracing was shut down. Such spans are dropped.\n"


def test_flush_tells_whether_the_back_end_took_the_spans_and_keeps_its_timeout(protocol: WireProtocol) -> None:
    with OtlpReceiver(protocol) as receiver:
        script = """
        asyncio.run(run())
        first = setup.flush()
        asyncio.run(run())
        begin = time.monotonic()
        setup.flush(0.001)
        show(first=first, took=time.monotonic() - begin)
        """
        ended = in_process(ONE_RUN + dedent(script), **receiver.environment)
        assert ended.facts["first"] is True
        assert ended.facts["took"] < 4  # five, if it were not told
        assert names_of(receiver) == sorted(RUN * 2)
