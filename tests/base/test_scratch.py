"""The base that is trained from nothing, in small: a folder that loads, the same bytes after kills, a stop at NaN."""

import json
import multiprocessing
import random
import time

import pytest

from tasks.base import BaseCase
from tasks.base.scratch import DECIDING, ROLES, Scratch
from tasks.core.errors import Diverged, ParamsError
from tasks.domains import Domain
from tasks.domains.arithmetic import Arithmetic

TINY = {
    "hidden": 32,
    "layers": 1,
    "ffn": 64,
    "easy": 40,
    "clean": 40,
    "noisy": 20,
    "comparing": 20,
    "checking": 20,
    "chunk": 20,
    "batch": 600,
}
FILES = ("model.safetensors", "config.json", "tokenizer.json", "README.md")


def train(folder, **changes):
    Scratch(**TINY | changes)(BaseCase(folder / "model", folder / "work", 3, Arithmetic()))


def contents(folder):
    return {name: (folder / "model" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch")
    train(folder)
    return folder


def test_the_folder_loads_and_speaks_the_roles(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    assert type(model).__name__ == "LlamaForCausalLM"
    chat = Arithmetic().solve("Tom has 12 pens.\nDay 1: 5 found\nHow many?")
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|solve|>Tom has 12 pens.\nDay 1: 5 found\nHow many?<|answer|>"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert all(len(tokenizer(t)["input_ids"]) == 1 for t in ("17", "Day 3: ", "Answer: ", "<|judge|>", *DECIDING))


def test_without_a_system_message_it_solves(trained):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|solve|>a<|answer|>b<|end|>"


def test_the_card_holds_the_recipe(trained):
    card = (trained / "model" / "README.md").read_text()
    recipe = json.loads(card.partition("```json")[2].partition("```")[0])
    assert Scratch(**recipe["strategy"]) == Scratch(**TINY)
    assert all(f"`{role}`" in card for role in ROLES)


def test_slips_come_after_the_clean_phases():
    recipe, domain = (
        Scratch(easy=300, clean=300, noisy=300, comparing=300, checking=300, chunk=300, noise=0.3),
        Arithmetic(),
    )

    def wrong(chunk):
        chats = [c for c in recipe.corpus(domain, 0, chunk) if c[0]["content"] == "solve"]
        return sum(not domain.verify(c[1]["content"], c[2]["content"]).passed for c in chats) / len(chats)

    assert wrong(0) == wrong(1) == 0 < 0.5 < min(wrong(2), wrong(4))


def test_killed_at_any_instant_it_ends_in_the_same_bytes(trained, tmp_path):
    fork = multiprocessing.get_context("fork")
    rng = random.Random(0)
    for _ in range(3):
        child = fork.Process(target=train, args=(tmp_path,))
        child.start()
        time.sleep(rng.uniform(0.3, 1.5))
        child.kill()
        child.join()
    train(tmp_path)
    assert contents(tmp_path) == contents(trained)


def test_nan_stops_it(tmp_path):
    with pytest.raises(Diverged, match="learning rate"):
        train(tmp_path, muon_lr=1e30, adamw_lr=1e30)
    assert not (tmp_path / "model").exists()


def test_another_domain_has_no_corpus(tmp_path):
    with pytest.raises(ParamsError, match="arithmetic"):
        Scratch()(BaseCase(tmp_path / "model", tmp_path / "work", 0, Domain()))
