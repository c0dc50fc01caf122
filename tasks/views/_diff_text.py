"""Values and texts of models on one line of a terminal."""

import json
from typing import Any

CONTEXT = 12
"""Characters that are shown before the first difference."""
ABSENT = "–"
"""What stands for null."""


def plain(value: Any) -> str:
    """A value on one line, without characters that would steer a terminal."""
    return "".join(c if c.isprintable() else "⏎" if c == "\n" else "�" for c in words(value))


def words(value: Any) -> str:
    """A value as text: a chat as its texts, other lists and structs as JSON."""
    if value is None or isinstance(value, float):
        return ABSENT if value is None else f"{value:.6g}"
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and v.keys() == {"role", "content"} for v in value)
    ):
        return "\n".join(str(turn["content"]) for turn in value)
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else str(value)


def contrast(old: Any, new: Any, width: int) -> tuple[str, str]:
    """Two values cut to a width: from a little before the first difference, where they do not fit otherwise."""
    texts = plain(old), plain(new)
    shared = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, shared - CONTEXT) if max(map(len, texts)) > width else 0
    return tuple(clip(f"…{t[start:]}" if start else t, width) for t in texts)  # type: ignore[return-value]


def clip(text: str, width: int) -> str:
    """A text cut to a width."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
