"""Whether an embedded model's completion does the work of its role, beside the completion that a program wrote."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.core.verdicts import Verdict, closing_line
from tasks.domains._stories import read

if TYPE_CHECKING:
    from tasks.domains.arithmetic import Arithmetic

SOLVERS = frozenset({"solve", "refine", "revise", "retry", "hint"})
JUDGES = frozenset({"judge", "critique"})
THING = re.compile(r"has \d+ (\w+)\.")


def mark(domain: "Arithmetic", role: str, prompt: str, expected: str, completion: str) -> Verdict:
    """Passed or failed: solvers by the verifier, judges by their verdict, authors by what they were asked to write, all others
    by their closing line.
    """
    if role in WRITERS:
        return Verdict(WRITERS[role](prompt, expected, completion))
    if role in SOLVERS:
        return Verdict(domain.verify(prompt.split("\n\n")[0], completion).passed is True)
    if role in JUDGES:
        verdict = domain.verdict(completion)
        return Verdict(verdict.error is None and verdict.passed == domain.verdict(expected).passed)
    return Verdict(closing_line(completion) == closing_line(expected))


def _written(prompt: str, expected: str, completion: str) -> bool:
    """A well-formed problem of the level that was asked for."""
    story, other = read(completion), read(expected)
    return story is not None and other is not None and len(story.steps) == len(other.steps)


def _imitated(prompt: str, expected: str, completion: str) -> bool:
    """Also about the things of the examples, and none of them."""
    things = THING.findall(prompt)[:1] == THING.findall(completion)
    return things and completion not in prompt and _written(prompt, expected, completion)


def _mutated(prompt: str, expected: str, completion: str) -> bool:
    """`deeper`: the same story and one day more; `broader`: one day is another."""
    how, problem = prompt.split("\n\n", 1)
    story, before = read(completion), read(problem)
    if story is None or before is None or story.start != before.start:
        return False
    if how == "deeper":
        return story.steps[:-1] == before.steps
    return len(story.steps) == len(before.steps) and _changed(story.steps, before.steps) == 1


def _changed(steps: tuple[tuple[str, int], ...], before: tuple[tuple[str, int], ...]) -> int:
    return sum(one != other for one, other in zip(steps, before, strict=True))


WRITERS: dict[str, Callable[[str, str, str], bool]] = {"write": _written, "imitate": _imitated, "mutate": _mutated}
