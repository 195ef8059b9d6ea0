"""``transduce bench mixers``: every mixer of the catalogue on small tasks, as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Sequence

import tyro

from transduce.core.errors import UserError, nearest

from .machine import set_up
from .options import MaybePath, parse

OF_SYSTEMS = {
    "flashrnn": ("elman", "gru", "lstm", "slstm"),
    "min-rnn": ("min-gru", "min-lstm"),
    "multi-perspective-rwkv": ("rwkv4",),
    "pararnn": ("para-gru", "para-lstm"),
    "regular-lrnn": ("block-lrnn",),
    "retnet": ("retention",),
}
"""Systems whose name is not that of their mixer."""


@dataclass(frozen=True)
class Bench:
    what: tyro.conf.Positional[Literal["mixers"]]
    """What is measured."""
    only: tuple[str, ...] = ()
    """Mixers by name, or systems, which stand for theirs; all of the catalogue where left out."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; all of them where left out."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of weights and data."""
    dim: int = 64
    """Width of the network, a multiple of 16."""
    layers: int = 2
    """Layers of the network."""
    out: Path = Path("results")
    """Folder of mixers.json, mixers.md and mixers.png; what stands in mixers.json already is not measured again."""
    again: bool = False
    """Measure again what is there."""
    quick: bool = False
    """A smoke run of a hundredth of the steps, in the folder quick; its figures mean nothing."""
    data_dir: MaybePath = None
    """Folder with data files that are not fetched (also: TRANSDUCE_DATA)."""


def bench_command(arguments: Sequence[str]) -> int:
    options = parse(Bench, arguments, "bench", "Measure every mixer on the same small tasks.")
    if options.dim < 16 or options.dim % 16 or options.layers < 1:
        raise UserError(f"--dim is a multiple of 16 and --layers at least 1, got {options.dim} and {options.layers}.")
    set_up()
    from transduce.nn.catalogue import MIXERS
    from transduce.report.mixers import page, picture
    from transduce.train.mixer_bench import Network, Plan, bench
    from transduce.train.mixer_tasks import TASKS

    named = [m for name in options.only for m in OF_SYSTEMS.get(name, (name,))]
    mixers, tasks = _known(named, MIXERS, "mixer"), _known(options.tasks, TASKS, "task")
    folder = options.out / "quick" if options.quick else options.out
    size = Network(options.dim, options.layers, 0.01 if options.quick else 1.0)
    plan = Plan(mixers, tasks, options.seeds, options.again)
    try:
        record = bench(plan, size, folder / "mixers.json", options.data_dir, print)
    except ValueError as problem:
        raise UserError(f"{problem}; give another --out, or the same --dim and --layers.") from None
    if not record["mixers"]:
        raise UserError("Nothing could be measured: " + " ".join(record["refused"].values()))
    for task in tasks:
        if task in record["refused"]:
            print(f"not measured: {task}: {record['refused'][task]}")
    picture(record, folder / "mixers.png")
    (folder / "mixers.md").write_text(page(record, "mixers.png", "transduce bench mixers"))
    print(f"written: {folder / 'mixers.json'}, {folder / 'mixers.md'}, {folder / 'mixers.png'}")
    return 0


def _known(names: Sequence[str], known: Sequence[str], what: str) -> list[str]:
    for name in names:
        if name not in known:
            raise UserError(f'There is no {what} "{name}".{nearest(name, known)} Known: {", ".join(known)}.')
    return list(names) or list(known)
