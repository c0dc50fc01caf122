"""The reasoning path of a response, as far as its equations show it."""

import polars as pl

TIMES = r"(\d)x(\d)", "${1}*${2}"
MARKS = (
    (r"(?m)^\s*(?:\d+[.)]|[-•])\s+", " "),  # numbers of a list
    (r"\\[()\[\]]", " "),  # LaTeX around a formula
    (r"[×·∗]|\\times\b|\\cdot\b", "*"),
    (r"÷|\\div\b", "/"),
    (r"[−–]", "-"),
    (r"(\d)\*\*(\d)", "${1}^${2}"),
    (r"[$€£¥\\]|\*\*", ""),
    (r"(\d),(\d{3})(?:,(\d{3}))?(?:,(\d{3}))?\b", "${1}${2}${3}${4}"),  # thousands, millions, billions
    *(TIMES, TIMES),  # twice: in 3x4x5 both signs claim the 4
    (r"\bx\b", "*"),  # a letter that is no sign leaves no equation
    (r"\p{L}+", " "),  # units stand between a number and its operator
)
"""Rewritings before equations are read, in their order: pattern and replacement."""
NUMBER = r"\(*-?\d+(?:\.\d+)?%?\)*"
EXPRESSION = rf"{NUMBER}(?: *[-+*/^] *{NUMBER})*"
EQUATION = rf"{EXPRESSION}(?: *= *{EXPRESSION})+"


def path(text: pl.Expr) -> pl.Expr:
    """The text's equations in their order, one a line, each of numbers and operators only: `12 pens + 5 pens = 17 pens` is
    `12+5=17`. A text without an equation stands for itself.
    """
    plain = text
    for pattern, replacement in MARKS:
        plain = plain.str.replace_all(pattern, replacement)
    equations = plain.str.extract_all(EQUATION)
    return pl.when(equations.list.len() > 0).then(equations.list.join("\n").str.replace_all(" ", "")).otherwise(text)
