"""What all engines share."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from tasks.core.errors import EngineError
from tasks.core.plugin import load, names
from tasks.core.roster import Models, Source
from tasks.core.stage import Ability
from tasks.engines import ABILITIES, Completion, Sampling, ask
from tasks.engines._room import check_room
from tasks.filter import Filtering
from tasks.project.blocks import Settings
from tasks.project.checks import _check_abilities
from tasks.project.problems import Problems


def weights(place, **tensors):
    """A model folder with shards of nothing but their headers: dtype and shape of each tensor, by shard and name."""
    place.mkdir(exist_ok=True)
    sizes = {"F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "U8": 1}
    for shard, (kind, count) in tensors.items():
        tensor = {"dtype": kind, "shape": [count], "data_offsets": [0, count * sizes[kind]]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "w": tensor}).encode()
        (place / f"{shard}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return place


def fits(folder, dtype, free):
    try:
        check_room(folder, dtype, "cuda", free)
    except EngineError as error:
        assert "GiB of cuda memory are free" in str(error)
        return False
    return True


@pytest.mark.parametrize(
    ("kind", "dtype", "each"),
    [
        ("F32", "float32", 4), ("F32", "bfloat16", 2), ("F32", "float16", 2), ("F32", "auto", 2), ("BF16", "float32", 4),
        ("BF16", "auto", 2), ("F8_E4M3", "bfloat16", 1), ("U8", "float32", 1),
    ],
)  # fmt: skip
def test_weights_count_in_the_precision_in_which_they_are_loaded(tmp_path, kind, dtype, each):
    folder = weights(tmp_path / "model", model=(kind, 1000))
    assert fits(folder, dtype, 1000 * each)
    assert not fits(folder, dtype, 1000 * each - 1)


def test_only_the_files_that_are_loaded_count(tmp_path):
    folder = weights(tmp_path / "model", model=("BF16", 10), consolidated=("BF16", 1000))
    assert fits(folder, "bfloat16", 20)
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
    weights(folder, one=("BF16", 3), two=("BF16", 4))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert fits(folder, "bfloat16", 14)
    assert not fits(folder, "bfloat16", 13)


@given(st.permutations(range(4)), st.lists(st.integers(-1, 5), max_size=3), st.integers(0, 4))
def test_every_request_has_one_answer_or_it_is_an_error(order, more, left):
    """Answers in any order; some left out, and some doubled or to requests that nobody made."""
    indices = [*order[:left], *more]
    policy = SimpleNamespace(sample=lambda requests: ((i, Completion(str(i))) for i in indices))
    engine = SimpleNamespace(open=lambda *_: nullcontext(policy))
    models = Models({"parent": Source(engine, lambda: Path("m"))})
    chats = [[{"role": "user", "content": "?"}]] * 4
    if sorted(indices) == [0, 1, 2, 3]:
        with models.open() as metered:
            assert [c.text for c in ask(metered, chats, Sampling(), range(4))] == ["0", "1", "2", "3"]
        assert models.meters["parent"].requests == 4
    else:
        with pytest.raises(EngineError, match=r"request -?\d (twice|of only 4)|left \d of 4"):
            with models.open() as metered:
                ask(metered, chats, Sampling(), range(4))


def test_a_request_without_a_trace_has_the_key_that_it_had_before_there_were_traces():
    assert Sampling(0.5, stop=("x",)).parts == (0.5, 1.0, 0.0, 128, ("x",), None, None)
    assert Sampling(0.5, trace=True).parts == (0.5, 1.0, 0.0, 128, (), None, None, True)


def test_every_ability_has_words_and_every_engine_says_whether_it_has_it():
    assert tuple(ABILITIES) == get_args(Ability)
    lacking = {name: load("engines", name).lacks(ABILITIES) for name in names("engines")}
    assert lacking == {
        "fake": [],
        "openai": ["scores", "token entropies", "embeddings"],
        "replay": ["scores", "token log-probabilities", "token entropies", "embeddings"],
        "transformers": [],
        "vllm": ["token entropies", "embeddings"],
    }


class Novel(Filtering):
    """Needs vectors, and the entropy of each token."""

    needs = frozenset({"embeds", "entropies", "samples"})


@pytest.mark.parametrize("name", ["vllm", "fake"])
def test_an_engine_without_embeddings_is_refused_where_they_are_needed(name):
    pipeline = synthetic.pipeline("r1")
    block = pipeline.blocks["r1"]
    block.stages["filter"] = Settings({"novel": Novel()})
    object.__setattr__(block, "engine", load("engines", name)())
    problems = Problems("params.yaml")
    _check_abilities(pipeline, block, problems)
    text = "needs an engine with token entropies and embeddings, which vllm lacks"
    assert [text in line for line in problems] == ([True] if name == "vllm" else [])
