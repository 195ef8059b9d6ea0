"""RWKV-4 beside transformers' RwkvModel with the same weights; skipped where that package is not installed."""

import pytest
import torch
from torch import nn

from transduce.nn import LayerNorm, Pointwise, Residual, Serial, rwkv4_layers

transformers = pytest.importorskip("transformers", reason="the witness is transformers' RwkvModel")


def same_weights(theirs: nn.Module) -> Serial:
    """The blocks of a transformers RwkvModel, its first and last norm included, as our mixers: embeddings (B,T,D) in, last
    hidden states out."""
    dim, blocks = theirs.config.hidden_size, theirs.blocks
    norms: list[LayerNorm] = []

    def norm(module: nn.LayerNorm) -> LayerNorm:
        norms.append(LayerNorm(dim, eps=module.eps))
        norms[-1].load_state_dict(module.state_dict())
        return norms[-1]

    parts = [Pointwise(norm(blocks[0].pre_ln))]
    for mixer, (module, before) in zip(
        rwkv4_layers(dim, len(blocks)),
        ((m, n) for b in blocks for m, n in ((b.attention, b.ln1), (b.feed_forward, b.ln2))),
    ):
        for name in ("key", "value", "receptance", "output"):
            if hasattr(module, name):
                getattr(mixer, name).load_state_dict(getattr(module, name).state_dict())
        mixes = [getattr(module, f"time_mix_{name}", None) for name in ("receptance", "key", "value")]
        with torch.no_grad():
            mixer.shift.mix.copy_(torch.cat([m for m in mixes if m is not None], 1))
            if hasattr(module, "time_decay"):
                mixer.decay.copy_(module.time_decay)
                mixer.bonus.copy_(module.time_first)
        parts.append(Residual(mixer, norm=norm(before)))
    return Serial(*parts, Pointwise(norm(theirs.ln_out)))


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    config = transformers.RwkvConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=3, context_length=64, rescale_every=0
    )
    theirs = transformers.RwkvModel(config).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return theirs, same_weights(theirs).eval()


@torch.no_grad()
def test_outputs_of_a_whole_sequence(pair):
    theirs, ours = pair
    ids = torch.randint(50, (3, 23), generator=torch.Generator().manual_seed(0))
    want = theirs(ids).last_hidden_state
    got, _ = ours(theirs.embeddings(ids))
    error = float((got - want).abs().max())
    print(f"\nRWKV-4, float32: outputs differ by {error:.1e}")
    assert error < 2e-5


@torch.no_grad()
def test_states_behind_a_sequence_and_the_steps_after_it(pair):
    """One row: transformers' step of several rows is wrong."""
    theirs, ours = pair
    ids = torch.randint(50, (1, 23), generator=torch.Generator().manual_seed(1))
    embedded = theirs.embeddings(ids)
    out = theirs(ids[:, :17], use_cache=True)
    _, state = ours(embedded[:, :17], ours.init_state(1))
    for layer in range(3):
        time_mix, channel_mix = state[1 + 2 * layer], state[2 + 2 * layer]
        shift_ffn, shift_att, numerator, denominator, peak = (part[0, :, layer] for part in out.state)
        torch.testing.assert_close(channel_mix[0], shift_ffn, atol=2e-5, rtol=0)
        torch.testing.assert_close(time_mix.last[0], shift_att, atol=2e-5, rtol=0)
        m, u, w = time_mix.average[0].unbind(-1)
        for mine, their in ((m, peak), (u, denominator), (w, numerator)):
            torch.testing.assert_close(mine, their, atol=2e-5, rtol=2e-5)
    past = out.state
    for t in range(17, 23):
        step = theirs(ids[:, t : t + 1], state=past, use_cache=True)
        past = step.state
        y, state = ours(embedded[:, t : t + 1], state)
        torch.testing.assert_close(y[:, 0], step.last_hidden_state.view(1, -1), atol=2e-5, rtol=0)
