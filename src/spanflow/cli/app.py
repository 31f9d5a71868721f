"""The commands and their options, and nothing of what they do."""

import asyncio
from collections.abc import Coroutine
from enum import StrEnum
from importlib.metadata import version
from typing import Annotated, Any, NoReturn, cast

import typer

from spanflow.cli.doctor import examine
from spanflow.cli.execute import Answer, cancel_run, replay_run, resume_run
from spanflow.cli.options import json_value, metadata, moment, trace_id
from spanflow.cli.runs import list_runs
from spanflow.cli.show import show_run
from spanflow.cli.stores import open_store
from spanflow.cli.terminal import INTERRUPTED, REFUSED, tell
from spanflow.cli.workflows import import_app, runtime_of
from spanflow.errors import SpanflowError
from spanflow.events import RunStatus
from spanflow.ports import RunQuery
from spanflow.runtime import Runtime
from spanflow.tracing.checkup import Checkup
from spanflow.tracing.environment import Protocol
from spanflow.tracing.setup import configure_tracing

_EXITS = """\b
Exit codes:
  0  done; a run that was followed or resumed has succeeded
  1  the run failed or was canceled; doctor has found something
  2  wrong usage, unknown run, no such store: one line says what
  3  a run that was followed or resumed waits for an answer
  130  interrupted by Ctrl-C"""

