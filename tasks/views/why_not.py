"""Says of a row which rule dropped it, by how much, and what would have kept it; of one that was kept, where it went."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb
from rapidfuzz import fuzz, process
from rapidfuzz.distance import Indel
from rich.console import Console

from tasks.core import store
from tasks.core.errors import FlywheelError
from tasks.core.ids import content_id
from tasks.core.plan import Plan
from tasks.core.plugin import load
from tasks.domains import Domain
from tasks.prompts import FROZEN
from tasks.prompts._near import words
from tasks.views._counterfactual import Change, Filter, Pairings, Trial, floor, stored_plan
from tasks.views._lineage import Key, Lineage, Step, walk
from tasks.views._reasons import FILTERS, NO_PARAMETER, PROMPTS, Answer, lines, number, tried
from tasks.views.catalog import connect, consistently
from tasks.views.trace import printer, trained_in

DESTINATIONS = ("training", "preferences", "pairs", "critiques", "refinements")
"""Tables of what is made of a row, what is trained on first."""
MIN_LIKENESS = 60
"""Of a text to a problem, in percent, from which it is named as near."""


def show(
    root: Path,
    id: str | None = None,
    prompt: str | None = None,
    round: str | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Prints the answers for an id, or for the prompts of a round with a text; with `as_json` as a JSON list."""
    answers = consistently(root, lambda: explain(root, id, prompt, round))
    if as_json:
        print(json.dumps([answer.as_json() for answer in answers], ensure_ascii=False, default=str, indent=1))
        return
    console = console or printer()
    for answer in answers:
        for line in lines(answer):
            console.print(line)


def explain(root: Path, id: str | None, prompt: str | None, round: str | None) -> list[Answer]:
    """What became of a row, given by its id or a unique prefix, or of the prompts with a text.

    Raises:
        FlywheelError: for neither or both of them, an unknown id or text, an unknown round.
    """
    if (id is None) == (prompt is None):
        raise FlywheelError(
            'name a row by its id, or a prompt by its text: `flywheel why-not --prompt "TEXT" --round r2`'
        )
    con = connect(root)
    lineage = Lineage(con)
    steps = lineage.find(id, round)[:1] if id is not None else find_prompts(con, lineage, str(prompt), round)
    return [answer for step in steps for answer in _Explainer(root, lineage).explain(step)]


def find_prompts(con: duckdb.DuckDBPyConnection, lineage: Lineage, text: str, round: str | None) -> list[Step]:
    """The prompts of a round with this text, blanks aside; else the one that contains it.

    Raises:
        FlywheelError: when there is none, naming the nearest; when several contain it.
    """
    lineage.check_round(round)
    if round is None:
        raise FlywheelError("name the round whose prompts are searched, as in --round r2")
    rows = con.sql(
        "select id, problem from prompts where round = $round order by id", params={"round": round}
    ).fetchall()
    problems = {id: " ".join((problem or "").split()) for id, problem in rows}
    text = " ".join(text.split())
    equal = [id for id, problem in problems.items() if problem == text]
    found = equal or [id for id, problem in problems.items() if text and text in problem]
    if found and (equal or len(found) == 1):
        return [s for s in lineage.select("prompts", "id in (select unnest($ids))", found) if s.key.round == round]
    if found:
        raise FlywheelError(
            f"{len(found)} prompts of {round} contain {text!r}: {_quoted(problems, found)}; give more of it"
        )
    near = process.extract(text, problems, scorer=fuzz.ratio, limit=3, score_cutoff=MIN_LIKENESS)
    hint = f"near it: {_quoted(problems, [id for _, _, id in near])}" if near else "and none is near it"
    raise FlywheelError(f"no prompt of {round} has the text {text!r}; {hint}")


def _quoted(problems: dict[str, str], ids: list[str]) -> str:
    return ", ".join(f"{id} {problems[id][:60]!r}" for id in ids[:3]) + (" …" if len(ids) > 3 else "")


