"""The full check of `lru`: what the ring and the normalisation are worth, exactness, and the variance of the modes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from transduce.core.protocols import Claim
from transduce.models import Labeller
from transduce.nn.recurrent import Elman
from transduce.nn.ssm import LRU, lru_block
from transduce.nn.stack import mixer_stack
from transduce.ops.diagonal_scan import diagonal_scan
from transduce.train.check import Check
from transduce.train.labels import label_accuracy, train_labels
from transduce.train.plots import curves

from ._digits import digits

WIDTH, LAYERS, EPOCHS, BATCH, RATE = 32, 2, 12, 16, 3e-3
KINDS = {"ring": "LRU, ring and gamma", "plain": "LRU, whole disc, no gamma", "rnn": "tanh RNN, 64 units"}


def network(kind: str) -> Labeller:
    """Two blocks of width 32 and the mean over time, or 64 tanh units and their last state."""
    if kind == "rnn":
        return Labeller(nn.Linear(1, 64), Elman(64), 64, 10, pool="last")
    if kind == "ring":
        blocks = [lru_block(WIDTH, ring=(0.9, 0.999), max_phase=math.pi / 10) for _ in range(LAYERS)]
    else:
        blocks = [lru_block(WIDTH, ring=(0.0, 1.0), normalise=False) for _ in range(LAYERS)]
    return Labeller(nn.Linear(1, WIDTH), mixer_stack(blocks, WIDTH), WIDTH, 10, pool="mean")


def _seeded(seed: int, kind: str) -> Labeller:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(kind)


def exactness() -> dict[str, float]:
    """Largest relative differences in float64 of scan, single steps and the sum of powers that defines both."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unit = LRU(16, 24).double()
    x = torch.randn(2, 200, 16, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        whole, end = unit(x, unit.init_state(2))
        state, steps = unit.init_state(2), []
        for x_t in x.split(1, 1):
            y, state = unit(x_t, state)
            steps.append(y)
        decay = torch.complex(*unit.decays())
        drive = torch.einsum("nd,btd->btn", torch.complex(*unit.input), x.to(torch.complex128)) * unit.log_gamma.exp()
        lag = torch.arange(200)[:, None] - torch.arange(200)
        power = torch.where((lag >= 0)[..., None], decay ** lag.clamp(min=0)[..., None], 0)
        h = torch.einsum("tsn,bsn->btn", power, drive)
        direct = (h @ torch.complex(*unit.output).mT).real + unit.skip * x

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max() / b.abs().max())

    return {
        "scan against single steps": apart(torch.cat(steps, 1), whole),
        "state of scan against that of single steps": apart(state, end),
        "scan against the sum of powers": apart(whole, direct),
    }


def variances(steps: int = 400_000) -> dict[float, tuple[float, float]]:
    """For each modulus: the variance of a mode under white input of unit variance over its ||B||^2, with gamma and
    without. Mean over 64 modes of random phase."""
    generator = torch.Generator().manual_seed(0)
    found: dict[float, tuple[float, float]] = {}
    for modulus in (0.5, 0.99, 0.999):
        phase = math.pi * torch.rand(64, generator=generator)
        decay = modulus * torch.stack((phase.cos(), phase.sin()))
        b = torch.randn(2, 64, 8, generator=generator)
        settled, total = min(round(10 / (1 - modulus)), steps // 8), 0.0
        x = torch.randn(1, steps // 4, 8, generator=generator)
        for _ in range(4):
            drive = (x @ b.flatten(0, 1).T).unflatten(-1, (2, 64))
            h = diagonal_scan(decay, drive)[:, settled:]
            total += float((h.square().sum(2).mean((0, 1)) / b.square().sum((0, 2))).mean()) / 4
            x = torch.randn(x.shape, generator=generator)
        found[modulus] = total * (1 - modulus**2), total
    return found


def check(report: Check) -> None:
    """Train the three networks on digits of 256 steps; measure what must be exact and what gamma is for."""
    seeds = list(report.seeds) if report.quick else sorted({*report.seeds, 0, 1, 2})
    data, epochs = digits(16), 1 if report.quick else EPOCHS
    train = tuple(t[:64] if report.quick else t for t in data["train"])
    right: dict[str, list[float]] = {kind: [] for kind in KINDS}
    losses: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for kind, title in KINDS.items():
        for seed in seeds:
            model = _seeded(seed, kind)
            losses[kind].append(train_labels(model, *train, epochs, batch=BATCH, learning_rate=RATE, seed=seed))
            right[kind].append(label_accuracy(model, *data["test"]))
            report.say(f"  {title}, seed {seed}: test accuracy {right[kind][-1]:.4f}")
        report.notes[f"{title}: weights"] = sum(p.numel() for p in network(kind).parameters())
    _claims(report, right)
    curves(
        {KINDS[kind]: (range(1, epochs + 1), list(zip(*runs))) for kind, runs in losses.items()},
        report.figure("learning"),
        x_label="epoch",
        y_label="training loss, nats",
        title="Digits pixel by pixel, 256 steps",
    )


def _claims(report: Check, right: dict[str, list[float]]) -> None:
    for kind, values in right.items():
        report.measure(f"{KINDS[kind]}: accuracy on 397 test digits", values)
    for other, points, reason in (
        ("plain", 0.15, "the ring and gamma are what makes it learn"),
        ("rnn", 0.25, "a nonlinear network forgets over 256 steps"),
    ):
        claim = Claim("gain", reason, at_least=points)
        gains = [a - b for a, b in zip(right["ring"], right[other])]
        report.measure(f"gain over {KINDS[other]}", gains, claim)
    for what, error in exactness().items():
        report.measure(f"float64: {what}", error, Claim("exact", "one function", at_most=1e-10))
    for modulus, (with_gamma, without) in variances(40_000 if report.quick else 400_000).items():
        away = abs(with_gamma - 1)
        claim = Claim("variance", "gamma keeps the variance of white input", at_most=0.05)
        report.measure(f"|lambda| = {modulus}: variance over ||B||^2, away from 1", away, claim, baseline=without - 1)
