"""Sequences with a label at some of their steps: what a mixer is asked for when its memory is put to the test.

Every task is a function ``(batch, generator) -> Stream`` made by a factory with the task's sizes; the labels follow
from the inputs, so the best possible accuracy is 1.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""The label of a step that is not scored."""


class Stream(NamedTuple):
    """``inputs`` (B,T) ids (or (B,T,F) values) and ``labels`` (B,T), :data:`IGNORE` where nothing is asked."""

    inputs: Tensor
    labels: Tensor


Task = Callable[[int, torch.Generator], Stream]


def first_token_recall(classes: int = 16, noise: int = 16, steps: int = 40) -> Task:
    """One of ``classes`` symbols, noise of another alphabet, then a query whose label is that first symbol.

    Ids: classes, then noise symbols, then the query; ``classes + noise + 1`` in all.
    """

    def draw(batch: int, generator: torch.Generator) -> Stream:
        first = torch.randint(classes, (batch, 1), generator=generator)
        between = classes + torch.randint(noise, (batch, steps - 2), generator=generator)
        query = torch.full((batch, 1), classes + noise)
        labels = torch.full((batch, steps), IGNORE)
        labels[:, -1:] = first
        return Stream(torch.cat((first, between, query), 1), labels)

    return draw


def selective_copying(tokens: int = 6, alphabet: int = 10, steps: int = 48) -> Task:
    """``tokens`` symbols stand at random places among ``steps`` of noise; then they are to be written in order.

    Ids: the alphabet, then noise, then the mark that asks for the next symbol; T = steps + tokens. Gu and Dao 2023
    (arXiv 2312.00752, section 4.1.1).
    """

    def draw(batch: int, generator: torch.Generator) -> Stream:
        symbols = torch.randint(alphabet, (batch, tokens), generator=generator)
        places = torch.rand(batch, steps, generator=generator).argsort(1)[:, :tokens].sort(1).values
        inputs = torch.full((batch, steps + tokens), alphabet)
        inputs.scatter_(1, places, symbols)
        inputs[:, steps:] = alphabet + 1
        labels = torch.full_like(inputs, IGNORE)
        labels[:, steps:] = symbols
        return Stream(inputs, labels)

    return draw


def associative_recall(pairs: int = 16, vocabulary: int = 256, steps: int = 64) -> Task:
    """``pairs`` of a key and its value, then the keys again in another order at random places: label the value.

    Keys are the lower half of the vocabulary (0 is the filler), values the upper half. T = steps >= 4 * pairs is not
    required, only room: 3 * pairs <= steps. Arora et al. 2023 (arXiv 2312.04927, section 3), queries spread evenly.
    """
    if 3 * pairs > steps:
        raise ValueError(f"{pairs} pairs and as many queries need {3 * pairs} steps, not {steps}")
    half = vocabulary // 2
    if pairs >= half:
        raise ValueError(f"a vocabulary of {vocabulary} has {half - 1} keys, not {pairs}")

    def draw(batch: int, generator: torch.Generator) -> Stream:
        keys = 1 + torch.rand(batch, half - 1, generator=generator).argsort(1)[:, :pairs]
        values = half + torch.randint(half, (batch, pairs), generator=generator)
        inputs = torch.zeros(batch, steps, dtype=torch.long)
        inputs[:, : 2 * pairs] = torch.stack((keys, values), 2).flatten(1)
        order = torch.rand(batch, pairs, generator=generator).argsort(1)
        places = 2 * pairs + torch.rand(batch, steps - 2 * pairs, generator=generator).argsort(1)[:, :pairs]
        inputs.scatter_(1, places, keys.gather(1, order))
        labels = torch.full_like(inputs, IGNORE)
        labels.scatter_(1, places, values.gather(1, order))
        return Stream(inputs, labels)

    return draw
