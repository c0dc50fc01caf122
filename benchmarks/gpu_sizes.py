"""Answering and training at the sizes that users have: models of 0.5B and 8B parameters with random weights, in bf16.

    python benchmarks/gpu.py --part answers         --part training

What a model says is no matter here, so its weights are random; its shape, its vocabulary and its files are those of
Qwen2.5-0.5B and Llama-3.1-8B. Goals are for an H200. With `--cpu` the same runs with two tiny models, to try it.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import torch
from engine import held_out_requests
from table import add

from tasks.core.models import digest
from tasks.engines import Request, _served
from tasks.engines.vllm import Vllm
from tasks.train import TrainCase
from tasks.train.sft import SFT
from tasks.training.lora import Lora

HERE = Path(__file__).resolve().parents[1]
WARM = 256
"""Requests before the clock starts."""
COLD = 2
"""Steps of training before the clock starts."""


@dataclass(frozen=True)
class Shape:
    """That of a model of the Llama architecture."""

    name: str
    hidden: int
    layers: int
    ffn: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool


HALF = Shape("0.5B", 896, 24, 4864, 14, 2, 151_936, True)
EIGHT = Shape("8B", 4096, 32, 14_336, 32, 8, 128_256, False)
TINY_HALF = Shape("tiny for 0.5B", 64, 2, 128, 2, 1, 1000, True)
TINY_EIGHT = Shape("tiny for 8B", 128, 2, 256, 2, 1, 1200, False)


def random_model(folder: Path, shape: Shape, device: str, dtype: str) -> int:
    """Writes a model with random weights and the embedded policy's tokenizer, its vocabulary filled up; gives its number of
    parameters.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(HERE / "data/base")
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_heads, max_position_embeddings=2048,
        tie_word_embeddings=shape.tied, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        network = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _fill_up(folder / "tokenizer.json", shape.vocabulary)
    return int(network.num_parameters())


def _fill_up(path: Path, size: int) -> None:
    """Gives the tokenizer an entry for each number below `size`, so that whatever is drawn is a text."""
    content = json.loads(path.read_text())
    vocabulary, added = content["model"]["vocab"], {token["id"] for token in content["added_tokens"]}
    free = set(range(size)) - set(vocabulary.values()) - added
    vocabulary.update({f"w{n}": n for n in sorted(free)})
    path.write_text(json.dumps(content, ensure_ascii=False))


def answers(place: Path, prompts: int, cpu: bool, dtype: str, **params: Any) -> dict[str, float]:
    """Tokens a second of vLLM in this process, without a cache, and the seconds that it took to start."""
    engine = Vllm(dtype=dtype, memory=0.3 if cpu else 0.85, eager=cpu, context=512, **params)
    return _answers(lambda: engine.open(place), prompts)


def answers_of_server(place: Path, prompts: int, cpu: bool, dtype: str, **params: Any) -> dict[str, float]:
    """The same of vLLM's server, which `flywheel serve` keeps up, with this project's way to ask it."""
    engine, cache = (
        Vllm(dtype=dtype, memory=0.3 if cpu else 0.85, eager=cpu, context=512, **params),
        place.parent / "cache",
    )

    @contextmanager
    def opened() -> Iterator[Any]:
        with _served.started(engine, place, digest(place)) as server:
            record = _served.Record("r1", str(place.absolute()), os.getpid(), psutil.Process().create_time())
            _served.kept(server, record, ()).write(cache / "served")
            with engine.open(place, cache / f"requests-{time.monotonic_ns()}") as policy:
                yield policy

    return _answers(opened, prompts)


def _answers(opened: Callable[[], Any], prompts: int) -> dict[str, float]:
    requests = held_out_requests(prompts, 8)
    start = time.perf_counter()
    with opened() as policy:
        loaded = time.perf_counter()
        list(policy.sample([Request(q.messages, q.sampling, q.seed + 10**9) for q in requests[:WARM]]))
        clock = time.perf_counter()
        completions = [c for _, c in policy.sample(requests)]
        seconds = time.perf_counter() - clock
    assert not any(c.error for c in completions), next(c.error for c in completions if c.error)
    drawn, read = sum(c.tokens for c in completions), sum(c.prompt_tokens for c in completions)
    return {"start": loaded - start, "generated": drawn / seconds, "both": (drawn + read) / seconds}


_clock: dict[str, float] = {}
"""When the timed steps of a training begin and end, and their tokens."""


