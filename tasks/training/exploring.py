"""SELM's loss: DPO, and less probability for what the reference would say anyway."""

from typing import Any, ClassVar

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.training.masking import IGNORED
from tasks.training.preferring import PairTrainer, Piece
from tasks.training.rows import with_columns
from tasks.training.scoring import scoring, token_logprobs


def selm_losses(losses: torch.Tensor, ratios: torch.Tensor, alpha: float, beta: float) -> torch.Tensor:
    """The loss of each pair: DPO's + αβ log π/π_ref of the reference's own answer."""
    return losses + alpha * beta * ratios


class ExploringTrainer(PairTrainer):
    """From `explore` on pairs have `answer`, the tokens of the prompt and of the reference's own answer to it, the sizes of
    both (`prompt_size`, `answer_size`), and the log-probability `answer_logprob` that the reference gives its answer.
    """

    carried: ClassVar[tuple[str, ...]] = (
        *PairTrainer.carried, "answer", "prompt_size", "answer_size", "answer_logprob",
    )  # fmt: skip

    def __init__(self, *args: Any, alpha: float, **kwargs: Any) -> None:
        """`alpha` is the weight of the exploration term."""
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def explore(self, max_tokens: int) -> None:
        """The reference answers each prompt greedily, in at most so many tokens, and scores its answers."""
        model = self.ref_model or self.model

        def answered(pairs: dict[str, list[Any]]) -> dict[str, list[Any]]:
            prompts = pairs["prompt_ids"]
            answers = greedy_answers(self, model, prompts, max_tokens)
            return {
                "answer": [p + a for p, a in zip(prompts, answers, strict=True)],
                "prompt_size": [len(p) for p in prompts],
                "answer_size": [len(a) for a in answers],
                "answer_logprob": [sum(row) for row in token_logprobs(self, model, prompts, answers)],
            }

        self.train_dataset = with_columns(self.train_dataset, answered, self.args.per_device_train_batch_size)

    def pair_losses(self, piece: Piece) -> torch.Tensor:
        """The loss of each pair, without weight and SFT term."""
        logprobs = _logprobs(piece)
        return selm_losses(super().pair_losses(piece), logprobs - piece.rows["answer_logprob"], self.alpha, self.beta)


def greedy_answers(trainer: PairTrainer, model: Any, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """What a model says to each prompt, as tokens; as many at once as the trainer has pairs."""
    found: list[list[int]] = []
    with scoring(trainer, model):
        for some in _pieces(prompts, trainer.args.per_device_train_batch_size):
            found += _answers(model, some, max_tokens, trainer.accelerator.device)
    return found


def _pieces(rows: list[list[int]], size: int) -> list[list[list[int]]]:
    return [rows[n : n + size] for n in range(0, len(rows), size)]


def _answers(model: Any, prompts: list[list[int]], max_tokens: int, device: torch.device) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    said = model.generate(
        input_ids=ids, attention_mask=seen, do_sample=False, max_new_tokens=max_tokens, use_cache=True
    )
    ends = model.generation_config.eos_token_id
    return [_until(row, set(ends if isinstance(ends, list) else [ends])) for row in said[:, width:].tolist()]


def _until(tokens: list[int], ends: set[int]) -> list[int]:
    """Tokens up to the first that ends the answer, and with it."""
    return tokens[: next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))]


def _logprobs(piece: Piece) -> torch.Tensor:
    """log π of each reference's answer; with a gradient."""
    ids, rows = piece.rows["answer"], piece.rows
    place, start = torch.arange(ids.shape[1], device=ids.device), rows["prompt_size"][:, None]
    stop = start + rows["answer_size"][:, None]
    labels = ids.masked_fill((place < start) | (place >= stop), IGNORED)
    seen = (place < stop).long()
    return piece.model(input_ids=ids, attention_mask=seen, labels=labels, fused_lm_head=True).log_probs.sum(1)
