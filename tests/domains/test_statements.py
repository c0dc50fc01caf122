"""Texts that name a number or a letter without stating it as the answer: 2,000 tries, of which none may be read as it."""

import random

import pytest

from tasks.domains.choices import Choices
from tasks.domains.math import Math, final

MATH = Math(train="a", test="b")
CHOICES = Choices(train="a", test="b")

NO_NUMBER = [
    *("{n}-{m}", "{n} - {m}", "{n}–{m}", "{n} to {m}", "{n} or {m}", "{n} and {m}", "{n}, {m}", "{n}; {m}", "{n} +- 3", "{n} ± 3", "{n}±3"),
    *(r"{n} \pm 3", r"\pm {n}", "{n}+x", "{n} + x", "x + {n}", "{n}x", "{n} x", "3x{n}", "3 * {n}", "3*{n}", r"{n} \cdot 2", "{n}^2", r"{n}^{{2}}"),
    *(r"\ge {n}", r"\geq {n}", r"\le {n}", r"x \leq {n}", ">{n}", "> {n}", "< {n}", "<= {n}", "x >= {n}", "≥ {n}", "≤{n}", "~{n}", "~ {n}", "≈ {n}"),
    *(r"\approx {n}", r"\neq {n}", "!= {n}", "x != {n}", "x ≠ {n}", r"\sim {n}", r"\sqrt{{{n}}}", r"\frac{{{n}}}{{2}}", r"\{{{n}, {m}\}}", "({n}, {m})"),
    *("[{n}, {m}]", r"{n} \text{{ or }} {m}", r"\text{{not }} {n}", r"{n}\text{{ million}}", r"\text{{about }}{n}", r"{n}_2", r"{n}_{{16}}", r"\log {n}"),
    *("not {n}", "never {n}", "no {n}", "about {n}", "around {n}", "approximately {n}", "roughly {n}", "nearly {n}", "at least {n}", "at most {n}"),
    *("up to {n}", "more than {n}", "less than {n}", "fewer than {n}", "between {n} and {m}", "either {n} or {m}", "anything but {n}", "maybe {n}"),
    *("probably {n}", "perhaps {n}", "half of {n}", "twice {n}", "double {n}", "minus {n}", "negative {n}", "the square of {n}", "3 times {n}"),
    *("{n}?", "{n} or so", "{n} or more", "{n} at least", "{n} at the most", "{n} million", "{n} thousand", "{n} hundred", "{n} dozen", "{n}k", "{n}th"),
    *("{n} and a half", "{n}½", "{n}²", "{n} squared", "{n} times 2", "{n} plus 1", "{n} divided by 2", "{n} if x is 1", "{n} is wrong"),
    *("{n} is not right", "{n}, or is it {m}", "-{n}", "1/{n}", "{n}/2", "{n}.5", "0.{n}", "{n}e2", "{n}{n}", "{n},5", "{n}.5.3", "{n}..{m}"),
    *("{n}...", "{n}…", "x{n}", "0x{n}", "#{n}", "{n}:30", "{n} : {m}", "{n}/{m}/2024", "{n} % {m}", "{n} & {m}", "{n} | {m}", "{n}\\{m}", "{n} ({m})"),
    *("{n} mod {m}", "{n} choose {m}", "{n} feet {m} inches", "{n} remainder {m}", "{n} r{m}", "{n} vs {m}", "{n} per {m}", "{n} base {m}"),
    *("{n} • {m}", "{n} ∕ {m}", "{n} over {m}", "{n} twice", "{n} halved", "{n} lakh", "{n} bn", "{n} pi", "{n} below zero", "{n} is a lie"),
    *("({n})({m})", "({n})!+1", "{n}!+1", "<{n}>", "{n}>{m}", "{n} = x + 1", "{n} != x", "x = not {n}", "x ≠ 3 = {n}"),
]  # fmt: skip
"""What is said of a number in the place of the number."""
PLACES = [
    *("{s}", r"\boxed{{{s}}}", r"So $\boxed{{{s}}}$.", "#### {s}", "It adds up.\n#### {s}\n", "The answer is {s}", "The answer is {s}."),
    *("Answer: {s}", "**Answer:** {s}", "**Answer: {s}**", "So the final answer is: {s}", "We find {s}.", "The answer is x = {s}", "answer = {s}"),
]  # fmt: skip
NO_STATEMENT = [
    *("The answer is not {n}.", "The answer isn't {n}.", "I doubt that the answer is {n}.", "If the answer is {n} I am wrong.", "Is the answer {n}?"),
    *("The answer is {n}?", "Tom's answer is {n}.", "A wrong answer: {n}", "Their first answer is {n}", r"not \boxed{{{n}}}", r"It isn't \boxed{{{n}}}."),
    *(r"20 - \boxed{{{n}}}", r"\boxed{{{n}}} - 2", r"\boxed{{{n}}}^2", r"2\boxed{{{n}}}", r"-\boxed{{{n}}}", r"\sqrt{{\boxed{{{n}}}}}", r"x < \boxed{{{n}}}"),
    *(r"x \neq \boxed{{{n}}}", r"\approx \boxed{{{n}}}", r"\boxed{{{n}}} is wrong.", r"\boxed{{{n}}} or \boxed{{{m}}}", r"\boxed{{{n}}} million"),
    *(r"Is it \boxed{{{n}}}?", r"\boxed{{\boxed{{{n}}} or {m}}}", r"\boxed{{{n}", r"\boxed{{}}{n}?", "It is not true that it is {n}.", "Nobody can say it is {n}"),
    *("They claim it is {n}.", "She said {n}.", "My guess is {n}.", "Perhaps it is {n}.", "I am unsure whether it is {n}.", "It cannot be {n}."),
    *("2x = {n}", "x + 1 = {n}", "5 - y = {n}", "answer + 1 = {n}", "2 * answer = {n}", r"\boxed{{2x = {n}}}", r"\boxed{{{m}}}, \boxed{{{n}}}"),
    *("Assume the answer is {n}.", "A possible answer: {n}", "It's untrue that the answer is {n}.", "Nobody finds {n}."),
    *("Do not write '#### {n}'", "Suppose it is {n}", "rather than {n}", "He has no more than {n}", "не {n}", "不是{n}", "n\u043et {n}", "nο {n}"),
]  # fmt: skip
"""Sentences that do not say that it is the number."""
DIGITS = {
    "full width": lambda s: "".join(chr(ord(c) + 0xFEE0) for c in s),
    "Arabic": lambda s: s.translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")),
    "superscript": lambda s: s.translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")),
    "one of them full width": lambda s: f"{s[:-1]}{chr(ord(s[-1]) + 0xFEE0)}",
    "struck through": lambda s: "".join(f"{c}\u0336" for c in s),
    "with zero-width spaces": "\u200b".join,
    "right to left": lambda s: f"\u202e{s[::-1]}\u202c",
    "with NUL": lambda s: f"{s[0]}\x00{s[1:]}",
}


