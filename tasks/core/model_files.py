"""What is refused of a model folder that comes from elsewhere, before any of it is loaded, and without loading it.

A folder may hold a link to a file of its reader, a pipe that keeps whoever opens it waiting, a config that asks for more memory
than there is, or a chat template that never ends. Each is named here within two seconds.
"""

import json
import math
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

GIB = 2**30
MOST_FILES = 10_000
"""Entries of a folder; the largest models have some hundred."""
LARGEST_TEXT = 2**29
"""Bytes of a file that is no weights. Tokenizers have up to 35 MB."""
LARGEST_JSON = 2**26
"""Bytes of a config or index."""
LARGEST_HEADER = 2**25
"""Bytes of a safetensors header: some hundred for each tensor."""
TEMPLATES = "additional_chat_templates"
SLACK = 8
"""By how much a config may exceed its weights: quantized ones hold up to eight numbers in one."""
SPARE = 16
"""How many times this machine's memory a model may take: it may be for several GPUs, or for another machine."""
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "hidden_dim")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
SIZES = frozenset({
    *WIDTHS, *DEPTHS, "vocab_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner",
    "ffn_dim", "d_ff", "head_dim", "num_attention_heads", "num_key_value_heads", "n_head", "num_heads", "n_positions", "n_ctx",
    "r", "num_experts", "num_local_experts", "n_routed_experts", "type_vocab_size", "state_size", "q_lora_rank", "kv_lora_rank",
})  # fmt: skip
"""Keys of configs that give a dimension of weights, or how many there are."""
LONGEST = 2**27
"""Positions of the longest context. The longest of published models has 10,485,760."""
POSITIONS = ("max_position_embeddings", "max_sequence_length", "seq_length")
DEEPEST = 4
"""Configs in configs that are read: those of a model's parts."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"})
DTYPE = re.compile(r"(torch\.)?(auto|b?float16|float32|float64|half|float8_\w+)")
HUB = re.compile(r"models--[^/]+/snapshots/[^/]+$")
STORED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
"""A file in a cache of DVC's."""
SECONDS = 0.5
"""Of computing that a chat template may take for the chats of `_RENDER`."""
MEMORY = GIB
"""Bytes that it may take."""
LONGEST_CHAT = 2**20
"""Bytes that it may write."""
LONGEST_TEMPLATE = 2**20
"""Characters of a chat template; the longest of published models have some 20,000."""
MOST_TEMPLATES = 4
"""Chat templates of a folder: published models have up to three. Each may take `SECONDS`."""


# Files


def file_problems(folder: Path) -> Iterator[str]:
    """Entries of a folder that must not be opened."""
    found = sorted(islice(folder.iterdir(), MOST_FILES + 1))
    if len(found) > MOST_FILES:
        yield f"it holds more than {MOST_FILES} files; name the folder of the model alone"
        return
    if (folder / TEMPLATES).is_dir() and not (folder / TEMPLATES).is_symlink():
        found += sorted(islice((folder / TEMPLATES).iterdir(), MOST_FILES))
    for path in found:
        if problem := _file_problem(path, folder):
            yield f"{path.relative_to(folder)} {problem}"


def _file_problem(path: Path, folder: Path) -> str | None:
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return "is a link that leads nowhere, or in a circle; copy the file itself"
    if path.is_symlink() and not _may_lead_to(target, folder):
        return f"is a link out of the folder, to {target}; copy the file itself"
    if stat.S_ISDIR(status.st_mode):
        return "is a folder; remove it" if path.suffix in (".json", ".safetensors", ".jinja") else None
    if not stat.S_ISREG(status.st_mode):
        return "is no file but a pipe, socket or device; remove it"
    if path.suffix != ".safetensors" and status.st_size > LARGEST_TEXT:
        return f"has {status.st_size / GIB:.1f} GiB, and is no safetensors; remove it"
    return None


def _may_lead_to(target: Path, folder: Path) -> bool:
    """Whether a link may lead there: within the folder, to the blobs of the hub's cache, or to a cache of DVC's."""
    own = folder.resolve()
    roots = [own, own.parents[1] / "blobs"] if HUB.search(own.as_posix()) else [own]
    return any(root in target.parents for root in roots) or bool(STORED.search(target.as_posix()))


# Weights and config


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensors of a safetensors file by name: dtype, shape and place, without reading them.

    Raises:
        ValueError: when the file is none, is cut short, or has a header that is too long; says what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise ValueError(f"a header of {length} bytes, where at most {LARGEST_HEADER} are read")
        content = file.read(length)
    try:
        safe_open(path, framework="numpy").keys()  # checks that the places are those of the shapes, one after the other
        tensors = json.loads(content)
    except (SafetensorError, RecursionError) as error:
        raise ValueError(str(error)) from error
    tensors.pop("__metadata__", None)
    return tensors  # type: ignore[no-any-return]


def size_problems(config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]], file: str) -> Iterator[str]:
    """Where the content of a config file, or the weights themselves, ask for more memory than there is."""
    sizes = [int(end) - int(start) for start, end in (t["data_offsets"] for t in tensors.values())]
    if (need := sum(sizes)) > SPARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        yield f"the weights take {need / GIB:.0f} GiB, more than {SPARE} times this machine's memory"
    if not any(t["dtype"] in FLOATS for t in tensors.values()) and "quantization_config" not in config:
        kinds = ", ".join(sorted({str(t["dtype"]) for t in tensors.values()})) or "no tensor"
        yield f"the weights are of no floating-point type but {kinds}; save them as float32, bfloat16 or float16"
    for key, problem in _config_problems(config, tensors, ""):
        yield f"{file}: {key} {problem}; copy it from the original model"


