"""Plug-ins are found by the names of their files."""

import pytest
from pydantic import ValidationError

from tasks.core.errors import BrokenPlugin, UnknownName, suggest
from tasks.core.plugin import Params, Plugin, load, names, plugin_of
from tasks.core.stage import stages


def test_a_plug_in_is_found_by_its_file():
    assert load("filter", "threshold").__name__ == "Threshold"
    assert load("filter", "threshold").strategy_name() == "threshold"
    assert load("domains", "arithmetic").strategy_name() == "arithmetic"
    assert "_jsonl" not in names("domains")


@pytest.mark.parametrize(
    ("package", "name", "words"),
    [
        ("filter", "treshold", "filter strategy 'treshold'; did you mean 'threshold'"),
        ("domains", "maths", "domain 'maths'; did you mean 'math'"),
        ("engines", "vlm", "engine 'vlm'; did you mean 'vllm'"),
        ("filter", "../params", "known: "),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(package, name, words):
    with pytest.raises(UnknownName, match=words):
        load(package, name)


@pytest.mark.parametrize("package", [*stages(), "domains", "engines", "where"])
def test_every_plug_in_loads_and_says_what_it_is(package):
    for name in names(package):
        plugin = load(package, name)
        assert len(plugin.__doc__ or "") > 20
        assert plugin.model_config["extra"] == "forbid"
        assert "strategy" not in plugin.model_fields, "that is what the plug-in itself is called by"


@pytest.mark.parametrize("name", stages())
def test_no_strategy_is_called_as_an_option_of_its_stage(name):
    options = stages()[name].options
    assert not set(names(name)) & set(options.model_fields if options else ())


def test_a_module_has_exactly_one_public_plug_in():
    class One(Plugin):
        """One."""

    class Two(Plugin):
        """Two."""

    with pytest.raises(TypeError, match=r"\['One', 'Two'\]"):
        plugin_of({"One": One, "Two": Two}, One.__module__)
    with pytest.raises(TypeError, match="exactly one"):
        plugin_of({"One": One}, "elsewhere")
    assert plugin_of({"One": One, "_Two": Two, "Plugin": Plugin, "number": 1}, One.__module__) is One


def test_params_refuse_unknown_keys_and_changes():
    class Sized(Params):
        size: int = 1

    with pytest.raises(ValidationError, match="sise"):
        Sized(sise=2)
    with pytest.raises(ValidationError, match="frozen"):
        Sized().size = 2


def test_suggestions():
    assert suggest("treshold", ["threshold", "top_fraction"]) == "did you mean 'threshold'?"
    assert suggest("zzz", ["b", "a"]) == "known: a, b"
    assert suggest("zzz", []) == "none is known"


def test_a_file_that_cannot_be_imported_is_one_message_with_its_line(tmp_path, monkeypatch):
    (tmp_path / "filter").mkdir()
    (tmp_path / "filter/broken.py").write_text('"""Broken."""\n\ndef f(:\n')
    monkeypatch.setattr("tasks.core.plugin.TASKS", tmp_path)
    monkeypatch.setattr(
        "tasks.core.plugin.import_module", lambda _: compile((tmp_path / "filter/broken.py").read_text(), "b", "exec")
    )
    with pytest.raises(BrokenPlugin, match=r"tasks/filter/broken\.py:3: SyntaxError"):
        load("filter", "broken")
