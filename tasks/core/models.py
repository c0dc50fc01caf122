"""Model folders: what may be loaded, where it really lies, and its digest.

A folder is one of
- a whole model: config, safetensors, tokenizer;
- a LoRA adapter that names its base and, where a round made it, records the base's digest in `base.json`;
- `pointer.json` alone. It names the model's folder, or a repository and revision of the hub (whose cache lies elsewhere on
  every machine), and the sha256 of each file. So weights are never copied.

Only safetensors are read, and no code that comes with a model is run. A model that needs pickles or code is refused.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.core import model_files
from tasks.core.errors import ModelRefused

POINTER = "pointer.json"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
BASE = "base.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
"""Files of a model. Everything else in its folder (model card, logs) is not part of its digest."""
MOST_PROBLEMS = 10
"""Of a folder, that a message tells."""
SNAPSHOT: dict[str, Any] = {"allow_patterns": [*PATTERNS], "ignore_patterns": ["*/*"]}
"""`PATTERNS` for the hub. There `*` matches subfolders too, which hold copies for other runtimes."""


def resolve(folder: Path) -> Path:
    """The folder that holds the model itself: `folder`, or the target of its pointer.

    Raises:
        ModelRefused: when the pointer is broken, or when a file differs from the recorded sha256.
    """
    folder = Path(folder)
    if not (folder / POINTER).is_file():
        return folder
    content = _json(folder / POINTER)
    if not isinstance(content.get("files"), dict) or not (_has_path(content) or _has_repository(content)):
        raise ModelRefused(
            f"{folder / POINTER}: needs `files`, and either `path` or `repo` and `revision`; add the base again to rewrite it"
        )
    target = Path(content["path"]) if _has_path(content) else _hub_cache(content["repo"], content["revision"], folder)
    if (target / POINTER).exists():
        raise ModelRefused(
            f"{folder / POINTER}: points to {target}, which is a pointer itself; add the base again from the folder that "
            "holds the model"
        )
    for name, recorded in content["files"].items():
        if Path(name).name != name:
            raise ModelRefused(f"{folder / POINTER}: {name!r} is no name of a file; add the base again to rewrite it")
        _verify(target / name, recorded, folder)
    if (target / ADAPTER).is_file() and digest(target) != content.get("digest"):
        raise ModelRefused(
            f"{adapter_base(target)}: the base of the adapter {target} is not the one that {folder} recorded; restore "
            "it, or add the adapter again under a new name"
        )
    return target


def _has_path(content: dict[str, Any]) -> bool:
    return isinstance(content.get("path"), str)


def _has_repository(content: dict[str, Any]) -> bool:
    return isinstance(content.get("repo"), str) and isinstance(content.get("revision"), str)


def _hub_cache(repo: str, revision: str, folder: Path) -> Path:
    """The model's folder in the hub's cache on this machine."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, **SNAPSHOT))
    except LocalEntryNotFoundError as error:
        raise ModelRefused(
            f"{folder}: points to {repo} at {revision[:12]}…, which is incomplete in the hub's cache on this machine; download "
            f"it with `flywheel stage base {_base_of(folder) or 'NAME'}`, the base that it comes from"
        ) from error


def _base_of(folder: Path) -> str | None:
    """The base with the same pointer: a round that trained nothing carries its parent's."""
    own = (folder / POINTER).read_bytes()
    same = (p for p in folder.absolute().parents[1].glob(f"round=*/model/{POINTER}") if p.read_bytes() == own)
    return next((made_by(p.parent) for p in same if (p.parents[1] / "manifests/base.json").is_file()), None)


def _verify(path: Path, recorded: str, pointer: Path) -> None:
    if not path.is_file():
        raise ModelRefused(f"{path}: is missing, but {pointer} points to it; restore it or add the base again")
    if (now := file_digest(path)) != recorded:
        raise ModelRefused(
            f"{path}: sha256 is {now[:12]}…, {pointer} recorded {recorded[:12]}…: the file was changed after it was "
            "added; restore it, or add the base again under a new name"
        )


def pointer(path: Path, source: dict[str, str] | None = None) -> dict[str, Any]:
    """Content of `pointer.json` for the model in `path`: its location (`path` itself, or `source`), its digest and the
    sha256 of each file.
    """
    if (path / POINTER).exists():
        raise ModelRefused(f"{path}: is a pointer itself; name the folder that holds the model (see {POINTER})")
    check(path)
    location = source or {"path": str(path)}
    return {**location, "digest": digest(path), "files": {f.name: file_digest(f) for f in _files(path)}}


