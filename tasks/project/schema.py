"""The JSON schemas of params.yaml and of recipes, for editors: derived from every plug-in's fields."""

from typing import Any

from tasks.core.plugin import Params, load, names
from tasks.core.stage import Stage, stages
from tasks.project.blocks import EXAM, Campaign, Defaults
from tasks.project.build import REQUIRED
from tasks.project.costs import Prices
from tasks.project.recipes import Recipe

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SEED = {"type": "integer", "minimum": 0}
COUNT = {"type": "integer", "minimum": 1}
NAME = {"type": "string"}


def of_params() -> dict[str, Any]:
    """The schema of params.yaml."""
    defs: dict[str, Any] = {}
    domain, engine = _one_of("domains", defs), _one_of("engines", defs)
    exam = {n: _stage(stages()[n], defs) for n in ("base", *EXAM)}
    where = _one_of("where", defs)
    base = _object(
        {"seed": SEED, "domain": domain, "engine": engine, **exam, "where": where, "devices": COUNT},
        ["domain", "base", "evaluate"],
    )
    changes = {
        "type": "object",
        "description": "Changes to the recipe, by dotted key or nested, such as generate.sample.temperature: 0.9",
    }
    round_ = _object(
        {
            "parent": NAME,
            "base": NAME,
            "seed": SEED,
            "recipe": NAME,
            "anchor": NAME,
            "set": changes,
            "where": where,
            "devices": COUNT,
        },
        ["parent", "base"],
    )
    model = _object(
        {
            "engine": engine,
            "path": {"type": ["string", "null"]},
            "digest": {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"},
        },
        ["engine"],
    )
    whole = _object(
        {
            "campaign": _model(Campaign, defs),
            "data": {
                "type": "string",
                "pattern": "^s3://",
                "description": "The bucket of the tables' parts: s3://bucket/prefix",
            },
            "defaults": Defaults.model_json_schema(),
            "prices": _prices(defs),
            "models": {"type": "object", "additionalProperties": model},
            "bases": {"type": "object", "additionalProperties": base},
            "rounds": {"type": "object", "additionalProperties": round_},
        },
        ["bases"],
    )
    return {"$schema": DRAFT, "title": "Flywheel params.yaml", "$defs": defs, **whole}


def of_recipe() -> dict[str, Any]:
    """The schema of a file of recipes/."""
    defs: dict[str, Any] = {}
    own = {s.name: _stage(s, defs) for s in stages().values() if s.bases == "no" and s.name not in EXAM}
    whole = Recipe.model_json_schema()
    defs |= whole.pop("$defs")
    for part in (whole, defs["Phase"]):
        part["properties"]["stages"] = {"$ref": "#/$defs/stages"}
    return {"$schema": DRAFT, "$defs": defs | {"stages": _object(own, [])}, **whole, "title": "Flywheel recipe"}


def _model(kind: type[Params], defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a block of parameters. Nested blocks go to `defs`, because references start at the root."""
    schema = kind.model_json_schema()
    defs |= schema.pop("$defs", {})
    return schema


def _prices(defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of prices, where one number may stand for both prices of an engine."""
    schema = _model(Prices, defs)
    tokens = schema["properties"]["tokens"]
    tokens["additionalProperties"] = {"anyOf": [{"type": "number", "minimum": 0}, tokens["additionalProperties"]]}
    return schema


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _strategy(package: str, name: str, defs: dict[str, Any]) -> dict[str, Any]:
    """A plug-in, its `strategy` among its keys, which a member of the same name may leave out: a reference to its schema in `defs`,
    where its nested models are, too.
    """
    key = f"{package}-{name}"
    if key not in defs:
        schema = load(package, name).model_json_schema(ref_template=f"#/$defs/{key}-{{model}}")
        defs |= {f"{key}-{model}": within for model, within in schema.pop("$defs", {}).items()}
        defs[key] = schema | {"properties": {"strategy": {"const": name}, **schema.get("properties", {})}}
    return {"$ref": f"#/$defs/{key}"}


def _one_of(package: str, defs: dict[str, Any]) -> dict[str, Any]:
    """Any plug-in of a package, named by `strategy`: a reference to `defs`."""
    if package not in defs:
        named = [{"allOf": [_strategy(package, name, defs)], "required": ["strategy"]} for name in names(package)]
        defs[package] = {"oneOf": named}
    return {"$ref": f"#/$defs/{package}"}


def _stage(stage: Stage, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema of a stage's block: options, members named as their strategies, and members with a `strategy`."""
    options = stage.options.model_json_schema() if stage.options else {}
    named = _one_of(stage.name, defs)
    same = {n: {"anyOf": [_strategy(stage.name, n, defs), {"type": "null"}, named]} for n in names(stage.name)}
    required = options.get("required", [])
    block = {
        "type": "object",
        "properties": options.get("properties", {}) | same,
        "required": required,
        "additionalProperties": named,
        "minProperties": len(required) + (stage.name in REQUIRED),
    }
    return block if stage.many else {"anyOf": [named, block]}
