"""Recurrent layers with heads: the laws, equality with a dense matrix of blocks, with torch and with the plain loop."""

import pytest
import torch
from torch import nn

from transduce.nn import GRU, LSTM, SLSTM, Elman, Recurrence, from_torch
from transduce.ops.dispatch import use_backend
from transduce.testing import check_mixer

LAYERS = {"Elman": Elman, "GRU": GRU, "LSTM": LSTM, "SLSTM": SLSTM}
GATES = {"Elman": 1, "GRU": 3, "LSTM": 4, "SLSTM": 4}


@pytest.mark.parametrize("name", LAYERS)
def test_laws(name):
    check_mixer(lambda d: LAYERS[name](d, 12, heads=3), dtype=torch.float32)


def test_laws_of_the_sLSTM_one_step_after_the_other():
    check_mixer(lambda d: SLSTM(d, heads=2, solver="loop"))


@pytest.mark.parametrize("name", LAYERS)
def test_states_and_gradients_are_those_of_a_plain_loop(name):
    """Three heads of eight, twenty steps, as the paper's tests are."""
    torch.manual_seed(0)
    fused = LAYERS[name](24, heads=3).double()
    x = torch.randn(4, 20, 24, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in (fused, Recurrence(fused.cell, solver="loop")):
        y, state = layer(x, layer.init_state(4))
        last = state[1] if isinstance(state, tuple) else state
        found.append([y, last, *torch.autograd.grad(y.square().sum() + last.sum(), [x, *fused.parameters()])])
    for got, want in zip(*found):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_heads_are_a_dense_matrix_of_blocks(name):
    torch.manual_seed(0)
    headed, dense = LAYERS[name](12, heads=3), LAYERS[name](12, heads=1)
    with torch.no_grad():
        blocks = [torch.block_diag(*gate.split(4)) for gate in headed.cell.weight.split(12)]
        dense.load_state_dict({**headed.state_dict(), "cell.weight": torch.cat(blocks)})
    x = torch.randn(5, 9, 12)
    torch.testing.assert_close(headed(x)[0], dense(x)[0])
    assert len(blocks) == GATES[name]


@pytest.mark.parametrize("backend", ["reference", "loop"])
def test_one_head_is_the_lstm_of_torch(backend):
    torch.manual_seed(0)
    theirs = nn.LSTM(24, 24, batch_first=True).double()
    ours = from_torch(theirs)
    x = torch.randn(3, 20, 24, dtype=torch.float64, requires_grad=True)
    with use_backend(backend):
        y, _ = ours(x)
    want, _ = theirs(x)
    torch.testing.assert_close(y, want)
    (got,), (true,) = (torch.autograd.grad(o.square().sum(), x) for o in (y, want))
    torch.testing.assert_close(got, true)


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 16 cannot be cut into 3 heads"):
        LSTM(16, heads=3)
