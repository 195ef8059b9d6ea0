"""The full check of `aaren`: its three forms against masked softmax, what a step costs, and what is refused."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.protocols import Claim, Mixer
from transduce.nn.aaren import Aaren
from transduce.nn.attention import Attention
from transduce.nn.feedforward import FeedForward
from transduce.nn.stack import mixer_stack
from transduce.ops.softmax_scan import softmax_scan
from transduce.train.check import Check
from transduce.train.plots import curves

STEPS, DECODED, PART = 777, 4096, 512
DIM, LAYERS = 128, 4


def check(report: Check) -> None:
    for dtype, scale in ((torch.float64, 1.0), (torch.float64, 300.0), (torch.float32, 30.0)):
        _forms(report, dtype, scale)
    _refusal(report)
    _cost(report)


# ---------------------------------------------------------------- exact


def masked_softmax(scores: Tensor, values: Tensor) -> Tensor:
    """The definition, (B,T,H) and (B,T,H,V), with a T by T matrix."""
    steps = scores.shape[1]
    above = torch.ones(steps, steps, dtype=torch.bool).triu(1)
    logits = scores.movedim(1, 2)[:, :, None].expand(-1, -1, steps, -1).masked_fill(above, -math.inf)
    return torch.einsum("bhts,bshv->bthv", torch.softmax(logits, -1), values)


def stepwise(scores: Tensor, values: Tensor) -> Tensor:
    state, found = None, []
    for score, value in zip(scores.split(1, 1), values.split(1, 1)):
        y, state = softmax_scan(score, value, state)
        found.append(y)
    return torch.cat(found, 1)


def _forms(report: Check, dtype: torch.dtype, scale: float) -> None:
    """Each form against the definition in float64, values and gradients for random output gradients."""
    g = torch.Generator().manual_seed(0)
    scores = (scale * torch.randn(2, STEPS, 2, generator=g, dtype=torch.float64)).to(dtype)
    values, weight = (torch.randn(2, STEPS, 2, 8, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))

    def run(form, exact: bool = False) -> list[Tensor]:
        inputs = [(t.double() if exact else t).clone().requires_grad_() for t in (scores, values)]
        y = form(*inputs)
        return [t.detach().double() for t in (y, *torch.autograd.grad(y, inputs, weight.to(y.dtype)))]

    truth = run(masked_softmax, exact=True)
    forms = {f"scan ({name})": lambda s, v, name=name: softmax_scan.run(name, s, v)[0] for name in softmax_scan.backends}
    worst = {"values": 0.0, "gradients": 0.0}
    for label, form in {**forms, "step by step": stepwise, "masked softmax": masked_softmax}.items():
        for place, (mine, true) in enumerate(zip(run(form), truth)):
            what = "gradients" if place else "values"
            error = float((mine - true).abs().max() / true.abs().max().clamp_min(1.0))
            if label != "masked softmax":
                worst[what] = max(worst[what], error)
            key = f"{label}, {what} off by, {str(dtype)[6:]}, scores of {scale:g}"
            report.notes[key] = max(error, report.notes.get(key, 0.0))
    limit = 1e-12 if dtype == torch.float64 else None
    for what, error in worst.items():
        claim = None if limit is None else Claim("exact", "scan, steps and masked softmax are one function", at_most=limit)
        report.measure(f"{what} of scan and steps, off by ({str(dtype)[6:]}, scores of {scale:g})", error, claim)


def _refusal(report: Check) -> None:
    try:
        Aaren(16, 2, query=nn.Linear(16, 16))
        refused = 0.0
    except ValueError:
        refused = 1.0
    report.measure("a query made from the token is refused", refused,
                   Claim("refused", "it has no state of constant size", at_least=1.0))  # fmt: skip


# ---------------------------------------------------------------- cost


@torch.no_grad()
def decode(mixer: Mixer, steps: int, dim: int) -> tuple[list[int], list[float], list[int]]:
    """Step by step: after every part of the text its length, the processor time of a step in microseconds, and the bytes
    of the state."""
    state, x = mixer.init_state(1), torch.randn(1, 1, dim)
    at, times, sizes = [], [], []
    begun = time.process_time()
    for step in range(1, steps + 1):
        _, state = mixer(x, state)
        if step % PART == 0:
            now = time.process_time()
            at.append(step)
            times.append(1e6 * (now - begun) / PART)
            sizes.append(states.nbytes(state))
            begun = time.process_time()
    return at, times, sizes


def _cost(report: Check) -> None:
    kinds = {"Aaren": Aaren, "attention with a cache": Attention}
    torch.manual_seed(0)
    stacks = {
        name: mixer_stack([kind(DIM) for _ in range(LAYERS)], DIM, lambda: FeedForward(DIM)).eval() for name, kind in kinds.items()
    }
    length = 2 * PART if report.quick else DECODED
    found: dict[str, tuple[list[int], list[float], list[int]]] = {}
    for name, stack in stacks.items():
        decode(stack, PART, DIM)  # warm: kernels are compiled at their first call
        # Of two runs the quicker parts: other work on the machine comes in bursts.
        runs = [decode(stack, length, DIM) for _ in range(2)]
        found[name] = (runs[0][0], [min(pair) for pair in zip(*(run[1] for run in runs))], runs[0][2])
    (_, ours, ours_bytes), (_, _, theirs_bytes) = found["Aaren"], found["attention with a cache"]
    quick = report.quick
    report.measure(f"time of a step, last {PART} of {length} to first {PART}", ours[-1] / ours[0],
                   None if quick else Claim("time", "a step costs the same at every position", at_most=1.5))  # fmt: skip
    report.measure(f"bytes of the state, behind {length} steps to behind {PART}", ours_bytes[-1] / ours_bytes[0],
                   Claim("bytes", "the state is constant", at_most=1.0))  # fmt: skip
    report.measure(f"the same of attention with a cache ({length // PART} where it is linear)",
                   theirs_bytes[-1] / theirs_bytes[0],
                   Claim("cache", "keys and values grow with the text", at_least=0.99 * length / PART))  # fmt: skip
    report.notes[f"state of {LAYERS} layers behind the last step, bytes"] = {name: f[2][-1] for name, f in found.items()}
    size = f"{LAYERS} layers of width {DIM}"
    curves(
        {name: (f[0], [n / 2**20 for n in f[2]]) for name, f in found.items()}, report.figure("bytes"),
        x_label="symbols so far", y_label="MiB of the state", title=f"What is kept of the past, {size}",
    )  # fmt: skip
    curves(
        {name: (f[0], [t / 1000 for t in f[1]]) for name, f in found.items()}, report.figure("time"),
        x_label="symbols so far", y_label="processor time of a step, ms", title=f"What the next symbol costs, {size}",
    )  # fmt: skip
