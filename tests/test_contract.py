"""What every strategy must keep to, before its own test is written: found by file name, run with its `example`.

Each is run through its stage on a small round in which nearly everything goes wrong somewhere, and its outputs are
written and checked by the store, as the runner does it.
"""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import projects
import pytest

from tasks.core import frames, store, tables
from tasks.core.errors import EngineError, FlywheelError
from tasks.core.ids import seed_of
from tasks.core.plugin import load, names
from tasks.core.roster import MIN_REQUESTS, Models, Source
from tasks.core.stage import ANCESTORS, Stage, stages
from tasks.domains import Domain, Item, Verdict
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Completion, Engine
from tasks.engines.fake import GARBAGE, Fake
from tasks.judge.self_judge import SelfJudge
from tasks.project import execute
from tasks.where.here import Here

# A round: p1 has right, wrong, failed, unjudged and unreadable answers; p2 was turned away; p3 has only failures; p4 no answers.

FAILED, UNJUDGED, UNREADABLE = {"r4", "r5", "f2"}, {"r6", "r7"}, {"r8"}
UNUSABLE = FAILED | UNJUDGED | UNREADABLE
STORY = "Tom has 12 pens.\nDay 1: 5 found\nDay 2: halved\nHow many?"
RIGHT = "Day 1: 12+5=17\nDay 2: 17/2=8\nAnswer: 8"
WRONG = "Day 1: 12+5=18\nDay 2: 18/2=9\nAnswer: 9"
CRITIQUE = "Day 1: 12+5=17, said 18: wrong\nDay 2: 18/2=9, said 9: right\nAnswer: 9, said 9: right\nVerdict: wrong, Day 1: 12+5=17"


