"""What can be wrong with params.yaml and with recipes, each with the place and a word of the message that names it."""

import copy
from pathlib import Path
from typing import Any

import projects
from ruamel.yaml import YAML

RECIPE = "recipes/small.yaml: stages"
SET = "rounds.r1.set"
FAKE = "engine: {strategy: fake}"
WRONG = {
    "campain={}": ("campain", "'campaign'"),
    "campaign/nome=x": ("campaign.nome", "'name'"),
    "campaign/name=tom's": ("campaign.name", "pattern"),
    "campaign=[x]": ("campaign", "block"),
    "campaign/budget=5": ("campaign.budget", "5"),
    "campaign/budget={token: 5}": ("campaign.budget.token", "'tokens'"),
    "campaign/budget={hours: 0}": ("campaign.budget.hours", "greater than 0"),
    "campaign/budget={money: 5}": ("campaign.budget.money", "prices"),
    "prices=5": ("prices", "block"),
    "prices={gpu_hours: 5}": ("prices.gpu_hours", "'gpu_hour'"),
    "prices={gpu_hour: -1}": ("prices.gpu_hour", "greater than or equal to 0"),
    "prices={tokens: {opnai: 1}}": ("prices.tokens.opnai", "'openai'"),
    "prices={tokens: {openai: {promt: 1}}}": ("prices.tokens.openai.promt", "'prompt'"),
    "prices={tokens: {openai: cheap}}": ("prices.tokens.openai", "cheap"),
    "prices={tokens: {openai: true}}": ("prices.tokens.openai", "True"),
    "defaults/recip=x": ("defaults.recip", "'recipe'"),
    "defaults/recipe=smal": ("defaults.recipe", "'small'"),
    "rounds/r1/set={judge.critic: {strategy: logprob}}": ("rounds.r1.set.judge.critic", "choose another"),
    "rounds/r1/set={where.strategy: processes}": ("rounds.r1.set.where.strategy", "beside `set`"),
    "rounds/r1/anchor=": ("rounds.r1.anchor", "null"),
    "models={big: {engine: {strategy: openai}}}": ("models.big", "engine.model"),
    "bases/r0/gate/errors={strategy: improves}": ("bases.r0.gate.errors", "choose another"),
    "bases/r0/gate/member=cold": ("bases.r0.gate.member", "known: answers"),
    "bases/r0/evaluate/answers/splits=[heldout]": ("bases.r0.gate.split", "'validation'"),
    "bases-": ("bases", "missing"),
    "bases={}": ("bases", "at least one"),
    "bases/r0=[]": ("bases.r0", "block"),
    "bases/r0/generate={}": ("bases.r0.generate", "unknown"),
    "bases/r0/parent=r1": ("bases.r0.parent", "unknown"),
    "bases/r0/seed=0.5": ("bases.r0.seed", "whole number"),
    "bases/r0/domain-": ("bases.r0.domain", "missing"),
    "bases/r0/domain=": ("bases.r0.domain", "strategy"),
    "bases/r0/domain/strategy=maths": ("bases.r0.domain", "'math'"),
    "bases/r0/domain={strategy: math, test: data/seeds/b}": ("bases.r0.domain.train", "missing"),
    "bases/r0/domain={strategy: math, train: /data/a, test: data/seeds/b}": ("bases.r0.domain.train", "data/seeds"),
    "bases/r0/engine=fake": ("bases.r0.engine", "strategy"),
    "bases/r0/engine/strategy=vlm": ("bases.r0.engine", "'vllm'"),
    "bases/r0/engine/error_rate=2": ("bases.r0.engine.error_rate", "less than or equal to 1"),
    "bases/r0/engine/eror_rate=0": ("bases.r0.engine.eror_rate", "'error_rate'"),
    "bases/r0/base-": ("bases.r0.base", "missing"),
    "bases/r0/base={strategy: lokal}": ("bases.r0.base.lokal", "'local'"),
    "bases/r0/base={local: {path: x}, scratch: {}}": ("bases.r0.base", "local, scratch"),
    "bases/r0/evaluate-": ("bases.r0.evaluate", "missing"),
    "bases/r0/evaluate={}": ("bases.r0.evaluate", "at least one"),
    "bases/r0/evaluate/answrs={}": ("bases.r0.evaluate.answrs", "'answers'"),
    "bases/r0/evaluate/answers/greedy=many": ("bases.r0.evaluate.answers.greedy", "'many'"),
    "bases/r0/evaluate/answers=3": ("bases.r0.evaluate.answers", "3"),
    "bases/r0/evaluate/answers/greedy=21": (f"{RECIPE}.prompts.seeds.evaluation", "heldout: 21"),
    "bases/r0/gate={improvs: {}}": ("bases.r0.gate.improvs", "'improves'"),
    "bases/r0/evaluate={panel: {answers: {}}}": ("bases.r0", "evaluate.panel"),
    "bases/r0/files=data/seeds/none": ("bases.r0", "files"),
    "rounds=[r1]": ("rounds", "['r1']"),
    "rounds/r1=[]": ("rounds.r1", "block"),
    "rounds/R 9={parent: r0, base: r0}": ("rounds.R 9", "lower-case"),
    "rounds/r0={parent: r0, base: r0}": ("rounds.r0", "rename"),
    "rounds/r1/genrate={}": ("rounds.r1.genrate", "unknown"),
    "rounds/r2/parent-": ("rounds.r2.parent", "missing"),
    "rounds/r2/base-": ("rounds.r2.base", "missing"),
    "rounds/r2/base=r1": ("rounds.r2.base", "base: r0"),
    "rounds/r2/parent=r11": ("rounds.r2.parent", "'r1'"),
    "rounds/r1/parent=[r0]": ("rounds.r1.parent", "['r0']"),
    "rounds/r1/parent=r1": ("rounds.r1.parent", "r1 → r1"),
    "rounds/r1/parent=r2": ("rounds.r1.parent", "r1 → r2 → r1"),
    "rounds/r1/anchor=r1": ("rounds.r1.anchor", "r1 → r1"),
    "rounds/r1/anchor=r2": ("rounds.r1.anchor", "r1 → r2 → r1"),
    "rounds/r2/anchor=r9": ("rounds.r2.anchor", "'r9'"),
    "rounds/r1/seed=-3": ("rounds.r1.seed", "-3"),
    "rounds/r1/seed=true": ("rounds.r1.seed", "True"),
    "rounds/r1/recipe=smal": ("rounds.r1.recipe", "'small'"),
    "rounds/r1/recipe=[small]": ("rounds.r1.recipe", "'small'"),
    "rounds/r1/set=3": (SET, "3"),
    "rounds/r1/set={genrate.sample.samples: 1}": (f"{SET}.genrate.sample.samples", "'generate'"),
    "rounds/r1/set={generate: 3}": (f"{SET}.generate", "3"),
    "rounds/r1/set={generate.sample: 3}": (f"{SET}.generate.sample", "3"),
    "rounds/r1/set={generate.smaple.samples: 1}": (f"{SET}.generate.smaple", "'sample'"),
    "rounds/r1/set={generate.hot.strategy: smaple}": (f"{SET}.generate.hot", "'sample'"),
    "rounds/r1/set={generate.Hot.strategy: sample}": (f"{SET}.generate.Hot", "lower-case"),
    "rounds/r1/set={generate: {sample: {temprature: 1}}}": (f"{SET}.generate.sample.temprature", "'temperature'"),
    "rounds/r1/set={generate.sample.temperature: -1}": (f"{SET}.generate.sample.temperature", "-1"),
    "rounds/r1/set={generate.sample: }": (f"{SET}.generate", "at least one"),
    "rounds/r1/set={judge.verfier: }": (f"{SET}.judge.verfier", "'verifier'"),
    "rounds/r1/set={judge.reward: votes}": (f"{SET}.judge.reward", "'votes'"),
    "rounds/r1/set={filter.threshold.require: {verfier: 1}}": (f"{SET}.filter.threshold.require.verfier", "'verifier'"),
    "rounds/r1/set={filter.strategy: process_outcome, filter.process: verfier}": (
        f"{SET}.filter.process_outcome.process", "'verifier'",
    ),
    "rounds/r1/set={pair.agreed.judges: {verifier: 0, self_juge: 0.1}}": (f"{SET}.pair.agreed.judges.self_juge", "'self_judge'"),
    "rounds/r1/set={filter.threshold.rank_by: log_prob}": (f"{SET}.filter.threshold.rank_by", "'logprob'"),
    "rounds/r1/set={filter.min_reward: 0.5}": (f"{SET}.filter.min_reward", "threshold"),
    "rounds/r1/set={filter.threshold: {}, filter.top_fraction: {}}": (f"{SET}.filter", "threshold, top_fraction"),
    "rounds/r1/set={filter.threshold: }": (f"{SET}.filter", "none"),
    "rounds/r1/set={prompts.seeds.path: other/mine.jsonl}": (f"{SET}.prompts.seeds.path", "data/seeds"),
    "rounds/r1/set={prompts.seeds.path: data/seeds/../x}": (f"{SET}.prompts.seeds.path", "data/seeds"),
    "rounds/r1/set={prompts.seeds.evaluation: {heldout: 50}}": (f"{SET}.prompts.seeds.evaluation", "gold: 7"),
    "rounds/r1/set={generate: {sample: {samples: 1}}, generate.sample.samples: 2}": (
        f"{SET}.generate.sample.samples", "twice"),
    "rounds/r1/set={engine: fake}": (f"{SET}.engine", "'fake'"),
    "rounds/r1/set={engine.strategy: vlm}": (f"{SET}.engine", "'vllm'"),
    "rounds/r1/set={engine: {error_rate: 3}}": (f"{SET}.engine.error_rate", "3"),
    "rounds/r1/set={engine.context: 9}": (f"{SET}.engine.context", "unknown"),
    "rounds/r1/set={generate.sample.model: techer}": (f"{SET}.generate.sample.model", "'techer'"),
    "rounds/r1/set={generate.sample.model: anchor}": (f"{SET}.generate.sample.model", "anchor: NAME in rounds.r1"),
    "rounds/r1/set={generate.sample.model: grandparent}": (f"{SET}.generate.sample.model", "grandparent"),
    "rounds/r1/set={collect.replay.of: anchor}": (f"{SET}.collect.replay.of", "anchor"),
    f"models={{parent: {{{FAKE}}}}}": ("models.parent", "another name"),
    f"models={{model: {{{FAKE}}}}}": ("models.model", "another name"),
    f"models={{The Teacher: {{{FAKE}}}}}": ("models.The Teacher", "lower-case"),
    "models={t: {}}": ("models.t.engine", "missing"),
    "models={t: {engine: fake}}": ("models.t.engine", "strategy"),
    "models={t: {engine: {strategy: vlm}}}": ("models.t.engine", "'vllm'"),
    "models={t: {engine: {strategy: fake, error_rate: 2}}}": ("models.t.engine", "error_rate"),
    "models={t: {engine: {strategy: transformers}}}": ("models.t", "`path`"),
    "models={t: {engine: {strategy: transformers}, path: data/base}}": ("models.t", "digest"),
    f"models={{t: {{{FAKE}, path: data/round=r1/model, digest: {'a' * 64}}}}}": ("models.t", "`anchor`"),
    f"models={{t: {{{FAKE}, digest: abc}}}}": ("models.t.digest", "pattern"),
}  # fmt: skip
"""By an edit of params.yaml: keys parted by `/`, and the value; `-` takes the key away."""

