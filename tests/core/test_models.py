import json
import os
import shutil
from pathlib import Path

import pytest

from tasks.core import models
from tasks.core.errors import ModelRefused


@pytest.fixture
def model(tiny_model, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture
def adapter(model, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(model / "model.safetensors", folder / "adapter_model.safetensors")
    config = {"base_model_name_or_path": str(model), "r": 2, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def point(folder, told):
    folder.mkdir(exist_ok=True)
    (folder / "pointer.json").write_text(json.dumps(told))
    return folder


def edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_whole_model_is_accepted_and_is_itself(model):
    models.check(model)
    assert models.resolve(model) == model


def test_a_pointer_leads_to_the_model_and_has_its_digest(model, tmp_path):
    folder = point(tmp_path / "base", models.pointer(model))
    models.check(folder)
    assert models.resolve(folder) == model
    assert models.digest(folder) == models.digest(model) == models.pointer(model)["digest"]


def test_a_relative_pointer_is_read_from_the_project_root(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = models.pointer(model.relative_to(tmp_path))
    assert told["path"] == "model"
    assert models.digest(point(tmp_path / "base", told)) == models.digest(model)


def test_the_digest_is_of_contents_not_of_places(model, tmp_path):
    other = shutil.copytree(model, tmp_path / "elsewhere")
    (other / "README.md").write_text("a model card")
    assert models.digest(other) == models.digest(model)
    edit(other / "config.json", hidden_act="gelu")
    assert models.digest(other) != models.digest(model)


def test_a_changed_file_behind_a_pointer_is_refused(model, tmp_path):
    folder = point(tmp_path / "base", models.pointer(model))
    flip(model / "model.safetensors")
    with pytest.raises(ModelRefused, match=r"model\.safetensors: sha256 is .* recorded"):
        models.resolve(folder)


def test_a_missing_file_behind_a_pointer_is_refused(model, tmp_path):
    folder = point(tmp_path / "base", models.pointer(model))
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelRefused, match=r"tokenizer\.json: is missing"):
        models.resolve(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "[1]", "{", '{"path": 3}', '{"path": "x"}', '{"files": {}}', '{"files": {}, "repo": "a/b"}']
)
def test_a_broken_pointer_is_refused(tmp_path, text):
    (tmp_path / "pointer.json").write_text(text)
    with pytest.raises(ModelRefused, match=r"pointer\.json"):
        models.resolve(tmp_path)


def flip(path):
    """Changes one bit; a file system's clock may be coarser than a test is fast."""
    raw, times = bytearray(path.read_bytes()), path.stat()
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))


def test_a_changed_base_behind_a_pointer_to_an_adapter_is_refused(adapter, model, tmp_path):
    folder = point(tmp_path / "base", models.pointer(adapter))
    assert models.resolve(folder) == adapter
    flip(model / "model.safetensors")
    with pytest.raises(ModelRefused, match=rf"{model}: the base of the adapter .* is not the one"):
        models.resolve(folder)


def lose(name):
    return lambda folder: (folder / name).unlink()


