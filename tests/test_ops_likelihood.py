"""The cost of symbols under a softmax: its law, half precision, and the objective that uses it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from transduce.core.dist import Categorical
from transduce.core.seq import Batch, Seq
from transduce.objectives import Likelihood
from transduce.ops.dispatch import use_backend
from transduce.ops.likelihood import cross_entropy
from transduce.testing.ops import check_op


def test_backends_agree():
    check_op(cross_entropy)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
def test_half_precision_costs_no_accuracy_in_the_sums(smoothing):
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(2, 9, 9001, generator=generator)).bfloat16()
    target = torch.randint(9001, (2, 9), generator=generator)
    grad = torch.rand(2, 9, generator=generator)
    exact, half = logits.double().requires_grad_(), logits.clone().requires_grad_()
    want, _, mode = cross_entropy.reference(exact, target, smoothing=smoothing)
    got, log_p, best = cross_entropy.run("blocks", half, target, smoothing=smoothing)
    assert got.dtype == log_p.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-5)
    assert torch.equal(best, mode)
    true = torch.autograd.grad(want, exact, grad.double())[0]
    found = torch.autograd.grad(got, half, grad)[0]
    assert found.dtype == torch.bfloat16
    assert float((found.double() - true).abs().max()) < 2**-7 * float(true.abs().max())


def test_the_gradient_can_be_asked_for_twice():
    logits = torch.randn(1, 2, 5, requires_grad=True)
    cost, _, _ = cross_entropy.run("blocks", logits, torch.tensor([[1, 4]]), smoothing=0.1)
    first = torch.autograd.grad(cost.sum(), logits, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(cost.sum(), logits)[0])


def test_equal_symbols_go_to_the_lowest_id():
    logits = torch.tensor([[[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]])
    for backend in cross_entropy.backends:
        assert cross_entropy.run(backend, logits, torch.zeros(1, 2, dtype=torch.long))[2].tolist() == [[1, 0]]


@dataclass(frozen=True)
class Opaque:
    """The same distribution, of a kind that the objective does not know."""

    inner: Categorical

    def log_prob(self, y: Tensor) -> Tensor:
        return self.inner.log_prob(y)

    def mode(self) -> Tensor:
        return self.inner.mode()

    @property
    def scores(self) -> Tensor:
        return self.inner.scores


class Fixed(torch.nn.Module):
    def __init__(self, logits: Tensor, opaque: bool) -> None:
        super().__init__()
        self.logits, self.opaque = torch.nn.Parameter(logits), opaque

    def start(self, batch, **how):
        return None

    def forward(self, prev, state, *, mask=None):
        dist = Categorical(self.logits)
        return Opaque(dist) if self.opaque else dist, state


@pytest.mark.parametrize("smoothing", (0.0, 0.2))
@pytest.mark.parametrize("backend", ("reference", "blocks"))
def test_the_objective_is_the_same_for_any_distribution(smoothing, backend):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    batch = Batch(None, Seq.from_lists([[4, 5, 2], [6, 2], [4, 4, 5, 2]]))
    found = []
    for opaque in (False, True):
        model = Fixed(logits.clone(), opaque)
        with use_backend(cross_entropy=backend):
            loss = Likelihood(smoothing)(model, batch, step=0)
            loss.total.backward()
        found.append((loss.total.detach(), loss.parts["nll"], loss.parts["accuracy"].double(), model.logits.grad))
    for known, unknown in zip(*found):
        torch.testing.assert_close(known, unknown)