EXAM = {
    "evaluate.answers.temperature: 0.1": "evaluate.answers.temperature",
    "evaluate: {answers: {sampled: 5}}": "evaluate.answers.sampled",
    "evaluate.hard: {strategy: answers}": "evaluate.hard.strategy",
    "gate.improves: ": "gate.improves",
    "gate.improves.min_gain: -1": "gate.improves.min_gain",
    "domain.strategy: chat": "domain.strategy",
    "base: {local: {path: data/other}}": "base.local.path",
}
"""What a round may not set, with the place that names it."""

RECIPES = {
    "titel=x": ("recipes/small.yaml", "titel"),
    "title-": ("recipes/small.yaml", "title"),
    "stages-": ("recipes/small.yaml", "stages"),
    "stages=[]": ("recipes/small.yaml", "stages"),
    "stages/evaluate={answers: {}}": (f"{RECIPE}.evaluate", "base's"),
    "stages/domain={strategy: chat}": (f"{RECIPE}.domain", "base's"),
    "stages/genrate={}": (f"{RECIPE}.genrate", "'generate'"),
    "stages/generate-": (f"{RECIPE}.generate", "at least one"),
    "stages/generate={}": (f"{RECIPE}.generate", "at least one"),
    "stages/generate=[sample]": (f"{RECIPE}.generate", "block"),
    "stages/judge/reward-": (f"{RECIPE}.judge.reward", "missing"),
    "stages/judge/reward=votes": (f"{RECIPE}.judge.reward", "'votes'"),
    "stages/judge/panel={}": (f"{RECIPE}.judge.panel", "gone"),
    "stages/judge/verfier={}": (f"{RECIPE}.judge.verfier", "'verifier'"),
    "stages/judge/second={strategy: verfier}": (f"{RECIPE}.judge.second", "'verifier'"),
    "stages/judge/self_judge/likliest=2": (f"{RECIPE}.judge.self_judge.likliest", "'likeliest'"),
    "stages/generate/sample/samples=0": (f"{RECIPE}.generate.sample.samples", "greater than 0"),
    "stages/generate/sample/model=anchor": (f"{RECIPE}.generate.sample.model", "rounds.r1"),
    "stages/filter={}": (f"{RECIPE}.filter", "none"),
    "stages/filter={strategy: threshhold}": (f"{RECIPE}.filter.threshhold", "'threshold'"),
    "stages/train={sft: {}, sft_dpo: {}}": (f"{RECIPE}.train", "sft, sft_dpo"),
    "stages/prompts/seeds/evaluation/gold=6": (f"{RECIPE}.prompts.seeds.evaluation", "gold: 7"),
    "stages/prompts/seeds/path=mine.jsonl": (f"{RECIPE}.prompts.seeds.path", "data/seeds"),
}
"""By an edit of the recipe `small`."""


def edited(content: dict[str, Any], *edits: str) -> dict[str, Any]:
    """A copy with values assigned at paths."""
    content = copy.deepcopy(content)
    for edit in edits:
        path, _, value = edit.partition("=")
        *parents, last = path.removesuffix("-").split("/")
        at = content
        for key in parents:
            at = at[key]
        if path.endswith("-"):
            del at[last]
        else:
            at[last] = YAML(typ="safe").load(value)
    return content


def edit_recipe(root: Path, *edits: str) -> dict[str, Any]:
    """Edits the recipe `small` of a project; gives what it holds then."""
    path = root / "recipes/small.yaml"
    content = edited(projects.plain(YAML().load(path)), *edits)
    YAML().dump(content, path)
    return content
