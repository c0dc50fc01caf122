"""A small project to browse, whose texts are as bad as models write them, and its server."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import projects
from ruamel.yaml import YAML

from tasks.core import store
from tasks.core.frames import frame
from tasks.core.plan import Plan
from tasks.core.tables import TABLES

PROMPTS, SAMPLES = 30, 4
SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
HOSTILE = f"{SCRIPT}\x1b[2J\x07 \u202e desrever \u2066 tail"
LONG = "x" * 1_000_000
JUDGES = ("votes", "grader")
TIME = "2026-01-01T10:00:00+00:00"


def prompt_id(n: int) -> str:
    """Ids are sorted as the stages sort them."""
    return f"{n:02x}{'0' * 13}1"


def response_id(n: int, sample: int) -> str:
    return f"{n:02x}{sample}{'a' * 13}"


def rows() -> dict[str, list[dict[str, Any]]]:
    """The tables of r1. Of every prompt sample 0 is right and kept, sample 1 wrong and criticised, 2 and 3 are duplicates."""
    made: dict[str, list[dict[str, Any]]] = {}
    for n in range(PROMPTS):
        p, problem = prompt_id(n), f"What is {n} + {n}?" if n else f"Problem {HOSTILE}"
        chat = [{"role": "user", "content": problem}]
        made.setdefault("prompts", []).append(
            {
                "id": p,
                "member": "pool",
                "problem": problem,
                "prompt": chat,
                "level": n % 3,
                "source": "model",
                "parents": [],
            }
        )
        for sample in range(SAMPLES):
            r, right = response_id(n, sample), sample != 1
            answer = str(2 * n if right else 2 * n + 1)
            text = {(0, 0): HOSTILE, (0, 3): LONG}.get((n, sample), f"Sum {n}/{sample}\nAnswer: {answer}")
            made.setdefault("responses", []).append(
                {"id": r, "prompt_id": p, "member": "sample", "sample": sample, "seed": 1, "response": text, "answer": answer,
                 "tokens": 9, "finish_reason": "stop", "hinted": False, "author": "parent", "model": "m"}
            )  # fmt: skip
            kept = sample == 0
            reason = None if kept else "score" if sample == 1 else "duplicate"
            made.setdefault("filtered", []).append(
                {"id": r, "prompt_id": p, "kept": kept, "rank": 1 if kept else None, "reason": reason, "score": 0.75}
            )
            for judge in JUDGES:
                score = (0.75 if right else 0.25) if judge == "votes" else (0.9 if n % 2 else 0.2)
                made.setdefault("judgments", []).append(
                    {"id": f"{r}{judge}", "response_id": r, "prompt_id": p, "member": judge, "reward": judge == "votes",
                     "score": score, "verdict": "pass" if score > 0.5 else "fail", "rationale": f"because {SCRIPT}"}
                )  # fmt: skip
        wrong, better = response_id(n, 1), f"{n:02x}{'b' * 14}"
        made.setdefault("critiques", []).append(
            {"id": f"{n:02x}{'c' * 14}", "member": "critic", "response_id": wrong, "prompt_id": p, "prompt": chat,
             "critique": f"The sum of {n} is off", "verdict": "fail", "target": str(2 * n), "refinements": 1, "successes": 1,
             "kept": True, "model": "m"}
        )  # fmt: skip
        made.setdefault("refinements", []).append(
            {"id": better, "member": "critic", "critique_id": f"{n:02x}{'c' * 14}", "response_id": wrong, "prompt_id": p,
             "sample": 0, "response": f"Better {n}\nAnswer: {2 * n}", "answer": str(2 * n), "success": True, "hinted": True, "model": "m"}
        )  # fmt: skip
        said = [{"role": "assistant", "content": f"Sum {n}/0"}]
        made.setdefault("training", []).append(
            {"id": f"{n:02x}{'d' * 14}", "member": "answers", "prompt_id": p, "response_id": response_id(n, 0), "model": "m",
             "source": "responses", "prompt": chat, "completion": said, "weight": 1.0}
        )  # fmt: skip
    made["judgments"].sort(key=lambda row: (row["member"], row["prompt_id"]))
    return made


STAGES = {
    "prompts": ["prompts"], "generate": ["responses"], "judge": ["judgments"], "filter": ["filtered"],
    "critique": ["critiques", "refinements"], "collect": ["training"],
}  # fmt: skip


def write(root: Path, stage: str, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Writes tables of r1 as if a stage had made them."""
    members = {name: {"strategy": name} for name in JUDGES} if stage == "judge" else {}
    with store.writing(root, "r1", stage) as draft:
        metrics: dict[str, float] = {}
        for table in STAGES[stage]:
            metrics |= draft.table(TABLES[table], frame(TABLES[table], tables.get(table, [])))
        fields: dict[str, Any] = {key: {} for key in ("inputs", "versions", "tokens", "seconds")}
        plan = Plan(round="r1", stage=stage, members=members)
        draft.commit(
            store.Manifest(
                round="r1",
                stage=stage,
                plan=plan,
                outputs=draft.outputs,
                metrics=metrics,
                started=TIME,
                finished=TIME,
                **fields,
            )
        )


def make(root: Path, tables: dict[str, list[dict[str, Any]]] | None = None) -> Path:
    """A project whose round r1 was made; nothing of r0 and r2 is there."""
    empty(root)
    for stage in STAGES:
        write(root, stage, rows() if tables is None else tables)
    return root


def empty(root: Path) -> Path:
    """A project of which nothing was made, in git, with somebody who works on it."""
    root.mkdir(exist_ok=True)
    base = {
        "seed": 0,
        "domain": {"strategy": "arithmetic"},
        "engine": {"strategy": "fake"},
        "evaluate": {"answers": {}},
        "gate": {},
    }
    bases = {"r0": base | {"base": {"strategy": "local", "path": "data/base"}}}
    (root / "recipes").symlink_to(projects.HERE / "recipes")
    rounds = {"r1": {"parent": "r0", "base": "r0", "seed": 1}, "r2": {"parent": "r1", "base": "r0", "seed": 2}}
    YAML().dump({"bases": bases, "rounds": rounds}, root / "params.yaml")
    for command in (["init", "-q"], ["config", "user.name", "Ada L"], ["config", "user.email", "Ada@Example.org"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@contextmanager
def server(root: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`flywheel browse` as a user starts it: the address that it prints, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tasks", "browse", "--no-open"],
        cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline() if process.stdout else ""
        assert re.match(r"http://127\.0\.0\.1:\d+/\?token=", line), process.communicate()
        yield line.strip(), process
    finally:
        process.kill()
        process.communicate()
