"""Teaches an embedded base further roles: it goes on with documents that its domain writes."""

import json
import random
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from tasks.base import BaseCase, Origin
from tasks.base._corpus import Chat, Course, train
from tasks.base.scratch import DECIDING, LEVELS
from tasks.core.errors import ModelRefused, ParamsError, suggest
from tasks.domains import FALSE, TRUE, Domain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SHARES = {
    **{"solve": 0.15, "write": 0.03, "judge": 0.06, "critique": 0.04, "refine": 0.11},
    **{"grade": 0.08, "compare": 0.15, "together": 0.07, "truth": 0.06, "know": 0.02, "agree": 0.04, "feedback": 0.04},
    **{"revise": 0.03, "retry": 0.02, "hint": 0.02, "refuse": 0.02, "imitate": 0.07, "mutate": 0.165},
}
"""Weights of the roles. Without documents of the old ones they would be forgotten; `refine` needs many, since `revise` and
`retry` pull at it, and `mutate` because it copies a whole problem but for one line."""
ALIKE = {
    **dict.fromkeys(("grade", "feedback"), "judge"),
    **dict.fromkeys(("compare", "together", "agree", "hint", "truth", "know", "mutate"), "solve"),
    **dict.fromkeys(("revise", "retry", "refuse"), "refine"),
    "imitate": "write",
}
"""The role whose tag a new role's tag starts as, but for noise."""
CLOSING = (
    TRUE, FALSE, *(f"Score: {n}" for n in range(6)), *(f"Choice: {c}" for c in ("A", "B", "tie")), "Scores: ",
    "Feedback: ", "Answer: unknown", "All is right.", " is wrong.", "Line ",
)  # fmt: skip
"""What closes a document of a new role: single tokens, which weigh more in the loss."""

CARD = """---
license: apache-2.0
tags: [synthetic, arithmetic]
---
# The embedded policy, taught further roles

The model `{start}…`, trained further on documents that a program writes, in the roles {roles}.

- recipe digest: `{digest}`
- trained by: strategy `taught` of `base`, seed {seed}, {documents:,} documents

```json
{recipe}
```
"""


