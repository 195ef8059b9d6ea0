"""Recurrence over depth: the laws, halting against a scalar loop, side losses, the page and its check."""

from functools import partial

import pytest
import torch
from torch import nn

from transduce import systems
from transduce.core.errors import UserError
from transduce.core.protocols import Hypothesis
from transduce.core.seq import Batch, Seq
from transduce.core.side import collect, side
from transduce.core.tap import record
from transduce.data import load_corpus
from transduce.nn import (
    Attention,
    CausalConv,
    DepthBlock,
    DepthLoop,
    FeedForward,
    Halting,
    LayerNorm,
    Pointwise,
)
from transduce.nn.attend import AdditiveAttend
from transduce.objectives import Likelihood, WithSide
from transduce.search import align
from transduce.systems.encoder_decoder import _universal_check as universal_check
from transduce.testing import check_mixer
from transduce.testing.system import check_system, tiny_data
from transduce.train.check import Check

PAGE = systems.find("universal-transformer")


def loop(dim, *, causal=True, halting=True, steps=3, transition=None, offset=0):
    block = DepthBlock(
        Attention(dim, 2, position=None, causal=causal),
        Pointwise(FeedForward(dim, 2 * dim)) if transition is None else transition(dim),
        partial(LayerNorm, dim),
    )
    return DepthLoop(block, dim, steps, halting=Halting(dim) if halting else None, offset=offset)


@pytest.mark.parametrize(
    "make",
    [
        partial(loop, halting=False),
        loop,
        partial(loop, causal=False),
        partial(loop, transition=lambda d: CausalConv(d, kernel=3)),
    ],
    ids=["all steps", "halting", "both ways", "convolution"],
)
def test_a_depth_loop_obeys_the_laws(make):
    check_mixer(make)


@pytest.mark.parametrize(
    "change", [{"halting": "act"}, {"halting": "act", "transition": "convolution", "steps": 2, "offset": 20}]
)
def test_variants_of_the_system(change):
    check_system(PAGE, config=PAGE.config_type(**change), learning_rate=2e-3)


def test_halting_and_one_step_are_exact():
    assert max(universal_check.identities().values()) < 1e-12


def test_a_halted_position_is_copied_forward():
    torch.manual_seed(0)
    model = loop(8, causal=False, steps=4).double()
    nn.init.normal_(model.halting.score.weight)
    nn.init.constant_(model.halting.score.bias, -1.0)
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    inputs = []
    model.block.register_forward_hook(lambda module, given, result: inputs.append((given[0], result[0])))
    with record(model, "depth") as seen:
        model(x)
    depth = seen["depth"][0]
    assert len(depth.unique()) > 1, "positions must halt one by one, or nothing is tested"
    for s in range(2, len(inputs)):
        halted = depth < s  # these read at step s what they read at step s - 1, but for the code of the step
        moved = (inputs[s][0] - inputs[s - 1][0])[halted]
        if len(moved):
            assert float((moved - moved[:1]).detach().abs().max()) < 1e-12
    assert bool((depth < 3).any()) and len(inputs) == 4, "some must halt early and some late"


def test_no_padding_reaches_halting_or_ponder():
    torch.manual_seed(0)
    model = loop(8, causal=False).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    poisoned = torch.where(mask[..., None], x, float("nan"))
    with collect() as found:
        model(poisoned, mask=mask)
    with collect() as alone:
        model(x[:1])
        model(x[1:, :3])
    wanted = (5 * alone["ponder"][0] + 3 * alone["ponder"][1]) / 8
    torch.testing.assert_close(found["ponder"][0], wanted)


def test_positions_begin_at_random_only_while_training():
    torch.manual_seed(0)
    model = loop(8, halting=False, offset=50)
    x = torch.randn(4, 5, 8)
    assert torch.equal(model.eval()(x)[0], model(x)[0])
    model.train()
    state = model.init_state(4)
    assert int(state.count.max()) > 0 and not torch.allclose(model(x)[0], model.eval()(x)[0])
    # The state keeps its row's offset, so chunks see what the whole sequence sees.
    whole, after = model(x, state)
    first, middle = model(x[:, :2], state)
    second, end = model(x[:, 2:], middle)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)
    assert torch.equal(end.count, after.count)