def chat(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def prompt(name: str, **more: Any) -> dict[str, Any]:
    made = {
        "id": name,
        "problem": STORY,
        "prompt": chat(STORY),
        "level": 2,
        "source": "model",
        "parents": ["s"],
        "model": "m",
    }
    return made | more


def response(name: str, of: str, text: str | None, answer: str | None, **more: Any) -> dict[str, Any]:
    stats = {"logprob": -2.0, "mean_logprob": -0.2, "entropy": 0.5, "self_certainty": 3.0, "finish_reason": "stop"}
    made = {
        "id": name,
        "prompt_id": of,
        "sample": int(name[1:]),
        "seed": 1,
        "response": text,
        "answer": answer,
        "tokens": 10,
    }
    author = "base" if name == "r3" else "parent"
    return made | stats | {"prompt_tokens": 20, "hinted": False, "author": author, "model": "m"} | more


def judgments(scores: dict[str, float | None]) -> list[dict[str, Any]]:
    return [
        {"id": f"{r}-{judge}", "response_id": r, "prompt_id": "p3" if r == "r5" else "p1", "member": judge,
         "reward": judge == "self_consistency", "score": s, "error": "unreadable" if s is None else None,
         "verdict": None if s is None else "pass" if s > 0.5 else "fail"}
        for judge in ("self_consistency", "verifier")
        for r, s in scores.items()
    ]  # fmt: skip


def item(name: str, mode: str, correct: bool | None, **more: Any) -> dict[str, Any]:
    made = {
        "id": f"{name}-{mode}",
        "item": name,
        "split": "validation",
        "mode": mode,
        "sample": 0,
        "level": 2,
        "problem": STORY,
    }
    score = None if correct is None else float(correct)
    return (
        made
        | {"response": RIGHT, "answer": "8", "correct": correct, "score": score, "mean_logprob": -0.1, "tokens": 9}
        | more
    )


SILENT = {"logprob": None, "mean_logprob": None, "entropy": None, "self_certainty": None}
ROUND: dict[str, list[dict[str, Any]]] = {
    "prompts": [
        prompt("p1"),
        prompt("p2", prompt=[], error="duplicate: of p1"),
        prompt("p3", problem=STORY.replace("12", "11"), prompt=chat(STORY.replace("12", "11")), level=None),
        prompt("p4", problem=STORY.replace("12", "13"), reference="9", parents=None),
    ],
    "responses": [
        response("r1", "p1", RIGHT, "8"),
        response("r2", "p1", RIGHT.replace("17/2=8", "17/2=8 "), "8", **SILENT),
        response("r3", "p1", WRONG, "9", mean_logprob=-0.1),
        response("r4", "p1", "", None, error="time-out", finish_reason="error", tokens=0, **SILENT),
        response("r5", "p3", None, None, error="time-out", finish_reason="error", tokens=None, **SILENT),
        response("r6", "p1", RIGHT + " ", "8"),
        response("r7", "p1", WRONG + " ", "9"),
        response("r8", "p1", GARBAGE, None, finish_reason="length"),
    ],
    "judgments": judgments(
        {"r1": 1.0, "r2": 0.75, "r3": 0.25, "r4": None, "r5": None, "r6": None, "r7": None, "r8": 0.0}
    ),
    "filtered": [
        {"id": f"r{n}", "prompt_id": "p3" if n == 5 else "p1", "kept": n < 3, "rank": n if n < 3 else None,
         "reason": None if n < 3 else "score", "score": 0.5}
        for n in range(1, 9)
    ],
    "critiques": [
        {"id": "c1", "response_id": "r3", "prompt_id": "p1", "prompt": chat(STORY, WRONG, "?"), "critique": CRITIQUE,
         "wrong_step": 1, "verdict": "fail", "target": "8", "refinements": 3, "successes": 1, "kept": True, "model": "m"},
        {"id": "c2", "response_id": "r3", "prompt_id": "p1", "prompt": chat(STORY, WRONG, "!"), "critique": "",
         "refinements": 0, "successes": 0, "kept": False, "model": "m", "error": "unreadable"},
    ],
    "refinements": [
        {"id": "f1", "critique_id": "c1", "response_id": "r3", "prompt_id": "p1", "sample": 0, "response": RIGHT + "  ",
         "answer": "8", "success": True, "mean_logprob": None, "hinted": True, "model": "m"},
        {"id": "f2", "critique_id": "c1", "response_id": "r3", "prompt_id": "p1", "sample": 1, "response": None,
         "success": None, "hinted": True, "model": "m", "error": "time-out"},
        {"id": "f3", "critique_id": "c1", "response_id": "r3", "prompt_id": "p1", "sample": 2, "response": WRONG + "  ",
         "answer": "9", "success": False, "mean_logprob": -0.3, "hinted": True, "model": "m"},
    ],
    "pairs": [
        {"id": f"x{n}", "prompt_id": "p1", "prompt": chat(STORY), "chosen": chat("", RIGHT)[1:], "rejected": chat("", WRONG)[1:],
         "chosen_id": "r1", "rejected_id": "r3", "chosen_score": 1.0, "rejected_score": 0.25, "weight": 1.0,
         "smoothing": 0.0, "source": "responses"}
        for n in range(3)
    ],
    "training": [
        {"id": "t1", "prompt_id": "p0", "response_id": "r0", "model": "m0", "source": "responses", "prompt": chat(STORY),
         "completion": chat("", RIGHT)[1:], "weight": 1.0, "label": True, "group": "p1"},
        {"id": "t2", "prompt_id": "p1", "response_id": "r9", "model": "m0", "source": "responses", "prompt": chat(STORY),
         "completion": chat("", RIGHT)[1:], "weight": 1.0, "label": True, "group": "p1"},
    ],
    "preferences": [
        {"id": f"y{n}", "member": "pairs", "prompt_id": "p1", "prompt": chat(STORY), "chosen": chat("", RIGHT)[1:],
         "rejected": chat("", WRONG)[1:], "chosen_id": "r1", "rejected_id": "r3", "weight": 1.0, "smoothing": 0.0,
         "source": "responses"}
        for n in range(3)
    ],
    "evals": [
        *(item(f"e{n}", mode, n % 2 == 0) for n in range(6) for mode in ("greedy", "sampled")),
        item("e7", "sampled", None, response=None, answer=None, mean_logprob=None, tokens=None, level=None, error="time-out"),
        item("e8", "sampled", False, answer=None, error="no answer"),
    ],
    "measures": [
        {"name": n, "level": level, "value": 0.5, "low": None if level else 0.4, "high": None if level else 0.6, "count": 6}
        for n in ("validation_greedy", "pass_at_1", "validation_majority_at_8", "validation_distinct_2",
                  "judge_balanced_accuracy")
        for level in (None, 2)
    ],
}  # fmt: skip
EMPTY: dict[str, list[dict[str, Any]]] = {}
UNSCORED = ROUND | {
    "judgments": judgments({f"r{n}": None for n in range(1, 9)}),
    "filtered": [r | {"kept": False, "rank": None, "reason": "unjudged"} for r in ROUND["filtered"]],
    **{n: [] for n in ("critiques", "refinements", "pairs", "training", "preferences")},
}


# Who answers


TEXTS = [STORY, STORY.replace("12", "14"), STORY.replace("5 found", "2 lost"), RIGHT, RIGHT, WRONG, CRITIQUE, GARBAGE, "",
         "Verdict: correct", "Verdict: wrong", "Score: 4", "Answer: 8"]  # fmt: skip


def babble(messages: Any, seed: int) -> str:
    """Something that some role might say, whoever was asked."""
    return TEXTS[seed_of(messages, seed) % len(TEXTS)]


class Mute(Engine):
    """Says no more than the text, as some servers do."""

    scores = False

    @contextmanager
    def open(self, model: Path, cache: Path | None = None) -> Iterator[Any]:
        with Fake.scripted(babble).open(model) as policy:
            yield MutePolicy(policy)


@dataclass
class MutePolicy:
    policy: Any
    digest: str = "mute"

    def sample(self, requests: Any) -> Iterator[tuple[int, Completion]]:
        for index, completion in self.policy.sample(requests):
            yield index, replace(completion, logprob=None, entropy=None, self_certainty=None)


class Plain(Domain):
    """Free text: no levels, no verifier, no gold set."""

    def items(self, split: Any, count: int, seed: int) -> list[Item]:
        return [] if split == "gold" else [Item(f"Say {split} {n}.") for n in range(min(count, 30))]

    def verify(self, problem: str, response: str, reference: str | None = None) -> Verdict:
        return Verdict(None, error="nobody knows")


# Running one


@dataclass
class Trial:
    """A strategy in its stage, and where it runs."""

    stage: Stage
    name: str
    root: Path
    model: Path
    is_base: bool = field(default=False)
    """Without ancestors and optional tables; models that belong to neither are there."""
    runs: int = field(default=0)
    models: Models = field(default_factory=lambda: Models({}))

    def run(self, rows: dict[str, Any], engine: Engine | None = None, domain: Domain | None = None) -> dict[str, bytes]:
        """What the stage writes, by path, as the runner would write it."""
        self.runs += 1
        with store.writing(self.root, f"run{self.runs}", self.stage.name) as draft:
            place = self.root / f"scratch{self.runs}"
            place.mkdir()
            self.models = self._models(engine or Fake.scripted(babble), place)
            context = {"members": {self.name: self.strategy()}, "strategy": self.strategy(), "options": self.options(),
                       "judges": {"self_judge": SelfJudge()}, "models": self.models, "domain": domain or Arithmetic(), "seed": 1, "work": place, "where": Here()}  # fmt: skip
            arguments = {k: v for k, v in context.items() if k in self.stage.context}
            arguments |= {f: draft.folder(f) for f in self.stage.folders}
            arguments |= {i.argument: self.input(i, rows) for i in self.stage.inputs if not i.opened}
            result = execute._as_result(self.stage, execute._call(self.stage, arguments))
            execute._write(self.root, "r1", self.stage, draft, result)
            self.models.close()
            written = sorted(p for p in draft.new.rglob("*") if p.is_file())
            return {str(p.relative_to(draft.new)): p.read_bytes() for p in written}

    def _models(self, engine: Engine, cache: Path) -> Models:
        """Every model that the strategy asks for, all of them the same."""
        opened = {i.ancestor or "model" for i in self.stage.inputs if i.opened} | self.strategy().opened_models()
        opened -= set(ANCESTORS) if self.is_base else set()
        return Models(dict.fromkeys(opened, Source(engine, lambda: self.model)), cache)

    def strategy(self) -> Any:
        """The strategy with its `example`."""
        strategy = load(self.stage.name, self.name)
        return strategy(**strategy.example)

    def options(self) -> Any:
        """The stage's options; what they must name is the strategy."""
        if self.stage.options is None:
            return None
        return self.stage.options(
            **{n: self.name for n, f in self.stage.options.model_fields.items() if f.is_required()}
        )

    def input(self, need: Any, rows: dict[str, Any]) -> Any:
        if need.optional and (self.is_base or need.argument not in self.strategy().read_tables()):
            return None
        return (
            frames.frame(tables.TABLES[need.name], rows.get(need.name, []))
            if need.name in tables.TABLES
            else self.model
        )

    def written(self, of: dict[str, bytes], table: str) -> pl.DataFrame:
        """A table of what a run wrote."""
        return pl.concat([pl.read_parquet(data) for path, data in of.items() if path.startswith(f"{table}/")])


def every_strategy(which: Callable[[Stage], bool] = lambda _: True) -> Any:
    """Parametrises a test over all strategies of the stages that are meant; those that load a model in one process."""
    found = [
        pytest.param((s, n), id=f"{s.name}-{n}", marks=[pytest.mark.xdist_group("trl")] if reads_folder(s) else [])
        for s in stages().values()
        for n in names(s.name)
        if which(s)
    ]
    return pytest.mark.parametrize("trial", found, indirect=True)


def reads_folder(stage: Stage) -> bool:
    """Whether it needs a model's folder, and not only an engine that has it opened."""
    return bool(stage.folders) or any(i.name == "model" and not i.opened for i in stage.inputs)


@pytest.fixture
def trial(request, tmp_path, monkeypatch) -> Trial:
    """Where a relative path leads to: a project with a model in data/base. The hub has the same model."""
    stage, name = request.param
    if f"{stage.name}-{name}" in OWN_DOMAIN:
        pytest.skip("it needs a domain of its own kind or files of its own; its test does this")
    monkeypatch.chdir(tmp_path)
    if not reads_folder(stage):
        return Trial(stage, name, tmp_path, tmp_path / "no-model")
    model = request.getfixturevalue("embedded_model" if name == "taught" else "tiny_model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/base").symlink_to(model)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(model))
    return Trial(stage, name, tmp_path, model)


