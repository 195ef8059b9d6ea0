"""The recurrence on a grid: its law, all monotone paths, and what keeps it from exploding."""

import itertools

import pytest
import torch

from transduce.ops.grid_scan import GATES, grid_scan
from transduce.testing.ops import check_op


def test_the_grid_scan_obeys_the_law_of_ops():
    check_op(grid_scan)


def by_paths(q, k, v, gates):
    """One head, one row of the batch: every path of steps to the right (0) and down (1), one by one."""
    rows, columns = q.shape[:2]
    gate = lambda y, x, name: float(gates[y, x, GATES.index(name)])
    turn = {(0, 0): "left to right", (0, 1): "left to down", (1, 0): "up to right", (1, 1): "up to down"}
    out = torch.zeros(rows, columns, v.shape[-1], dtype=v.dtype)
    for y, x, b, a in itertools.product(range(rows), range(columns), range(rows), range(columns)):
        if b < y or a < x:
            continue
        moves = [1] * (b - y) + [0] * (a - x)
        total = gate(y, x, "direct") if not moves else 0.0
        for path in set(itertools.permutations(moves)) if moves else ():
            product = gate(y, x, ("source right", "source down")[path[0]])
            at = [y, x]
            for came, goes in zip(path, path[1:]):
                at[1 - came] += 1
                product *= gate(*at, turn[came, goes])
            total += product * gate(b, a, ("mark left", "mark up")[path[-1]])
        out[b, a] += total * (q[b, a] @ k[y, x]) * v[y, x]
    return out


@pytest.mark.parametrize("backend", ["numba", "parallel", "reference"])
def test_it_is_the_sum_over_all_monotone_paths(backend):
    g = torch.Generator().manual_seed(1)
    q, k, v, gates = (torch.randn(1, 4, 4, 1, n, generator=g, dtype=torch.float64) for n in (3, 3, 2, len(GATES)))
    got = grid_scan.run(backend, q, k, v, gates)[0, :, :, 0]
    want = by_paths(*(t[0, :, :, 0] for t in (q, k, v, gates)))
    assert (got - want).abs().max() < 1e-12 * want.abs().max()


def test_its_matrix_is_what_it_computes():
    q, k, v, gates = next(case for case in grid_scan.all_cases() if case.name == "padded").args
    matrix = grid_scan.matrix(q, k, gates)
    y = grid_scan(q, k, v, gates).flatten(1, 2)
    torch.testing.assert_close(torch.einsum("bhns,bshv->bnhv", matrix, v.flatten(1, 2)), y)


def test_wrong_shapes_are_refused():
    q = torch.zeros(1, 2, 3, 1, 4)
    with pytest.raises(ValueError, match="gates of shape"):
        grid_scan(q, q, q, torch.zeros(1, 2, 3, 1, 8))
    with pytest.raises(ValueError, match="v \\(B,Y,X,H,V\\)"):
        grid_scan(q, q, q[:, :1], torch.zeros(1, 2, 3, 1, 9))
