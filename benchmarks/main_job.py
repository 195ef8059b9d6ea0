"""Training speed of the main job: our training step against a plain float32 loop over the same model and
batches.

``python -m benchmarks.main_job``: words of the CMU dictionary a second through ``rnnsearch`` as ``transduce
fit`` trains it. Contestants take the same 24 batches; times are for all of them. "plain" is what a reader
would write down: the model, the loss, ``torch.optim.AdamW`` with its defaults, float32, the allocator as it
is, batches as a shuffled list pads them (``random``) or grouped by length as ours are (``grouped``).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Callable

import torch

from benchmarks.harness import Benchmark, Result, measure, run
from benchmarks.seq2seq import law

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
    call = ours(system, batches, peer) if peer.startswith("transduce") else plain(system, batches)
    result = measure(case, peer, call, None)
    return replace(result, units=sum(b.size for b in batches), unit="words")


def ours(system, batches, peer: str) -> Callable[[], object]:
    from transduce.train.engine import Engine

    config = replace(system.train, precision="float32" if "float32" in peer else "auto")
    engine = Engine(system.model, system.objective, config)
    engine.choose_precision(batches[0])

    def steps() -> None:
        for step, batch in enumerate(batches):
            engine.update([batch], step, 1e-4)

    return steps


def plain(system, batches) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(system.model.parameters(), lr=1e-4)

    def steps() -> None:
        system.model.train()
        for step, batch in enumerate(batches):
            loss = system.objective(system.model, batch, step=step)
            optimiser.zero_grad()
            loss.total.backward()
            torch.nn.utils.clip_grad_norm_(system.model.parameters(), 1.0)
            optimiser.step()

    return steps


def main() -> int:
    laws = {"the model of rnnsearch": lambda: law("rnnsearch")}
    return run(Benchmark("main_job", __doc__, [CASE], lambda case: PEERS, child, laws=laws))


if __name__ == "__main__":
    raise SystemExit(main())