def reads(table: str) -> Callable[[Stage], bool]:
    return lambda stage: any(i.name == table and not i.ancestor and not i.optional for i in stage.inputs)


def takes(what: str) -> Callable[[Stage], bool]:
    return lambda stage: what in stage.context


def test_every_file_of_a_stage_is_a_strategy():
    files = {f"{s}-{p.stem}" for s in stages() for p in (projects.HERE / "tasks" / s).glob("[!_]*.py")}
    assert {p.id for p in every_strategy().args[1]} == files
    assert len(files) > 20


@every_strategy()
def test_equal_rows_give_equal_bytes_in_whatever_order_they_come(trial):
    made = trial.run(ROUND)
    assert set(trial.stage.outputs) <= {path.partition("/")[0] for path in made}
    json.loads(made[f"metrics/{trial.stage.name}.json"])
    for seed in range(2):
        shuffled = {name: random.Random(seed).sample(rows, len(rows)) for name, rows in ROUND.items()}
        assert trial.run(shuffled) == made


@every_strategy()
def test_the_tables_that_a_strategy_says_it_reads_are_optional_ones_of_its_stage(trial):
    assert trial.strategy().read_tables() <= {i.argument for i in trial.stage.inputs if i.optional and not i.opened}


@every_strategy(lambda s: s.bases == "too")
def test_a_base_has_no_ancestors_and_none_of_the_optional_tables(trial):
    trial.is_base = True
    made = trial.run(ROUND)
    assert set(trial.stage.outputs) <= {path.partition("/")[0] for path in made}


