"""What a GPU makes of it: training, answering and a whole round of a model of 200M parameters, in bf16.

    make bench-gpu          [--part round] [--part answers] [--part training] [--hidden 1024] [--layers 12]
                            [--documents 48000] [--prompts 256] [--cpu]

A Llama with the embedded policy's tokenizer is trained from random weights on the arithmetic corpus, by the strategy
`sft` (TRL); then it answers `prompts` held-out problems 8 times each, by the engine `transformers`, by a plain loop of
`model.generate` in batches of 32 and, where it is installed, by the engine `vllm`; then it is the base of a round with
the parameters of r1. Printed are tokens a second, the training's share of the peak (6 operations a parameter and token,
against a large matrix product measured here), the most memory that was in use on the device beyond what was before, and
the share of the round's seconds in which no stage started up or was in the model. Each of these is measured in a process
of its own, so that none finds the memory or the caches of another. That is the part `round`; the parts `answers` and
`training` are of models of 0.5B and 8B parameters (`gpu_sizes.py`). With `--cpu` all of it runs without a GPU, to try it.
"""

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, TypeVar

import polars as pl
import torch
import typer
from engine import BATCH, CORES, engine, generate, held_out_requests
from gpu_sizes import answering_part, training_part
from ruamel.yaml import YAML

from tasks.base.scratch import Scratch
from tasks.core import store
from tasks.core.models import digest
from tasks.domains.arithmetic import Arithmetic
from tasks.engines.vllm import Vllm
from tasks.project import plan
from tasks.project.params import load_params, plain, stages_of
from tasks.train import TrainCase
from tasks.train.sft import SFT

T = TypeVar("T")
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


def train_speed(start: Path, model: Path, work: Path, rows: pl.DataFrame) -> float:
    """Trains the model; tokens a second, from loading it to saving it."""
    from transformers import AutoTokenizer
    from trl import SFTTrainer  # noqa: F401  (imported before the clock starts)

    tokenizer = AutoTokenizer.from_pretrained(start)
    chats = [p + c for p, c in rows.select("prompt", "completion").iter_rows()]
    tokens = sum(map(len, tokenizer(tokenizer.apply_chat_template(chats, tokenize=False))["input_ids"]))
    strategy = SFT(epochs=1, batch=128, muon_lr=0.01, adamw_lr=0.001, blend=1.0)
    clock = time.perf_counter()
    strategy(TrainCase(rows, pl.DataFrame(), start, None, model, work, 0))
    return tokens / (time.perf_counter() - clock)


def training(place: Path, hidden: int, layers: int, documents: int, device: str, dtype: str) -> float:
    """Makes and trains the model; operations a second."""
    with memory_watch(device) as memory:
        parameters = untrained(place / "random", hidden, layers, getattr(torch, dtype))
        speed = train_speed(place / "random", place / "model", place / "work", corpus(documents))
        name = "CPU" if device == "cpu" else torch.cuda.get_device_name()
        print(f"{name}, torch {torch.__version__}, {parameters / 1e6:.0f}M parameters, {dtype}")
        print(f"training   {speed:10,.0f} tokens/s, {memory()}", flush=True)
    return 6 * parameters * speed


def peak(device: str, dtype: str) -> float:
    """Operations a second of a large matrix product."""
    size = SIZE if device == "cuda" else SIZE // 8
    a = torch.randn(size, size, device=device, dtype=getattr(torch, dtype))
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(5):
            b = a @ a
        float(b[0, 0])  # waits for the device
        times.append((time.perf_counter() - start) / 5)
    return 2 * size**3 / min(times)


def answering(side: str, model: Path, prompts: int, device: str, dtype: str) -> float:
    """Tokens a second of a side, the model loaded and warm."""
    requests = held_out_requests(prompts, 8)
    with memory_watch(device) as memory:
        answer = engine(model, CORES, dtype) if side == "engine" else generate(model, CORES, dtype, device)
        answer(requests[:BATCH])
        start = time.perf_counter()
        rate = answer(requests) / (time.perf_counter() - start)
        print(f"{side:10} {rate:10,.0f} tokens/s, {memory()}", flush=True)
    return rate


