"""The integer constraint tuner against trying everything."""

import random

import pytest

from transduce.ops.tuner import Problem
from transduce.systems.training._flashrnn_check import everything, random_problem


def test_its_solutions_are_those_of_trying_everything():
    rng, empty, sizes = random.Random(0), 0, []
    for _ in range(200):
        problem, domains, relations = random_problem(rng)
        key = lambda found: sorted(tuple(sorted(at.items())) for at in found)
        got, want = key(problem.solutions()), key(everything(domains, relations))
        assert got == want
        empty += not want
        sizes.append(len(want))
    assert 10 < empty < 150 and max(sizes) > 50  # problems of every kind were among them


def test_a_power_with_a_variable_exponent():
    p = Problem()
    k, n = p.variable("k", range(9)), p.variable("n", range(1, 100))
    p.require((2**k).equals(n), n >= 10)
    assert [s["n"] for s in p.solutions()] == [16, 32, 64]
    q = Problem()
    q.require((q.variable("a", (2, 3)) ** q.variable("b", (-1, 1))) <= 9)
    with pytest.raises(ValueError, match="exponent"):
        list(q.solutions())


def test_the_best_tile():
    p = Problem()
    rows, vectors = p.variable("rows", range(1, 17)), p.variable("vectors", range(1, 9))
    p.require(rows * vectors + vectors + 1 <= 32, (vectors * 16).divides(1536))
    best = p.best(rows * vectors)
    assert best["rows"] * best["vectors"] == max(
        r * v for r in range(1, 17) for v in range(1, 9) if r * v + v + 1 <= 32 and 1536 % (16 * v) == 0
    )
    p.require(rows >= 99)
    with pytest.raises(ValueError, match="no values"):
        p.best(rows)
    with pytest.raises(ValueError, match="already"):
        p.variable("rows", (1,))
