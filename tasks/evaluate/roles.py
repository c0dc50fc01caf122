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
    """Has the model play each role of the domain, greedily, on documents that the domain writes about held-out problems, and
    marks what it says: solvers by the verifier, judges by their verdict, authors by the problem that was asked for.

    Measures: `role_<name>`, a share with Wilson's interval. A later round that forgets a role shows here. For a domain that
    writes no documents there is no measure.
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
        measures = [proportion(f"role_{role}", None, passed) for role, passed in marks.items()]
        return Result({"measures": measures_frame(m for m in measures if m)})

    def _documents(self, case: EvaluateCase, role: str) -> list[tuple[list[Message], str]]:
        rng = random.Random(seed_of("roles", role))
        return [case.domain.document(rng, role, 2 + n % 7, 0.0, self.split) for n in range(self.problems)]
