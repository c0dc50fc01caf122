"""`python -m tasks.engines._vllm_server WISH`: vLLM's OpenAI server on one model folder, which has the weights' digest as its name.

It ends when its standard input closes, with everything that it started: the process that keeps it holds the other end, so no
server outlives that, however it ends. Once it answers it writes what its answers depend on to the file `facts`.
"""

import json
import os
import runpy
import signal
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

from tasks.core import models
from tasks.engines._served import HOST, group
from tasks.engines._vllm_core import arguments, load_path, versions
from tasks.engines.vllm import Vllm

MODULE = "vllm.entrypoints.openai.api_server"
GRACE = 5.0
"""Seconds between SIGTERM and the end of whatever is left."""


def flags(values: dict[str, Any]) -> list[str]:
    """vLLM's arguments as its command line has them."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, dict):
            words += [f"--{flag}", json.dumps(value)]
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    return words


def command(engine: Vllm, folder: Path, digest: str, port: int, values: dict[str, Any]) -> list[str]:
    """The server's command line. An adapter has the digest as its name, and its base another one."""
    is_adapter = models.is_adapter(folder)
    words = [*flags(values), "--host", HOST, "--port", str(port), "--uvicorn-log-level", "warning"]
    words += ["--served-model-name", f"base-of-{digest}" if is_adapter else digest]
    words += ["--lora-modules", f"{digest}={folder}"] if is_adapter else []
    return words + (["--data-parallel-size", str(engine.data_parallel_size)] if engine.data_parallel_size > 1 else [])


def main(wish: dict[str, Any]) -> None:
    """Loads the model and answers until the end."""
    signal.signal(signal.SIGTERM, _leave)
    Thread(target=_end_with_stdin, daemon=True).start()
    try:
        _run(wish)
    finally:
        _end_group()


def _run(wish: dict[str, Any]) -> None:
    engine, folder, digest, port = Vllm(**wish["engine"]), Path(wish["folder"]), wish["digest"], wish["port"]
    loading = ExitStack()
    values = arguments(engine, folder, loading.enter_context(load_path(engine, folder)))
    from vllm.engine.arg_utils import EngineArgs

    config = EngineArgs(**values).create_model_config()
    facts = {"versions": versions(), "dtype": str(config.dtype), "context": int(config.max_model_len)}
    Thread(target=_tell, args=(port, facts, Path(wish["facts"]), loading), daemon=True).start()
    sys.argv = [MODULE, *command(engine, folder, digest, port, values)]
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _tell(port: int, facts: dict[str, Any], path: Path, loading: ExitStack) -> None:
    """Writes the facts once the server answers, and lets the link to the model go."""
    while not _answers(f"http://{HOST}:{port}/health"):
        time.sleep(0.2)
    loading.close()
    new = path.with_suffix(".new")
    new.write_text(json.dumps(facts))
    new.replace(path)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _end_with_stdin() -> None:
    """Ends this process and what it started when nobody holds the other end of its standard input any more."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2 * GRACE)  # it may be in the middle of compiling, which hears no signal
    os.killpg(0, signal.SIGKILL)


def _end_group() -> None:
    """Ends the other processes of this process group, which is the server's own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while (others := _others()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in others:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _others() -> list[int]:
    """Of this process group, without Python's own helper that frees shared memory: it ends by itself, after the last of them."""
    import psutil

    found = []
    for pid in group(os.getpgrp()):
        with suppress(psutil.Error):
            found += [pid] if "resource_tracker" not in " ".join(psutil.Process(pid).cmdline()) else []
    return [pid for pid in found if pid != os.getpid()]


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
