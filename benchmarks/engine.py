"""Tokens a second of the `transformers` engine beside a plain `model.generate`, in one run.

    python benchmarks/engine.py            [--model data/base] [--prompts 64] [--samples 8] [--repeats 3]

Both sides get the same requests in the same order: held-out story problems of levels 2 to 8, several samples each,
temperature 1. `model.generate` gets them in batches of 32, once with the engine's number of threads and once with
torch's default. Counted are the tokens of the answers, the end token included and padding not; text to text, so that
tokenizing and decoding are in the time on both sides. The sides take turns and each one's best time counts, since
others may be using the machine.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer

from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Request, Sampling
from tasks.engines.transformers import Transformers

BATCH = 32
MAX_TOKENS = 160
WANTED = {"same threads": 1.5, "default threads": 3.0}


def requests(prompts: int, samples: int) -> list[Request]:
    """Every held-out problem `samples` times, one after the other, as the stage `generate` asks."""
    domain, sampling = Arithmetic(), Sampling(max_tokens=MAX_TOKENS)
    chats = [domain.solve(item.problem) for item in domain.items("heldout", prompts, seed=0)]
    messages = [tuple((turn["role"], turn["content"]) for turn in chat) for chat in chats]
    return [Request(m, sampling, seed=1000 * i + k) for i, m in enumerate(messages) for k in range(samples)]


def engine(policy: Any, wanted: list[Request]) -> int:
    """Tokens that the engine answers with."""
    return sum(completion.tokens for _, completion in policy.sample(wanted))


def generate(network: Any, tokenizer: Any, wanted: list[Request]) -> int:
    """Tokens that a plain `model.generate` answers with, in batches in the order of the list."""
    count = 0
    for start in range(0, len(wanted), BATCH):
        chats = [[{"role": r, "content": c} for r, c in q.messages] for q in wanted[start : start + BATCH]]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = network.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=MAX_TOKENS)
        answers = out[:, inputs["input_ids"].shape[1] :]
        tokenizer.batch_decode(answers, skip_special_tokens=True)
        ended = (answers == tokenizer.eos_token_id).int().argmax(-1) + 1
        whole = (answers != tokenizer.eos_token_id).all(-1)
        count += int(torch.where(whole, answers.shape[1], ended).sum())
    return count


def timed(threads: int, work: Callable[[], int]) -> float:
    """Tokens a second."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def main(model: Path = Path("data/base"), prompts: int = 64, samples: int = 8, repeats: int = 3) -> None:
    """Measures both sides and prints the ratios."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    default = torch.get_num_threads()
    network = AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    wanted = requests(prompts, samples)
    with Transformers().open(model) as policy:
        threads = torch.get_num_threads()
        sides = {
            "engine": (threads, lambda: engine(policy, wanted)),
            "same threads": (threads, lambda: generate(network, tokenizer, wanted)),
            "default threads": (default, lambda: generate(network, tokenizer, wanted)),
        }
        rates = {name: max(timed(*side) for _ in range(1)) for name, side in sides.items()}
        for _ in range(repeats - 1):
            rates = {name: max(rates[name], timed(*side)) for name, side in sides.items()}
    print(f"{len(wanted)} requests ({prompts} prompts, {samples} samples), {model}")
    print(f"{'engine':32} {threads} thread(s) {rates['engine']:8.0f} tokens/s")
    for name, goal in WANTED.items():
        count = threads if name == "same threads" else default
        ratio = rates["engine"] / rates[name]
        print(
            f"{'model.generate, ' + name:32} {count} thread(s) {rates[name]:8.0f} tokens/s   ratio {ratio:.2f} (goal {goal})"
        )


if __name__ == "__main__":
    typer.run(main)
