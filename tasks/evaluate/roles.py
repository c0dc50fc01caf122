"""What an embedded model can do in each role that it was taught, on documents of problems that it has not seen."""

import random
from typing import Any, ClassVar, Literal

from pydantic import PositiveInt

from tasks.core.ids import seed_of
from tasks.core.stage import Ability, Result
from tasks.domains import Message
from tasks.engines import Sampling
from tasks.evaluate import EvaluateCase, Evaluation
from tasks.evaluate._items import ask
from tasks.evaluate._measures import measures_frame, proportion


class Roles(Evaluation):
    """Measures how often the model plays each role of the domain (solver, judge, author …) as it should. It completes the
    prompt of a document that the domain writes about a held-out problem, greedily, and the domain marks the completion:
    solvers by the verifier, judges by their verdict, authors by the problem that was asked for. It is a measure of this
    project, and of no paper.

    Measures: `role_<name>`, the share of completions that passed; a completion that cannot be read fails, as a round that
    has lost a role babbles. `roles_errors`, the share of all requests that failed or that the domain cannot mark, which
    counts in nothing else. A domain without roles has no measures.
    """

    needs: ClassVar[frozenset[Ability]] = frozenset({"samples"})
    example: ClassVar[dict[str, Any]] = {"problems": 3}

    split: Literal["heldout", "validation"] = "heldout"
    """The frozen set whose problems they are about."""
    problems: PositiveInt = 100
    """Documents of each role, spread over the levels 2 to 8."""
    roles: tuple[str, ...] | None = None
    """Roles to play; null plays all."""
    max_tokens: PositiveInt = 256
    """Longest completion."""

    def __call__(self, case: EvaluateCase) -> Result:
        """The measures of all roles."""
        roles = [role for role in case.domain.roles if self.roles is None or role in self.roles]
        documents = [(role, *document) for role in roles for document in self._documents(case, role)]
        sampling = Sampling(temperature=0.0, max_tokens=self.max_tokens)
        marks: dict[str, list[bool]] = {role: [] for role in roles}
        if documents:
            with case.open() as policy:
                completions = ask(policy, [chat for _, chat, _ in documents], sampling)
            for (role, chat, expected), completion in zip(documents, completions, strict=True):
                verdict = case.domain.mark(role, chat[-1]["content"], expected, completion.text)
                if completion.error is None and verdict.error is None:
                    marks[role].append(bool(verdict.passed))
        marked = sum(map(len, marks.values()))
        measures = [proportion(f"role_{role}", None, passed) for role, passed in marks.items()]
        measures.append(proportion("roles_errors", None, [n >= marked for n in range(len(documents))]))
        return Result({"measures": measures_frame(m for m in measures if m)})

    def _documents(self, case: EvaluateCase, role: str) -> list[tuple[list[Message], str]]:
        rng = random.Random(seed_of("roles", role))
        return [case.domain.document(rng, role, 2 + n % 7, 0.0, self.split) for n in range(self.problems)]
