"""What the request cache saves: requests to a server that echoes, answered for the first time and again from the cache.

    python benchmarks/cache.py     [--requests 100000] [--repeats 5]

The first run asks a real HTTP server on this machine through the `openai` engine; there the model costs nothing, so this
is the least that a first run can cost. It is made once; the median of the later ones counts.
"""

import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import typer
import uvicorn
from fastapi import FastAPI, Request
from table import add

from tasks import engines
from tasks.core.roster import SERVED
from tasks.engines.openai import Openai

GOAL = 0.1
app = FastAPI()


@app.post("/v1/chat/completions")
async def echo(request: Request) -> dict[str, Any]:
    """The last message again."""
    body = await request.json()
    choice = {"index": 0, "message": {"role": "assistant", "content": body["messages"][-1]["content"]}}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "e", "object": "chat.completion", "created": 0, "model": "echo", "usage": usage,
            "choices": [choice | {"finish_reason": "stop"}]}  # fmt: skip


def main(requests: int = 100_000, repeats: int = 5) -> None:
    """Asks twice and more, and prints the ratio."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.1)
    port = server.servers[0].sockets[0].getsockname()[1]
    engine = Openai(base_url=f"http://127.0.0.1:{port}/v1", model="echo", concurrency=64, logprobs=False)
    questions = [
        engines.Request((("user", f"Tell me about number {i}."),), engines.Sampling(), seed=i) for i in range(requests)
    ]
    with tempfile.TemporaryDirectory(prefix="flywheel-") as place:

        def run() -> float:
            clock = time.perf_counter()
            with engine.open(SERVED, Path(place)) as policy:
                answers = dict(policy.sample(questions))
            assert all(answers[i].text == q.messages[-1][1] for i, q in enumerate(questions)), (
                "an answer is not its request's"
            )
            return time.perf_counter() - clock

        first, again = run(), median(run() for _ in range(repeats))
    add(
        f"{requests:,} requests again, from the cache",
        f"{again:.2f} s",
        f"first run {first:.1f} s",
        again / first,
        GOAL,
    )


if __name__ == "__main__":
    typer.run(main)
