"""The block-diagonal linear recurrence and its blocks."""

import pytest
import torch

from transduce.nn import BlockLRNN, OrthogonalBlocks, PNormBlocks, StochasticBlocks
from transduce.testing import check_mixer

KINDS = [PNormBlocks, OrthogonalBlocks, StochasticBlocks]


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("blocks", KINDS)
def test_laws(blocks, size):
    check_mixer(lambda dim: BlockLRNN(dim, size=size, blocks=blocks), dim=16)


def made(blocks, **kwargs):
    torch.manual_seed(0)
    return blocks(16, 4, 4, **kwargs).double()(3 * torch.randn(2, 5, 16, dtype=torch.float64))


def test_p_norm_blocks_are_centred_and_bounded():
    a = made(PNormBlocks)
    assert a.shape == (2, 5, 4, 4, 4) and a.sum(-2).abs().max() < 1e-12
    norms = (a.abs() ** 1.2).sum(-2) ** (1 / 1.2)
    torch.testing.assert_close(norms.amax(-1), torch.ones_like(norms[..., 0]))


def test_a_centred_permutation_shrinks_as_the_docstring_says():
    c = torch.eye(8, dtype=torch.float64).roll(1, 0)
    c = c - c.mean(0)
    a = c / ((c.abs() ** 1.2).sum(0) ** (1 / 1.2)).max()
    assert abs(float(torch.linalg.eigvals(a).abs().max()) - 0.74) < 0.005


def test_orthogonal_blocks_are_rotations():
    a = made(OrthogonalBlocks)
    torch.testing.assert_close(a @ a.mT, torch.eye(4, dtype=a.dtype).expand_as(a))
    torch.testing.assert_close(torch.linalg.det(a), torch.ones_like(a[..., 0, 0]))


def test_stochastic_blocks_keep_a_distribution():
    a = made(StochasticBlocks)
    torch.testing.assert_close(a.sum(-2), torch.ones_like(a[..., 0, :]))
    layer = BlockLRNN(16, size=4, blocks=StochasticBlocks)
    y, _ = layer(torch.randn(2, 300, 16))
    blocks = y.unflatten(-1, (4, 4))
    assert (blocks >= 0).all() and (blocks.sum(-1) - 1).abs().max() < 1e-4


def test_widths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of the block size 8, got 20"):
        BlockLRNN(20)
    with pytest.raises(ValueError, match="at least 2 by 2"):
        BlockLRNN(16, size=1)
