"""Answer a question from a folder of Markdown files, with citations. No model: the words decide.

    uv run examples/quickstart.py
    uv run examples/quickstart.py "how do I renew the certificate?" ~/notes --user u-42 --session s-7

Look at the events as they come, at the tree of the trace, and at the answer, which cites file and line. Set
OTEL_EXPORTER_OTLP_ENDPOINT to see the same trace in Jaeger. Exit status: 0 answered, 1 nothing found, 2 an error.
"""

import argparse
import asyncio
import difflib
import io
import math
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from spanflow import (
    Err,
    Event,
    Ok,
    Run,
    SpanflowError,
    StepContext,
    TracingOptions,
    Workflow,
    WorkflowResult,
    configure_tracing,
    step,
    tool,
)

REPOSITORY = Path(__file__).resolve().parent.parent
MARKDOWN = (".md", ".markdown")
MAX_BYTES = 20_000_000  # a file beyond that is no text that somebody wrote
MAX_LINES = 12  # of a passage
MAX_WIDTH = 160  # characters of a line that are quoted
FILES_SHOWN = 3  # files whose events are printed; a folder may hold thousands
WORD = re.compile(r"[^\W_]+")
COMMON = frozenset(
    WORD.findall(
        "a about an and any are as at be by can do does for from get has have how i if in is it its me my of on or so"
        " that the their them then there these they this to was we what when where which who why will with you your"
    )
)


class Question(BaseModel):
    text: str
    folder: Path


class Passage(BaseModel):
    file: str
    line: int
    heading: str
    text: str


class Hit(BaseModel):
    passage: Passage
    score: float


class Found(BaseModel):
    words: list[str]
    hits: list[Hit]


class Quote(BaseModel):
    text: str
    file: str
    line: int


class Answer(BaseModel):
    quotes: list[Quote] = []
    remark: str = ""


# ---------------------------------------------------------------- the workflow


@step
def find_files(question: Question) -> list[Path]:
    """List the Markdown files, not those in hidden folders such as .venv."""
    found: list[Path] = []
    for folder, inside, files in os.walk(question.folder):
        inside[:] = [name for name in inside if not name.startswith(".")]
        found += [Path(folder, name) for name in files if name.lower().endswith(MARKDOWN)]
    if not found:
        raise FileNotFoundError(f"There is no Markdown file ({', '.join(MARKDOWN)}) in {printable(question.folder)}.")
    return sorted(found)


@step
def read(path: Path, ctx: StepContext) -> list[Passage]:
    """Split one file into passages. A plain ``def``: it runs in a thread, so several files are read at a time."""
    file = printable(path.relative_to(ctx.init_data.folder))
    passages = list(passages_of(text_of(path, file), file))
    ctx.emit(f"{file}: {len(passages)} passages")
    return passages


@step
def rank(files: list[Ok[list[Passage]] | Err], ctx: StepContext) -> Found:
    """Search the passages of all files that could be read."""
    question: Question = ctx.init_data
    library = Library([passage for file in files if isinstance(file, Ok) for passage in file.value])
    search = tool(library.search)  # any function becomes a tool: its calls are events and spans
    words = searched_words(question.text)
    return Found(words=words, hits=search(query=" ".join(words)))


@step
def quote(found: Found) -> Answer:
    """Cite each passage at its best line. Passages that are not half as good as the first are left out."""
    quotes: list[Quote] = []
    wanted = set(found.words)
    for hit in found.hits:
        if hit.score >= found.hits[0].score / 2:
            lines = hit.passage.text.split("\n")
            matches = [len(wanted.intersection(words_in(line))) for line in lines]
            text = "\n".join(excerpt(line, wanted) for line in lines)
            quotes.append(Quote(text=text, file=hit.passage.file, line=hit.passage.line + matches.index(max(matches))))
    return Answer(quotes=quotes)


@step
def suggest(found: Found, ctx: StepContext) -> Answer:
    """Nothing was found: name words that the files do have."""
    files: list[Ok[list[Passage]] | Err] = ctx.result_of("read")
    passages = [passage for file in files if isinstance(file, Ok) for passage in file.value]
    known = {word for passage in passages for word in words_in(passage.text)}
    words = found.words[:10]
    near = sorted({each for word in words for each in difflib.get_close_matches(word, known)})
    hint = f" Did you mean: {', '.join(near)}?" if near else ""
    return Answer(remark=f"No passage has any of the words {', '.join(words)}.{hint}")


