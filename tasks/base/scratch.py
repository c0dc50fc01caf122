"""Trains the embedded policy from nothing: a small Llama that plays every role of the arithmetic domain.

Its corpus is noisy on purpose, as the web is: in the last phases a share of the worked steps slips and is carried on. So
the model's mode is right and its mass is spread around it, the state in which self-improvement works; a base that was
trained on a clean corpus alone has nothing to sharpen.
"""

import json
import random
from collections.abc import Iterator
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from tasks.base import BaseCase, Origin
from tasks.base._corpus import Course, train
from tasks.core.errors import ParamsError
from tasks.domains.arithmetic import Arithmetic, Role

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROLES: tuple[Role, ...] = ("write", "solve", "judge", "critique", "refine")

DECIDING = (": right", ": too high", ": too low", "Verdict: correct", "Verdict: wrong", "How many?")
"""Tokens that pass a verdict or end a problem."""

CHECKING = (0.06, 0.24, 0.2, 0.25, 0.25)
"""Shares of the roles in the last phase."""

LEVELS = (1, 2, 3, 4, 5, 5, 5, 5)
"""Weights of the levels from 1."""

TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{ '<|' + message['content'] + '|>' }}"
    "{%- elif message['role'] == 'user' -%}"
    "{{ ('<|solve|>' if loop.first else '') + message['content'] + '<|answer|>' }}"
    "{%- else -%}{{ message['content'] + '<|end|>' }}{%- endif -%}"
    "{%- endfor -%}"
)
"""The system message names the role and becomes its tag; without one the model solves."""

CARD = """---
license: apache-2.0
tags: [synthetic, arithmetic]
---
# The embedded policy

A Llama-architecture model of {parameters:,} parameters, trained from scratch on story problems that a program writes.
It plays five roles, named by the system message: {roles}. In {noise:.0%} of the worked steps of its last phases' corpus
the arithmetic slips by 1 to 3 and the slip is carried on, so that sampling from it is often wrong where its mode is
right. It knows nothing else and is good for nothing else.

- recipe digest: `{digest}`
- trained by: strategy `scratch` of `base`, seed {seed}, {documents:,} documents

```json
{recipe}
```
"""


