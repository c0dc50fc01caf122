"""Several models write instructions, those that need an input and those that do not each in a pipeline of its own."""

import random
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import polars as pl
from pydantic import Field, NonNegativeInt, PositiveInt

from tasks.core.ids import content_id, seed_of
from tasks.domains import Message
from tasks.engines import Completion, Policy
from tasks.prompts import FROZEN, PromptsCase
from tasks.prompts._screen import Intake, Problem, usable
from tasks.prompts._writing import Draft, Writing, by_source, few_shot, screen

NEEDS_INPUT = (
    "Write one new instruction that needs an input, as these do. Give only the instruction, without the input."
)
GIVE_INPUT = "Write an input for the last instruction. Give only the input."


class EnsembleInstruct(Writing):
    """Has several models write problems in two pipelines with simple templates, one for instructions that need an input and
    one for those that do not: Ensemble-Instruct (Lee et al. 2023, arXiv:2310.13961), a Self-Instruct for smaller models.
    Examples are of the pipeline's own kind, 24 and 10 in the released scripts, at most 4 of them written by a model.

    Our reading for problems that are one text: what follows its first blank line is the input. Where an input is needed,
    the author writes the instruction first, then an input for it, and both are joined by a blank line; else it writes a
    problem like the examples (`Domain.imitate`). A kind of which there is no example is left out, so that a domain without
    inputs has one pipeline. The authors take turns, a batch each, so no two are in memory together.

    That several models answer, and the answer that most agree with is taken, is for `generate` (`ensemble`) and `judge`.
    """

    example: ClassVar[dict[str, Any]] = {
        "models": ["parent", "base"],
        "count": 12,
        "batch": 6,
        "evaluation": {"heldout": 50},
    }

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    """The authors: names of ancestors or of models of the roster."""
    with_input: float = Field(0.5, ge=0, le=1)
    """Share of the problems that have an input."""
    seeds: PositiveInt = 175
    """Seed problems of the domain in the pool."""
    examples_with_input: PositiveInt = 24
    """Problems that the author of one with an input sees."""
    examples_without: PositiveInt = 10
    """Problems that the author of one without an input sees."""
    model_examples: NonNegativeInt = 4
    """Most of these that a model wrote."""

    def opened_models(self) -> frozenset[str]:
        """The authors."""
        return frozenset(self.models)

    def __call__(self, case: PromptsCase) -> pl.LazyFrame:
        """Has problems written until `count` are accepted or `max_attempts` are used up."""
        items = case.domain.items("seeds", self.seeds, FROZEN)
        seeds = [Problem(content_id(i.problem, 0), i.problem, i.level) for i in items]
        pool = list({p.id: p for p in (*seeds, *usable(case.prompts), *case.known)}.values())
        intake, turn = self.intake(case, pool), 0
        while pool and (size := self.batch_size(intake)):
            rng = random.Random(seed_of(case.seed, "ensemble_instruct", len(intake.rows)))
            with case.models.open(self.models[turn % len(self.models)]) as policy:
                self._write_both(case, rng, policy, [*pool, *intake.accepted], size, intake)
            turn += 1
        return intake.table()

    def _write_both(
        self, case: PromptsCase, rng: random.Random, policy: Policy, pool: list[Problem], size: int, intake: Intake
    ) -> None:
        """One author's batch: first the problems with an input, then those without."""
        whole, plain = [p for p in pool if parts(p.text)[1]], [p for p in pool if not parts(p.text)[1]]
        share = self.with_input if whole and plain else float(bool(whole))
        number = sum(rng.random() < share for _ in range(size))
        self._write_with_input(self._examples(rng, whole, self.examples_with_input, number), rng, policy, intake)
        shown = self._examples(rng, plain, self.examples_without, size - number)
        self.write(
            [Draft(e, self.request(case.domain.imitate([p.text for p in e]), rng)) for e in shown], policy, intake
        )

    def _write_with_input(self, shown: list[list[Problem]], rng: random.Random, policy: Policy, intake: Intake) -> None:
        """Instructions, then an input for each that could be read."""
        drafts = [Draft(e, self.request(ask_instruction(e), rng)) for e in shown]
        written = self._ask(policy, drafts)
        wanted = {n: parts(c.text)[0] for n, c in enumerate(written) if not c.error and c.text.strip()}
        inputs = self._ask(
            policy, [Draft(shown[n], self.request(ask_input(shown[n], i), rng)) for n, i in wanted.items()]
        )
        given = dict(zip(wanted, inputs, strict=True))
        for n, draft in enumerate(drafts):
            last = given.get(n, written[n])
            text = f"{wanted[n]}\n\n{last.text.strip()}" if n in given and last.text.strip() else ""
            screen(draft, text, last.error, policy.digest, intake)

    def _ask(self, policy: Policy, drafts: Sequence[Draft]) -> list[Completion]:
        completions = dict(policy.sample([draft.request for draft in drafts])) if drafts else {}
        return [completions[n] for n in range(len(drafts))]

    def _examples(self, rng: random.Random, pool: list[Problem], count: int, number: int) -> list[list[Problem]]:
        """So many lists of `count` examples each."""
        people, models = by_source(pool)
        return [few_shot(rng, people, models, count, self.model_examples) for _ in range(number)]


def parts(text: str) -> tuple[str, str]:
    """The instruction of a problem and its input, empty where it has none."""
    instruction, _, given = text.strip().partition("\n\n")
    return instruction.strip(), given.strip()


def ask_instruction(examples: Sequence[Problem]) -> list[Message]:
    """Author: an instruction like those of the examples."""
    shown = [f"Instruction {n}:\n{parts(p.text)[0]}" for n, p in enumerate(examples, 1)]
    return [{"role": "user", "content": "\n\n".join([*shown, NEEDS_INPUT])}]


def ask_input(examples: Sequence[Problem], instruction: str) -> list[Message]:
    """Author: an input for an instruction, after the examples with theirs."""
    shown = [
        f"Instruction {n}:\n{i}\nInput:\n{given}" for n, (i, given) in enumerate((parts(p.text) for p in examples), 1)
    ]
    last = f"Instruction {len(examples) + 1}:\n{instruction}"
    return [{"role": "user", "content": "\n\n".join([*shown, last, GIVE_INPUT])}]
