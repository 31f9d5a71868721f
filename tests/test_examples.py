"""Every example does what its docstring says, run as a user runs it: in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from examples.containers import Line, Order, checkout
from examples.quickstart import MAX_BYTES, Answer, Question, answer_from_docs, main
from spanflow import WorkflowResult
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan, WireProtocol

EXAMPLES = Path(__file__).parent.parent / "examples"
TRACE_ID = re.compile(r"^trace_id  ([0-9a-f]{32})$", re.MULTILINE)
TREE = re.compile(r"^invoke_workflow .*(?:\n.+)*", re.MULTILINE)
FILES_READ = re.compile(r"│   [├└]── step read\[0\](?:\n│   [├└]── step read\[\d+\])*$", re.MULTILINE)
DURATION = re.compile(r"  +\d[\d.]* (?:µs|ms|s)\b")


@dataclass(frozen=True)
class Done:
    """What a finished example left behind."""

    status: int
    output: str
    errors: str

    @property
    def trace_id(self) -> str:
        found = TRACE_ID.search(self.output)
        assert found is not None, f"no trace id in {self.output!r}"
        return found[1]

    @property
    def tree(self) -> str:
        """The printed tree of the trace, without the durations, and one line for the files that were read."""
        found = TREE.search(self.errors)
        assert found is not None, f"no tree in {self.errors!r}"
        assert DURATION.search(found[0]), "the tree names no durations"
        return FILES_READ.sub("│   └── step read[…]", DURATION.sub("", unannounced(found[0])))


def unannounced(tree: str) -> str:
    """A tree without the marker of a run that waits for nothing: it has one only where it took a second."""
    return tree if "─ wait " in tree else re.sub(r"^├── run\.started\b.*\n", "", tree, flags=re.MULTILINE)


def environment(**variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", **variables}


def command(name: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", str(EXAMPLES / name), *map(str, arguments)]


def run(name: str, *arguments: str | Path, answers: str = "", **variables: str) -> Done:
    done = subprocess.run(
        command(name, *arguments),
        env=environment(**variables),
        input=answers,
        capture_output=True,
        encoding="utf-8",
        timeout=200,
    )
    return Done(done.returncode, done.stdout, done.stderr)


# ---------------------------------------------------------------- all of them


@dataclass(frozen=True)
class Promise:
    """What an example does when it is run without arguments."""

    output: str
    tree: str
    answers: str = ""


PROMISES = {
    "approval.py": Promise(
        answers="yes\n",
        output="250 EUR refunded",
        tree="""\
invoke_workflow refunds
├── run.started
├── step refund  [suspended]
├── wait refund
└── step refund  [attempt 2]""",
    ),
    "containers.py": Promise(
        output="13.25 EUR, by card",
        tree="""\
invoke_workflow checkout
├── step lines_of
├── foreach price
│   ├── step price[0]
│   └── step price[1]
├── step subtotal
├── step shipping
├── step tax
├── step total_of
└── step by_card  [arm default]""",
    ),
    "quickstart.py": Promise(
        output="How do I see a run in Jaeger?\n\n  ",
        tree="""\
invoke_workflow answer_from_docs
├── step find_files
├── foreach read
│   └── step read[…]
├── step rank
│   └── execute_tool search
└── step quote  [arm 0]""",
    ),
    "streaming_tool.py": Promise(
        output="tool-call-delta 100 %\ntool-result\n",
        tree="""\
