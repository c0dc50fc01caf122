"""Examples as MLflow traces with assessments, each once."""

import base64
import hashlib
import json
import re
from typing import Any

from tasks.views.record._examples import Example
from tasks.views.record._models import pages

MAX_TEXT, MAX_PREVIEW = 20_000, 1_000
"""Characters of a text in a trace, and in the table of traces."""


class Traces:
    """The traces of an experiment."""

    def __init__(self, uri: str, experiment: str) -> None:
        from mlflow.tracing.client import TracingClient

        self.client, self.experiment = TracingClient(uri), experiment

    def log(self, run: str, model: str | None, key: str, examples: list[Example], time: int) -> list[str]:
        """Logs examples of a run as traces of a call at `time` (milliseconds since 1970); returns their ids, which follow from
        run, `key` and example. Those that a kill left are completed, and none is doubled.
        """
        known = {
            trace.info.trace_id
            for trace in pages(
                lambda token: self.client.search_traces(
                    locations=[self.experiment], run_id=run, include_spans=False, max_results=500, page_token=token
                )
            )
        }
        ids = [f"tr-{_hash(run, key, example.key, 32)}" for example in examples]
        for id, example in zip(ids, examples, strict=True):
            if id not in known:
                self.client.start_trace(self._info(id, run, model, example, time))
        self.client.log_spans(
            self.experiment, [s for i, e in zip(ids, examples, strict=True) for s in _spans(i, e, time)]
        )
        return ids

    def _info(self, id: str, run: str, model: str | None, example: Example, time: int) -> Any:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState
        from mlflow.tracing.constant import TraceMetadataKey, TraceTagKey

        metadata = {TraceMetadataKey.SOURCE_RUN: run} | ({TraceMetadataKey.MODEL_ID: model} if model else {})
        return TraceInfo(
            trace_id=id,
            trace_location=TraceLocation.from_experiment_id(self.experiment),
            request_time=time,
            execution_duration=0,
            state=TraceState.OK,
            request_preview=_preview(example.problem),
            response_preview=_preview(_last(example)),
            trace_metadata=metadata,
            tags={TraceTagKey.TRACE_NAME: example.title, "kind": example.kind, **example.tags},
            assessments=[_assessment(id, verdict, time) for verdict in example.verdicts],
        )


def _assessment(trace: str, verdict: Any, time: int) -> Any:
    from mlflow.entities import AssessmentSource, Feedback

    source = AssessmentSource("LLM_JUDGE" if verdict.is_model else "CODE", verdict.source)
    rationale = None if verdict.rationale is None else _clipped(verdict.rationale)
    return Feedback(
        verdict.name, verdict.value, source=source, trace_id=trace, rationale=rationale, create_time_ms=time,
        last_update_time_ms=time,
    )  # fmt: skip


def _spans(trace: str, example: Example, time: int) -> list[Any]:
    """The problem with the last answer, and a span below it for each who answered."""
    root = _hash(trace, "root", "", 16)
    spans = [_span(trace, root, None, example.title, "CHAIN", example.problem, _last(example), time)]
    for name, answer in example.answers.items():
        own = _hash(trace, "answer", name, 16)
        spans.append(_span(trace, own, root, f"answer of {name}", "LLM", example.problem, answer, time))
    return spans


def _span(
    trace: str, id: str, parent: str | None, name: str, kind: str, problem: str, answer: str | None, time: int
) -> Any:
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey

    messages = {"messages": [{"role": "user", "content": _verbatim(problem)}]}
    choice = {"choices": [{"message": {"role": "assistant", "content": _verbatim(answer or "")}}]}
    attributes = {
        SpanAttributeKey.REQUEST_ID: trace,
        SpanAttributeKey.SPAN_TYPE: kind,
        SpanAttributeKey.INPUTS: messages,
        SpanAttributeKey.OUTPUTS: choice,
    }
    nanoseconds = time * 1_000_000
    return Span.from_dict(
        {
            "trace_id": _base64(trace.removeprefix("tr-")),
            "span_id": _base64(id),
            "parent_span_id": _base64(parent or ""),
            "name": name,
            "start_time_unix_nano": nanoseconds,
            "end_time_unix_nano": nanoseconds,
            "status": {"code": "STATUS_CODE_OK"},
            "attributes": {key: json.dumps(value) for key, value in attributes.items()},
            "events": [],
        }
    )


def _base64(id: str) -> str:
    return base64.b64encode(bytes.fromhex(id)).decode()


def _last(example: Example) -> str:
    return list(example.answers.values())[-1] or ""


def _verbatim(text: str) -> str:
    """A text that MLflow's page, which renders Markdown, shows as it is: its line breaks, and no picture or link."""
    clipped = _clipped(text)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", clipped)), default=0))
    return f"{fence}text\n{clipped}\n{fence}"


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} … ({len(text) - MAX_TEXT:,} characters more)"


def _preview(text: str) -> str:
    """The start of a text as Markdown, as which the page of a review shows it: with its line breaks, without pictures from
    elsewhere, and without what a database does not take.
    """
    plain = text[:MAX_PREVIEW].replace("\0", "\N{REPLACEMENT CHARACTER}").replace("![", "!\\[")
    return plain.replace("\n", "  \n")[:MAX_PREVIEW]


def _hash(*parts: Any) -> str:
    *texts, length = parts
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:length]
