"""The full check of `lmuformer`: the delay line itself, written digits against GRU and plain LMU, streaming, spikes, early
answers to spoken digits.

All networks are taught alike: with noisy inputs, and to answer from the first 40 % of a sequence on, since who is only
asked at the end does not learn to answer before it. Epochs are few: behind three times as many a plain LMU is as good as
LMUFormer on the validation part, 97 % both.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Callable

import torch
from torch import Tensor, nn

from transduce.core.protocols import Claim, Mixer
from transduce.core.tap import record
from transduce.models import Labeller
from transduce.nn.combine import Serial
from transduce.nn.lmu import LMU, lmuformer_block, patch_embedding, spiking_lmuformer_block
from transduce.nn.recurrent import GRU
from transduce.ops.hippo import delay, discretize, legendre
from transduce.ops.lti import lti
from transduce.train.check import Check
from transduce.train.labels import label_accuracy, train_labels
from transduce.train.plots import curves

from ._digits import Sequences, digits
from ._spoken import BANDS, Listener, spoken_digits, steps

WIDTH, MEMORY, WINDOW, EPOCHS, BATCH, RATE, DECAY = 48, 32, 64.0, 16, 32, 6e-3, 0.1
"""MEMORY: 64 pixels are eight columns, and fewer than 2 x 8 + 1 coefficients cannot tell what repeats with every column."""
SPIKING_EPOCHS, SPOKEN_EPOCHS = 96, 12
POINTS = [i / 64 for i in range(1, 65)]
"""Shares of a sequence after which the answer is looked at."""
KINDS = {"lmuformer": "LMUFormer", "spiking": "spiking LMUFormer", "gru": "GRU", "lmu": "plain LMU"}


def network(kind: str, features: int = 1) -> Listener:
    """About 40,000 weights each, read by the mean over time of its features."""
    make: dict[str, tuple[int, Callable[[], Mixer]]] = {
        "lmuformer": (WIDTH, partial(_blocks, lmuformer_block, False)),
        "spiking": (WIDTH, partial(_blocks, spiking_lmuformer_block, True)),
        "gru": (80, lambda: GRU(80)),
        "lmu": (180, lambda: LMU(180, memory=MEMORY, window=WINDOW)),
    }
    width, mixer = make[kind]
    return Listener(Labeller(nn.Linear(features, width), mixer(), width, 10, pool="mean"))


def _blocks(block: Callable[..., Mixer], spiking: bool) -> Mixer:
    front = patch_embedding(WIDTH, 2, spiking=spiking)
    return Serial(front, block(WIDTH, memory=MEMORY, window=WINDOW))


# ---------------------------------------------------------------- the delay line


def forms(size: int, steps: int = 784) -> float:
    """Largest difference of recurrence and FFT convolution in float64, relative to the largest coefficient."""
    g = torch.Generator().manual_seed(size)
    a, b = discretize(*delay(size, 128.0), torch.ones(1, dtype=torch.float64), "zoh")
    u = torch.randn(1, steps, 1, generator=g, dtype=torch.float64)
    by_steps, by_fft = (lti.run(backend, a, b, None, u)[0] for backend in ("reference", "blocks"))
    return float((by_steps - by_fft).abs().max() / by_steps.abs().max())


def reconstruction(size: int, *, half_sample: bool = True, window: float = 100.0, steps: int = 1000) -> float:
    """Root mean square error, relative to the signal, of all delays up to the window read from ``size`` coefficients. The
    signal has up to two cycles a window. An input that is held over its step is on average half a step old."""
    g = torch.Generator().manual_seed(7)
    at = torch.arange(steps, dtype=torch.float64)
    cycles = 2 * torch.rand(6, generator=g, dtype=torch.float64) / window
    phases = 2 * torch.pi * torch.rand(6, generator=g, dtype=torch.float64)
    u = torch.sin(2 * torch.pi * cycles * at[:, None] + phases).sum(1)
    a, b = discretize(*delay(size, window), torch.ones(1, dtype=torch.float64), "zoh")
    m, _ = lti(a, b, None, u[None, :, None])
    delays = torch.arange(round(window))
    shift = 0.5 if half_sample else 0.0
    read = legendre(size, 2 * (delays.double() + shift) / window - 1)
    start = 3 * round(window)
    times = torch.arange(start, steps)
    wanted = u[times[:, None] - delays]
    return float((m[0, start:, 0] @ read.T - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


# ---------------------------------------------------------------- digits


@dataclass
class Trained:
    model: Listener
    losses: list[float]
    seconds: float


def train(kind: str, seed: int, epochs: int, data: Sequences) -> Trained:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network(kind, data.inputs.shape[2])
        started = time.process_time()
        losses = train_labels(
            model, *data, epochs, batch=BATCH, learning_rate=RATE, weight_decay=DECAY, seed=seed
        )  # fmt: skip
    return Trained(model, losses, time.process_time() - started)


def seconds_per_epoch(kind: str, data: Sequences) -> float:
    """Processor time of an epoch, the second of two."""
    train(kind, 0, 1, Sequences(*(t[:BATCH] for t in data)))  # kernels are compiled
    return train(kind, 0, 1, data).seconds


@torch.no_grad()
def streamed(model: Labeller, inputs: Tensor, chunk: int) -> Tensor:
    """(N,T,10): at every step the logits of the mean of the features so far, from chunks and states alone."""
    state, total, count, found = model.mixer.init_state(len(inputs)), 0.0, 0, []
    for piece in inputs.nan_to_num().split(chunk, 1):
        h, state = model.mixer(model.embed(piece), state)
        sums = total + h.cumsum(1)
        past = torch.arange(count + 1, count + 1 + h.shape[1])[:, None]
        found.append(model.head(sums / past))
        total, count = sums[:, -1:], count + h.shape[1]
    return torch.cat(found, 1)


def early(model: Listener, data: Sequences) -> list[float]:
    """Accuracy of the running mean after each of the POINTS, shares of a sequence's own length."""
    right = (streamed(model.labeller, data.inputs, 16).argmax(-1) == data.labels[:, None]).float()
    ends = (steps(data.inputs)[:, None] * torch.tensor(POINTS)).ceil().long() - 1
    return right.gather(1, ends).mean(0).tolist()