invoke_workflow checksum
└── step check
    └── execute_tool digest""",
    ),
}
SERVERS = {"web.py"}
"""These do not end by themselves; they have a test of their own."""
ELSEWHERE = {"durable_approval.py": "durable/test_example.py"}
"""These take several processes; their tests are there."""


def test_every_example_is_run_by_this_module() -> None:
    assert {path.name for path in EXAMPLES.rglob("*.py")} == PROMISES.keys() | SERVERS | ELSEWHERE.keys()
    assert all((Path(__file__).parent / test).is_file() for test in ELSEWHERE.values())


@pytest.mark.parametrize("name", sorted(PROMISES))
def test_an_example_gives_its_result_its_tree_and_its_trace_id(name: str) -> None:
    promise = PROMISES[name]
    done = run(name, answers=promise.answers)
    assert done.status == 0, done.errors
    assert promise.output in done.output
    assert done.tree == promise.tree
    assert f"trace {done.trace_id}" in done.errors
    assert "Traceback" not in done.errors


# ---------------------------------------------------------------- quickstart


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    """A folder whose files are hard to read in every way that a user's may be."""
    root = tmp_path / "docs"
    (root / "inner.md").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / "keys.md").write_text("# Keys\n\nAll keys hang in the hall.\n\nThe zebra key\nis under the mat.\n")
    (root / "inner.md" / "dos.MARKDOWN").write_bytes(b"# Zebra\r\n\r\nIt has\r\nblack stripes.\r\n")
    (root / "latin.md").write_bytes("Der Schlüssel ist gelb.\n".encode("latin-1"))
    (root / "windows.md").write_text("first\n\nThe giraffe is tall.\n", encoding="utf-16")
    (root / "one\nline [1] #2.md").write_text(
        "Okapi and \x1b[31mred\x1b[0m. " + "filler " * 9999 + "quokka at the end\n"
    )
    (root / "empty.md").touch()
    (root / "not-markdown.txt").write_text("okapi")
    (root / ".hidden" / "secret.md").write_text("okapi")
    return root


async def ask(text: str, folder: Path) -> WorkflowResult[Answer]:
    return await (await answer_from_docs.create_run()).start(Question(text=text, folder=folder))


async def citations(text: str, folder: Path) -> list[str]:
    return [f"{quote.file}:{quote.line}" for quote in (await ask(text, folder)).unwrap().quotes]


def events_of(output: str) -> list[str]:
    return re.findall(r"^ *[\d.]+ ms  (\S+)", output, re.MULTILINE)


