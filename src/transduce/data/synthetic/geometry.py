"""Plane geometry with one right answer: convex hulls, Delaunay triangulations, shortest tours, and their measures.

The tasks of Vinyals et al. 2015 (arXiv 1506.03134, sections 3.1 to 3.3). Points lie uniformly in the unit square;
positions count from 1. A fixed start and direction leave each target one way to be written.
"""

from __future__ import annotations

import random
from itertools import combinations
from typing import Any, Callable, Sequence

import numpy as np

Points = Sequence[Sequence[float]]

DECIMALS = 4
"""Digits that points are written with; targets are those of the points as written."""
_EXACT = 1e-12
"""Areas and determinants below this are zero but for rounding."""


def random_points(rng: random.Random, count: int) -> list[tuple[float, float]]:
    """Points uniform in the unit square, rounded as they are written, no two alike."""
    while True:
        points = [(round(rng.random(), DECIMALS), round(rng.random(), DECIMALS)) for _ in range(count)]
        if len(set(points)) == count:
            return points


def write_points(points: Points) -> str:
    return " ".join(f"{x:.{DECIMALS}f},{y:.{DECIMALS}f}" for x, y in points)


def _turn(a: Any, b: Any, c: Any) -> Any:
    """Twice the signed area of a triangle, above 0 where a, b, c turn left."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


# ---------------------------------------------------------------- targets


def hull(points: Points) -> list[int]:
    """Corners of the convex hull, counter-clockwise from the lowest position; points on an edge are no corners.

    Andrew's monotone chain (1979).
    """
    if len(points) < 2:
        return list(range(1, len(points) + 1))
    order = sorted(range(len(points)), key=lambda i: tuple(points[i]))

    def chain(indices: Sequence[int]) -> list[int]:
        kept: list[int] = []
        for i in indices:
            while len(kept) >= 2 and _turn(points[kept[-2]], points[kept[-1]], points[i]) <= 0:
                kept.pop()
            kept.append(i)
        return kept[:-1]

    corners = chain(order) + chain(order[::-1])
    first = corners.index(min(corners))
    return [i + 1 for i in corners[first:] + corners[:first]]


def delaunay(points: Points) -> list[tuple[int, int, int]]:
    """Triangles whose circumcircle holds no other point, sorted by incentre (x, then y), positions ascending.

    By definition, in O(n^4): for some dozens of points. Where four points share a circle both diagonals count.
    """
    p = np.asarray(points, dtype=np.float64)
    if len(p) < 3:
        return []
    triples = np.array(list(combinations(range(len(p)), 3)))
    corners = p[triples]  # (C,3,2)
    a, b, c = corners.transpose(1, 2, 0)
    turn = _turn(a, b, c)
    near = corners[:, None] - p[None, :, None]  # (C,n,3,2)
    lifted = np.concatenate((near, (near**2).sum(-1, keepdims=True)), -1)
    inside = np.linalg.det(lifted) * np.sign(turn)[:, None]
    np.put_along_axis(inside, triples, 0.0, 1)
    kept = (np.abs(turn) > _EXACT) & (inside.max(1) < _EXACT)
    opposite = np.stack([np.hypot(*(b - c)), np.hypot(*(c - a)), np.hypot(*(a - b))], 1)[kept]
    centres = (opposite[..., None] * corners[kept]).sum(1) / opposite.sum(1, keepdims=True)
    found = zip(centres.tolist(), (triples[kept] + 1).tolist())
    return [tuple(triangle) for _, triangle in sorted(found)]


def tours(points: np.ndarray) -> np.ndarray:
    """The shortest closed tours (I,n) through I sets of n points (I,n,2), at most 16 points each.

    Each starts at position 1 and goes towards the smaller of its two neighbours. Held and Karp 1962: the shortest way
    through each set of points to each last one, in O(2^n n^2).
    """
    p = np.asarray(points, dtype=np.float64)
    count, n = p.shape[:2]
    if not 1 <= n <= 16:
        raise ValueError(f"an exact tour is found for 1 to 16 points, got {n}")
    if n <= 3:
        return np.tile(np.arange(1, n + 1), (count, 1))
    far = np.hypot(*(p[:, :, None] - p[:, None]).transpose(3, 0, 1, 2))
    m = n - 1  # points 2..n stand for the bits
    best = np.full((1 << m, m, count), np.inf)
    came = np.zeros((1 << m, m, count), dtype=np.int8)
    best[1 << np.arange(m), np.arange(m)] = far[:, 0, 1:].T
    step = far[:, 1:, 1:].transpose(1, 2, 0).copy()
    for visited in range(1, 1 << m):
        members = [j for j in range(m) if visited >> j & 1]
        for last in members if len(members) > 1 else ():
            others = [j for j in members if j != last]
            ways = best[visited & ~(1 << last), others] + step[others, last]  # (others, I)
            choice = ways.argmin(0)
            best[visited, last] = np.take_along_axis(ways, choice[None], 0)[0]
            came[visited, last] = np.asarray(others)[choice]
    rows, visited = np.arange(count), np.full(count, (1 << m) - 1)
    last = (best[-1] + far[:, 0, 1:].T).argmin(0)
    way = np.ones((count, n), dtype=np.int64)
    for place in range(n - 1, 0, -1):
        way[:, place] = last + 2
        last, visited = came[visited, last, rows].astype(np.int64), visited & ~(1 << last)
    back = way[:, 1] > way[:, -1]
    way[back, 1:] = way[back, :0:-1]
    return way


def tour(points: Points) -> list[int]:
    """The shortest closed tour through one set of points; see :func:`tours`."""
    return tours(np.asarray(points)[None])[0].tolist()


# ---------------------------------------------------------------- measures


def area(points: Points) -> float:
    """Signed area of a polygon, above 0 counter-clockwise (the shoelace formula)."""
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, [*points[1:], *points[:1]])) / 2


def is_simple(points: Points) -> bool:
    """Whether a polygon has three corners or more, none twice, and no two sides that touch but at a shared corner."""
    n = len(points)
    if n < 3 or len({tuple(p) for p in points}) < n or area(points) == 0.0:
        return False
    sides = [(points[i], points[(i + 1) % n]) for i in range(n)]
    for i, j in combinations(range(n), 2):
        if (j - i) % n in (1, n - 1):  # neighbours may not fold back onto each other
            a, b, c = (points[i], points[j], points[(j + 1) % n]) if j == i + 1 else (points[j], points[i], points[1])
            folds = (b[0] - a[0]) * (c[0] - b[0]) + (b[1] - a[1]) * (c[1] - b[1]) < 0
            if _turn(a, b, c) == 0 and folds:
                return False
        elif _touch(*sides[i], *sides[j]):
            return False
    return True


def _touch(a: Sequence[float], b: Sequence[float], c: Sequence[float], d: Sequence[float]) -> bool:
    """Whether the segments ab and cd share a point."""
    sides = [_turn(c, d, a), _turn(c, d, b), _turn(a, b, c), _turn(a, b, d)]
    if sides[0] * sides[1] < 0 and sides[2] * sides[3] < 0:
        return True
    between = lambda p, q, r: all(min(p[k], q[k]) <= r[k] <= max(p[k], q[k]) for k in (0, 1))
    corners = ((c, d, a), (c, d, b), (a, b, c), (a, b, d))
    return any(side == 0 and between(*three) for side, three in zip(sides, corners))


def hull_coverage(points: Points, positions: Sequence[int]) -> float | None:
    """Area of the polygon through ``positions`` over the area of the hull; None where it is not a simple polygon."""
    if any(not 1 <= k <= len(points) for k in positions):
        return None
    corners = [tuple(points[k - 1]) for k in positions]
    if not is_simple(corners):
        return None
    return abs(area(corners)) / abs(area([points[k - 1] for k in hull(points)]))


def triangle_coverage(triangles: Sequence[Sequence[int]], positions: Sequence[int]) -> float:
    """Share of the ``triangles`` that stand among ``positions`` read three by three, in any order of corners."""
    read = {frozenset(positions[i : i + 3]) for i in range(0, len(positions) - 2, 3)}
    return sum(frozenset(t) in read for t in triangles) / len(triangles)


def tour_length(points: Points, positions: Sequence[int]) -> float:
    """Length of the closed tour through ``positions``."""
    p = np.asarray(points, dtype=np.float64)[np.asarray(positions) - 1]
    return float(np.hypot(*(p - np.roll(p, -1, 0)).T).sum())


# ---------------------------------------------------------------- corpora

Answer = Callable[[Sequence[Points]], list[list[int]]]


def _tours_of_all(sets: Sequence[Points]) -> list[list[int]]:
    """Sets of one size are solved together."""
    found: list[list[int]] = [[] for _ in sets]
    for size in {len(s) for s in sets}:
        rows = [i for i, s in enumerate(sets) if len(s) == size]
        for chunk in (rows[i : i + 2000] for i in range(0, len(rows), 2000)):
            for row, way in zip(chunk, tours(np.array([sets[i] for i in chunk])).tolist()):
                found[row] = way
    return found


TASKS: dict[str, tuple[Answer, tuple[int, int]]] = {
    "hull": (lambda sets: [hull(s) for s in sets], (5, 12)),
    "delaunay": (lambda sets: [[k for triangle in delaunay(s) for k in triangle] for s in sets], (5, 8)),
    "tour": (_tours_of_all, (5, 8)),
}
"""Targets of sets of points, and the least and greatest number of points of the built-in corpus."""