def answering_by_vllm(model: Path, prompts: int, dtype: str) -> None:
    """The same of vLLM, whose memory is what it is given."""
    requests = held_out_requests(prompts, 8)
    with Vllm(dtype=dtype, memory=0.5).open(model) as policy:
        list(policy.sample(requests[:BATCH]))
        start = time.perf_counter()
        tokens = sum(c.tokens for _, c in policy.sample(requests))
        print(f"vllm       {tokens / (time.perf_counter() - start):10,.0f} tokens/s", flush=True)


@contextmanager
def memory_watch(device: str) -> Iterator[Callable[[], str]]:
    """The most memory that the device has in use meanwhile, by whatever process, beyond what it had at first, when this
    process's CUDA context was there already; looked at ten times a second.
    """
    free, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            free[0] = min(free[0], torch.cuda.mem_get_info()[0])

    if device == "cuda":
        first = free[0] = torch.cuda.mem_get_info()[0]
        threading.Thread(target=look, daemon=True).start()
    try:
        yield lambda: f"{(first - free[0]) / 2**30:.1f} GiB" if device == "cuda" else "memory not measured"
    finally:
        over.set()


def campaign(root: Path, model: Path, count: int, device: str, dtype: str) -> None:
    """A base and a round of it, each stage as the process that a user starts."""
    (root / "data").mkdir(parents=True)
    for name in ("tasks", "recipes", "data/seeds"):
        (root / name).symlink_to(HERE / name)
    content = plain(YAML().load((HERE / "params.yaml").read_text()))
    settings = {"prompts.pool.count": count}
    if device == "cpu":  # where a model that learnt from a few documents may write no problem that can be used
        settings["prompts.seeds.count"] = count
    base, block = content["bases"]["r0"], content["rounds"]["r1"] | {"set": settings}
    base["base"] = {"strategy": "local", "path": str(model), "digest": digest(model)}
    base["engine"] = {"strategy": "transformers", "dtype": dtype}
    YAML().dump(content | {"bases": {"r0": base}, "rounds": {"r1": block}}, root / "params.yaml")
    plan.write(root)
    with memory_watch(device) as memory:
        start = time.perf_counter()
        for own in load_params(root).blocks.values():
            for stage in stages_of(own):
                command = [sys.executable, "-m", "tasks", "stage", stage.name, own.name]
                subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - start
        seconds = [m.seconds for name in ("r0", "r1") for m in store.manifests(root, name).values()]
        outside = 1 - sum(s["start"] + s["model"] for s in seconds) / whole
        print(f"base and round {whole:.0f} s, {outside:.1%} outside model and start-up, {memory()}", flush=True)


def alone(phase: Callable[..., T], *args: Any, **params: Any) -> T:
    """What a phase gives in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(phase, *args, **params).result()


PARTS = ("round", "answers", "training")


def main(
    part: Annotated[
        list[str] | None, typer.Option(help="One of round, answers, training; repeatable (default: all).")
    ] = None,
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
    if odd := set(part or ()) - set(PARTS):
        raise typer.BadParameter(f"there is no part {odd.pop()!r}; known: {', '.join(PARTS)}")
    place = Path(tempfile.mkdtemp(prefix="flywheel-"))
    dtype = "float32" if cpu else "bfloat16"
    try:
        if "round" in (part or PARTS):
            whole_round(place, hidden, layers, documents, prompts, count, cpu)
        if "answers" in (part or PARTS) and find_spec("vllm"):
            answering_part(place, prompts if cpu else 4 * prompts, cpu, dtype, alone)
        if "training" in (part or PARTS):
            training_part(place, corpus(documents // 24), cpu, dtype, alone)
    finally:
        shutil.rmtree(place)


def whole_round(place: Path, hidden: int, layers: int, documents: int, prompts: int, count: int, cpu: bool) -> None:
    """The part `round`."""
    how = ("cpu", "float32") if cpu else ("cuda", "bfloat16")
    model = place / "model"
    operations = alone(training, place, hidden, layers, documents, *how)
    print(f"training's share of the peak {operations / alone(peak, *how):.0%}", flush=True)
    ours, theirs = (alone(answering, side, model, prompts, *how) for side in ("engine", "generate"))
    print(f"ratio {ours / theirs:.2f}", flush=True)
    if find_spec("vllm"):
        alone(answering_by_vllm, model, prompts, how[1])
    alone(campaign, place / "project", model, count, *how)


if __name__ == "__main__":
    typer.run(main)