def test_quickstart_answers_from_its_arguments_with_file_and_line(docs: Path) -> None:
    done = run("quickstart.py", "Where is the zebra key?", docs)
    assert done.status == 0
    answer = done.output.partition("Where is the zebra key?\n")[2]
    assert answer.startswith("\n  The zebra key\n  is under the mat.\n  — keys.md:5\n")
    assert re.search(r"ms  step-output   read\[2\] +keys.md: 2 passages$", done.output, re.MULTILINE)
    events = events_of(done.output)
    assert events[:4] == ["start", "step-start", "step-result", "step-finish"]
    assert events[-1] == "finish"
    assert events.index("step-output") < events.index("tool-call") < events.index("tool-result")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_quickstart_exports_its_whole_trace_where_an_endpoint_is_set(protocol: WireProtocol, docs: Path) -> None:
    with OtlpReceiver(protocol) as receiver:
        done = run("quickstart.py", "zebra", docs, "--user", "u-42", "--session", "s-7", **receiver.environment)
    spans = receiver.spans()
    assert {span.trace_id for span in spans} == {done.trace_id}
    spans = [span for span in spans if span.name != "run.started"]  # there where the machine was slow
    assert sorted(span.name for span in spans) == [
        "execute_tool search",
        "foreach read",
        "invoke_workflow answer_from_docs",
        "step find_files",
        "step quote",
        "step rank",
        *["step read"] * 6,
    ]
    (root,) = (span for span in spans if span.parent_span_id is None)
    assert root.name == "invoke_workflow answer_from_docs"
    assert (root.attributes["user.id"], root.attributes["session.id"]) == ("u-42", "s-7")
    assert root.resource["service.name"] == "quickstart"
    ids = {span.span_id for span in spans}
    assert len(ids) == len(spans)
    assert all(span.parent_span_id in ids for span in spans if span is not root)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["", "."], "The question '' has no word to search for."),
        (["?!", "."], "The question '?!' has no word to search for."),
        (["zebra", "no such folder"], "There is no folder no such folder."),
        (["zebra", __file__], f"There is no folder {__file__}. It is a file: give the folder it is in."),
    ],
)
def test_quickstart_refuses_what_it_cannot_answer(
    arguments: Sequence[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"error: {problem}\n"


def test_quickstart_fails_visibly_in_a_folder_without_markdown(tmp_path: Path) -> None:
    done = run("quickstart.py", "zebra", tmp_path)
    assert done.status == 2
    assert f"error: There is no Markdown file (.md, .markdown) in {tmp_path}.\n" in done.errors
    problem = f"ERROR FileNotFoundError: There is no Markdown file (.md, .markdown) in {tmp_path}."
    assert done.tree == f"invoke_workflow answer_from_docs  {problem}\n└── step find_files  {problem}"
    assert done.trace_id


@pytest.mark.parametrize(
    ("question", "cited"),
    [
        ("BLACK stripe's", "inner.md/dos.MARKDOWN:4"),
        ("schlüssel", "latin.md:1"),
        ("schlu\u0308ssel", "latin.md:1"),
        ("giraffe", "windows.md:3"),
        ("okapi", "one\N{REPLACEMENT CHARACTER}line [1] #2.md:1"),
        ("Where is the?", "keys.md:6"),
    ],
    ids=["plural and case", "Latin-1", "combining accent", "UTF-16", "control characters", "only common words"],
)
async def test_quickstart_finds_the_line_however_the_file_is_written(question: str, cited: str, docs: Path) -> None:
    assert (await citations(question, docs))[0] == cited


async def test_quickstart_cuts_a_long_line_around_what_was_asked_for(docs: Path) -> None:
    (quote,) = (await ask("quokka", docs)).unwrap().quotes
    assert len(quote.text) < 200
    assert quote.text.endswith("filler quokka at the end")


async def test_quickstart_names_near_words_where_it_finds_nothing(docs: Path) -> None:
    answer = (await ask("girafe", docs)).unwrap()
    assert answer == Answer(remark="No passage has any of the words girafe. Did you mean: giraffe?")


@pytest.mark.skipif(sys.platform == "win32", reason="file names as bytes, links and pipes")
def test_quickstart_goes_on_without_files_that_it_cannot_read(docs: Path) -> None:
    folder = os.fsencode(docs)
    with open(os.path.join(folder, b"\xff\xfe name.md"), "wb") as file:
        file.write(b"zebra in a file whose name is no UTF-8")
    (docs / "binary.md").write_bytes(b"zebra\0\1\2")
    (docs / "dangling.md").symlink_to("nowhere")
    (docs / "loop").symlink_to(docs)
    os.mkfifo(docs / "pipe.md")
    with open(docs / "huge.md", "wb") as sparse:
        sparse.truncate(MAX_BYTES + 1)
    with OtlpReceiver("http/protobuf") as receiver:
        done = run("quickstart.py", "zebra name", docs, "--user", "\udcff", **receiver.environment)
    assert done.status == 0
    assert re.findall(r"^not read: (.*)", done.output, re.MULTILINE) == [
        "binary.md is not text.",
        "dangling.md is no file, or a link to nowhere.",
        "huge.md is larger than 20 MB.",
        "1 more; each is an ERROR in the trace",
    ]
    assert "— \N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER} name.md:1" in done.output
    assert "foreach read  [4 failed]" in done.tree
    assert [span.name for span in receiver.spans() if span.status == "ERROR"] == ["step read"] * 4
    assert "Traceback" not in done.errors


async def test_quickstart_indexes_a_thousand_files(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.md").write_text(f"# Chapter {number}\n\nHere is word{number}.\n")
    assert await citations("word777", tmp_path) == ["777.md:3"]


@pytest.mark.skipif(sys.platform == "win32", reason="a signal to one process")
def test_quickstart_ends_its_trace_in_order_on_ctrl_c(tmp_path: Path) -> None:
    (tmp_path / "0.md").write_text("many words\n\n" * 4000)
    for number in range(1, 400):  # some ten seconds of work
        (tmp_path / f"{number}.md").symlink_to("0.md")
    with subprocess.Popen(
        command("quickstart.py", "words", tmp_path),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdout is not None
        seen = next(line for line in process.stdout if "read[0]" in line)  # events come live
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=200)
    done = Done(process.returncode, seen + output, errors)
    assert done.status == 130
    assert done.tree.startswith("invoke_workflow answer_from_docs  [canceled]\n")
    assert f"trace {done.trace_id}" in errors
    assert "Traceback" not in errors


@pytest.mark.skipif(sys.platform == "win32", reason="pipes end differently")
def test_quickstart_keeps_quiet_when_its_reader_leaves(docs: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as broken:
        done = subprocess.run(
            command("quickstart.py", "zebra", docs),
            env=environment(),
            stdout=broken,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=200,
        )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


# ---------------------------------------------------------------- the others, with arguments


def test_containers_fails_with_the_step_that_failed() -> None:
    done = run("containers.py", "kiwi=1", "apple=1")
    assert done.status == 1
    assert "error: We have no kiwi. We have apple, pear, melon.\n" in done.errors
    assert "step price[0]  ERROR LookupError: We have no kiwi." in done.tree
    assert "step shipping" not in done.tree


@pytest.mark.parametrize(("fruit", "result"), [("melon", "68.48 EUR, by invoice"), ("pear", "16.67 EUR, by card")])
async def test_containers_takes_the_arm_that_fits(fruit: str, result: str) -> None:
    order = Order(lines=[Line(fruit=fruit, count=20)])
    assert (await (await checkout.create_run()).start(order)).unwrap() == result


def test_streaming_tool_reports_progress_and_the_true_digest(tmp_path: Path) -> None:
    file = tmp_path / "zeros"
    file.write_bytes(bytes(4 * 2**20))
    done = run("streaming_tool.py", file)
    assert re.findall(r"tool-call-delta (\d+) %", done.output) == ["25", "50", "75", "100"]
    assert f"bb9f8df61474d25e71fa00722318cd387396ca1736605e1248821cc0de3d3af8  {file}\n" in done.output


def test_approval_asks_again_until_the_answer_fits_and_only_when_it_must() -> None:
    refused = run("approval.py", "250", answers="maybe\nno\n")
    assert refused.output.count("Refund 250 EUR?") == 2
    assert "answer: Input should be 'yes' or 'no'" in refused.errors
    assert "refused\n" in refused.output
    unasked = run("approval.py", "20")
    assert "suspended" not in unasked.output
    assert unasked.tree == "invoke_workflow refunds\n└── step refund"


def test_approval_is_canceled_where_nobody_answers() -> None:
    done = run("approval.py", "250")
    assert done.status == 1
    assert done.tree.startswith("invoke_workflow refunds  [canceled]\n")


def test_approval_shows_how_long_nobody_answered() -> None:
    assert "wait refund" in run("approval.py", "250").tree


# ---------------------------------------------------------------- web


@pytest.fixture
def server() -> Iterator[tuple[str, OtlpReceiver]]:
    """The web example on a free port, exporting to a receiver. Its spans are complete once it is stopped."""
    with OtlpReceiver("http/protobuf") as receiver:
        with subprocess.Popen(
            command("web.py", "--port", "0"),
            env=environment(**receiver.environment, OTEL_BSP_SCHEDULE_DELAY="10"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as process:
            assert process.stderr is not None
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://127.0.0.1:\d+", line)))
            yield address, receiver
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "Traceback" not in errors


def post(address: str, body: str, **headers: str) -> dict[str, str]:
    request = Request(f"{address}/greetings", body.encode(), {key.replace("_", "-"): headers[key] for key in headers})
    with urlopen(request, timeout=100) as response:
        return json.load(response)


def of_trace(spans: Sequence[ReceivedSpan], trace_id: str) -> dict[str, ReceivedSpan]:
    return {span.name: span for span in spans if span.trace_id == trace_id}


def test_web_makes_each_request_one_trace_with_its_user_and_session(server: tuple[str, OtlpReceiver]) -> None:
    address, receiver = server
    first = post(address, '{"name": "Ada"}', x_user_id="u-42", x_session_id="s-7")
    second = post(
        address, '{"name": "Bo"}', x_user_id="u-43", traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01"
    )  # from a caller that is traced
    assert (first["greeting"], second["greeting"]) == ("Hello Ada", "Hello Bo")
    assert second["trace_id"] == "ab" * 16 != first["trace_id"]
    spans = receiver.wait_for(lambda spans: len(spans) == 6)
    for answer, above, user, session in ((first, None, "u-42", "s-7"), (second, "cd" * 8, "u-43", None)):
        found = of_trace(spans, answer["trace_id"])
        request, root, greet = found["POST"], found["invoke_workflow greetings"], found["step greet"]
        assert (request.kind, request.parent_span_id) == ("SERVER", above)
        assert root.parent_span_id == request.span_id
        assert greet.parent_span_id == root.span_id
        assert (root.attributes.get("user.id"), root.attributes.get("session.id")) == (user, session)
        assert root.attributes["feature_flag.style"] == "plain"
