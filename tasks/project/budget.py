"""What a campaign may spend, and whether it has.

    campaign: {name: arithmetic, budget: {tokens: 50_000_000, hours: 8, money: 20}}

The budget is that of one run: what earlier runs spent does not count. It is looked at after each stage, so the stage that
reaches it ends and may go beyond.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field, PositiveInt

from tasks.core import store
from tasks.core.plugin import Params


class Budget(Params):
    """Limits of what one run of the campaign spends; it stops after the stage in which the first of them is reached."""

    tokens: PositiveInt | None = None
    """Most tokens, read and generated, of all engines together; null has no limit."""
    hours: float | None = Field(None, gt=0)
    """Most hours in which stages run; null has no limit."""
    money: float | None = Field(None, gt=0)
    """Most money, by the `prices` of params.yaml; null has no limit."""


def reached(root: Path, addresses: Iterable[str]) -> str | None:
    """One sentence for a person when the stages at these addresses (as `generate@r2`) have spent the budget of params.yaml
    together; None while they have not, and without a budget.

    Raises:
        ParamsError: when the budget or the prices of params.yaml are invalid.
    """
    from tasks.project.costs import amount, of, prices_in
    from tasks.project.params import plain, read

    content = plain(read(root))
    budget = _budget(content)
    if budget is None:
        return None
    prices = prices_in(content)
    spent = of(_manifests(root, addresses), prices)
    limits = (
        ("tokens", spent.total_tokens, budget.tokens, "{:,}".format),
        ("hours", spent.hours, budget.hours, "{:,.4g}".format),
        ("money", spent.money, budget.money, amount),
    )
    for name, value, limit, text in limits:
        if limit is not None and value is not None and value >= limit:
            unit = ((prices and prices.currency) or "money") if name == "money" else name
            return (
                f"the budget is reached: {text(value)} {unit} spent, campaign.budget.{name} of params.yaml is "
                f"{limit:,}; raise it, or run the campaign again, which counts from nothing"
            )
    return None


def _budget(content: dict[str, object]) -> Budget | None:
    from tasks.project.problems import Problems

    campaign = content.get("campaign") or {}
    values = campaign.get("budget") if isinstance(campaign, dict) else None
    if values is None:
        return None
    problems = Problems("params.yaml")
    budget: Budget | None = problems.model(Budget, values, "campaign.budget")
    problems.raise_all()
    return budget


def _manifests(root: Path, addresses: Iterable[str]) -> Iterator[store.Manifest]:
    """Manifests of these stages; one that failed has none."""
    for address in dict.fromkeys(addresses):
        stage, _, name = address.partition("@")
        manifest = store.manifests(root, name).get(stage.removesuffix("-base"))
        if manifest is not None:
            yield manifest
