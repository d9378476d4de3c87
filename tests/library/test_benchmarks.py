"""How the benchmarks measure: side by side, turn about, longer where it is close."""
import itertools

import pytest

from benchmarks.timing import side_by_side


def measured(mine, base, **kwargs):
    "What comes out of times that are given, and the order in which they were taken."
    times, order = {"mine": itertools.cycle(mine), "base": itertools.cycle(base)}, []

    def clock(name):
        order.append(name)
        return next(times[name])
    return side_by_side(lambda: ("mine", "base"), clock=clock, **kwargs), order


def test_the_least_counts_and_the_first_round_does_not():
    (mine, base, over, rounds), order = measured([0.1, 5., 2., 3.], [0.1, 1., 4., 2.], each=3, fresh=2)
    assert (mine, base, over, rounds) == (2., 1., 1., 6)
    assert order[:6] == ["base", "mine", "mine", "base", "base", "mine"]    # turn about


@pytest.mark.parametrize("budget, rounds", [(None, 4), (0.6, 4), (0.1, 12), (-0.5, 12)])
def test_what_is_over_its_budget_is_measured_on(budget, rounds):
    "Three times as long, whatever is seen meanwhile: it does not stop when it is green."
    mine = [9., 3., 3., 9., 3., 3., 9., 2., 2.]
    assert measured(mine, [9., 2., 2.], each=2, fresh=2, budget=budget)[0][3] == rounds
