"""The peer's side of `python benchmarks/chain.py`: load, generate (echo), judge by a rule, filter, write, in distilabel.

    python benchmarks/distilabel_chain.py PROMPTS.jsonl FOLDER

Runs in an environment of its own (`distilabel==1.5.3 requests pillow`), in batches of 10,000. Prints rows, and the seconds
and processor seconds from the first line read to the last row written, without imports.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from distilabel.models.llms.base import LLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, step
from distilabel.steps.tasks import TextGeneration

BATCH = 10_000
"""Its best for 100,000 rows: with 1,000 it takes almost twice as long."""


class Echo(LLM):
    """Answers with the last message."""

    @property
    def model_name(self) -> str:
        """How distilabel names it."""
        return "echo"

    def generate(self, inputs: list[Any], num_generations: int = 1) -> list[Any]:
        """The last message of each chat."""
        return [
            {
                "generations": [chat[-1]["content"]] * num_generations,
                "statistics": {"input_tokens": [1], "output_tokens": [1]},
            }
            for chat in inputs
        ]


@step(inputs=["generation"], outputs=["score"])
def judge(inputs: StepInput) -> Any:
    """The rule: there is an answer."""
    for row in inputs:
        row["score"] = 1.0 if row["generation"] else 0.0
    yield inputs


@step(inputs=["score"], outputs=["score"])
def keep(inputs: StepInput) -> Any:
    """Drops what the rule refused."""
    yield [row for row in inputs if row["score"] >= 0.4]


def main(prompts: Path, folder: Path) -> None:
    """Runs the chain."""
    clock, processor = time.perf_counter(), sum(os.times()[:4])
    rows = [{"instruction": json.loads(line)["prompt"]} for line in prompts.open()]
    with Pipeline(name="chain") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=BATCH)
        generate = TextGeneration(llm=Echo(), input_batch_size=BATCH)
        load >> generate >> judge(input_batch_size=BATCH) >> keep(input_batch_size=BATCH)
    made = pipeline.run(use_cache=False)
    made.save_to_disk(str(folder))
    processor = sum(os.times()[:4]) - processor  # with that of processes that have ended, which are the steps'
    print(f"\n{made['default']['train'].num_rows} {time.perf_counter() - clock:.3f} {processor:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
