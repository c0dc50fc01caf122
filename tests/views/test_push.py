"""Pushes to a hub in miniature with the real client, from rounds that have run."""

import json
import shutil
from pathlib import Path

import hub
import pytest
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.core import models, store
from tasks.core.errors import FlywheelError
from tasks.views.export_model import export_model, hub_base


@pytest.fixture(scope="module")
def server():
    with hub.serving() as running:
        yield running


@pytest.fixture
def online(server, monkeypatch):
    """The client's address and token are those of the hub in miniature; its large files go by LFS, not by xet."""
    server.repositories.clear()
    server.large.clear()
    server.refuses = None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", hub.TOKEN)
    return server


def flywheel(*args):
    done = CliRunner().invoke(app, ["export", *args])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_data_set_is_pushed_as_it_is_exported(made, online):
    told = flywheel("r2", "--push", "me/rows", "--license", "cc-by-4.0")
    repository = online.repositories["dataset", "me/rows"]
    assert repository.private
    assert f"{online.address}/datasets/me/rows/commit/" in told and "private" in told
    assert repository.card["license"] == "cc-by-4.0"
    assert repository.commits == ["Training data of r2"]
    flywheel("r2", "--to", "here", "--license", "cc-by-4.0")
    assert repository.files == {p.relative_to("here").as_posix(): p.read_bytes() for p in Path("here").rglob("*.*")}
    assert online.large.keys() & {store.sha256(p) for p in Path("here").rglob("*.parquet")}  # some came by LFS


def test_a_later_push_replaces_all_that_an_earlier_one_wrote(made, online):
    flywheel("r2", "--push", "me/rows")
    online.repositories["dataset", "me/rows"].files["sft/train-00001.parquet"] = b"of an older export"
    flywheel("r2", "--push", "me/rows")
    assert "sft/train-00001.parquet" not in online.repositories["dataset", "me/rows"].files


def test_a_repository_with_other_content_is_left_alone(made, online):
    mine = {"README.md": b"---\ntags:\n- mine\n---\n", "model.safetensors": b"weights"}
    online.repositories["model", "me/mine"] = hub.Repository(private=False, files=dict(mine))
    with pytest.raises(FlywheelError, match="me/mine on the hub holds"):
        flywheel("r2", "--model", "--push", "me/mine")
    assert online.repositories["model", "me/mine"].files == mine


def test_what_is_public_already_is_pushed_to_only_when_asked(made, online):
    flywheel("r1", "--push", "me/rows", "--public")
    repository = online.repositories["dataset", "me/rows"]
    before = dict(repository.files)
    with pytest.raises(FlywheelError, match="me/rows on the hub is public: push with --public"):
        flywheel("r2", "--push", "me/rows")
    assert repository.files == before
    flywheel("r2", "--push", "me/rows", "--public")
    assert repository.files != before


def test_a_model_is_pushed_with_its_weights_and_a_card_of_its_figures(made, online):
    told = flywheel("r2", "--model", "--push", "me/two", "--public")
    repository = online.repositories["model", "me/two"]
    assert "the repository is public" in told
    digests = models.pointer(models.resolve(made / "data/round=r2/model"))["files"]
    assert {n: hub.hashlib.sha256(c).hexdigest() for n, c in repository.files.items() if n != "README.md"} == digests
    card, text = repository.card, repository.files["README.md"].decode()
    assert (card["library_name"], card["pipeline_tag"]) == ("transformers", "text-generation")
    assert "license" not in card
    [indexed] = card["model-index"]
    figures = {m["type"]: m["value"] for result in indexed["results"] for m in result["metrics"]}
    measured = {m["name"]: m["value"] for m in store.read(made, "r2", "measures").to_dicts() if m["level"] is None}
    assert figures["greedy"] == pytest.approx(measured["greedy"], abs=1e-4)
    assert figures["pass_at_1"] == pytest.approx(measured["pass_at_1"], abs=1e-4)
    assert "| parent | `r1` |" in text and "| seed | 2 |" in text
    assert models.digest(made / "data/round=r2/model") in text


def test_an_exported_model_is_loaded_by_transformers(mixed, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    to = tmp_path / "here"
    assert "model of r0" in export_model(mixed, "r0", to)
    assert "rounds of the base `r0`" in (to / "README.md").read_text()
    AutoModelForCausalLM.from_pretrained(to)
    assert AutoTokenizer.from_pretrained(to).chat_template
    export_model(mixed, "r2", to)  # over the earlier one
    card = (to / "README.md").read_text()
    assert "Model of the round r2" in card and "not evaluated" in card and "| gates | none |" in card


def test_a_model_in_use_is_not_replaced_by_an_export(made):
    shutil.copytree(models.resolve(made / "data/round=r0/model"), "mine")
    Path("mine/README.md").write_text("---\ntags:\n- mine\n---\nMy model.\n")
    with pytest.raises(FlywheelError, match="not an export"):
        export_model(made, "r2", Path("mine"))
    assert Path("mine/README.md").read_text().endswith("My model.\n")


@pytest.fixture
def adapter(tmp_path, tiny_model):
    """An adapter of a base of which `base` tells where it is."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    (tmp_path / "base").mkdir()
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / models.ADAPTER
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    return tmp_path / "adapter"


def test_an_adapter_names_its_base_on_the_hub_or_is_refused(adapter, tiny_model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: str(tiny_model))
    place = adapter.parent / "base" / models.POINTER
    source = {"repo": "org/base", "revision": "a" * 40}
    place.write_text(json.dumps(models.pointer(tiny_model, source)))
    assert hub_base(adapter) == source
    place.write_text(json.dumps(models.pointer(tiny_model)))
    with pytest.raises(FlywheelError, match="merge"):
        hub_base(adapter)
    assert hub_base(tiny_model) is None


def test_without_a_token_the_way_to_one_is_told_and_nothing_is_asked(made, online, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(FlywheelError, match="HF_TOKEN"):
        flywheel("r2", "--push", "me/rows")
    assert not online.repositories


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["r2"], "--to FOLDER"),
        (["r2", "--to", "here", "--push", "me/rows"], "one place"),
        (["r2", "--to", "here", "--public"], "--push"),
        (["r2", "--push", "rows"], "owner/name"),
        (["r2", "--push", "me/ro ws"], "me/ro ws"),
        (["r2", "--push", "me/rows", "--license", "GPL 3\nmodel-index: x"], "identifier of a licence"),
        (["r9", "--push", "me/rows"], "r9"),
        (["r0", "--push", "me/rows"], "--model"),
    ],
)
def test_a_wrong_argument_is_answered_before_anything_is_made(made, online, args, word):
    with pytest.raises(FlywheelError, match=word):
        flywheel(*args)
    assert not online.repositories
    assert not Path("here").exists()


@pytest.mark.parametrize(("status", "word"), [(403, "may the token write"), (500, "500")])
def test_what_the_hub_says_is_told_without_the_token(made, online, status, word):
    online.refuses = status
    with pytest.raises(FlywheelError, match=word) as raised:
        flywheel("r2", "--push", "me/rows")
    assert hub.TOKEN not in str(raised.value)


def test_a_token_that_is_not_valid_and_a_hub_that_is_away(made, online, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(FlywheelError, match="is the token valid"):
        flywheel("r2", "--push", "me/rows")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FlywheelError, match=r"could not be pushed to http://127\.0\.0\.1:9"):
        flywheel("r2", "--push", "me/rows")