answer_from_docs = (
    Workflow("answer_from_docs", input=Question, output=Answer)
    .then(find_files)
    .foreach(read, concurrency=8, on_error="collect")  # a file that cannot be read does not end the run
    .then(rank)
    .branch((lambda found: bool(found.hits), quote), default=suggest)
)


# ---------------------------------------------------------------- searching


class Library:
    """Passages ranked by BM25: a rare word counts more, each repetition of a word less, a long passage less."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._counts = [Counter(words_in(f"{passage.heading} {passage.text}")) for passage in passages]
        self._passages_with = Counter(word for counts in self._counts for word in counts)
        self._average_length = sum(counts.total() for counts in self._counts) / max(len(passages), 1)

    def search(self, query: str, limit: int = 3) -> list[Hit]:
        """Find the passages that answer a query best.

        Args:
            query: words, in any order.
            limit: how many passages at most.
        """
        words = set(words_in(query))
        hits = [
            Hit(passage=passage, score=round(self._score(words, counts), 2))
            for passage, counts in zip(self._passages, self._counts, strict=True)
            if not words.isdisjoint(counts)
        ]
        return sorted(hits, key=lambda hit: -hit.score)[:limit]

    def _score(self, words: set[str], counts: Counter[str]) -> float:
        length = counts.total() / self._average_length
        return sum(
            self._rarity(word) * counts[word] * 2.2 / (counts[word] + 1.2 * (0.25 + 0.75 * length))
            for word in words
            if word in counts
        )

    def _rarity(self, word: str) -> float:
        having = self._passages_with[word]
        return math.log(1 + (len(self._passages) - having + 0.5) / (having + 0.5))


def words_in(text: str) -> list[str]:
    """Return the words of a text in one spelling: without case, and without the s of a plural."""
    words: list[str] = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word for word in words]


def searched_words(question: str) -> list[str]:
    """Return the words of a question that say what it is about; all of them where it has only common ones."""
    words = list(dict.fromkeys(words_in(question)))
    return [word for word in words if word not in COMMON] or words


def excerpt(line: str, wanted: set[str]) -> str:
    """Cut a long line around the first word that is wanted."""
    if len(line) <= MAX_WIDTH:
        return line
    first = next((found.start() for found in WORD.finditer(line) if wanted.intersection(words_in(found[0]))), 0)
    begin = max(0, min(first - MAX_WIDTH // 2, len(line) - MAX_WIDTH))
    end = begin + MAX_WIDTH
    return ("…" if begin else "") + line[begin:end] + ("…" if end < len(line) else "")


def text_of(path: Path, file: str) -> str:
    """Read a text file: UTF-8, UTF-16 with its mark, else Latin-1, which fits any bytes."""
    if not path.is_file():
        raise FileNotFoundError(f"{file} is no file, or a link to nowhere.")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{file} is larger than {MAX_BYTES // 1_000_000} MB.")
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data:
        raise ValueError(f"{file} is not text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def passages_of(text: str, file: str) -> Iterator[Passage]:
    """Split Markdown at headings and blank lines, code only where it is long. Each passage knows its first line."""
    heading, begin, in_code = "", 1, False
    block: list[str] = []

    def passage() -> Passage:
        return Passage(file=file, line=begin, heading=heading, text="\n".join(block).rstrip())

    for number, raw in enumerate(io.StringIO(text, newline=None), 1):
        line = raw.rstrip()
        is_heading = not in_code and re.match(r"#{1,6}\s", line) is not None
        ends = not line and not in_code and block != [heading]  # a heading stays with what follows it
        if any(block) and (ends or is_heading or len(block) == MAX_LINES):
            yield passage()
            block = []
        if is_heading:
            heading = line
        if line.lstrip().startswith(("```", "~~~")):
            in_code = not in_code
        if line or block:
            begin = begin if block else number
            block.append(line)
    if any(block):
        yield passage()


# ---------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Answer a question from a folder of Markdown files, with citations.")
    parser.add_argument("question", nargs="?", default="How do I see a run in Jaeger?")
    parser.add_argument("folder", nargs="?", type=Path, default=REPOSITORY)
    parser.add_argument("--user", help="user.id of the root span")
    parser.add_argument("--session", help="session.id of the root span")
    options = parser.parse_args(argv)
    terminal: Any = sys.stdout
    terminal.reconfigure(errors="replace")  # where it cannot show a character, it shows another
    question = printable(options.question)
    if not words_in(question):
        return refuse(f"The question {question!r} has no word to search for.")
    folder = options.folder.expanduser()
    if not folder.is_dir():
        is_file = " It is a file: give the folder it is in." if folder.exists() else ""
        return refuse(f"There is no folder {printable(folder)}.{is_file}")
    about_run = TracingOptions(user_id=options.user, session_id=options.session, tags=["quickstart"])
    try:
        with configure_tracing(service_name="quickstart", console=True):
            return asyncio.run(answer(Question(text=question, folder=folder), about_run))
    except SpanflowError as error:
        return refuse(str(error))
    except BrokenPipeError:  # whoever reads our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


async def answer(question: Question, about_run: TracingOptions) -> int:
    run = await answer_from_docs.create_run()
    try:
        result = await watched(run, question, about_run)
    except asyncio.CancelledError:  # Ctrl-C: the run ends in order, and so does its trace
        result = await run.cancel()
    print()
    status = report(question, result)
    print(f"\ntrace_id  {result.trace_id or 'none: tracing is switched off'}")
    return status


async def watched(run: Run[Question, Answer], question: Question, about_run: TracingOptions) -> WorkflowResult[Answer]:
    """Run, and print the events as they come."""
    stream = await run.stream(question, tracing_options=about_run)
    started_at, hidden = 0, False
    async for event in stream:
        started_at = started_at or event.timestamp
        index = re.match(r"read\[(\d+)\]", event.path)
        if index is None or int(index[1]) < FILES_SHOWN:
            print(f"{(event.timestamp - started_at) / 1e6:7.1f} ms  {described(event)}".rstrip(), flush=True)
        elif not hidden:
            print("        …     and so on for each file", flush=True)
            hidden = True
    return await stream.get_workflow_state()


def described(event: Event) -> str:
    """One line for an event: its type, where it comes from, and what it says."""
    detail = ""
    if event.type == "step-output":
        detail = str(event.payload.output)
    elif event.type == "tool-call":
        detail = f"{event.payload.tool_name} {event.payload.args}"
    elif event.type == "tool-result":
        detail = f"{event.payload.tool_name} → {len(event.payload.result or [])} passages"
    elif event.type == "step-result" and event.payload.error is not None:
        detail = event.payload.error.message
    elif event.type == "finish":
        counts = event.payload.counts
        detail = f"{event.payload.status}: {counts.steps} steps, {counts.spans} spans"
    return f"{event.type:<13} {event.path:<12} {detail[:MAX_WIDTH]}"


def report(question: Question, result: WorkflowResult[Answer]) -> int:
    """Print what came of the run. Return the exit status."""
    unread = [each.error.message for each in result.steps.values() if each.id == "read" and each.error is not None]
    for problem in unread[:FILES_SHOWN]:
        print(f"not read: {problem}")
    if len(unread) > FILES_SHOWN:
        print(f"not read: {len(unread) - FILES_SHOWN} more; each is an ERROR in the trace")
    if result.status == "failed":
        return refuse(result.error.message if result.error is not None else "The run failed.")
    if result.status == "canceled":
        print("canceled")
        return 130
    found = result.unwrap()
    print(f"{question.text}\n{found.remark}".rstrip())
    for quoted in found.quotes:
        lines = [printable(line) for line in quoted.text.split("\n")]
        print("\n  " + "\n  ".join(lines) + f"\n  — {quoted.file}:{quoted.line}")
    return 0 if found.quotes else 1


def refuse(problem: str) -> int:
    print(f"error: {problem}", file=sys.stderr)
    return 2


def printable(name: object) -> str:
    """Make text fit for a terminal: file names and files may hold control characters and broken encodings."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in str(name))


if __name__ == "__main__":
    sys.exit(main())
