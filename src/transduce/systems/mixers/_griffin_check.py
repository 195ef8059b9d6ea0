"""The full check of `griffin`: bytes far beyond the training length, beside a Transformer; and what holds exactly."""

from __future__ import annotations

from functools import partial
from typing import Iterator

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.protocols import Claim, Model
from transduce.core.seq import BOS, Batch, Seq
from transduce.data import load_corpus
from transduce.models import mixer_language_model
from transduce.nn import Attention, FeedForward, GriffinRecurrent, RGLRU
from transduce.objectives import Likelihood
from transduce.ops.gated import rg_lru
from transduce.train.check import Check, train_steps
from transduce.train.plots import curves

TRAIN_BYTES, SHORT, LONG, DIM, HEADS, WINDOW = 1_000_000, 128, 1024, 96, 4, 64
UPDATES, BATCH, RATE, WINDOWS, SYMBOLS = 400, 32, 3e-3, 96, 260
"""WINDOWS texts of LONG bytes are scored; ids of bytes begin at 4."""


def descriptions(quick: bool) -> tuple[Tensor, Tensor]:
    """Bytes (as ids) of synopses and descriptions of Debian's packages: 1 million to train on, and as many of other
    packages as are scored."""
    corpus = load_corpus("debian-descriptions")
    found = []
    for part, size in ((corpus.train, TRAIN_BYTES), (corpus.test, WINDOWS * LONG)):
        text, have = [], 0
        for example in part:
            text.append(f"{example.target}\n{example.source}\n\n".encode())
            have += len(text[-1])
            if have >= size:
                break
        found.append(torch.tensor(list(b"".join(text)[:size])) + 4)
    return found[0], found[1][: 4 * LONG] if quick else found[1]


def random_windows(ids: Tensor, seed: int) -> Iterator[Batch]:
    """Endless batches of windows of SHORT bytes."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - SHORT, (BATCH, 1), generator=generator)
        yield Batch(None, Seq(ids[starts + torch.arange(SHORT)]))


def transformer() -> Model:
    """Three layers of attention to everything, rotary positions, of Griffin's width and MLP."""
    mixers = [Attention(DIM, HEADS, position="rotary") for _ in range(3)]
    return mixer_language_model(mixers, SYMBOLS, DIM, partial(FeedForward, DIM, 3 * DIM, activation="geglu"))


def griffin() -> Model:
    from .griffin import Config, griffin_layers

    mixers = griffin_layers(Config(dim=DIM, heads=HEADS, window=WINDOW))
    return mixer_language_model(mixers, SYMBOLS, DIM, partial(FeedForward, DIM, 3 * DIM, activation="geglu"))


MODELS = {"Griffin": griffin, "Transformer": transformer}


