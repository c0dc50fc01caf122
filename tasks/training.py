"""What stages that train share: the optimizer, TRL's set-up for one small machine, checkpoints, the stop at NaN.

An edit of this file does not make stages stale. It imports torch when it is imported, and TRL (about 10 s) only when a
trainer is made: strategies import it inside their functions.
"""

import json
import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from torch import nn  # noqa: TID253

from tasks import models
from tasks.errors import Diverged, ModelRefused

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

SMALL = 20_000_000
"""Parameters below which one thread is faster than several."""
CHECKPOINTS = 5
"""Checkpoints in a run."""
WHOLE = "whole"
"""A file in a checkpoint that was written to its end."""
FREE = frozenset({
    "r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "task_type", "base_model_name_or_path", "revision",
    "inference_mode", "peft_version",
})  # fmt: skip
"""What a plain LoRA adapter's config may say otherwise than peft's defaults: of these alone its factors can be added up."""
EXPLODED = 5.0
"""A loss this many times the first one (and above 1 nat) is a divergence."""
PLOTTED = frozenset({"loss", "grad_norm", "mean_token_accuracy", "entropy", "rewards/margins", "rewards/accuracies"})
"""What of a trainer's log is a curve: what does not depend on the clock, nor on where a killed run went on."""


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024; `torch.optim.Muon`) on the hidden matrices and AdamW on the rest, as one optimizer:
    schedulers and trainers see the groups of both. On the embedded model it is far ahead of AdamW alone.
    """

    def __init__(self, model: nn.Module, matrices: float, rest: float, decay: float = 0.0) -> None:
        """`matrices` and `rest` are the two learning rates, `decay` the weight decay of the matrices."""
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        hidden = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
        others = [p for n, p in named if not any(p is h for h in hidden)]
        super().__init__([p for _, p in named], {"lr": rest})
        self.parts: list[torch.optim.Optimizer] = []
        if hidden:
            self.parts.append(torch.optim.Muon(hidden, lr=matrices, weight_decay=decay))
        if others:  # none where an adapter is trained
            self.parts.append(torch.optim.AdamW(others, lr=rest, betas=(0.9, 0.98), weight_decay=0.0))
        self._share_groups()

    def _share_groups(self) -> None:
        # the very dicts of the parts, so that a scheduler's edit reaches them
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both parts. A closure is not called: neither part needs a second look at the loss."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of both parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def check_finite(value: float, step: int, first: float = math.inf, name: str = "loss") -> None:
    """Raises Diverged when a value of the log has left the finite numbers, or is far above the `first` one."""
    if not math.isfinite(value) or value > max(1.0, EXPLODED * first):
        raise Diverged(
            f"the {name} is {value} at step {step}: lower the learning rate. The weights saved before it stay."
        )


def save_atomic(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint so that a kill at any instant leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".part")
    with staged.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)


def buckets(lengths: Iterable[int], tokens: int) -> list[list[int]]:
    """Indices of documents in batches of like length that hold at most `tokens` tokens, padding included."""
    lengths = list(lengths)
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[i] > tokens:
            batches.append([])
        batches[-1].append(i)
    return [batch for batch in batches if batch]


def load(folder: Path, adapter: Any = None, seed: int = 0) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A policy to train, in float32, and its tokenizer, from a round's model folder; an adapter is merged into its base,
    and a new one put on as `peft` does. Sets the number of threads that suits the model's size.

    Raises ModelRefused where the folder cannot be loaded, or where the new adapter is not to be merged and could not be
    put beside the folder's own one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models.check(folder)
    folder = models.resolve(folder)
    base, words = models.layout(folder)
    # eager: on a CPU the backward of torch's fused attention takes most of a step of a small model
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation=attention)
    if base != folder:
        from peft import PeftModel

        policy = PeftModel.from_pretrained(policy, folder).merge_and_unload()
    torch.set_num_threads(1 if policy.num_parameters() < SMALL else torch.get_num_threads())
    policy = peft(policy, adapter, seed)
    if base != folder and adapter is not None and not adapter.merge:
        from peft import get_peft_model_state_dict

        _factors(folder, set(get_peft_model_state_dict(policy)))
    return policy, AutoTokenizer.from_pretrained(words)


def peft(policy: "PreTrainedModel", adapter: Any, seed: int) -> "PreTrainedModel":
    """The policy with a low-rank adapter, drawn by `seed`, on all its linear layers; itself when `adapter` is None."""
    if adapter is None:
        return policy
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed % 2**32)  # the trainer seeds torch too, but only after the adapter was drawn
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(policy, config)


def arguments(work: Path, steps: int, batch: int, seed: int, warmup: float) -> dict[str, Any]:
    """What every TRL config here says: one pass in the given order, a hundred points of curve, a few checkpoints."""
    every = max(1, steps // 100)
    return {
        "output_dir": str(work),
        "per_device_train_batch_size": batch,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",  # the rows lie in their order: a resumed run skips what it has seen
        "lr_scheduler_type": "linear",
        "warmup_steps": round(warmup * steps),
        "max_grad_norm": 1.0,
        "logging_steps": every,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": every * max(1, round(steps / every / CHECKPOINTS)),
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": True,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "seed": seed % 2**32,
    }


def in_order(lengths: Sequence[int], batch: int, epochs: int, seed: int) -> list[int]:
    """Indices of the rows for `epochs` passes, batches of like length in an order drawn by `seed`."""
    rows = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    full = len(rows) - len(rows) % batch
    batches = [rows[i : i + batch] for i in range(0, full, batch)]
    order: list[int] = []
    for epoch in range(epochs):
        random.Random(f"{seed} {epoch}").shuffle(batches)
        order += [i for b in batches for i in b]
    return order + rows[full:] * epochs


def fit(trainer: "Trainer", phase: str) -> list[dict[str, Any]]:
    """Runs a trainer, from its last whole checkpoint if there is one, and gives its curve in rows of `train.CURVE`.

    Raises Diverged at the first value of the curve that is not finite, or loss that exploded; what was saved before it
    stays.
    """
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_watch())
    trainer.train(resume_from_checkpoint=_last_whole(Path(trainer.args.output_dir)))
    return [
        {"step": entry["step"], "phase": phase, "name": name, "value": round(float(value), 6)}
        for entry in trainer.state.log_history
        for name, value in sorted(entry.items())  # as a checkpoint has them: a resumed run gives the same rows
        if name in PLOTTED
    ]


def save(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    parent: Path,
    model: Path,
    blend: float,
    adapter: Any = None,
) -> None:
    """Writes the model folder: the parent's weights moved by the share `blend` of the way to the trained ones; or what
    moves them, where `adapter` says that it is not merged.

    Raises Diverged when a weight is not finite, as the last step can leave it, which no loss follows.
    """
    if adapter is not None and not adapter.merge:
        _finite(policy.named_parameters())
        _save_adapter(policy, parent, model, blend)
    else:
        if hasattr(policy, "merge_and_unload"):
            policy = policy.merge_and_unload()
        if blend < 1:
            _blend(policy, load(parent)[0].state_dict(), blend)
        _finite(policy.named_parameters())
        policy.save_pretrained(model)
    tokenizer.save_pretrained(model)


def _finite(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    if broken := next((name for name, weight in weights if not weight.isfinite().all()), None):
        raise Diverged(
            f"the trained weights are not finite, first in {broken}: lower the learning rate. Nothing was saved."
        )


def _save_adapter(policy: "PreTrainedModel", parent: Path, model: Path, blend: float) -> None:
    """Writes the adapter alone. Where the parent is one too, both side by side as one of the sum of their ranks, on the
    parent's base: the products of the factors add up, and no round hangs on an adapter of another.
    """
    from peft import LoraConfig, get_peft_model_state_dict
    from safetensors.torch import save_file

    ours = policy.peft_config["default"]
    factors = _scaled(get_peft_model_state_dict(policy), blend * ours.lora_alpha / ours.r)
    base, rank = parent, ours.r
    if models.is_adapter(parent):
        base, theirs, old = _factors(models.resolve(parent), set(factors))
        factors = {n: torch.cat([old[n], factors[n]], 0 if ".lora_A." in n else 1) for n in factors}
        rank += theirs
    rounds = base.absolute().parent.parent
    beside = rounds in model.absolute().parents  # named so that the project can be moved
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=ours.target_modules,
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.absolute().relative_to(rounds) if beside else base.absolute()),
        inference_mode=True,
    ).save_pretrained(model)
    config = json.loads((model / models.ADAPTER).read_text())
    config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, whose order differs by process
    (model / models.ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True))
    save_file(factors, model / "adapter_model.safetensors")
    (model / models.BASE).write_text(json.dumps({"digest": models.digest(base)}))


def _factors(folder: Path, wanted: set[str]) -> tuple[Path, int, dict[str, torch.Tensor]]:
    """A parent's base as its adapter names it, the adapter's rank and its factors, scaled.

    Raises ModelRefused, with what is odd about it, where it is more than factors of one rank for the same layers.
    """
    from peft import LoraConfig
    from safetensors.torch import load_file

    plain = LoraConfig().to_dict()
    told = plain | json.loads((folder / models.ADAPTER).read_text())
    odd = [f"{k} is {v!r}" for k, v in sorted(told.items()) if k not in FREE and v and v != plain.get(k)]
    found = load_file(folder / "adapter_model.safetensors")
    odd += [f"{name} is missing" for name in sorted(wanted - set(found))[:1]]
    odd += [f"{name} is none of their factors" for name in sorted(set(found) - wanted)[:1]]
    if odd:
        raise ModelRefused(
            f"{folder}: this adapter is not one of plain factors for all linear layers ({'; '.join(odd)}), and cannot be "
            "put beside another one; set train.adapter.merge to true"
        )
    return models.named_base(folder), told["r"], _scaled(found, told["lora_alpha"] / told["r"])


def _scaled(factors: dict[str, torch.Tensor], by: float) -> dict[str, torch.Tensor]:
    return {n: (f * by if ".lora_B." in n else f).detach().float().cpu().contiguous() for n, f in factors.items()}


@torch.no_grad()
def _blend(policy: nn.Module, old: dict[str, torch.Tensor], share: float) -> None:
    for name, weight in policy.named_parameters():  # each once: the state dict names tied weights twice
        weight.copy_(old[name].lerp(weight, share))


def _last_whole(folder: Path) -> str | None:
    whole = sorted(folder.glob(f"checkpoint-*/{WHOLE}"), key=lambda p: int(p.parent.name.rpartition("-")[2]))
    return str(whole[-1].parent) if whole else None


def _watch() -> "TrainerCallback":
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        """Stops where the curve leaves the finite numbers; marks checkpoints that were written to their end."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            for name in sorted(PLOTTED & logs.keys()):
                first = losses[0] if name == "loss" else math.inf
                check_finite(logs[name], state.global_step, first, name)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE).touch()

    return Watch()
