"""Farthest-point choice in the hidden states, worked by hand."""

import numpy as np
import pytest
from rounds import decide, ranks, reasons, response

from tasks.core import roster
from tasks.engines.transformers import Transformers
from tasks.filter.novelty import Novelty
from tasks.filter.representation import Representation, farthest_first

# distances from a: b 0.2, c 0.4, d 1, e 2; from e, chosen next: b 1.8, c 1.6, d 1; from d: b 0.4, c 0.2
VECTORS = {"a": (1.0, 0.0), "b": (0.8, 0.6), "c": (0.6, 0.8), "d": (0.0, 2.0), "e": (-1.0, 0.0)}
ROWS = [response(name, score) for name, score in zip("abcde", [0.5, 0.9, 0.4, 0.6, 0.7], strict=True)]


def test_the_farthest_from_those_kept_is_taken_over_the_whole_round():
    decisions = decide(Representation(count=3), ROWS, VECTORS)
    assert reasons(decisions) == {"a": None, "b": "near", "c": "near", "d": None, "e": None}
    margins = {id: row["margin"] for id, row in decisions.items()}
    assert margins == {k: v if v is None else pytest.approx(v) for k, v in
                       {"a": None, "e": 2.0, "d": 1.0, "b": 1.0 - 0.2, "c": 1.0 - 0.4}.items()}  # fmt: skip


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.2, 1), (0.5, 2), (0.6, 3), (1.0, 5)])
def test_a_share_of_the_candidates_is_kept(share, count):
    kept = ranks(decide(Representation(fraction=share), ROWS, VECTORS))
    assert list(kept) == sorted("aedcb"[:count])


def test_a_share_is_rounded_down_as_decimals_are():
    rows = [response(f"p{n:02}", 1.0) for n in range(100)]
    vectors = {row["id"]: (float(n), 1.0) for n, row in enumerate(rows)}
    assert len(ranks(decide(Representation(per_prompt=100, fraction=0.29), rows, vectors))) == 29


def test_only_candidates_above_the_reward_count():
    decisions = decide(Representation(count=9, min_reward=0.6), ROWS, VECTORS)
    assert reasons(decisions) == {"a": "score", "b": None, "c": "score", "d": None, "e": None}
    assert decisions["a"]["margin"] == pytest.approx(0.1)


def test_the_kept_of_a_prompt_are_ranked_by_reward():
    rows = [response(n, s, text=n[-1]) for n, s in {"pa": 0.5, "pb": 0.4, "pe": 0.9, "pd": 0.7, "pc": 0.1}.items()]
    decisions = decide(Representation(per_prompt=3, count=2), rows, VECTORS)
    assert ranks(decisions) == {"pe": 1, "pa": 2}
    assert reasons(decisions) == {"pa": None, "pb": "rank", "pc": "score", "pd": "near", "pe": None}


def test_what_has_no_vector_is_dropped():
    decisions = decide(Representation(count=9), [*ROWS, response("f", 1.0)], VECTORS)
    assert decisions["f"]["reason"] == "no_vector"
    assert len(ranks(decisions)) == 5


def test_the_order_of_rows_does_not_matter():
    assert decide(Representation(), ROWS[::-1], VECTORS) == decide(Representation(), ROWS, VECTORS)


def test_as_the_plain_loop_chooses():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    kept = [0]
    while len(kept) < 10:
        gaps = {n: min(1 - vectors[n] @ vectors[k] for k in kept) for n in range(30) if n not in kept}
        last = max(gaps.values())
        kept.append(max(gaps, key=lambda n: gaps[n]))
    order, distances = farthest_first(vectors, 10)
    assert order == kept
    assert distances[order[-1]] == pytest.approx(last)
    assert distances[[n for n in range(30) if n not in kept]] == pytest.approx(
        [gaps[n] for n in range(30) if n not in kept]
    )


@pytest.mark.parametrize("strategy", [Representation(per_prompt=3, count=2), Novelty(per_prompt=2)])
def test_a_real_models_hidden_states(strategy, tiny_model):
    rows = [response(f"p{n}", 1.0, text=text) for n, text in enumerate(["12+5=17", "12+5=17 pens", "I cannot say"])]
    models = roster.one(Transformers(), tiny_model)
    decisions = decide(strategy, rows, models=models)
    models.close()
    assert len(ranks(decisions)) == 2
    assert models.total("requests") == 3
