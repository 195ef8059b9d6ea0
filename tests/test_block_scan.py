"""The block scan: its law, its matrix, and what it is for."""

import torch

from transduce.ops.block_scan import block_scan
from transduce.testing.ops import check_op


def test_the_block_scan_obeys_the_law_of_ops():
    check_op(block_scan)


def test_its_matrix_is_what_it_computes():
    g = torch.Generator().manual_seed(0)
    a, v = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((2, 7, 3, 2, 2), (2, 7, 3, 2)))
    for flags in ({}, {"resets": torch.rand(2, 7, generator=g) < 0.3}):
        matrix = block_scan.matrix(a, **flags)
        assert matrix.shape == (2, 3, 7, 7, 2, 2)
        torch.testing.assert_close(torch.einsum("bhtsij,bshj->bthi", matrix, v), block_scan(a, v, **flags))
    mask = torch.rand(2, 7, generator=g) < 0.6
    matrix, h = block_scan.matrix(a, mask=mask), block_scan(a, v, mask=mask)
    torch.testing.assert_close(torch.einsum("bhtsij,bshj->bthi", matrix, v)[mask], h[mask])
    above = torch.ones(7, 7).triu(1).bool()
    assert not matrix[:, :, above].any()
