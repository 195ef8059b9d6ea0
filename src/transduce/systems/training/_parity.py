"""Running parity, learnt on words of up to 32 symbols and asked for on longer ones: the least state tracking there is."""

from __future__ import annotations

from typing import Callable

import torch

from transduce.core.protocols import Mixer
from transduce.data.synthetic.formal import parity
from transduce.models import Labeller
from transduce.nn.embed import Embed
from transduce.train.check import Check
from transduce.train.streams import accuracy_by_length, train_stream

DIM, TRAINED, LENGTHS, LONG = 32, 32, (8, 16, 32, 64, 128, 256), 256


def by_length(
    report: Check, mixers: dict[str, Callable[[int], Mixer]], steps: int = 400
) -> dict[str, list[list[float]]]:
    """Accuracy of the last label at each of ``LENGTHS`` of a network of one layer, ``{name: [a list a seed]}``.

    Every mixer sees the same batches of words of ``TRAINED`` symbols, all of whose labels are scored.
    """
    language, found = parity(), {name: [] for name in mixers}
    for name, mixer in mixers.items():
        for seed in report.seeds:
            torch.manual_seed(seed)
            net = Labeller(Embed(language.num_inputs, DIM), mixer(DIM), DIM, language.num_labels)
            train_stream(
                net, language.task(TRAINED), 3 if report.quick else steps, learning_rate=1e-2, seed=seed,
                say=report.say, label=f"{name}, seed {seed},",
            )  # fmt: skip
            right = accuracy_by_length(net, language.task, LENGTHS, batches=2 if report.quick else 16)
            found[name].append(list(right.values()))
    return found