@every_strategy(lambda s: reads("responses")(s) or reads("judgments")(s))
def test_what_failed_or_has_no_score_is_never_learnt_from(trial):
    made = trial.run(ROUND)
    for table in trial.stage.tables:
        rows = trial.written(made, table.name)
        for column in {"chosen_id", "rejected_id"} & set(rows.columns):
            assert not UNUSABLE & set(rows[column])
        if table.name in ("training", "critiques", "refinements"):
            assert not FAILED & set(rows["response_id"])
        if table.name == "filtered":
            assert not UNUSABLE & set(rows.filter("kept")["id"])
            assert set(rows["id"]) == {r["id"] for r in ROUND["responses"]}
        if table.name == "judgments":
            assert set(rows["response_id"]) == {r["id"] for r in ROUND["responses"]}
            assert rows.filter(pl.col("response_id").is_in(FAILED))["error"].null_count() == 0


@every_strategy(reads("responses"))
def test_pieces_of_a_large_round_are_together_what_the_whole_would_be(trial, monkeypatch):
    if not (trial.strategy().per_prompt_only() or trial.strategy().needs_overview()):
        pytest.skip("it needs all prompts at once")
    [table] = trial.stage.tables
    whole = trial.written(trial.run(ROUND), table.name)
    calls, function = [], trial.stage.function
    trial.stage = replace(trial.stage, function=lambda **given: calls.append(given) or function(**given))
    monkeypatch.setattr("tasks.project.pieces.MAX_ROWS", 2)
    monkeypatch.setattr("tasks.project.pieces.IDS_PER_PIECE", 1)
    pieces = trial.written(trial.run(ROUND), table.name)
    assert len(calls) == 3
    assert pieces.sort(table.key).equals(whole.sort(table.key))