def test_codes_are_as_large_as_asked():
    """A loop over attention that sees everything learns of the order from its codes alone."""
    torch.manual_seed(0)
    model = loop(8, causal=False, halting=False).eval()
    x, order = torch.randn(1, 5, 8), [3, 2, 1, 0, 4]
    apart = {}
    for codes in (0.0, 0.1, 1.0):
        model.codes = codes
        apart[codes] = float((model(x)[0][:, -1] - model(x[:, order])[0][:, -1]).abs().max().detach())
    assert apart[0.0] < 1e-5 < apart[0.1] < apart[1.0]


def test_an_untrained_position_halts_by_its_bias():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    share = lambda bias: float(Halting(8, bias=bias)(0 * x).mean())
    assert abs(share(1.0) - 0.7311) < 1e-4 and abs(share(-1.0) - 0.2689) < 1e-4


def test_the_ponder_loss_is_added_reported_and_trained():
    data = tiny_data("pairs")
    torch.manual_seed(0)
    system = PAGE.build(
        data.spec, PAGE.config_type(dim=16, heads=2, feedforward=32, halting="act", dropout=0.0)
    )
    model = system.model.eval()
    batch = Batch(Seq.from_lists([[4, 5], [6]]), Seq.from_lists([[4, 2], [5, 2]]))
    plain = Likelihood()(model, batch, step=0)
    loss = WithSide(Likelihood(), {"ponder": 0.5, "absent": 1.0})(model, batch, step=0)
    torch.testing.assert_close(loss.total, plain.total + 0.5 * loss.parts["ponder"])
    assert set(loss.parts) == {"nll", "accuracy", "ponder"}
    loss.total.backward()
    assert model.encoder.mixer.mixers[0].halting.score.weight.grad.abs().sum() > 0


def test_side_losses_are_means_over_valid_steps():
    side("lost", torch.ones(1, 1))  # nobody collects
    with collect() as found:
        side("a", torch.tensor([[1.0, float("nan")]]), torch.tensor([[True, False]]))
        side("b", torch.tensor([[1.0, 3.0]]))
    assert float(found["a"][0]) == 1.0 and float(found["b"][0]) == 2.0 and set(found) == {"a", "b"}


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="--steps of at least 2"):
        PAGE.build(tiny_data("pairs").spec, PAGE.config_type(halting="act", steps=1))
    with pytest.raises(ValueError, match="cannot remember"):
        attend = AdditiveAttend(8, 8, 8, coverage=True)
        DepthBlock(Attention(8, 2), Pointwise(FeedForward(8)), partial(LayerNorm, 8), attend)
    with pytest.raises(ValueError, match="no state"):
        loop(8, causal=False).init_state(2)


def test_pointers_lead_where_they_say():
    for example in load_corpus("synthetic-pointers").test[:50]:
        *pairs, question = example.source.split()
        target = dict(p.split(">") for p in pairs)
        at, hops = question.split("*")
        for _ in range(int(hops)):
            at = target[at]
        assert at == example.target
    batch, hops = next(universal_check.questions(3, 64))
    for row, answer, k in zip(batch.source.data.tolist(), batch.target.data[:, 0].tolist(), hops.tolist()):
        at, asked = divmod(row[-1] - universal_check.PAIRS, universal_check.HOPS)
        for _ in range(k):
            at = row[at] % universal_check.ITEMS
        assert asked == k - 1 and at == answer


def test_attention_maps_average_over_depth():
    data = tiny_data("pairs")
    torch.manual_seed(0)
    model = PAGE.build(data.spec, PAGE.config_type(dim=16, heads=2, feedforward=32, steps=3)).model.eval()
    batch = Batch(Seq.from_lists([[4, 5, 6], [6, 7]]), None)
    maps = align(model, batch, [Hypothesis((4, 5, 6), 0.0), Hypothesis((5,), 0.0)])
    assert [tuple(m.shape) for m in maps] == [(4, 3), (2, 2)]
    for m in maps:
        torch.testing.assert_close(m.sum(1), torch.ones(len(m)))


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("universal-transformer", tmp_path, quick=True, say=lambda text: None)
    universal_check.check(check)
    assert check.write().is_file() and len(check.figures) == 2
