"""MLflow's review queue: a person is asked whether disputed answers are right; what they answer becomes labels in data/labels.

The queue and its question are the experiment's, made once. An answer is an assessment of a trace; it is kept as a label of
the answer that the trace shows, under the reviewer's name. A server without accounts knows no names: its answers are those of
the person whom git knows here. The later of two answers of one person counts, wherever it was given.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.core import labels as texts
from tasks.project import labels
from tasks.views.record._examples import DISPUTED
from tasks.views.record._models import pages

QUEUE = "Disputed verdicts"
QUESTION = "label"
INSTRUCTION = "Is the answer right? Judges of the round disagree about it; the full trace shows their verdicts."
RIGHT, WRONG = "right", "wrong"
KEPT = "kept_answers"
"""Tag of a trace with the time of the answer that was kept of each person, as JSON."""
NOBODY = ("", "default", "unknown")
"""Reviewers of a server without accounts."""


class Review:
    """The review queue of an experiment."""

    def __init__(self, client: Any, experiment: str) -> None:
        self.client, self.store, self.experiment = client, client.store, experiment

    def ask(self, traces: list[str]) -> None:
        """Puts traces into the queue, each once."""
        if traces:
            self.store.add_items_to_review_queue(self._queue().queue_id, item_ids=traces)

    def _queue(self) -> Any:
        queues = pages(lambda token: self.store.list_review_queues(self.experiment, page_token=token))
        known = next((q for q in queues if q.name == QUEUE), None)
        return known or self.store.create_review_queue(
            self.experiment, name=QUEUE, queue_type="custom", created_by="flywheel", schema_ids=[self._question()]
        )

    def _question(self) -> str:
        from mlflow.genai.label_schemas import InputPassFail, LabelSchemaType

        known = pages(lambda token: self.store.list_label_schemas(self.experiment, page_token=token))
        question = next((s for s in known if s.name == QUESTION), None) or self.store.create_label_schema(
            self.experiment,
            name=QUESTION,
            type=LabelSchemaType.FEEDBACK,
            input=InputPassFail(RIGHT, WRONG),
            instruction=INSTRUCTION,
            enable_comment=True,
        )
        return str(question.schema_id)

    def answers(self) -> list[tuple[Any, Any]]:
        """The people's answers, the earliest first: the trace, and the assessment."""
        traces = pages(
            lambda token: self.client.search_traces(
                locations=[self.experiment],
                filter_string=f"feedback.{QUESTION} IS NOT NULL AND tags.kind = '{DISPUTED}'",
                include_spans=False,
                max_results=500,
                page_token=token,
            )
        )
        answers = [
            (trace.info, assessment)
            for trace in traces
            for assessment in trace.info.assessments
            if assessment.name == QUESTION
            and assessment.source.source_type == "HUMAN"
            and assessment.valid is not False
        ]
        return sorted(answers, key=lambda answer: answer[1].last_update_time_ms)


def keep_answers(root: Path, review: Review) -> int:
    """Writes people's answers to data/labels; returns how many are new. The trace says which were kept: a label that its person
    removed since does not come back.
    """
    known = {label.key: label for label in texts.read(root / texts.FOLDER)}
    here = labels.person(root)
    count = 0
    for trace, answer in review.answers():
        tags = trace.tags
        person = here if answer.source.source_id in NOBODY else answer.source.source_id
        given = datetime.fromtimestamp(answer.last_update_time_ms / 1000, UTC).isoformat(timespec="milliseconds")
        key = (tags["round"], "responses", tags["response_id"], person)
        kept = json.loads(tags.get(KEPT, "{}"))
        if kept.get(person, "") >= given or (key in known and known[key].time >= given):
            continue
        label = labels.write(
            root,
            person,
            round=tags["round"],
            source="responses",
            id=tags["response_id"],
            prompt_id=tags["prompt_id"],
            digest=tags["text_digest"],
            label=RIGHT if answer.value else WRONG,
            note=answer.rationale or "",
            time=given,
        )
        if label:
            tags[KEPT] = json.dumps(kept | {person: given})
            review.client.set_trace_tag(trace.trace_id, KEPT, tags[KEPT])
            known[key] = label
            count += 1
    return count
