"""How many of the rows that rounds were trained on lead back to seeds and weights, by SQL over all rows at once.

A row leads back when every row that it names is stored, in its own round or where its stage reads ancestors in one of these,
and leads back itself; when the problem at the end is a seed's or a model's; and when all that a model wrote names weights
that a base or round holds or that the roster pins. A model that only a server has is known by its name alone: what a stage
that asked one has written counts as having an author.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.core import store
from tasks.core.ids import content_id
from tasks.core.plan import Plan
from tasks.core.plugin import load
from tasks.core.stage import stages
from tasks.prompts import FROZEN
from tasks.views import catalog
from tasks.views._lineage import LINKS, REPLAYED, Lineage, Link

TRAINED_ON = ("training", "preferences")
WALKED = ("prompts", "responses", "critiques", "refinements", *TRAINED_ON)
WRITTEN_BY = {
    "prompts": "source = 'model'",
    "responses": "error is null",
    "critiques": "error is null",
    "refinements": "error is null",
    "training": "true",
}
"""Tables whose rows name the weights that wrote them, and the rows that must."""
MAX_STRAYS = 3
"""Rows that are named of those that do not lead back."""


@dataclass(frozen=True)
class Share:
    """Of a table of a round, the rows that lead back."""

    round: str
    table: str
    rows: int
    reached: int
    strays: list[tuple[str, str]] = field(default_factory=list)
    """Id and reason of the first rows that do not."""


def walk(root: Path, rounds: Iterable[str] | None = None) -> list[Share]:
    """The share of training rows and preferences that lead back, of each round (all by default) that has any."""
    return catalog.consistently(root, lambda: _walk(root, rounds))


def show(shares: list[Share], console: Console) -> None:
    """Prints the shares, and the first rows that do not lead back."""
    grid = Table("round", "table", box=None, pad_edge=False)
    for head in ("rows", "lead back to seeds and weights", "share"):
        grid.add_column(head, justify="right")
    for s in shares:
        grid.add_row(s.round, s.table, f"{s.rows:,}", f"{s.reached:,}", f"{_percent(s)} %")
    console.print(grid if shares else Text("no round has been given rows to train on yet"))
    for share in shares:
        for id, why in share.strays:
            console.print(Text.assemble((f"{share.table} {share.round} {id}", "red"), f"  {why}"))


def _percent(share: Share) -> str:
    """Rounded down: 100 is all of them."""
    return f"{int(1000 * share.reached / share.rows) / 10:g}"


def _walk(root: Path, rounds: Iterable[str] | None) -> list[Share]:
    con = catalog.connect(root)
    lineage = Lineage(con)
    plans = [m.plan for name in lineage.rounds for m in store.manifests(root, name).values()]
    _register(con, lineage, plans)
    con.execute(f"create temp table edges as {' union all '.join(map(_edges, _walked_links()))}")
    con.execute(f"create temp table broken as {' union all '.join([_dangling(), *_unsigned()])}")
    con.execute("""
        create temp table strays as
        with recursive strays as (
          select kind, round, id, why from broken
          union
          select e.kind, e.round, e.id, s.why from edges e
          join strays s on e.parent_kind = s.kind and e.parent_round = s.round and e.target = s.id)
        select kind, round, id, min(why) as why from strays group by all""")
    names = set(lineage.rounds if rounds is None else rounds)
    return [share for name in lineage.rounds if name in names for t in TRAINED_ON if (share := _share(con, name, t))]


def _share(con: duckdb.DuckDBPyConnection, round: str, table: str) -> Share | None:
    given = {"round": round, "kind": table}
    [(rows,)] = con.sql(f"select count(*) from {table} where round = $round", params={"round": round}).fetchall()
    [(strays,)] = con.sql("select count(*) from strays where round = $round and kind = $kind", params=given).fetchall()
    first = f"select id, why from strays where round = $round and kind = $kind order by id limit {MAX_STRAYS}"
    return Share(round, table, rows, rows - strays, con.sql(first, params=given).fetchall()) if rows else None


# What is there


def _register(con: duckdb.DuckDBPyConnection, lineage: Lineage, plans: list[Plan]) -> None:
    """The tables `ancestry`, `seeds`, `weights`, `unpinned`."""
    ancestry = [(name, r, n) for name in lineage.rounds for n, r in enumerate(lineage.ancestors(name))]
    weights = {row["model"] for row in lineage.rounds.values() if row["model"]}
    weights |= {digest for plan in plans for model in plan.models.values() if (digest := model.get("digest"))}
    unpinned = [(p.round, t.name) for p in plans if _asks_server(p) for t in stages()[p.stage].tables]
    _table(con, "ancestry", {"round": pa.string(), "ancestor": pa.string(), "distance": pa.int64()}, ancestry)
    _table(con, "seeds", {"id": pa.string()}, [(id,) for id in sorted(set(_seeds(plans)))])
    _table(con, "weights", {"digest": pa.string()}, [(digest,) for digest in sorted(weights)])
    _table(con, "unpinned", {"round": pa.string(), "kind": pa.string()}, unpinned)


def _table(
    con: duckdb.DuckDBPyConnection, name: str, columns: dict[str, pa.DataType], rows: list[tuple[str | int, ...]]
) -> None:
    con.register(
        "_rows", pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows], pa.schema(columns))
    )
    con.execute(f"create temp table {name} as from _rows")
    con.unregister("_rows")


def _asks_server(plan: Plan) -> bool:
    return plan.stage in stages() and any(not model.get("digest") for model in plan.models.values())


def _seeds(plans: list[Plan]) -> Iterator[str]:
    """Ids of the problems of domains that authors were shown, which are in no table."""
    counts = {
        (plan.domain["strategy"], repr(plan.domain), member["seeds"]): plan.domain
        for plan in plans
        if plan.stage == "prompts" and plan.domain
        for member in plan.members.values()
        if isinstance(member.get("seeds"), int)
    }
    for (strategy, _, count), values in counts.items():
        domain = load("domains", strategy)(**{k: v for k, v in values.items() if k != "strategy"})
        yield from (content_id(item.problem, 0) for item in domain.items("seeds", count, FROZEN))


# Links


def _walked_links() -> list[Link]:
    return [link for link in LINKS if link.table in WALKED]


def _edges(link: Link) -> str:
    """Each row's link with the parent that it leads to, the nearest one; `parent_kind` is null where there is none."""
    target = f"unnest({link.column})" if link.is_list else link.column
    parents = " union all ".join(f"select '{t}' as kind, round, id from {t}" for t in link.parents)
    nearest = "a.distance > 0" if link.where == REPLAYED else "true" if link.of_ancestors else "a.distance = 0"
    return f"""
        select '{link.table}' as kind, c.round, c.id, '{link.column}' as link, c.target,
               arg_min(p.kind, a.distance) as parent_kind, arg_min(p.round, a.distance) as parent_round
        from (select round, id, {target} as target from {link.table} where {link.where}) c
        join ancestry a on a.round = c.round and ({nearest} or a.distance = 0)
        left join ({parents}) p on p.id = c.target and p.round = a.ancestor and {nearest}
        group by c.round, c.id, c.target"""


def _dangling() -> str:
    return """
        select kind, round, id, kind || ' ' || id || ' of ' || round || ' names no row: ' || link || ' is '
               || coalesce(target, 'empty') as why
        from edges where parent_kind is null and not (link = 'parents' and target in (select id from seeds))"""


def _unsigned() -> Iterator[str]:
    for table, where in WRITTEN_BY.items():
        yield f"""
            select '{table}', round, id, '{table} ' || id || ' of ' || round || ' was written by weights that no base, round '
                   || 'or roster has: ' || coalesce(model, 'none named')
            from {table} where {where} and coalesce(model, '') not in (select digest from weights)
            and (round, '{table}') not in (select (round, kind) from unpinned)"""
