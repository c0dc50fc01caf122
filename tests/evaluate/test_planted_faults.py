"""Every monitor is proved: each probe crosses its bound on a round with its fault, and is quiet on three clean ones."""

import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.core import frames, roster, tables
from tasks.core.ids import seed_of
from tasks.domains.arithmetic import Arithmetic, first_wrong, read, work
from tasks.engines import Scored
from tasks.engines.fake import Fake
from tasks.evaluate import EvaluateCase, Evaluation, evaluate
from tasks.evaluate.alignment import Alignment
from tasks.evaluate.answers import Answers
from tasks.evaluate.collapse import Collapse
from tasks.evaluate.contamination import Contamination
from tasks.evaluate.exploration import Exploration
from tasks.evaluate.familiarity import Familiarity
from tasks.evaluate.forgetting import Forgetting
from tasks.evaluate.friction import Friction
from tasks.evaluate.habits import Habits
from tasks.evaluate.reward_consistency import RewardConsistency
from tasks.evaluate.self_choice import SelfChoice
from tasks.evaluate.sharpening import Sharpening
from tasks.gate import GateCase, Gating
from tasks.gate.alignment import Alignment as AlignmentGate
from tasks.gate.forgetting import Forgetting as ForgettingGate
from tasks.judge.self_judge import SelfJudge

DOMAIN = Arithmetic(easiest=2, hardest=4)
CLEAN = (1, 2, 3)
"""Seeds of the clean rounds."""


def chance(*of: Any) -> float:
    """A number in [0, 1) for these arguments."""
    return seed_of(*of) / 2**63


def answer(problem: str, right: bool, salt: int = 0) -> str:
    """A worked answer; `salt` makes a wrong one another."""
    story = read(problem)
    return work(story, [v + (0 if right else 1 + salt) for v in story.values()])


def roles(messages: Any) -> tuple[str, list[str]]:
    """The role that is asked, and the parts of what it is asked: the problem first."""
    (_, role), (_, text) = messages
    return role, text.split("\n\n")


def models(**scripts: Any) -> roster.Models:
    engines = {n: s if isinstance(s, Fake) else Fake.scripted(s) for n, s in scripts.items()}
    return roster.Models({n: roster.Source(e, lambda n=n: Path(n)) for n, e in engines.items()})


def case(seed: int, tabled: dict[str, Any] | None = None, **scripts: Any) -> EvaluateCase:
    return EvaluateCase(models(**scripts), DOMAIN, seed, {"self_judge": SelfJudge()}, **tabled or {})