def _config_problems(
    config: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Any]], at: str
) -> Iterator[tuple[str, str]]:
    """Keys of a config whose values no weights of these can have, each with what is wrong."""
    shapes = [t["shape"] for t in tensors.values()]
    most = SLACK * max([len(shapes), *(d for shape in shapes for d in shape)])
    for key, value in config.items():
        if isinstance(value, dict) and at.count(".") < DEEPEST:
            yield from _config_problems(value, tensors, f"{at}{key}.")
        elif key in ("dtype", "torch_dtype") and value is not None and not DTYPE.fullmatch(str(value)):
            yield f"{at}{key}", f"is {_short(value)}, which is no floating-point type"
        elif key in SIZES or key in POSITIONS:
            limit = LONGEST if key in POSITIONS else most
            numbers = value if isinstance(value, list) else [value]
            if odd := [n for n in numbers if n is not None and (type(n) is not int or not 0 <= n <= limit)]:
                yield f"{at}{key}", f"is {_short(odd[0])}, where these weights allow whole numbers up to {limit:,}"
    asked, stored = _parameters(config), sum(map(math.prod, shapes))
    if asked > SLACK * stored:
        yield f"{at}sizes", f"come to at least {asked:,} weights, and the files hold {stored:,}"


def _parameters(config: Mapping[str, Any]) -> int:
    """How many weights a transformer of these sizes has at least: embeddings, and a square matrix in each layer."""
    width, depth = (max([_whole(config.get(k)) for k in keys]) for keys in (WIDTHS, DEPTHS))
    return _whole(config.get("vocab_size")) * width + depth * width**2


def _whole(value: Any) -> int:
    return value if type(value) is int and value > 0 else 0


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


# Chat templates

_RENDER = """
import json, resource, signal, sys
from datetime import datetime
from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
signal.setitimer(signal.ITIMER_PROF, SECONDS)  # ends the process, wherever it is

class Generation(Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

def refuse(message):
    raise ValueError(message)

environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
environment.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False)
environment.globals |= {"raise_exception": refuse, "strftime_now": lambda format: datetime.now().strftime(format)}
user, answer = {"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."}
chats = [user], [user, answer, user], [{"role": "system", "content": "solve"}, user], [user, answer]
tokens = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "")
reason, longest = "", -1
try:
    template = environment.from_string(json.load(sys.stdin))
    for chat in chats:
        try:
            text = template.render(messages=chat, add_generation_prompt=chat[-1] is user, tools=None, documents=None, **tokens)
            longest = max(longest, len(text.encode()))  # half a character is none
        except MemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
except MemoryError:
    reason, longest = "memory", -2
except (TemplateSyntaxError, RecursionError) as error:
    reason = f"{type(error).__name__}: {error}"
print(json.dumps([longest, reason[:200]]))
"""


def template_problems(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """The first chat template of a folder that does not end, or that no chat can be put in. `config` is that of its tokenizer."""
    templates = list(islice(_templates(folder, config), MOST_TEMPLATES + 1))
    if len(templates) > MOST_TEMPLATES:
        yield f"it has more than {MOST_TEMPLATES} chat templates; remove those that are not needed"
        return
    found = ((name, _template_problem(template)) for name, template in templates)
    yield from islice((f"{name}: {why}; copy it from the original model" for name, why in found if why), 1)


def _templates(folder: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    stored = config.get("chat_template")
    named = [*stored.values()] if isinstance(stored, dict) else stored if isinstance(stored, list) else [stored]
    for entry in named:
        template = entry.get("template") if isinstance(entry, dict) else entry
        if isinstance(template, str):
            yield "tokenizer_config.json: chat_template", template
    for path in sorted([*folder.glob("*.jinja"), *(folder / TEMPLATES).glob("*.jinja")]):
        with path.open(encoding="utf-8", errors="replace") as file:
            yield str(path.relative_to(folder)), file.read(LONGEST_TEMPLATE + 1)


@lru_cache(maxsize=64)
def _template_problem(template: str) -> str | None:
    """Why a chat template cannot be used. It is tried in a process of its own, with a limit of time and memory."""
    if len(template) > LONGEST_TEMPLATE:
        return f"has more than the {LONGEST_TEMPLATE:,} characters that are read"
    code = _RENDER.replace("SECONDS", str(SECONDS)).replace("MEMORY", str(MEMORY))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], input=json.dumps(template), env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        return f"takes more than {SECONDS} s for a chat of three lines" if done.returncode < 0 else _last(done.stderr)
    longest, reason = json.loads(done.stdout)
    if longest == -2:
        return f"takes more than {MEMORY / GIB:.0f} GiB for a chat of three lines"
    if longest > LONGEST_CHAT:
        return f"makes {longest:,} bytes of a chat of three lines"
    return f"no chat can be put in it ({reason})" if longest < 0 else None


def _last(text: str) -> str:
    return f"cannot be tried ({next(reversed(text.splitlines()), 'no reason was given')})"
