"""Formal languages as labelled streams: train on short words, test on long ones.

A :class:`Language` makes a task of any length, and all lengths share ids and labels, so one model serves all of them.
What every step asks for is a function of a finite state (a regular language), so the best possible accuracy is 1 at
every length. :func:`last_only` scores nothing but the end of the word, which is what length extrapolation is about.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import Callable, Mapping

import torch
from torch import Tensor

from .streams import IGNORE, Stream, Task


@dataclass(frozen=True)
class Language:
    """``task(steps)`` draws words of that length over ``num_inputs`` ids with labels below ``num_labels``."""

    name: str
    num_inputs: int
    num_labels: int
    task: Callable[[int], Task]

    @property
    def chance(self) -> float:
        """Accuracy of a guess among the labels."""
        return 1 / self.num_labels


def last_only(task: Task) -> Task:
    """The same stream with a label at its last step only."""

    def draw(batch: int, generator: torch.Generator) -> Stream:
        inputs, labels = task(batch, generator)
        kept = torch.full_like(labels, IGNORE)
        kept[:, -1] = labels[:, -1]
        return Stream(inputs, kept)

    return draw


def modular_sum(modulus: int = 5) -> Language:
    """Label t is (x_1 + ... + x_t) mod ``modulus``; the state is a counter that goes round."""
    _at_least("modular_sum", "a modulus", modulus, 2)

    def task(steps: int) -> Task:
        def draw(batch: int, generator: torch.Generator) -> Stream:
            x = torch.randint(modulus, (batch, steps), generator=generator)
            return Stream(x, x.cumsum(1) % modulus)

        return draw

    return Language(f"sum mod {modulus}", modulus, modulus, task)


def parity() -> Language:
    """Label t is 1 when an odd number of ones has been read: the sum mod 2."""
    return Language("parity", 2, 2, modular_sum(2).task)


def even_pair(symbols: int = 5) -> Language:
    """Label t is 1 when x_t is the very first symbol again.

    With two symbols: the word has an even number of places where neighbours differ, hence the name. Either label is
    drawn half of the time behind the first step, whatever ``symbols`` is.
    """
    _at_least("even_pair", "symbols", symbols, 2)

    def task(steps: int) -> Task:
        def draw(batch: int, generator: torch.Generator) -> Stream:
            first = torch.randint(symbols, (batch, 1), generator=generator)
            other = (first + torch.randint(1, symbols, (batch, steps), generator=generator)) % symbols
            again = torch.rand(batch, steps, generator=generator) < 0.5
            again[:, 0] = True
            return Stream(torch.where(again, first, other), again.long())

        return draw

    return Language(f"even pair of {symbols}", symbols, 2, task)


def modular_arithmetic(modulus: int = 5) -> Language:
    """``n op n op n ...`` with +, - and *, which binds tighter; behind each number, the value so far mod ``modulus``.

    Ids: the numbers, then the three signs. Words have an odd length, and signs are not scored. The state is what the
    finished terms add up to, the term that is being multiplied, and its sign.
    """
    _at_least("modular_arithmetic", "a modulus", modulus, 2)

    def task(steps: int) -> Task:
        if steps % 2 == 0:
            raise ValueError(f"modular_arithmetic ends with a number: its length is odd, not {steps}")

        def draw(batch: int, generator: torch.Generator) -> Stream:
            numbers = torch.randint(modulus, (batch, steps // 2 + 1), generator=generator)
            signs = torch.randint(3, (batch, steps // 2), generator=generator)
            inputs = torch.empty(batch, steps, dtype=torch.long)
            inputs[:, ::2], inputs[:, 1::2] = numbers, modulus + signs
            labels = torch.full_like(inputs, IGNORE)
            labels[:, ::2] = _values(numbers, signs) % modulus
            return Stream(inputs, labels)

        def _values(numbers: Tensor, signs: Tensor) -> Tensor:
            first, *others = numbers.unbind(1)
            done, term, values = torch.zeros_like(first), first, [first]
            for sign, n in zip(signs.unbind(1), others):
                times = sign == 2
                done = torch.where(times, done, done + term) % modulus
                term = torch.where(times, term * n, torch.where(sign == 0, n, -n)) % modulus
                values.append(done + term)
            return torch.stack(values, 1)

        return draw

    return Language(f"arithmetic mod {modulus}", modulus + 3, modulus, task)


def permutation_composition(elements: int = 5, *, moved: int | None = None) -> Language:
    """Label t is the permutation that x_1, then x_2, ..., then x_t make together: the word problem of S_n.

    Ids and labels number the permutations of ``elements`` things in lexicographic order, 0 being the identity.
    ``moved``: only permutations that move at most so many elements are drawn (2: the identity and the swaps), which is
    an easier start; the labels still range over all of the group. S_5 is not solvable, so no composition of
    commuting steps tracks it. W. Merrill et al., The Illusion of State in State-Space Models, arXiv 2404.08819, sec. 4.
    """
    if not 2 <= elements <= 6:
        raise ValueError(f"permutation_composition takes 2 to 6 elements, not {elements}")
    if moved is not None and moved < 2:
        raise ValueError(f"no permutation moves fewer than 2 elements, so moved is at least 2, not {moved}")
    group = list(permutations(range(elements)))
    number = {p: i for i, p in enumerate(group)}
    after = torch.tensor([[number[tuple(q[i] for i in p)] for q in group] for p in group])
    limit = elements if moved is None else moved
    drawn = torch.tensor([i for i, p in enumerate(group) if sum(a != b for a, b in enumerate(p)) <= limit])

    def task(steps: int) -> Task:
        def draw(batch: int, generator: torch.Generator) -> Stream:
            inputs = drawn[torch.randint(len(drawn), (batch, steps), generator=generator)]
            so_far, labels = torch.zeros(batch, dtype=torch.long), []
            for x in inputs.unbind(1):
                so_far = after[so_far, x]
                labels.append(so_far)
            return Stream(inputs, torch.stack(labels, 1))

        return draw

    few = "" if moved is None else f", {moved} moved"
    return Language(f"permutations of {elements}{few}", len(group), len(group), task)


def _at_least(name: str, what: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} needs {what} of at least {least}, not {value}")


LANGUAGES: Mapping[str, Callable[[], Language]] = {
    "arithmetic": modular_arithmetic,
    "even-pair": even_pair,
    "parity": parity,
    "s3": lambda: permutation_composition(3),
    "s5": lambda: permutation_composition(5),
    "sum": modular_sum,
}
"""Name -> language in its usual size."""
