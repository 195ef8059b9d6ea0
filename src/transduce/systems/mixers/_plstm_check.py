"""The full check of `plstm`: all paths of a grid and a graph, what becomes of a signal, arrows on larger pictures."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transduce.core.protocols import Claim
from transduce.data.synthetic.arrows import Pictures, arrow_pointing
from transduce.models import PatchLabeller, Raster
from transduce.nn import PLSTM2D, Attention
from transduce.ops.dag_scan import Dag, dag_scan
from transduce.ops.grid_scan import GATES, grid_scan
from transduce.train.check import Check
from transduce.train.plots import curves

DIM, HEADS, BATCH, PICTURES, PASSES, RATE, DECAY = 32, 8, 32, 20_000, 12, 1e-3, 0.05
SMALL, LARGE, PATCH = 48, 96, 6
TURNS = {(0, 0): "left to right", (0, 1): "left to down", (1, 0): "up to right", (1, 1): "up to down"}


def _weight_of_paths(gates: Tensor, start: tuple[int, int], end: tuple[int, int]) -> float:
    """Sum over all ways from one cell to another by steps to the right (0) and down (1), written out."""
    gate = lambda at, name: float(gates[at[0], at[1], GATES.index(name)])
    moves = [1] * (end[0] - start[0]) + [0] * (end[1] - start[1])
    if not moves:
        return gate(start, "direct")
    total = 0.0
    for path in set(itertools.permutations(moves)):
        product, at = gate(start, ("source right", "source down")[path[0]]), list(start)
        for came, goes in zip(path, path[1:]):
            at[1 - came] += 1
            product *= gate(at, TURNS[came, goes])
        total += product * gate(end, ("mark left", "mark up")[path[-1]])
    return total


def error_on_a_grid(size: int = 4) -> float:
    """Of every backend against the sum over all paths, in float64, over the largest value."""
    g = torch.Generator().manual_seed(0)
    q, k, v, gates = (torch.randn(1, size, size, 1, n, generator=g, dtype=torch.float64) for n in (3, 3, 2, len(GATES)))
    cells, want = list(itertools.product(range(size), repeat=2)), torch.zeros(size, size, 2, dtype=torch.float64)
    for n, s in itertools.product(cells, cells):
        if s[0] <= n[0] and s[1] <= n[1]:
            weight = _weight_of_paths(gates[0, :, :, 0], s, n)
            want[n] += weight * (q[0, *n, 0] @ k[0, *s, 0]) * v[0, *s, 0]
    names = [name for name in grid_scan.backends if grid_scan.refusal(name, q, k, v, gates) is None]
    found = [grid_scan.run(name, q, k, v, gates)[0, :, :, 0] for name in names]
    return max(float((y - want).abs().max() / want.abs().max()) for y in found)


def error_of_log_depth() -> float:
    """On 5 by 7 cells, filled up to 8 by 8: the log-depth form against the recurrence."""
    g = torch.Generator().manual_seed(1)
    args = [torch.randn(2, 5, 7, 2, n, generator=g, dtype=torch.float64) for n in (3, 3, 2, len(GATES))]
    loop, tree = (grid_scan.run(name, *args) for name in ("reference", "parallel"))
    return float((loop - tree).abs().max() / loop.abs().max())


def error_on_graphs(graphs: int = 5, nodes: int = 30) -> float:
    """Random graphs: the triangular solve against one edge after the other."""
    g, worst = torch.Generator().manual_seed(2), 0.0
    for _ in range(graphs):
        there = (torch.rand(nodes, nodes, generator=g) < 0.2).triu(1)
        graph = Dag.of(nodes, [tuple(e) for e in there.nonzero().tolist()])
        sizes = (len(graph.edges), len(graph.turns), len(graph.edges), nodes)
        node = lambda width: torch.randn(1, nodes, 2, width, generator=g, dtype=torch.float64)
        gates = [torch.rand(1, n, 2, generator=g, dtype=torch.float64) for n in sizes]
        args = (node(3), node(3), node(2), *gates, graph)
        loop, solved = (dag_scan.run(name, *args) for name in ("reference", "solve"))
        worst = max(worst, float((loop - solved).abs().max() / loop.abs().max()))
    return worst


def signal(mode: str, size: int) -> tuple[float, float]:
    """One unit source in the corner of a grid with random gates: what arrives over the last anti-diagonal in all, and
    the most that one edge carries there. ``mode``: "P", "D", or "open" for transitions that are all 1."""
    if mode == "open":
        gates = torch.ones(1, size, size, 2, len(GATES), dtype=torch.float64)
    else:
        torch.manual_seed(0)
        layer = PLSTM2D(16, 2, mode=mode).double()
        for p in layer.parameters():
            p.data += 0.3 * torch.randn_like(p)
        gates = layer.gates(torch.randn(1, size, size, 16, dtype=torch.float64))[0].detach()
    gates[..., [GATES.index(name) for name in ("source right", "source down", "direct")]] = 0
    gates[:, 0, 0, :, GATES.index("source right")] = 1
    one, diagonal = torch.ones(1, size, size, 2, 1, dtype=torch.float64), torch.arange(size)
    carried = []
    for left, up in ((1.0, 0.0), (0.0, 1.0)):  # one kind of edge at a time
        gates[..., GATES.index("mark left")], gates[..., GATES.index("mark up")] = left, up
        carried.append(grid_scan(one, one, one, gates)[0, diagonal, size - 1 - diagonal, :, 0])
    edges = torch.stack(carried)
    return float(edges.sum((0, 1)).max()), float(edges.max())


def network(kind: str, seed: int) -> PatchLabeller:
    """Two layers of width 32 over patches of 6 by 6 pixels. "pLSTM": P-mode, then D-mode, no positions. "attention":
    attention and learned positions in the same frame. "ViT": both in the frame of Dosovitskiy et al. 2020, with linear
    patches and no convolution, read by the mean of its cells."""
    torch.manual_seed(seed)
    frame = {"stem": 64, "local": True, "pool": "max"}
    if kind == "pLSTM":
        return PatchLabeller([PLSTM2D(DIM, HEADS, mode=m) for m in "PD"], DIM, 2, patch=PATCH, **frame)
    layers = [Raster(Attention(DIM, HEADS, position=None, causal=False)) for _ in range(2)]
    rest = frame if kind == "attention" else {}
    return PatchLabeller(layers, DIM, 2, patch=PATCH, positions=SMALL // PATCH, **rest)


def draw(pictures: int, seed: int) -> Pictures:
    """Ink and labels of the training pictures."""
    task, generator = arrow_pointing(SMALL), torch.Generator().manual_seed(1_000_003 * seed + 1)
    images, labels = zip(*(task(n, generator) for n in _pieces(pictures, 500)))
    return Pictures(1 - torch.cat(images), torch.cat(labels))


def _pieces(total: int, most: int) -> list[int]:
    return [min(most, total - at) for at in range(0, total, most)]


def train(kind: str, seed: int, pictures: int, passes: int, say: Callable[[str], None]) -> PatchLabeller:
    """Batches of 32, each turned or mirrored in one of the eight ways, AdamW with one cycle of the rate; all networks
    of a seed see the same pictures in the same order."""
    net, steps = network(kind, seed), passes * (pictures // BATCH)
    images, labels = draw(pictures, seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps, pct_start=0.1)
    generator, losses = torch.Generator().manual_seed(1_000_003 * seed + 2), []
    for step in range(steps):
        if step % (pictures // BATCH) == 0:
            order = torch.randperm(pictures, generator=generator).split(BATCH)
        chosen = order[step % (pictures // BATCH)]
        flipped, turned = ([2], [1], [1, 2], [])[step % 4], images[chosen]
        turned = turned.flip(flipped) if flipped else turned
        turned = turned.mT if int(torch.randint(2, (), generator=generator)) else turned
        loss = F.cross_entropy(net(turned), labels[chosen])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % max(1, steps // 10) == 0:
            say(f"  {kind}, seed {seed}, step {step + 1}/{steps}  loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")
    return net.eval()


@torch.no_grad()
def accuracy(net: PatchLabeller, task: Callable[[int, torch.Generator], Pictures], *, batches: int = 8) -> float:
    """Share of right answers on 1,024 other pictures."""
    generator, right = torch.Generator().manual_seed(2_000_003), 0
    for _ in range(batches):
        images, labels = task(128, generator)
        right += int((net(1 - images).argmax(1) == labels).sum())
    return right / (128 * batches)


def check(report: Check) -> None:
    """Exact parts, signals, then both networks on arrows."""
    exact = partial(Claim, "exact", at_most=1e-12)
    report.measure("4 by 4 cells, every backend against the sum over all paths", error_on_a_grid(), exact("all paths"))
    report.measure("5 by 7 cells, log-depth form against the recurrence", error_of_log_depth(), exact("padding"))
    report.measure("graphs of 30 nodes, triangular solve against the recurrence", error_on_graphs(), exact("solve"))
    sizes = (8, 32) if report.quick else (8, 32, 64)
    totals = [signal("P", n)[0] for n in sizes]
    keeps = Claim("mass", "each edge hands on what it has", at_least=1 - 1e-9, at_most=1 + 1e-9)
    report.measure("P-mode: what one source leaves on the last anti-diagonal", totals, keeps)
    bounded = Claim("bounded", "a single path between two edges", at_most=1.0)
    report.measure("D-mode: the most on one edge there", max(signal("D", n)[1] for n in sizes), bounded)
    report.measure(f"all transitions open, {sizes[-1]} cells: what is left of 1", signal("open", sizes[-1])[0])
    _arrows(report)


def _arrows(report: Check) -> None:
    pictures, passes, batches = (4 * BATCH, 1, 1) if report.quick else (PICTURES, PASSES, 8)
    # What size, drawn for which size, lines how wide.
    shown = {
        "48 pixels": (SMALL, None, None),
        "72 pixels": (72, None, None),
        "96 pixels": (LARGE, None, None),
        "96 pixels, lines of one pixel": (LARGE, None, 1.0),
        "96 pixels, drawn as in 48": (LARGE, SMALL, None),
    }
    found: dict[str, dict[str, list[float]]] = {}
    for kind in ("pLSTM", "ViT", "attention"):
        found[kind] = {name: [] for name in shown}
        for seed in report.seeds:
            net = train(kind, seed, pictures, passes, report.say)
            for name, (size, drawn_for, line) in shown.items():
                task = arrow_pointing(size, drawn_for=drawn_for, line=line)
                found[kind][name].append(accuracy(net, task, batches=batches))
        report.notes[f"{kind}: parameters"] = sum(p.numel() for p in net.parameters())
    for name in shown:
        for kind, accuracies in found.items():
            report.measure(f"arrows, {name}: {kind}, accuracy", accuracies[name], baseline=0.5)
    ahead = lambda name, kind: [a - b for a, b in zip(found["pLSTM"][name], found[kind][name])]
    further = Claim("ahead", "directions reach further", at_least=0.10)
    # The paper's own larger pictures keep the pixels of discs, arrows and lines.
    for name in ("96 pixels", "96 pixels, drawn as in 48"):
        report.measure(f"arrows, {name}: pLSTM ahead of the ViT by", ahead(name, "ViT"), further)
    name = "96 pixels, lines of one pixel"
    report.measure(f"arrows, {name}: pLSTM ahead of the ViT by", ahead(name, "ViT"))
    apart = ahead("96 pixels", "attention")
    report.measure("arrows, 96 pixels: pLSTM ahead of attention in its own frame by", apart)
    report.notes["arrows"] = f"{pictures} pictures of 48 pixels, {passes} passes, turned and mirrored"
    sides = (SMALL, 72, LARGE)
    curves(
        {kind: (sides, [values[f"{n} pixels"] for n in sides]) for kind, values in found.items()},
        report.figure("arrows"),
        x_label="pixels a side (trained on 48)",
        y_label="accuracy",
        title="Does the arrow point at the disc?",
        levels={"chance": 0.5},
    )
