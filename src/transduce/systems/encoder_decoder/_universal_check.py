"""The full check of `universal-transformer`: pointer chasing, halting by difficulty, exact identities."""

from __future__ import annotations

from functools import partial
from typing import Iterator

import torch
from torch import Tensor, nn

from transduce.core.dist import Dist
from transduce.core.protocols import Claim, Mixer, Model
from transduce.core.seq import Batch, Seq
from transduce.core.state import State
from transduce.core.tap import record
from transduce.models import SequenceEncoder
from transduce.nn.attention import Attention
from transduce.nn.combine import Pointwise, Serial
from transduce.nn.depth import DepthBlock, DepthLoop, Halting
from transduce.nn.embed import Embed, Head
from transduce.nn.feedforward import FeedForward
from transduce.nn.norm import LayerNorm
from transduce.objectives import Likelihood, WithSide
from transduce.train.check import Check, Cycle, train_steps
from transduce.train.plots import curves

ITEMS, HOPS, WIDTH, HIDDEN, STEPS = 8, 4, 48, 96, 6
PAIRS = ITEMS * ITEMS
KINDS = {"tied": "6 tied steps", "act": "6 tied steps at most, ACT", "one": "one layer"}


class PairEmbed(nn.Module):
    """A token (i, j) as the sum of a vector of i and one of j: the question's start and a pointer's item share
    their vector, as they mean the same. Ids as :func:`questions` writes them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Embed(ITEMS, width, scale=True), Embed(ITEMS + HOPS, width, scale=True)

    def forward(self, ids: Tensor) -> Tensor:
        asks = ids >= PAIRS
        question = ids - PAIRS
        first = torch.where(asks, question // HOPS, ids // ITEMS)
        second = torch.where(asks, ITEMS + question % HOPS, ids % ITEMS)
        return self.first(first) + self.second(second)


class Answer(Model):
    """An encoder whose state at the question, the last step, is the answer."""

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, Head(WIDTH, ITEMS)

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> State:
        return self.encoder(batch.source)[0].data[:, -1:]

    def forward(self, prev: Tensor, state: State, *, mask: Tensor | None = None) -> tuple[Dist, State]:
        return self.head(state), state


def block() -> DepthBlock:
    """18,960 parameters."""
    return DepthBlock(
        Attention(WIDTH, 4, position=None, causal=False),
        Pointwise(FeedForward(WIDTH, HIDDEN, activation="relu")),
        partial(LayerNorm, WIDTH),
    )


def build(kind: str) -> Answer:
    """ "tied", "act", or "one": the same block applied once."""
    halting = Halting(WIDTH, bias=HALTING) if kind == "act" else None
    mixer: Mixer = DepthLoop(block(), WIDTH, 1 if kind == "one" else STEPS, halting=halting, codes=CODES)
    if kind == "act":
        mixer = Serial(mixer, Pointwise(LayerNorm(WIDTH)))
    return Answer(SequenceEncoder(PairEmbed(WIDTH), mixer))


def questions(seed: int, batch: int = 128) -> Iterator[tuple[Batch, Tensor]]:
    """Random permutations as tokens (i, p(i)), a question (start, k), and the answer p^k(start); k (B,)
    beside."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(batch)
    while True:
        target = torch.rand(batch, ITEMS, generator=generator).argsort(1)
        start = torch.randint(ITEMS, (batch,), generator=generator)
        hops = torch.randint(1, HOPS + 1, (batch,), generator=generator)
        answer = start
        for hop in range(HOPS):
            answer = torch.where(hop < hops, target[rows, answer], answer)
        tokens = torch.arange(ITEMS) * ITEMS + target
        question = PAIRS + start * HOPS + hops - 1
        yield Batch(Seq(torch.cat((tokens, question[:, None]), 1)), Seq(answer[:, None])), hops


