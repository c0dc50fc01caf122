"""A base that is taught further roles, in small: tokens of their own, the same bytes after kills, wrong parameters."""

import json
import multiprocessing
import random
import time
from collections import Counter

import pytest

from tasks.base import BaseCase
from tasks.base.taught import ALIKE, CLOSING, SHARES, Taught
from tasks.core.errors import Diverged, ModelRefused, ParamsError
from tasks.domains import Domain
from tasks.domains.arithmetic import Arithmetic

SMALL = {"documents": 60, "chunk": 20, "batch": 600}
FILES = ("model.safetensors", "config.json", "tokenizer.json", "README.md")


@pytest.fixture
def start(embedded_model):
    return embedded_model


def teach(start, folder, domain=None, **changes):
    Taught(path=start, **SMALL | changes)(BaseCase(folder / "model", folder / "work", 3, domain or Arithmetic()))


def contents(folder):
    return {name: (folder / "model" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def taught(embedded_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    teach(embedded_model, folder)
    return folder


def test_new_roles_and_closings_are_single_tokens_and_old_texts_read_as_before(taught, start):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    new, old = (AutoTokenizer.from_pretrained(folder) for folder in (taught / "model", start))
    assert all(len(new(text)["input_ids"]) == 1 for text in (*CLOSING, *(f"<|{role}|>" for role in SHARES)))
    rng, domain = random.Random(0), Arithmetic()
    for role in ("write", "solve", "judge", "critique", "refine"):
        chat, completion = domain.document(rng, role, 5, 0.1)
        text = new.apply_chat_template([*chat, {"role": "assistant", "content": completion}], tokenize=False)
        assert new(text)["input_ids"] == old(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(taught / "model")
    assert model.get_input_embeddings().weight.shape[0] == len(new)
    assert model.config.tie_word_embeddings


def test_the_roles_are_drawn_by_their_shares():
    chats = Taught(path="data/base", documents=4000).corpus(Arithmetic(), 0, 0)
    counts = Counter(chat[0]["content"] for chat in chats)
    assert counts["compare"] == pytest.approx(4000 * SHARES["compare"] / sum(SHARES.values()), rel=0.15)
    assert set(counts) >= SHARES.keys() - {"revise", "refuse"}  # which are written as refine and solve


def test_every_new_role_starts_like_an_old_one():
    assert set(SHARES) - set(ALIKE) == {"write", "solve", "judge", "critique", "refine"}
    assert set(Arithmetic.roles) == set(SHARES)


def test_the_card_holds_the_recipe_and_the_start(taught, start):
    from tasks.core.models import digest

    card = (taught / "model" / "README.md").read_text()
    recipe = json.loads(card.partition("```json")[2].partition("```")[0])
    assert Taught(**recipe["strategy"]) == Taught(path=start, **SMALL)
    assert recipe["start"] == digest(start)


def test_killed_at_any_instant_it_ends_in_the_same_bytes(taught, start, tmp_path):
    fork = multiprocessing.get_context("fork")
    rng = random.Random(0)
    for _ in range(3):
        child = fork.Process(target=teach, args=(start, tmp_path))
        child.start()
        time.sleep(rng.uniform(0.3, 1.5))
        child.kill()
        child.join()
    teach(start, tmp_path)
    assert contents(tmp_path) == contents(taught)


def test_wrong_parameters_and_another_start(start, tiny_model, tmp_path):
    with pytest.raises(ModelRefused, match="no embedded base"):
        teach(tiny_model, tmp_path)
    with pytest.raises(ParamsError, match="'compere'.*did you mean 'compare'"):
        teach(start, tmp_path, shares={"solve": 1.0, "compere": 1.0})
    with pytest.raises(ParamsError, match="domains cannot write"):
        teach(start, tmp_path, domain=Domain())
    with pytest.raises(ModelRefused, match="pins 0000"):
        teach(start, tmp_path, digest="0" * 64)
    with pytest.raises(Diverged):
        teach(start, tmp_path, muon_lr=1e30, adamw_lr=1e30)
    assert not (tmp_path / "model").exists()