class _Explainer:
    """Explains rows of a project."""

    def __init__(self, root: Path, lineage: Lineage) -> None:
        self.root, self.lineage = root, lineage

    def explain(self, step: Step) -> Iterator[Answer]:
        """The answers for a row; a kept one's last says where it went."""
        table = {"filtered": "responses"}.get(step.key.table, step.key.table)
        method: Callable[[Step], Iterable[Answer]] = getattr(self, f"_{table}", self._exam)
        answers = list(method(step))
        yield from answers

    def _exam(self, step: Step) -> Iterator[Answer]:
        yield Answer(step.key, True, "evaluate", "it is of the exam, of which nothing is dropped")

    # Prompts

    def _prompts(self, step: Step) -> Iterator[Answer]:
        if step.row["error"]:
            yield self._rejected(step)
            return
        responses = self.lineage.select("responses", "prompt_id in (select unnest($ids))", [step.key.id])
        own = [s for s in responses if s.key.round == step.key.round]
        decisions = [d.row for s in own if (d := self._decision(s.key))]
        kept = [d for d in decisions if d["kept"]]
        reasons = Counter(d["reason"] for d in decisions if not d["kept"])
        counts = {"answers": f"{len(own)}, {len(kept)} kept"}
        if reasons:
            counts["dropped"] = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        yield Answer(step.key, True, "prompts", "accepted", counts | self._went(step))
        if decisions and not kept:
            nearest = max(decisions, key=lambda d: (d["score"] is not None, d["score"] or 0, d["id"]))
            yield from self._filtered(Key("responses", step.key.round, nearest["id"]), nearest)
        yield from self._unpaired(step.key, step.key.id, None)

    def _rejected(self, step: Step) -> Answer:
        reason, _, detail = step.row["error"].partition(":")
        facts = {"rule": PROMPTS.get(reason, reason), "error": detail.strip()}
        plan = stored_plan(self.root, step.key.round, "prompts")
        values = plan.members.get(step.row["member"], {})
        twin = self._twin(plan, values, detail.strip().removeprefix("of ")) if reason == "duplicate" else None
        if twin is None or "max_similarity" not in values:
            return Answer(step.key, False, "prompts", reason, facts, note=NO_PARAMETER)
        own, domain, limit = step.row["problem"], domain_of(plan), values["max_similarity"]
        facts["twin"] = " ".join(twin.split())
        if domain.near_duplicates != "rouge" or domain.structure(own) == domain.structure(twin):
            note = f"{NO_PARAMETER}: both have one structure"
            return Answer(step.key, False, "prompts", reason, facts, note=note)
        likeness, name = (
            Indel.normalized_similarity(words(own), words(twin)),
            f"prompts.{step.row['member']}.max_similarity",
        )
        facts |= {
            "value": f"{likeness:.4g} (ROUGE-L F)",
            "threshold": f"{limit:g} ({name})",
            "margin": f"{likeness - limit:.4g}",
        }
        change = Change(name, -floor(-likeness), "or more")
        return Answer(step.key, False, "prompts", reason, facts, [change], "unless it is near another problem, too")

    def _twin(self, plan: Plan, values: dict[str, Any], id: str) -> str | None:
        """The text of a problem in use: of a round, or a seed of the domain."""
        rows = self.lineage.select("prompts", "id in (select unnest($ids))", [id])
        seeds = domain_of(plan).items("seeds", values["seeds"], FROZEN) if not rows and "seeds" in values else ()
        texts = [*(s.row["problem"] for s in rows), *(i.problem for i in seeds if content_id(i.problem, 0) == id)]
        return texts[0] if texts else None

    # Responses

    def _judgments(self, step: Step) -> Iterator[Answer]:
        facts = {"error": step.row["error"]} if step.row["error"] else {"score": number(step.row["score"])}
        yield Answer(step.key, True, "judge", "a judgment is never dropped; its response:", facts)
        yield from self._responses(step)

    def _responses(self, step: Step) -> Iterator[Answer]:
        key = Key("responses", step.key.round, step.row.get("response_id") or step.key.id)
        decision = self._decision(key)
        if decision is None:
            yield Answer(key, True, "filter", f"the filter of {key.round} has not run on it yet")
            return
        yield from self._filtered(key, decision.row)
        yield from self._unpaired(key, decision.row["prompt_id"], key.id)

    def _decision(self, key: Key) -> Step | None:
        rows = self.lineage.select("filtered", "id in (select unnest($ids))", [key.id])
        return next((s for s in rows if s.key.round == key.round), None)

    def _filtered(self, key: Key, decision: dict[str, Any]) -> Iterator[Answer]:
        with closing(Filter(self.root, key.round, decision["prompt_id"])) as filter:
            yield self._decided(filter, key, decision)

    def _decided(self, filter: Filter, key: Key, decision: dict[str, Any]) -> Answer:
        numbers = {"value": number(decision["score"]) + " (reward)"} if decision["score"] is not None else {}
        if decision["kept"]:
            facts = numbers | {"margin": number(decision["margin"]), "rank": str(decision["rank"])}
            [row] = [
                s
                for s in self.lineage.select("responses", "id in (select unnest($ids))", [key.id])
                if s.key.round == key.round
            ]
            facts |= self._went(row) | self._uncollected(row)
            return Answer(key, True, "filter", f"kept by {filter.place}", facts)
        rule, _, judge = decision["reason"].partition("/")
        facts = {"rule": FILTERS.get(rule, f"a rule of {filter.place}")} | (
            numbers if rule not in ("short", "long") else {}
        )
        if judge:
            facts["value"] = f"{number(filter.score(key.id, judge))} ({judge})"
        trial = filter.trial(decision)
        facts |= self._limits(filter, key, decision, rule, trial)
        return Answer(key, False, "filter", decision["reason"], facts, trial.changes, tried(trial))

    def _limits(self, filter: Filter, key: Key, decision: dict[str, Any], rule: str, trial: Trial) -> dict[str, str]:
        """Threshold, margin, and what else makes a decision plain."""
        response = filter.response(key.id)
        facts = {"value": f"{response['tokens']} tokens"} if rule in ("short", "long") else {}
        change = trial.changes[0] if trial.changes else filter.known_change(decision)
        if change is not None and change.now is not None:
            facts["threshold"] = f"{change.now} ({change.parameter})"
        if decision["margin"] is not None:
            facts["margin"] = number(decision["margin"])
        if rule in ("error", "unjudged", "no_judge"):
            facts["error"] = response["error"] or "; ".join(_errors(filter, key.id)) or "none is recorded"
        if rule in ("rank", "duplicate"):
            kept = self.lineage.select(
                "filtered", "prompt_id in (select unnest($ids)) and kept", [decision["prompt_id"]]
            )
            facts["kept instead"] = ", ".join(s.key.id for s in kept if s.key.round == key.round)
        return facts

    # Pairs

    def _unpaired(self, key: Key, prompt_id: str, response_id: str | None) -> Iterator[Answer]:
        """Why a prompt, or a response of it, is in no pair; nothing where it is in one, or where no stage pairs."""
        about = "prompt_id in (select unnest($ids))"
        pairs = [s for s in self.lineage.select("pairs", about, [prompt_id]) if s.key.round == key.round]
        sides = [s for s in pairs if response_id in (None, s.row["chosen_id"], s.row["rejected_id"])]
        try:
            pairings = None if sides else Pairings(self.root, key.round, prompt_id)
        except FlywheelError:  # the stage has not run
            return
        if pairings is None or not pairings.members:
            return
        for member, gap, change in pairings.nearest(response_id):
            facts = {"value": f"{number(gap)} (gap of the rewards)", "threshold": f"{change.now} ({change.parameter})"}
            facts["margin"] = number(change.now - gap)
            made = len(pairings.candidates(member, change.value))
            note = "tried: the pair is made then" if made else ""
            yield Answer(key, False, "pair", "min_margin", facts, [change], note)
            return
        yield Answer(key, False, "pair", "no pair", {"rule": self._no_candidate(pairings, pairs)})

    def _no_candidate(self, pairings: Pairings, pairs: list[Step]) -> str:
        names = ", ".join(pairings.members)
        if pairs:
            sides = "; ".join(
                f"{s.row['member']} chose {s.row['chosen_id']} over {s.row['rejected_id']}" for s in pairs
            )
            return f"other answers of its prompt were paired: {sides}"
        rewards = pairings.tables["judgments"].filter("reward", prompt_id=pairings.prompt_id)["score"].drop_nulls()
        if rewards.n_unique() < 2:
            return f"{names}: its prompt's answers have no two different rewards"
        return f"{names}: no answer of its prompt can stand against it by their rules"

    # What was made of answers

    def _critiques(self, step: Step) -> Iterator[Answer]:
        row = step.row
        if row["kept"]:
            yield Answer(step.key, True, "critique", f"kept by critique.{row['member']}", self._went(step))
            return
        facts = {
            "verdict": str(row["verdict"]),
            "refinements": f"{row['successes']} of {row['refinements']} reached {row['target']}",
        }
        values = stored_plan(self.root, step.key.round, "critique").members.get(row["member"], {})
        limit, share = values.get("min_success"), row["successes"] / row["refinements"] if row["refinements"] else None
        if row["error"]:
            yield Answer(step.key, False, "critique", "error", {"error": row["error"]}, note=NO_PARAMETER)
        elif share is None or limit is None:
            rule = "it was not refined, for its verdict is not that the answer is wrong, or is wrong itself"
            yield Answer(step.key, False, "critique", "verdict", facts | {"rule": rule}, note=NO_PARAMETER)
        else:
            name = f"critique.{row['member']}.min_success"
            facts |= {
                "value": f"{share:.4g} (share of successes)",
                "threshold": f"{limit:g} ({name})",
                "margin": f"{limit - share:.4g}",
            }
            changes = [Change(name, floor(share), "or less")] if share else []
            note = "" if share else f"{NO_PARAMETER}: none of its refinements succeeded"
            yield Answer(step.key, False, "critique", "min_success", facts, changes, note)

    def _refinements(self, step: Step) -> Iterator[Answer]:
        row = step.row
        went = self._went(step)
        if row["success"] and "went into" in went:
            yield Answer(step.key, True, "critique", "a success", went)
        elif row["success"]:
            rule = "a success that no member of collect took: of a critique the first one is taken, and each text once a prompt"
            yield Answer(step.key, False, "collect", "not taken", {"rule": rule})
        else:
            critiques = self.lineage.select("critiques", "id in (select unnest($ids))", [row["critique_id"]])
            target = next((s.row["target"] for s in critiques if s.key.round == step.key.round), None)
            facts = (
                {"error": row["error"]}
                if row["error"]
                else {"value": str(row["answer"]), "threshold": f"{target} (the target)"}
            )
            yield Answer(
                step.key,
                False,
                "critique",
                "error" if row["error"] else "target",
                facts,
                note=NO_PARAMETER,
            )

    def _pairs(self, step: Step) -> Iterator[Answer]:
        went = self._went(step)
        if "went into" in went:
            yield Answer(step.key, True, "pair", f"made by pair.{step.row['member']}", went)
            return
        members = stored_plan(self.root, step.key.round, "collect").members
        takes = [n for n, values in members.items() if values.get("strategy", n) == "pairs"]
        rule = (
            "collect takes a pair of two answers once, from another member of pair" if takes
            else f"collect has no member `pairs` (it has {', '.join(members) or 'none'})"
        )  # fmt: skip
        yield Answer(
            step.key, False, "collect", "not taken", {"rule": rule}, [] if takes else [Change("collect.pairs", {})]
        )

    def _training(self, step: Step) -> Iterator[Answer]:
        error = step.row["error"]
        if error is None:
            yield Answer(step.key, True, "collect", f"taken by collect.{step.row['member']}", self._went(step))
            return
        limit = re.search(r"max_length is (\d+)", error)
        if not limit:
            yield Answer(
                step.key,
                False,
                "collect",
                error.partition(":")[0],
                {"error": error},
                note=NO_PARAMETER,
            )
            return
        tokens, most = step.row["tokens"], int(limit[1])
        facts = {
            "rule": "it has more tokens than the trainer is given", "value": f"{tokens} tokens",
            "threshold": f"{most} (collect.max_length)", "margin": str(tokens - most),
        }  # fmt: skip
        yield Answer(step.key, False, "collect", "long", facts, [Change("collect.max_length", tokens, "or more")])

    _preferences = _training

    def _went(self, step: Step) -> dict[str, str]:
        """Where a row went: the rows that were made of it, and the models that were trained on these."""
        steps = list(walk(self.lineage.went_into([step])))
        later = [s for table in DESTINATIONS for s in steps if s.key.table == table and s.key != step.key]
        rows = ", ".join(f"{s.key.table} {s.key.round} {s.key.id}" for s in later[:6])
        trained = trained_in(self.root, self.lineage, steps)
        facts = {"went into": rows + (f" … {len(later) - 6} more" if len(later) > 6 else "")} if later else {}
        return facts | {f"model of {t.round}": t.fate for t in trained}

    def _uncollected(self, step: Step) -> dict[str, str]:
        """That no member of `collect` took a kept response, once it has run."""
        rows = self.lineage.select("training", "response_id in (select unnest($ids))", [step.key.id])
        collected = "collect" in store.manifests(self.root, step.key.round)
        if not collected or any(s.key.round == step.key.round for s in rows):
            return {}
        members = ", ".join(stored_plan(self.root, step.key.round, "collect").members)
        return {"not taken": f"no member of collect took it as a training row (it has {members or 'none'})"}


def domain_of(plan: Plan) -> Domain:
    """The domain of a round, as its plan has it."""
    values = dict(plan.domain or {})
    domain: Domain = load("domains", values.pop("strategy"))(**values)
    return domain


def _errors(filter: Filter, id: str) -> list[str]:
    rows = filter.tables["judgments"].filter(response_id=id).drop_nulls("error")
    return [f"{member}: {error}" for member, error in rows.select("member", "error").rows()]
