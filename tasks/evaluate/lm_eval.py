"""Benchmarks of lm-evaluation-harness, through the installed library."""

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.core import frames, tables
from tasks.core.errors import FlywheelError
from tasks.core.ids import content_id
from tasks.core.stage import Ability, Result
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import Row, eval_row
from tasks.evaluate._measures import Measure, Z, measures_frame, proportion

if TYPE_CHECKING:
    from tasks.evaluate._harness import ChatModel

MISSING = "evaluate.lm_eval wants lm-evaluation-harness, which is not installed: pip install 'flywheel[lm-eval]'"


class LmEval(Evaluation):
    """Runs tasks of lm-evaluation-harness (Gao et al. 2023, zenodo.10256836; Biderman et al. 2024, arXiv:2405.14782): its
    data, prompts, answer extraction and metrics, on this project's engines and request cache. Prompts are put as chats with
    few-shot examples as earlier turns, as with the harness's `--apply_chat_template --fewshot_as_multiturn`.

    Measures: `lm_eval/<task>/<metric>` with the normal interval of the harness's standard error, which is
    `lm_eval/<task>/<metric>_stderr`; where a task has several filters, `lm_eval/<task>/<metric>/<filter>`; groups likewise.
    `lm_eval/<task>/version` and `/num_fewshot` say which task it was; `lm_eval/<task>/errors` is the share of items that the
    engine failed on, which count in nothing else. Rows of `evals` have the task as `split`, and as `score` its first metric.
    Prompts of the rounds are not screened against these items. Data of the hub are fetched when the stage runs and not
    pinned, unless the task's `dataset_kwargs` has a `revision`.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"tasks": ["gsm8k"], "limit": 8}

    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, groups or tags, such as `gsm8k`; `lm-eval ls tasks` lists those of the harness."""
    files: tuple[Path, ...] = ()
    """Files of tasks of your own, below `data/seeds`: their YAMLs, the data that these name, and what they include. Paths in
    a YAML's `data_files` start at the project's folder."""
    num_fewshot: NonNegativeInt | None = None
    """Solved examples before each item; null leaves it to the task. A task that says 0 has none."""
    limit: PositiveInt | None = None
    """Items of each task: the first ones. Null takes all."""
    max_tokens: PositiveInt = 256
    """Longest answer, where the task does not say."""

    def __call__(self, case: EvaluateCase) -> Result:
        """Rows of `evals` and the measures.

        Raises:
            FlywheelError: when the harness is not installed, or a task cannot be run.
        """
        try:
            from tasks.evaluate import _harness
        except ModuleNotFoundError as error:
            if error.name != "lm_eval":
                raise
            raise FlywheelError(MISSING) from error
        harness = _harness.load(self.tasks, self.files, self.num_fewshot, case.seed % 2**32)
        with case.open() as policy:
            model = _harness.ChatModel(policy, case.models.engine("model").scores, case.seed, self.max_tokens)
            results = harness.run(model, self.limit)
            rows = eval_rows(policy.digest, results.get("samples", {}), model)
        measures = [*harness_measures(results), *_errors(model)]
        return Result({"evals": frames.frame(tables.evals, rows), "measures": measures_frame(measures)})


def harness_measures(results: dict[str, Any]) -> list[Measure]:
    """Every metric of the harness's `results`, and the version and number of examples of each task.

    The harness names a metric `metric,filter` and its standard error `metric_stderr,filter`, `N/A` where it has none.
    """
    measures = []
    for task, values in results.get("results", {}).items():
        metrics = [k.split(",", 1) for k in values if "," in k and "_stderr," not in k]
        filters = {kind for _, kind in metrics}
        count = values.get("sample_len") or results["n-samples"].get(task, {}).get("effective", 0)
        for metric, kind in metrics:
            value, error = values[f"{metric},{kind}"], values.get(f"{metric}_stderr,{kind}")
            if not _is_number(value):
                continue
            name, of = f"lm_eval/{task}/{metric}", f"/{kind}" if len(filters) > 1 else ""
            half = Z * error if _is_number(error) else None
            low, high = (None, None) if half is None else (value - half, value + half)
            measures.append(Measure(f"{name}{of}", None, float(value), low, high, count))
            if half is not None:
                measures.append(Measure(f"{name}_stderr{of}", None, float(error), count=count))
        facts = {"version": results["versions"].get(task), "num_fewshot": results["n-shot"].get(task)}
        measures += [
            Measure(f"lm_eval/{task}/{k}", None, float(v), count=count) for k, v in facts.items() if _is_number(v)
        ]
    return measures


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _errors(model: "ChatModel") -> list[Measure]:
    tasks = sorted({task for task, _ in model.asked})
    shares = [
        proportion(f"lm_eval/{t}/errors", None, [i in model.errors for i in sorted(model.asked) if i[0] == t])
        for t in tasks
    ]
    return [m for m in shares if m]


def eval_rows(digest: str, samples: dict[str, list[dict[str, Any]]], model: "ChatModel") -> list[Row]:
    """A row for each item: the answer and what the task's first metric says of it after the first filter, or the error."""
    rows = []
    for task, of in sorted(samples.items()):
        first = of[0]["filter"] if of else None
        for sample in of:
            if sample["filter"] == first:
                chat = model.asked[task, sample["doc_id"]].chat
                rows.append((task, sample["doc_id"], {"problem": chat[-1][1], **_answered(sample)}))
    rows += [(t, n, {"problem": model.asked[t, n].chat[-1][1], "error": e}) for (t, n), e in model.errors.items()]
    seen: Counter[str] = Counter()
    made = []
    for task, number, row in sorted(rows, key=lambda r: r[:2]):
        asked = model.asked[task, number]
        item = content_id("item", "lm_eval", task, asked.chat, asked.argument)
        mode = "sampled" if asked.is_drawn else "greedy"
        made.append(eval_row(digest, task, mode, seen[item], {"item": item, **row}))
        seen[item] += 1
    return made


def _answered(sample: dict[str, Any]) -> Row:
    """Response, answer and score of an item. The response to a choice is the choice that is likeliest; where the harness
    asks only for the likelihood of a given text there is none.
    """
    value = next((sample[m] for m in sample["metrics"]), None)
    score = float(value) if _is_number(value) and 0 <= value <= 1 else None
    row: Row = {"correct": bool(score) if score in (0.0, 1.0) else None, "score": score}
    if not isinstance(sample["resps"][0][0], tuple | list):
        return row | {"response": sample["resps"][0][0], "answer": str(sample["filtered_resps"][0])}
    choices = [(r[0][0], a[1]) for a, r in zip(sample["arguments"], sample["resps"], strict=True) if a[0]]
    chosen = max(choices, key=lambda choice: choice[0])[1] if len(choices) > 1 else None
    return row | {"response": chosen, "answer": chosen}
