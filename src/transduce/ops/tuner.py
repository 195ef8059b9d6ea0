"""Small integer constraint problems, solved exactly: which tile sizes fit registers, caches and divisibility.

::

    p = Problem()
    rows, vectors = p.variable("rows", range(1, 17)), p.variable("vectors", range(1, 9))
    p.require(rows * vectors + vectors + 1 <= 32)          # accumulators, a row of weights, one number of the state
    p.require((vectors * 16).divides(1536))
    p.best(rows * vectors)                                 # {"rows": 7, "vectors": 4}

Terms are made of variables and integers by ``+``, ``-``, ``*`` and ``**``; relations are ``<=``, ``>=``, ``equals`` and
``divides``. Domains are narrowed until nothing changes (a value goes when no value of the others, taken as ranges, can
satisfy a relation), then values are tried, the narrowest domain first, narrowing again behind each choice. The idea of
choosing a kernel's tiles so is from FlashRNN (arXiv 2412.07752, section 4.3: ConstrINT).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping

Domains = dict[str, tuple[int, ...]]
Range = tuple[int, int]


class Term(ABC):
    """An integer expression."""

    @abstractmethod
    def value(self, at: Mapping[str, int]) -> int: ...

    @abstractmethod
    def range(self, ranges: Mapping[str, Range]) -> Range:
        """Bounds of the value, each variable within its range (safe, not always tight)."""

    @abstractmethod
    def names(self) -> frozenset[str]: ...

    def __add__(self, other: Term | int) -> Term:
        return _Binary("+", self, as_term(other))

    def __mul__(self, other: Term | int) -> Term:
        return _Binary("*", self, as_term(other))

    def __pow__(self, other: Term | int) -> Term:
        return _Binary("**", self, as_term(other))

    def __neg__(self) -> Term:
        return self * -1

    def __sub__(self, other: Term | int) -> Term:
        return self + -as_term(other)

    def __rsub__(self, other: int) -> Term:
        return as_term(other) - self

    def __rpow__(self, other: int) -> Term:
        return as_term(other) ** self

    __radd__, __rmul__ = __add__, __mul__

    def __le__(self, other: Term | int) -> Relation:
        return Relation("<=", self, as_term(other))

    def __ge__(self, other: Term | int) -> Relation:
        return Relation("<=", as_term(other), self)

    def equals(self, other: Term | int) -> Relation:
        return Relation("==", self, as_term(other))

    def divides(self, other: Term | int) -> Relation:
        """``other`` is a multiple of this; zero divides only zero."""
        return Relation("|", self, as_term(other))


def as_term(value: Term | int) -> Term:
    return value if isinstance(value, Term) else _Constant(value)


@dataclass(frozen=True)
class _Constant(Term):
    number: int

    def value(self, at: Mapping[str, int]) -> int:
        return self.number

    def range(self, ranges: Mapping[str, Range]) -> Range:
        return self.number, self.number

    def names(self) -> frozenset[str]:
        return frozenset()


@dataclass(frozen=True)
class _Variable(Term):
    name: str

    def value(self, at: Mapping[str, int]) -> int:
        return at[self.name]

    def range(self, ranges: Mapping[str, Range]) -> Range:
        return ranges[self.name]

    def names(self) -> frozenset[str]:
        return frozenset((self.name,))


@dataclass(frozen=True)
class _Binary(Term):
    sign: str
    left: Term
    right: Term

    def value(self, at: Mapping[str, int]) -> int:
        return _apply(self.sign, self.left.value(at), self.right.value(at))

    def range(self, ranges: Mapping[str, Range]) -> Range:
        (a, b), (c, d) = self.left.range(ranges), self.right.range(ranges)
        if self.sign == "**" and a < 0:  # the sign depends on the exponent
            largest = max(1, max(-a, abs(b)) ** max(d, 0))
            return -largest, largest
        if self.sign == "**":
            c, d = max(c, 0), max(d, 0)  # negative exponents are refused when they are met
        corners = [_apply(self.sign, x, y) for x in (a, b) for y in (c, d)]
        return min(corners), max(corners)

    def names(self) -> frozenset[str]:
        return self.left.names() | self.right.names()


def _apply(sign: str, a: int, b: int) -> int:
    if sign == "+":
        return a + b
    if sign == "*":
        return a * b
    if b < 0:
        raise ValueError(f"an exponent must not be negative, and {a} ** {b} was met: give its variable values from 0")
    return a**b


@dataclass(frozen=True)
class Relation:
    sign: str
    left: Term
    right: Term

    def holds(self, at: Mapping[str, int]) -> bool:
        a, b = self.left.value(at), self.right.value(at)
        if self.sign == "|":
            return b % a == 0 if a else b == 0
        return a <= b if self.sign == "<=" else a == b

    def possible(self, ranges: Mapping[str, Range]) -> bool:
        """False only where no values within the ranges satisfy it."""
        (a, b), (c, d) = self.left.range(ranges), self.right.range(ranges)
        if self.sign == "<=":
            return a <= d
        if self.sign == "==":
            return a <= d and c <= b
        if a == b and c == d:
            return c % a == 0 if a else c == 0
        return not (a > 0 and 0 < c and d < a)  # a smaller positive number is no multiple

    def names(self) -> frozenset[str]:
        return self.left.names() | self.right.names()


class Problem:
    """Variables with finite domains, and relations between them."""

    def __init__(self) -> None:
        self._domains: Domains = {}
        self._relations: list[Relation] = []

    def variable(self, name: str, values: Iterable[int]) -> Term:
        if name in self._domains:
            raise ValueError(f"there is a variable {name!r} already")
        self._domains[name] = tuple(sorted(set(values)))
        return _Variable(name)

    def require(self, *relations: Relation) -> None:
        self._relations.extend(relations)

    def _narrowed(self, domains: Domains) -> Domains | None:
        """Domains without the values that cannot be; None where one is empty."""
        domains, waiting = dict(domains), list(self._relations)
        if any(not values for values in domains.values()):
            return None
        while waiting:
            relation = waiting.pop()
            ranges = {n: (v[0], v[-1]) for n, v in domains.items()}
            if not relation.names() and not relation.holds({}):
                return None
            for name in relation.names():
                old = domains[name]
                kept = tuple(v for v in old if relation.possible({**ranges, name: (v, v)}))
                if not kept:
                    return None
                if len(kept) < len(old):
                    domains[name], ranges[name] = kept, (kept[0], kept[-1])
                    waiting += [r for r in self._relations if name in r.names() and r not in waiting]
        return domains

    def solutions(self) -> Iterator[dict[str, int]]:
        """Every assignment that satisfies all relations, each once."""
        yield from self._search(self._narrowed(self._domains))

    def _search(self, domains: Domains | None) -> Iterator[dict[str, int]]:
        if domains is None:
            return
        open_names = [n for n, values in domains.items() if len(values) > 1]
        if not open_names:
            found = {n: values[0] for n, values in domains.items()}
            if all(r.holds(found) for r in self._relations):
                yield found
            return
        name = min(open_names, key=lambda n: len(domains[n]))
        for value in domains[name]:
            yield from self._search(self._narrowed({**domains, name: (value,)}))

    def best(self, score: Term) -> dict[str, int]:
        """The solution of the largest score (the first of several); ValueError where there is none."""
        found = max(self.solutions(), key=score.value, default=None)
        if found is None:
            raise ValueError("no values of the variables satisfy all relations")
        return found
