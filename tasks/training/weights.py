"""Weights on disk: models to train, with or without an adapter, and what training leaves of them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)
from torch import nn  # noqa: TID253
from torch.distributed.tensor import DTensor  # noqa: TID253

from tasks.core import models
from tasks.core.chats import with_text_as_text
from tasks.core.errors import Diverged, ModelRefused
from tasks.training import ranks
from tasks.training.lora import Lora

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SMALL = 20_000_000
"""Parameters below which one thread is faster than several."""
PLAIN = frozenset({
    "r", "lora_alpha", "lora_dropout", "target_modules", "fan_in_fan_out", "task_type", "base_model_name_or_path", "revision",
    "inference_mode", "peft_version",
})  # fmt: skip
"""What a plain LoRA adapter's config may say otherwise than peft's defaults: of these alone its factors can be added up."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""Precisions by their names in safetensors."""


def load(
    folder: Path, adapter: Lora | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """A policy to train, in a precision, and its tokenizer, by which text in a chat is text, from a round's model folder; an
    adapter is merged into its base, and a new one put on as `peft` does. Sets the number of threads that suits the model's size.

    Raises ModelRefused where the folder cannot be loaded, or where the new adapter is not to be merged and could not be
    put beside the folder's own one.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models.check(folder)
    folder = models.resolve(folder)
    base, words = models.layout(folder)
    # eager: on a CPU the backward of torch's fused attention takes most of a step of a small model
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    policy = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation=attention)
    if base != folder:
        from peft import PeftModel

        policy = PeftModel.from_pretrained(policy, folder).merge_and_unload()
    torch.set_num_threads(1 if policy.num_parameters() < SMALL else torch.get_num_threads())
    policy = peft(policy, adapter, seed)
    if base != folder and adapter is not None and not adapter.merge:
        from peft import get_peft_model_state_dict

        _factors(folder, set(get_peft_model_state_dict(policy)))
    return policy, with_text_as_text(AutoTokenizer.from_pretrained(words))


def peft(
    policy: "PreTrainedModel", adapter: Lora | None, seed: int, layers: list[int] | None = None
) -> "PreTrainedModel":
    """The policy with a low-rank adapter, drawn by `seed`, on all its linear layers, or those of some blocks (`layers`, from
    0); itself when `adapter` is None.
    """
    if adapter is None:
        return policy
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed % 2**32)  # the trainer seeds torch too, but only after the adapter was drawn
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear" if layers is None else _linear_names(policy),
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(policy, config)


def _linear_names(policy: nn.Module) -> list[str]:
    """Last names of the linear layers of the blocks: peft takes no `all-linear` beside chosen blocks."""
    linear = (name for name, module in policy.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in linear if not name.endswith("lm_head")})


def save(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    start: Path,
    model: Path,
    blend: float,
    adapter: Lora | None = None,
) -> None:
    """Writes the model folder: the start's weights moved by the share `blend` of the way to the trained ones, in the
    start's precision; or what moves them, where `adapter` says that it is not merged. Of several ranks the first writes it.

    Raises Diverged when a weight is not finite, as the last step can leave it, which no loss follows.
    """
    if any(isinstance(weight, DTensor) for weight in policy.parameters()):
        policy = _whole(policy, start, adapter)
    if ranks.is_first():
        _save(policy, tokenizer, start, model, blend, adapter)
    ranks.wait()


def _whole(policy: "PreTrainedModel", start: Path, adapter: Lora | None) -> "PreTrainedModel":
    """The policy whose weights ranks share, whole on the first of them; they are brought together one by one."""
    weights = {}
    for name, weight in policy.state_dict().items():
        whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
        if ranks.is_first():
            weights[name] = whole.cpu()
    if not ranks.is_first():
        return policy
    policy, _ = load(start, adapter)
    policy.load_state_dict(weights)
    return policy


def _save(
    policy: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    start: Path,
    model: Path,
    blend: float,
    adapter: Lora | None,
) -> None:
    if adapter is not None and not adapter.merge:
        _check_weights(policy.named_parameters())
        _save_adapter(policy, start, model, blend)
    else:
        if hasattr(policy, "merge_and_unload"):
            policy = policy.merge_and_unload()
        if blend < 1:
            blend_with(policy, load(start)[0].state_dict(), blend)
        policy = policy.to(stored_dtype(start))
        _check_weights(policy.named_parameters())
        policy.save_pretrained(model)
    tokenizer.save_pretrained(model)


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision of the first weight of a model's folder that has one of 16 or 32 bits; of an adapter, its base's."""
    from safetensors import safe_open

    base, _ = models.layout(models.resolve(folder))
    for shard in models.shards(base):
        with safe_open(base / shard, framework="pt") as weights:
            names = (weights.get_slice(name).get_dtype() for name in weights.keys())  # noqa: SIM118  (it is no dict)
            if name := next((n for n in names if n in DTYPES), None):
                return DTYPES[name]
    return torch.float32


@torch.no_grad()
def blend_with(policy: nn.Module, old: dict[str, torch.Tensor], share: float) -> None:
    """Moves the weights to `share` of the way that leads from `old` to them, on their own device."""
    for name, weight in policy.named_parameters():  # each once: the state dict names tied weights twice
        weight.copy_(old[name].to(weight.device, weight.dtype).lerp(weight, share))


def _check_weights(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    if broken := next((name for name, weight in weights if not weight.isfinite().all()), None):
        raise Diverged(
            f"the trained weights are not finite, first in {broken}: lower the learning rate. Nothing was saved."
        )


def _save_adapter(policy: "PreTrainedModel", start: Path, model: Path, blend: float) -> None:
    """Writes the adapter alone. Where the start is one too, both side by side as one of the sum of their ranks, on the
    start's base: the products of the factors add up, and no round hangs on an adapter of another.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    new = policy.peft_config["default"]
    factors = _scaled(get_peft_model_state_dict(policy), blend * new.lora_alpha / new.r)
    base, rank = start, new.r
    if models.is_adapter(start):
        base, old_rank, old = _factors(models.resolve(start), set(factors))
        factors = {n: torch.cat([old[n], factors[n]], 0 if ".lora_A." in n else 1) for n in factors}
        rank += old_rank
    _save_adapter_config(model, base, rank, new.target_modules)
    save_file(factors, model / "adapter_model.safetensors")
    (model / models.BASE).write_text(json.dumps({"digest": models.digest(base)}))


def _save_adapter_config(model: Path, base: Path, rank: int, target_modules: Iterable[str]) -> None:
    from peft import LoraConfig

    rounds = base.absolute().parent.parent
    beside = rounds in model.absolute().parents  # named so that the project can be moved
    LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
        base_model_name_or_path=str(base.absolute().relative_to(rounds) if beside else base.absolute()),
        inference_mode=True,
    ).save_pretrained(model)
    config = json.loads((model / models.ADAPTER).read_text())
    config["target_modules"] = sorted(config["target_modules"])  # peft keeps a set, whose order differs by process
    (model / models.ADAPTER).write_text(json.dumps(config, indent=2, sort_keys=True))


def _factors(folder: Path, expected: set[str]) -> tuple[Path, int, dict[str, torch.Tensor]]:
    """A folder's base as its adapter names it, the adapter's rank and its factors, scaled.

    Raises ModelRefused, with what is odd about it, where it is more than factors of one rank for the same layers.
    """
    from peft import LoraConfig
    from safetensors.torch import load_file

    plain = LoraConfig().to_dict()
    config = plain | json.loads((folder / models.ADAPTER).read_text())
    factors = load_file(folder / "adapter_model.safetensors")
    odd = [f"{k} is {v!r}" for k, v in sorted(config.items()) if k not in PLAIN and v and v != plain.get(k)]
    odd += [f"{name} is missing" for name in sorted(expected - set(factors))[:1]]
    odd += [f"{name} is none of their factors" for name in sorted(set(factors) - expected)[:1]]
    if odd:
        raise ModelRefused(
            f"{folder}: this adapter is not one of plain factors for all linear layers ({'; '.join(odd)}), and cannot be "
            "put beside another one; set train.adapter.merge to true"
        )
    return models.named_base(folder), config["r"], _scaled(factors, config["lora_alpha"] / config["r"])


def _scaled(factors: dict[str, torch.Tensor], by: float) -> dict[str, torch.Tensor]:
    return {n: (f * by if ".lora_B." in n else f).detach().float().cpu().contiguous() for n, f in factors.items()}
