"""T-REG's loss: DPO, and a pull of each token towards the reward that the reference gives it."""

from typing import Any, ClassVar

import torch  # noqa: TID253  (the file is about training; whoever trains imports it late)

from tasks.training.preferring import PairTrainer, Piece
from tasks.training.rows import with_columns
from tasks.training.scoring import token_logprobs


def token_rewards(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """r̂ of each token, in (−½, ½): σ(log π(y_t | better prompt) / π(y_t | worse prompt)) − ½, of log-probabilities."""
    return torch.sigmoid(better - worse) - 0.5


def t_reg_losses(
    piece_logprobs: torch.Tensor, rewards: torch.Tensor, margins: torch.Tensor, beta: float
) -> torch.Tensor:
    """The regularization of each pair, w · Σ_{y_w, y_l} −Σ_t β r̂_t log π(y_t), w = σ(r(y_l) − r(y_w)) without a gradient.

    `piece_logprobs` and `rewards` are 2 · pairs × tokens, the chosen ones first; `margins` is β Δ = r(y_w) − r(y_l).
    """
    chosen, rejected = (-beta * rewards * piece_logprobs).sum(1).chunk(2)
    return torch.sigmoid(-margins).detach() * (chosen + rejected)


class CreditTrainer(PairTrainer):
    """From `credit` on pairs have r̂ of each token of both completions, 0 for those of the prompt."""

    carried: ClassVar[tuple[str, ...]] = (*PairTrainer.carried, "chosen_rewards", "rejected_rewards")

    def __init__(self, *args: Any, alpha: float, **kwargs: Any) -> None:
        """`alpha` is the weight of the regularization."""
        super().__init__(*args, **kwargs)
        self.alpha = alpha

    def credit(self, better: str, worse: str) -> None:
        """The reference scores both completions after each prompt that begins with either instruction."""
        model = self.ref_model or self.model

        def rewards(pairs: dict[str, list[Any]]) -> dict[str, list[Any]]:
            contexts = [[self._context(prompt, text) for prompt in pairs["prompt"]] for text in (better, worse)]
            columns = {}
            for side in ("chosen", "rejected"):
                good, bad = (token_logprobs(self, model, ids, pairs[f"{side}_ids"]) for ids in contexts)
                own = [token_rewards(*map(torch.tensor, row)).tolist() for row in zip(good, bad, strict=True)]
                columns[f"{side}_rewards"] = [
                    [0.0] * (len(p) - 1) + r for p, r in zip(pairs["prompt_ids"], own, strict=True)
                ]
            return columns

        self.train_dataset = with_columns(self.train_dataset, rewards, self.args.per_device_train_batch_size)

    def _context(self, prompt: list[dict[str, str]], text: str) -> list[int]:
        """Tokens of a prompt that begins with an instruction."""
        return self.processing_class.apply_chat_template(instructed(prompt, text), add_generation_prompt=True)[
            "input_ids"
        ]

    def pair_losses(self, piece: Piece) -> torch.Tensor:
        """The loss of each pair, without weight and SFT term."""
        rewards = [_wide(piece.rows[f"{side}_rewards"], piece.logprobs.shape[1]) for side in ("chosen", "rejected")]
        margins = self.beta * (piece.chosen_ratios - piece.rejected_ratios)
        return super().pair_losses(piece) + self.alpha * t_reg_losses(
            piece.logprobs, torch.cat(rewards), margins, self.beta
        )


def instructed(prompt: list[dict[str, str]], text: str) -> list[dict[str, str]]:
    """A chat whose first turn begins with an instruction."""
    first, *rest = prompt
    return [first | {"content": f"{text}\n{first['content']}"}, *rest]


def _wide(rows: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(rows, (0, width - rows.shape[1]))
