"""Every mixer obeys every law, in float32 and float64; and every law catches a mixer that breaks it."""

import pytest
import torch
from torch import nn

from transduce.core.errors import UserError
from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked
from transduce.nn import (
    GRU,
    LSTM,
    Attention,
    Bidirectional,
    CausalConv,
    DilatedConv,
    Elman,
    FeedForward,
    MinGRU,
    Parallel,
    Pointwise,
    Repeat,
    Residual,
    Retention,
    RMSNorm,
    SequenceDropout,
    Serial,
    from_torch,
)
from transduce.ops.dispatch import use_backend
from transduce.ops.scan import linear_scan
from transduce.testing import check_mixer, mixer_laws, render_laws

MIXERS = {
    "Elman": Elman,
    "GRU": GRU,
    "GRU, narrow": lambda d: GRU(d, 12),
    "GRU, loop": lambda d: GRU(d, solver="loop"),
    "LSTM": LSTM,
    "LSTM, loop": lambda d: LSTM(d, solver="loop"),
    "MinGRU": MinGRU,
    "MinGRU, wide": lambda d: MinGRU(d, expansion=1.5),
    "Retention": Retention,
    "Retention, two heads": lambda d: Retention(d, 2, expansion=1),
    "Attention": Attention,
    "Attention, grouped": lambda d: Attention(d, 4, kv_heads=2, position="alibi"),
    "Attention, relative": lambda d: Attention(d, 2, position="relative"),
    "Attention, sinusoidal": lambda d: Attention(d, 2, position="sinusoidal"),
    "Attention, no positions": lambda d: Attention(d, 2, position=None),
    "Attention, window": lambda d: Attention(d, 4, window=4),
    "Attention, both ways": lambda d: Attention(d, 4, causal=False),
    "CausalConv": CausalConv,
    "CausalConv, dilated": lambda d: CausalConv(d, kernel=3, dilation=2, depthwise=False),
    "DilatedConv": lambda d: DilatedConv(d, kernel=3, dilation=2),
    "SequenceDropout": SequenceDropout,
    "Pointwise": lambda d: Pointwise(FeedForward(d, 2 * d)),
    "Bidirectional": lambda d: Bidirectional(GRU(d), Retention(d)),
    "hybrid stack": lambda d: Serial(
        Residual(GRU(d), norm=RMSNorm(d)),
        Residual(Attention(d, 4, window=3), norm=RMSNorm(d)),
        Residual(Pointwise(FeedForward(d, d))),
        Residual(Retention(d)),
        CausalConv(d),
        MinGRU(d),
    ),
    "side by side": lambda d: Parallel(LSTM(d), Attention(d, 2), combine="project", dim=d),
    "shared weights": lambda d: Repeat(Residual(Serial(Attention(d, 2), MinGRU(d))), 3),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("factory", MIXERS.values(), ids=MIXERS)
def test_laws(factory, dtype):
    check_mixer(factory, dim=16, dtype=dtype)


@pytest.mark.parametrize("name", ["GRU", "MinGRU", "Retention", "hybrid stack"])
def test_laws_hold_for_the_references(name):
    with use_backend("reference"):
        check_mixer(MIXERS[name], dim=16, seed=3, steps=7)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers_agree_with_torch(kind):
    torch.manual_seed(0)
    theirs = kind(5, 7, batch_first=True).double()
    ours = from_torch(theirs)
    x = torch.randn(3, 9, 5, dtype=torch.float64)
    want, end = theirs(x)
    got, state = ours(x, ours.init_state(3))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(state.h if kind is nn.LSTM else state, (end[0] if kind is nn.LSTM else end)[0])


# ---------------------------------------------------------------- mixers that break a law


class Decay(Mixer):
    """h_t = 0.7 h_{t-1} + W x_t, correct; each mixer below spoils one thing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.input = nn.Linear(dim, dim)

    def init_state(self, batch, *, capacity=None):
        return self.input.weight.new_zeros(batch, self.input.out_features)

    def values(self, x):
        return self.input(x)

    def forward(self, x, state=None, *, mask=None, resets=None):
        b = zero_masked(self.values(zero_masked(x, mask)), mask)
        a = torch.full_like(b, 0.7)
        if mask is not None:
            a = torch.where(mask[..., None], a, 1.0)
            resets = None if resets is None else resets & mask
        h = linear_scan(a, b, state, resets=resets)
        return h, None if state is None else h[:, -1].clone()


class BreaksChunks(Decay):
    """Looks at the length of the chunk."""

    def values(self, x):
        return self.input(x) * x.shape[1] ** -0.5


class BreaksNone(Decay):
    """Starts from ones without a state."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        if state is None:
            return super().forward(x, self.init_state(len(x)) + 1, mask=mask, resets=resets)[0], None
        return super().forward(x, state, mask=mask, resets=resets)


class BreaksPadding(Decay):
    """Masks what it computed, not what it reads: the outputs are right, NaN reaches the gradient of the weights."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        b = zero_masked(self.input(x), mask)
        a = torch.full_like(b, 0.7)
        if mask is not None:
            a = torch.where(mask[..., None], a, 1.0)
        h = linear_scan(a, b, state, resets=resets if resets is None or mask is None else resets & mask)
        return h, None if state is None else h[:, -1].clone()


class BreaksMaskedStep(Decay):
    """Goes on fading while masked."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        b = zero_masked(self.input(zero_masked(x, mask)), mask)
        h = linear_scan(torch.full_like(b, 0.7), b, state, resets=resets)
        return h, None if state is None else h[:, -1].clone()


class BreaksOldStates(Decay):
    """Writes into the state that it was given."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        y, after = super().forward(x, state, mask=mask, resets=resets)
        return y, None if state is None else state.detach().copy_(after)


class BreaksRows(Decay):
    """Centres over the batch."""

    def values(self, x):
        return self.input(x - x.mean(0, keepdim=True))


class BreaksLookahead(Decay):
    """Reads the next step when it can."""

    def values(self, x):
        return self.input(x + torch.cat((x[:, 1:], torch.zeros_like(x[:, :1])), 1))


class BreaksGradients(Decay):
    """Cuts the gradient between chunks."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        return super().forward(x, None if state is None else state.detach(), mask=mask, resets=resets)


class BreaksResets(Decay):
    """Ignores resets."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        return super().forward(x, state, mask=mask)


class BreaksGrowth(Decay):
    """Keeps every output without saying so."""

    def init_state(self, batch, *, capacity=None):
        h = super().init_state(batch)
        return h, h[:, None][:, :0]

    def forward(self, x, state=None, *, mask=None, resets=None):
        y, after = super().forward(x, None if state is None else state[0], mask=mask, resets=resets)
        return y, None if state is None else (after, torch.cat((state[1], y), 1))


class BreaksExport(Decay):
    """Decides by the values it sees."""

    def values(self, x):
        return x if float(x.detach().sum()) == 1e9 else self.input(x)


class OverwritesWithoutGradients(Decay):
    """Writes into the state that it was given, but only while decoding."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        y, after = super().forward(x, state, mask=mask, resets=resets)
        return y, None if state is None else after if torch.is_grad_enabled() else state.copy_(after)


class SkipsLeftPadding(Decay):
    """Takes the number of valid steps for their place."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        if mask is not None:
            mask = torch.arange(x.shape[1]) < mask.sum(1, keepdim=True)
        return super().forward(x, state, mask=mask, resets=resets)


class RestartsWhileMasked(Decay):
    """Obeys a reset at a step at which the row does not advance."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        if state is not None and resets is not None:
            state = torch.where(resets.any(1, keepdim=True), 0.0, state)
        return super().forward(x, state, mask=mask, resets=resets)


class ForgetsResetsInTraining(Decay):
    """Obeys resets only when it has a state."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        return super().forward(x, state, mask=mask, resets=None if state is None else resets)


class StartsSilent(Decay):
    """Counts steps within the chunk, behind a gain that is zero at first."""

    def __init__(self, dim):
        super().__init__(dim)
        self.gain = nn.Parameter(torch.zeros(()))

    def values(self, x):
        return self.input(x) + self.gain * torch.arange(x.shape[1], dtype=x.dtype)[:, None]


class DetachesItsState(Decay):
    """Gives back a state that no gradient passes."""

    def forward(self, x, state=None, *, mask=None, resets=None):
        y, after = super().forward(x, state, mask=mask, resets=resets)
        return y, None if after is None else after.detach()


class IgnoresCapacity(Decay):
    """Confuses reserved room with history."""

    def init_state(self, batch, *, capacity=None):
        return super().init_state(batch) + (0 if capacity is None else 1)


class SmearsNaN(Decay):
    """Scales by the largest number of the batch, which is one in every ordinary case."""

    def values(self, x):
        return self.input(x) * (x.detach().abs().max() / 1e6).clamp_min(1.0)


SUBTLE = [
    (5, OverwritesWithoutGradients),
    (3, SkipsLeftPadding),
    (4, RestartsWhileMasked),
    (9, ForgetsResetsInTraining),
    (1, StartsSilent),
    (8, DetachesItsState),
    (1, IgnoresCapacity),
    (6, SmearsNaN),
]


BROKEN = {
    1: BreaksChunks,
    2: BreaksNone,
    3: BreaksPadding,
    4: BreaksMaskedStep,
    5: BreaksOldStates,
    6: BreaksRows,
    7: BreaksLookahead,
    8: BreaksGradients,
    9: BreaksResets,
    10: BreaksGrowth,
    11: BreaksExport,
}


def test_the_sound_layer_below_the_broken_ones_is_sound():
    check_mixer(Decay, dim=8)


@pytest.mark.parametrize("number", BROKEN)
def test_each_law_catches_the_mixer_that_breaks_it(number):
    results = mixer_laws(BROKEN[number], 8)
    broken = [r.number for r in results if not r.passed]
    assert number in broken, render_laws(BROKEN[number].__name__, results)
    shown = render_laws("layer", results)
    assert "BROKEN" in shown and len(shown.splitlines()) < 20
    with pytest.raises(AssertionError, match=f"law {number} "):
        check_mixer(BROKEN[number], dim=8)


@pytest.mark.parametrize("number, factory", SUBTLE, ids=lambda v: getattr(v, "__name__", str(v)))
def test_laws_catch_what_shows_only_in_a_corner(number, factory):
    with pytest.raises(AssertionError, match=f"^law {number} "):
        check_mixer(factory, dim=8)


def test_a_factory_that_makes_no_mixer_is_told_so():
    with pytest.raises(UserError, match="makes a Linear: derive it from"):
        mixer_laws(lambda dim: nn.Linear(dim, dim))


def test_a_mixer_that_is_not_causal_must_refuse_a_state():
    class Careless(Bidirectional):
        def forward(self, x, state=None, *, mask=None, resets=None):
            return super().forward(x, None, mask=mask, resets=resets)

    broken = [r.number for r in mixer_laws(lambda d: Careless(GRU(d), GRU(d)), 8) if not r.passed]
    assert broken == [1]


def test_a_layer_that_raises_is_reported_not_raised():
    class Raises(Decay):
        def values(self, x):
            raise RuntimeError("no such kernel")

    results = mixer_laws(Raises, 8)
    assert not results[0].passed and "no such kernel" in results[0].detail