@torch.no_grad()
def firing_rate(model: Listener, inputs: Tensor) -> float:
    """Share of neurons and steps that spike, over all layers."""
    with record(model, "*.spikes") as seen:
        model(inputs)
    spikes = [s for calls in seen.values() for s in calls]
    lengths = steps(inputs)
    heard = torch.arange(int(lengths.max())) < lengths[:, None]
    return float(sum(s[heard].sum() for s in spikes) / sum(s[heard].numel() for s in spikes))


def check(report: Check) -> None:
    """Measure the delay line, then train all networks on digits of 64 steps, column by column, and one on spoken ones."""
    _delay_line(report)
    written, spoken = digits(8, by_columns=True), spoken_digits()
    training = Sequences(*(t[:64] if report.quick else t for t in written["train"]))
    epochs = dict.fromkeys(KINDS, 1 if report.quick else EPOCHS)
    if not report.quick:
        epochs["spiking"] = SPIKING_EPOCHS
        cost = {kind: seconds_per_epoch(kind, training) for kind in ("lmuformer", "gru", "lmu")}
        for kind in ("gru", "lmu"):  # the same processor time
            epochs[kind] = max(1, round(EPOCHS * cost["lmuformer"] / cost[kind]))
    found = {kind: _all_seeds(report, kind, "", epochs[kind], training) for kind in KINDS}
    _claims(report, found, written["test"])
    training = Sequences(*(t[:64] if report.quick else t for t in spoken["train"]))
    few = 1 if report.quick else SPOKEN_EPOCHS
    heard = _all_seeds(report, "lmuformer", " on speech", few, training)
    _early(report, found, written["test"], heard, spoken["test"])


def _all_seeds(report: Check, kind: str, where: str, epochs: int, data: Sequences) -> list[Trained]:
    runs, title = [], KINDS[kind] + where
    for seed in report.seeds:
        runs.append(train(kind, seed, epochs, data))
        report.say(f"  {title}, seed {seed}: {epochs} epochs, {runs[-1].seconds:.1f} s of processor time")
    weights = sum(p.numel() for p in runs[0].model.parameters())
    report.notes[title] = {"weights": weights, "epochs": epochs, "seconds": [r.seconds for r in runs]}
    return runs


