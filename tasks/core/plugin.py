"""Plug-ins: strategies, domains and engines. A plug-in is one file of its package, loaded by the file's name.

There is no list of them. A file holds one public subclass of `Plugin`; its fields are its parameters.
"""

import ast
import inspect
import pkgutil
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from traceback import extract_tb
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from tasks.core.errors import BrokenPlugin, UnknownName

TASKS = Path(__file__).parents[1]


class Params(BaseModel):
    """Validated, immutable parameters; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The schema, in which the text under a field describes it. `use_attribute_docstrings` would read the source of every
        class that is imported, in every command.
        """
        schema = handler(core)
        fields = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in _texts_of_fields(cls).items():
            if name in fields:
                fields[name].setdefault("description", text)
        return schema


class Plugin(Params):
    """What params.yaml and recipes name: a strategy of a stage, a domain, an engine."""

    example: ClassVar[dict[str, Any]] = {}
    """Parameters with which the contract test runs it: those without a default, and small counts where it is slow."""

    @classmethod
    def strategy_name(cls) -> str:
        """Its name in params.yaml and recipes: the name of its file."""
        return cls.__module__.rpartition(".")[2]


def _texts_of_fields(kind: type[BaseModel]) -> dict[str, str]:
    """The text under each field of a class and of those that it descends from."""
    texts: dict[str, str] = {}
    for owner in reversed([c for c in kind.__mro__ if issubclass(c, Params)]):
        [node] = ast.parse(dedent(inspect.getsource(owner))).body
        for field, text in pairwise(node.body if isinstance(node, ast.ClassDef) else ()):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                texts.pop(field.target.id, None)
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    texts[field.target.id] = inspect.cleandoc(str(text.value.value))
    return texts


def names(package: str) -> list[str]:
    """Names of the plug-ins of a package of `tasks`: its files, in alphabetical order."""
    modules = pkgutil.iter_modules([str(TASKS / package)])
    return sorted(m.name for m in modules if not m.name.startswith("_") and not m.ispkg)


@cache
def load(package: str, name: str) -> type[Any]:
    """The plug-in class of `tasks/<package>/<name>.py`.

    Raises:
        UnknownName: when there is no such file.
        BrokenPlugin: when it cannot be imported, or does not define exactly one plug-in.
    """
    if name not in names(package):
        kind = package[:-1] if package in ("domains", "engines") else f"{package} strategy"
        raise UnknownName(kind, name, names(package))
    try:
        module = import_module(f"tasks.{package}.{name}")
        return plugin_of(vars(module), module.__name__)
    except Exception as error:  # whatever a person's file raises
        file = f"tasks/{package}/{name}.py"
        line = next((f.lineno for f in reversed(extract_tb(error.__traceback__)) if f.filename.endswith(file)), None)
        line = error.lineno if isinstance(error, SyntaxError) else line
        raise BrokenPlugin(f"{file}{f':{line}' if line else ''}: {type(error).__name__}: {error}") from error


def plugin_of(namespace: dict[str, Any], module: str) -> type[Plugin]:
    """The one plug-in class that a module defines."""
    classes = [
        c
        for n, c in namespace.items()
        if isinstance(c, type) and issubclass(c, Plugin) and c.__module__ == module and not n.startswith("_")
    ]
    if len(classes) != 1:
        raise TypeError(f"{module} must define exactly one public plug-in, not {[c.__name__ for c in classes]}")
    return classes[0]