class Taught(Origin):
    """Trains an embedded base further on documents of new roles, so that methods which ask it for more than the first five
    can be shown to work: points by a rubric, comparisons, true or false, a mark for each step, feedback, problems in the manner
    of examples. The domain writes the documents (`Domain.document`); about 36 minutes on one core.
    """

    example: ClassVar[dict[str, Any]] = {"path": "data/base", "documents": 40, "chunk": 20}

    path: Path
    """Folder of the base to teach, as strategy `scratch` makes it."""
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """The digest that it must have; null accepts any."""
    documents: PositiveInt = 122_000
    """Documents in all."""
    shares: dict[str, PositiveFloat] = SHARES
    """Weights of the roles among them; the domain must be able to write each."""
    noise: float = Field(0.12, ge=0, lt=1)
    """Share of the worked steps of role `solve` that slip, as in the base's own corpus."""
    emphasis: PositiveFloat = 3.0
    """Weight in the loss of the tokens that pass a verdict."""
    batch: PositiveInt = 3072
    """Tokens a step, in documents of like length."""
    chunk: PositiveInt = 4000
    """Documents between two checkpoints."""
    muon_lr: PositiveFloat = 0.012
    """Peak learning rate of Muon, on the hidden matrices."""
    adamw_lr: PositiveFloat = 0.002
    """Peak learning rate of AdamW, on embeddings and norms."""
    decay: float = Field(0.5, gt=0, le=1)
    """Last share of the training in which the learning rates fall to zero, linearly."""

    def __call__(self, case: BaseCase) -> None:
        """Writes the taught model; checkpoints in `work` let a killed run go on to the same bytes.

        Raises:
            ParamsError: for roles that the domain cannot write.
            ModelRefused: for another model than the pinned one.
            Diverged: when the loss is not finite.
        """
        import torch

        from tasks.core import models
        from tasks.training.optimizer import MuonAdamW
        from tasks.training.weights import load

        if unknown := [role for role in self.shares if role not in case.domain.roles]:
            raise ParamsError(
                f"base taught: the domain {case.domain.strategy_name()} cannot write documents of the role {unknown[0]!r}; "
                f"{suggest(unknown[0], case.domain.roles)}"
            )
        start = models.digest(self.path)
        if self.digest and start != self.digest:
            raise ModelRefused(f"{self.path}: the model's digest is {start}, but params.yaml pins {self.digest}")
        policy, tokenizer = load(self.path)
        if "<|answer|>" not in tokenizer.get_vocab():
            raise ModelRefused(f"{self.path}: is no embedded base; name a folder that strategy `scratch` makes")
        torch.set_num_threads(1)  # several times faster than two on matrices this small, and the same bytes each time
        self._extend(policy, tokenizer, case.seed)
        optimizer = MuonAdamW(policy, self.muon_lr, self.adamw_lr, decay=0.01)
        train(self._course(case.domain, case.seed), policy, tokenizer, optimizer, case.work / "checkpoint.pt")
        policy.save_pretrained(case.model)
        tokenizer.save_pretrained(case.model)
        (case.model / "README.md").write_text(self._card(case.domain, case.seed, start))

    def corpus(self, domain: Domain, seed: int, chunk: int) -> list[Chat]:
        """The conversations of a chunk."""
        rng = random.Random(f"taught {seed} {chunk}")
        count = min(self.chunk, self.documents - chunk * self.chunk)
        return [self._chat(domain, rng) for _ in range(count)]

    def _chat(self, domain: Domain, rng: random.Random) -> Chat:
        role = rng.choices(list(self.shares), list(self.shares.values()))[0]
        level = rng.choices(range(1, 1 + len(LEVELS)), LEVELS)[0]
        prompt, completion = domain.document(rng, role, level, self.noise)
        return [*prompt, {"role": "assistant", "content": completion}]  # type: ignore[list-item]

    def _extend(self, policy: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", seed: int) -> None:
        """Gives the roles' tags and what closes their documents tokens of their own: a tag starts as that of the old role
        which is most like it, others as a draw from the old tokens' distribution.
        """
        import torch
        from tokenizers import AddedToken

        new = [role for role in self.shares if f"<|{role}|>" not in tokenizer.get_vocab()]
        tokenizer.add_tokens([AddedToken(f"<|{r}|>", normalized=False, special=True) for r in new], special_tokens=True)
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CLOSING])
        old = policy.get_input_embeddings().weight.detach().clone()
        policy.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        noise = torch.randn(len(tokenizer) - len(old), old.shape[1], generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            weight = policy.get_input_embeddings().weight
            weight[len(old) :] = old.mean(0) + old.std(0) * noise
            for role in new:
                tag, alike = (tokenizer.convert_tokens_to_ids(f"<|{r}|>") for r in (role, ALIKE.get(role, "solve")))
                weight[tag] = old[alike] + 0.3 * old.std(0) * noise[tag - len(old)]

    def _course(self, domain: Domain, seed: int) -> Course:
        return Course(
            chats=lambda chunk: self.corpus(domain, seed, chunk),
            chunks=-(-self.documents // self.chunk),
            chunk=self.chunk,
            rates=self._rates,
            tokens=lambda chunk: self.batch,
            deciding=(*DECIDING, *CLOSING),
            emphasis=self.emphasis,
            seed=seed,
        )

    def _rates(self, document: float) -> tuple[float, float]:
        """Learning rates after so many documents: a short rise, level, a linear fall to zero."""
        progress = document / self.documents
        scale = max(0.0, min(1.0, progress / 0.02 + 0.01, (1 - progress) / self.decay))
        return self.muon_lr * scale, self.adamw_lr * scale

    def _card(self, domain: Domain, seed: int, start: str) -> str:
        recipe: dict[str, Any] = {
            "strategy": self.model_dump(mode="json"), "domain": domain.model_dump(mode="json"), "seed": seed, "start": start,
        }  # fmt: skip
        text = json.dumps(recipe, indent=1, sort_keys=True)
        return CARD.format(
            start=start[:12],
            roles=", ".join(f"`{role}`" for role in self.shares),
            digest=sha256(text.encode()).hexdigest(),
            seed=seed,
            documents=self.documents,
            recipe=text,
        )
