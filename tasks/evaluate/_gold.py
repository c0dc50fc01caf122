"""Gold answers, put before the round's judges as rows of `prompts` and `responses`."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean

from tasks.core import frames, tables
from tasks.core.ids import content_id, member_seed
from tasks.core.judging import JudgeCase, Judging, finite
from tasks.domains import Domain, Item
from tasks.engines import Policy, Scored, turns
from tasks.evaluate import EvaluateCase
from tasks.evaluate._items import Row


def auditable(case: EvaluateCase) -> tuple[dict[str, Judging], dict[str, list[str]]]:
    """The round's judges of single responses, by name; and those that cannot be asked here, with the models they lack."""
    missing = {name: missing_models(judge, case) for name, judge in case.judges.items() if judge.auditable}
    judges = {name: case.judges[name] for name in sorted(missing) if not missing[name]}
    return judges, {name: names for name, names in missing.items() if names}


def missing_models(judge: Judging, case: EvaluateCase) -> list[str]:
    """Models that a judge asks and the evaluation cannot open; the evaluated model stands in for the parent."""
    return sorted(judge.opened_models() - {"parent"} - case.models.names)


def judged(
    judges: dict[str, Judging], items: Sequence[Item], case: EvaluateCase
) -> tuple[str, list[tuple[str, Item, Row]]]:
    """The digest of the model that stands in the parent's place, and (judge, item, opinion) of each judge on each item's
    response.
    """
    with case.open() as policy:
        digest, logprobs = policy.digest, mean_logprobs(policy, items, case)
    responses = [gold_response(item, *mean, case.domain) for item, mean in zip(items, logprobs, strict=True)]
    prompts = [gold_prompt(item, case.domain) for item in items]
    gold = JudgeCase(
        frames.frame(tables.prompts, prompts), frames.frame(tables.responses, responses), case.models,
        case.domain, case.seed, model="model",
    )  # fmt: skip
    by_id = {row["id"]: item for row, item in zip(responses, items, strict=True)}
    names = by_model(judges)
    return digest, [(n, by_id[row["response_id"]], row) for n in names for row in opinions(n, judges[n], gold)]


def by_model(judges: dict[str, Judging]) -> list[str]:
    """Judges that ask the evaluated model alone come first: it is loaded once."""
    return sorted(judges, key=lambda name: (bool(judges[name].opened_models() - {"parent"}), name))


def mean_logprobs(policy: Policy, items: Sequence[Item], case: EvaluateCase) -> list[tuple[float | None, int | None]]:
    """Mean log-probability per token of each gold answer after its problem, the end token included as it is of a sampled
    one, and the number of tokens; None where the engine cannot score.
    """
    if not case.models.engine("model").scores:
        return [(None, None)] * len(items)
    chats = [turns(case.domain.solve(i.problem)) for i in items]
    scores = dict(policy.score(chats, [i.response or "" for i in items], closed=True))
    return [_mean(scores[n]) for n in range(len(items))]


def _mean(scored: Scored) -> tuple[float | None, int | None]:
    if scored.error or not scored.logprobs:
        return None, None
    return fmean(scored.logprobs), len(scored.logprobs)


def gold_prompt(item: Item, domain: Domain) -> Row:
    """A gold item's problem as a row of `prompts`, one for each answer: no judge then sees two answers to one prompt."""
    prompt = {"id": _prompt_id(item), "problem": item.problem, "prompt": domain.solve(item.problem)}
    return prompt | {"level": item.level, "reference": item.reference}


def gold_response(item: Item, mean_logprob: float | None, tokens: int | None, domain: Domain) -> Row:
    """A gold item's answer as a row of `responses`."""
    text = item.response or ""
    row = {"id": content_id("gold", item.problem, text), "prompt_id": _prompt_id(item), "sample": 0}
    row |= {"response": text, "answer": domain.answer(text), "finish_reason": "stop"}
    return row | {"mean_logprob": mean_logprob, "tokens": tokens}


def _prompt_id(item: Item) -> str:
    return content_id("gold prompt", item.problem, item.response)


def opinions(name: str, judge: Judging, gold: JudgeCase) -> Iterable[Row]:
    """A judge's rows, drawn as in a round."""
    seed = member_seed(gold.seed, name, judge.strategy_name())
    return finite(judge(replace(gold, seed=seed))).collect().iter_rows(named=True)
