"""What stages cost: tokens by engine, GPU hours and, with `prices:` in params.yaml, money.

    prices: {gpu_hour: 2.5, tokens: {openai: {prompt: 0.15, completion: 0.6}, large: 3}, currency: EUR}

Costs are worked out from manifests when they are asked for, so prices are in no plan and an edit of them makes nothing
stale. Answers from the request cache count as made: a stage that was killed and ran again has paid for them once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from tasks.core import store
from tasks.core.plan import Plan
from tasks.core.plugin import Params

MILLION, HOUR = 1_000_000, 3600
"""Tokens that a price is of, and seconds of an hour."""
Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TokenPrice(Params):
    """Price of a million tokens that are read (`prompt`) and that are generated (`completion`)."""

    prompt: Price = 0.0
    """Of a million prompt tokens."""
    completion: Price = 0.0
    """Of a million generated tokens."""


class Prices(Params):
    """Prices by which requests and GPU hours are money in `--dry-run`, report, SQL and MLflow. No stage depends on them."""

    tokens: dict[str, TokenPrice] = {}
    """Price of a million tokens by engine (`openai`) or model of the roster (`large`), which has its engine's price where it
    has none of its own: one number, or `{prompt: …, completion: …}`. What is not named costs nothing."""
    gpu_hour: Price = 0.0
    """Price of an hour of one GPU, for as long as a stage holds it."""
    currency: str = Field("", max_length=12)
    """Its name behind amounts, such as EUR."""

    @field_validator("tokens", mode="before")
    @classmethod
    def _same_for_both(cls, value: Any) -> Any:
        """A single number is the price of prompt and completion tokens alike."""
        if not isinstance(value, dict):
            return value
        alone = {k: v for k, v in value.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return value | {k: {"prompt": v, "completion": v} for k, v in alone.items()}

    @property
    def label(self) -> str:
        """`money`, with the currency where it has a name."""
        return f"money, {self.currency}" if self.currency else "money"

    def of(self, engines: Iterable[str], tokens: Mapping[str, float]) -> float:
        """Money for `prompt_tokens` and `completion_tokens` of a model, at the first of its names that has a price."""
        price = next((self.tokens[name] for name in engines if name in self.tokens), TokenPrice())
        prompt, completion = (tokens.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion"))
        return (prompt * price.prompt + completion * price.completion) / MILLION


@dataclass(frozen=True)
class Costs:
    """What some stages took."""

    requests: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    """Read and generated, by engine; a model of the roster stands under its own name."""
    hours: float = 0.0
    """Hours in which at least one of the stages ran, process start-up included."""
    gpu_hours: float = 0.0
    """Hours for which they held GPUs, summed over these."""
    money: float | None = None
    """None without prices."""
    money_label: str = "money"
    """What `money` is called: with the currency where prices name one."""

    @property
    def total_tokens(self) -> int:
        """Tokens of all engines."""
        return sum(self.tokens.values())


def amount(money: float) -> str:
    """Money as text: two decimals, four where it is less than a tenth."""
    return f"{money:,.2f}" if money >= 0.1 or not money else f"{money:.4f}"


def costs(root: Path, name: str) -> Costs:
    """What the stages of a base or round cost.

    Raises:
        ParamsError: when `prices` of params.yaml is invalid.
    """
    return of(store.manifests(root, name).values(), read_prices(root))


def read_prices(root: Path) -> Prices | None:
    """The prices of params.yaml; None without them. Nothing else of params.yaml is validated.

    Raises:
        ParamsError: when they are invalid.
    """
    from tasks.project.params import plain, read

    return prices_in(plain(read(root)))


def prices_in(content: Mapping[str, Any]) -> Prices | None:
    """The prices of a parsed params.yaml; None without them.

    Raises:
        ParamsError: when they are invalid.
    """
    from tasks.project.problems import Problems

    if content.get("prices") is None:
        return None
    problems = Problems("params.yaml")
    prices: Prices | None = problems.model(Prices, content["prices"], "prices")
    problems.raise_all()
    return prices


def of(manifests: Iterable[store.Manifest], prices: Prices | None) -> Costs:
    """What the stages of these manifests cost together."""
    ran = list(manifests)
    tokens: dict[str, int] = {}
    for model, used in (item for m in ran for item in usage(m).items()):
        tokens[model[0]] = tokens.get(model[0], 0) + used["prompt_tokens"] + used["completion_tokens"]
    return Costs(
        sum(m.tokens.get("requests", 0) for m in ran),
        {name: count for name, count in sorted(tokens.items()) if count},
        _hours(ran),
        sum(m.gpu_seconds for m in ran) / HOUR,
        None if prices is None else sum(money(m, prices) for m in ran),
        prices.label if prices else "money",
    )


def money(manifest: store.Manifest, prices: Prices) -> float:
    """Money for a stage: its tokens at the prices of their engines, and its GPU hours."""
    tokens = sum(prices.of(names, used) for names, used in usage(manifest).items())
    return tokens + prices.gpu_hour * manifest.gpu_seconds / HOUR


def usage(manifest: store.Manifest) -> dict[tuple[str, ...], dict[str, int]]:
    """Requests and tokens of a stage by the names under which their model has a price, the nearest first."""
    by_model = manifest.usage or ({"": manifest.tokens} if any(manifest.tokens.values()) else {})
    used: dict[tuple[str, ...], dict[str, int]] = {}
    for model, counts in by_model.items():
        names = engines_of(manifest.plan, model)
        before = used.get(names, {})
        used[names] = {
            k: before.get(k, 0) + counts.get(k, 0) for k in ("requests", "prompt_tokens", "completion_tokens")
        }
    return used


def engines_of(plan: Plan, model: str) -> tuple[str, ...]:
    """The names under which a stage's model has a price: of the roster's, its own and its engine's; else the engine's."""
    own = plan.models.get(model)
    engine = str((own["engine"] if own else plan.engine or {}).get("strategy", "unknown"))
    return (model, engine) if own and model != engine else (engine,)


def _hours(manifests: list[store.Manifest]) -> float:
    """Hours covered by the stages' times together, for stages may run side by side."""
    ends = [(datetime.fromisoformat(m.finished).timestamp(), sum(m.seconds.values())) for m in manifests if m.finished]
    covered, until = 0.0, float("-inf")
    for start, end in sorted((end - seconds, end) for end, seconds in ends):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered / HOUR
