"""What a run reports: one frozen model per event type, a union discriminated on ``type``.

Lifecycle events are what the journal stores; ``step-output`` and ``tool-call-delta`` are only streamed.
``Event`` is the union; ``parse_event`` reads one back from its JSON.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)

RunStatus = Literal["running", "success", "failed", "suspended", "canceled"]
FinishStatus = Literal["success", "failed", "suspended", "canceled"]
StepStatus = Literal["running", "waiting", "success", "bailed", "failed", "suspended", "canceled"]
ResultStatus = Literal["success", "bailed", "failed", "canceled"]

Ref = str | list[Any] | dict[str, Any]
"""Where a value is already stored, so that it is stored once.

A string is the path of the step whose output it is (``""``: the run's input), with ``:i`` behind it for element ``i``
of that value, and ``path[*]`` for the outputs of all items of a foreach (``path[?]``: as ``Ok`` and ``Err``). A list or
mapping is built of the refs inside it.
"""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    @model_serializer(mode="wrap")
    def _without_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was never given: an event's JSON names only what it has to say."""
        dumped: dict[str, Any] = handler(self)
        return {key: value for key, value in dumped.items() if key in self.model_fields_set or key in self._always}

    _always: ClassVar[frozenset[str]] = frozenset()


class StepError(_Frozen):
    """A failure as data. ``exception`` is the exception itself, where the process still has it."""

    path: str = Field(description="path of the step that failed; the run's own failures have the path of the node")
    type: str = Field(description="class of the exception: bare for builtins, else module and qualified name")
    message: str
    traceback: str = ""
    _exception: BaseException | None = PrivateAttr(default=None)

    @property
    def exception(self) -> BaseException | None:
        return self._exception

    def with_exception(self, exception: BaseException) -> "StepError":
        """Attach the live exception; it is never stored."""
        self._exception = exception
        return self


class Counts(_Frozen):
    """Totals of a run, over all its stretches."""

    steps: int = 0
    tool_calls: int = 0
    retries: int = 0
    spans: int = 0
    spans_dropped: int = Field(default=0, description="lost by the end of the run; what is queued then may yet arrive")
    spans_left_out: int = Field(default=0, description="steps that got none, by TracingOptions(max_step_spans=)")

    _always = frozenset({"steps", "tool_calls", "retries", "spans", "spans_dropped"})


class Resumed(_Frozen):
    """The answer that a stretch begins with."""

    path: str
    data: Any = None


class Travelled(_Frozen):
    """Where a run comes from that ``time_travel`` has made. What it took over follows its ``start``."""

    run_id: str = Field(description="the run that it goes back in")
    path: str = Field(description="the step from which on everything runs anew")
    inputs: dict[str, Any] = Field(default_factory=dict, description="path → the input that a step is given instead")


class LinkedTrace(_Frozen):
    """Where the root span of a resumed stretch is, where that begins a trace of its own. As in ``TraceRecord``."""

    trace_id: str
    span_id: str
    trace_flags: int
    trace_state: str
    started_at: int
    links: tuple[str, ...]


class StartPayload(_Frozen):
    workflow_id: str
    input: Any = None
    metadata: dict[str, Any] = Field(default_factory=lambda: {})
    resumed: Resumed | None = None
    travelled: Travelled | None = None
    linked: LinkedTrace | None = Field(default=None, description="the stretch has a trace of its own: resume='link'")
    recovered: bool = Field(default=False, description="whether the stretch takes over from a process that died")

    _always = frozenset({"metadata"})


class StepStartPayload(_Frozen):
    id: str
    attempt: int
    input: Any = Field(default=None, description="the value; in stored JSON left out in favour of input_ref")
    input_ref: Ref | None = None
    foreach_index: int | None = None
    loop_iteration: int | None = None

    @model_serializer(mode="wrap")
    def _by_reference(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _by_reference(self, handler, "input")


class StepOutputPayload(_Frozen):
    id: str
    output: Any


class ToolCallPayload(_Frozen):
    tool_call_id: str
    tool_name: str
    args: dict[str, Any]


class ToolCallStreamingStartPayload(_Frozen):
    tool_call_id: str
    tool_name: str


class ToolCallDeltaPayload(_Frozen):
    tool_call_id: str
    tool_name: str
    delta: Any


class ToolResultPayload(_Frozen):
    tool_call_id: str
    tool_name: str
    result: Any = None
    error: StepError | None = None


class StepRetryPayload(_Frozen):
    id: str
    attempt: int = Field(description="the attempt that failed")
    error: StepError
    delay: float = Field(description="seconds until the next attempt")


class StepSuspendedPayload(_Frozen):
    id: str
    payload: Any
    resume_type: str | None = Field(default=None, description="the model of the answer, as module:qualified_name")


class StepWaitingPayload(_Frozen):
    id: str
    until: int | None = Field(default=None, description="ns since the epoch")
    event: str | None = None


class StepResultPayload(_Frozen):
    id: str
    status: ResultStatus
    output: Any = None
    output_ref: Ref | None = None
    error: StepError | None = None
    message_id: str | None = Field(default=None, description="the sent event that a wait took")

    @model_serializer(mode="wrap")
    def _by_reference(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _by_reference(self, handler, "output")


class StepFinishPayload(_Frozen):
    id: str
    attempt: int
    duration: float = Field(description="seconds from step-start to step-result of this attempt")


class FinishPayload(_Frozen):
    status: FinishStatus
    result: Any = None
    result_ref: Ref | None = None
    error: StepError | None = None
    suspended: dict[str, Any] = Field(default_factory=dict, description="path → payload of each step that waits")
    duration: float = Field(description="seconds since the run started, waiting included")
    counts: Counts

    @model_serializer(mode="wrap")
    def _by_reference(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _by_reference(self, handler, "result")


class Changes(_Frozen):
    """What user code decided or changed since the event before; stored with the first event that follows from it."""

    decisions: dict[str, Any] = Field(default_factory=dict, description="path of a condition → what it returned")
    state: dict[str, dict[str, Any]] = Field(default_factory=dict, description="path of a workflow → fields it set")
    by: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="as state: path of the step that set it, where that is not the event's own"
    )


def leave_out_own(changes: dict[str, Any], path: str) -> None:
    """Let the changes of an event name who changed the state only where it was not the step whose event it is."""
    by: dict[str, dict[str, str]] = changes.pop("by", {})
    others = {scope: {name: who for name, who in names.items() if who != path} for scope, names in by.items()}
    if any(others.values()):
        changes["by"] = {scope: names for scope, names in others.items() if names}


class Envelope(_Frozen):
    """What all events have in common."""

    lifecycle: ClassVar[bool] = True

    run_id: str
    seq: int = Field(description="1, 2, 3 … for lifecycle events; a delta carries that of the event before it")
    timestamp: int = Field(description="ns since the epoch, on the clock of the spans")
    trace_id: str | None = None
    span_id: str | None = None
    path: str = ""
    changes: Changes | None = None

    _always = frozenset({"type", "trace_id", "span_id", "path"})


class Start(Envelope):
    """The run has started, or a stretch of it has begun with an answer (``payload.resumed``)."""

    type: Literal["start"] = "start"
    payload: StartPayload


class StepStart(Envelope):
    """An attempt of a step, or a nested run or foreach, has started."""

    type: Literal["step-start"] = "step-start"
    payload: StepStartPayload


class StepOutput(Envelope):
    """What ``ctx.emit`` was given. A delta: only streamed."""

    lifecycle = False
    type: Literal["step-output"] = "step-output"
    payload: StepOutputPayload


class ToolCall(Envelope):
    """A tool is called."""

    type: Literal["tool-call"] = "tool-call"
    payload: ToolCallPayload


class ToolCallStreamingStart(Envelope):
    """A tool begins to stream its output, or a model the arguments of a call."""

    type: Literal["tool-call-streaming-start"] = "tool-call-streaming-start"
    payload: ToolCallStreamingStartPayload


class ToolCallDelta(Envelope):
    """A piece of a tool's output, or of the argument text of a model's call. A delta: only streamed."""

    lifecycle = False
    type: Literal["tool-call-delta"] = "tool-call-delta"
    payload: ToolCallDeltaPayload


class ToolResultEvent(Envelope):
    """A tool call is over."""

    type: Literal["tool-result"] = "tool-result"
    payload: ToolResultPayload


class StepRetry(Envelope):
    """An attempt failed and another one follows after the delay."""

    type: Literal["step-retry"] = "step-retry"
    payload: StepRetryPayload


class StepSuspended(Envelope):
    """A step waits for an answer."""

    type: Literal["step-suspended"] = "step-suspended"
    payload: StepSuspendedPayload


class StepWaiting(Envelope):
    """A sleep or a wait for an event has begun."""

    type: Literal["step-waiting"] = "step-waiting"
    payload: StepWaitingPayload


class StepResultEvent(Envelope):
    """A step has its result."""

    type: Literal["step-result"] = "step-result"
    payload: StepResultPayload


class StepFinish(Envelope):
    """A step is over; always right after its result."""

    type: Literal["step-finish"] = "step-finish"
    payload: StepFinishPayload


class Finish(Envelope):
    """The run has ended, or suspended. The last event of every stream."""

    type: Literal["finish"] = "finish"
    payload: FinishPayload


Event = Annotated[
    Start
    | StepStart
    | StepOutput
    | ToolCall
    | ToolCallStreamingStart
    | ToolCallDelta
    | ToolResultEvent
    | StepRetry
    | StepSuspended
    | StepWaiting
    | StepResultEvent
    | StepFinish
    | Finish,
    Field(discriminator="type"),
]

_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(data: str | bytes | Mapping[str, Any]) -> Event:
    """Read an event back from its JSON, or from the mapping that the JSON holds.

    Raises:
        pydantic.ValidationError: it is no event.
    """
    if isinstance(data, (str, bytes)):
        return _ADAPTER.validate_json(data)
    return _ADAPTER.validate_python(data)


def _by_reference(payload: BaseModel, handler: SerializerFunctionWrapHandler, name: str) -> dict[str, Any]:
    given = payload.model_fields_set
    dumped: dict[str, Any] = handler(payload)
    by_reference = dumped.get(f"{name}_ref") is not None
    return {key: value for key, value in dumped.items() if key in given and not (by_reference and key == name)}
