"""Checks across stages and blocks of a pipeline: models and engines, judges, files, the exam."""

from pathlib import Path

from tasks.core.errors import suggest
from tasks.core.plugin import load, names
from tasks.core.stage import ANCESTORS, OPTIONAL, Strategy, stages
from tasks.project.blocks import EXAM, Block, Pipeline, input_files, reads_labels
from tasks.project.build import location
from tasks.project.problems import Problems

SEEDS = Path("data/seeds")


def check(pipeline: Pipeline, problems: Problems) -> None:
    """Adds every inconsistency to `problems`."""
    _check_prices(pipeline, problems)
    for block in pipeline.blocks.values():
        _check_models(pipeline, block, problems)
        _check_abilities(pipeline, block, problems)
        _check_files(block, problems)
        _check_names(block, problems)
        if block.is_base:
            _check_exam(block, problems)
        else:
            _check_judges(block, problems)
            _check_replay(pipeline, block, problems)
            _check_screening(block, problems)
            _check_devices(block, problems)


def _place(block: Block, path: str) -> str:
    """Where a value of a block is written."""
    if block.is_base:
        return f"bases.{block.name}.{path}"
    if path.partition(".")[0] in (*EXAM, "domain"):
        return f"bases.{block.base}.{path}"
    return location(block.origins, path, f"rounds.{block.name}")


def _check_prices(pipeline: Pipeline, problems: Problems) -> None:
    """Prices are of engines or of models of the roster; a budget of money needs them."""
    if pipeline.prices is None:
        if pipeline.campaign.budget and pipeline.campaign.budget.money is not None:
            problems.add("campaign.budget.money", "needs prices; write `prices: {gpu_hour: …}` at the top level")
        return
    known = {*names("engines"), *pipeline.roster}
    for name in sorted(pipeline.prices.tokens.keys() - known):
        problems.add(
            f"prices.tokens.{name}", f"there is no engine and no model of the roster {name!r}; {suggest(name, known)}"
        )


def _check_names(block: Block, problems: Problems) -> None:
    """Some names are taken by what the stage itself writes."""
    for stage, member, strategy in block.strategies():
        if member in getattr(strategy, "reserved_names", ()):
            problems.add(_place(block, f"{stage}.{member}"), "is a name of the stage's own; choose another")


def _check_devices(block: Block, problems: Problems) -> None:
    """Not every way to train can be run on several devices, and one needs them."""
    settings = block.stages["train"]
    [(member, strategy)], count = settings.members.items(), getattr(settings.options, "devices", 1)
    if count > 1 and not getattr(strategy, "on_several_devices", False):
        able = ", ".join(n for n in names("train") if getattr(load("train", n), "on_several_devices", False))
        problems.add(
            f"rounds.{block.name}.devices",
            f"is {count}, but train.{member} trains on one device; set it to 1, or take one of {able}",
        )
    if count == 1 and getattr(strategy, "sharded", False):
        problems.add(
            _place(block, f"train.{member}.sharded"),
            "is true, and devices is 1; set devices to 2 or more, or leave `sharded` out",
        )


def _check_exam(block: Block, problems: Problems) -> None:
    """The gate looks at answers that the exam has, and its members at measures of members of the exam."""
    options, members = block.stages["gate"].options, block.stages["evaluate"].members
    answering = {n: splits for n, m in members.items() if (splits := getattr(m, "splits", None))}
    name, split = getattr(options, "member", None), getattr(options, "split", None)
    for gate, strategy in block.stages["gate"].members.items():
        probe = getattr(strategy, "member", None)
        if probe is not None and probe not in members:
            hint = f"add it there, or name another in gate.{gate}.member; {suggest(probe, members)}"
            problems.add(
                _place(block, f"gate.{gate}"), f"looks at the member {probe!r} of evaluate, which is missing; {hint}"
            )
    if not block.stages["gate"].members:
        return
    if name not in answering:
        problems.add(
            _place(block, "gate.member"),
            f"no member {name!r} of evaluate answers problems; {suggest(str(name), answering)}",
        )
    elif split not in answering[name]:
        problems.add(_place(block, "gate.split"), f"{split!r} is not in evaluate.{name}.splits; name it there")


def _check_models(pipeline: Pipeline, block: Block, problems: Problems) -> None:
    """Strategies may open the models that their stage declares, of ancestors that this round has, and those of the roster."""
    for stage, member, strategy in block.strategies():
        opens = {i.ancestor or "model" for i in stages()[stage].inputs if i.opened} | set(pipeline.roster)
        read = {i.ancestor for i in stages()[stage].inputs if i.argument in strategy.read_tables()} - {None}
        for name in sorted(strategy.opened_models() | read):
            place = _place(block, f"{stage}.{member}{_field(strategy, name)}")
            if name in OPTIONAL and not block.is_base and not block.ancestor(name):
                hint = f"write anchor: NAME in rounds.{block.name}" if name == "anchor" else "its parent is a base"
                problems.add(place, f"needs the {name}, which {block.name} does not have; {hint}")
            elif name in strategy.opened_models() and name not in opens:
                problems.add(place, f"opens a model {name!r} that does not exist; {suggest(name, opens)}")


