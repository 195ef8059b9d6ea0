"""Training and decoding of whole encoder-decoders against other toolkits: ``python -m benchmarks.seq2seq --venvs DIR``.

Two models of 256 channels over 8000 symbols: a Transformer of 3 + 3 layers with 4 heads and 1024 inner channels, and
a two-way GRU with a GRU decoder and additive attention, all matrices their own. Training: steps of 64 pairs of 25
source and 25 target symbols with Adam, dropout and label smoothing 0.1, the same random pairs for everyone. Decoding:
25 symbols a sentence from random weights that cannot end a sentence, one sentence or 32 at a time.

"transduce fit" is what ``transduce fit`` does with a batch: the page's training settings (weight average included), the
heap kept, bf16 where it measures faster. The others run as they are installed, in float32, through their own loop of
training steps and their own search (see ``benchmarks/peer_onmt.py`` for OpenNMT-py).

Limit: the multiply-adds of all matrix products (three times as many for training) at the rate of a large float32
product in the same process; given for training only, since decoding is bound by other things.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Result, measure, run, seconds

WIDTH, INNER, HEADS, LAYERS, VOCABULARY = 256, 1024, 4, 3, 8000
ROWS, SOURCE, TARGET = 64, 25, 25
DROPOUT = SMOOTHING = 0.1
STEPS = 3
"""Training steps in one timed call, each with pairs of its own."""

MODELS = ("transformer", "rnnsearch")
SEARCHES = ("greedy batch 1", "beam 5 batch 1", "greedy batch 32", "beam 5 batch 32")
CASES = [f"{model} {work}" for work in ("train", *SEARCHES) for model in MODELS]

FIT = ("transduce fit", "transduce fit, float32", "transduce fit, float32, heap left alone")
TORCH, ONMT, ONMT_PLAIN = "torch nn.Transformer, plain loop", "OpenNMT-py", "OpenNMT-py, no input feed"


def peers(case: str) -> list[str]:
    model, work = case.split(" ", 1)
    extra = [ONMT_PLAIN] if model == "rnnsearch" else []
    if work != "train":
        return ["transduce", ONMT, *extra]
    return [*FIT, *([TORCH] if model == "transformer" else []), ONMT, *extra]


def pairs(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sources (rows,25) and targets (rows,24) of ordinary symbols; whoever trains adds the marks to the targets."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda steps: torch.randint(4, VOCABULARY, (rows, steps), generator=generator)
    return draw(SOURCE), draw(TARGET - 1)


def multiply_adds(model: str) -> int:
    """Of the matrix products of one forward pass over a training batch."""
    d, head = WIDTH, WIDTH * VOCABULARY
    if model == "transformer":
        source = LAYERS * (4 * d * d + 2 * d * INNER + 2 * SOURCE * d + 2 * d * d)  # the last: keys, values for the target
        target = LAYERS * (6 * d * d + 2 * d * INNER + 2 * (TARGET + SOURCE) * d) + head
    else:
        source = 2 * 3 * (d // 2) * (d + d // 2) + d * d
        target = 3 * d * 3 * d + d * d + 2 * SOURCE * d + 3 * d * d + head
    return ROWS * (SOURCE * source + TARGET * target)


def product_rate() -> float:
    """Multiply-adds a second of a large float32 product."""
    square = torch.randn(1024, 1024)
    return 1024**3 / min(seconds(lambda: square @ square, budget=0.5))


# ---------------------------------------------------------------- transduce


def our_system(name: str):
    from transduce import systems
    from transduce.data import DataSpec, TextField
    from transduce.data.fields import SPECIAL

    field = TextField("words", (*SPECIAL, *(f"w{i:04}" for i in range(VOCABULARY - len(SPECIAL)))))
    page = systems.find(name)
    shared = {"dropout": DROPOUT, "label_smoothing": SMOOTHING}
    if name == "transformer":
        config = page.config_type(
            dim=WIDTH, heads=HEADS, encoder_layers=LAYERS, decoder_layers=LAYERS, feedforward=INNER, **shared
        )
    else:
        config = page.config_type(embed=WIDTH, encoder=WIDTH // 2, hidden=WIDTH, attention=WIDTH, **shared)
    torch.manual_seed(0)
    return page.build(DataSpec(field, field, SOURCE, TARGET), config)


def our_training(name: str, how: str) -> tuple[Callable[[], object], str]:
    from transduce.core.heap import keep_large_blocks
    from transduce.core.seq import EOS, Batch, Seq
    from transduce.train.engine import Engine

    if "heap" not in how:
        keep_large_blocks()
    system = our_system(name)
    config = replace(system.train, precision="float32" if "float32" in how else "auto")
    engine = Engine(system.model, system.objective, config)
    batches = [
        Batch(Seq(source), Seq(nn.functional.pad(target, (0, 1), value=EOS)))
        for source, target in (pairs(ROWS, seed) for seed in range(STEPS))
    ]
    engine.choose_precision(batches[0])
    counter = itertools.count()

    def steps() -> None:
        for batch in batches:
            engine.update([batch], next(counter), 1e-4)

    return steps, f"{engine.precision}, {parameters(system.model)}"


def our_decoding(name: str, beam: int, rows: int) -> tuple[Callable[[], object], str]:
    from transduce.core.heap import keep_large_blocks
    from transduce.core.seq import EOS, Batch, Seq
    from transduce.search import Beam, Greedy

    keep_large_blocks()
    model = our_system(name).model.eval()
    with torch.no_grad():
        model.decoder.head.bias[EOS] = -1e4
    batch = Batch(Seq(pairs(rows, 0)[0]), None)
    search = Greedy(TARGET) if beam == 1 else Beam(beam, max_length=TARGET)
    found = search(model, batch)
    if any(len(best.ids) != TARGET for best, *_ in found):
        raise ValueError(f"sentences of other lengths than {TARGET}")
    return lambda: search(model, batch), parameters(model)


def parameters(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"


# ---------------------------------------------------------------- torch


class Plain(nn.Module):
    """What torch's documentation leads to: ``nn.Transformer`` between embeddings and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Parameter(torch.randn(SOURCE + TARGET, WIDTH) * 0.02)
        self.layers = nn.Transformer(
            WIDTH, HEADS, LAYERS, LAYERS, INNER, DROPOUT, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, previous: Tensor) -> Tensor:
        hidden = nn.Transformer.generate_square_subsequent_mask(previous.shape[1])
        x, y = (e(ids) * WIDTH**0.5 for e, ids in ((self.source, source), (self.target, previous)))
        x, y = x + self.places[: x.shape[1]], y + self.places[: y.shape[1]]
        return self.head(self.layers(x, y, tgt_mask=hidden, tgt_is_causal=True))


