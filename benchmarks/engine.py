"""Tokens a second of the `transformers` engine beside a plain `model.generate`, in one run.

    python benchmarks/engine.py            [--model data/base] [--prompts 128] [--samples 8] [--mixed 4096] [--repeats 5]

Both sides get the same requests in the same order, temperature 1: held-out story problems of levels 2 to 8, first
`prompts` of them `samples` times each, one level after the other, as a round asks; then `mixed` of them once each,
shuffled, so that short ones wait for long ones in a batch. `model.generate` gets them in batches of 32; the engine makes
its own. Each side runs with one thread; what a round asks, with its default number of threads too. Counted are the tokens of the answers,
the end token included and padding not; text to text, so that tokenizing and decoding are in the time on both sides. The
sides take turns, each in a process of its own, and each one's median counts.
"""

import atexit
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache as once
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
import typer
from table import add

from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Request, Sampling, turns
from tasks.engines.transformers import Transformers

BATCH = 32
MAX_TOKENS = 160
CORES = len(os.sched_getaffinity(0))
until_the_end = ExitStack()
atexit.register(until_the_end.close)


def held_out_requests(prompts: int, samples: int) -> list[Request]:
    """`prompts` held-out problems `samples` times each, one after the other, as the stage `generate` asks."""
    domain, sampling = Arithmetic(), Sampling(max_tokens=MAX_TOKENS)
    chats = [domain.solve(item.problem) for item in domain.items("heldout", prompts, seed=0)]
    return [Request(turns(c), sampling, seed=1000 * i + k) for i, c in enumerate(chats) for k in range(samples)]


def engine(model: Path, threads: int, dtype: str = "float32") -> Callable[[list[Request]], int]:
    """Counts the tokens that the engine answers with."""
    policy = until_the_end.enter_context(Transformers(threads=threads, dtype=dtype).open(model))
    return lambda requests: sum(completion.tokens for _, completion in policy.sample(requests))


def generate(model: Path, threads: int, dtype: str = "float32", device: str = "cpu") -> Callable[[list[Request]], int]:
    """Counts the tokens that a plain `model.generate` answers with, in batches in the order of the list."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")

    def answer(requests: list[Request]) -> int:
        chats = [[{"role": r, "content": c} for r, c in q.messages] for q in requests]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(device)
        with torch.inference_mode():
            out = network.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=MAX_TOKENS)
        completions = out[:, inputs["input_ids"].shape[1] :]
        tokenizer.batch_decode(completions, skip_special_tokens=True)
        lengths = (completions == tokenizer.eos_token_id).int().argmax(-1) + 1
        cut_off = (completions != tokenizer.eos_token_id).all(-1)
        return int(torch.where(cut_off, completions.shape[1], lengths).sum())

    return lambda requests: sum(answer(requests[i : i + BATCH]) for i in range(0, len(requests), BATCH))


SIDES = {"engine": engine, "generate": generate}
side_of = once(lambda name, model, threads: SIDES[name](model, threads))


def rate(name: str, model: Path, threads: int, requests: list[Request]) -> float:
    """Tokens a second of a side, which a process opens once."""
    answer = side_of(name, model, threads)
    start = time.perf_counter()
    return answer(requests) / (time.perf_counter() - start)


def main(
    model: Path = Path("data/base"), prompts: int = 128, samples: int = 8, mixed: int = 4096, repeats: int = 5
) -> None:
    """Measures both sides and prints the ratios."""
    shuffled = random.Random(0).sample(held_out_requests(mixed, 1), mixed)
    of_a_round = held_out_requests(prompts, samples)
    cases = {
        f"{len(of_a_round):,} requests as a round asks, 1 thread": (of_a_round, 1, 1.5),
        f"{len(of_a_round):,} requests as a round asks, {CORES} threads": (of_a_round, CORES, 3.0),
        f"{mixed:,} mixed requests, 1 thread": (shuffled, 1, 2.0),
    }
    with ExitStack() as stack:
        sides = [(name, threads) for threads in dict.fromkeys((1, CORES)) for name in SIDES]
        alone = partial(ProcessPoolExecutor, 1, get_context("spawn"))
        workers = {side: stack.enter_context(alone()) for side in sides}

        def turn(name: str, threads: int, requests: list[Request]) -> float:
            return workers[name, threads].submit(rate, name, model, threads, requests).result()

        for side in sides:
            turn(*side, shuffled[:BATCH])  # loads the model
        for what, (requests, threads, goal) in cases.items():
            rates = [{name: turn(name, threads, requests) for name in SIDES} for _ in range(repeats)]
            ours, theirs = (median(pair[name] for pair in rates) for name in SIDES)
            add(what, f"{ours:,.0f} tokens/s", f"model.generate {theirs:,.0f}", ours / theirs, goal, at_least=True)


if __name__ == "__main__":
    typer.run(main)
