"""The decorator: what a stage's signature says."""

from pathlib import Path
from typing import Annotated

import polars as pl
import projects
import pytest

from tasks.core import tables
from tasks.core.plugin import Params, names
from tasks.core.roster import Models
from tasks.core.stage import CONTEXT, Input, Opens, Strategy, stage, stages


class Doing(Strategy):
    """Does it."""


class Options(Params):
    """How it is done."""

    size: int = 1


def test_a_signature_says_what_is_read_and_written():
    @stage(outputs=[tables.pairs], folders=["model"], plots={"curve": {"x": "step"}}, bases="too")
    def example(
        members: dict[str, Doing], options: Options, pairs: pl.LazyFrame, parent_evals: pl.LazyFrame, base_model: Path,
        anchor_pairs: pl.LazyFrame | None, models: Annotated[Models, Opens("parent", "grandparent", "model")],
        model: Path, seed: int,
    ):  # fmt: skip
        return seed

    assert example.inputs == (
        Input("pairs", "pairs"),
        Input("parent_evals", "evals", "parent"),
        Input("base_model", "model", "base"),
        Input("anchor_pairs", "pairs", "anchor", optional=True),
        Input("parent_model", "model", "parent", opened=True),
        Input("grandparent_model", "model", "grandparent", optional=True, opened=True),
        Input("model", "model", opened=True),
    )
    assert (example.name, example.outputs, example.bases) == ("example", ("pairs", "model"), "too")
    assert example.context == {"members", "options", "models", "seed"}
    assert (example.strategy, example.many, example.options) == (Doing, True, Options)
    assert example(None, None, None, None, None, None, None, None, 7) == 7


def test_an_optional_table_and_the_model_of_an_ancestor_are_inputs_of_who_asks_for_them():
    class Asking(Doing):
        needs = frozenset({"samples"})

    class Reading(Doing):
        def read_tables(self):
            return frozenset({"pairs"})

    @stage()
    def example(
        members: dict[str, Doing], prompts: pl.LazyFrame, models: Annotated[Models, Opens("model", "parent", "base")],
        pairs: pl.LazyFrame | None = None, parent_evals: pl.LazyFrame | None = None,
    ): ...  # fmt: skip

    def needed(*strategies, judges=()):
        return {i.argument for i in example.needed_inputs(strategies, judges)}

    assert needed(Doing()) == {"prompts", "model"}
    assert needed(Doing(), Reading()) == {"prompts", "model", "pairs"}
    assert needed(Asking()) == {"prompts", "model", "parent_model"}
    assert needed(Doing(), judges=[Asking()]) == {"prompts", "model"}, "in an exam a judge's parent is the model"


def test_a_stage_may_take_exactly_one_strategy():
    @stage(outputs=[tables.filtered])
    def example(strategy: Doing, responses: pl.LazyFrame): ...

    assert (example.strategy, example.many, example.options, example.context) == (Doing, False, None, {"strategy"})


@pytest.mark.parametrize("argument", ["pears", "parent_pears", "uncle_pairs", "parent_seed"])
def test_an_argument_that_names_nothing_is_refused(argument):
    space = {"Doing": Doing}
    exec(f"def example(strategy: Doing, {argument}): ...", space)
    with pytest.raises(TypeError, match=f"example: argument '{argument}'"):
        stage()(space["example"])


@pytest.mark.parametrize(
    "signature", ["", "members", "members: dict", "members: dict[str, int]", "strategy: int", "strategy"]
)
def test_a_stage_must_say_what_its_strategies_are(signature):
    space = {"Doing": Doing}
    exec(f"def example({signature}): ...", space)
    with pytest.raises(TypeError, match="example: needs an argument"):
        stage()(space["example"])


def test_what_not_every_round_has_may_be_none():
    def example(strategy: Doing, anchor_pairs: list[int]): ...

    with pytest.raises(TypeError, match="anchor_pairs must allow None"):
        stage()(example)


def test_every_stage_is_named_as_its_folder_and_has_strategies():
    rooms = {"commands", "domains", "engines", "core", "project", "training", "views", "where"}
    folders = {p.parent.name for p in (projects.HERE / "tasks").glob("*/__init__.py")} - rooms
    assert set(stages()) == folders
    assert all(names(s) for s in stages())


def test_stages_come_after_what_they_read():
    order = list(stages())
    assert order.index("filter") < order.index("critique") < order.index("pair") < order.index("collect")
    writers = {o: s.name for s in stages().values() if s.bases != "only" for o in s.outputs}
    for each in stages().values():
        for need in each.inputs:
            if not need.ancestor and need.name in writers and writers[need.name] != each.name:
                assert order.index(writers[need.name]) < order.index(each.name), (need, each.name)


@pytest.mark.parametrize("name", stages())
def test_the_strategies_of_a_stage_have_one_typed_base_class(name):
    each = stages()[name]
    assert each.strategy.__module__ in (f"tasks.{name}", "tasks.core.judging")
    assert "__call__" in vars(each.strategy)
    assert "case" in each.strategy.__call__.__annotations__
    assert each.context <= set(CONTEXT)


def test_a_strategy_opens_the_parent_where_it_needs_an_engine():
    class Asking(Doing):
        needs = frozenset({"samples"})

    assert Asking().opened_models() == {"parent"}
    assert Doing().opened_models() == Doing().read_tables() == frozenset()
    assert not Doing().per_prompt_only()
