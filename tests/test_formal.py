"""Formal languages: labels against a plain reading of the words, one word at a time."""

from itertools import permutations

import pytest
import torch

from transduce.data.synthetic.formal import (
    LANGUAGES,
    even_pair,
    last_only,
    modular_arithmetic,
    modular_sum,
    parity,
    permutation_composition,
)
from transduce.data.synthetic.streams import IGNORE
from transduce.train.streams import accuracy_by_length


def draw(language, steps, batch=40, seed=0):
    return language.task(steps)(batch, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("language", [parity(), modular_sum(5), modular_sum(7)], ids=lambda g: g.name)
def test_sums_go_round(language):
    inputs, labels = draw(language, 23)
    for row, wanted in zip(inputs.tolist(), labels.tolist()):
        assert wanted == [sum(row[: t + 1]) % language.num_labels for t in range(23)]


def test_even_pair_compares_with_the_first_symbol_and_is_balanced():
    inputs, labels = draw(even_pair(5), 31, batch=200)
    assert (labels == (inputs == inputs[:, :1])).all()
    assert 0.45 < labels[:, 1:].float().mean() < 0.55 and set(inputs.unique().tolist()) == set(range(5))


@pytest.mark.parametrize("modulus", [2, 5])
def test_arithmetic_is_what_python_computes(modulus):
    inputs, labels = draw(modular_arithmetic(modulus), 15)
    assert (labels[:, 1::2] == IGNORE).all()
    for row, wanted in zip(inputs.tolist(), labels.tolist()):
        written = [str(i) if i < modulus else "+-*"[i - modulus] for i in row]
        for t in range(0, 15, 2):
            assert wanted[t] == eval("".join(written[: t + 1])) % modulus
    with pytest.raises(ValueError, match="odd, not 40"):
        modular_arithmetic().task(40)


@pytest.mark.parametrize("elements, moved", [(3, None), (5, None), (5, 2)])
def test_permutations_are_composed_in_the_order_of_reading(elements, moved):
    language = permutation_composition(elements, moved=moved)
    group = list(permutations(range(elements)))
    assert language.num_labels == len(group)
    inputs, labels = draw(language, 9)
    for row, wanted in zip(inputs.tolist(), labels.tolist()):
        for thing in range(elements):  # follow one thing through all of the permutations
            place = thing
            for x, so_far in zip(row, wanted):
                place = group[x][place]
                assert group[so_far][thing] == place
    if moved is not None:
        assert all(sum(i != p for i, p in enumerate(group[x])) in (0, moved) for x in inputs.flatten().tolist())


def test_permutations_of_three_do_not_commute():
    language = permutation_composition(3)
    inputs, labels = draw(language, 2, batch=400)
    seen = dict(zip(map(tuple, inputs.tolist()), labels[:, 1].tolist()))
    assert any(seen[a, b] != seen[b, a] for a, b in seen if (b, a) in seen)


@pytest.mark.parametrize("name", LANGUAGES)
def test_every_language_takes_any_length_and_stays_within_its_ids(name):
    language = LANGUAGES[name]()
    for steps in (1, 3, 501):
        inputs, labels = draw(language, steps, batch=3)
        assert inputs.shape == labels.shape == (3, steps)
        assert 0 <= inputs.min() and inputs.max() < language.num_inputs
        scored = labels[labels != IGNORE]
        assert 0 <= scored.min() and scored.max() < language.num_labels
        assert (labels[:, -1] != IGNORE).all()
    again, other = draw(language, 501, seed=0), draw(language, 501, seed=1)
    assert (draw(language, 501).inputs == again.inputs).all() and (again.inputs != other.inputs).any()


def test_accuracy_by_length_scores_the_last_step():
    language = modular_sum(3)
    _, labels = last_only(language.task(6))(2, torch.Generator().manual_seed(0))
    assert (labels[:, :-1] == IGNORE).all() and (labels[:, -1] != IGNORE).all()
    counts = lambda x: torch.nn.functional.one_hot(x.cumsum(1) % 3, 3).float()
    forgets = lambda x: counts(torch.where(torch.arange(x.shape[1]) < x.shape[1] - 8, 0, x))  # right while it fits
    assert accuracy_by_length(counts, language.task, [4, 50]) == {4: 1.0, 50: 1.0}
    found = accuracy_by_length(forgets, language.task, [8, 80])
    assert found[8] == 1.0 and found[80] < 0.5


def test_sizes_that_make_no_language_are_refused():
    for make in (lambda: modular_sum(1), lambda: even_pair(1), lambda: permutation_composition(7)):
        with pytest.raises(ValueError):
            make()
    with pytest.raises(ValueError, match="at least 2, not 1"):
        permutation_composition(3, moved=1)
