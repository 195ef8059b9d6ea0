"""The full check of `pointer-networks`: hulls against a fixed output, lengths never seen, exact identities, tours."""

from __future__ import annotations

import random
import time
from typing import Any, Sequence

import numpy as np
import torch
from torch import Tensor

from transduce.core.dist import Categorical
from transduce.core.protocols import Claim, Hypothesis, Model, Searcher
from transduce.core.seq import UNK, Batch, Seq
from transduce.core.state import State
from transduce.data import DataSpec, Encoded, Example, Loader, Prepared, batches, encode, prepare
from transduce.data.synthetic import geometry, make
from transduce.nn.attend import AdditiveAttend
from transduce.nn.embed import Embed, Head
from transduce.nn.recurrent import LSTMCell, Recurrence
from transduce.objectives import Likelihood
from transduce.search import Beam, EachOnce, Greedy, ratio
from transduce.train.check import Check, train_steps
from transduce.train.plots import curves, point_sets

HIDDEN, STEPS, BATCH, RATE = 96, 1500, 128, 6e-3
SIZES = (5, 6, 7, 8, 10, 12)
SEEN = 8


class FixedOutput(Model):
    """The baseline: an LSTM encoder-decoder with additive attention and one output for each position up to the longest
    one of training. It cannot name a later one."""

    def __init__(self, points: int, num_symbols: int, hidden: int) -> None:
        super().__init__()
        self.encoder = Recurrence(LSTMCell(points, hidden))
        self.embed, self.decoder = Embed(num_symbols, hidden), Recurrence(LSTMCell(hidden, hidden))
        self.attend, self.head = AdditiveAttend(hidden, hidden, hidden), Head(2 * hidden, num_symbols)

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> State:
        source = batch.source
        encoded, last = self.encoder(source.data, self.encoder.init_state(batch.size), mask=source.mask)
        return last, self.attend.start(Seq(encoded, source.mask))

    def forward(
        self, prev: Tensor, state: State, *, mask: Tensor | None = None
    ) -> tuple[Categorical, State]:
        h, after = self.decoder(self.embed(prev), state[0], mask=mask)
        context, memory = self.attend(h, state[1])
        return self.head(torch.cat((h, context), -1)), (after, memory)


def build(kind: str, spec: DataSpec) -> Model:
    from .pointer_networks import Config, pointer_networks

    if kind == "fixed":
        return FixedOutput(spec.source.size, spec.target.size, HIDDEN)
    return pointer_networks(spec, Config(hidden=HIDDEN)).model


def train(kind: str, task: str, seed: int, data: Prepared, report: Check) -> Model:
    """1,500 batches of 128 sets with Adam, the same for either kind."""
    torch.manual_seed(seed)
    model = build(kind, data.spec)
    source, target = data.train.lengths()
    symbols = int(BATCH * (source.mean() + target.mean()))
    steps = 4 if report.quick else STEPS
    stream = iter(Loader(data.train, batch_symbols=symbols, seed=seed))
    label = f"{task}, {'pointer' if kind == 'pointer' else 'fixed output'}, seed {seed},"
    train_steps(model, Likelihood(), stream, steps, learning_rate=RATE, clip=2.0, say=report.say, label=label)
    return model


def fresh(task: str, size: int, spec: DataSpec, rows: int) -> tuple[list[Any], Encoded]:
    """Sets of one size that training never saw, and what a model reads of them."""
    rng = random.Random(f"fresh/{task}/{size}")
    sets = [geometry.random_points(rng, size) for _ in range(rows)]
    answers = (" ".join(map(str, a)) for a in geometry.TASKS[task][0](sets))
    examples = [Example(geometry.write_points(s), a, (a,)) for s, a in zip(sets, answers)]
    return sets, encode(examples, spec.source, spec.target)


def decoded(model: Model, search: Searcher, part: Encoded) -> list[list[int]]:
    """The positions that a search names for each row; none where it finds no answer."""
    found: list[Sequence[Hypothesis]] = [()] * len(part)
    for batch in batches(part, 8192):
        for row, best in zip(batch.rows, search(model, Batch(batch.source, None, batch.rows))):
            found[row] = best
    return [[i - UNK for i in best[0].ids] if best else [] for best in found]


