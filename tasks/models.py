"""Model folders: what may be loaded, where it really lies, and its digest.

A folder is a whole model (config, safetensors, tokenizer), a LoRA adapter that names its base (and, where a round made
it, the base's digest in `base.json`), or holds nothing but
`pointer.json`, which says where the model lies (a folder; or repository and revision of the hub, whose cache is elsewhere
on every machine) and the sha256 of each of its files, so that weights are never copied.
Only safetensors are read and no code that comes with a model is run: what would need either is refused.

Code shared by several stages: an edit of this file does not make stages stale.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.errors import ModelRefused

POINTER = "pointer.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
BASE = "base.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
PATTERNS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
"""The files that a model consists of; everything else in its folder (model card, logs) is not part of its digest."""
SNAPSHOT: dict[str, Any] = {"allow_patterns": [*PATTERNS], "ignore_patterns": ["*/*"]}
"""The same to the hub, whose patterns' * matches folders too: copies for other runtimes lie in some."""


def resolve(folder: Path) -> Path:
    """The folder in which the model itself lies: `folder`, or where its pointer points.

    Raises ModelRefused when the pointer is broken or a file is not the one that was recorded.
    """
    folder = Path(folder)
    if not (folder / POINTER).is_file():
        return folder
    told = _json(folder / POINTER)
    if not isinstance(told.get("files"), dict) or not (_names_a_path(told) or _names_a_repository(told)):
        again = "add the base again to write it anew"
        raise ModelRefused(f"{folder / POINTER}: needs `files`, and `path` or `repo` and `revision`; {again}")
    target = Path(told["path"]) if _names_a_path(told) else _cached(told["repo"], told["revision"], folder)
    for name, recorded in told["files"].items():
        _verify(target / name, recorded, folder)
    if (target / ADAPTER).is_file() and digest(target) != told.get("digest"):
        raise ModelRefused(
            f"{adapter_base(target)}: the base of the adapter {target} is not the one that {folder} recorded; restore "
            "it, or add the adapter again under a new name"
        )
    return target


def _names_a_path(told: dict[str, Any]) -> bool:
    return isinstance(told.get("path"), str)


def _names_a_repository(told: dict[str, Any]) -> bool:
    return isinstance(told.get("repo"), str) and isinstance(told.get("revision"), str)


def _cached(repo: str, revision: str, folder: Path) -> Path:
    """Where the hub's cache of this machine keeps a model."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, local_files_only=True, **SNAPSHOT))
    except LocalEntryNotFoundError as error:
        raise ModelRefused(
            f"{folder}: points to {repo} at {revision[:12]}…, which is not whole in the hub's cache of this machine; fetch it "
            f"with `flywheel stage base {_base_of(folder) or 'NAME'}`, the base that it comes from"
        ) from error


def _base_of(folder: Path) -> str | None:
    """A base that has the same pointer: a round that trained nothing has its parent's."""
    own = (folder / POINTER).read_bytes()
    same = (p for p in folder.absolute().parents[1].glob(f"round=*/model/{POINTER}") if p.read_bytes() == own)
    return next((made_by(p.parent) for p in same if (p.parents[1] / "manifests/base.json").is_file()), None)


def _verify(path: Path, recorded: str, pointer: Path) -> None:
    if not path.is_file():
        raise ModelRefused(f"{path}: is missing, but {pointer} points to it; bring it back or add the base again")
    if (now := file_digest(path)) != recorded:
        raise ModelRefused(
            f"{path}: sha256 is {now[:12]}…, {pointer} recorded {recorded[:12]}…: the file was changed after it was "
            "added; restore it, or add the base again under a new name"
        )


def pointer(path: Path, source: dict[str, str] | None = None) -> dict[str, Any]:
    """What `pointer.json` says of the model in `path`: where it lies (`source`, where that is no path), its digest and
    the sha256 of each file.
    """
    check(path)
    where = source or {"path": str(path)}
    return {**where, "digest": digest(path), "files": {f.name: file_digest(f) for f in _files(path)}}


def digest(folder: Path) -> str:
    """sha256 over the sorted (name, sha256) of the model's files; an adapter's includes its base's."""
    folder = resolve(folder)
    base = digest(named_base(folder)) if (folder / ADAPTER).is_file() else None
    return _digest(folder, {f.name: file_digest(f) for f in _files(folder)}, base)


def told_digest(folder: Path, files: Mapping[str, str]) -> str | None:
    """What `digest` says of a round's model folder, whose files' digests are known, without reading weights. None for an
    adapter that does not say which weights its base has.
    """
    if (folder / POINTER).is_file():
        return _json(folder / POINTER).get("digest")
    if ADAPTER not in files:
        return None if POINTER in files else _digest(folder, files, None)
    base = _recorded_base(folder) if (folder / ADAPTER).is_file() else None
    return _digest(folder, files, base) if base else None


def _digest(folder: Path, files: Mapping[str, str], base: str | None) -> str:
    own = {n: found for n, found in files.items() if "/" not in n and any(fnmatch(n, p) for p in PATTERNS)}
    if base is not None:  # of an adapter's config without the base's location, which differs from machine to machine
        config = {k: v for k, v in _json(folder / ADAPTER).items() if k != "base_model_name_or_path"}
        own[ADAPTER] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    lines = [f"{name} {found}" for name, found in sorted(own.items())] + ([f"base {base}"] if base is not None else [])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file; remembered in this process for as long as its size and modification time stay."""
    stat = path.stat()
    return _file_digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digest(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    found = {f for pattern in PATTERNS for f in folder.glob(pattern) if f.name != POINTER}
    return sorted(found, key=lambda f: f.name)


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds a LoRA adapter and not a whole model."""
    return (resolve(folder) / ADAPTER).is_file()


