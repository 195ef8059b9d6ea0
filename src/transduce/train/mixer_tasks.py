"""What `transduce bench mixers` asks of every mixer: small tasks that each need another kind of memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from transduce.data import load_corpus
from transduce.data.corpora import digits
from transduce.data.synthetic.formal import LANGUAGES
from transduce.data.synthetic.streams import (
    IGNORE,
    Stream,
    Task,
    associative_recall,
    first_token_recall,
    selective_copying,
)

TRAINED, LONGER = 40, 200
"""Lengths of the formal languages: of the words trained on, and of the longer words in test."""


@dataclass(frozen=True)
class Trial:
    """One task: streams to train on, named streams to test on, and for how long to train.

    ``num_inputs``: ids read, or None for one value a step. ``pool``: as for the labeller. ``bits``: the figure is the
    cross-entropy in bits a symbol instead of the share of right labels. ``test_batches`` of ``batch`` rows are tested;
    ``test_batch`` sets another size.
    """

    train: Task
    tests: Mapping[str, Task]
    num_inputs: int | None
    num_labels: int
    steps: int
    batch: int = 64
    learning_rate: float = 3e-3
    pool: str | None = None
    bits: bool = False
    test_batches: int = 4
    test_batch: int | None = None


def _text(ids: Tensor, steps: int) -> Task:
    """Windows from random places, each step labelled with the next symbol."""

    def draw(batch: int, generator: torch.Generator) -> Stream:
        starts = torch.randint(len(ids) - steps, (batch, 1), generator=generator)
        rows = ids[starts + torch.arange(steps + 1)]
        return Stream(rows[:, :-1], rows[:, 1:])

    return draw


def _corpus(name: str, data_dir: str | os.PathLike | None) -> tuple[str, str]:
    """All of the training text and all of the test text."""
    corpus = load_corpus(name, data_dir=data_dir)
    return tuple("".join(e.target for e in part) for part in (corpus.train, corpus.test))


def _characters(data_dir: str | os.PathLike | None) -> Trial:
    texts = _corpus("shakespeare", data_dir)
    known = {c: i for i, c in enumerate(sorted(set(texts[0])))}
    train, test = (torch.tensor([known.get(c, 0) for c in text]) for text in texts)
    lengths = {"at 128": _text(test, 128), "at 512": _text(test, 512)}
    return Trial(_text(train, 128), lengths, len(known), len(known), 300, 16, bits=True)


def _bytes(data_dir: str | os.PathLike | None) -> Trial:
    train, test = (
        torch.from_numpy(np.frombuffer(text.encode(), np.uint8).astype(np.int64))
        for text in _corpus("python-stdlib", data_dir)
    )
    return Trial(_text(train, 256), {"at 256": _text(test, 256)}, 256, 256, 250, 8, bits=True)


def _digits(data_dir: str | os.PathLike | None) -> Trial:
    images = digits.load_images(data_dir)

    def part(name: str) -> tuple[Tensor, Tensor]:
        found = images[name]
        pixels = torch.from_numpy(found.pixels.reshape(len(found.digits), -1, 1).astype(np.float32)) / 16
        return pixels, torch.from_numpy(found.digits.astype(np.int64))

    (pixels, labels), tested = part("train"), part("test")

    def draw(batch: int, generator: torch.Generator) -> Stream:
        rows = torch.randint(len(labels), (batch,), generator=generator)
        return Stream(pixels[rows], labels[rows])

    everything = lambda batch, generator: Stream(*tested)
    return Trial(draw, {"of 64 steps": everything}, None, 10, 300, 64, pool="mean", test_batches=1)


def _copying(data_dir: str | os.PathLike | None) -> Trial:
    return Trial(selective_copying(4, 10, 24), {"": selective_copying(4, 10, 24)}, 12, 12, 800, 32)


def _recall(data_dir: str | os.PathLike | None) -> Trial:
    task = associative_recall(6, 32, 32)
    return Trial(task, {"6 pairs": task}, 32, 32, 800, 32)


def _first(data_dir: str | os.PathLike | None) -> Trial:
    task = first_token_recall()
    return Trial(task, {"38 steps later": task}, 33, 16, 400, 32)


def _language(name: str, data_dir: str | os.PathLike | None) -> Trial:
    language = LANGUAGES[name]()

    def ends(steps: int) -> Task:
        return lambda batch, generator: _last_eighth(language.task(steps)(batch, generator))

    tests = {f"at {steps}": ends(steps) for steps in (TRAINED, LONGER)}
    return Trial(language.task(TRAINED), tests, language.num_inputs, language.num_labels, 500, 64)


def _last_eighth(stream: Stream) -> Stream:
    """Only the end of a word is scored: its beginning is as short as what was trained on."""
    labels = stream.labels.clone()
    labels[:, : labels.shape[1] * 7 // 8] = IGNORE
    return Stream(stream.inputs, labels)


TASKS: Mapping[str, Callable[[str | os.PathLike | None], Trial]] = {
    "characters": _characters,
    "bytes": _bytes,
    "digits": _digits,
    "copying": _copying,
    "recall": _recall,
    "first-token": _first,
    **{name: partial(_language, name) for name in ("parity", "even-pair", "sum", "s3")},
}
"""Name -> the task, made of the data found."""

ABOUT: Mapping[str, str] = {
    "characters": "Shakespeare, character by character: bits a character on its last 5 %",
    "bytes": "Python's standard library, byte by byte: bits a byte on other modules",
    "digits": "small handwritten digits, one grey value a step",
    "copying": "four symbols among noise, to be written in order (selective copying)",
    "recall": "the value of a key, six pairs, asked once each (associative recall)",
    "first-token": "the first of 40 symbols",
    "parity": "ones so far, odd or even; trained on 40 steps",
    "even-pair": "is this the first symbol again; trained on 40 steps",
    "sum": "sum so far modulo 5; trained on 40 steps",
    "s3": "product so far of permutations of three things; trained on 40 steps",
}
