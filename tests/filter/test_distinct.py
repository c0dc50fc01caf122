"""Different reasoning paths, as RFT tells them by their equations."""

import polars as pl
import pytest
from rounds import decide, ranks, reasons, response

from tasks.filter._paths import path
from tasks.filter.threshold import Threshold


@pytest.mark.parametrize(
    ("text", "equations"),
    [
        ("12 pens + 5 pens = 17 pens", "12+5=17"),
        ("Day 1: 12+5=17\nDay 2: 17/2=8\nAnswer: 8", "12+5=17\n17/2=8"),
        ("So 48/2 = <<48/2=24>>24 clips.", "48/2=24"),
        ("1. He has 3 pens and 4 × 5 = 20 cups.", "4*5=20"),
        ("2) 1,200 ÷ 4 = $300.", "1200/4=300"),
        ("3 x 4 = 12 and 12 - 2 = 10", "3*4=12\n12-2=10"),
        ("(2 + 3) * 4 = 5 * 4 = 20.", "(2+3)*4=5*4=20"),
        ("\\(0.5 \\times 8 = 4\\)", "0.5*8=4"),
        ("3 x 4 x 5 = **60** and 3x4=12", "3*4*5=60\n3*4=12"),
        ("2**3 = 8, 2 + x = 10", "2^3=8"),
        ("50% * 8 = 4", "50%*8=4"),
        ("1,234,567 + 1 = 1,234,568", "1234567+1=1234568"),
        ("5,000,000,000 / 2,500 = 2,000,000", "5000000000/2500=2000000"),
        ("3x4x5=60", "3*4*5=60"),
        ("It is eight.", "It is eight."),
        ("3 and 4", "3 and 4"),
        ("x = 5", "x = 5"),
    ],
)
def test_a_path_is_the_list_of_equations(text, equations):
    assert pl.select(path(pl.lit(text))).item() == equations


ROWS = [
    response("a1", 1.0, text="He finds 5: 12 + 5 = 17.\nAnswer: 17", mean_logprob=-0.1),
    response("a2", 1.0, text="12 pens + 5 pens = 17 pens, so 17", mean_logprob=-0.2),
    response("a3", 1.0, text="5+12=17", mean_logprob=-0.3),
    response("a4", 1.0, text="It is 17", mean_logprob=-0.4),
    response("b1", 1.0, text="12+5=17"),
]


def test_equal_paths_of_a_prompt_count_once_where_paths_are_asked_for():
    assert reasons(decide(Threshold(per_prompt=9, distinct="path"), ROWS))["a2"] == "duplicate"
    assert ranks(decide(Threshold(per_prompt=9, distinct="path"), ROWS)) == {"a1": 1, "a3": 2, "a4": 3, "b1": 1}
    assert ranks(decide(Threshold(per_prompt=9), ROWS)) == {"a1": 1, "a2": 2, "a3": 3, "a4": 4, "b1": 1}
