"""Sliding windows with rotary positions between layers without positions, and scores that grow with the length."""

import math

import pytest
import torch

from transduce.core import state as states
from transduce.nn import Attention, FeedForward
from transduce.nn.stack import mixer_stack, swan_mixers
from transduce.testing import check_mixer

GROWTH = (0.5, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    "factory",
    [
        lambda d: Attention(d, 2, position=None, logit_growth=GROWTH),
        lambda d: mixer_stack(swan_mixers(2, d, 2, window=3, every=2, logit_growth=GROWTH), d, lambda: FeedForward(d, d)),
    ],
    ids=["growing scores", "stack"],
)
def test_laws(factory, dtype):
    check_mixer(factory, dim=16, dtype=dtype)


@torch.no_grad()
def test_decoding_through_the_ring_is_the_masked_forward():
    torch.manual_seed(0)
    stack = mixer_stack(swan_mixers(4, 32, window=8, logit_growth=(0.2, 16)), 32, lambda: FeedForward(32)).eval()
    x = torch.randn(2, 150, 32)
    want, _ = stack(x)
    state, found = stack.init_state(2), []
    for step in x.split(1, 1):
        y, state = stack(step, state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), want, rtol=0, atol=1e-5)


def test_a_window_counts_the_step_itself():
    torch.manual_seed(0)
    layer = Attention(16, 2, window=3)
    x = torch.randn(1, 9, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0][0, 7].sum(), x)
    assert grad[0].abs().sum(-1).nonzero()[:, 0].tolist() == [5, 6, 7]


def test_scores_grow_behind_the_trained_length_and_only_outside_of_training():
    torch.manual_seed(0)
    layer = Attention(8, 1, position=None, logit_growth=(0.7, 4)).double()
    plain = Attention(8, 1, position=None).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 12, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[0], plain(x)[0])
    layer.eval()
    y, same = layer(x)[0][0], plain(x)[0][0]
    torch.testing.assert_close(y[:4], same[:4])
    q, k, v = layer.project(x[0]).chunk(3, -1)
    for n in range(5, 13):
        scores = k[:n] @ q[n - 1] / math.sqrt(8) * (1 + 0.7 * math.log(n / 4))
        torch.testing.assert_close(y[n - 1], layer.output(torch.softmax(scores, 0) @ v[:n]))


@torch.no_grad()
def test_a_stack_keeps_little_of_a_long_text():
    """One of four layers keeps everything: at 2048 steps at most 0.35 of what four global layers keep."""
    x = torch.randn(1, 2048, 16)
    swan = mixer_stack(swan_mixers(4, 16, 2, window=16), 16)
    full = mixer_stack([Attention(16, 2) for _ in range(4)], 16)
    kept = [states.nbytes(net(x, net.init_state(1))[1]) for net in (swan, full)]
    assert kept[0] <= 0.35 * kept[1]


def test_the_pattern_begins_with_the_layer_that_sees_everything():
    assert [m.window for m in swan_mixers(5, 16, window=7)] == [None, 7, 7, 7, None]


@pytest.mark.parametrize("options", [{"window": 4}, {"causal": False}, {"logit_growth": (-1.0, 8)}])
def test_growth_that_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match="logit_growth"):
        Attention(16, 2, **{"logit_growth": (0.1, 8), **options})