def digest(folder: Path) -> str:
    """sha256 over the sorted (name, sha256) of the model's files; an adapter's includes its base's."""
    folder = resolve(folder)
    base = digest(named_base(folder)) if (folder / ADAPTER).is_file() else None
    return _digest(folder, {f.name: file_digest(f) for f in _files(folder)}, base)


def recorded_digest(folder: Path, files: Mapping[str, str]) -> str | None:
    """`digest` of a round's model folder, computed from the digests of its files without reading weights. None for an
    adapter that does not record its base's digest.
    """
    if (folder / POINTER).is_file():
        return _json(folder / POINTER).get("digest")
    if ADAPTER not in files:
        return None if POINTER in files else _digest(folder, files, None)
    base = _recorded_base(folder) if (folder / ADAPTER).is_file() else None
    return _digest(folder, files, base) if base else None


def _digest(folder: Path, files: Mapping[str, str], base: str | None) -> str:
    own = {n: sha256 for n, sha256 in files.items() if "/" not in n and any(fnmatch(n, p) for p in PATTERNS)}
    if base is not None:  # leave out the base's location, which differs between machines
        config = {k: v for k, v in _json(folder / ADAPTER).items() if k != "base_model_name_or_path"}
        own[ADAPTER] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    lines = [f"{name} {sha256}" for name, sha256 in sorted(own.items())] + (
        [f"base {base}"] if base is not None else []
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file. This process caches it until the size or modification time changes."""
    stat = path.stat()
    return _file_digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    files = {f for pattern in PATTERNS for f in folder.glob(pattern) if f.name != POINTER}
    if odd := sorted(f.name for f in files if not f.is_file()):  # a pipe would never end
        raise ModelRefused(f"{folder}: {odd[0]} is no file; remove it")
    return sorted(files, key=lambda f: f.name)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a LoRA adapter and not a whole model."""
    return (resolve(folder) / ADAPTER).is_file()


def layout(folder: Path) -> tuple[Path, Path]:
    """Folders of the whole model (of an adapter, its base) and of the tokenizer. `folder` must be resolved."""
    base = adapter_base(folder) if is_adapter(folder) else folder
    return base, folder if any((folder / name).is_file() for name in TOKENIZERS) else base


def adapter_base(folder: Path) -> Path:
    """The resolved folder of the model that an adapter was trained on (see `named_base`)."""
    return resolve(named_base(folder))


def named_base(folder: Path) -> Path:
    """The folder that an adapter names as its base.

    A plain adapter's path is relative to the working directory. An adapter that a round made records its base's digest in
    `base.json`: the path is then tried relative to each folder above the adapter, nearest first, and to the working
    directory, until the digest matches. So a project may be moved.

    Raises:
        ModelRefused: when there is no such folder, when none has the recorded digest, or for a broken record.
    """
    name = str(_json(folder / ADAPTER).get("base_model_name_or_path") or "")
    recorded = _recorded_base(folder)
    above = folder.absolute().parents if recorded else ()
    candidates = [Path(parent, name) for parent in (*above, "")] if name else []
    folders = [c for c in candidates if c.is_dir() and c.absolute() != folder.absolute()]
    whole = [f for f in folders if not is_adapter(f)]
    if match := next((f for f in whole if recorded in (None, digest(f))), None):
        return match
    if folders and not whole:
        raise ModelRefused(
            f"{folders[0]}: is the base of the adapter {folder}, and an adapter itself; merge one of them into the model that "
            "both were trained on"
        )
    expected = folder.parent.parent / name
    if recorded and made_by(Path(name)) and not expected.is_dir():
        raise ModelRefused(f"{expected}: is missing, the base of the adapter {folder}; {_restore_hint(expected)}")
    if folders:
        raise ModelRefused(f"{folders[0]}: is not the model that the adapter {folder} was trained on; restore it")
    raise ModelRefused(
        f"{folder / ADAPTER}: base_model_name_or_path is {name!r}, which is no local folder; "
        "add that model with `flywheel base add`, and write its folder here"
    )


def _recorded_base(folder: Path) -> str | None:
    """Digest of an adapter's base from `base.json`, which rounds write."""
    if not (folder / BASE).is_file():
        return None
    recorded = _json(folder / BASE).get("digest")
    if not isinstance(recorded, str) or not re.fullmatch("[0-9a-f]{64}", recorded):
        raise ModelRefused(f"{folder / BASE}: digest is {recorded!r}, which is no sha256; {_restore_hint(folder)}")
    return recorded


def made_by(folder: Path) -> str | None:
    """Name of the base or round that owns a model folder, from its path alone: `r1` for `data/round=r1/model`."""
    match = re.search(r"(?:^|/)round=(\w+)/model$", folder.as_posix())
    return match and match[1]


def _restore_hint(folder: Path) -> str:
    return f"`dvc checkout {folder}` restores it, or `dvc pull {folder}` from a remote"


def check(folder: Path) -> None:
    """Raises ModelRefused with every problem at once, unless the model can be loaded without running its code, in the memory
    that its weights take. Chat templates are tried, unless a round of this project made the folder.
    """
    is_own, folder = bool(re.fullmatch(r"data/round=\w+/model", folder.as_posix())), resolve(folder)
    if not folder.is_dir():
        raise ModelRefused(f"{folder}: there is no such model folder")
    problems = list(model_files.file_problems(folder)) or list(_problems(folder))
    if not (problems or is_own):
        tokenizer = folder / "tokenizer_config.json"
        problems = list(model_files.template_problems(folder, _json(tokenizer) if tokenizer.is_file() else {}))
    if problems:
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if len(problems) > MOST_PROBLEMS else ""
        raise ModelRefused(f"{folder}: " + "; ".join(problems[:MOST_PROBLEMS]) + more)
    if is_adapter(folder):
        check(named_base(folder))


def _problems(folder: Path) -> Iterator[str]:
    if pickles := sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES):
        yield (
            f"{', '.join(pickles)}: pickled files can run code and are refused; delete them, and convert weights "
            "with `save_pretrained(…)` of a copy that you trust, which writes safetensors"
        )
    for path in sorted(folder.glob("*config.json")):
        if "auto_map" in _json(path):
            yield (
                f"{path.name} has `auto_map`, which runs code that comes with the model and is refused: "
                "take a model whose architecture transformers knows, or remove the key if it does"
            )
    yield from _adapter_problems(folder) if (folder / ADAPTER).is_file() else _model_problems(folder)