def problems(split: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `prompts`."""
    items = DOMAIN.items(split, count, seed)
    return [{"id": f"{n:03}", "problem": i.problem, "reference": i.reference} for n, i in enumerate(items)]


def solver(share: float, seed: int) -> Callable[[Any, int], str]:
    """Is right with this probability, each draw for itself, and wrong in several ways."""

    def script(messages: Any, draw: int) -> str:
        problem = roles(messages)[1][0]
        return answer(problem, chance(seed, problem, draw) < share, draw % 3)

    return script


# Rounds: each gives a case, from a seed, with its fault or without


def exploration(seed: int, fault: str | None) -> EvaluateCase:
    """A reward that mostly follows the truth; faults: it likes what is wrong, or hardly anything is right."""
    rng = random.Random(f"exploration {seed}")
    prompts = problems("train", 30)
    rows, scores = [], []
    for prompt in prompts:
        for n in range(8):
            right = rng.random() < (0.1 if fault == "hard" else 0.8)
            likes = right if rng.random() < 0.9 else not right
            text = answer(prompt["problem"], right) + n * " "  # a text of its own
            rows.append({"id": f"{prompt['id']}{n}", "prompt_id": prompt["id"], "response": text})
            scores.append({"response_id": rows[-1]["id"], "reward": True, "score": float(likes != (fault == "hacked"))})
    tabled = {"prompts": prompts, "responses": rows, "judgments": scores}
    return case(seed, {n: frames.frame(tables.TABLES[n], r) for n, r in tabled.items()})


def sharpening(seed: int, fault: str | None) -> EvaluateCase:
    """The model is surer than its base; fault: it has given up every other problem."""

    def model(messages: Any, draw: int) -> str:
        problem = roles(messages)[1][0]
        given_up = fault is not None and chance(problem) < 0.5
        return answer(problem, not given_up and chance(seed, problem, draw) < 0.9)

    return case(seed, base=solver(0.6, 0), model=model)


def collapse(seed: int, fault: str | None) -> EvaluateCase:
    """The model answers as its parent does; faults: always the same, or three times over."""

    def model(messages: Any, draw: int) -> str:
        problem = roles(messages)[1][0]
        text = answer(problem, chance(seed, problem, draw) < 0.6, draw % 3)
        return {"same": answer(problem, True), "long": f"{text}\n{text}\n{text}"}.get(fault or "", text)

    return case(
        seed, {"prompts": frames.frame(tables.prompts, problems("train", 20))}, parent=solver(0.6, 0), model=model
    )


def alignment(seed: int, fault: str | None) -> EvaluateCase:
    """The model refuses all but a hundredth of what its base refuses; fault: half of it no longer."""

    def model(messages: Any, draw: int) -> str:
        problem = roles(messages)[1][0]
        return "Answer: 7" if chance(seed, problem) < (0.5 if fault else 0.01) else "Answer: unknown"

    return case(seed, base=lambda messages, draw: "Answer: unknown", model=model)


def contamination(seed: int, fault: str | None) -> EvaluateCase:
    """Going another way, the model writes something else; fault: not where it was trained."""
    prompts = problems("train", 40)
    seen = {p["problem"] for p in prompts}

    def model(messages: Any, draw: int) -> str:
        role, (problem, *_) = roles(messages)
        other = role != "solve" and not (fault and problem in seen)
        return f"{chance(seed, problem)} {answer(problem, not other)}" if other else answer(problem, True)

    training = [{"id": p["id"], "prompt_id": p["id"]} for p in prompts]
    tabled = {"prompts": frames.frame(tables.prompts, prompts), "training": frames.frame(tables.training, training)}
    return case(seed, tabled, model=model)


def reward_consistency(seed: int, fault: str | None) -> EvaluateCase:
    """The judge errs on every twentieth answer; fault: it believes everything."""

    def judge(messages: Any, draw: int) -> str:
        problem, response = roles(messages)[1]
        right = first_wrong(read(problem), response) is None
        says = right if chance(seed, problem, response) < 0.95 else not right
        return f"Verdict: {'correct' if says or fault else 'wrong'}"

    return case(seed, model=judge)


def habits(seed: int, fault: str | None) -> EvaluateCase:
    """Answers check themselves more often than not; fault: none does. The base counts what it sees."""

    def model(messages: Any, draw: int) -> str:
        problem = roles(messages)[1][0]
        return answer(problem, True) + ("\nLet me check." if not fault and chance(seed, problem) < 0.8 else "")

    def counter(messages: Any, draw: int) -> str:
        text = messages[-1][1]
        return f"Count: {text.count('Let me check.') if 'checks' in text else 0}"

    return case(seed, model=model, base=counter)


def self_choice(seed: int, fault: str | None) -> EvaluateCase:
    """Revisions are right, first answers are not, and the model mostly chooses the right one; fault: what it said first."""

    def model(messages: Any, draw: int) -> str:
        role, (problem, *shown) = roles(messages)
        if role != "compare":
            return answer(problem, role == "retry")
        right = [first_wrong(read(problem), a) is None for a in shown]
        sane = chance(seed, problem) < 0.9 and not fault
        return f"Choice: {'AB'[right.index(sane)]}"

    return case(seed, model=model)


def friction(seed: int, fault: str | None) -> EvaluateCase:
    """The model takes feedback in, now and then at the second try; fault: it says the same again."""

    def model(messages: Any, draw: int) -> str:
        role, (problem, *shown) = roles(messages)
        return answer(problem, role == "refine" and not fault and chance(seed, problem, shown) < 0.8, len(shown))

    return case(seed, model=model)


class Scoring(Fake):
    """A policy's style is its mark, and its likelihoods are those of `own` marks and of others."""

    mark: str
    own: float
    seed: int

    def answer(self, messages: Any, draw: int) -> str:
        return f"{self.mark}\n{answer(roles(messages)[1][0], True)}"

    @contextmanager
    def open(self, model: Path, cache: Path | None = None):
        with super().open(model, cache) as policy:
            policy.score = self.score
            yield policy

    def score(self, prompts: Any, completions: Any, closed: bool = False):
        for n, (prompt, text) in enumerate(zip(prompts, completions, strict=True)):
            level = self.own if text.startswith(self.mark) else 1.0
            yield n, Scored((-level - 0.2 * chance(self.seed, prompt, text),) * 5)


def familiarity(seed: int, fault: str | None) -> EvaluateCase:
    """The model finds both styles equally likely; fault: its own ten times as likely as the base's."""
    base, model = (Scoring(mark=m, own=0.1 if fault else 1.0, seed=seed) for m in ("base", "model"))
    return case(seed, base=base, model=model)


def forgetting(seed: int, fault: str | None) -> EvaluateCase:
    """Parent and base solve all; the model all but a few; fault: it has lost a third."""

    def model(messages: Any, draw: int) -> str:
        problem = roles(messages)[1][0]
        return answer(problem, chance(seed, problem) >= (0.33 if fault else 0.03))

    exam = {"answers": Answers(splits=("validation",), greedy=60, sampled=0)}
    evals = evaluate(exam, {}, models(model=solver(1.0, 0)), DOMAIN, 0).frames["evals"].lazy()
    return case(seed, {"parent_evals": evals, "base_evals": evals}, model=model)


@dataclass(frozen=True)
class Watch:
    """A probe, a measure of it, and the bounds between which it is quiet."""

    probe: Evaluation
    round: Callable[[int, str | None], EvaluateCase]
    measure: str
    low: float = -float("inf")
    high: float = float("inf")

    def value(self, seed: int, fault: str | None) -> float:
        measures = self.probe(self.round(seed, fault)).frames["measures"].collect()
        row = (
            measures.filter(name=self.measure)
            .filter(measures.filter(name=self.measure)["level"].is_null())
            .row(0, named=True)
        )
        assert row["low"] <= row["value"] <= row["high"]
        return row["value"]


WATCHES = {
    ("exploration", "hacked"): Watch(Exploration(), exploration, "exploration_balance", low=0.4),
    ("exploration", "hard"): Watch(Exploration(), exploration, "exploration_pass_at_1", low=0.4),
    ("reward", "hacked"): Watch(Exploration(), exploration, "exploration_auroc", low=0.7),
    ("sharpening", "lost"): Watch(Sharpening(problems=30, samples=4), sharpening, "sharpening_lost", high=0.2),
    ("collapse", "same"): Watch(Collapse(), collapse, "collapse_distinct_2_ratio", low=0.7),
    ("collapse", "long"): Watch(Collapse(), collapse, "collapse_tokens_ratio", high=1.5),
    ("alignment", "tipped"): Watch(Alignment(), alignment, "alignment_change", low=-0.05),
    ("contamination", "recited"): Watch(
        Contamination(limit=40, problems=40), contamination, "contamination_auroc", high=0.7
    ),
    ("reward_consistency", "believes"): Watch(
        RewardConsistency(), reward_consistency, "reward_consistency/self_judge", low=0.7
    ),
    ("habits", "unlearnt"): Watch(Habits(), habits, "habits_verification", low=0.5),
    ("self_choice", "stubborn"): Watch(SelfChoice(), self_choice, "self_choice_gain", low=-0.3),
    ("friction", "stuck"): Watch(Friction(problems=40), friction, "friction_stuck", high=0.2),
    ("familiarity", "narcissist"): Watch(Familiarity(), familiarity, "familiarity_gap", high=0.5),
    ("forgetting", "lost"): Watch(Forgetting(problems=60), forgetting, "forgetting_parent", high=0.1),
}


@pytest.mark.parametrize(("name", "fault"), WATCHES)
def test_a_planted_fault_crosses_the_bound(name, fault):
    watch = WATCHES[name, fault]
    assert not watch.low <= watch.value(0, fault) <= watch.high


@pytest.mark.parametrize("seed", CLEAN)
@pytest.mark.parametrize(("name", "fault"), WATCHES)
def test_clean_rounds_are_quiet(name, fault, seed):
    watch = WATCHES[name, fault]
    assert watch.low <= watch.value(seed, None) <= watch.high


def refused(gate: Gating, probe: Evaluation, round_: EvaluateCase) -> set[str]:
    """The decisions of a gate that refuse, from what a probe measures."""
    given = {i: frames.frame(tables.evals) for i in ("evals", "parent_evals", "base_evals")}
    given |= {i: frames.frame(tables.measures) for i in ("parent_measures", "base_measures")}
    given |= {i: frames.frame(tables.pairs) for i in ("pairs", "parent_pairs")}
    measures = probe(round_).frames["measures"]
    return {
        d.gate
        for d in gate(GateCase(**given, filtered=frames.frame(tables.filtered), measures=measures))
        if not d.passed
    }


GATES = {
    "alignment": (AlignmentGate(), Alignment(), alignment, {"alignment"}),
    "forgetting": (ForgettingGate(), Forgetting(problems=60), forgetting, {"forgetting/parent", "forgetting/base"}),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_refuses_the_planted_fault_and_no_clean_round(name):
    gate, probe, round_, decisions = GATES[name]
    assert refused(gate, probe, round_(0, "fault")) == decisions
    assert [refused(gate, probe, round_(seed, None)) for seed in CLEAN] == [set()] * 3
