"""Docstrings and JSON schemas as Markdown: paragraphs, tables, links, types in plain words."""

import inspect
import json
import re
from collections.abc import Iterable
from typing import Any

Schema = dict[str, Any]
PLAIN = {
    "integer": ("whole number", "whole numbers"),
    "number": ("number", "numbers"),
    "string": ("text", "texts"),
    "boolean": ("true or false", "true or false"),
    "null": ("null", "null"),
}
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
SENTENCE = re.compile(r"(?<!\bal)(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.!?](?=\s+[^a-z\d(]|\s*$)")
CITED = re.compile(
    r"(?:([A-Z][^\s(),;]*(?: et al\.| (?:and|&) [A-Z][^\s(),;]*)?),? \(?(\d{4})[a-z]?, )?arXiv:(\d{4}\.\d{4,5})"
)


def words(schema: Schema, defs: Schema, plural: bool = False) -> str:
    """The type of a parameter in plain words, from its JSON schema."""
    if options := schema.get("anyOf") or schema.get("allOf"):
        return _either(words(option, defs, plural) for option in options)
    if "$ref" in schema:
        return words(defs[schema["$ref"].rpartition("/")[2]], defs, plural)
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return _either(f"`{flow(value)}`" for value in values)
    kind = schema.get("type")
    if kind == "array":
        return f"list{'s' * plural} of {words(schema.get('items', {}), defs, True)}"
    if kind == "object":
        return _map(schema, defs, plural)
    name = ("path", "paths") if schema.get("format") in ("path", "file-path") else PLAIN.get(kind, ("value", "values"))
    bounds = ", ".join(f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema)
    return f"{name[plural]} {bounds}".strip()


def _map(schema: Schema, defs: Schema, plural: bool) -> str:
    values = schema.get("additionalProperties")
    if not isinstance(values, dict):
        return f"block{'s' * plural}"
    keys = words(schema.get("propertyNames", {}) | {"type": "string"}, defs)
    return f"map{'s' * plural} of {keys} to {words(values, defs, True)}"


def _either(options: Iterable[str]) -> str:
    *others, last = options
    return f"{', '.join(others)} or {last}" if others else last


def first_sentence(text: str) -> str:
    """A docstring's first sentence, on one line; "et al. 2024" ends none."""
    text = re.split(r"\n\s*\n|\n- ", inspect.cleandoc(text))[0]
    end = SENTENCE.search(text)
    return " ".join(text[: end.end() if end else None].split())


def summary(doc: str) -> str:
    """The first sentence without the sources in brackets, which have a column of their own."""
    return escaped(re.sub(r"\s*\([^()]*arXiv:[^()]*\)", "", first_sentence(doc)))


def sources(text: str) -> list[str]:
    """The cited papers, each once, as links with authors and year where the text has them."""
    cited = {
        id: f"{authors} {year}" if authors else f"arXiv:{id}"
        for authors, year, id in CITED.findall(" ".join(text.split()))
    }
    return [f"[{name}](https://arxiv.org/abs/{id})" for id, name in cited.items()]


def slug(title: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def link(text: str, title: str) -> str:
    """A link to the heading `title` of the same page."""
    return f"[`{text}`](#{slug(title)})"


def to_strategy(stage: str, strategy: str) -> str:
    """A link to a strategy's heading."""
    return link(strategy, f"{stage}: {strategy}")


def markdown(text: str) -> str:
    """A docstring as Markdown: a line a paragraph or list item, indented paragraphs as code, arXiv ids as links."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(p if re.match(r" {4}", p) else _paragraph(p) for p in paragraphs)


def _paragraph(text: str) -> str:
    items = re.split(r"\n(?=- |\d+\. )", text.strip())
    linked = (
        re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", escaped(item)) for item in items
    )
    return "\n".join(" ".join(item.split()) for item in linked)


def escaped(text: str) -> str:
    """Text outside code spans in which Markdown finds nothing to emphasise and no tag."""
    pieces = re.split(r"(`+[^`]+`+)", text)
    return "".join(p if n % 2 else re.sub(r"[*~]|(?<!\w)_|_(?!\w)|<", r"\\\g<0>", p) for n, p in enumerate(pieces))


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def flow(value: Any) -> str:
    """A value as params.yaml has it, on one line."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(flow, value))}]"
    return value if isinstance(value, str) and value else json.dumps(value)
