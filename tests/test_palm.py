"""A language model as a regularised encoder-decoder: every switch obeys the laws, all on is the language
model."""

import itertools

import numpy as np
import pytest
import torch

from transduce import systems
from transduce.analysis import attention_mass, log_slope, ponder_times, source_sensitivity
from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.core.seq import Batch, Seq
from transduce.core.side import collect
from transduce.core.tap import record, replace
from transduce.models import RedForm, RedSize, RegularisedEncoderDecoder
from transduce.nn.attend import Memory
from transduce.nn.partial import PartialAttention
from transduce.objectives import Likelihood, WithSide
from transduce.ops.attention import attention
from transduce.systems.encoder_decoder import _palm_check as palm_check
from transduce.testing import check_decoder
from transduce.testing.system import tiny_data
from transduce.train.check import Check

PAGE = systems.find("palm-partial-attention")
SIZE = RedSize(16, 2, 2, 32)
FORMS = [
    RedForm(*switches, partial=partial, segments=partial != "none")
    for switches in itertools.product((True, False), repeat=4)
    for partial in ("none", "own", "shared")
    if partial != "shared" or switches[0]
]


def make(form, size=SIZE):
    torch.manual_seed(0)
    spec = tiny_data("pairs").spec
    return RegularisedEncoderDecoder(spec.source.symbols, spec.target.symbols, size, form)


def batch_of(rows):
    return tiny_data("pairs").train.batch(np.arange(rows))


def name_of(form):
    return (
        "".join(str(int(s)) for s in (form.coordinated, form.causal_source, form.shared, form.consecutive))
        + form.partial
    )


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_every_form_obeys_the_decoder_laws(form):
    model = make(form)
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    check_decoder(model, batch_of(3))


def test_all_switches_on_is_a_causal_language_model():
    assert palm_check.language_model_gap() < 1e-12


@pytest.mark.parametrize("switch", ["coordinated", "causal_source", "shared", "consecutive"])
def test_each_switch_changes_the_model(switch):
    batch = batch_of(3)
    on, off = make(RedForm()), make(RedForm(**{switch: False}))
    known = {k: v for k, v in on.state_dict().items() if k in off.state_dict()}
    off.load_state_dict({**off.state_dict(), **known})
    scores = [m.eval()(batch.previous, m.start(batch))[0].scores for m in (on, off)]
    assert not torch.allclose(*scores)


def test_the_source_loss_is_of_the_next_symbol_or_of_the_own_one():
    batch = batch_of(4)
    for causal in (True, False):
        model = make(RedForm(causal_source=causal)).eval()
        with collect() as found:
            model.start(batch)
        (offered,) = found["source"]
        assert offered.requires_grad
        alone = []
        for i in range(4):
            row = Batch(Seq(batch.source.data[i : i + 1, : int(batch.source.lengths[i])]), None)
            with collect() as one:
                model.start(row)
            alone.append((float(one["source"][0].detach()), row.source.steps - int(causal)))
        mean = sum(v * n for v, n in alone) / sum(n for _, n in alone)
        assert abs(float(offered.detach()) - mean) < 1e-5
    loss = WithSide(Likelihood(), {"source": 0.5})(model, batch, step=0)
    torch.testing.assert_close(loss.total, loss.parts["nll"] + 0.5 * loss.parts["source"])
    with collect() as found:
        make(RedForm(source_loss=False)).start(batch)
    assert not found


def test_a_causal_source_never_sees_ahead():
    model = make(RedForm()).double().eval()
    source = torch.randint(4, 8, (1, 5))
    other = source.clone()
    other[0, -1] = 4 if int(source[0, -1]) != 4 else 5
    keys = [model.start(Batch(Seq(s), None)).layers[1].source.value.keys for s in (source, other)]
    assert torch.equal(keys[0][:, :4], keys[1][:, :4]) and not torch.equal(keys[0][:, 4], keys[1][:, 4])


