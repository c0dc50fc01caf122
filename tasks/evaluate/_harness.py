"""lm-evaluation-harness on an opened policy: its tasks, its metrics and standard errors, our engines.

The harness's own models would load the weights a second time and pass the request cache by. `ChatModel` hands its
requests to the policy instead, so that every engine serves and answers are cached, metered and seeded as all others.
"""

import json
import logging
import os
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, TypeVar

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from tasks.core.errors import FlywheelError, UnknownName
from tasks.core.ids import seed_of
from tasks.engines import Messages, Policy, Request, Sampling, turns

T = TypeVar("T")
INSTALLED = Path(evaluator.__file__).parent
BOOTSTRAPS = 1000
"""Resamples for the standard error of a metric that is no mean, such as BLEU."""
IMPOSSIBLE = -1e9
"""Stands for the log-likelihood of a text that could not be scored, until its item is left out."""
LOGGERS = ("lm_eval", "datasets")
FUNCTION = re.compile(r"!function\s+['\"]?([\w.]+)\.\w+")
"""A YAML's reference to a function: the module, whose file stands beside the YAML."""
OFFLINE = "set HF_HOME to a cache that has it, or write a task whose dataset_path is json and whose data_files lie in data/seeds"


@dataclass
class Harness:
    """Tasks that are loaded, and how they are run."""

    loaded: dict[str, Any]
    """What `TaskManager.load` gives: tasks and groups by name."""

    def run(self, model: "ChatModel", limit: int | None) -> dict[str, Any]:
        """The harness's results and samples. Items of which a request failed are left out: the rest is measured again,
        from the answers that are there.
        """
        results = self._evaluate(self.loaded, model, limit=limit)
        if not model.errors:
            return results
        counts = {name: n["effective"] for name, n in results["n-samples"].items()}
        whole = {t: [i for i in range(n) if (t, i) not in model.errors] for t, n in counts.items()}
        tasks = {name: task for name, task in self.loaded["tasks"].items() if whole.get(name)}
        model.replays = True
        return self._evaluate({"tasks": tasks}, model, samples=whole) if tasks else {}

    def _evaluate(self, loaded: dict[str, Any], model: "ChatModel", **which: Any) -> dict[str, Any]:
        options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "bootstrap_iters": BOOTSTRAPS}
        with _quiet():
            return dict(evaluator.evaluate(lm=model, task_dict=loaded, **which, **options) or {})


