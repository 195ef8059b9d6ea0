"""The state algebra on trees of every kind, and memory that beams share."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch

from transduce.core import state as S
from transduce.core.seq import Batch, Seq, zero_masked


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor | None


@dataclass(frozen=True)
class Tree:
    h: torch.Tensor
    parts: dict
    shared: S.Shared
    steps: int = 3


def tree(batch=4, fanout=1):
    g = torch.Generator().manual_seed(batch)
    new = lambda *shape: torch.randn(*shape, generator=g)
    return Tree(
        new(batch, 3),
        {"pair": Pair(new(batch), None), "list": [new(batch, 2, 2)]},
        S.Shared((new(batch // fanout, 5),), fanout),
    )


def equal(a, b):
    return all(
        torch.equal(x, y) for x, y in zip(S.leaves(S.canonical(a)), S.leaves(S.canonical(b)), strict=True)
    )


def flat(t: Tree) -> list[torch.Tensor]:
    return [t.h, t.parts["pair"].a, t.parts["list"][0], t.shared.flat()[0]]


def test_select_cat_split_and_where_agree_with_indexing():
    t = tree()
    rows = torch.tensor([3, 0, 0])
    assert all(torch.equal(x, y[rows]) for x, y in zip(flat(S.select(t, rows)), flat(t)))
    assert equal(S.cat(S.split(t, [1, 3])), t)
    keep = torch.tensor([True, False, True, False])
    zeros = S.map_tensors(torch.zeros_like, t)
    mixed = S.where(keep, t, zeros)
    for got, new in zip(flat(mixed), flat(t)):
        assert torch.equal(got, torch.where(keep.view(-1, *[1] * (new.dim() - 1)), new, torch.zeros(())))
    assert S.batch_size(t) == 4 and isinstance(S.select(t, rows).parts["pair"], Pair)


def test_expand_and_reorder_share_what_is_shared():
    t = tree(2)
    wide = S.expand(t, 3)
    assert S.batch_size(wide) == 6 and wide.shared.value[0] is t.shared.value[0]
    assert all(torch.equal(x, y.repeat_interleave(3, 0)) for x, y in zip(flat(wide), flat(t)))
    parents = torch.tensor([[2, 2, 0], [1, 0, 1]])
    moved = S.reorder(wide, parents)
    assert moved.shared is wide.shared
    assert torch.equal(moved.h, wide.h[S.flat_parents(parents)])
    kept = S.select_groups(wide, torch.tensor([1]), 3)
    assert kept.shared.fanout == 3 and kept.shared.value[0].shape[0] == 1
    assert all(torch.equal(x, y[3:]) for x, y in zip(flat(kept), flat(wide)))
    single = S.select(wide, [5, 0])
    assert all(torch.equal(x, y[[5, 0]]) for x, y in zip(flat(single), flat(wide)))


def test_folded_queries_read_the_right_memory():
    shared = S.Shared(torch.tensor([[10.0], [20.0]]), 3)
    query = torch.arange(12.0).view(6, 2, 1)
    answer = shared.unfold(shared.fold(query) + shared.value[:, None])
    assert torch.equal(answer, query + shared.flat()[:, None])


def test_shared_memory_of_different_fanout_can_be_joined():
    a, b = S.Shared(torch.ones(1, 2), 2), S.Shared(torch.zeros(1, 2), 3)
    assert torch.equal(S.cat([a, b]).flat(), torch.cat((a.flat(), b.flat())))
    keep = torch.tensor([True, False])
    assert torch.equal(
        S.where(keep, a, S.Shared(torch.zeros(1, 2), 2)).flat(), torch.tensor([[1.0, 1], [0, 0]])
    )


def test_bytes_count_shared_memory_once():
    t = tree(2)
    assert S.nbytes(S.expand(t, 4)) == 4 * (S.nbytes(t) - 40) + 40


def test_states_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="static part"):
        S.cat([Tree(**{**tree().__dict__}), Tree(**{**tree().__dict__, "steps": 4})])
    with pytest.raises(ValueError, match="structure"):
        S.cat([(torch.zeros(1),), [torch.zeros(1)]])
    with pytest.raises(TypeError, match="may not hold"):
        S.leaves({"x": object()})
    with pytest.raises(ValueError, match="batch size"):
        S.batch_size(())


def test_flatten_and_unflatten_are_inverse():
    t = tree()
    assert equal(S.unflatten(t, [x.clone() for x in S.leaves(t)]), t)
    assert not S.detach(S.map_tensors(lambda x: x.requires_grad_(), t)).h.requires_grad


def test_sequences_know_their_padding():
    seq = Seq.from_lists([[5, 6, 7], [8]])
    assert seq.lengths.tolist() == [3, 1] and seq.data[1].tolist() == [8, 0, 0]
    assert Seq.from_lists([[1, 2], [3, 4]]).mask is None
    batch = Batch(None, seq)
    assert batch.previous.tolist() == [[1, 5, 6], [1, 8, 0]] and batch.size == 2
    x = torch.tensor([[1.0, float("nan")]]).requires_grad_()
    clean = zero_masked(x, torch.tensor([[True, False]]))
    clean.sum().backward()
    assert clean.tolist() == [[1.0, 0.0]] and x.grad.tolist() == [[1.0, 0.0]]
    with pytest.raises(ValueError, match="no empty row"):
        Seq.from_lists([[1], []])
    with pytest.raises(ValueError, match="bool mask"):
        Seq(torch.zeros(1, 2), torch.ones(1, 2))
