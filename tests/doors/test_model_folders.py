"""Model folders that somebody sent: traps are refused by name, before anything is loaded."""

import json
import os
import random
import shutil
import signal
import socket
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from tasks.__main__ import app
from tasks.base.local import Local
from tasks.core import model_files, models
from tasks.core.errors import ModelRefused
from tasks.project.blocks import RosterModel

LOOPS = {
    "nested": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "text": "{{ 'x' * 10 ** 12 }}",
    "doubled": "{% set n = namespace(x='x' * 99) %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "deep": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.fixture
def model(tmp_path) -> Path:
    """A small folder in order: a Llama of one layer."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        **{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32, "hidden_size": 16},
        **{
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 1_000_000,
        },
        "dtype": "float32",
    }
    write(folder / "config.json", config)
    write(folder / "tokenizer.json", {"model": {"type": "BPE"}})
    write(
        folder / "tokenizer_config.json", {"model_max_length": int(1e30), "chat_template": "{{ messages[0].content }}"}
    )
    shapes = {"embed": (32, 16), "up": (32, 16), "down": (16, 32), "q": (16, 16), "norm": (16,)}
    save_file({n: np.ones(shape, np.float32) for n, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def write(path: Path, content) -> None:
    path.write_text(json.dumps(content))


def edit(path: Path, **values) -> None:
    write(path, {**json.loads(path.read_text()), **values})


def put(name, value):
    """Sets a key of config.json."""
    return lambda folder, rng: edit(folder / "config.json", **{name: value(rng) if callable(value) else value})


def link(name, target):
    def make(folder, rng):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def pipe(name):
    def make(folder, rng):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def listen(folder, rng):
    here = Path.cwd()
    os.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("generation_config.json")
    os.chdir(here)


def header(content: bytes, length=None, rest=b""):
    def make(folder, rng):
        size = len(content) if length is None else length
        (folder / "model.safetensors").write_bytes(size.to_bytes(8, "little") + content + rest)

    return make


def tensor(**values):
    return json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | values}).encode()


def hole(folder, rng):
    """Weights of 10 TB that take no room on disk."""
    size = 10**13
    content = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + size)


def grow(name, size):
    def make(folder, rng):
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return make


def nest(folder, rng):
    (folder / "config.json").write_text("[" * 99_999 + "]" * 99_999)


def template(text):
    return lambda folder, rng: (folder / "chat_template.jinja").write_text(text)


def adapter(folder: Path, base, **config) -> Path:
    folder.mkdir(exist_ok=True)
    write(folder / "adapter_config.json", {"peft_type": "LORA", "r": 2, "base_model_name_or_path": str(base), **config})
    save_file({"a": np.ones((2, 16), np.float32)}, folder / "adapter_model.safetensors")
    return folder


def as_adapter(base=None, **config):
    def make(folder, rng):
        own = shutil.copytree(folder, folder.parent / "whole")
        for file in folder.iterdir():
            file.unlink()
        adapter(folder, base(folder) if base else own, **config)

    return make


def pointers(*targets):
    """The folder as the first of pointers that lead to each other."""

    def make(folder, rng):
        places = [folder, *(folder.parent / t for t in targets), folder]
        for file in folder.iterdir():
            file.unlink()
        for here, there in pairwise(places):
            here.mkdir(exist_ok=True)
            write(here / "pointer.json", {"path": str(there), "files": {}, "digest": "0" * 64})

    return make


def index(content):
    return lambda folder, rng: write(folder / models.INDEX, content)


huge = lambda rng: rng.randrange(10**8, 10**12)  # noqa: E731
TRAPS = {
    "a link to a file of the reader": (link("config.json", "/etc/passwd"), "config.json is a link out of the folder"),
    "weights by a link": (link("model.safetensors", "/etc/hostname"), "model.safetensors is a link out"),
    "a link upwards": (link("merges.txt", "../../x"), "merges.txt is a link"),
    "a link to nothing": (link("vocab.txt", "nothing"), "vocab.txt is a link that leads nowhere"),
    "a link in a circle": (
        link("tokenizer.json", "tokenizer.json"),
        "tokenizer.json is a link that leads nowhere, or in",
    ),
    "a link to a device": (link("model.safetensors", "/dev/zero"), "model.safetensors is a link out"),
    "a folder by a link": (link(model_files.TEMPLATES, "/"), f"{model_files.TEMPLATES} is a link out"),
    "a pipe for a config": (pipe("config.json"), "config.json is no file but a pipe"),
    "a pipe for weights": (pipe("model.safetensors"), "model.safetensors is no file but a pipe"),
    "a pipe for a pointer": (pipe("pointer.json"), "pointer.json is no file but a pipe|pointer itself"),
    "a pipe for a template": (pipe("chat_template.jinja"), "chat_template.jinja is no file but a pipe"),
    "a socket": (listen, "generation_config.json is no file but a pipe, socket"),
    "a folder for a config": (
        lambda f, rng: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "is a folder",
    ),
    "a header without an end": (header(b"{}", 2**63), "header of 9223372036854775808 bytes"),
    "a header of 4 GB": (header(b"{}", 2**32), "header of 4294967296 bytes"),
    "a header longer than the file": (header(b"{}", 4096), "damaged"),
    "a header that is no JSON": (header(b"\xff" * 64), "damaged"),
    "a header in a header": (header(b"[" * 9999 + b"]" * 9999), "damaged"),
    "a tensor larger than the file": (header(tensor(data_offsets=[0, 2**40]), rest=b"0" * 8), "damaged"),
    "a shape whose product overflows": (header(tensor(shape=[2**62, 2**62]), rest=b"0" * 8), "damaged"),
    "a negative place": (header(tensor(data_offsets=[8, 0]), rest=b"0" * 8), "damaged"),
    "a type without a name": (header(tensor(dtype=""), rest=b"0" * 8), "damaged"),
    "a type that is unknown": (header(tensor(dtype="PICKLE"), rest=b"0" * 8), "damaged"),
    "a tensor without a type": (header(b'{"w":{"shape":[2],"data_offsets":[0,8]}}', rest=b"0" * 8), "damaged"),
    "weights of bytes": (header(tensor(dtype="U8", shape=[8]), rest=b"0" * 8), "no floating-point type but U8"),
    "weights of 10 TB": (hole, "the weights take 9313 GiB"),
    "a width": (put("hidden_size", huge), "hidden_size is .* up to"),
    "a vocabulary": (put("vocab_size", huge), "vocab_size is .* up to"),
    "layers": (put("num_hidden_layers", huge), "num_hidden_layers is"),
    "layers that only look few": (put("num_hidden_layers", 256), "sizes come to at least"),
    "heads": (put("num_attention_heads", huge), "num_attention_heads is"),
    "positions": (put("max_position_embeddings", lambda rng: 10**9 + huge(rng)), "max_position_embeddings is"),
    "a size within a part": (
        put("text_config", lambda rng: {"hidden_size": huge(rng)}),
        r"text_config\.hidden_size is",
    ),
    "a size that is a text": (put("hidden_size", "1e9"), "hidden_size is '1e9'"),
    "a size below nothing": (put("intermediate_size", -5), "intermediate_size is -5"),
    "a size that is no number": (put("hidden_size", float("inf")), "hidden_size is inf"),
    "a type that is a function": (put("dtype", "load"), "dtype is 'load'"),
    "a type by its old name": (put("torch_dtype", "torch.hub"), "torch_dtype is 'torch.hub'"),
    "code": (put("auto_map", {"AutoModel": "x.Y"}), "auto_map"),
    "pickled weights": (
        lambda f, rng: (f / "pytorch_model.bin").write_bytes(b"\x80\x04."),
        "pytorch_model.bin: pickled",
    ),
    "a config of 1 GB": (grow("config.json", 10**9), r"config.json.*(has|GiB)"),
    "a tokenizer of 1 GB": (grow("tokenizer.json", 10**9), "tokenizer.json has 0.9 GiB"),
    "a config in a config": (nest, "config.json: is not a JSON object"),
    "shards without end": (index({"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(9999)}}), "and 9989 more"),
    "a shard elsewhere": (index({"weight_map": {"w": "../../etc/hostname"}}), "is missing"),
    **{
        f"a template: {n}": (template(t), "chat_template.jinja: .*(takes more|makes|no chat)") for n, t in LOOPS.items()
    },
    "a template among others": (
        lambda f, rng: edit(f / "tokenizer_config.json", chat_template=[{"name": "x", "template": LOOPS["nested"]}]),
        "tokenizer_config.json: chat_template: takes more than 0.5 s",
    ),
    "a template by a name": (
        lambda f, rng: edit(f / "tokenizer_config.json", chat_template={"default": LOOPS["nested"]}),
        "tokenizer_config.json: chat_template: takes more than 0.5 s",
    ),
    "a hundred templates": (
        lambda f, rng: edit(f / "tokenizer_config.json", chat_template=[{"template": f"{n}"} for n in range(100)]),
        "more than 4 chat templates",
    ),
    "a template of 100 MB": (grow("chat_template.jinja", 10**8), "has more than the 1,048,576 characters"),
    "half a character": (
        lambda f, rng: edit(f / "tokenizer_config.json", chat_template="\ud800{{ messages[0].content }}"),
        "no chat can be put in it .*UnicodeEncodeError",
    ),
    "a template that is none": (template("{% if %}"), "no chat can be put in it .*TemplateSyntaxError"),
    "a pointer to itself": (pointers(), "is a pointer itself"),
    "pointers in a circle": (pointers("b", "c"), "is a pointer itself"),
    "an adapter of itself": (as_adapter(lambda f: f), "adapter"),
    "an adapter by another name": (as_adapter(lambda f: f / ".." / f.name), "an adapter itself"),
    "adapters in a circle": (as_adapter(lambda f: adapter(f.parent / "other", f)), "an adapter itself"),
    "an adapter of a rank": (as_adapter(r=10**9), "r is 1000000000"),
    "an adapter that repeats layers": (as_adapter(layer_replication=[[0, 10**6]]), "layer_replication"),
}


@pytest.fixture
def deadline():
    """Ends a test that waits for a pipe."""

    def late(number, frame):
        raise TimeoutError("nothing was refused within 20 s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_a_folder_in_order_is_taken(model, deadline):
    models.check(model)
    assert len(TRAPS) >= 40


@pytest.mark.torture("a model folder that is a trap", "refused by the name of the file, before it is loaded")
def test_traps(model, tmp_path, tries):
    order = model.rename(tmp_path / "order")
    for attempt in tries(10 * len(TRAPS)):
        name, (spoil, message) = list(TRAPS.items())[attempt // 10]
        shutil.rmtree(place := tmp_path / "place", ignore_errors=True)
        folder = shutil.copytree(order, place / "model")
        spoil(folder, random.Random(attempt))
        signal.alarm(20)
        for refuse in (models.check, models.pointer):
            with pytest.raises(ModelRefused, match=message) as raised:
                refuse(folder)
            assert str(place) in str(raised.value), name
            assert len(str(raised.value)) < 5000, name
        signal.alarm(0)


def test_a_folder_named_like_a_rounds_is_no_round(model, deadline, tmp_path):
    template(LOOPS["nested"])(model, None)
    (tmp_path / "data/round=r1").mkdir(parents=True)
    with pytest.raises(ModelRefused, match="takes more than 0.5 s"):
        models.check(model.rename(tmp_path / "data/round=r1/model"))


@pytest.mark.parametrize("name", ["a pipe for weights", "a width", "a template: nested", "adapters in a circle"])
def test_every_door_refuses_them(model, project, deadline, tmp_path, name):
    root = project()
    spoil, message = TRAPS[name]
    spoil(model, random.Random(0))
    before = (root / "params.yaml").read_bytes()
    done = CliRunner().invoke(app, ["base", "add", "mine", "--local", str(model)])
    assert isinstance(done.exception, ModelRefused)
    assert (root / "params.yaml").read_bytes() == before
    with pytest.raises(ModelRefused, match=message):
        Local(path=model)(type("Case", (), {"model": tmp_path / "base"})())
    assert not (tmp_path / "base").exists()
    with pytest.raises(ValueError, match="pin the model"):
        RosterModel.model_validate({"engine": {"strategy": "transformers"}, "path": model})
    with pytest.raises(ModelRefused, match=message):
        RosterModel.model_validate({"engine": {"strategy": "transformers"}, "path": model, "digest": "0" * 64}).folder()


def test_links_of_the_hubs_cache_and_of_dvcs_are_followed(model, deadline, tmp_path):
    snapshot = tmp_path / "models--a--b/snapshots/0123"
    stored = tmp_path / "cache/files/md5/ab"
    for place in (snapshot, tmp_path / "models--a--b/blobs", stored):
        place.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        blob = tmp_path / "models--a--b/blobs" / file.name
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
        stored_file = shutil.move(file, stored / f"{number:030x}")
        file.symlink_to(stored_file)
    models.check(snapshot)
    models.check(model)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ModelRefused, match="is a link out"):
        models.check(snapshot)


@pytest.mark.parametrize(
    "text",
    [
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}",
        "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for m in messages %}{% break %}{% endfor %}",
        "{{ strftime_now('%Y') }}{{ messages[-1]['content'] | trim }}",
    ],
)
def test_templates_as_they_are_published_are_taken(model, deadline, text):
    (model / "chat_template.jinja").write_text(text)
    models.check(model)