def _adapter_problems(folder: Path) -> Iterator[str]:
    if (kind := _json(folder / ADAPTER).get("peft_type", "LORA")) != "LORA":
        yield f"{ADAPTER} has peft_type {kind!r}, only LORA is supported; merge it into its base, and add the whole model"
    if _json(folder / ADAPTER).get("layer_replication"):
        yield f"{ADAPTER} has layer_replication, which makes a model larger than its weights; merge it, and add the whole model"
    yield from _weight_problems(folder, ["adapter_model.safetensors"], ADAPTER)


def _model_problems(folder: Path) -> Iterator[str]:
    if not (folder / CONFIG).is_file():
        yield f"{CONFIG} is missing; copy it from the original model"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield "there is no tokenizer (tokenizer.json); copy it from the original model"
    weights = shards(folder)
    if not weights:
        yield f"{INDEX} names no weights: `weight_map` must give a file for each; copy it from the original model"
    yield from _weight_problems(folder, weights, CONFIG)


def shards(folder: Path) -> list[str]:
    """Names of the weight files; empty when the index is broken."""
    if not (folder / INDEX).is_file():
        return ["model.safetensors"]
    named = _json(folder / INDEX).get("weight_map")
    return sorted(set(map(str, named.values()))) if isinstance(named, dict) else []


def _weight_problems(folder: Path, names: list[str], config: str) -> Iterator[str]:
    """What is wrong with weights, or, where nothing is, with what a `config` file asks beside them."""
    tensors: dict[str, dict[str, Any]] = {}
    damaged = False
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            damaged = True
            yield f"{name} is missing; only safetensors are read: copy it from the original model"
            continue
        try:
            tensors |= model_files.header(folder / name)
        except ValueError as error:
            damaged = True
            yield f"{name} is cut short or damaged ({error}); copy it again"
    if not damaged and (folder / config).is_file():
        yield from model_files.size_problems(_json(folder / config), tensors, config)


def _json(path: Path) -> dict[str, Any]:
    try:
        if (size := path.stat().st_size) > model_files.LARGEST_JSON:
            raise ModelRefused(
                f"{path}: has {size:,} bytes, where at most {model_files.LARGEST_JSON:,} are read; copy it again"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path}: is not a JSON object ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise ModelRefused(f"{path}: is not a JSON object but a {type(content).__name__}; copy it again")
    return content
