"""The application's own provider is used as it is: its sampler, limits, ids, resource and processors hold for us."""

from typing import Any

from tests.tracing_contract.processes import in_process

SETUP = """
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import RandomIdGenerator, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, Sampler, SamplingResult, StaticSampler
from spanflow import StepContext, TracingOptions, Workflow, step
from tests.tracing_contract.scenario import everything, run_everything, tax

memory = InMemorySpanExporter()

def use(provider):
    provider.add_span_processor(SimpleSpanProcessor(memory))
    trace.set_tracer_provider(provider)

async def main(options=None):
    return await run_everything(await everything.create_run(), options)

def names():
    return sorted({span.name for span in memory.get_finished_spans()})
"""


def shown(script: str) -> dict[str, Any]:
    return in_process(SETUP + script).facts


def test_processors_see_each_span_start_below_its_parent_and_in_the_callers_context() -> None:
    facts = shown("""
class Watching(SpanProcessor):
    def __init__(self):
        self.seen = []

    def on_start(self, span, parent_context=None):
        above = trace.get_current_span(parent_context)
        self.seen.append(
            dict(
                name=span.name,
                above=getattr(above, "name", None),
                same=span.parent is None or span.parent.span_id == above.get_span_context().span_id,
                baggage=baggage.get_baggage("tenant", parent_context),
                attributes=len(span.attributes),
            )
        )
        span.set_attribute("added", True)

watching = Watching()
provider = TracerProvider()
provider.add_span_processor(watching)
use(provider)
context.attach(baggage.set_baggage("tenant", "acme"))

@step
async def work(value: int) -> int:
    with trace.get_tracer("user").start_as_current_span("mine"):
        return value

async def main():
    nested = Workflow("inner", input=int).then(work)
    await (await Workflow("outer", input=int).then(nested).create_run()).start(1)

asyncio.run(main())
show(seen=watching.seen, added=[span.attributes.get("added") for span in memory.get_finished_spans()])
""")
    seen = facts["seen"]
    assert [(each["name"], each["above"]) for each in seen] == [
        ("invoke_workflow outer", None),
        ("invoke_workflow inner", "invoke_workflow outer"),
        ("step work", "invoke_workflow inner"),
        ("mine", "step work"),
    ]
    assert all(each["same"] for each in seen)
    assert {each["baggage"] for each in seen} == {"acme"}
    assert facts["added"] == [True] * 4


def test_limits_of_the_provider_hold() -> None:
    facts = shown("""
use(TracerProvider(span_limits=SpanLimits(max_span_attributes=6, max_span_attribute_length=5)))
options = TracingOptions(metadata={f"key {number}": "abcdefghi" for number in range(20)})
asyncio.run(main(options))
show(
    most=max(len(span.attributes) for span in memory.get_finished_spans()),
    longest=max(len(v) for s in memory.get_finished_spans() for v in s.attributes.values() if isinstance(v, str)),
    dropped=max(span.dropped_attributes for span in memory.get_finished_spans()),
)
""")
    assert (facts["most"], facts["longest"]) == (6, 5)
    assert facts["dropped"] >= 18


def test_all_spans_have_the_resource_of_the_provider_and_the_scope_of_ours() -> None:
    facts = shown("""
use(TracerProvider(resource=Resource({"service.name": "shop"})))
asyncio.run(main())
spans = memory.get_finished_spans()
show(
    services=sorted({span.resource.attributes["service.name"] for span in spans}),
    scopes=sorted({span.instrumentation_scope.name for span in spans}),
    flags=sorted({int(span.context.trace_flags) & 1 for span in spans}),
    random=len({int(span.context.trace_flags) for span in spans}),
)
""")
    assert facts == {"services": ["shop"], "scopes": ["spanflow"], "flags": [1], "random": 1}


def test_ids_of_the_applications_own_spans_come_from_its_own_generator() -> None:
    facts = shown("""
class Counting(RandomIdGenerator):
    def __init__(self):
        self.last = 0

    def generate_span_id(self):
        self.last += 1
        return self.last

provider = TracerProvider(id_generator=Counting())
use(provider)

@step
async def work(value: int) -> int:
    with provider.get_tracer("user").start_as_current_span("mine"):
        with provider.get_tracer("spanflow").start_as_current_span("mine, under your name"):
            return value

async def main():
    await (await Workflow("shop", input=int).then(work).then(tax).create_run()).start(1)

asyncio.run(main())
show(ids={span.name: span.context.span_id for span in memory.get_finished_spans()})
""")
    ids = facts["ids"]
    assert (ids["mine"], ids["mine, under your name"]) == (1, 2)
    assert min(ids["invoke_workflow shop"], ids["step work"], ids["step tax"]) > 1000