def hull_figures(model: Model, spec: DataSpec, size: int, rows: int) -> dict[str, float]:
    """Share of hulls named exactly, of simple polygons among the answers, and the mean area these cover."""
    sets, part = fresh("hull", size, spec, rows)
    answers = decoded(model, Greedy(ratio(2.0, 10)), part)
    exact = [[*map(int, e.target.split())] == a for e, a in zip(part.examples, answers)]
    covered = [geometry.hull_coverage(s, a) for s, a in zip(sets, answers)]
    simple = [c for c in covered if c is not None]
    return {
        "exact": float(np.mean(exact)),
        "area": float(np.mean(simple)) if simple else 0.0,
        "invalid": 1.0 - len(simple) / len(covered),
    }


# ---------------------------------------------------------------- what holds exactly


@torch.no_grad()
def mass_on_padding(model: Model, spec: DataSpec) -> float:
    """Largest probability of a position behind the end of its source, in a batch of sets of 5 and of 12 points."""
    examples = [e for n in (5, 12) for e in fresh("hull", n, spec, 20)[1].examples]
    part = encode(examples, spec.source, spec.target)
    batch = part.batch(np.arange(len(part)))
    dist, _ = model(batch.previous, model.start(batch, continues=False), mask=batch.target.mask)
    padded = ~batch.source.valid()[:, None].expand(-1, batch.target.steps, -1)
    return float(dist.scores.exp()[..., UNK + 1 :][padded].max())


def unfaithful_permutations(rows: int) -> int:
    """How many hulls of permuted points are not the permuted hull, begun at its lowest position."""
    rng, wrong = random.Random(3), 0
    for _ in range(rows):
        points = geometry.random_points(rng, rng.randint(5, 12))
        order = rng.sample(range(len(points)), len(points))
        place = {old + 1: new + 1 for new, old in enumerate(order)}
        moved = [place[k] for k in geometry.hull(points)]
        first = moved.index(min(moved))
        wrong += geometry.hull([points[i] for i in order]) != moved[first:] + moved[:first]
    return wrong


def broken_tours(answers: list[list[int]], size: int) -> int:
    """How many answers are not a permutation of all positions."""
    return sum(sorted(a) != list(range(1, size + 1)) for a in answers)


# ---------------------------------------------------------------- the check


def check(report: Check) -> None:
    """Hulls by both models on every seed, then tours and triangulations by the pointer on the first."""
    rows = 20 if report.quick else 1000
    data = _corpus("hull", report)
    found: dict[str, list[dict[int, dict[str, float]]]] = {"pointer": [], "fixed": []}
    drawn: dict[str, Model] = {}
    for kind, runs in found.items():
        for seed in report.seeds:
            model = train(kind, "hulls", seed, data, report)
            sizes = [n for n in SIZES if kind == "pointer" or n <= SEEN]
            runs.append({n: hull_figures(model, data.spec, n, rows) for n in sizes})
            drawn.setdefault(kind, model)
    _hull_claims(report, found)
    pointer = drawn["pointer"]
    report.measure(
        "largest probability of a padded position",
        mass_on_padding(pointer, data.spec),
        Claim("padding", "a pointer cannot leave its source", at_most=0.0),
    )
    report.measure(
        "hulls of permuted points that are not the permuted hull, of 1,000",
        unfaithful_permutations(rows),
        Claim("permutation", "targets depend on the points, not on their order", at_most=0),
    )
    _tours(report, 50 if report.quick else 500)
    _triangles(report, 50 if report.quick else 500)
    _draw(report, found, drawn, data.spec)


def _corpus(task: str, report: Check) -> Prepared:
    train_rows, held_out = (300, 30) if report.quick else (30_000, 500)
    started = time.perf_counter()
    data = prepare(make(f"synthetic-{task}", train=train_rows, held_out=held_out, shortest=5, longest=SEEN))
    report.say(f"  {train_rows:,} sets of 5 to {SEEN} points with their {task} in {time.perf_counter() - started:.1f} s")
    return data


