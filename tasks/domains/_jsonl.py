"""Files of JSON lines, read with errors that name the line."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.core.errors import FlywheelError


def json_lines(path: Path, hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (`file:line`, object) of each line that is not blank; a file named `.gz` is unpacked.

    Raises:
        FlywheelError: for a file that cannot be read or a line that is no JSON object; it ends with `hint`, an
            example of a valid line.
    """
    reader = gzip.open if path.suffix == ".gz" else open
    try:
        with reader(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}", hint)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FlywheelError(f"{path}: cannot be read ({error}); name a .jsonl or .jsonl.gz file, {hint}") from None


def _object(line: str, where: str, hint: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise FlywheelError(f"{where}: {line.strip()[:80]!r} is not JSON ({error}); {hint}") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # an escape such as \ud83d, which is half a character
        raise FlywheelError(f"{where}: holds {error.object[error.start]!a}, half a character; {hint}") from None
    if not isinstance(value, dict):
        raise FlywheelError(f"{where}: {line.strip()[:80]!r} is not an object; {hint}")
    return value


def text_of(value: dict[str, Any], name: str, where: str, hint: str) -> str:
    """The field `name` as stripped text. Raises FlywheelError when it is absent, empty or not text."""
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise FlywheelError(f"{where}: {name!r} is {text!r}, expected text; {hint}")
    return text.strip()