class Timed(SFT):
    """SFT that times its steps but the first two (if there are more), in which kernels are compiled; without checkpoints, of 34 GB each for all
    weights of 8B.
    """

    def settings_of(self, *args: Any) -> dict[str, Any]:
        """Without checkpoints."""
        return super().settings_of(*args) | {"save_strategy": "no"}

    def watch(self, trainer: Any, schedule: Any) -> None:
        """Adds the clock."""
        from transformers import TrainerCallback

        from tasks.training.rows import lengths

        cold = min(COLD, schedule.steps - 1)

        def now() -> float:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter()

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                timed = trainer.train_dataset.select(range(cold * schedule.step, len(trainer.train_dataset)))
                _clock["tokens"] = sum(lengths(timed, "input_ids"))
                _clock["begin"] = now()

            def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
                if state.global_step == cold:
                    _clock["begin"] = now()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                _clock["end"] = now()

        super().watch(trainer, schedule)
        trainer.add_callback(Clock())


def trains(place: Path, rows: pl.DataFrame, adapter: bool, **params: Any) -> float:
    """Trained tokens a second: all tokens of the rows, while steps are made."""
    lora = {"adapter": Lora(rank=16, merge=False)} if adapter else {"blend": 1.0}
    strategy = Timed(epochs=1, batch=64, parameters="bfloat16", muon_lr=None, adamw_lr=1e-5, **lora, **params)
    work, model = place.parent / "work", place.parent / "trained"
    strategy(TrainCase(rows, pl.DataFrame(), place, None, model, work, 0))
    for folder in (work, model):
        shutil.rmtree(folder, ignore_errors=True)
    return _clock["tokens"] / (_clock["end"] - _clock["begin"])


def answering_part(place: Path, prompts: int, cpu: bool, dtype: str, alone: Callable[..., Any]) -> None:
    """Answers of both sizes: what log-probabilities cost, what a second start costs, what a server costs."""
    half, eight = (TINY_HALF, TINY_EIGHT) if cpu else (HALF, EIGHT)
    os.environ["VLLM_CACHE_ROOT"] = str(place / "vllm")  # so that the first start finds nothing compiled
    device = "cpu" if cpu else "cuda"
    params = {} if cpu else {"max_num_seqs": 1024}
    r0, r1 = place / half.name / "r0", place / half.name / "r1"
    alone(random_model, r0, half, device, dtype)
    shutil.copytree(r0, r1)  # what a round makes: the same config, elsewhere
    plain = alone(answers, r0, prompts, cpu, dtype, logprobs=False, **params)
    goal = None if cpu else 40_000.0
    add(
        f"vLLM, {half.name}",
        f"{plain['generated']:,.0f} generated tokens/s",
        *_against(plain["generated"], goal),
        at_least=True,
    )
    asked = alone(answers, r1, prompts, cpu, dtype, logprobs=True, **params)
    add(
        "  with log-probabilities",
        f"{asked['generated']:,.0f} tokens/s",
        "without",
        asked["generated"] / plain["generated"],
        None,
    )
    add(
        "  its start on the next round's weights",
        f"{asked['start']:.0f} s",
        f"first {plain['start']:.0f} s",
        asked["start"] / plain["start"],
        None,
    )
    served = alone(answers_of_server, r0, prompts, cpu, dtype, logprobs=False, **params)
    add(
        "  by the server of a round",
        f"{served['generated']:,.0f} tokens/s",
        "in this process",
        served["generated"] / plain["generated"],
        None,
    )
    shutil.rmtree(r0.parent)
    large = place / eight.name / "r0"
    alone(random_model, large, eight, device, dtype)
    both = alone(answers, large, prompts, cpu, dtype, logprobs=False, **params)
    goal = None if cpu else 30_000.0
    add(
        f"vLLM, {eight.name}",
        f"{both['both']:,.0f} prompt and generated tokens/s",
        *_against(both["both"], goal),
        at_least=True,
    )
    shutil.rmtree(large.parent)


def training_part(place: Path, rows: pl.DataFrame, cpu: bool, dtype: str, alone: Callable[..., Any]) -> None:
    """Training of the large size: an adapter, and all weights in bf16."""
    shape, device = (TINY_EIGHT, "cpu") if cpu else (EIGHT, "cuda")
    model = place / shape.name / "r0"
    alone(random_model, model, shape, device, dtype)
    for adapter, what, goal in ((True, "LoRA", 10_000.0), (False, "all weights, bf16", 6_000.0)):
        speed = alone(trains, model, rows, adapter, micro_batch=64, gradient_checkpointing=not adapter)
        goal_here = None if cpu else goal
        add(f"training, {shape.name}, {what}", f"{speed:,.0f} tokens/s", *_against(speed, goal_here), at_least=True)
    shutil.rmtree(model.parent)


def _against(value: float, goal: float | None) -> tuple[str, float | None, float | None]:
    """A goal, the share of it that is reached, and that this should be 1."""
    return ("", None, None) if goal is None else (f"goal {goal:,.0f}", value / goal, 1.0)