def load(names: Sequence[str], files: Sequence[Path], shots: int | None, seed: int) -> Harness:
    """The named tasks, groups and tags: those of `files`, then those that come with the harness.

    Raises:
        UnknownName: for a name that neither has.
        FlywheelError: for a task whose data cannot be read, that runs code of a model, or that reads a file which is not
            among `files`.
    """
    folders = sorted({path.parent for path in files if path.suffix in (".yaml", ".yml")})
    with _quiet():
        random.seed(seed)  # for tasks that shuffle by the global generator
        manager = TaskManager(include_path=list(folders), include_defaults=False)
        if set(names) - set(manager.all_tasks):
            manager = TaskManager(include_path=list(folders))
        loaded: dict[str, Any] = {"tasks": {}, "groups": {}}
        for name in names:
            if name not in manager.all_tasks:
                raise UnknownName("task", name, manager.all_tasks, "evaluate.lm_eval.tasks")
            _check_files(name, sorted(_sources(manager, name)), files)  # before a function of such a file runs
            part = _load(manager, name)
            loaded = {kind: {**loaded[kind], **part.get(kind, {})} for kind in loaded}
    for name, task in loaded["tasks"].items():
        _check(name, task, files)
        if shots is not None and task.get_config("num_fewshot") != 0:  # 0 in a task's own file stands
            task.set_config(key="num_fewshot", value=shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    return Harness(loaded)


def _load(manager: TaskManager, name: str) -> Any:
    try:
        return manager.load([name])
    except ConnectionError as error:
        raise FlywheelError(
            f"lm_eval task {name!r}: its data are on the Hugging Face hub, which cannot be reached ({error}); {OFFLINE}"
        ) from error
    except Exception as error:  # whatever a task's YAML, its functions or the loader of its data raise
        raise FlywheelError(f"lm_eval task {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


def _check(name: str, task: Any, files: Sequence[Path]) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise FlywheelError(f"lm_eval task {name!r} runs code that models write, which is refused; take another task")
    if getattr(task, "MULTIMODAL", False) or task.OUTPUT_TYPE == "loglikelihood_rolling":
        kind = "images or sound" if getattr(task, "MULTIMODAL", False) else "perplexity of raw text"
        raise FlywheelError(f"lm_eval task {name!r} is about {kind}, which a chat cannot put; take another task")
    _check_files(name, _local(task.get_config("dataset_kwargs") or {}), files)


def _check_files(name: str, used: Iterable[Path], files: Sequence[Path]) -> None:
    known = {path.resolve() for path in files}
    for path in used:
        if path.resolve() not in known and not path.resolve().is_relative_to(INSTALLED):
            raise FlywheelError(
                f"lm_eval task {name!r} reads {path}, whose edits DVC would not see; add it to evaluate.lm_eval.files"
            )


def _sources(manager: TaskManager, name: str) -> set[Path]:
    """The files by which a project defines a task, or a group or tag with its tasks."""
    found: set[Path] = set()
    names, seen = [name], set[str]()
    while names:
        entry = manager.task_index.get(name := names.pop())
        if entry is None or name in seen:
            continue
        seen.add(name)
        if entry.yaml_path:
            _read_by(entry.yaml_path, found)
        inner = (entry.cfg or {}).get("task")
        parts = inner if isinstance(inner, list) else [inner]
        names += [*entry.tags, *(part["task"] if isinstance(part, dict) and "task" in part else part for part in parts)]
        names = [each for each in names if isinstance(each, str)]
    return found


def _read_by(source: Path, found: set[Path]) -> None:
    """Adds a YAML, and the files that it includes or takes functions from; what the harness itself has is left out."""
    if source in found or source.resolve().is_relative_to(INSTALLED) or not source.is_file():
        return
    found.add(source)
    modules = (source.parent / f"{name.replace('.', '/')}.py" for name in FUNCTION.findall(source.read_text("utf-8")))
    found.update(path for path in modules if path.is_file())
    included = load_yaml(source, resolve_func=False, recursive=False).get("include") or []
    for name in [included] if isinstance(included, str) else included:
        _read_by(source.parent / name, found)


def _local(value: Any) -> list[Path]:
    """The files among a data set's arguments, of a pattern those that it stands for."""
    if isinstance(value, Mapping):
        return [path for inner in value.values() for path in _local(inner)]
    if isinstance(value, list | tuple):
        return [path for inner in value for path in _local(inner)]
    found = glob(value, recursive=True) if isinstance(value, str) else []
    return [Path(path) for path in found if Path(path).is_file()]


class ChatModel(LM):
    """A policy as the harness sees a model: contexts are chats, as with its `--apply_chat_template`."""

    tokenizer_name = "chat"

    def __init__(self, policy: Policy, scores: bool, seed: int, max_tokens: int) -> None:
        """`scores`: whether the engine can score given text. `max_tokens` is for tasks that do not say."""
        super().__init__()
        self._policy, self._scores, self._seed, self._max_tokens = policy, scores, seed, max_tokens
        self._answers: dict[str, list[Any]] = defaultdict(list)
        self.errors: dict[tuple[str, int], str] = {}
        """Why an item has no answer, by task and number of the item."""
        self.asked: dict[tuple[str, int], Asked] = {}
        """What was put to the model of each item."""
        self.replays = False
        """The items of which nothing failed are measured again: answers are those that were given before."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text, for the harness passes texts alone; `messages` reads it again."""
        return json.dumps(chat_history, ensure_ascii=False)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Σ log p of each continuation, and whether it is the greedy answer. That costs a request of its own, and
        is asked where an item has one continuation: a choice is made by likelihood alone.
        """
        if not self._scores and requests:
            raise FlywheelError(
                f"lm_eval task {requests[0].task_name!r} scores given answers, which the base's engine cannot; take "
                "tasks that generate (output_type: generate_until), or the engine transformers or vllm"
            )
        return self._each(requests, self._likelihoods, (IMPOSSIBLE, False))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raises FlywheelError: a chat model has no likelihood of text without a chat."""
        raise FlywheelError(f"lm_eval task {requests[0].task_name!r} is about the perplexity of raw text")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each chat, cut where the task says."""
        return self._each(requests, self._completions, "")

    def _each(
        self, requests: list[Instance], work: Callable[[list[Instance]], list[tuple[Any, str]]], empty: T
    ) -> list[T]:
        """The answer to each request; `empty` where it failed, which is told in `errors`."""
        if self.replays:
            answers = {k: iter(v) for k, v in self._answers.items()}
            return [next(answers[_key(request)]) for request in requests]
        replies = []
        for request, (answer, error) in zip(requests, work(requests), strict=True):
            item = (request.task_name or "", request.doc_id or 0)
            self.asked.setdefault(item, Asked(messages(request), request.args[1])).requests += 1
            if error:
                self.errors[item] = error
            else:
                self._answers[_key(request)].append(answer)
            replies.append(empty if error else answer)
        return replies

    def _likelihoods(self, requests: list[Instance]) -> list[tuple[Any, str]]:
        chats, texts = [messages(r) for r in requests], [r.args[1] for r in requests]
        scored = dict(self._policy.score(chats, texts))
        sizes = Counter((r.task_name, r.doc_id) for r in requests)
        alone = [n for n, r in enumerate(requests) if sizes[r.task_name, r.doc_id] == 1 and not scored[n].error]
        greedy = [Sampling(temperature=0.0, max_tokens=max(1, len(scored[n].logprobs))) for n in alone]
        asked = [Request(chats[n], sampling, 0) for n, sampling in zip(alone, greedy, strict=True)]
        drawn = dict(self._policy.sample(asked)) if asked else {}
        begun = {n: (drawn[k].text.strip() == texts[n].strip(), drawn[k].error) for k, n in enumerate(alone)}
        replies = []
        for n in range(len(requests)):
            is_greedy, error = begun.get(n, (False, None))
            replies.append(((sum(scored[n].logprobs), is_greedy), scored[n].error or error or ""))
        return replies

    def _completions(self, requests: list[Instance]) -> list[tuple[Any, str]]:
        draws: Counter[str] = Counter()
        asked = []
        for request in requests:
            name, sampling = _key(request), self._sampling(request)
            seed = seed_of(self._seed, "lm_eval", name, draws[name]) if sampling.temperature else 0
            draws[name] += 1
            asked.append(Request(messages(request), sampling, seed))
        drawn = dict(self._policy.sample(asked)) if asked else {}
        return [(drawn[n].text, drawn[n].error or "") for n in range(len(requests))]

    def _sampling(self, request: Instance) -> Sampling:
        """A task's `generation_kwargs`; a temperature counts where `do_sample` is set, as in the harness."""
        given = request.args[1]
        until = given.get("until") or []
        temperature = float(given.get("temperature", 1.0)) if given.get("do_sample") else 0.0
        return Sampling(
            temperature=temperature,
            top_p=float(given.get("top_p", 1.0)),
            max_tokens=int(given.get("max_gen_toks") or given.get("max_new_tokens") or self._max_tokens),
            stop=tuple([until] if isinstance(until, str) else until),
        )


@dataclass
class Asked:
    """What was put to the model of one item."""

    chat: Messages
    argument: Any
    """The generation's arguments, or the first continuation."""
    requests: int = 0

    @property
    def is_drawn(self) -> bool:
        """Whether the answer is a draw, and not the likeliest one."""
        return isinstance(self.argument, Mapping) and bool(self.argument.get("do_sample"))


def messages(request: Instance) -> Messages:
    """The chat of a request; one empty message where the harness asks without a context."""
    return turns(json.loads(request.args[0])) if request.args[0] else (("user", ""),)


def _key(request: Instance) -> str:
    return json.dumps([request.task_name, *request.args], ensure_ascii=False, sort_keys=True, default=str)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's remarks and bars, and without processes of its own for standard errors."""
    import datasets
    from lm_eval.api import task

    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    bars, given, bar = datasets.are_progress_bars_disabled(), os.environ.get("DISABLE_MULTIPROC"), task.tqdm
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    os.environ["DISABLE_MULTIPROC"] = "1"
    task.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        task.tqdm = bar
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        if given is None:
            del os.environ["DISABLE_MULTIPROC"]