def shorten(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def index(*names):
    told = json.dumps({"weight_map": {f"w{i}": n for i, n in enumerate(names)}})
    return lambda folder: (folder / "model.safetensors.index.json").write_text(told)


SPOILT = {
    "no config": (lose("config.json"), r"config\.json is missing"),
    "no weights": (lose("model.safetensors"), r"model\.safetensors is missing"),
    "no tokenizer": (lose("tokenizer.json"), "there is no tokenizer"),
    "cut short": (shorten, "cut short or damaged"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "is not a JSON object"),
    "code in config": (lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "code in tokenizer": (lambda f: edit(f / "tokenizer_config.json", auto_map={"A": "x.Y"}), "auto_map"),
    "absent shard": (index("model.safetensors", "model-2.safetensors"), r"model-2\.safetensors is missing"),
    "no shards": (index(), "names no weights"),
    "shards in a list": (lambda f: (f / models.INDEX).write_text('{"weight_map": []}'), "names no weights"),
    "a shard without a name": (lambda f: (f / models.INDEX).write_text('{"weight_map": {"w": 3}}'), "3 is missing"),
    "no index": (lambda f: (f / models.INDEX).write_text("[]"), "not a JSON object"),
    "shard elsewhere": (index("../model/model.safetensors"), "is missing"),
    **{f"a .{end}": (lambda f, end=end: (f / f"x.{end}").touch(), f"x.{end}: pickled") for end in ("bin", "pt", "pkl")},
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_an_incomplete_or_unsafe_folder_is_refused(model, spoil, message):
    spoil(model)
    with pytest.raises(ModelRefused, match=message):
        models.check(model)
    with pytest.raises(ModelRefused):
        models.pointer(model)


def test_everything_that_is_wrong_is_said_at_once(model):
    lose("config.json")(model)
    lose("tokenizer.json")(model)
    with pytest.raises(ModelRefused, match=r"config\.json.*tokenizer"):
        models.check(model)


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ModelRefused, match="there is no such model folder"):
        models.check(tmp_path / "nothing")


def test_an_adapter_stands_on_its_base(adapter, model):
    models.check(adapter)
    assert models.is_adapter(adapter)
    assert models.adapter_base(adapter) == model
    before = models.digest(adapter)
    edit(model / "config.json", hidden_act="gelu")
    assert models.digest(adapter) != before


def test_an_adapters_digest_does_not_depend_on_where_its_base_lies(adapter, model, tmp_path):
    before = models.digest(adapter)
    moved = model.rename(tmp_path / "moved")
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(moved))
    assert models.digest(adapter) == before


def test_an_adapter_whose_base_is_not_local_or_not_safe_is_refused(adapter, model):
    lose("config.json")(model)
    with pytest.raises(ModelRefused, match=r"config\.json is missing"):
        models.check(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path="someone/model")
    with pytest.raises(ModelRefused, match="no local folder"):
        models.check(adapter)


def test_the_digest_of_an_adapter_can_be_told_without_its_base(adapter, model):
    def told():
        return models.recorded_digest(adapter, {f.name: models.file_digest(f) for f in adapter.iterdir()})

    assert told() is None
    (adapter / "base.json").write_text(json.dumps({"digest": models.digest(model)}))
    assert told() == models.digest(adapter)


def test_a_base_is_looked_for_above_only_by_its_digest_and_the_nearest_is_taken(adapter, model, tmp_path):
    """A project within a project, whose adapter was moved from the outer one."""
    inner = tmp_path / "data/inner/data"
    for at, act in ((tmp_path / "data", "silu"), (inner, "gelu")):
        edit(shutil.copytree(model, at / "round=r0/model") / "config.json", hidden_act=act)
    moved = shutil.copytree(adapter, inner / "round=r1/model")
    edit(moved / "adapter_config.json", base_model_name_or_path="round=r0/model")
    with pytest.raises(ModelRefused, match="no local folder"):
        models.named_base(moved)
    for at in (tmp_path / "data", inner):
        (moved / "base.json").write_text(json.dumps({"digest": models.digest(at / "round=r0/model")}))
        assert models.named_base(moved) == at / "round=r0/model"
    (moved / "base.json").write_text(json.dumps({"digest": "0" * 64}))
    with pytest.raises(ModelRefused, match=f"{inner}/round=r0/model: is not the model that the adapter"):
        models.named_base(moved)


def test_a_base_that_was_not_pulled_is_named_with_the_command_that_brings_it(adapter, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = shutil.copytree(adapter, Path("data/round=r1/model"))
    edit(moved / "adapter_config.json", base_model_name_or_path="round=r0/model")
    (moved / "base.json").write_text(json.dumps({"digest": models.digest(model)}))
    with pytest.raises(ModelRefused, match=r"^data/round=r0/model: is missing, .*`dvc checkout data/round=r0/model`"):
        models.check(moved)


@pytest.mark.parametrize("told", ['{"digest": null}', "{}", '{"digest": "r0"}'])
def test_a_record_of_the_base_that_is_none_is_refused(adapter, told):
    (adapter / "base.json").write_text(told)
    with pytest.raises(ModelRefused, match=r"base\.json: digest is .*, which is no sha256; `dvc checkout"):
        models.named_base(adapter)


def test_the_digest_of_a_folder_that_is_not_there_is_told_where_its_files_suffice(adapter, model, tmp_path):
    gone = tmp_path / "gone"
    assert models.recorded_digest(gone, {f.name: models.file_digest(f) for f in model.iterdir()}) == models.digest(
        model
    )
    assert models.recorded_digest(gone, {f.name: models.file_digest(f) for f in adapter.iterdir()}) is None
    assert models.recorded_digest(gone, {models.POINTER: "0" * 64}) is None
