"""What a GPU makes of it: training, answering and a whole round of a model of 200M parameters, in bf16.

    make bench-gpu          [--hidden 1024] [--layers 12] [--documents 48000] [--prompts 256] [--cpu]

A Llama with the embedded policy's tokenizer is trained from random weights on the arithmetic corpus, by the strategy
`sft` (TRL); then it answers `prompts` held-out problems 8 times each, by the engine `transformers`, by a plain loop of
`model.generate` in batches of 32 and, where it is installed, by the engine `vllm`; then it is the base of a round with
the parameters of r1. Printed are tokens a second, the training's share of the peak (6 operations a parameter and token,
against a large matrix product measured here), the most memory that was in use on the device, and the share of the
round's seconds in which no stage started up or was in the model. With `--cpu` all of it runs without a GPU, to try it.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import polars as pl
import torch
import typer
from engine import BATCH, CORES, engine, generate, requests
from ruamel.yaml import YAML

from tasks import store
from tasks.base.scratch import Scratch
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.vllm import Vllm
from tasks.models import digest
from tasks.params import load_params, plain, stages_of
from tasks.train.sft import SFT

HERE = Path(__file__).resolve().parents[1]
SIZE = 8192
"""Rows and columns of the matrices whose product is the peak."""


def untrained(folder: Path, hidden: int, layers: int, dtype: torch.dtype) -> int:
    """Writes a Llama with random weights and the embedded policy's tokenizer; gives its number of parameters."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(HERE / "data/base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64), num_key_value_heads=max(1, hidden // 64), max_position_embeddings=512,
        tie_word_embeddings=True, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    network = LlamaForCausalLM(config).to(dtype)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(network.num_parameters())


def corpus(documents: int) -> pl.DataFrame:
    """Rows to train on: the recipe of the embedded policy, without its last two phases."""
    recipe = Scratch(
        easy=documents // 4, clean=documents // 2, noisy=documents // 4, comparing=0, checking=0, chunk=documents
    )
    chats = list(recipe.corpus(Arithmetic(), 0, 0))
    return pl.DataFrame({"prompt": [c[:-1] for c in chats], "completion": [c[-1:] for c in chats]})


def trained(parent: Path, model: Path, work: Path, rows: pl.DataFrame) -> float:
    """Trains the model; tokens a second, from loading it to saving it."""
    from transformers import AutoTokenizer
    from trl import SFTTrainer  # noqa: F401  (imported before the clock starts)

    tokenizer = AutoTokenizer.from_pretrained(parent)
    chats = [p + c for p, c in rows.select("prompt", "completion").iter_rows()]
    tokens = sum(map(len, tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]))
    params = SFT(epochs=1, batch=128, matrices=0.01, rest=0.001, blend=1.0)
    start = time.perf_counter()
    params(rows, pl.DataFrame(), parent_model=parent, model=model, work=work, seed=0, domain=Arithmetic())
    return tokens / (time.perf_counter() - start)


def peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = SIZE if device == "cuda" else SIZE // 8
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            b = a @ a
        float(b[0, 0])  # waits for the device
        times.append((time.perf_counter() - start) / 5)
    return 2 * size**3 / min(times)


@contextmanager
def watched(device: str) -> Iterator[Callable[[], str]]:
    """The most memory in use on the device meanwhile, by whatever process, looked at ten times a second."""
    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            free, total = torch.cuda.mem_get_info()
            most[0] = max(most[0], total - free)

    if device == "cuda":
        threading.Thread(target=look, daemon=True).start()
    try:
        yield lambda: f"{most[0] / 2**30:.1f} GiB" if most[0] else "not measured"
    finally:
        over.set()


def campaign(root: Path, model: Path, dtype: str, count: int) -> tuple[float, float]:
    """A base and a round of it, each stage as the process that a user starts: seconds, and the share outside the model
    and start-up.
    """
    (root / "data").mkdir(parents=True)
    for name in ("tasks", "data/seeds"):
        (root / name).symlink_to(HERE / name)
    content = plain(YAML().load((HERE / "params.yaml").read_text()))
    base, block = content["bases"]["r0"], content["rounds"]["r1"]
    base["base"] = {"strategy": "local", "path": str(model), "digest": digest(model)}
    base["engine"] = block["engine"] = {"strategy": "transformers", "dtype": dtype}
    block["prompts"]["count"] = count
    YAML().dump({"bases": {"r0": base}, "rounds": {"r1": block}}, root / "params.yaml")
    start = time.perf_counter()
    for own in load_params(root).blocks.values():
        for stage in stages_of(own):
            command = [sys.executable, "-m", "tasks", "stage", stage.name, own.name]
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    spent = [m.seconds for name in ("r0", "r1") for m in store.manifests(root, name).values()]
    return whole, 1 - sum(s["start"] + s["model"] for s in spent) / whole


def main(
    hidden: int = 1024,
    layers: int = 12,
    documents: int = 48_000,
    prompts: int = 256,
    count: int = 700,
    cpu: bool = False,
) -> None:
    """Measures all of it and prints it."""
    if not cpu and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured (--cpu runs all of it without one)")
        raise typer.Exit(1)
    device, dtype = ("cpu", "float32") if cpu else ("cuda", "bfloat16")
    name = "CPU" if cpu else torch.cuda.get_device_name()
    place = Path(tempfile.mkdtemp(prefix="flywheel-"))
    try:
        with watched(device) as memory:
            parameters = untrained(place / "random", hidden, layers, getattr(torch, dtype))
            speed = trained(place / "random", place / "model", place / "work", corpus(documents))
            share = 6 * parameters * speed / peak(device, getattr(torch, dtype))
            print(f"{name}, torch {torch.__version__}, {parameters / 1e6:.0f}M parameters, {dtype}")
            print(f"training   {speed:10,.0f} tokens/s, {share:.0%} of the peak, {memory()}", flush=True)
        wanted = requests(prompts, 8)
        rates = {}
        for side, opened in {
            "engine": lambda: engine(place / "model", CORES, dtype),
            "generate": lambda: generate(place / "model", CORES, dtype, device),
        }.items():
            with watched(device) as memory:
                answer = opened()
                answer(wanted[:BATCH])
                start = time.perf_counter()
                rates[side] = answer(wanted) / (time.perf_counter() - start)
                print(f"{side:10} {rates[side]:10,.0f} tokens/s, {memory()}", flush=True)
        print(f"ratio {rates['engine'] / rates['generate']:.2f}")
        if find_spec("vllm"):
            with Vllm(dtype=dtype, memory=0.5).open(place / "model") as policy:
                list(policy.sample(wanted[:BATCH]))
                start = time.perf_counter()
                tokens = sum(c.tokens for _, c in policy.sample(wanted))
                print(f"vllm       {tokens / (time.perf_counter() - start):10,.0f} tokens/s", flush=True)
        with watched(device) as memory:
            seconds, outside = campaign(place / "project", place / "model", dtype, count)
            print(f"base and round {seconds:.0f} s, {outside:.1%} outside model and start-up, {memory()}")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    typer.run(main)
