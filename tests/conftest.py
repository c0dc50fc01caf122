"""Fixtures that several folders of tests share."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import crashed
import projects
import pytest
import torture
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # timings are benchmarks, never assertions
settings.load_profile("any machine")

SHARED = Path(__file__).parents[2] / "shared" / "data"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LONGEST = (
    "test_readme", "test_prefect", "test_preferences", "test_sft", "test_supervised", "test_through_dvc", "test_replaying",
    "test_execute", "test_services", "test_bisect", "test_why_not", "test_campaign", "test_killed_runs", "test_dpo_family",
    "test_cluster", "test_where", "test_bucket_rounds", "test_several_devices", "test_kept_open", "test_staleness", "test_docs",
    "test_graph", "test_adapters",
)  # fmt: skip
"""Files that take half of the time. A worker gets whole files: begun first, none of these is what the others wait for."""


def pytest_collection_modifyitems(items):
    """Puts the longest files first, and skips what reads public data where they are absent, and says so."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    absent = pytest.mark.skip(reason=f"the public data are not in {SHARED}")
    for item in items:
        item.user_properties += torture.marks(item)
        if item.get_closest_marker("needs_shared") and not SHARED.is_dir():
            item.add_marker(absent)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem, report, sched):
    """Has a test at which a worker died run once more."""
    crashed.rerun(crashitem, report, sched)


def pytest_terminal_summary(terminalreporter):
    """Prints the rows of the fault matrix that were tried, and at what workers died."""
    done = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    for line in torture.matrix(done):
        terminalreporter.write_line(line)
    for line in crashed.lines():
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture
def tries(record_property) -> torture.Tries:
    """How often a fault is tried: `for attempt in tries(200)` is a tenth of them, or all with `make torture`."""
    return torture.Tries(record_property)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium. It comes from the machine, for Playwright's own cannot be fetched everywhere. Of a module and not the
    session, for while it is open no `asyncio.run` of another test works in this thread.
    """
    from playwright.sync_api import sync_playwright

    if not (path := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("there is no Chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def apart(tmp_path_factory):
    """An environment like a user's: this interpreter's commands come first, nothing is recorded elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("dvc")))
        for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
            patch.delenv(variable, raising=False)
        yield patch


@pytest.fixture
def project(tmp_path, monkeypatch, apart) -> Callable[..., Path]:
    """Makes a small project of which nothing has run, and makes it the working directory."""

    def make(**how) -> Path:
        root = tmp_path / "project"
        root.mkdir()
        monkeypatch.chdir(root)
        return projects.make(root, **how)

    return make


@pytest.fixture(scope="session")
def campaign(tmp_path_factory, apart) -> Path:
    """A project whose base and two rounds have run, with dvc.lock in git. Not to be changed: `made` is a copy."""
    root = projects.make(tmp_path_factory.mktemp("campaign"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        projects.run_all()
        with projects.dvc(root) as repo:
            repo.commit(force=True)
    projects.commit(root, "three models")
    return root


@pytest.fixture
def made(campaign, tmp_path, monkeypatch) -> Path:
    """A copy of the campaign, as the working directory."""
    root = tmp_path / "project"
    shutil.copytree(campaign, root, symlinks=True)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A real Llama of some 20,000 parameters with random weights, large enough that its distribution is far from flat."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), tie_word_embeddings=True, max_position_embeddings=256, initializer_range=0.4,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def embedded_model(tmp_path_factory) -> Path:
    """A small model that speaks the arithmetic domain's roles, hardly trained."""
    from tasks.base import BaseCase
    from tasks.base.scratch import Scratch
    from tasks.domains.arithmetic import Arithmetic

    folder = tmp_path_factory.mktemp("embedded")
    tiny = Scratch(hidden=32, layers=1, ffn=64, easy=60, clean=0, noisy=0, comparing=0, checking=0, chunk=60, batch=600)
    tiny(BaseCase(folder / "model", folder / "work", 0, Arithmetic()))
    return folder / "model"


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [f"Tom has {i % 31} pens.\nDay {i % 8}: {i % 5} found\nHow many?\nAnswer: {i % 30}" for i in range(500)]
    special = ["<pad>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    wrapped.chat_template = TEMPLATE
    return wrapped