@every_strategy()
def test_no_rows_give_no_rows(trial):
    made = trial.run(EMPTY)
    for table in trial.stage.tables:
        rows = trial.written(made, table.name)
        of_the_round = any(reads(name)(trial.stage) for name in tables.TABLES)
        assert rows.is_empty() or not of_the_round or table is tables.decisions


@every_strategy(reads("judgments"))
def test_without_any_score_nothing_is_chosen(trial):
    made = trial.run(UNSCORED)
    for table in trial.stage.tables:
        rows = trial.written(made, table.name)
        assert (rows.filter("kept") if "kept" in rows.columns else rows).is_empty()


OWN_DOMAIN = {"judge-shuffled", "evaluate-lm_eval"}
"""Strategies that refuse the domain of this test by its name, or need files of their own; their tests do this."""
GOOD = {
    "prompts": pl.col("error").is_null(),
    "responses": pl.col("answer").is_not_null(),
    "judgments": pl.col("score").is_not_null(),
    "critiques": pl.col("kept"),
    "refinements": pl.col("success"),
    "evals": pl.col("correct"),
    "audits": (pl.col("judge") != "logprob") & pl.col("score").is_not_null(),  # text that was given can be scored
}
"""Rows of each table from which something follows."""
VERIFIES_FIRST = {"flawed"}
"""Judges that ask of right answers alone: a score of 0 is the verifier's, whatever the engine does."""


@pytest.mark.parametrize("fault", ["error_rate", "garbage_rate"])
@every_strategy(takes("models"))
def test_nothing_follows_from_an_engine_that_fails_or_babbles(trial, fault):
    needs = load(trial.stage.name, trial.name).needs
    if not needs:
        trial.run(ROUND, Fake(down=True))  # it opens no model
        return
    if fault == "garbage_rate" and "samples" not in needs:
        return  # it scores text that was given, and has nothing said
    made = trial.run(ROUND, Fake(**{fault: 1.0}))
    assert trial.models.total("requests") > 0
    for table in {t.name for t in trial.stage.tables} & GOOD.keys():
        good = GOOD[table] & (pl.col("score") > 0) if trial.name in VERIFIES_FIRST else GOOD[table]
        assert trial.written(made, table).filter(good).is_empty(), table
    if fault == "garbage_rate":
        return
    if "evals" in trial.stage.outputs:
        assert trial.written(made, "evals")["correct"].drop_nulls().is_empty()  # least of all is it wrong
    assert trial.models.total("failed") > 0
    if any(
        m.failed > 0.05 * m.requests and (m.requests >= MIN_REQUESTS or m.failed == m.requests)
        for m in trial.models.meters.values()
    ):
        with pytest.raises(EngineError, match="max_error_share"):
            trial.models.check()


@every_strategy(takes("models"))
def test_an_engine_that_says_no_more_than_the_text(trial):
    needs = load(trial.stage.name, trial.name).needs
    if not needs or not all(getattr(Mute, ability) for ability in needs):
        return  # it asks nothing, or params.yaml would refuse this engine
    made = trial.run(ROUND, Mute())
    for table in trial.stage.tables:
        rows = trial.written(made, table.name)
        statistics = {"logprob", "mean_logprob", "entropy", "self_certainty"} & set(rows.columns)
        assert all(rows[column].null_count() == len(rows) for column in statistics)


@every_strategy(takes("domain"))
def test_free_text_without_levels_or_verifier(trial):
    try:
        trial.run(ROUND, domain=Plain())
    except FlywheelError as error:
        assert "domain" in str(error)
