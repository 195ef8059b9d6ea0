"""Training speed of the main job: our training step against a plain float32 loop over the same model and
batches.

``python -m benchmarks.main_job``: words of the CMU dictionary a second through ``rnnsearch`` as ``transduce
fit`` trains it. Contestants take the same 24 batches; times are for all of them. "plain" is what a reader
would write down: the model, the loss, ``torch.optim.AdamW`` with its defaults, float32, the allocator as it
is, batches as a shuffled list pads them (``random``) or grouped by length as ours are (``grouped``).
"""

from __future__ import annotations

import itertools
from typing import Callable

import torch

from benchmarks.harness import Result, environment, in_own_process, measure, save

BATCHES = 24
CASE = "rnnsearch on cmudict"
PEERS = (
    "transduce fit",
    "transduce fit, float32",
    "transduce fit, heap left alone",
    "plain loop, grouped",
    "plain loop, random",
)


def child(case: str, peer: str) -> Result:
    import numpy as np

    from transduce import systems
    from transduce.core.heap import keep_large_blocks
    from transduce.data import Loader, load_corpus, prepare
    from transduce.train.engine import fast_bf16

    if peer.startswith("transduce") and "heap" not in peer:
        keep_large_blocks()
    data = prepare(load_corpus("cmudict"))
    page = systems.find("rnnsearch")
    torch.manual_seed(0)
    system = page.build(data.spec, page.config_type())
    loader = Loader(data.train, batch_symbols=system.train.batch_symbols, seed=0)
    batches = list(itertools.islice(loader, BATCHES))
    if peer.endswith("random"):
        rows = np.random.default_rng(0).permutation([r for b in batches for r in b.rows])
        batches = [data.train.batch(part) for part in np.array_split(rows, BATCHES)]
    call = ours(system, batches, peer, fast_bf16) if peer.startswith("transduce") else plain(system, batches)
    result = measure(case, peer, call, 1.0)
    words = sum(b.size for b in batches)
    return Result(**{**result.__dict__, "limit_ms": None, "case": f"{case}, {words} words"})


def ours(system, batches, peer: str, fast_bf16: Callable) -> Callable[[], object]:
    from transduce.train.engine import Engine

    engine = Engine(system.model, system.objective, system.train, torch.device("cpu"))
    engine.precision = "bf16" if fast_bf16(torch.device("cpu")) and "float32" not in peer else "float32"

    def run() -> None:
        for step, batch in enumerate(batches):
            engine.update([batch], step, 1e-4)

    return run


def plain(system, batches) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(system.model.parameters(), lr=1e-4)

    def run() -> None:
        system.model.train()
        for step, batch in enumerate(batches):
            loss = system.objective(system.model, batch, step=step)
            optimiser.zero_grad()
            loss.total.backward()
            torch.nn.utils.clip_grad_norm_(system.model.parameters(), 1.0)
            optimiser.step()

    return run


def main() -> None:
    import argparse
    import json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*options.child).__dict__))
        return
    before = environment()
    results = [in_own_process("benchmarks.main_job", CASE, peer) for peer in PEERS]
    print(f"load average {before['load_average']}, {before['threads']} threads")
    for r in results:
        if r.best_ms is None:
            print(f"  {r.peer:32}{r.problem}")
            continue
        words = int(r.case.rsplit(", ", 1)[1].split()[0])
        print(
            f"  {r.peer:32}{words / r.best_ms * 1e3:9,.0f} words/s (median {words / r.median_ms * 1e3:,.0f}), {r.peak_mib:.0f} MiB"
        )
    print("written:", save("bench-main-job", "python -m benchmarks.main_job", results, before).name)


if __name__ == "__main__":
    main()
