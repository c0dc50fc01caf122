"""Prints what a replay finds, stage by stage, and writes its certificate."""

from pathlib import Path

from rich.console import Console
from rich.text import Text

from tasks.project import replay as replays
from tasks.project.replay import PLACE, VERDICTS, Replayed

STYLES = {"identical": "green", "close": "green", "different": "red", "not comparable": "yellow"}


def show(root: Path, name: str, stage: str | None = None, file: Path | None = None) -> int:
    """Replays a base or round, or one stage of it, and prints a line for each; 1 if one gave another result, else 0."""
    console, chosen = Console(highlight=False, soft_wrap=True), replays.stages_of(root, name, stage)
    console.print(
        f"{name}: each stage again, from the inputs that the round stored, in a process of its own, without the request cache."
    )
    results: list[Replayed] = []
    with console.status(f"{chosen[0]}@{name} …") as status:
        for number, result in enumerate(replays.replay(root, name, chosen), 1):
            results.append(result)
            for line in _lines(result, root / PLACE / name):
                console.print(line)
            if number < len(chosen):
                status.update(f"{chosen[number]}@{name} …")
    found = replays.certificate(name, results)
    file = file or root / PLACE / f"{'-'.join(filter(None, (name, stage)))}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(found.model_dump_json(indent=1) + "\n", encoding="utf-8")
    console.print(_summary(results), style="bold")
    console.print(f"The certificate, with digests, versions and this machine: {file}")
    return int(not found.holds)


def _lines(result: Replayed, place: Path) -> list[Text]:
    now = result.replayed_seconds
    time = "" if now is None else f"{now:>6.1f} s, then {result.stored_seconds:.1f} s"
    first = Text.assemble(f"{result.stage:<9} ", (f"{VERDICTS[result.verdict]:<33}", STYLES[result.verdict]), time)
    details = [result.reason] if result.reason else []
    if found := result.difference:
        at = ", ".join(filter(None, (found.output, found.row, found.column)))
        details.append(f"the first difference: {at}: {_short(found.stored)} → {_short(found.replayed)}")
        details.append(f"what it wrote now: {place / result.stage}/data/round={place.name}")
    if result.edited:
        details.append(f"edited since: {', '.join(result.edited)}")
    if result.versions:
        details.append("other versions: " + ", ".join(f"{k} {change}" for k, change in result.versions.items()))
    return [first, *(Text(f"          {detail}") for detail in details)]


def _short(value: str) -> str:
    return value if len(value) <= 60 else f"{value[:59]}…"


def _summary(results: list[Replayed]) -> str:
    counts = {v: sum(r.verdict == v for r in results) for v in VERDICTS}
    told = ", ".join(f"{count} {VERDICTS[v]}" for v, count in counts.items() if count)
    first = next((r.stage for r in results if r.verdict == "different"), None)
    return f"{len(results)} stage{'s' * (len(results) != 1)}: {told}." + (
        f" The first that differs is {first}." if first else ""
    )
