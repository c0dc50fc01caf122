"""A level of few steps has few stories: whoever asks for more gets them all, and no endless search."""

from tasks.domains import arithmetic
from tasks.domains.arithmetic import Arithmetic


def test_a_level_that_a_split_owns_no_more_stories_of_is_not_drawn_from_for_ever(monkeypatch):
    drawn, draw = [], arithmetic.draw
    monkeypatch.setattr(arithmetic, "draw", lambda *args: drawn.append(1) or draw(*args))
    few = Arithmetic(easiest=1, hardest=1)
    every = few.items("heldout", 2_000, 0)
    assert len(every) < 200
    enough = len(drawn)
    assert few.items("heldout", 4_000, 0) == every
    assert len(drawn) == 2 * enough < 20_000
