"""Whether the round's own samples still explore, and whether its reward can exploit what they find."""

from typing import Any

import polars as pl
from pydantic import Field, PositiveInt

from tasks.core.stage import Result
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._measures import Measure, auroc, mean, measures_frame, proportion
from tasks.evaluate.answers import pass_at_k

Row = dict[str, Any]


class Exploration(Evaluation):
    """Measures whether the answers that the round was made from still explore, and whether their reward tells right from
    wrong, by the domain's verifier. The balance score of a prompt is bs = min(n′/n*, 1)·n′/n: n different answers have a
    reward of at least `min_reward`, and n′ of these are right; 0 where n is 0 (B-STaR, Zeng et al. 2024, arXiv:2412.17256).
    Equal texts count once, as in the authors' code (hkust-nlp/B-STaR): an answer that is repeated explores nothing. The
    paper's search for the temperature and threshold with the best score is left out.

    Measures, means over prompts: `exploration_balance`; `exploration_pass_at_<k>`; `exploration_distinct`, the number of
    different right answers, blanks aside; over answers: `exploration_auroc`, the chance that a right one has a higher reward
    than a wrong one; `exploration_errors`, the share that could not be checked or has no reward, which counts in nothing
    else. A base has no such answers, and a domain without a verifier nothing but errors.
    """

    min_reward: float = 0.5
    """Threshold of the reward, in its own units."""
    target: float = Field(8, gt=0)
    """n*: wanted number of different right answers of a prompt (8 in the paper)."""
    prompts: PositiveInt = 500
    """Prompts to look at, the first by id."""
    ks: tuple[PositiveInt, ...] = (1, 8)
    """The k of pass@k; prompts with fewer checked answers are left out of it."""

    def opened_models(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def read_tables(self) -> frozenset[str]:
        """The round's answers and their rewards."""
        return frozenset({"prompts", "responses", "judgments"})

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures."""
        rows = _checked(case, self.prompts)
        usable = [r for r in rows if r["truth"] is not None and r["score"] is not None]
        by_prompt: dict[str, list[Row]] = {}
        for row in usable:
            by_prompt.setdefault(row["prompt_id"], []).append(row)
        measures = [
            *self._over_prompts(list(by_prompt.values())),
            auroc("exploration_auroc", None, usable),
            proportion("exploration_errors", None, [r["truth"] is None or r["score"] is None for r in rows]),
        ]
        return Result({"measures": measures_frame(m for m in measures if m)})

    def _over_prompts(self, prompts: list[list[Row]]) -> list[Measure | None]:
        balances = [self.balance(answers) for answers in prompts]
        distinct = [float(len({"".join(r["response"].split()) for r in p if r["truth"]})) for p in prompts]
        solved = {k: [pass_at_k(len(p), sum(r["truth"] for r in p), k) for p in prompts] for k in self.ks}
        shares = {k: [share for share in values if share is not None] for k, values in solved.items()}
        return [
            mean("exploration_balance", None, balances),
            *(mean(f"exploration_pass_at_{k}", None, values) for k, values in shares.items()),
            mean("exploration_distinct", None, distinct, None),
        ]

    def balance(self, answers: list[Row]) -> float:
        """The balance score of one prompt's answers, rows with `response`, `score` and `truth`, in [0, 1]."""
        selected = {r["response"]: r["truth"] for r in answers if r["score"] >= self.min_reward}
        right = sum(selected.values())
        return min(right / self.target, 1.0) * right / len(selected) if selected else 0.0


def _checked(case: EvaluateCase, limit: int) -> list[Row]:
    """prompt_id, response, score (the reward) and truth (by the verifier) of the answers to the first prompts."""
    if case.prompts is None or case.responses is None or case.judgments is None:
        return []
    rewards = case.judgments.filter("reward").select("score", id="response_id")
    given = case.responses.filter(pl.col("error").is_null(), pl.col("response").is_not_null())
    prompts = case.prompts.filter(pl.col("error").is_null()).sort("id").head(limit)
    problems = prompts.select("problem", "reference", prompt_id="id")
    rows = given.select("id", "prompt_id", "response").join(problems, on="prompt_id").join(rewards, on="id", how="left")
    return [
        row | {"truth": case.domain.verify(row["problem"], row["response"], row["reference"]).passed}
        for row in rows.sort("prompt_id", "id").collect().iter_rows(named=True)
    ]