app = typer.Typer(
    name="spanflow",
    help="Runs of a store: find them, see them, go on with them; and what keeps a trace from showing up.",
    epilog=_EXITS,
    rich_markup_mode=None,  # its boxes are in the way of grep
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


class Status(StrEnum):
    """What a run may be."""

    running = "running"
    success = "success"
    failed = "failed"
    suspended = "suspended"
    canceled = "canceled"


class OtlpProtocol(StrEnum):
    """How OTLP is spoken."""

    grpc = "grpc"
    http = "http/protobuf"


StoreOption = Annotated[
    str | None,
    typer.Option("--store", envvar="SPANFLOW_STORE", metavar="PATH|DSN", help="SQLite file or PostgreSQL DSN."),
]
SchemaOption = Annotated[
    str, typer.Option("--schema", envvar="SPANFLOW_SCHEMA", metavar="NAME", help="Schema of the tables in PostgreSQL.")
]
AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        envvar="SPANFLOW_APP",
        metavar="MODULE:NAME",
        help="The code: package.module:name or path/to/file.py:name of a Workflow, a list of them, or a function that"
        " is given the store and returns a Runtime.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="Its id, as `spanflow runs` lists it.")]


def main() -> None:
    """Run a command, and exit by its code."""
    app(prog_name="spanflow")


def _execute(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a command to its end: the one place where an event loop is started."""
    try:
        code = asyncio.run(work)
    except SpanflowError as error:
        _refuse(error)
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise typer.Exit(code)


def _refuse(error: SpanflowError) -> NoReturn:
    tell(f"error: {error}")
    raise typer.Exit(REFUSED)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spanflow {version('spanflow')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command("runs")
def _runs(
    store: StoreOption = None,
    trace: Annotated[
        str | None, typer.Option(metavar="ID", help="Only the run of this trace: the way back from Jaeger.")
    ] = None,
    status: Annotated[list[Status] | None, typer.Option(help="Only runs of this status; may be repeated.")] = None,
    workflow: Annotated[str | None, typer.Option(metavar="ID", help="Only runs of this workflow.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata", metavar="KEY=VALUE", help="Only runs whose root span carries this; may be repeated."
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Started after: 2026-03-31T14:00, or 2h, 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Started before.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many at most.")] = 20,
    after: Annotated[int | None, typer.Option(metavar="CURSOR", help="The page after this one.")] = None,
    as_json: JsonOption = False,
    schema: SchemaOption = "spanflow",
) -> None:
    """List runs, the newest first.

    \b
    Examples:
      spanflow runs --store runs.db
      spanflow runs --store runs.db --trace 8c0467ea03716c1256ab2a7713c726a0
      spanflow runs --store runs.db --status suspended --metadata user.id=u-42 --since 7d
    """
    try:
        query = RunQuery(
            status=cast("tuple[RunStatus, ...]", tuple(each.value for each in status)) if status else None,
            workflow=workflow,
            trace_id=trace_id(trace),
            started_after=moment("--since", since),
            started_before=moment("--until", until),
            limit=limit,
            after=after,
        )
        work = list_runs(open_store(store, schema), query, metadata(labels or ()), as_json=as_json)
    except SpanflowError as error:
        _refuse(error)
    _execute(work)


@app.command("show")
def _show(
    run_id: RunId,
    store: StoreOption = None,
    events: Annotated[bool, typer.Option("--events", help="Print each event, a line each.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print events as they come, until the run ends or suspends.")
    ] = False,
    as_json: JsonOption = False,
    schema: SchemaOption = "spanflow",
) -> None:
    """Show a run: what it came to or waits for, and its tree. The workflow's code is not needed.

    With --json the run is one document; events, where they are asked for, are lines, each as the store keeps it, and
    all that is printed.

    \b
    Examples:
      spanflow show RUN_ID --store runs.db
      spanflow show RUN_ID --store runs.db --follow      # also one that executes elsewhere
      spanflow show RUN_ID --store runs.db --events --json | jq .type
    """
    try:
        opened = open_store(store, schema)
    except SpanflowError as error:
        _refuse(error)
    _execute(show_run(opened, run_id, events=events, follow=follow, as_json=as_json))


@app.command("resume")
def _resume(
    run_id: RunId,
    answer: Annotated[
        str | None, typer.Argument(metavar="[ANSWER]", help="JSON, as the waiting step wants it; null if left out.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="PATH", help="The step that is answered, where several wait.")
    ] = None,
    app_name: AppOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    schema: SchemaOption = "spanflow",
) -> None:
    """Answer a suspended run and execute it here, until it ends or suspends again.

    A run that lost its process is taken over, where no answer is given. Spans go where the OTEL_* variables say.
    Events are printed to stderr as they come, then the run as `show` prints it.

    \b
    Examples:
      spanflow resume RUN_ID '{"approved": true}' --store runs.db --app shop/refunds.py:refunds
      spanflow resume RUN_ID '"yes"' --step review/approve --store runs.db --app shop.flows:make_runtime
    """
    try:
        told = Answer(json_value("ANSWER", answer), step, given=answer is not None)
        opened = open_store(store, schema)
        runtime = runtime_of(app_name, opened)
        tracing = configure_tracing()
    except SpanflowError as error:
        _refuse(error)
    with tracing:
        _execute(resume_run(runtime, opened, run_id, told, as_json=as_json))


@app.command("replay")
def _replay(
    run_id: RunId,
    step: Annotated[str, typer.Option("--from", metavar="STEP", help="Id or path of a step that the run recorded.")],
    given: Annotated[
        str | None, typer.Option("--input", metavar="JSON", help="What the step is given instead of what it was given.")
    ] = None,
    app_name: AppOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
    schema: SchemaOption = "spanflow",
) -> None:
    """Go back to a step of a run, in a new run that executes here with the code as it is now.

    What came before the step is taken over as recorded. The old run stays as it is; the traces are linked.

    \b
    Examples:
      spanflow replay RUN_ID --from rank --store runs.db --app shop.flows:refunds
      spanflow replay RUN_ID --from 'fetch[3]' --input '{"page": 4}' --store runs.db --app shop.flows:refunds
    """
    try:
        instead = json_value("--input", given)
        opened = open_store(store, schema)
        runtime = runtime_of(app_name, opened)
        tracing = configure_tracing()
    except SpanflowError as error:
        _refuse(error)
    with tracing:
        _execute(replay_run(runtime, opened, run_id, step, instead, as_json=as_json))


@app.command("cancel")
def _cancel(
    run_id: RunId, store: StoreOption = None, as_json: JsonOption = False, schema: SchemaOption = "spanflow"
) -> None:
    """Cancel a run: one that executes, in whichever process, one that waits, and one that lost its process.

    The workflow's code is not needed. The root span of a run that nobody executes is exported from here, to where the
    OTEL_* variables say. Exit code 1 where the run was over already.

    \b
    Examples:
      spanflow cancel RUN_ID --store runs.db
    """
    try:
        opened = open_store(store, schema)
        tracing = configure_tracing()
    except SpanflowError as error:
        _refuse(error)
    with tracing:
        _execute(cancel_run(Runtime(opened), opened, run_id, as_json=as_json))


@app.command("doctor")
def _doctor(
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="OTLP receiver, instead of what OTEL_EXPORTER_OTLP_* says.")
    ] = None,
    protocol: Annotated[OtlpProtocol | None, typer.Option(help="Of OTLP, instead of what the variables say.")] = None,
    traceparent: Annotated[
        str | None, typer.Option(metavar="HEADER", help="Of a request whose run is missed: was it sampled?")
    ] = None,
    app_name: Annotated[
        str | None,
        typer.Option("--app", envvar="SPANFLOW_APP", metavar="MODULE:NAME", help="Look at the provider that it sets."),
    ] = None,
    send: Annotated[bool, typer.Option("--send", help="Send a test span, and print its trace id.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
    schema: SchemaOption = "spanflow",
) -> None:
    """Say why no trace shows up, and what to change: from the OTEL_* variables to what the receiver answers.

    Run it with the variables of the program whose traces are missed. With a store, spans that its last runs lost are
    counted, too. Exit code 1 where something is wrong.

    \b
    Examples:
      spanflow doctor --send
      spanflow doctor --endpoint http://localhost:4317 --protocol grpc --send
      spanflow doctor --traceparent 00-8c0467ea03716c1256ab2a7713c726a0-00f067aa0ba902b7-01
    """
    try:
        opened = open_store(store, schema) if store else None
        checkup = Checkup(endpoint, cast("Protocol | None", protocol and protocol.value), traceparent)
        if app_name:
            import_app(app_name)
    except SpanflowError as error:
        _refuse(error)
    _execute(examine(checkup, opened, send=send, as_json=as_json))