@torch.no_grad()
def accuracy(model: Model, rows: int = 8192) -> tuple[list[float], list[float]]:
    """Share of right answers by number of hops, and the mean depth at the question where positions halt."""
    batch, hops = next(questions(999, rows))
    with record(model, "*.depth") as seen:
        dist, _ = model(batch.previous, model.start(batch, continues=False))
    right = (dist.mode() == batch.target.data)[:, 0].float()
    depth = next(iter(seen.values()))[0][:, -1] if seen else torch.zeros(rows)
    by_hops = lambda t: [float(t[hops == k].mean()) for k in range(1, HOPS + 1)]
    return by_hops(right), by_hops(depth)


# ---------------------------------------------------------------- exact parts


def reference_halting(p: list[float], threshold: float) -> tuple[list[float], int, float]:
    """One position in plain numbers: (weights, steps, remainder) for its halting shares ``p``, one a depth
    step."""
    weights: list[float] = []
    spent = 0.0
    for s, share in enumerate(p):
        if spent + share > threshold or s == len(p) - 1:
            return [*weights, 1.0 - spent], s + 1, 1.0 - spent
        weights.append(share)
        spent += share
    raise AssertionError("a position halts at the last step")


@torch.no_grad()
def identities() -> dict[str, float]:
    """Largest differences in float64: of halting from :func:`reference_halting`, of the sums of weights from
    1, and of one step without halting from torch's own Transformer layer."""
    torch.manual_seed(0)
    loop = DepthLoop(block(), WIDTH, STEPS, halting=Halting(WIDTH)).double()
    nn.init.normal_(loop.halting.score.weight, std=0.3)
    nn.init.constant_(loop.halting.score.bias, -1.0)
    shares: list[Tensor] = []
    loop.halting.register_forward_hook(lambda module, inputs, p: shares.append(p))
    x = torch.randn(4, 9, WIDTH, dtype=torch.float64)
    with record(loop) as seen:
        loop(x)
    p, weights = torch.stack(shares, -1), seen["halting"][0]
    worst = 0.0
    for found, depth, ponder, own in zip(
        *(t.flatten(0, 1).tolist() for t in (weights, seen["depth"][0], seen["ponder"][0], p))
    ):
        wanted, steps, remainder = reference_halting(own, loop.halting.threshold)
        wanted += [0.0] * (len(found) - len(wanted))
        worst = max(
            worst,
            abs(depth - steps),
            abs(ponder - steps - remainder),
            *(abs(a - b) for a, b in zip(found, wanted)),
        )
    return {
        "halting, against a scalar loop": worst,
        "halting weights, their sum against 1": float((weights.sum(-1) - 1.0).abs().max()),
        "one step, against a Transformer layer": _one_step(),
    }


def _one_step() -> float:
    """One step without halting on x against ``nn.TransformerEncoderLayer`` on x + codes, with the same
    weights."""
    from transduce.nn.position import sinusoidal

    once = DepthLoop(block(), WIDTH, 1).double()
    layer = nn.TransformerEncoderLayer(WIDTH, 4, HIDDEN, 0.0, batch_first=True, dtype=torch.float64).eval()
    b = once.block
    names = {
        "self_attn.in_proj_weight": b.mixer.project.weight,
        "self_attn.in_proj_bias": b.mixer.project.bias,
        "self_attn.out_proj.weight": b.mixer.output.weight,
        "self_attn.out_proj.bias": b.mixer.output.bias,
        "linear1.weight": b.transition.module.widen.weight,
        "linear1.bias": b.transition.module.widen.bias,
        "linear2.weight": b.transition.module.narrow.weight,
        "linear2.bias": b.transition.module.narrow.bias,
        "norm1.weight": b.mixer_norm.weight,
        "norm1.bias": b.mixer_norm.bias,
        "norm2.weight": b.transition_norm.weight,
        "norm2.bias": b.transition_norm.bias,
    }
    layer.load_state_dict(names)
    x = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    code = sinusoidal(torch.arange(7)[None], WIDTH, x.dtype) + sinusoidal(torch.ones(1, 1), WIDTH, x.dtype)
    # A mask keeps torch off its fused inference path, which rounds differently.
    return float((once(x)[0] - layer(x + code, torch.zeros(7, 7, dtype=torch.bool))).abs().max())


# ---------------------------------------------------------------- the claims