def plain_training() -> tuple[Callable[[], object], str]:
    torch.manual_seed(0)
    model = Plain().train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    batches = []
    for source, target in (pairs(ROWS, seed) for seed in range(STEPS)):
        batches.append((source, nn.functional.pad(target, (1, 0), value=1), nn.functional.pad(target, (0, 1), value=2)))

    def steps() -> None:
        for source, previous, target in batches:
            scores = model(source, previous)
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), target.flatten(), label_smoothing=SMOOTHING)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()

    return steps, f"float32, {parameters(model)}"


# ---------------------------------------------------------------- the contest


def child(case: str, peer: str) -> Result:
    model, work = case.split(" ", 1)
    if work == "train":
        limit = 3 * multiply_adds(model) / product_rate()
        call, note = training(model, peer)
        found = measure(case, peer, call, limit, repeats=STEPS)
        units, unit = ROWS * TARGET, "target symbols"
    else:
        rows = int(work.rsplit(" ", 1)[1])
        call, note = decoding(model, peer, 5 if "beam" in work else 1, rows)
        found = measure(case, peer, call, None)
        units, unit = rows, "sentences"
    return replace(found, units=units, unit=unit, note=note)


def training(model: str, peer: str) -> tuple[Callable[[], object], str]:
    if peer in FIT:
        return our_training(model, peer)
    if peer == TORCH:
        return plain_training()
    from benchmarks import peer_onmt

    return peer_onmt.training(model, input_feed=peer != ONMT_PLAIN)


def decoding(model: str, peer: str, beam: int, rows: int) -> tuple[Callable[[], object], str]:
    if peer == "transduce":
        return our_decoding(model, beam, rows)
    from benchmarks import peer_onmt

    return peer_onmt.decoding(model, beam, rows, input_feed=peer != ONMT_PLAIN)


def law(name: str) -> None:
    """The decoder laws of a page's model on a small vocabulary."""
    import numpy as np

    from transduce import systems
    from transduce.testing.decoder import check_decoder
    from transduce.testing.system import tiny_data

    data, page = tiny_data("pairs"), systems.find(name)
    torch.manual_seed(0)
    system = page.build(data.spec, page.config_type())
    check_decoder(system.model, data.train.batch(np.arange(len(data.train))))


def main() -> int:
    laws = {f"the model of {name}": lambda name=name: law(name) for name in MODELS}
    homes = {ONMT: "onmt", ONMT_PLAIN: "onmt"}
    return run(Benchmark("seq2seq", __doc__, CASES, peers, child, laws=laws, environments=homes))


if __name__ == "__main__":
    raise SystemExit(main())
