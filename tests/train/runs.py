"""Rows, and runs of trainers on them, that several files of tests share."""

from tasks.core.frames import frame
from tasks.core.tables import preferences, training
from tasks.domains.arithmetic import Arithmetic
from tasks.train import TrainCase

DOMAIN = Arithmetic()
PROBLEMS = [item.problem for item in DOMAIN.items("train", 42, 0)]
FAST = {"epochs": 3, "blend": 1.0, "batch": 8, "muon_lr": 0.02, "adamw_lr": 0.01}


def turn(text):
    return [{"role": "assistant", "content": text}]


ROWS = frame(
    training,
    [
        {"id": f"t{n:02}", "prompt": DOMAIN.solve(p), "completion": turn("Answer: 7"), "weight": 1.0}
        for n, p in enumerate(PROBLEMS)
    ],
).collect()
PAIRS = frame(
    preferences,
    [
        {
            "id": f"d{n:02}",
            "prompt": DOMAIN.solve(p),
            "chosen": turn("Answer: 7"),
            "rejected": turn("Answer: 8"),
            "weight": 1.0,
            "smoothing": 0.0,
        }
        for n, p in enumerate(PROBLEMS)
    ],
).collect()


def train(strategy, start, folder, rows=ROWS, pairs=PAIRS, reference=None):
    """`reference` is a folder, or folders with their shares."""
    shares = reference if isinstance(reference, dict | None) else {reference: 1.0}
    case = TrainCase(rows, pairs, start, shares, folder / "model", folder / "work", 1)
    return strategy(case)


def values(curve, name="loss", phase="sft"):
    return curve.filter(phase=phase, name=name).sort("step")["value"].to_list()


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def contents(model):
    return {path.name: path.read_bytes() for path in model.iterdir()}


def largest_difference(one, other):
    from tasks.training.weights import load

    new, old = (load(folder)[0].state_dict() for folder in (one, other))
    return max((new[name] - old[name]).abs().max().item() for name in new)
