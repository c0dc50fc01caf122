"""Exports a round's model with a model card: a folder that `transformers` loads, and that the Hugging Face hub shows.

Weights are copied as they are, and by name and sha256 as the round's manifest has them. An adapter whose base is pinned on
the hub names that repository as its base; one whose base is on this machine alone is of no use elsewhere, and is refused.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from tasks.core import models
from tasks.core.errors import FlywheelError
from tasks.project.execute import model_folder
from tasks.views import catalog
from tasks.views.export import CARD_FILE, FACTS, TAG, licence_lines, replace

HEADLINES = {
    "pass_at_1": "pass@1, sampled",
    "pass_at_8": "pass@8",
    "majority_at_8": "majority of 8",
    "greedy": "greedy",
}
"""Measures of the card, with what they are called there; those of lm-evaluation-harness follow."""
NO_RESULTS = ("_stderr", "/version", "/num_fewshot", "/errors")
"""Ends of the names of measures that are no result of a task."""

CARD = (
    """---
{metadata}---

# {title}

{intro}

```python
from transformers import pipeline

chat = pipeline("text-generation", "path/to/this/folder")
print(chat([{{"role": "user", "content": "…"}}]))
```

## How it was made
"""
    + FACTS
    + """| strategies | {strategies} |
| trained on | {rows} |
| gates | {gates} |
| digest (sha256 over its files) | `{digest}` |

## Evaluation
On held-out problems of its domain, which no round trained on; with 95 % intervals.

| measure | value | interval | items |
|---|---|---|---|
{results}
## Files
| file | sha256 |
|---|---|
{files}
## Licence
{licence}
"""
)


def export_model(root: Path, round: str, to: Path, licence: str | None = None) -> str:
    """Writes the model of a base or round to the folder `to`, with its card, replacing an earlier export; returns a summary.

    Raises:
        FlywheelError: when it has no model, when `to` holds anything but an export, or when the model is an adapter whose
            base is on this machine alone.
    """
    folder = models.resolve(model_folder(root, round))
    names = sorted(models.pointer(folder)["files"])
    base = hub_base(folder)
    card = _card(root, round, folder, names, base, licence)

    def fill(new: Path) -> None:
        for name in names:
            shutil.copyfile(folder / name, new / name)
        if base:
            config = json.loads((folder / models.ADAPTER).read_text(encoding="utf-8"))
            (new / models.ADAPTER).write_text(json.dumps(config | {"base_model_name_or_path": base["repo"]}, indent=2))
        (new / CARD_FILE).write_text(card, encoding="utf-8")

    replace(to, models.PATTERNS, fill)
    size = sum((folder / name).stat().st_size for name in names)
    return f"{to}: {'adapter' if base else 'model'} of {round}, {size / 1e6:.1f} MB in {len(names)} files"


def hub_base(folder: Path) -> dict[str, str] | None:
    """Where the base of an adapter is on the hub (`repo`, `revision`); None where the folder is a whole model."""
    if not models.is_adapter(folder):
        return None
    pointer = models.named_base(folder) / models.POINTER
    source = json.loads(pointer.read_text(encoding="utf-8")) if pointer.is_file() else {}
    if "repo" not in source:
        raise FlywheelError(
            f"{folder}: is a LoRA adapter whose base is on this machine alone, so nobody else could load it; train with "
            "adapter: {merge: true}, or start from a base that was added with --hub"
        )
    return {k: str(source[k]) for k in ("repo", "revision")}


def _card(
    root: Path, round: str, folder: Path, names: list[str], base: dict[str, str] | None, licence: str | None
) -> str:
    with catalog.connect(root) as con:
        facts = _query(con, "select * from rounds where round = $round", round)[0]
        measures = _query(con, "select * from measures where round = $round and level is null order by name", round)
        gates = _query(con, "select * from decisions where round = $round and gate = 'all'", round)
        rows = _query(con, "select source, count(*) as n from training where round = $round and error is null "
                           "group by all order by source", round)  # fmt: skip
    results = _results(measures)
    lines = licence_lines(licence)
    values = {k: "none" if v is None else v for k, v in facts.items()}
    return CARD.format(
        **{k: values[k] for k in ("round", "parent", "base", "recipe", "seed", "domain")},
        metadata=_metadata(facts, results, base, licence),
        title=f"Model of the round {round}" if facts["parent"] else f"The base {round}",
        intro=f"The model of the round `{round}` of a data flywheel: `{facts['parent']}`, fine-tuned on answers of its own that "
        "its round kept."
        if facts["parent"]
        else f"The model from which the rounds of the base `{round}` of a data flywheel start.",
        strategies=", ".join(f"{stage}: {name}" for stage, name in dict(facts["strategies"]).items()) or "none",
        rows=", ".join(f"{r['n']} rows from `{r['source']}`" for r in rows) or "nothing",
        gates=_decision(gates),
        digest=models.digest(folder),
        results="".join(_result_line(name, m) for name, m in results) or "| not evaluated | | | |\n",
        files="".join(f"| `{name}` | `{models.file_digest(folder / name)}` |\n" for name in names),
        licence=lines["licence"].replace("Problems and answers come", "What it learnt comes"),
    )


def _decision(gates: list[dict[str, Any]]) -> str:
    return "none" if not gates else "promoted" if gates[0]["passed"] else f"refused: {gates[0]['reason']}"


def _results(measures: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The measures of the card with their titles."""
    by_name = {m["name"]: m for m in measures}
    benchmarks = [n for n in by_name if n.startswith("lm_eval/") and not any(end in n for end in NO_RESULTS)]
    own = [(title, by_name[name]) for name, title in HEADLINES.items() if name in by_name]
    return own + [(name.removeprefix("lm_eval/"), by_name[name]) for name in benchmarks]


def _result_line(title: str, m: dict[str, Any]) -> str:
    interval = "" if m["low"] is None else f"{m['low']:.3f} … {m['high']:.3f}"
    return f"| {title} | {m['value']:.3f} | {interval} | {m['count']} |\n"


def _metadata(
    facts: dict[str, Any], results: list[tuple[str, dict[str, Any]]], base: dict[str, str] | None, licence: str | None
) -> str:
    """The front matter, with the results as the hub's model index."""
    from huggingface_hub import EvalResult, ModelCardData

    def index(title: str, measure: dict[str, Any]) -> EvalResult:
        task, _, metric = title.partition("/") if measure["name"].startswith("lm_eval/") else (facts["domain"], "", "")
        return EvalResult(
            task_type="text-generation", dataset_type=task, dataset_name=task, dataset_split=None if metric else "heldout",
            metric_type=metric or measure["name"], metric_name=metric or title, metric_value=round(measure["value"], 4),
        )  # fmt: skip

    data = ModelCardData(
        model_name=f"round {facts['round']}",
        base_model=base and base["repo"],
        eval_results=[index(title, m) for title, m in results] or None,
        library_name="peft" if base else "transformers",
        license=licence,
        pipeline_tag="text-generation",
        tags=[TAG, "synthetic"],
    )
    return data.to_yaml() + "\n"


def _query(con: Any, sql: str, round: str) -> list[dict[str, Any]]:
    return con.sql(sql, params={"round": round}).to_arrow_table().to_pylist()