class Scratch(Origin):
    """Trains the embedded policy from scratch on the arithmetic domain's corpus (about half an hour on one core)."""

    example: ClassVar[dict[str, Any]] = {
        **{"hidden": 32, "layers": 1, "ffn": 32, "chunk": 30},
        **dict.fromkeys(("easy", "clean", "noisy", "comparing", "checking"), 15),
    }

    hidden: PositiveInt = Field(128, multiple_of=32)
    """Width; heads are 32 wide."""
    layers: PositiveInt = 4
    """Transformer blocks."""
    ffn: PositiveInt = 384
    """Width of the feed-forward layers."""
    vocabulary: PositiveInt = 480
    """Tokens of the byte-level BPE, before numbers, `Day k: ` and `Answer: ` get tokens of their own."""
    easy: NonNegativeInt = 48_000
    """Documents of the first phase: clean, one to three steps."""
    clean: NonNegativeInt = 84_000
    """Documents of the second phase: clean, all levels."""
    noisy: NonNegativeInt = 68_000
    """Documents of the third phase: all levels, with slips."""
    comparing: NonNegativeInt = 28_000
    """Documents of the fourth phase: judges of one or two steps. Whether two numbers are equal is learnt late and at
    once; in long documents it is not learnt at all.
    """
    checking: NonNegativeInt = 28_000
    """Documents of the last phase: as the third, but mostly of the roles that check."""
    noise: float = Field(0.12, ge=0, lt=1)
    """Share of the worked steps of the third and the last phase that slip."""
    solve: float = Field(0.44, gt=0, lt=0.86)
    """Share of the documents that work a problem; `write` gets 0.14, the other roles share the rest."""
    emphasis: PositiveFloat = 3.0
    """Weight in the loss of the tokens of `DECIDING`: few, and all that judging is about."""
    batch: PositiveInt = 4096
    """Tokens a step, in documents of like length."""
    chunk: PositiveInt = 4000
    """Documents between two checkpoints; batches are made within a chunk."""
    muon_lr: PositiveFloat = 0.02
    """Peak learning rate of Muon, on the hidden matrices."""
    adamw_lr: PositiveFloat = 0.003
    """Peak learning rate of AdamW, on embeddings and norms."""
    decay: float = Field(0.4, gt=0, le=1)
    """Last share of the training in which the learning rates fall to zero, linearly."""

    def __call__(self, case: BaseCase) -> None:
        """Writes the trained model; checkpoints in `work` let a killed run go on to the same bytes.

        Raises ParamsError for another domain than arithmetic, Diverged when the loss is not finite.
        """
        import torch

        from tasks.training.optimizer import MuonAdamW

        domain, seed = case.domain, case.seed
        if not isinstance(domain, Arithmetic):
            raise ParamsError("base scratch: only the domain 'arithmetic' has a corpus to train on; name it as domain")
        torch.set_num_threads(1)  # several times faster than two on matrices this small, and the same bytes each time
        tokenizer = self.tokenizer(domain, seed)
        policy = self._llama(tokenizer, seed)
        optimizer = MuonAdamW(policy, self.muon_lr, self.adamw_lr, decay=0.01)
        train(self._course(domain, seed), policy, tokenizer, optimizer, case.work / "checkpoint.pt")
        policy.save_pretrained(case.model)
        tokenizer.save_pretrained(case.model)
        (case.model / "README.md").write_text(self._card(policy, domain, seed))

    @property
    def documents(self) -> int:
        """Documents in all phases."""
        return self._main + self.comparing + self.checking

    @property
    def _main(self) -> int:
        return self.easy + self.clean + self.noisy

    def corpus(self, domain: Arithmetic, seed: int, chunk: int) -> Iterator[list[dict[str, str]]]:
        """The conversations of a chunk: a function of the seed and the chunk's number, so that a resumed run sees what
        an undisturbed one does.
        """
        rng = random.Random(f"{seed} {chunk}")
        for i in range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.documents)):
            role, level = self._kind(rng, i)
            noise = self.noise if i >= self.easy + self.clean else 0.0
            prompt, completion = domain.document(rng, role, level, noise)
            yield [*prompt, {"role": "assistant", "content": completion}]

    def _kind(self, rng: random.Random, document: int) -> tuple[Role, int]:
        """Role and level of a document, by the phase that its number falls in."""
        if self._main <= document < self._main + self.comparing:
            return "judge", rng.randint(1, 2)
        rest = (0.86 - self.solve) / 3
        shares = (0.14, self.solve, rest, rest, rest) if document < self._main else CHECKING
        role = rng.choices(ROLES, shares)[0]
        if document < self.easy:
            return role, rng.randint(1, 3)
        return role, rng.choices(range(1, 1 + len(LEVELS)), LEVELS)[0]

    def tokenizer(self, domain: Arithmetic, seed: int) -> "PreTrainedTokenizerFast":
        """Byte-level BPE in which numbers to 99, `Day k: ` and `Answer: ` are single tokens."""
        from transformers import PreTrainedTokenizerFast

        texts = ["\n".join(turn["content"] for turn in chat) for chat in self.corpus(domain, seed, 0)]
        return PreTrainedTokenizerFast(
            tokenizer_object=_bpe(texts, self.vocabulary),
            eos_token="<|end|>",
            pad_token="<|pad|>",
            model_max_length=512,
            clean_up_tokenization_spaces=False,
            chat_template=TEMPLATE,
        )

    def _llama(self, tokenizer: "PreTrainedTokenizerFast", seed: int) -> "LlamaForCausalLM":
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_hidden_layers=self.layers,
            num_attention_heads=self.hidden // 32,
            num_key_value_heads=self.hidden // 32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        # eager: the backward of torch's fused attention takes most of a step at this size
        return LlamaForCausalLM._from_config(config, attn_implementation="eager")

    def _course(self, domain: Arithmetic, seed: int) -> Course:
        # after the first three phases half the batch: what is learnt late is learnt by many steps
        return Course(
            chats=lambda chunk: list(self.corpus(domain, seed, chunk)),
            chunks=-(-self.documents // self.chunk),
            chunk=self.chunk,
            rates=self._rates,
            tokens=lambda chunk: self.batch // 2 if chunk * self.chunk >= self._main else self.batch,
            deciding=DECIDING,
            emphasis=self.emphasis,
            seed=seed,
        )

    def _rates(self, document: float) -> tuple[float, float]:
        """Learning rates after so many documents: a short rise, level, a linear fall to zero in the first three phases;
        then half the peak, and in the last phase a fall from there.
        """
        progress = document / self._main if self._main else 1.0
        if progress < 1:
            scale = max(0.0, min(1.0, progress / 0.01 + 0.01, (1 - progress) / self.decay))
        else:
            scale = 0.5 * min(1.0, (self.documents - document) / max(1, self.checking))
        return self.muon_lr * scale, self.adamw_lr * scale

    def _card(self, policy: "LlamaForCausalLM", domain: Arithmetic, seed: int) -> str:
        recipe: dict[str, Any] = {"strategy": self.model_dump(), "domain": domain.model_dump(), "seed": seed}
        text = json.dumps(recipe, indent=1, sort_keys=True)
        return CARD.format(
            parameters=policy.num_parameters(),
            roles=", ".join(f"`{role}`" for role in ROLES),
            noise=self.noise,
            digest=sha256(text.encode()).hexdigest(),
            seed=seed,
            documents=self.documents,
            recipe=text,
        )


def _bpe(texts: list[str], vocabulary: int) -> Any:
    import re

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split(Regex("\n"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|pad|>", "<|end|>", "<|answer|>", *(f"<|{role}|>" for role in ROLES)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    whole = [f"Day {k}: " for k in range(1, 10)] + ["Answer: "] + [str(n) for n in range(100)] + [*DECIDING]
    pattern = re.compile("|".join(sorted(map(re.escape, whole), key=len, reverse=True)))
    tokenizer.train_from_iterator((pattern.sub("\n", text) for text in texts), trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    return tokenizer