def _hull_claims(report: Check, found: dict[str, list[dict[int, dict[str, float]]]]) -> None:
    for kind, runs in found.items():
        report.notes[f"{kind}: exact, area of simple polygons, invalid share, by number of points"] = {
            n: [{name: round(v, 4) for name, v in run[n].items()} for run in runs] for n in runs[0]
        }
    for n in (5, 8):
        base = [run[n]["exact"] for run in found["fixed"]]
        report.measure(
            f"hulls of {n} points: exact, pointer above fixed output",
            [run[n]["exact"] - b for run, b in zip(found["pointer"], base)],
            Claim(f"gain_{n}", "pointing beats a fixed output", at_least=0.40),
            baseline=float(np.mean(base)),
        )
    for n in SIZES:
        column = lambda name, n=n: [run[n][name] for run in found["pointer"]]
        report.measure(f"hulls of {n} points: exact, pointer", column("exact"))
        report.measure(
            f"hulls of {n} points: area covered by the pointer's simple polygons",
            column("area"),
            Claim(f"area_{n}", "what is not exact is close" + (", also unseen lengths" if n > SEEN else ""), at_least=0.97),
        )
        report.measure(f"hulls of {n} points: answers that are no simple polygon", column("invalid"))


def _tours(report: Check, rows: int) -> None:
    """A pointer trained on tours, its beam bound to permutations; so is that of one without any training."""
    data = _corpus("tour", report)
    torch.manual_seed(0)
    untrained = build("pointer", data.spec).eval()
    model = train("pointer", "tours", report.seeds[0], data, report)
    search = Beam(5, max_length=ratio(1.0, 1), scorers=[EachOnce()])
    broken, lengths, guessed = 0, [], []
    for n in (5, 8, 12):
        sets, part = fresh("tour", n, data.spec, rows)
        answers = decoded(model, search, part)
        broken += broken_tours(answers, n) + broken_tours(decoded(untrained, search, part), n)
        if n == SEEN:
            best = [geometry.tour_length(s, [*map(int, e.target.split())]) for s, e in zip(sets, part.examples)]
            lengths = [geometry.tour_length(s, a) / b for s, a, b in zip(sets, answers, best)]
            guessed = [geometry.tour_length(s, range(1, n + 1)) / b for s, b in zip(sets, best)]
    report.measure(
        f"tours from a beam that visits each point once, 5, 8 and 12 points: no permutation, of {6 * rows:,}",
        broken,
        Claim("tours", "the mask leaves permutations only", at_most=0),
    )
    report.measure(
        f"tours of {SEEN} points: length over the shortest one's", float(np.mean(lengths)), baseline=float(np.mean(guessed))
    )


def _triangles(report: Check, rows: int) -> None:
    data = _corpus("delaunay", report)
    model = train("pointer", "triangulations", report.seeds[0], data, report)
    for n in (5, SEEN):
        sets, part = fresh("delaunay", n, data.spec, rows)
        answers = decoded(model, Greedy(ratio(8.0, 10)), part)
        exact = [e.target == " ".join(map(str, a)) for e, a in zip(part.examples, answers)]
        covered = [geometry.triangle_coverage(geometry.delaunay(s), a) for s, a in zip(sets, answers)]
        report.measure(f"triangulations of {n} points: share of the triangles found", float(np.mean(covered)))
        report.measure(f"triangulations of {n} points: exact", float(np.mean(exact)))


def _draw(report: Check, found: dict[str, Any], drawn: dict[str, Model], spec: DataSpec) -> None:
    lines = {
        f"{label}, {name}": (list(runs[0]), [[run[n][figure] for run in runs] for n in runs[0]])
        for label, runs in (("pointer", found["pointer"]), ("fixed output", found["fixed"]))
        for figure, name in (("exact", "exact"), ("area", "area covered"))
    }
    curves(
        lines, report.figure("sizes"), x_label="points (trained on 5 to 8)", y_label="share of hulls, share of area",
        title="A pointer goes on where a fixed output ends",
    )  # fmt: skip
    panels = []
    for n in (5, SEEN, 12):
        sets, part = fresh("hull", n, spec, 3)
        answers = decoded(drawn["pointer"], Greedy(ratio(2.0, 10)), part)
        for points, answer, example in zip(sets, answers, part.examples):
            true = [*map(int, example.target.split())]
            name = f"{n} points: " + ("exact" if answer == true else "not exact")
            panels.append((name, points, {"hull": true, "pointer": answer}))
    point_sets(panels, report.figure("hulls"), title="Hulls as the pointer names them (trained on 5 to 8 points)")