def test_a_sampler_that_refines_the_default_one_is_asked_for_every_span() -> None:
    facts = shown("""
class Refined(ParentBased):
    "Inherits the description of ParentBased, as most such samplers do."

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        if name == "execute_tool price_of":
            return SamplingResult(Decision.DROP)
        return super().should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

use(TracerProvider(Refined(ALWAYS_ON)))
asyncio.run(main())
show(names=names())
""")
    assert "execute_tool spell" in facts["names"]
    assert "execute_tool price_of" not in facts["names"]


def test_a_sampler_that_refines_the_default_one_for_roots_is_asked_for_every_run() -> None:
    facts = shown("""
class Nothing(StaticSampler):
    "Inherits the description of a sampler that keeps all."

    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        return SamplingResult(Decision.DROP)

use(TracerProvider(ParentBased(Nothing(Decision.RECORD_AND_SAMPLE))))
asyncio.run(main())
show(names=names())
""")
    assert facts["names"] == []


def test_the_root_of_a_run_stands_in_its_trace_as_one_of_the_sdk_does() -> None:
    facts = shown("""
class Counting(RandomIdGenerator):
    traces = 0

    def generate_trace_id(self):
        self.traces += 1
        return self.traces

def described(span):
    found = span.get_span_context()
    return [hex(found.trace_id), int(found.trace_flags), found.trace_state.to_header(), found.is_remote, span.parent]

use(TracerProvider(id_generator=Counting()))
trace.get_tracer("user").start_span("by hand").end()

async def main():
    await (await Workflow("shop", input=int).then(tax).create_run()).start(1)

asyncio.run(main())
by_hand, _, root = memory.get_finished_spans()
show(by_hand=described(by_hand), root=described(root), scope=root.instrumentation_scope.name)
""")
    assert facts["scope"] == "spanflow"
    assert facts["by_hand"][0] == "0x1"
    assert facts["root"] == ["0x2", *facts["by_hand"][1:]]


def test_what_a_sampler_adds_is_kept_on_every_span_it_added_it_to() -> None:
    facts = shown("""
class Adding(Sampler):
    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {**(attributes or {}), "sampled.by": "us"})

    def get_description(self):
        return "adding"

use(TracerProvider(Adding()))

async def main():
    await (await Workflow("shop", input=int).then(tax).create_run()).start(1)

asyncio.run(main())
show(added=[span.attributes.get("sampled.by") for span in memory.get_finished_spans()])
""")
    assert facts["added"] == ["us", "us"]


def test_a_run_that_is_recorded_but_not_sampled_exports_nothing() -> None:
    facts = shown("""
class RecordOnly(Sampler):
    def should_sample(self, parent_context, trace_id, name, kind=None, attributes=None, links=None, trace_state=None):
        return SamplingResult(Decision.RECORD_ONLY, attributes)

    def get_description(self):
        return "record only"

use(TracerProvider(ParentBased(RecordOnly())))
events, result = asyncio.run(main())
show(names=names(), status=result.status, traced=result.trace_id is not None)
""")
    assert facts == {"names": [], "status": "success", "traced": True}


def test_a_processor_that_is_added_later_gets_the_spans_of_the_next_run() -> None:
    facts = shown("""
provider = TracerProvider()
trace.set_tracer_provider(provider)
asyncio.run(main())
provider.add_span_processor(SimpleSpanProcessor(memory))
asyncio.run(main())
show(roots=[span.name for span in memory.get_finished_spans()].count("invoke_workflow everything"))
""")
    assert facts["roots"] == 1


def test_a_provider_that_is_set_after_the_first_run_traces_the_next() -> None:
    facts = shown("""
before = asyncio.run(main())[1].trace_id
use(TracerProvider())
after = asyncio.run(main())[1].trace_id
show(before=before, after=after, names=len(names()))
""")
    assert facts["before"] is None
    assert facts["after"] is not None
    assert facts["names"] > 15


def test_runs_go_on_after_the_provider_was_shut_down() -> None:
    facts = shown("""
provider = TracerProvider()
use(provider)
asyncio.run(main())
memory.clear()
provider.shutdown()
events, result = asyncio.run(main())
show(status=result.status, result=result.result)
""")
    assert facts == {"status": "success", "result": 7}
