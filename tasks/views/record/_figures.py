"""Figures of a round for MLflow: accuracy by level compared with its parent and base, and training curves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from tasks.core import store
from tasks.core.stage import stages
from tasks.project.params import Block

CURVE = {"step": pl.Int64, "phase": pl.String, "name": pl.String, "value": pl.Float64}
PANELS = {"pass_at_1": "sampled, pass@1", "greedy": "greedy"}


def figures(root: Path, block: Block, stage_names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields (name, figure) for these stages of a round."""
    if "evaluate" in stage_names and (by_level := _by_level(root, block)):
        yield "accuracy", _accuracy(by_level)
    for stage in stage_names:
        lines = curve(root, block.name, stage)
        if len(lines):
            yield f"{stage}_curve", _curves(lines, f"{stage}@{block.name}")


def curve(root: Path, name: str, stage: str) -> pl.DataFrame:
    """The training curve of a stage: step, phase, name, value, sorted; empty where it wrote none."""
    frames = [pl.DataFrame(schema=CURVE)]
    for plot in stages()[stage].plots if stage in stages() else ():
        path = store.round_folder(root, name) / "plots" / f"{plot}.csv"
        text = path.read_text() if path.is_file() else ""
        if {"phase", "step"} <= set(text.partition("\n")[0].split(",")):
            frame = pl.read_csv(text.encode(), infer_schema=False)
            long = frame.unpivot(index=["phase", "step"], variable_name="name")
            frames.append(long.select(list(CURVE)).cast(CURVE))  # type: ignore[arg-type]
    return pl.concat(frames).drop_nulls().sort("phase", "name", "step")


def _by_level(root: Path, block: Block) -> dict[str, pl.DataFrame]:
    """Measures by level of a round, its parent and its base, as far as they exist."""
    frames = {}
    for name in dict.fromkeys([block.name, block.parent or block.name, block.base]):
        if store.has(root, name, "measures"):
            frames[name] = store.read(root, name, "measures").drop_nulls("level").sort("level")
    return {name: frame for name, frame in frames.items() if len(frame)}


def _accuracy(by_level: dict[str, pl.DataFrame]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    panels = figure.subplots(1, 2, sharey=True, gridspec_kw=_margins(3.6, 0.35))
    for panel, (measure, title) in zip(panels, PANELS.items(), strict=True):
        for name, frame in by_level.items():
            rows = frame.filter(name=measure)
            panel.plot(rows["level"], rows["value"], marker="o", label=name)
            panel.fill_between(rows["level"], rows["low"].fill_null(0), rows["high"].fill_null(1), alpha=0.15)
        panel.set(title=title, xlabel="level", ylim=(0, 1.02))
        panel.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylabel("accuracy, 95 % interval")
    panels[0].legend()
    return figure


def _margins(height: float, top: float) -> dict[str, float]:
    """Margins as fractions of a figure of `height` inches. matplotlib's own layout would draw everything twice."""
    return {"left": 0.07, "right": 0.98, "bottom": 0.5 / height, "top": 1 - top / height, "wspace": 0.15, "hspace": 0.5}


def _curves(lines: pl.DataFrame, title: str) -> Any:
    from matplotlib.figure import Figure

    groups = lines.partition_by("phase", "name", maintain_order=True)
    rows = (len(groups) + 1) // 2
    height = 2.6 * rows + 0.6
    figure = Figure(figsize=(9, height))
    panels = figure.subplots(rows, 2, squeeze=False, gridspec_kw=_margins(height, 0.7)).flatten()
    for panel, group in zip(panels, groups, strict=False):
        panel.plot(group["step"], group["value"])
        panel.set(title=f"{group['phase'][0]} {group['name'][0]}", xlabel="step")
    for panel in panels[len(groups) :]:
        panel.set_axis_off()
    figure.suptitle(title)
    return figure