def check(report: Check) -> None:
    """Train the tied loop, the loop with halting and one layer under one number of steps; measure by hops."""
    for name, difference in identities().items():
        report.measure(
            f"{name}: largest difference", difference, Claim("exact", "an identity, float64", at_most=1e-12)
        )
    found: dict[str, list[tuple[list[float], list[float]]]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for seed in report.seeds:
            found[kind].append(accuracy(_trained(kind, seed, report)))
    _claims(report, found)
    _draw(report, found)


def _trained(kind: str, seed: int, report: Check) -> Answer:
    """2000 batches of 128 with Adam, the same for every model."""
    torch.manual_seed(seed)
    model = build(kind)
    objective = WithSide(Likelihood(), {"ponder": 0.01}) if kind == "act" else Likelihood()
    steps = 4 if report.quick else 2000
    train_steps(
        model,
        objective,
        (batch for batch, _ in questions(seed)),
        steps,
        learning_rate=RATE,
        say=report.say,
        label=f"{KINDS[kind]}, seed {seed},",
    )
    return model


RATE, CODES, HALTING = Cycle(2e-3, warmup=0.4), 0.1, -2.0
"""Chosen on other questions than those of the check. With codes of full size 2000 steps teach the tied loop one hop
and no second one at any rate from 6e-4 to 3e-3: six times they come on top of what the steps have found, and here the
tokens themselves say who they are. A block with its norms behind needs a long warm-up: with the peak, from 1e-3 to
3e-3, after a tenth of the steps, one seed's tied loop was right at two hops 29 to 42 times of 100, with this one 100.
Halting begins with all six steps: where it begins earlier, the ponder loss can make questions give up after one step
before their second hop is found, and then it never is (seen at 1 and at -1, not at -2)."""


def _claims(report: Check, found: dict[str, list[tuple[list[float], list[float]]]]) -> None:
    right = {kind: [row[0] for row in rows] for kind, rows in found.items()}
    depth = [row[1] for row in found["act"]]
    for kind, label in KINDS.items():
        report.notes[f"accuracy by hops, {label}"] = [[round(v, 4) for v in row] for row in right[kind]]
    report.notes["depth at the question by hops, ACT"] = [[round(v, 3) for v in row] for row in depth]
    report.notes["parameters of the block"] = sum(p.numel() for p in block().parameters())
    report.measure(
        "two hops: accuracy of 6 tied steps",
        [row[1] for row in right["tied"]],
        Claim("two_hops", "the second application of the block follows the second pointer", at_least=0.75),
        baseline=sum(row[1] for row in right["one"]) / len(right["one"]),
    )
    report.measure(
        "two hops: accuracy of 6 tied steps above one layer of equal block parameters",
        [a[1] - b[1] for a, b in zip(right["tied"], right["one"])],
        Claim("above_one_layer", "depth, not parameters, is what was missing", at_least=0.35),
    )
    report.measure(
        "two hops: accuracy with ACT",
        [row[1] for row in right["act"]],
        baseline=sum(row[1] for row in right["one"]) / len(right["one"]),
    )
    report.measure(
        "ACT: steps at a two-hop question above those at a one-hop question",
        [row[1] - row[0] for row in depth],
        Claim("halting_by_difficulty", "harder questions are pondered longer", at_least=1.0),
    )


def _draw(report: Check, found: dict[str, list[tuple[list[float], list[float]]]]) -> None:
    hops = list(range(1, HOPS + 1))
    lines = {
        label: (hops, [list(column) for column in zip(*(row[0] for row in found[kind]))])
        for kind, label in KINDS.items()
    }
    start = [1 / 8, 2 / 8, 2 / 8, 3 / 8]
    curves(
        {**lines, "answering with the start": (hops, start)},
        report.figure("hops"),
        x_label="hops asked for",
        y_label="share of right answers",
        title="Applying one block again follows one more pointer",
    )
    curves(
        {"ACT": (hops, [list(column) for column in zip(*(row[1] for row in found["act"]))])},
        report.figure("depth"),
        x_label="hops asked for",
        y_label="steps before the question halts",
        title="Harder questions are pondered longer",
    )