def layout(folder: Path) -> tuple[Path, Path]:
    """Where the whole model lies that a resolved folder is or, as an adapter, stands on; and where its tokenizer lies."""
    base = adapter_base(folder) if is_adapter(folder) else folder
    return base, folder if any((folder / name).is_file() for name in TOKENIZERS) else base


def adapter_base(folder: Path) -> Path:
    """The model that an adapter was trained on, as `named_base`, where it really lies."""
    return resolve(named_base(folder))


def named_base(folder: Path) -> Path:
    """The folder that an adapter names as its base, as seen from here. The base of a round's adapter, whose digest
    `base.json` records, is the nearest one of that digest, seen from each folder above the adapter and then from here: it
    is found wherever the project lies.

    Raises ModelRefused when there is no such folder, when none has the model that was recorded, or for a broken record.
    """
    name = str(_json(folder / ADAPTER).get("base_model_name_or_path") or "")
    recorded = _recorded_base(folder)
    above = folder.absolute().parents if recorded else ()
    places = [Path(up, name) for up in (*above, "")] if name else []
    found = [at for at in places if at.is_dir() and at.absolute() != folder.absolute()]
    if match := next((at for at in found if recorded in (None, digest(at))), None):
        return match
    lost = folder.parent.parent / name
    if recorded and made_by(Path(name)) and not lost.is_dir():
        raise ModelRefused(f"{lost}: is missing, the base of the adapter {folder}; {_mend(lost)}")
    if found:
        raise ModelRefused(f"{found[0]}: is not the model that the adapter {folder} was trained on; restore it")
    raise ModelRefused(
        f"{folder / ADAPTER}: base_model_name_or_path is {name!r}, which is no local folder; "
        "add that model with `flywheel base add`, and write its folder here"
    )


def _recorded_base(folder: Path) -> str | None:
    """The digest of an adapter's base, where a round wrote it down."""
    if not (folder / BASE).is_file():
        return None
    recorded = _json(folder / BASE).get("digest")
    if not isinstance(recorded, str) or not re.fullmatch("[0-9a-f]{64}", recorded):
        raise ModelRefused(f"{folder / BASE}: digest is {recorded!r}, which is no sha256; {_mend(folder)}")
    return recorded


def made_by(folder: Path) -> str | None:
    """The base or round whose model folder it is, by its path alone: `r1` of `data/round=r1/model`."""
    found = re.search(r"(?:^|/)round=(\w+)/model$", folder.as_posix())
    return found and found[1]


def _mend(folder: Path) -> str:
    """How a project's folder comes back."""
    return f"`dvc checkout {folder}` brings it back, or `dvc pull {folder}` from a remote"


def check(folder: Path) -> None:
    """Raises ModelRefused, naming everything that is wrong, unless the model can be loaded without running code."""
    folder = resolve(folder)
    if not folder.is_dir():
        raise ModelRefused(f"{folder}: there is no such model folder")
    if found := list(_problems(folder)):
        raise ModelRefused(f"{folder}: " + "; ".join(found))
    if is_adapter(folder):
        check(adapter_base(folder))


def _problems(folder: Path) -> Iterator[str]:
    if pickles := sorted(f.name for f in folder.iterdir() if f.suffix in PICKLES):
        yield (
            f"{', '.join(pickles)}: pickled files can run code and are refused; delete them, and convert weights "
            "with `save_pretrained(…)` of a copy that you trust, which writes safetensors"
        )
    for path in sorted(folder.glob("*config.json")):
        if "auto_map" in _json(path):
            yield (
                f"{path.name} has `auto_map`, which asks to run code that comes with the model; this is never done: "
                "take a model whose architecture transformers knows, or remove the key if it does"
            )
    yield from _adapter_problems(folder) if (folder / ADAPTER).is_file() else _model_problems(folder)


def _adapter_problems(folder: Path) -> Iterator[str]:
    if (kind := _json(folder / ADAPTER).get("peft_type", "LORA")) != "LORA":
        yield f"{ADAPTER} has peft_type {kind!r}, and only LORA is known; merge it into its base, and add the whole model"
    yield from _weight_problems(folder, ["adapter_model.safetensors"])


def _model_problems(folder: Path) -> Iterator[str]:
    if not (folder / "config.json").is_file():
        yield "config.json is missing; copy it from where the model came from"
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield "there is no tokenizer (tokenizer.json); copy it from where the model came from"
    weights = shards(folder)
    if not weights:
        yield f"{INDEX} names no weights: `weight_map` must give a file for each; copy it from where the model came from"
    yield from _weight_problems(folder, weights)


def shards(folder: Path) -> list[str]:
    """The files with the weights; none when the index is not one."""
    if not (folder / INDEX).is_file():
        return ["model.safetensors"]
    named = _json(folder / INDEX).get("weight_map")
    return sorted(set(map(str, named.values()))) if isinstance(named, dict) else []


def _weight_problems(folder: Path, names: list[str]) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            yield f"{name} is missing; only safetensors are read: copy it from where the model came from"
            continue
        try:
            safe_open(folder / name, framework="numpy").keys()
        except SafetensorError as error:
            yield f"{name} is cut short or damaged ({error}); copy it again"


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text())
    except ValueError as error:
        raise ModelRefused(f"{path}: is not a JSON object ({error}); copy it again") from error
    if not isinstance(told, dict):
        raise ModelRefused(f"{path}: is not a JSON object but a {type(told).__name__}; copy it again")
    return told
