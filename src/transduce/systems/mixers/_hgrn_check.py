"""The full check of `hgrn`: first-token recall with and without the lower bounds, and what must hold exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from transduce.core.protocols import Claim
from transduce.data.synthetic.streams import first_token_recall
from transduce.models import Labeller
from transduce.nn.embed import Embed
from transduce.nn.feedforward import FeedForward
from transduce.nn.hgrn import HGRU, LowerBounds
from transduce.nn.stack import mixer_stack
from transduce.ops.gated import hgru
from transduce.train.check import Check
from transduce.train.plots import curves
from transduce.train.streams import smoothed, stream_accuracy, train_stream

CLASSES, STEPS, LAYERS, DIM, BATCH, UPDATES, RATE = 16, 40, 4, 32, 64, 1000, 3e-3
KINDS = {"with bounds": True, "without": False}


def network(bounded: bool, seed: int) -> Labeller:
    """Four layers of width 32 with real gates; both kinds begin from the same weights."""
    from .hgrn import Config, hgrn_layers

    torch.manual_seed(seed)
    mixers = hgrn_layers(Config(dim=DIM, layers=LAYERS, bounded=bounded, rotating=False))
    stack = mixer_stack(mixers, DIM, lambda: FeedForward(DIM, 2 * DIM, activation="swiglu"))
    return Labeller(Embed(2 * CLASSES + 1, DIM), stack, DIM, CLASSES)


def largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def forms_differ() -> dict[str, float]:
    """How far the whole sequence is from chunks and from steps, relative, in float64; T = 256."""
    torch.manual_seed(0)
    layer = HGRU(32, bound=LowerBounds(4, 32).layer(3)).double()
    x, found = torch.randn(4, 256, 32, dtype=torch.float64), {}
    whole, _ = layer(x)
    for name, size in (("chunks of 37", 37), ("steps", 1)):
        state, outputs = layer.init_state(4), []
        for part in x.split(size, 1):
            y, state = layer(part, state)
            outputs.append(y)
        found[name] = largest_difference(torch.cat(outputs, 1), whole)
    return found


@torch.no_grad()
def smallest_room(bounds: LowerBounds) -> float:
    """The least lambda - gamma over all layers and inputs up to sizes that close the gate. lambda is what becomes of
    a state of one when nothing is written."""
    least = float("inf")
    for floor in bounds():
        width = len(floor)
        gate = torch.linspace(-100, 100, 401, dtype=floor.dtype)[:, None, None].expand(-1, 1, width)
        kept = hgru(torch.cat((gate, torch.zeros_like(gate)), -1), floor, None, torch.ones(401, width).to(floor))
        least = min(least, float((kept[:, 0] - floor).min()))
    return least


def exact(report: Check, trained: LowerBounds) -> None:
    """Forms, bounds, and that the bounds are learned."""
    for name, difference in forms_differ().items():
        report.measure(
            f"complex scan against {name}, float64, relative",
            difference,
            Claim("forms", "one recurrence, however it is cut", at_most=1e-10),
        )
    with torch.no_grad():
        gammas = trained.double()()
    report.measure(
        "least lambda - gamma over layers and inputs",
        smallest_room(trained),
        Claim("bound", "no input opens the gate further than the bound allows", at_least=-1e-12),
    )
    report.measure(
        "least rise of gamma from a layer to the next",
        float((gammas[1:] - gammas[:-1]).min()),
        Claim("rising", "gamma never falls with depth", at_least=0.0),
    )
    lowest = float(gammas[0].abs().max())
    report.measure("gamma of the lowest layer", lowest, Claim("zero", "exactly zero", at_most=0.0))
    report.notes["mean gamma by layer after training"] = [round(float(g), 4) for g in gammas.mean(1)]


def check(report: Check) -> None:
    """Both kinds on two seeds, 1000 updates each."""
    task = first_token_recall(CLASSES, CLASSES, STEPS)
    updates = 4 if report.quick else UPDATES
    right: dict[str, list[float]] = {kind: [] for kind in KINDS}
    losses: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    trained, moved = LowerBounds(LAYERS, DIM), 0.0
    for kind, bounded in KINDS.items():
        for seed in report.seeds:
            net = network(bounded, seed)
            losses[kind].append(
                train_stream(
                    net, task, updates, batch=BATCH, learning_rate=RATE, seed=seed, say=report.say,
                    label=f"{kind}, seed {seed},",
                )
            )  # fmt: skip
            right[kind].append(stream_accuracy(net, task, seed=seed))
            if bounded:
                trained = next(m for m in net.modules() if isinstance(m, LowerBounds))
                moved = max(moved, float(trained.weight.grad.abs().max()))
    claims = {
        "with bounds": Claim("recall", "high layers are made to remember", at_least=0.95),
        "without": Claim("baseline", "nothing makes a layer remember for 38 steps", at_most=0.30),
    }
    for kind, values in right.items():
        claim = None if report.quick else claims[kind]
        report.measure(f"first-token recall {kind}, worst seed", _worst(kind, values), claim, baseline=1 / CLASSES)
        report.notes[f"accuracy {kind}, by seed"] = values
    report.measure(
        "largest gradient of the bounds", moved, Claim("learned", "the bounds take part in training", at_least=1e-12)
    )
    exact(report, trained)
    curves(
        {kind: smoothed(runs) for kind, runs in losses.items()},
        report.figure("recall"),
        x_label="update",
        y_label="training loss, nats",
        title=f"Recalling the first of {STEPS} symbols, four layers",
    )


def _worst(kind: str, values: list[float]) -> float:
    return min(values) if kind == "with bounds" else max(values)
