"""Failing answers, reflected on once with what the environment says of them."""

from typing import ClassVar

import polars as pl
from pydantic import PositiveInt

from tasks.core.stage import Ability, Result
from tasks.critique import CritiqueCase, Critiquing
from tasks.critique._rows import Attempt, Row, critique, refinement, result, tallied, usable
from tasks.domains import Domain, Verdict
from tasks.engines import Policy, Sampling, ask


class Reflect(Critiquing):
    """Has each failing answer written again, once and greedily, with the environment's feedback in the context: Re-ReST
    (Dou et al. 2024, arXiv:2406.01495). What then passes is a success, and can be added to what is trained on.

    The environment is the domain's verifier, its feedback `Domain.describe` of the verdict. Where it cannot tell, the
    target decides right and wrong, and the feedback only says that the answer is wrong (our reading). The feedback never
    shows the right answer. It is the row's `critique`; no model wrote it, so it is never kept to train a critic.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})

    model: str = "parent"
    """Name of the model that answers again."""
    max_tokens: PositiveInt = 256
    """Longest reflection, in tokens."""

    def opened_models(self) -> frozenset[str]:
        """The one `model`."""
        return frozenset({self.model})

    def __call__(self, case: CritiqueCase) -> Result:
        """Metrics: `reflected` (failing answers), `reflection_success` (of the reflections with a verdict, the share that
        pass), `reflection_errors`.
        """
        references = dict(case.prompts.select("id", "reference").collect().iter_rows())
        failing = failures(case, references)
        if not failing:
            return result([], [], rates([]))
        with case.models.open(self.model) as policy:
            rows = self._reflect(policy, case.domain, failing, references)
        return result([tallied(c, r) for c, r in rows], [r for _, r in rows], rates([r for _, r in rows]))

    def _reflect(
        self, policy: Policy, domain: Domain, failing: list[tuple[Attempt, Verdict]], references: dict[str, str | None]
    ) -> list[tuple[Row, Row]]:
        said = [domain.describe(verdict) for _, verdict in failing]
        chats = [domain.refine(a.problem, a.response, text) for (a, _), text in zip(failing, said, strict=True)]
        completions = ask(policy, chats, Sampling(0.0, max_tokens=self.max_tokens), [0] * len(chats))
        rows = []
        for (attempt, verdict), text, completion in zip(failing, said, completions, strict=True):
            fed = critique(attempt, [], text, None) | {"verdict": "fail", "wrong_step": verdict.wrong_step}
            row = refinement(policy, domain, attempt, fed, 0, completion)
            if row["answer"] is not None:
                reference = references[attempt.prompt_id]
                row["success"] = check(domain, attempt, row["response"], row["answer"], reference).passed
            rows.append((fed, row))
        return rows


def failures(case: CritiqueCase, references: dict[str, str | None]) -> list[tuple[Attempt, Verdict]]:
    """The answers that are wrong, each with its verdict. One that cannot be told is not among them."""
    problems = case.prompts.filter(pl.col("error").is_null()).select("problem", prompt_id="id")
    rows = (
        usable(case)
        .join(problems, on="prompt_id")
        .join(case.targets.drop("problem", "response_id"), "prompt_id", "left")
    )
    columns = rows.sort("id").select("id", "prompt_id", "problem", "response", "target", "answer").collect()
    failing = []
    for *known, answer in columns.iter_rows():
        attempt = Attempt(*known, correct=False)
        verdict = check(case.domain, attempt, attempt.response, answer, references[attempt.prompt_id])
        if verdict.passed is False:
            failing.append((attempt, verdict))
    return failing


def check(domain: Domain, attempt: Attempt, response: str, answer: str, reference: str | None) -> Verdict:
    """What the verifier says of a response to the attempt's problem; where it cannot tell, what the target says."""
    verdict = domain.verify(attempt.problem, response, reference)
    if verdict.passed is None and attempt.target is not None:
        return Verdict(answer == attempt.target)
    return verdict


def rates(rows: list[Row]) -> dict[str, float]:
    """How the reflections did."""
    passed = [r["success"] for r in rows if r["success"] is not None]
    return {
        "reflected": float(len(rows)),
        "reflection_success": sum(passed) / len(passed) if passed else 0.0,
        "reflection_errors": float(sum(r["error"] is not None for r in rows)),
    }
