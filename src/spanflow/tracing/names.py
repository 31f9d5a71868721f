"""Names of spans, attributes and metrics.

``gen_ai.*``, ``user.id``, ``session.id`` and ``error.type`` are OpenTelemetry's semantic conventions (GenAI: status
Development); there is no convention for steps, so these are ours, under ``spanflow.``.
"""

SCOPE = "spanflow"

OPERATION = "gen_ai.operation.name"
WORKFLOW_NAME = "gen_ai.workflow.name"
TOOL_NAME = "gen_ai.tool.name"
TOOL_TYPE = "gen_ai.tool.type"
TOOL_CALL_ID = "gen_ai.tool.call.id"
TOOL_DESCRIPTION = "gen_ai.tool.description"
TOOL_ARGUMENTS = "gen_ai.tool.call.arguments"
TOOL_RESULT = "gen_ai.tool.call.result"

USER_ID = "user.id"
SESSION_ID = "session.id"
ERROR_TYPE = "error.type"

RUN_ID = "spanflow.run.id"
RUN_STATUS = "spanflow.run.status"
RUN_INPUT = "spanflow.run.input"
RUN_OUTPUT = "spanflow.run.output"
TAGS = "spanflow.tags"
TRAVELLED_RUN_ID = "spanflow.travelled.run.id"
TRAVELLED_PATH = "spanflow.travelled.step.path"

STEP_ID = "spanflow.step.id"
STEP_PATH = "spanflow.step.path"
STEP_ATTEMPT = "spanflow.step.attempt"
STEP_STATUS = "spanflow.step.status"
STEP_INPUT = "spanflow.step.input"
STEP_OUTPUT = "spanflow.step.output"
FOREACH_INDEX = "spanflow.foreach.index"
LOOP_ITERATION = "spanflow.loop.iteration"
BRANCH_ARM = "spanflow.branch.arm"
SUCCEEDED = "spanflow.succeeded"
FAILED = "spanflow.failed"
SPANS_LEFT_OUT = "spanflow.spans.left_out"
WAIT_REASON = "spanflow.wait.reason"
EVENT_NAME = "spanflow.event.name"

RUN_STARTED = "run.started"

WORKFLOW_DURATION = "gen_ai.invoke_workflow.duration"
TOOL_DURATION = "gen_ai.execute_tool.duration"
STEP_DURATION = "spanflow.step.duration"
RUNS_ACTIVE = "spanflow.runs.active"
SPANS_DROPPED = "spanflow.spans.dropped"
DROP_REASON = "spanflow.drop.reason"
