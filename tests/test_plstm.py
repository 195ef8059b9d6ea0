"""pLSTM on paths, grids and graphs, and the wrapper that puts any mixer over a grid."""

import copy

import pytest
import torch

from transduce.nn import GRU, PLSTM, PLSTM2D, FourWay, PLSTMGraph
from transduce.ops.dag_scan import Dag, dag_scan
from transduce.ops.dispatch import use_backend
from transduce.ops.grid_scan import grid_scan
from transduce.testing import check_mixer


def noisy(module):
    g = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=g))
    return module.double()


@pytest.mark.parametrize("heads", [1, 2])
def test_laws(heads):
    check_mixer(lambda dim: PLSTM(dim, heads), dim=16, steps=13)


def test_a_path_is_a_graph():
    torch.manual_seed(0)
    layer, graph = noisy(PLSTM(8, 2)), Dag.of(9, [(n, n + 1) for n in range(8)])
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    q, k, v = layer.inner.read(x)
    source, mark, direct = torch.sigmoid(layer.gates(x)).unflatten(-1, (3, -1)).unbind(-2)
    fade = torch.sigmoid(layer.fade(x)) ** layer.sharpness
    y = dag_scan(q, k, v, source[:, :-1], fade[:, 1:-1], mark[:, 1:], direct, graph)
    torch.testing.assert_close(layer(x)[0], layer.inner.write(y, x))


@pytest.mark.parametrize("mode", ["P", "D"])
def test_gates_of_a_mode_keep_its_promise(mode):
    layer = noisy(PLSTM2D(8, 4, mode=mode))
    s_r, s_d, t_lr, t_ud, t_ld, t_ur, *_ = layer.gates(torch.randn(2, 3, 4, 8, dtype=torch.float64)).unbind(-1)
    if mode == "P":
        for pair in ((t_lr, t_ld), (t_ud, t_ur), (s_r, s_d)):
            torch.testing.assert_close(pair[0] + pair[1], torch.ones_like(s_r))
        assert layer.gates(torch.zeros(1, 1, 1, 8, dtype=torch.float64))[..., 0].std() > 0.01  # heads differ
    else:
        assert not (t_ld * t_ur).any() and t_ld[..., 0].all() and t_ur[..., 1].all()
        assert max(t.max() for t in (t_lr, t_ud, t_ld, t_ur)) <= 1


def spread(mode, size):
    """What one unit source in the corner, with random gates of that mode, leaves on the last anti-diagonal."""
    layer = noisy(PLSTM2D(8, 2, mode=mode))
    gates = layer.gates(torch.randn(1, size, size, 8, dtype=torch.float64))[0].detach()
    gates[..., :2], gates[..., 6:] = 0, torch.tensor([1.0, 1.0, 0.0])
    gates[:, 0, 0, :, 0] = 1
    one = torch.ones(1, size, size, 2, 1, dtype=torch.float64)
    y = grid_scan(one, one, one, gates)[0, ..., 0]
    return torch.stack([y[i, size - 1 - i] for i in range(size)])


@pytest.mark.parametrize("size", [8, 32])
def test_signals_neither_explode_nor_vanish(size):
    total = spread("P", size).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))
    assert spread("D", size).max() <= 2  # two edges enter a cell, with at most 1 each


@pytest.mark.parametrize("mode", ["P", "D"])
def test_every_cell_sees_every_other_one(mode):
    layer, x = noisy(PLSTM2D(8, 2, mode=mode)), torch.randn(1, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    for y, b in ((0, 0), (3, 4), (0, 4), (3, 0), (2, 2)):
        (seen,) = torch.autograd.grad(layer(x)[0, y, b].sum(), x)
        assert (seen[0].abs().amax(-1) > 0).all()


def test_a_mirrored_grid_is_read_by_the_mirrored_flips():
    """Flipping the picture and exchanging the flips' gates flips the output: all four orientations are in use."""
    layer, x = noisy(PLSTM2D(8, 2)), torch.randn(1, 4, 5, 8, dtype=torch.float64)
    want = layer(x)
    for axes, order in (((2,), (1, 0, 3, 2)), ((1,), (2, 3, 0, 1))):
        other = copy.deepcopy(layer)
        for gates in (other.soft, other.fade, other.angle):
            for p in (gates.weight, gates.bias):
                p.data = p.data.unflatten(0, (4, -1))[list(order)].flatten(0, 1)
        torch.testing.assert_close(other(x.flip(axes)).flip(axes), want)


@pytest.mark.parametrize("make", [lambda: PLSTM2D(8, 2, mode="D"), lambda: FourWay(*(GRU(8) for _ in range(4)))])
def test_padded_grids(make):
    torch.manual_seed(0)
    layer, x = make().double(), torch.randn(2, 4, 5, 8, dtype=torch.float64)
    mask = torch.zeros(2, 4, 5, dtype=torch.bool)
    mask[0, :3, :2], mask[1] = True, True
    x[~mask] = torch.nan
    y = layer(x, mask=mask)
    torch.testing.assert_close(y[:1, :3, :2], layer(x[:1, :3, :2]))
    torch.testing.assert_close(y[1:], layer(x[1:]))
    y[mask].sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_four_ways_over_a_grid():
    layer, x = FourWay(*(GRU(6) for _ in range(4))), torch.randn(2, 3, 4, 6)
    right, left, down, up = layer.mixers
    want = torch.stack([right(row)[0] for row in x.unbind(1)], 1)
    want = want + torch.stack([left(row.flip(1))[0].flip(1) for row in x.unbind(1)], 1)
    want = want + torch.stack([down(column)[0] for column in x.unbind(2)], 2)
    want = want + torch.stack([up(column.flip(1))[0].flip(1) for column in x.unbind(2)], 2)
    torch.testing.assert_close(layer(x), want / 4)
    with pytest.raises(ValueError, match="four mixers"):
        FourWay(GRU(6))


def test_a_graph_is_read_both_ways_and_its_numbering_does_not_matter():
    torch.manual_seed(0)
    edges = [(0, 2), (1, 2), (2, 3), (0, 3), (3, 4)]
    layer, x = noisy(PLSTMGraph(8, 2)), torch.randn(2, 6, 8, dtype=torch.float64)
    y = layer(x, Dag.of(6, edges))
    new = torch.tensor([5, 3, 0, 4, 1, 2])  # node n is now called new[n]
    renamed = Dag.of(6, [(int(new[a]), int(new[b])) for a, b in reversed(edges)])
    moved = torch.empty_like(x).index_copy(1, new, x)
    torch.testing.assert_close(layer(moved, renamed)[:, new], y)
    x.requires_grad_()
    (seen,) = torch.autograd.grad(layer(x, Dag.of(6, edges))[0, 2].sum(), x)
    reached = (seen[0].abs().amax(-1) > 0).tolist()
    assert reached == [True] * 5 + [False]
    with use_backend(dag_scan="reference"):
        torch.testing.assert_close(layer(x, Dag.of(6, edges)), y)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match='"P" or "D"'):
        PLSTM2D(8, 2, mode="Q")
    with pytest.raises(ValueError, match="multiple of its 3 heads"):
        PLSTM(8, 3)
