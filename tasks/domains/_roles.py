"""The roles that a model plays for a domain, as conversations in plain language that any chat model follows.

Each method gives the chat to which the model's completion is the role's work. Text that is judged is shielded, so that it
cannot speak for the judge. Where a `form` closes the text, its `read` reads it.
"""

from collections.abc import Sequence
from typing import Literal

from tasks.core.plugin import Plugin
from tasks.core.verdicts import Choice, Form, Verdict, listed, shield

Message = dict[Literal["role", "content"], str]
"""One turn of a chat: `{"role": "user", "content": …}`; a conversation is a list of them."""

PREFERENCE = Choice(("A", "B", "tie"))
"""How a comparison closes."""
TRUE, FALSE = "True", "False"
"""The two completions of `Roles.truth` and `Roles.knows`."""


class Roles(Plugin):
    """Every role, in plain language."""

    def write(self, examples: list[str], level: int | None) -> list[Message]:
        """Author: write one new problem like `examples`, at `level` where the domain has levels."""
        return self.imitate(examples)

    def imitate(self, examples: Sequence[str]) -> list[Message]:
        """Author: write one new problem in the manner of the examples."""
        problems = "\n\n".join(f"Problem {i}:\n{e}" for i, e in enumerate(examples, 1))
        return _user(problems, "Write one new problem of the same kind and difficulty. Give only the problem.")

    def mutate(self, problem: str, how: Literal["deeper", "broader"]) -> list[Message]:
        """Author: rewrite a problem, `deeper` with a further step, `broader` as another one of the same kind."""
        tasks = {
            "deeper": "Rewrite it so that it needs one further step of reasoning.",
            "broader": "Write another problem on the same topic that needs other reasoning, as hard as this one.",
        }
        return _user(f"A problem:\n{problem}", f"{tasks[how]} Give only the problem.")

    def solve(self, problem: str) -> list[Message]:
        """Solver: answer the problem."""
        return _user(problem)

    def solve_with(self, problem: str, hint: str) -> list[Message]:
        """Solver: answer the problem with a hint."""
        return _user(problem, f"Hint: {hint}")

    def another_way(self, problem: str, response: str) -> list[Message]:
        """Solver: having answered, answer again in another way."""
        turn: Message = {"role": "assistant", "content": response}
        return [*self.solve(problem), turn, *_user("Now solve it again in a different way.")]

    def agree(self, problem: str, solutions: Sequence[str]) -> list[Message]:
        """Solver: read several solutions, extract the answer of each, and give the most frequent one."""
        task = (
            "Extract the final answer of each solution. Give the answer that most of them agree on, in the form in which "
            "you would end a solution of your own."
        )
        return _user(shield(problem), listed(solutions, "Solution"), task)

    def judge(self, problem: str, response: str) -> list[Message]:
        """Judge: is the response right? `Domain.verdict` reads what comes back."""
        task = "Is this answer correct? Check it step by step, then end with 'Verdict: correct' or 'Verdict: wrong'."
        return _user(_proposal(problem, response), task)

    def grade(self, problem: str, response: str, rubric: str, form: Form) -> list[Message]:
        """Judge: points by a rubric, closed as `form` says."""
        return _user(_proposal(problem, response), rubric, form.instruction)

    def compare(self, problem: str, first: str, second: str) -> list[Message]:
        """Judge: which of two answers is better? Closes as `PREFERENCE`."""
        answers = f"Answer A:\n{shield(first)}\n\nAnswer B:\n{shield(second)}"
        task = f"Compare the two answers step by step. {PREFERENCE.instruction}"
        return _user(shield(problem), answers, task)

    def grade_steps(self, problem: str, response: str, form: Form) -> list[Message]:
        """Judge: is each step right? Closes as `form`, a `Steps`."""
        task = f"Check every step of the answer, each given those before it. {form.instruction}"
        return _user(_proposal(problem, response), task)

    def grade_together(self, problem: str, responses: Sequence[str], form: Form) -> list[Message]:
        """Judge: the criteria that matter for this problem with their weights first, then points for each response by them
        (SPCT, Liu et al. 2025, arXiv:2504.02495). Closes as `form`, a `Steps` of all responses.
        """
        task = (
            "First write the criteria that matter for this problem, each with a weight. Then analyse each response by them. "
            f"{form.instruction}"
        )
        return _user(shield(problem), listed(responses, "Response"), task)

    def truth(self, problem: str, ideas: Sequence[str], answer: str) -> list[Message]:
        """Judge: is a possible answer true? The completion is `True` or `False`. `ideas` are answers that were sampled
        (P(True), Kadavath et al. 2022, arXiv:2207.05221).
        """
        brainstormed = "Brainstormed answers:\n" + "\n".join(map(shield, ideas))
        task = f"Possible answer: {shield(answer)}\n\nIs the possible answer True or False? Say only that."
        return _user(shield(problem), brainstormed, task)

    def knows(self, problem: str) -> list[Message]:
        """Judge: would the model answer this problem rightly? The completion is `True` or `False` (P(IK), Kadavath et al.
        2022, arXiv:2207.05221).
        """
        return _user(shield(problem), "Is it True or False that you will answer this correctly? Say only that.")

    def count_habit(self, problem: str, response: str, habit: str, form: Form) -> list[Message]:
        """Judge: how often does the response do what `habit` describes? Closes as `form`, a `Count`."""
        return _user(_proposal(problem, response), f"How often does the answer do this: {habit}? {form.instruction}")

    def criticise(self, problem: str, response: str) -> list[Message]:
        """Critic: go through the steps, name the first wrong one, close with a verdict. `Domain.critic_verdict` reads it."""
        task = (
            "Go through the answer step by step. For each step say 'Step k: correct' or 'Step k: wrong' and why. "
            "End with 'Verdict: correct' or 'Verdict: wrong'."
        )
        return _user(_proposal(problem, response), task)

    def feedback(self, problem: str, response: str) -> list[Message]:
        """Teacher: say where an answer goes wrong, without the right answer."""
        task = "Say what is wrong with this answer, or that all is right. Do not give the right answer away."
        return _user(_proposal(problem, response), task)

    def read_feedback(self, text: str) -> str:
        """The feedback in what the teacher wrote; empty where there is none."""
        return text.strip()

    def describe(self, verdict: Verdict) -> str:
        """What an environment says of an answer that was checked: whether and where it is wrong, without the right answer."""
        if verdict.passed:
            return "All is right."
        return f"Step {verdict.wrong_step} is wrong." if verdict.wrong_step else "The answer is wrong."

    def refine(self, problem: str, response: str, critique: str) -> list[Message]:
        """Refiner: answer again after reading a critique or feedback."""
        task = "Using the critique, write the corrected answer in full."
        return _user(_proposal(problem, response), f"A critique of it:\n{critique}", task)

    def retry(self, problem: str, response: str) -> list[Message]:
        """Refiner: answer again after a look at the first answer, without being told whether it is wrong."""
        task = "There may be a mistake in this answer. Look it over, and write the full answer again."
        return _user(_proposal(problem, response), task)


def _user(*parts: str) -> list[Message]:
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _proposal(problem: str, response: str) -> str:
    return f"{shield(problem)}\n\nA proposed answer:\n{shield(response)}"