def _field(strategy: Strategy, name: str) -> str:
    """The strategy's field that names a model, as `.field`; empty where no field does."""
    named = (f for f, value in strategy if value == name or (isinstance(value, list | tuple | dict) and name in value))
    return next((f".{f}" for f in named), "")


def _check_abilities(pipeline: Pipeline, block: Block, problems: Problems) -> None:
    """The engine of a model must have the abilities that the strategies which open it need."""
    for stage, member, strategy in block.strategies():
        own = block.exam_engine if stage in EXAM else block.engine
        engines = [pipeline.roster[n].engine if n in pipeline.roster else own for n in strategy.opened_models()]
        for engine in (e for e in engines if e):
            if missing := engine.lacks(strategy.needs):
                problems.add(
                    _place(block, f"{stage}.{member}"),
                    f"needs an engine with {' and '.join(missing)}, which {engine.strategy_name()} lacks; choose another engine "
                    "or leave it out",
                )


def _check_judges(block: Block, problems: Problems) -> None:
    """Judges named by the reward, the filter and pairs must be members of `judge`."""
    judges = block.stages["judge"].members
    [(member, rule)] = block.stages["filter"].members.items()
    named = {"judge.reward": getattr(block.stages["judge"].options, "reward", None)}
    named |= {f"filter.{member}.rank_by": getattr(rule, "rank_by", None)}
    named |= {f"filter.{member}.process": getattr(rule, "process", None)}
    named |= {f"filter.{member}.require.{n}": n for n in getattr(rule, "require", ())}
    pairing = block.stages["pair"].members if "pair" in block.stages else {}
    named |= {
        f"pair.{pair}.judges.{n}": n for pair, strategy in pairing.items() for n in getattr(strategy, "judges", ())
    }
    for path, name in named.items():
        if name is not None and name not in judges:
            problems.add(
                _place(block, path), f"there is no judge {name!r} among the members of judge; {suggest(name, judges)}"
            )


def _check_replay(pipeline: Pipeline, block: Block, problems: Problems) -> None:
    """Replayed rows must come from the round's own base: others were not screened against its exam."""
    for member, strategy in block.stages["collect"].members.items():
        ancestor = block.ancestor(kind) if (kind := getattr(strategy, "of", None)) in ANCESTORS else None
        if ancestor in pipeline.blocks and (other := pipeline.blocks[ancestor].base) != block.base:
            problems.add(
                _place(block, f"collect.{member}.of"),
                f"replays rows of {ancestor}, whose base is {other}: they were not screened against the exam of {block.base}; "
                "name an ancestor of the same base",
            )


def _check_files(block: Block, problems: Problems) -> None:
    """Files that a domain or strategy reads must lie where DVC tracks their edits: seeds, or people's labels."""
    for path, file in input_files(block).items():
        if reads_labels(file):
            if not file.exists():
                problems.add(_place(block, path), f"{file} is not there yet; label answers in `flywheel browse` first")
        elif not file.is_relative_to(SEEDS) or ".." in file.parts:
            problems.add(
                _place(block, path), f"{file} is outside {SEEDS}, so DVC would not see its edits; move it there"
            )
        elif file.is_dir():
            problems.add(_place(block, path), f"{file} is a folder; name a file in it")


def _check_screening(block: Block, problems: Problems) -> None:
    """Prompts must be screened against every item of their base's exam."""
    for member, strategy in block.stages["prompts"].members.items():
        covered = getattr(strategy, "evaluation", None)
        for split, count in sorted(exam_items(block).items()) if covered is not None else ():
            if covered.get(split, 0) < count:
                problems.add(
                    _place(block, f"prompts.{member}.evaluation"),
                    f"screens prompts against {covered.get(split, 0)} {split} items, but bases.{block.base}.evaluate uses "
                    f"{count}; write {split}: {count} there, or more",
                )


def exam_items(block: Block) -> dict[str, int]:
    """Number of items of each frozen split that a block's exam uses, read from the members' fields by name: `count` of the
    gold set, `problems` of a `split`, the larger of `greedy` and `sampled` of each of the `splits`.
    """
    counts: dict[str, int] = {}
    for member in block.stages["evaluate"].members.values():
        sizes = [("gold", getattr(member, "count", 0)), (getattr(member, "split", ""), getattr(member, "problems", 0))]
        each = max(getattr(member, "greedy", 0), getattr(member, "sampled", 0))
        for split, count in [*sizes, *((s, each) for s in getattr(member, "splits", ()))]:
            counts[split] = max(count, counts.get(split, 0))
    return {split: count for split, count in counts.items() if count}
