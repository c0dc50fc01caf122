"""Files of JSON lines, read with errors that name the line. Shared by domains: an edit does not make stages stale."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import FlywheelError


def json_lines(path: Path, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place (`file:line`) and object of each line that is not blank; a file named `.gz` is unpacked.

    Raises:
        FlywheelError: for a file that cannot be read or a line that is no JSON object; it ends with `wanted`, which
            says what a line should look like.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _object(line, f"{path}:{number}", wanted)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FlywheelError(f"{path}: cannot be read ({error}); name a .jsonl or .jsonl.gz file, {wanted}") from None


def _object(line: str, where: str, wanted: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise FlywheelError(f"{where}: {line.strip()[:80]!r} is not JSON ({error}); {wanted}") from None
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # an escape such as \ud83d, which is half a character
        raise FlywheelError(f"{where}: holds {error.object[error.start]!a}, half a character; {wanted}") from None
    if not isinstance(value, dict):
        raise FlywheelError(f"{where}: {line.strip()[:80]!r} is not an object; {wanted}")
    return value


def text_of(value: dict[str, Any], name: str, where: str, wanted: str) -> str:
    """The field `name` as stripped text. Raises FlywheelError when it is absent, empty or not text."""
    text = value.get(name)
    if not isinstance(text, str) or not text.strip():
        raise FlywheelError(f"{where}: {name!r} is {text!r}, expected text; {wanted}")
    return text.strip()