def test_one_softmax_over_source_and_past_equals_attention_over_both():
    torch.manual_seed(0)
    layer = PartialAttention(12, 3).double()
    s, x = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 4, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    memory = layer.memory(torch.where(mask[..., None], s, float("nan")), mask)
    y, _ = layer(x, None, states.Shared(memory))
    own = layer.memory(x, None)
    keys, values = (torch.cat(t, 1) for t in ((memory.keys, own.keys), (memory.values, own.values)))
    seen = torch.cat(
        (mask[:, None].expand(-1, 4, -1), torch.ones(4, 4, dtype=torch.bool).tril().expand(2, -1, -1)), -1
    )
    q = layer.query(x).unflatten(-1, (-1, 4))
    torch.testing.assert_close(y, layer.output(attention(q, keys, values, mask=seen[:, None]).flatten(2)))
    layer.partial = True
    with_partial, _ = layer(x, None, states.Shared(memory))
    extra = attention(q, memory.keys, memory.values, mask=mask[:, None, None]).flatten(2)
    with record(layer, "weights"):
        in_steps, _ = layer(x, None, states.Shared(memory))
    torch.testing.assert_close(in_steps, with_partial)
    torch.testing.assert_close(with_partial, y + extra @ layer.output.weight.mT)


def test_the_source_is_shared_by_beams():
    model = make(palm_check.PALM).eval()
    batch = batch_of(2)
    wide = states.expand(model.start(batch), 3)
    assert states.batch_size(wide) == 6
    for layer in wide.layers:
        assert layer.source.fanout == 3 and layer.source.value.keys.shape[0] == 2
        assert layer.partial.memory.value.keys.shape[0] == 2


def test_attention_mass_and_sensitivity_measure_what_they_say():
    mass = palm_check.gaussian_mass(rows=1024)
    expected = torch.tensor([24 / (24 + i) for i in range(1, 73)])
    assert float((mass / expected - 1).abs().max()) < 0.03
    assert palm_check.partial_mass() < 1e-12
    model = make(RedForm(), RedSize(8, 1, 1, 8)).double().eval()
    batch = Batch(Seq(torch.randint(4, 8, (2, 3))), Seq(torch.randint(4, 8, (2, 5))))
    found = attention_mass(model, batch)
    (layer,) = found.values()
    assert layer.shape == (5,) and bool(((0 < layer) & (layer < 1)).all())

    def read(vectors, row):
        one = Batch(Seq(batch.source.data[row : row + 1]), Seq(batch.target.data[row : row + 1]))
        with replace(model, {"source": lambda x: vectors}), record(model, "layers.0.read") as seen:
            model(one.previous, model.start(one))
        return seen["layers.0.read"][0][0, 2]

    with record(model, "source") as seen:
        model.start(batch)
    exact = []
    for row in range(2):
        x = seen["source"][0][row : row + 1].detach()
        exact.append(float(torch.autograd.functional.jacobian(lambda v, r=row: read(v, r), x).norm()))
    estimate = source_sensitivity(model, batch, "layers.0.read", places=[2], probes=400)
    assert abs(float(estimate[0]) / (sum(exact) / 2) - 1) < 0.1
    assert abs(log_slope([1, 2, 4], [3.0, 1.5, 0.75]) + 1) < 1e-12


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="--partial own"):
        PAGE.build(tiny_data("pairs").spec, PAGE.config_type(coordinated=False, partial="shared"))
    with pytest.raises(UserError, match="at least 0"):
        PAGE.build(tiny_data("pairs").spec, PAGE.config_type(source_loss=-1.0))
    with pytest.raises(UserError, match="No part of this model halts"):
        ponder_times(make(RedForm()), batch_of(2))
    with pytest.raises(UserError, match="one length"):
        attention_mass(make(RedForm()), batch_of(8))
    assert isinstance(make(RedForm()).start(batch_of(2)).layers[0].source.value, Memory)


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("palm-partial-attention", tmp_path, quick=True, say=lambda text: None)
    palm_check.check(check)
    assert check.write().is_file() and len(check.figures) == 3
