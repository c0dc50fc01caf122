from pathlib import Path

import polars as pl
import pytest
from counting import counting

from tasks.core import frames, roster, tables
from tasks.domains import Domain, Item
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.fake import Fake
from tasks.prompts import prompts
from tasks.prompts._screen import Problem
from tasks.prompts.ensemble_instruct import GIVE_INPUT, NEEDS_INPUT, EnsembleInstruct, ask_input, ask_instruction, parts

NONE = {"heldout": 1}


class Instructions(Domain):
    """Some with an input, some without."""

    near_duplicates = "structure"

    def items(self, split, count, seed):
        if split != "seeds":
            return []
        return [Item(f"Sort list {n}.\n\n{n}, 2, 1") for n in range(30)] + [Item(f"Tell joke {n}.") for n in range(15)]


class Jokes(Instructions):
    def items(self, split, count, seed):
        return [i for i in super().items(split, count, seed) if "joke" in i.problem]


def author(messages, seed):
    """Writes as it is asked; an instruction as some models do, with an input that nobody wanted."""
    asked = messages[-1][1]
    if asked.endswith(NEEDS_INPUT):
        return f"Reverse {seed}.\n\nan input too early"
    return f"input of {seed}" if asked.endswith(GIVE_INPUT) else f"Sing {seed}."


def run(strategy, domain=None, **engines):
    engines = engines or {n: Fake.scripted(author) for n in ("parent", "base")}
    models = roster.Models({n: roster.Source(e, lambda n=n: Path(n)) for n, e in engines.items()})
    none = frames.frame(tables.prompts), frames.frame(tables.responses)
    rows = (
        prompts({"ensemble_instruct": strategy}, *none, models, domain or Instructions(), 1).frames["prompts"].collect()
    )
    return rows, models


def small(**fields):
    return EnsembleInstruct(**{"models": ("parent", "base"), "count": 40, "batch": 10, "evaluation": NONE} | fields)


def test_two_pipelines_each_with_examples_of_its_own_kind():
    seen = []
    engine = Fake.scripted(lambda m, seed: seen.append(m[-1][1]) or author(m, seed))
    rows, _ = run(small(with_input=0.25), parent=engine, base=engine)

    assert rows["error"].null_count() == len(rows) == 40
    whole = rows.filter(pl.col("problem").str.contains("\n\n"))
    assert 4 <= len(whole) <= 16
    assert whole["problem"].str.contains(r"^Reverse \d+\.\n\ninput of \d+$").all()
    assert rows.join(whole, on="id", how="anti")["problem"].str.contains(r"^Sing \d+\.$").all()
    assert {len(p) for p in whole["parents"]} == {24} and set(rows["parents"].list.len()) == {24, 10}
    assert all("joke" not in text for text in seen if text.endswith((NEEDS_INPUT, GIVE_INPUT)))
    assert all("Sort" not in text for text in seen if not text.endswith((NEEDS_INPUT, GIVE_INPUT)))
    own = [len(set(parents) & set(rows["id"])) for parents in rows["parents"]]
    assert max(own) == 4 and 0 in own


def test_the_authors_take_turns_and_are_not_open_together():
    engine, openings = counting()
    rows, models = run(small(), **{n: engine.scripted(author) for n in ("parent", "base")})
    models.close()
    assert {count for _, count in openings} == {1}
    assert rows["model"].value_counts()["count"].to_list() == [20, 20]
    assert small().opened_models() == {"parent", "base"}


@pytest.mark.parametrize("domain", [Jokes(), Arithmetic()])
def test_a_domain_without_inputs_has_one_pipeline(domain):
    def plain(messages, seed):
        assert not messages[-1][1].endswith((NEEDS_INPUT, GIVE_INPUT))
        return author(messages, seed)

    rows, _ = run(small(count=5, max_attempts=1), domain, parent=Fake.scripted(plain), base=Fake.scripted(plain))
    assert len(rows) == 5


def test_an_instruction_or_input_that_failed_is_a_row_that_says_so():
    def forgetful(messages, seed):
        return "" if messages[-1][1].endswith(GIVE_INPUT) and seed % 2 else author(messages, seed)

    rows, _ = run(small(with_input=1.0, models=("parent",)), parent=Fake.scripted(forgetful))
    assert rows["error"].drop_nulls().str.starts_with("malformed").all() and 0 < rows["error"].null_count() < len(rows)
    rows, _ = run(small(with_input=1.0, models=("parent",), max_attempts=1), parent=Fake(error_rate=1.0))
    assert rows["error"].str.starts_with("failed").all() and len(rows) == 40


def test_the_templates():
    shown = [Problem("a", "Sort.\n\n2, 1", None), Problem("b", "Add.\n\n1\n\n2", None)]
    assert parts(" Add.\n\n1\n\n2 ") == ("Add.", "1\n\n2") and parts("Add.") == ("Add.", "")
    assert ask_instruction(shown)[0]["content"] == f"Instruction 1:\nSort.\n\nInstruction 2:\nAdd.\n\n{NEEDS_INPUT}"
    assert ask_input(shown, "Mix.")[0]["content"] == (
        f"Instruction 1:\nSort.\nInput:\n2, 1\n\nInstruction 2:\nAdd.\nInput:\n1\n\n2\n\nInstruction 3:\nMix.\n\n{GIVE_INPUT}"
    )
