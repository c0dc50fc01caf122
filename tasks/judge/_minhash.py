"""Near-duplicates among any number of texts: MinHash (Broder 1997), bands of it as buckets, and Jaccard similarity itself.

A text is the set of its runs of tokens. Of 120 hash functions, the least value of each over that set is equal in two texts with a
probability that is the sets' Jaccard similarity; texts that agree in one of 20 bands of six such values share a bucket. Those of
similarity s do so with probability 1 − (1 − s⁶)²⁰: 99.8 % at 0.8, 91 % at 0.7. Only texts that share a bucket are compared, by
their sets, so that none is wrongly called near.
"""

import hashlib
import re
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
BANDS, VALUES = 20, 6
_random = np.random.default_rng(0)
FACTORS = _random.integers(2**64, size=(BANDS * VALUES, 1), dtype=np.uint64) | np.uint64(1)
TERMS = _random.integers(2**64, size=(BANDS * VALUES, 1), dtype=np.uint64)
COUNTED = 2**22
"""Buckets that are counted at once."""
COMPARED = 2**17
"""Texts that are compared at once."""
CROWD = 1000
"""Most texts of a bucket that later ones look at."""
CANDIDATES = 100
"""Most texts that one is compared with: those that share most buckets with it."""
HASHED = 2**12
"""Runs that are hashed at once."""
BUCKETS = [f"bucket {band}" for band in range(BANDS)]
NEAR = {"id": pl.String, "prompt_id": pl.String, "twin": pl.String, "similarity": pl.Float64}
IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
TOKEN = re.compile(rf"[{IDEOGRAPHS}]|[^\W{IDEOGRAPHS}]+|[^\w\s]")


def runs(text: str, size: int) -> Hashes:
    """Hashes, in order, of the runs of `size` tokens of a text in lower case; all its tokens where it has fewer. Tokens are words,
    and each sign and ideograph: `3 + 4` and `3 - 4` differ.
    """
    tokens = TOKEN.findall(text.lower())
    found = {" ".join(tokens[i : i + size]) for i in range(max(1, len(tokens) - size + 1))}
    return np.sort(np.fromiter((_hash(run.encode()) for run in found), np.uint64, len(found)))


def buckets(hashes: Hashes) -> list[int]:
    """The bucket of each band."""
    least = np.full(BANDS * VALUES, 2**64 - 1, np.uint64)
    for first in range(0, len(hashes), HASHED):
        values = hashes[first : first + HASHED] * FACTORS + TERMS  # modulo 2⁶⁴
        least = np.minimum(least, values.min(axis=1))
    return [_hash(bytes([band]) + row.tobytes()) for band, row in enumerate(least.reshape(BANDS, VALUES))]


def sketch(texts: pl.DataFrame, size: int) -> pl.DataFrame:
    """`texts` (`id`, `prompt_id`, `text`) with a `key`, a hash of the id, and the bucket of each band."""
    found = np.array([buckets(runs(text, size)) for text in texts["text"]], np.uint64).reshape(-1, BANDS)
    columns = (pl.Series(name, column) for name, column in zip(BUCKETS, found.T, strict=True))
    return texts.with_columns(pl.col("id").hash().alias("key"), *columns)


def near(sketches: pl.LazyFrame, size: int, min_similarity: float) -> pl.DataFrame:
    """Each text that is near one that comes before it, by id, and that stays: `twin`, the most similar such one, and their Jaccard
    `similarity`, at least `min_similarity`. What is near a dropped one alone stays.

    `sketches` are read a column at a time, in parts, so that memory is that of the texts that share a bucket: of these, their
    buckets' numbers, and the texts themselves of some at a time, but of all that are linked by buckets. In a bucket of more than
    a thousand texts that stay, as the fillings of one template make, only so many are looked at, so that some twins are missed
    there.
    """
    shared = list(_shared(sketches))
    if not shared:
        return pl.DataFrame(schema=NEAR)
    groups = _groups(shared).sort("group").with_row_index("row")
    whole = pl.col("row").min().over("group") // COMPARED  # no group is in two batches
    batches = groups.select("key", "group", batch=whole).partition_by("batch", maintain_order=True)

    def own(batch: pl.DataFrame) -> pl.DataFrame:
        found = pl.concat([frame.join(batch, on="key", how="semi") for frame in shared])
        return batch.join(found.group_by("key").agg("bucket"), on="key")

    return pl.concat([_compared(sketches, own(batch), size, min_similarity) for batch in batches])