@torch.no_grad()
def losses(model: Model, rows: Tensor) -> Tensor:
    """-log p of every byte of (N,T) ids in nats, each row from its first byte on."""
    found = []
    for part in rows.split(max(1, 8192 // rows.shape[1])):
        previous = torch.cat((torch.full_like(part[:, :1], BOS), part[:, :-1]), 1)
        state = model.start(Batch(None, Seq(part)), continues=False)
        found.append(-model(previous, state)[0].log_prob(part))
    return torch.cat(found)


def far_and_near(model: Model, held_out: Tensor) -> tuple[Tensor, float, float]:
    """Mean loss by position (LONG,); of bytes 512 to 1023 of every text; and of the same bytes where they are bytes
    64 to 127 of what the model is given."""
    texts = held_out.unflatten(0, (-1, LONG))
    far = losses(model, texts)
    near = texts[:, LONG // 2 - SHORT // 2 :].unfold(1, SHORT, SHORT // 2).flatten(0, 1)
    return far.mean(0), float(far[:, LONG // 2 :].mean()), float(losses(model, near)[:, SHORT // 2 :].mean())


@torch.no_grad()
def forms() -> dict[str, float]:
    """Relative differences in float64 that must vanish."""
    torch.manual_seed(0)
    layer = RGLRU(32).double()
    x, found = torch.randn(3, 256, 32, dtype=torch.float64), {}
    whole = layer(x)[0]
    for name, size in (("chunks of 37", 37), ("steps", 1)):
        found[f"RG-LRU, whole against {name}"] = _difference(_in_pieces(layer, x, size), whole)
    # the same recurrence by pairs of pairs: (a, b) after (a', b') is (a a', a b' + b)
    rate = -8 * torch.nn.functional.softplus(layer.rate)
    pre = layer.gates(x)
    fresh = torch.zeros(3, 256, dtype=torch.bool)
    fresh[:, 0] = True
    r, i = torch.sigmoid(pre).chunk(2, -1)
    a = torch.exp(r * rate).masked_fill(fresh[..., None], 0)
    b = torch.sqrt(1 - a * a) * (i * x)
    span = 1
    while span < 256:
        before_a, before_b = a.roll(span, 1), b.roll(span, 1)
        before_a[:, :span], before_b[:, :span] = 1, 0
        a, b, span = a * before_a, a * before_b + b, 2 * span
    found["RG-LRU, step by step against log-depth"] = _difference(rg_lru(x, pre, rate, resets=fresh), b)
    cuts = torch.zeros(3, 256, dtype=torch.bool)
    cuts[:, [50, 51, 180]] = True
    for name, mixer in (("recurrent block", GriffinRecurrent(32).double()), ("RG-LRU", layer)):
        apart = torch.cat([mixer(part)[0] for part in x.tensor_split((50, 51, 180), 1)], 1)
        found[f"{name}, packed against apart"] = _difference(mixer(x, resets=cuts)[0], apart)
    local = Attention(32, 4, kv_heads=1, window=64, position="half-rotary").double()
    found["local attention, ring of keys against the masked whole"] = _difference(_in_pieces(local, x, 1), local(x)[0])
    return found


def _in_pieces(mixer: torch.nn.Module, x: Tensor, size: int) -> Tensor:
    state, outputs = mixer.init_state(len(x)), []
    for part in x.split(size, 1):
        y, state = mixer(part, state)
        outputs.append(y)
    return torch.cat(outputs, 1)


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@torch.no_grad()
def state_bytes(model: Model) -> dict[int, int]:
    """Bytes that the state of one text holds after so many steps."""
    ids = torch.full((1, 1), 40)
    state, found = model.start(Batch(None, Seq(ids))), {}
    for step in range(1, 257):
        _, state = model(ids, state)
        if step in (64, 128, 256):
            found[step] = states.nbytes(state)
    return found


def check(report: Check) -> None:
    """Both models on every seed, the same windows of text in the same order."""
    for name, difference in forms().items():
        report.measure(f"{name}, float64, relative", difference, Claim("forms", "one function", at_most=1e-12))
    train, held_out = descriptions(report.quick)
    rises: dict[str, list[float]] = {name: [] for name in MODELS}
    curve: dict[str, list[Tensor]] = {name: [] for name in MODELS}
    for name, make in MODELS.items():
        for seed in report.seeds:
            torch.manual_seed(seed)
            model = make()
            train_steps(
                model, Likelihood(), random_windows(train, seed), 4 if report.quick else UPDATES, learning_rate=RATE,
                say=report.say, label=f"{name}, seed {seed},",
            )  # fmt: skip
            by_position, far, near = far_and_near(model, held_out)
            rises[name].append(far - near)
            curve[name].append(by_position)
            report.notes[f"{name}, seed {seed}"] = {
                "nats a byte, bytes 512 to 1023": round(far, 4),
                "the same bytes as bytes 64 to 127": round(near, 4),
                "bytes 64 to 127 of the same texts": round(float(by_position[64:128].mean()), 4),
                "parameters": sum(p.numel() for p in model.parameters()),
            }
        _sizes(report, name, state_bytes(model))
    claims = {
        "Griffin": Claim("far", "the state does not know how long training texts were", at_most=0.02),
        "Transformer": Claim("baseline", "positions beyond training are new to it", at_least=0.3),
    }
    for name, values in rises.items():
        claim = None if report.quick else claims[name]
        report.measure(f"{name}: nats a byte lost from bytes 64-127 to bytes 512-1023", values, claim)
    places = range(32, LONG + 1, 32)
    curves(
        {
            name: (list(places), [tuple(float(c[p - 32 : p].mean()) for c in found) for p in places])
            for name, found in curve.items()
        },
        report.figure("length"),
        x_label=f"byte of the text (trained on {SHORT})",
        y_label="nats a byte",
        title="Debian's package descriptions, beyond the training length",
    )


def _sizes(report: Check, name: str, found: dict[int, int]) -> None:
    growth = found[256] / found[128]
    claim = Claim("constant", "nothing grows once the window is full", at_most=1.0) if name == "Griffin" else None
    report.measure(f"{name}: state bytes after 256 steps over those after 128", growth, claim)
    report.notes[f"{name}: state bytes by steps"] = found
