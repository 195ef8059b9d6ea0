"""The integer constraint tuner against trying everything."""

import itertools
import random

import pytest

from transduce.ops.tuner import Problem


def random_problem(rng):
    """A problem over up to four variables with up to four relations, and a function that tries everything."""
    problem, domains = Problem(), {}
    for name in "abcd"[: rng.randint(1, 4)]:
        domains[name] = rng.sample(range(-3, 13), rng.randint(1, 6))
    terms = {n: problem.variable(n, values) for n, values in domains.items()}

    def term(depth=2):
        kind = rng.choice(("name", "number", "+", "*", "-", "square") if depth else ("name", "number"))
        if kind == "name":
            return terms[rng.choice(list(terms))]
        if kind == "number":
            return rng.randint(-2, 14)
        if kind == "square":
            left = term(depth - 1)
            return left ** rng.randint(0, 3)
        left, right = term(depth - 1), term(depth - 1)
        return left + right if kind == "+" else left - right if kind == "-" else left * right

    relations = []
    for _ in range(rng.randint(1, 2)):
        left, right = terms[rng.choice(list(terms))] * 1 + term(), term()
        relations.append(rng.choice((lambda a, b: a <= b, lambda a, b: a >= b, lambda a, b: a.equals(b), lambda a, b: a.divides(b)))(left, right))
    problem.require(*relations)
    return problem, domains, relations


def everything(domains, relations):
    for values in itertools.product(*domains.values()):
        at = dict(zip(domains, values))
        if all(r.holds(at) for r in relations):
            yield at


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
