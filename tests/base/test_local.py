"""Pointing to a model folder."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks import base as stage
from tasks.base.local import Local
from tasks.core import models
from tasks.core.errors import ModelRefused
from tasks.domains import Domain


def run(strategy, tmp_path):
    model = tmp_path / "model"
    stage.base(strategy, model=model, work=tmp_path, seed=0, domain=Domain())
    return model


def test_a_pointer_and_no_copy(tiny, tmp_path):
    model = run(Local(path=tiny), tmp_path)
    assert [f.name for f in model.iterdir()] == ["pointer.json"]
    assert models.resolve(model) == tiny
    pointer = json.loads((model / "pointer.json").read_text())
    assert set(pointer["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    assert pointer["digest"] == models.digest(tiny) == models.digest(model)


def test_the_pinned_digest(tiny, tmp_path):
    run(Local(path=tiny, digest=models.digest(tiny)), tmp_path)
    with pytest.raises(ModelRefused, match=rf"{models.digest(tiny)}.*{'0' * 64}"):
        run(Local(path=tiny, digest="0" * 64), tmp_path)
    with pytest.raises(ValidationError, match="digest"):
        Local(path=tiny, digest="abc")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"pickle"), "pickle"),
        (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}'), "auto_map"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0"), "damaged"),
    ],
)
def test_an_unsafe_or_incomplete_folder_is_refused(tiny, tmp_path, spoil, word):
    spoil(tiny)
    with pytest.raises(ModelRefused, match=word):
        run(Local(path=tiny), tmp_path)
    assert not (tmp_path / "model" / "pointer.json").exists()


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelRefused, match="nowhere"):
        run(Local(path=Path("nowhere")), tmp_path)


def test_bases_have_no_tables_of_their_own():
    assert stage.base.bases == "only"
    assert stage.base.outputs == ("model",)