def forgery(number: int) -> tuple[str, str]:
    """The n-th text, and the answer that it must not be read as."""
    rng = random.Random(f"statement {number}")
    n, m = rng.sample(range(10, 2000), 2)
    span = NO_NUMBER[number % len(NO_NUMBER)].format(n=n, m=m)
    kinds = [rng.choice(PLACES).format(s=span)] * 6
    kinds += [NO_STATEMENT[number % len(NO_STATEMENT)].format(n=n, m=m)] * 2
    kinds += [rng.choice(PLACES).format(s=rng.choice(list(DIGITS.values()))(str(n)))]
    before = rng.choice(["", "", "", f"We had {m}.\n", f"3 * {m} = {3 * m}. "])
    return before + kinds[number % len(kinds)], str(n)


@pytest.mark.torture("an answer that names the right number without stating it", "it is never read as that number")
def test_no_number_is_read_that_is_not_stated(tries):
    read = [(text, n) for text, n in map(forgery, tries(2000)) if final(text) == n or MATH.verify("", text, n).passed]
    assert read == []


def test_the_tries_are_of_all_parts():
    texts = [forgery(n)[0] for n in range(2000)]
    assert len(set(texts)) > 1900


def test_a_number_that_is_stated_is_read():
    """What surrounds the tries, with the number itself."""
    texts = [place.format(s=s) for place in PLACES for s in ("18", "$18", "18.00", "18 apples", "36/2", "1.8e1")]
    assert [t for t in texts if final(t) != "18"] == []


@pytest.mark.parametrize(
    "text",
    [
        "Therefore, Janet makes $\\boxed{18}$ dollars every day.",
        "\\[\n\\boxed{18}\n\\]\n\nThat is because 3 > 2.",
        "\\boxed{18\\text{ cm}^2}",
        "\\boxed{18^\\circ}",
        "\\text{Total} = 12 + 6 = \\boxed{18}",
        "### Answer\n18",
        "- **Answer:** 18 km/h",
        "<answer> 18 </answer>",
        "She has not eaten 12, so 18 are left.",
        "It is not 17. The answer is 18 (eighteen)!",
        "9 * 2 = $<<9*2=18>>18 every day",
        "Then $2 \\times 9 = 18$",
        "The answer is 12. No, the answer is 18.",
        "答案是 \\boxed{18}。",
        "Answer: $18/hour",
        "The answer is 18 times.",
        "Answer: 18 quarters",
        "Answer: 18 cm2",
        "The answer is 18 because 2 of 9 are 18",
        "3 x 6 = 18",
        "x = 18",
    ],
)
def test_how_models_state_a_number(text):
    assert final(text) == "18"


def test_an_unannounced_number_is_wrong_where_it_is_another_however_it_is_stated():
    assert MATH.verify("", "So about 19", "18").passed is False
    assert MATH.verify("", "So about 18", "18").error
    assert MATH.verify("", "The answer is about 19", "18").error


NO_LETTER = [
    *("The answer is not {a}", "The answer isn't {a}.", "The answer is {a} or {b}", "The answer is {a}, {b}", "Answer: {a}/{b}", "Answer: {a}-{b}"),
    *("Answer: {a} and {b}", "Answer: {a}?", "If the answer is {a}", "I doubt the answer is {a}", "A wrong answer: {a}", "Answer: {a} is wrong"),
    *("Answer: {a} is not right", "Tom's answer is {a}", "subanswer: {a}", "Answer: ~{a}", "Answer: <{a}", "Answer: {a}\u0435", "Answer: {a}{b}"),
    *("Is the answer {a}?", "My answer is never {a}", "{a} or {b}", "not {a}", "{a}?", "{a}, {b}", "answer: option {a} or {b}", "The answer is {a}? No."),
    *("Maybe the answer is {a}", "Answer: ({a}) or ({b})", "Answer: {a} isn't right", "Answer: x{a}", "It is not the case that the answer is {a}"),
]  # fmt: skip


@pytest.mark.torture("an answer that names the right letter without stating it", "it is never read as that letter")
def test_no_letter_is_read_that_is_not_stated(tries):
    problem = "Which?\nA. one\nB. two\nC. three"
    for number in tries(len(NO_LETTER) * 6):
        a, b = [(x, y) for x in "ABC" for y in "ABC" if x != y][number % 6]
        text = NO_LETTER[number // 6].format(a=a, b=b)
        assert CHOICES.answer(text) != a, text
        assert not CHOICES.verify(problem, text, a).passed, text
