"""Ask Jaeger what a person asks on its page: which traces there are, and what is in one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from opentelemetry.trace import Link, SpanContext, Status, StatusCode, TraceFlags

from spanflow.tracing.tree import render

_WARNINGS = "@jaeger@warnings"  # where Jaeger keeps what it finds odd about a span
_ALWAYS = ("2026-01-01T00:00:00Z", "2100-01-01T00:00:00Z")
_AT_MOST = 1000  # traces

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FoundEvent:
    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class FoundSpan:
    """A span as Jaeger gives it back. Times are ns since the epoch; it can be drawn as the SDK's own."""

    name: str
    kind: int
    context: SpanContext
    parent: SpanContext | None
    start_time: int
    end_time: int
    attributes: Mapping[str, Any]
    status: Status
    links: Sequence[Link]
    events: Sequence[FoundEvent]
    resource: Mapping[str, Any]
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class FoundTrace:
    """All spans of a trace."""

    spans: Sequence[FoundSpan]

    def tree(self, *, times: bool = False) -> str:
        return render(self.spans, times=times)

    def named(self, name: str) -> list[FoundSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> FoundSpan:
        (found,) = self.named(name)
        return found

    def problems(self) -> list[str]:
        """Tell what Jaeger's page would warn of, and what else a whole trace must not have."""
        ids = [span.context.span_id for span in self.spans]
        by_id = {span.context.span_id: span for span in self.spans}
        found = [f"{span.name}: {warning}" for span in self.spans for warning in span.warnings]
        found += [
            f"{by_id[each].name}: the id is there {ids.count(each)} times" for each in by_id if ids.count(each) > 1
        ]
        found += [
            f"{span.name}: its parent is missing"
            for span in self.spans
            if span.parent is not None and span.parent.span_id not in by_id
        ]
        for span in self.spans:
            above = by_id.get(span.parent.span_id) if span.parent is not None else None
            if above is not None and not above.start_time <= span.start_time <= span.end_time <= above.end_time:
                found.append(f"{span.name}: it is not within the time of {above.name}")
        roots = [span.name for span in self.spans if span.parent is None]
        return found if len(roots) == 1 else [*found, f"the roots are {roots}"]


class Search:
    """The query API of a Jaeger.

    It is the current one, ``/api/v3``. Up to 2.13 that one passes over the attributes that are asked for; there, the
    older ``/api/traces`` is asked, which releases after 2.20 do not have.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def services(self) -> set[str]:
        return set(self._get("/api/v3/services").get("services", ()))

    def trace(self, trace_id: str, *, raw: bool = False) -> FoundTrace:
        """Return the spans of a trace, none where there is no such trace.

        ``raw`` leaves out Jaeger's own judgement. In memory, 2.13 keeps that with the spans, so that a parent that was
        missing once is missed for ever: look at a trace that is still growing with ``raw``.
        """
        return FoundTrace(_spans_of(self._get(f"/api/v3/traces/{trace_id}", {"raw_traces": str(raw).lower()})))

    def find(
        self,
        service: str,
        attributes: Mapping[str, str] | None = None,
        *,
        name: str = "",
        between: tuple[str, str] = _ALWAYS,
    ) -> set[str]:
        """Return the ids of the traces that have a span of this service with these attributes.

        Args:
            service: its ``service.name``.
            attributes: all of them must be on one span.
            name: of that span.
            between: when it started, both by RFC 3339.
        """
        asked = {"query.service_name": service, "query.num_traces": str(_AT_MOST), "query.raw_traces": "true"}
        asked |= {"query.start_time_min": between[0], "query.start_time_max": between[1]}
        if name:
            asked["query.operation_name"] = name
        if attributes and not self._knows_attributes(asked):
            assert between == _ALWAYS, "not asked for yet where /api/v3 does not know attributes"
            older = {
                "service": service,
                "tags": json.dumps(attributes),
                "limit": str(_AT_MOST),
                "lookback": "48h",
                "raw": "true",
            }
            found = self._get("/api/traces", older | ({"operation": name} if name else {}))
            return {str(each["traceID"]).rjust(32, "0") for each in found["data"]}
        if attributes:
            asked["query.attributes"] = json.dumps(attributes)
        return {format(span.context.trace_id, "032x") for span in _spans_of(self._get("/api/v3/traces", asked))}

    def _knows_attributes(self, asked: Mapping[str, str]) -> bool:
        """Tell whether attributes are read: then what cannot be read is refused."""
        try:
            self._get("/api/v3/traces", {**asked, "query.attributes": "{"})
        except HTTPError as refused:
            return refused.code == 400
        return False

    def _get(self, path: str, asked: Mapping[str, str] | None = None) -> Json:
        try:
            return json.loads(fetch(f"{self._url}{path}?{urlencode(asked or {})}"))
        except HTTPError as answer:
            if answer.code == 404:  # nothing found
                return {}
            raise


def fetch(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=20) as answer:
        return answer.read().decode()


# ---------------------------------------------------------------- OTLP as JSON


def _spans_of(answer: Json) -> list[FoundSpan]:
    return [
        _span(span, _attributes(group.get("resource", {})))
        for group in answer.get("result", {}).get("resourceSpans", ())
        for scope in group["scopeSpans"]
        for span in scope["spans"]
    ]


def _span(span: Json, resource: Mapping[str, Any]) -> FoundSpan:
    attributes, status = _attributes(span), span.get("status", {})
    warnings = attributes.pop(_WARNINGS, ())
    return FoundSpan(
        name=span["name"],
        kind=span["kind"],
        context=_context(span["traceId"], span["spanId"]),
        parent=_context(span["traceId"], span["parentSpanId"]) if span.get("parentSpanId") else None,
        start_time=int(span["startTimeUnixNano"]),
        end_time=int(span["endTimeUnixNano"]),
        attributes=attributes,
        status=Status(StatusCode.ERROR, status.get("message")) if status.get("code") == 2 else Status(),
        links=[Link(_context(link["traceId"], link["spanId"])) for link in span.get("links", ())],
        events=[FoundEvent(event["name"], _attributes(event)) for event in span.get("events", ())],
        resource=resource,
        warnings=warnings,
    )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), False, TraceFlags(TraceFlags.SAMPLED))


def _attributes(holder: Json) -> dict[str, Any]:
    return {pair["key"]: _value(pair["value"]) for pair in holder.get("attributes", ())}


def _value(value: Json) -> Any:
    ((kind, content),) = value.items()
    match kind:
        case "intValue":
            return int(content)
        case "arrayValue":
            return [_value(each) for each in content.get("values", ())]
        case "kvlistValue":
            return _attributes({"attributes": content.get("values", ())})
        case _:
            return content
