"""EVOL-RL's novelty within and across the majority and the minority of a prompt, worked by hand."""

import numpy as np
import pytest
from rounds import decide, ranks, reasons, response

from tasks.filter.novelty import Novelty, novelty, scaled

# unit vectors: cosines a1·a2 0.8, a1·a3 0.6, a2·a3 0.96, a1·b 0, a2·b 0.6, a3·b 0.8 (b the only minority sample)
A1, A2, A3, B = (1.0, 0.0), (0.8, 0.6), (0.6, 0.8), (0.0, 1.0)
VECTORS = {"a1": A1, "a2": (1.6, 1.2), "a3": A3, "a4": B}
# u: a1 1 - (0.7 + 0.8)/2 = 0.25; a2 1 - (0.88 + 0.96)/2 = 0.08; a3 1 - (0.78 + 0.96)/2 = 0.13
U = [1.0, 0.0, (0.13 - 0.08) / (0.25 - 0.08), 1.0]
ROWS = [response(f"a{n}", 0.75) for n in (1, 2, 3)] + [response("a4", 0.25)]


def test_u_is_scaled_within_the_majority_and_the_minority():
    majority = np.array([True, True, True, False])
    assert novelty(np.array([A1, A2, A3, B]), majority) == pytest.approx(U, abs=1e-9)


def test_two_groups_of_two():
    """A negative cosine counts as 0."""
    vectors = np.array([[-0.6, -0.8], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6]])
    majority = np.array([True, True, False, False])
    cosines = np.clip(vectors @ vectors.T, 0, 1)
    assert cosines[2, 3] == pytest.approx(0.6)
    # a1 1 - 0 = 1, a2 1 - (0 + 0.96)/2 = 0.52; b1 1 - (0.6 + 0.8)/2 = 0.3, b2 1 - (0.6 + 0.96)/2 = 0.22
    assert novelty(vectors, majority) == pytest.approx([1, 0, 1, 0])


def test_the_majority_is_kept_most_novel_first():
    decisions = decide(Novelty(per_prompt=3), ROWS, VECTORS)
    assert ranks(decisions) == {"a1": 1, "a3": 2, "a2": 3}
    assert decisions["a1"]["margin"] == pytest.approx(0.5)
    assert decisions["a2"]["margin"] == pytest.approx(0.0)
    assert decisions["a3"]["margin"] == pytest.approx(U[2] / 2)
    assert (decisions["a4"]["reason"], decisions["a4"]["margin"]) == ("novelty", pytest.approx(1.0))  # it has -0.5
    assert [row["score"] for row in decisions.values()] == [0.75, 0.75, 0.75, 0.25]


def test_the_best_of_a_prompt_and_a_higher_threshold():
    assert ranks(decide(Novelty(), ROWS, VECTORS)) == {"a1": 1}
    assert reasons(decide(Novelty(), ROWS, VECTORS))["a3"] == "rank"
    decisions = decide(Novelty(per_prompt=9, min_score=0.7), ROWS, VECTORS)
    assert reasons(decisions) == {"a1": None, "a2": "novelty", "a3": "novelty", "a4": "novelty"}
    assert decisions["a3"]["margin"] == pytest.approx(0.2 - U[2] / 2)
    assert set(ranks(decide(Novelty(per_prompt=9, min_score=-1.0), ROWS, VECTORS))) == {"a1", "a2", "a3", "a4"}


def test_the_majority_is_what_the_reward_judge_passes():
    rows = [response("a1", 0.9, "fail"), response("a2", 0.2, "pass"), response("a3", 0.2, "pass")]
    assert set(ranks(decide(Novelty(per_prompt=3), rows, VECTORS))) == {"a2", "a3"}
    failed = [response("a1", 0.0, "fail"), response("a2", 0.0, "fail")]
    assert ranks(decide(Novelty(per_prompt=3), failed, VECTORS)) == {}
    tied = [response("a1", 0.4), response("a2", 0.4), response("a3", 0.2, "fail")]
    assert set(ranks(decide(Novelty(per_prompt=3), tied, VECTORS))) == {"a1", "a2"}


def test_what_is_unusable_or_has_no_vector_is_no_neighbour():
    rows = [*ROWS, response("a5", 0.75, text="a2", answer=None), response("a6", 0.75)]
    decisions = decide(Novelty(per_prompt=3), rows, VECTORS)
    assert (decisions["a5"]["reason"], decisions["a6"]["reason"]) == ("format", "no_vector")
    assert decisions["a3"]["margin"] == pytest.approx(U[2] / 2)


@pytest.mark.parametrize(
    ("values", "wanted"), [([0.3], [1]), ([0.3, 0.3], [0.5, 0.5]), ([], []), ([1, 3, 2], [0, 1, 0.5])]
)
def test_scaling(values, wanted):
    assert scaled(np.array(values, float)) == pytest.approx(wanted)


def test_a_prompts_only_sample_is_kept():
    decisions = decide(Novelty(), [response("a1", 0.1)], VECTORS)
    assert decisions["a1"]["margin"] == pytest.approx(0.5)
