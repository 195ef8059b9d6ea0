"""Which solver of a nonlinear recurrence is fastest at which size: ``python -m benchmarks.solvers [--keep-heap]``.

ParaGRU's recurrence (vectors between states, so that every solver applies), forward and backward in float32 from given
pre-activations: the loop under autograd, Newton's method in parallel over time, the compiled loop. Limit: the bytes
that the compiled loop reads and writes at the rate of a copy of large tensors in the same process. A complete run also
draws results/bench-solvers.png.
"""

from __future__ import annotations

import json
import sys

import torch

from benchmarks.harness import RESULTS, Benchmark, Result, measure, run, seconds

WIDTH = 64
BATCHES, LENGTHS = (1, 16), (16, 64, 256, 1024, 4096)
CASES = [f"{batch}x{steps}x{WIDTH}" for batch in BATCHES for steps in LENGTHS]
SOLVERS = {"transduce loop": "loop", "transduce Newton": "newton", "transduce compiled": "fused"}


def child(case: str, peer: str) -> Result:
    from transduce.nn import ParaGRUCell, Recurrence

    batch, steps, width = map(int, case.split("x"))
    torch.manual_seed(0)
    cell = ParaGRUCell(width, width)
    layer = Recurrence(cell, solver=SOLVERS[peer])
    x, grad = torch.randn(batch, steps, width), torch.randn(batch, steps, width)
    with torch.no_grad():
        error = float((layer(x)[0] - Recurrence(cell, solver="loop")(x)[0]).abs().max())
        pre = cell.inputs(x)
    if not error < 1e-4:
        return Result(case, peer, problem=f"wrong: off by {error:.2g}")
    big = torch.empty(1 << 24)
    rate = 8 * big.numel() / min(seconds(lambda: big.clone(), budget=0.5))
    # pre twice, states twice, the gradient in, the gradient of pre out
    limit = 4 * x.numel() * (3 + 1 + 3 + 1 + 1 + 3) / rate
    cell.inputs = lambda _: pre  # the solvers alone
    pre.requires_grad_()
    return measure(case, peer, lambda: torch.autograd.grad(layer(x)[0], [pre, cell.weight], grad), limit, budget=1.0)


def draw(name: str) -> None:
    """One line a solver and batch size, over the number of steps: processor time, which neighbours change little."""
    from transduce.train.plots import curves

    record = json.loads((RESULTS / f"{name}.json").read_text())
    lines = {}
    for peer in SOLVERS:
        for batch in BATCHES:
            mine = [
                r
                for r in record["results"]
                if r["peer"] == peer and r["case"].startswith(f"{batch}x") and r["best_ms"]
            ]
            steps = [int(r["case"].split("x")[1]) for r in mine]
            label = f"{peer.removeprefix('transduce ')}, {batch} row{'s' if batch > 1 else ''}"
            lines[label] = (steps, [r["cpu_ms"] for r in mine])
    curves(
        lines,
        RESULTS / f"{name}.png",
        title="ParaGRU of width 64, forward and backward",
        x_label="steps",
        y_label="processor milliseconds",
        log="xy",
    )


def main() -> int:
    ops = ("transduce.ops.affine:affine_scan", "transduce.ops.para:para_gru")
    return run(Benchmark("solvers", __doc__, CASES, lambda case: list(SOLVERS), child, ops))


if __name__ == "__main__":
    status = main()
    if status == 0 and not {"--child", "--only"} & set(sys.argv):
        draw("bench-solvers-keep-heap" if "--keep-heap" in sys.argv else "bench-solvers")
    raise SystemExit(status)
