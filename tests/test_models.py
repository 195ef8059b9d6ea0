"""Models: teacher forcing equals stepping, padding and beams change nothing, objectives compute what they say."""

import pytest
import torch

from transduce.core import state as states
from transduce.core.seq import Batch, Seq
from transduce.core.tap import record, replace
from transduce.models import (
    EncoderDecoder,
    LastStep,
    MeanStep,
    RecurrentDecoder,
    SequenceEncoder,
    VectorEncoder,
)
from transduce.nn.attend import AdditiveAttend
from transduce.nn.embed import Embed, Head
from transduce.nn.recurrent import GRUCell, Recurrence
from transduce.objectives import Likelihood, Weighted, ramp

SOURCES = [[4, 5, 6], [7, 8], [9, 4, 5, 6, 7]]
TARGETS = [[4, 5, 2], [6, 7, 8, 2], [2]]


def recurrent(attention: int | None) -> EncoderDecoder:
    torch.manual_seed(0)
    encoder = SequenceEncoder(Embed(10, 6), Recurrence(GRUCell(6, 12)))
    if attention is None:
        encoder = VectorEncoder(encoder, LastStep())
    decoder = RecurrentDecoder(
        Embed(11, 6),
        12,
        16,
        Head(16, 11),
        embed_width=6,
        dropout=0.1,
        attend=None if attention is None else AdditiveAttend(16, 12, attention),
    )
    return EncoderDecoder(encoder, decoder).double().eval()


def batch(rows=slice(None)) -> Batch:
    return Batch(Seq.from_lists(SOURCES[rows]), Seq.from_lists(TARGETS[rows]))


@pytest.mark.parametrize("attention", [None, 8])
def test_stepping_equals_teacher_forcing(attention):
    model, b = recurrent(attention), batch()
    whole, end = model(b.previous, model.start(b, continues=False), mask=b.target.mask)
    state, valid = model.start(b), b.target.valid()
    for u in range(b.target.steps):
        step, state = model(b.previous[:, u : u + 1], state, mask=valid[:, u : u + 1])
        torch.testing.assert_close(step.scores[:, 0][valid[:, u]], whole.scores[:, u][valid[:, u]])
    torch.testing.assert_close(state.hidden, end.hidden)


@pytest.mark.parametrize("attention", [None, 8])
def test_rows_do_not_depend_on_their_batch(attention):
    model, b = recurrent(attention), batch()
    whole, _ = model(b.previous, model.start(b))
    for i in range(3):
        one = batch(slice(i, i + 1))
        alone, _ = model(one.previous, model.start(one))
        torch.testing.assert_close(alone.scores[0], whole.scores[i, : one.target.steps])


@pytest.mark.parametrize("attention", [None, 8])
def test_beams_share_the_memory(attention):
    model, b = recurrent(attention), batch()
    wide = states.expand(model.start(b), 3)
    assert states.batch_size(wide) == 9
    memory = wide.source if attention is None else wide.source.memory
    assert memory.fanout == 3 and all(t.shape[0] == 3 for t in states.leaves(memory.value))
    scores, after = model(b.previous[:, :1].repeat_interleave(3, 0), wide)
    plain, _ = model(b.previous[:, :1], model.start(b))
    torch.testing.assert_close(scores.scores, plain.scores.repeat_interleave(3, 0))
    moved = states.reorder(after, torch.tensor([[2, 1, 0]] * 3))
    assert moved.source is after.source or moved.source.memory is after.source.memory


def test_attention_weights_are_tapped_and_normalised():
    model, b = recurrent(8), batch()
    with torch.no_grad(), record(model, "*.weights") as seen:
        model(b.previous, model.start(b))
    weights = torch.cat(seen["decoder.attend.weights"], 1)
    assert weights.shape == (3, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 4, dtype=torch.float64))
    assert (weights[1, :, 2:] == 0).all(), "padding of the source must get no weight"
    with torch.no_grad(), replace(model, {"decoder.attend.weights": torch.zeros_like}):
        edited, _ = model(b.previous, model.start(b))
    plain, _ = model(b.previous, model.start(b))
    assert not torch.allclose(edited.scores, plain.scores)


def test_a_code_must_be_one_vector():
    model = recurrent(None)
    with pytest.raises(ValueError, match="one vector a row"):
        model.decoder.start(3, Seq(torch.zeros(3, 2, 12, dtype=torch.float64)))


def test_summaries_read_valid_steps_only():
    data = torch.arange(12.0).view(2, 3, 2)
    memory = Seq.from_lengths(data, torch.tensor([3, 1]))
    torch.testing.assert_close(LastStep()(memory), torch.stack([data[0, 2], data[1, 0]]))
    torch.testing.assert_close(MeanStep()(memory), torch.stack([data[0].mean(0), data[1, 0]]))


def test_likelihood_equals_its_equation():
    model, b = recurrent(8), batch()
    dist, _ = model(b.previous, model.start(b))
    log_p, valid = dist.scores, b.target.valid()
    nll = -log_p.gather(-1, b.target.data[..., None])[..., 0][valid]
    plain = Likelihood()(model, b, step=0)
    torch.testing.assert_close(plain.total, nll.mean())
    assert plain.weight == 8
    smooth = Likelihood(0.1)(model, b, step=0)
    expected = 0.9 * nll.mean() - 0.1 * log_p.mean(-1)[valid].mean()
    torch.testing.assert_close(smooth.total, expected)
    torch.testing.assert_close(smooth.parts["nll"], nll.mean())


def test_token_weights_weight_tokens():
    model, b = recurrent(8), batch()
    first_only = lambda log_p, batch, step: torch.nn.functional.one_hot(
        torch.zeros(len(log_p), dtype=torch.long), log_p.shape[1]
    ).to(log_p.dtype)
    dist, _ = model(b.previous, model.start(b))
    loss = Likelihood(token_weights=first_only)(model, b, step=0)
    torch.testing.assert_close(loss.total, -dist.log_prob(b.target.data)[:, 0].mean())


def test_weighted_sums_and_schedules():
    model, b = recurrent(8), batch()
    both = Weighted({"a": (Likelihood(), 1.0), "b": (Likelihood(0.2), ramp(10, 20))})
    a, b_loss = Likelihood()(model, b, step=0).total, Likelihood(0.2)(model, b, step=0).total
    torch.testing.assert_close(both(model, b, step=0).total, a)
    middle = both(model, b, step=15)
    torch.testing.assert_close(middle.total, a + 0.5 * b_loss)
    assert {"a", "b", "a/nll", "b/nll"} <= set(middle.parts)


def test_gradients_reach_every_parameter():
    model, b = recurrent(8), batch()
    Likelihood()(model, b, step=0).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().sum() > 0, name
