"""The exact parts of the page `plstm`, and pictures for its networks."""

import pytest
import torch
from torch import nn

from transduce.data.synthetic.arrows import arrow_pointing
from transduce.models import PatchLabeller, Raster
from transduce.nn import GRU, PLSTM2D
from transduce.ops.grid_scan import GATES
from transduce.systems.mixers import _plstm_check as plstm
from transduce.train.check import Check


def test_quick_check(tmp_path, monkeypatch):
    monkeypatch.setattr(plstm, "BATCH", 4)
    report = Check("plstm", tmp_path, quick=True, seeds=(0,), say=lambda line: None)
    plstm.check(report)
    exact = [m for m in report.measured if "arrows" not in m.metric and m.claim is not None]
    assert len(exact) == 5 and all(m.holds for m in exact)
    assert (tmp_path / "plstm-arrows.png").exists()


def test_open_transitions_explode():
    assert plstm.signal("open", 8)[0] == 2**6  # a choice at each of the cells between the corner and the diagonal


@pytest.mark.parametrize("size, drawn_for", [(48, None), (96, None), (96, 48)])
def test_pictures_of_arrows(size, drawn_for):
    images, labels = arrow_pointing(size, drawn_for=drawn_for)(64, torch.Generator().manual_seed(0))
    assert images.shape == (64, size, size) and 0 <= images.min() and images.max() == 1
    ink = (1 - images).sum((1, 2)) / size**2
    assert (ink > 0.005).all() and (ink < 0.15).all() and 0.2 < labels.float().mean() < 0.8
    border = torch.ones(size, size, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not (1 - images)[:, border].any()  # nothing leaves the picture


def test_larger_pictures_are_the_same_scenes():
    small, large = (arrow_pointing(n)(8, torch.Generator().manual_seed(0)) for n in (48, 96))
    assert (small.labels == large.labels).all()
    halved = torch.nn.functional.avg_pool2d(large.images[:, None], 2)[:, 0]
    assert (halved - small.images).abs().mean() < 0.01


def test_a_patch_labeller_takes_any_grid_and_reads_all_of_it():
    torch.manual_seed(0)
    for layers, positions in (([PLSTM2D(8, 2)], None), ([Raster(GRU(8))], 4)):
        net = PatchLabeller(layers, 8, 3, patch=3, positions=positions)
        for shape in ((2, 12, 12), (2, 6, 15)):
            pictures = torch.rand(shape, requires_grad=True)
            logits = net(pictures)
            (seen,) = torch.autograd.grad(logits[0].sum(), pictures)
            assert logits.shape == (2, 3) and (seen[0] != 0).all() and not seen[1].any()
    with pytest.raises(ValueError, match="multiples of the patch size 3"):
        net(torch.zeros(1, 10, 12))


def test_a_patch_labeller_with_a_stem_local_layers_and_maxima_ignores_more_of_the_same():
    torch.manual_seed(0)
    net = PatchLabeller([nn.Identity()], 8, 3, patch=3, stem=16, local=True, pool="max")
    blank = torch.zeros(2, 24, 24)
    blank[:, 6:9, 9:12] = torch.rand(2, 3, 3)
    larger = torch.nn.functional.pad(blank, (0, 12, 0, 12))
    torch.testing.assert_close(net(blank), net(larger))
    assert not torch.allclose(net(blank)[0], net(blank)[1])
    with pytest.raises(ValueError, match='"mean" or "max"'):
        PatchLabeller([nn.Identity()], 8, 3, pool="sum")


@pytest.mark.parametrize("mode", ["P", "D"])
def test_each_head_starts_with_one_flip(mode):
    gates = PLSTM2D(16, 8, mode=mode).gates(torch.randn(1, 3, 3, 16))  # (4,B,Y,X,H,9)
    marks = gates[..., [GATES.index("mark left"), GATES.index("mark up")]].mean((1, 2, 3, 5))
    assert (marks.argmax(0) == torch.arange(8) % 4).all() and (marks.sum(0) < 1.3).all()


def test_the_heads_of_a_flip_look_both_ways():
    """Right and down among the angles that share a flip, and both turns among its diffusive heads."""
    x = torch.randn(1, 2, 2, 16)
    right, down = (
        PLSTM2D(16, 8, mode="P").gates(x)[..., GATES.index(name)].mean((0, 1, 2, 3))
        for name in ("left to right", "left to down")
    )
    assert all(right[h] < down[h] and right[h + 4] > down[h + 4] for h in range(4))
    turn = PLSTM2D(16, 8, mode="D").gates(x)[..., GATES.index("left to down")].amax((0, 1, 2, 3)) > 0
    assert all(turn[h] != turn[h + 4] for h in range(4))


def test_a_blank_patch_is_the_zero_vector():
    net = PatchLabeller([nn.Identity()], 8, 3, patch=3, stem=16, local=True)
    assert not net.embed(torch.zeros(2, 9)).any() and not net.convs[0](torch.zeros(1, 8, 4, 4)).any()


def test_lines_keep_the_width_that_is_asked_for():
    ink = [
        float((1 - arrow_pointing(96, line=line)(64, torch.Generator().manual_seed(0)).images).sum())
        for line in (1.0, None, 3.0)
    ]
    assert ink[0] < ink[1] < ink[2]
    images = arrow_pointing(96, line=2.0)(8, torch.Generator().manual_seed(0)).images
    assert torch.equal(images, arrow_pointing(96)(8, torch.Generator().manual_seed(0)).images)