def _compared(sketches: pl.LazyFrame, own: pl.DataFrame, size: int, min_similarity: float) -> pl.DataFrame:
    """The near ones among some texts (`key`, `bucket`, `group`), one group after the other."""
    copied = [
        pl.concat_str(name, pl.lit("")).alias(name) for name in ("id", "prompt_id", "text")
    ]  # not views of all texts
    texts = sketches.select("key", "id", "prompt_id", "text").join(own.lazy().select("key"), on="key", how="semi")
    rows = texts.select("key", *copied).collect(engine="streaming").join(own, on="key").sort("group", "id")
    found, group = [], None
    kept, names, places = list[Hashes](), list[str](), dict[int, list[int]]()
    for row in rows.iter_rows(named=True):
        if row["group"] != group:
            group, kept, names, places = row["group"], [], [], {}
        hashes, others = runs(row["text"], size), _others(places, row["bucket"])
        similarities = _similarities(hashes, [kept[n] for n in others])
        best = int(similarities.argmax()) if len(others) else 0
        if len(others) and similarities[best] >= min_similarity:
            found.append((row["id"], row["prompt_id"], names[others[best]], float(similarities[best])))
            continue
        for bucket in row["bucket"]:
            members = places.setdefault(bucket, [])
            if len(members) < CROWD:
                members.append(len(kept))
        kept.append(hashes)
        names.append(row["id"])
    return pl.DataFrame(found, schema=NEAR, orient="row")


def _others(places: dict[int, list[int]], own: list[int]) -> list[int]:
    """The kept texts that share most buckets with another, in their order."""
    lists = [places[bucket] for bucket in own if bucket in places]
    if sum(map(len, lists)) <= CANDIDATES:
        return sorted({n for members in lists for n in members})
    numbers, counts = np.unique(np.concatenate(lists), return_counts=True)
    most = np.argsort(-counts, kind="stable")[:CANDIDATES]
    return np.sort(numbers[most]).tolist()


def _similarities(hashes: Hashes, others: list[Hashes]) -> NDArray[np.float64]:
    """Jaccard similarities of a set to others."""
    if not others:
        return np.empty(0)
    sizes, all_hashes = np.array([len(other) for other in others]), np.concatenate(others)
    places = np.searchsorted(hashes, all_hashes).clip(max=len(hashes) - 1)
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    common = np.add.reduceat((hashes[places] == all_hashes).astype(np.int64), starts)
    return common / (sizes + len(hashes) - common)


def _shared(sketches: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """`key` and `bucket` of texts that share a bucket with another."""
    parts = 1 + sketches.select(pl.len()).collect(engine="streaming").item() // COUNTED
    for name in BUCKETS:
        for part in range(parts):
            own = sketches.select("key", bucket=name).filter(pl.col("bucket") % parts == part)
            counts = own.group_by("bucket").len().filter(pl.col("len") > 1).collect(engine="streaming")
            if len(counts):
                yield own.join(counts.lazy().select("bucket"), on="bucket", how="semi").collect(engine="streaming")


def _groups(shared: list[pl.DataFrame]) -> pl.DataFrame:
    """`key` and a number of the `group` within which buckets are shared, so that one group is compared after the other."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    keys = pl.concat([frame.select("key").unique() for frame in shared]).unique().sort("key")
    numbers, groups = keys.with_row_index("number"), np.arange(len(keys))
    for frame in shared:  # one after the other: links of all would be most of the memory
        members = frame.join(numbers, on="key").select("number", first=pl.col("number").min().over("bucket"))
        ends = groups[members["number"].to_numpy()], groups[members["first"].to_numpy()]
        links = coo_array((np.ones(len(members), bool), ends), shape=(groups.max() + 1,) * 2)
        groups = connected_components(links, directed=False)[1][groups]
    return keys.with_columns(group=pl.Series(groups, dtype=pl.Int64))


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