def _delay_line(report: Check) -> None:
    for size in (12, 64, 256):
        claim = Claim("forms", "recurrence and convolution are one function", at_most=1e-12)
        report.measure(f"{size} coefficients, 784 steps, float64: recurrence against FFT", forms(size), claim)
    claim = Claim("delay", "A, B and their discretization are right", at_most=0.002)
    without = reconstruction(12, half_sample=False)
    report.measure("12 coefficients, window of 100: error of all delays", reconstruction(12), claim, baseline=without)
    claim = Claim("few", "six coefficients do not hold two cycles", at_least=0.2)
    report.measure("6 coefficients, window of 100: error of all delays", reconstruction(6), claim)


def _claims(report: Check, found: dict[str, list[Trained]], test: Sequences) -> None:
    right = {kind: [label_accuracy(r.model, *test) for r in runs] for kind, runs in found.items()}
    for kind, values in right.items():
        report.measure(f"{KINDS[kind]}: accuracy on 397 test digits", values)
    for other in ("gru", "lmu"):
        gains = [a - b for a, b in zip(right["lmuformer"], right[other])]
        claim = Claim("gain", "blocks and convolutions around a delay line pay", at_least=0.0)
        report.measure(f"LMUFormer over {KINDS[other]} in equal processor time", gains, claim)
    gains = [a - b for a, b in zip(right["spiking"], right["lmuformer"])]
    claim = Claim("spiking", "spikes carry nearly as much", at_least=-0.03)
    report.measure("spiking LMUFormer over LMUFormer", gains, claim)
    rates = [firing_rate(r.model, test.inputs) for r in found["spiking"]]
    report.measure("share of neurons that spike at a step", rates, Claim("rate", "spikes are sparse", at_most=0.25))
    for kind in ("lmuformer", "spiking"):
        apart = [_streaming_error(r.model, test.inputs) for r in found[kind]]
        claim = Claim("streaming", "one function, by steps or at once", at_most=1e-9)
        report.measure(f"{KINDS[kind]}, float64: streaming against offline logits", apart, claim)


def _early(
    report: Check, found: dict[str, list[Trained]], test: Sequences, heard: list[Trained], words: Sequences
) -> None:
    """How soon the answer stands. The claim is held on speech, as published; a digit is read to its last column."""
    kept = "share of the sequence after which 99 % of the final accuracy is kept"
    report.measure("LMUFormer: accuracy on 300 spoken digits", [label_accuracy(r.model, *words) for r in heard])
    seen = {"LMUFormer, spoken digits": [early(r.model, words) for r in heard]}
    seen |= {KINDS[kind]: [early(r.model, test) for r in found[kind]] for kind in ("lmuformer", "spiking", "gru")}
    report.measure(f"LMUFormer, written digits: {kept}", [_share(run) for run in seen["LMUFormer"]])
    shares = [_share(run) for run in seen["LMUFormer, spoken digits"]]
    claim = Claim("early", "most of the sequence suffices", at_most=0.70)
    report.measure(f"LMUFormer: {kept}", shares, claim)
    curves(
        {label: (POINTS, list(zip(*runs))) for label, runs in seen.items()},
        report.figure("early"),
        x_label="share of the sequence that was seen or heard",
        y_label="accuracy of the answer so far",
        title="Digits as a stream: the running answer",
    )


def _streaming_error(model: Listener, inputs: Tensor) -> float:
    model = model.double()
    with torch.no_grad():
        offline, stream = model(inputs.double()), streamed(model.labeller, inputs.double(), 1)
    model.float()
    stream = stream[range(len(inputs)), steps(inputs) - 1]
    return float((offline - stream).abs().max() / offline.abs().max())


def _share(accuracies: list[float]) -> float:
    """After which share of the steps the accuracy is 99 % of the final one or more, and stays so."""
    enough = [a >= 0.99 * accuracies[-1] for a in accuracies]
    last_short = max((i for i, good in enumerate(enough) if not good), default=-1)
    return (last_short + 2) / len(accuracies)
