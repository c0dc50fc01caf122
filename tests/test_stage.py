"""The decorator, discovery by file name, and identity."""

from pathlib import Path

import polars as pl
import projects
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import tables
from tasks.errors import UnknownName, suggest
from tasks.stage import Input, Panel, Params, Strategy, chosen, content_id, load, names, seed_of, stage, stages


def test_a_signature_says_what_is_read_and_written():
    class Members(Panel):
        """Some."""

    @stage(outputs=[tables.pairs], folders=["model"], plots={"curve": {"x": "step"}}, bases="too")
    def example(
        params: Members, pairs: pl.LazyFrame, parent_evals: pl.LazyFrame, base_model: Path, model: Path, seed: int
    ):
        return seed

    assert example.inputs == (
        Input("pairs", "pairs"),
        Input("parent_evals", "evals", "parent"),
        Input("base_model", "model", "base"),
    )
    assert example.outputs == ("pairs", "model")
    assert example.context == {"params", "seed"}
    assert example.is_panel
    assert example(None, None, None, None, None, 7) == 7


@pytest.mark.parametrize("argument", ["pears", "parent_pears", "uncle_pairs", "parent_seed"])
def test_an_argument_that_names_nothing_is_refused(argument):
    space = {}
    exec(f"def example(params, {argument}): ...", space)
    with pytest.raises(TypeError, match=f"example: argument '{argument}' names no table or folder"):
        stage()(space["example"])


def test_every_stage_is_named_as_its_folder_and_has_strategies():
    folders = {p.parent.name for p in (projects.HERE / "tasks").glob("*/__init__.py")} - {"domains", "engines"}
    assert set(stages()) == folders
    assert all(names(s) for s in stages())


def test_a_strategy_is_found_by_its_file():
    assert load("filter", "threshold").__name__ == "Threshold"
    assert load("filter", "threshold").strategy_name() == "threshold"
    assert load("domains", "arithmetic").strategy_name() == "arithmetic"
    assert "_jsonl" not in names("domains")
    with pytest.raises(UnknownName, match="there is no filter strategy 'treshold'; did you mean 'threshold'"):
        load("filter", "treshold")
    with pytest.raises(UnknownName, match="known: "):
        load("filter", "../params")


@pytest.mark.parametrize("package", [*stages(), "domains", "engines"])
def test_every_plug_in_loads_and_says_what_it_is(package):
    for name in names(package):
        plugin = load(package, name)
        assert plugin.__doc__
        assert len(plugin.__doc__) > 20
        assert plugin.model_config["extra"] == "forbid"


def test_a_module_with_two_strategies_is_refused():
    class One(Strategy):
        """One."""

    class Two(Strategy):
        """Two."""

    with pytest.raises(AssertionError, match="exactly one public strategy, not \\['One', 'Two'\\]"):
        chosen({"One": One, "Two": Two}, One.__module__)
    assert chosen({"One": One, "_Two": Two}, One.__module__) is One


def test_params_refuse_unknown_keys_and_changes():
    class Some(Params):
        size: int = 1

    with pytest.raises(ValidationError, match="Extra inputs"):
        Some(sise=2)
    with pytest.raises(ValidationError, match="frozen"):
        Some().size = 2


parts = st.lists(
    st.one_of(st.text(st.characters(exclude_characters="\x1f", codec="utf-8")), st.integers()), min_size=1, max_size=4
)


@given(parts, parts)
def test_ids_and_seeds_are_functions_of_content(one, other):
    same = [str(p) for p in one] == [str(p) for p in other]
    assert (content_id(*one) == content_id(*other)) is same
    assert (seed_of(*one) == seed_of(*other)) is same
    assert 0 <= seed_of(*one) < 2**63
    assert len(content_id(*one)) == 16


def test_ids_and_seeds_stay_what_they_are():
    # every table and cache that was ever made hangs on these
    assert content_id("a", 1) == "839e11a421d370be"
    assert seed_of(1, "p", 0) == 3879847917854608423


@given(st.lists(st.text(st.characters(exclude_characters="\x1f", codec="utf-8"), max_size=5), min_size=1, max_size=5))
def test_ids_of_a_column_are_those_of_its_rows(values):
    frame = pl.DataFrame({"a": values, "b": ["x"] * len(values)})
    assert frame.select(tables.ids("a", "b"))["id"].to_list() == [content_id(v, "x") for v in values]


def test_suggestions():
    assert suggest("treshold", ["threshold", "top_fraction"]) == "did you mean 'threshold'?"
    assert suggest("zzz", ["b", "a"]) == "known: a, b"
    assert suggest("zzz", []) == "none is known"
