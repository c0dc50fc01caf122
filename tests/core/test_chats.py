import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from tasks.core.chats import ChatEncoder, Rendered, with_text_as_text

EMBEDDED = Path(__file__).parents[2] / "data/base"
CORPUS = [
    f"Tom has {i} pens. <b>Day</b> {i % 7}: [x] sold | {i * 3} left\nsystem user assistant s im_start"
    for i in range(300)
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}[INST] {{ m.content.strip() }} [/INST]{% endif %}{% endfor %}"
)
TAGS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CLS = "{% for m in messages %}[CLS] {{ m.role }} : {{ m.content }} [SEP]{% endfor %}"


def wrapped(tokenizer, template, tags=(), **special):
    """A tokenizer of transformers'; `tags` are added, and not special."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    made.add_tokens(list(tags))
    made.chat_template = template
    return made


def byte_level(template=CHATML, special=("<|end|>", "<|im_start|>", "<|im_end|>"), tags=("<think>",)):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, template, tags, eos_token=special[0])


def unigram():
    """SentencePiece's unigram: its control tokens are likeliest of its pieces, and it begins a text with a blank."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrapped(tokenizer, INST, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece_bpe():
    """SentencePiece's BPE as of Llama 2: a blank before each piece of text; role tags are not special."""
    tokenizer = Tokenizer(models.BPE(fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    rstrip = [
        AddedToken(t, special=False, normalized=False, rstrip=True) for t in ("<|system|>", "<|user|>", "<|assistant|>")
    ]
    return wrapped(
        tokenizer,
        TAGS,
        [*rstrip, AddedToken("<|end|>", normalized=False), "<tool_call>"],
        unk_token="<unk>",
        eos_token="</s>",
    )


def word_piece():
    """BERT's, that reads text in lower case, and looks for one control token there."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("[CLS]", normalized=True)])
    return wrapped(tokenizer, CLS, unk_token="[UNK]", eos_token="[SEP]")


def words():
    """A token for each word."""
    vocabulary = {
        word: n
        for n, word in enumerate(["<unk>", "<eos>", "<|user|>", *sorted({w for t in CORPUS for w in t.split()})])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrapped(tokenizer, TAGS.replace("<|", " <|").replace("|>", "|> "), unk_token="<unk>", eos_token="<eos>",
                   additional_special_tokens=["<|user|>"])  # fmt: skip


def in_python():
    """A tokenizer without one in Rust."""
    made = ByT5Tokenizer()
    made.chat_template = "{% for m in messages %}{{ m.content | trim }}</s>{% endfor %}"
    return made


MAKERS = {
    "embedded": lambda: AutoTokenizer.from_pretrained(EMBEDDED),
    "byte level": byte_level,
    "unigram": unigram,
    "sentencepiece": sentencepiece_bpe,
    "word piece": word_piece,
    "words": words,
    "in Python": in_python,
}


@pytest.fixture(scope="module")
def encoders():
    return {name: ChatEncoder(make()) for name, make in MAKERS.items()}


def conversation(rng, *texts):
    roles = ["system", "user", "assistant"] if len(texts) > 2 else ["user", "assistant"]
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


def sentence(rng, controls=()):
    """Words with control tokens among them, in them and over each other."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        control = rng.choice([*controls, ""])
        cut = rng.randint(0, len(control))
        parts.append(
            rng.choice(
                [control, control + control[cut:], control[:cut] + control, rng.choice(CORPUS)[: rng.randint(1, 40)]]
            )
        )
    return rng.choice(["", " ", "\n"]).join(parts) + rng.choice(["", " ", "\n"])


def template_controls(encoder, chat, **how):
    """Ids of the control tokens that the template writes around messages that spell none."""
    neutral = [m | {"content": "x"} for m in chat]
    ids = encoder.tokenizer(encoder.render(neutral, **how).text, add_special_tokens=False)["input_ids"]
    return [i for i in ids if i in set(encoder.controls.values()) - unknown(encoder)]


def unknown(encoder):
    """The token for what is in no vocabulary stands for text, too."""
    return {encoder.tokenizer.unk_token_id}


@pytest.mark.torture(
    "control tokens and role tags in messages, by seven kinds of tokenizers", "the template's alone are tokens"
)
def test_what_a_message_spells_is_text(encoders, tries):
    for attempt in tries(1400):
        rng = random.Random(attempt)
        encoder = list(encoders.values())[attempt // 10 % len(encoders)]
        texts = [sentence(rng, encoder.controls) for _ in range(rng.randint(1, 3))]
        chat, how = conversation(rng, *texts), {"add_generation_prompt": rng.random() < 0.5}
        (ids,) = encoder.ids([encoder.render(chat, **how)])
        controls = set(encoder.controls.values()) - unknown(encoder)
        assert [i for i in ids if i in controls] == template_controls(encoder, chat, **how), chat
        (alone,) = encoder.ids([encoder.text(texts[0])])
        assert not controls & set(alone), texts[0]


@pytest.mark.parametrize("name", MAKERS)
def test_a_chat_that_spells_none_has_the_ids_of_the_tokenizer(encoders, name):
    encoder = encoders[name]
    for seed in range(20):
        rng = random.Random(seed)
        chat = conversation(rng, *(sentence(rng) for _ in range(rng.randint(1, 3))))
        rendered = encoder.render(chat, add_generation_prompt=True)
        theirs = encoder.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert not rendered.mark
        assert encoder.ids([rendered]) == [tuple(theirs)]
        if name != "in Python":  # which has no copy, and may cut words at control tokens otherwise
            assert encoder.ids([Rendered(rendered.text, "\ue001")]) == [tuple(theirs)]


@pytest.mark.parametrize("name", ["embedded", "byte level"])
def test_no_character_is_lost(encoders, name):
    encoder = encoders[name]
    text = f"a {' '.join(encoder.controls)} b{''.join(encoder.controls)}"
    rendered = encoder.render([{"role": "user", "content": text}], add_generation_prompt=True)
    (ids,) = encoder.ids([rendered])
    assert encoder.tokenizer.decode(ids) == rendered.plain
    assert text in rendered.plain
    same, offsets = encoder.offsets(rendered)
    assert same == ids
    assert "".join(rendered.plain[a:b] for a, b in offsets) == rendered.plain


def test_role_tags_that_are_no_special_tokens_are_control_tokens_and_what_a_model_writes_is_none(encoders):
    assert {"<|system|>", "<|user|>", "<|assistant|>", "<|end|>"} <= set(encoders["sentencepiece"].controls)
    assert "<tool_call>" not in encoders["sentencepiece"].controls
    assert "<think>" not in encoders["byte level"].controls
    assert "0" not in encoders["embedded"].controls


def test_what_only_normalizing_makes_a_control_token_is_text(encoders):
    encoder = encoders["word piece"]
    (ids,) = encoder.ids([encoder.text("tom [cls] has")])
    assert encoder.controls["[CLS]"] in encoder.tokenizer("tom [cls] has", add_special_tokens=False)["input_ids"]
    assert encoder.controls["[CLS]"] not in ids


def test_the_mark_stands_in_no_message(encoders):
    chat = [{"role": "user", "content": "\ue000<|end|>\ue001"}]
    rendered = encoders["embedded"].render(chat)
    assert rendered.mark == "\ue002"
    assert "\ue000<|end|>\ue001" in rendered.plain


def test_trainers_get_the_ids_too(encoders):
    tokenizer, encoder = with_text_as_text(MAKERS["embedded"]()), encoders["embedded"]
    chat = [{"role": "user", "content": "2+2<|answer|>4<|end|>"}, {"role": "assistant", "content": "<|end|>"}]
    (ids,) = encoder.ids([encoder.render(chat)])
    assert tokenizer.apply_chat_template(chat)["input_ids"] == list(ids)
    assert tokenizer.apply_chat_template([chat, chat], return_dict=False) == [list(ids)] * 2
    assert tokenizer.apply_chat_template(chat, tokenize=False) == encoder.render(chat).plain
    with pytest.raises(TypeError, match="return_tensors"):
        tokenizer.apply_chat_template(chat, return_tensors="pt")
