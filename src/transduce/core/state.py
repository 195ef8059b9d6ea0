"""State trees: what a sequence layer carries from one chunk to the next.

A state is any tree of tensors built from frozen dataclasses, tuples, lists and dicts, with the batch in
dimension 0 of every tensor. Plain numbers, strings and ``None`` may stand in the tree as static parts. The
functions here are the whole algebra: search, streaming, batching and serving use nothing else, so they work
for every layer. None of them changes its input.

A type whose storage is not simply "one row per stream" derives from :class:`StateNode` and says itself how
its rows are picked, joined and compared (an append-only arena, a memory shared by several rows).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Sequence

import torch
from torch import Tensor

State = Any

_STATIC = (int, float, bool, str, bytes, type(None), torch.dtype, torch.device)


class StateNode:
    """Base of state dataclasses that define their own row algebra. Subclasses are frozen dataclasses."""

    def select(self, rows: Tensor) -> StateNode:
        """Row ``rows[i]`` of this state becomes row ``i`` of the result."""
        raise TypeError(f"{type(self).__name__} does not define select")

    def expand(self, k: int) -> StateNode:
        """Repeat every row ``k`` times in place: rows 0,0,..,1,1,.. (beams of one stream lie together)."""
        batch = batch_size(self)
        rows = torch.arange(batch, device=_device(self)).repeat_interleave(k)
        return self.select(rows)

    def reorder(self, parents: Tensor) -> StateNode:
        """``parents`` (B,k) picks, within each group of k rows, the row that each new row continues."""
        return self.select(flat_parents(parents))

    def select_groups(self, groups: Tensor, k: int) -> StateNode:
        """Keep whole groups of k neighbouring rows: group ``groups[i]`` becomes group i."""
        return self.select(group_rows(groups, k))

    def cat(self, others: Sequence[Any]) -> StateNode:
        raise TypeError(f"{type(self).__name__} does not define cat")

    def where(self, keep_new: Tensor, old: Any) -> StateNode:
        """Rows of ``self`` where ``keep_new`` (B,) is True, rows of ``old`` elsewhere."""
        raise TypeError(f"{type(self).__name__} does not define where")

    def fork(self) -> StateNode:
        """An equal state that may be advanced without touching this one, for any number of steps."""
        return _map_children(lambda t: t.clone(), self)

    def canonical(self) -> Any:
        """A plain tree that is equal for two states exactly when they behave alike."""
        return _children(self)


# ---------------------------------------------------------------- walking the tree


def _children(node: Any) -> dict[str, Any]:
    return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}


def _map_children(fn: Callable[[Tensor], Tensor], node: Any) -> Any:
    return type(node)(**{name: map_tensors(fn, child) for name, child in _children(node).items()})


def _walk(node: Any, on_tensor: Callable, on_node: Callable | None, others: tuple = ()) -> Any:
    """Rebuild ``node`` with ``on_tensor(t, *same leaf of others)`` and, for StateNodes, ``on_node``."""
    if isinstance(node, Tensor):
        return on_tensor(node, *others)
    if isinstance(node, StateNode) and on_node is not None:
        return on_node(node, *others)
    if isinstance(node, _STATIC):
        for other in others:
            if other != node:
                raise ValueError(f"states disagree in a static part: {node!r} and {other!r}")
        return node
    for other in others:
        if type(other) is not type(node):
            raise ValueError(f"states differ in structure: {type(node).__name__} and {type(other).__name__}")
    if dataclasses.is_dataclass(node):
        return type(node)(
            **{
                name: _walk(child, on_tensor, on_node, tuple(getattr(o, name) for o in others))
                for name, child in _children(node).items()
            }
        )
    if isinstance(node, dict):
        return {k: _walk(v, on_tensor, on_node, tuple(o[k] for o in others)) for k, v in node.items()}
    if isinstance(node, (tuple, list)):
        if any(len(o) != len(node) for o in others):
            raise ValueError("states differ in structure: tuples of different length")
        items = [_walk(v, on_tensor, on_node, tuple(o[i] for o in others)) for i, v in enumerate(node)]
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*items)
        return type(node)(items)
    raise TypeError(f"a state may not hold a {type(node).__name__}")


def map_tensors(fn: Callable[..., Tensor], state: State, *others: State) -> State:
    """Apply ``fn`` to every tensor (and the same leaf of ``others``); static parts are kept."""
    return _walk(state, fn, None, others)


def leaves(state: State) -> list[Tensor]:
    """Every tensor of the tree, in a fixed order."""
    found: list[Tensor] = []

    def note(t: Tensor) -> Tensor:
        found.append(t)
        return t

    map_tensors(note, state)
    return found


def nodes(state: State) -> list[StateNode]:
    """The parts of the tree that keep their rows in a way of their own; what is inside of them is not looked at."""
    found: list[StateNode] = []

    def note(node: StateNode) -> StateNode:
        found.append(node)
        return node

    _walk(state, lambda t: t, note)
    return found


def unflatten(like: State, tensors: Iterable[Tensor]) -> State:
    """The tree ``like`` with its tensors replaced, in the order of :func:`leaves`."""
    queue = iter(tensors)
    return map_tensors(lambda _: next(queue), like)


def _device(state: State) -> torch.device:
    found = leaves(state)
    return found[0].device if found else torch.device("cpu")


def batch_size(state: State) -> int:
    """Number of rows. Every tensor has them in dimension 0, except inside :class:`Shared`."""
    size: list[int] = []

    def of_node(node: StateNode) -> StateNode:
        if isinstance(node, Shared):
            size.append(batch_size(node.value) * node.fanout)
        else:
            _walk_children(node, of_tensor, of_node)
        return node

    def of_tensor(t: Tensor) -> Tensor:
        size.append(t.shape[0])
        return t

    _walk(state, of_tensor, of_node)
    if not size:
        raise ValueError("an empty state has no batch size")
    return size[0]


def _walk_children(node: Any, on_tensor: Callable, on_node: Callable) -> None:
    for child in _children(node).values():
        _walk(child, on_tensor, on_node)


# ---------------------------------------------------------------- the algebra


def flat_parents(parents: Tensor) -> Tensor:
    """(B,k) row numbers within each group of k rows -> (B*k,) row numbers of the whole batch."""
    batch, k = parents.shape
    return (parents + k * torch.arange(batch, device=parents.device)[:, None]).reshape(-1)


def group_rows(groups: Tensor, k: int) -> Tensor:
    """Numbers of groups of k neighbouring rows -> numbers of their rows."""
    return (groups[:, None] * k + torch.arange(k, device=groups.device)).reshape(-1)


def select(state: State, rows: Tensor | Sequence[int]) -> State:
    """Row ``rows[i]`` of the state becomes row ``i`` of the result."""
    rows = torch.as_tensor(rows, dtype=torch.long, device=_device(state))
    return _walk(state, lambda t: t.index_select(0, rows), lambda n: n.select(rows))


def expand(state: State, k: int) -> State:
    """Give every row ``k`` copies that lie together: 0,0,..,1,1,..; shared memory is not copied."""
    return _walk(state, lambda t: t.repeat_interleave(k, 0), lambda n: n.expand(k))


def reorder(state: State, parents: Tensor) -> State:
    """Beam reorder. ``parents`` (B,k): which row of its own group each new row continues."""
    rows = flat_parents(parents)
    return _walk(state, lambda t: t.index_select(0, rows), lambda n: n.reorder(parents))


def select_groups(state: State, groups: Tensor, k: int) -> State:
    """Keep whole groups of k neighbouring rows (the beams of some sources); shared memory stays shared."""
    rows = group_rows(groups, k)
    return _walk(state, lambda t: t.index_select(0, rows), lambda n: n.select_groups(groups, k))


def cat(states: Sequence[State]) -> State:
    """Join the rows of several states of one structure."""
    first, rest = states[0], tuple(states[1:])
    return _walk(first, lambda t, *o: torch.cat((t, *o)), lambda n, *o: n.cat(o), rest)


def split(state: State, sizes: Sequence[int]) -> list[State]:
    """The inverse of :func:`cat`."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [select(state, list(range(s, s + n))) for s, n in zip(starts, sizes)]


def where(keep_new: Tensor, new: State, old: State) -> State:
    """Rows of ``new`` where ``keep_new`` (B,) is True, rows of ``old`` elsewhere."""

    def pick(n: Tensor, o: Tensor) -> Tensor:
        return torch.where(keep_new.view(-1, *([1] * (n.dim() - 1))), n, o)

    return _walk(new, pick, lambda n, o: n.where(keep_new, o), (old,))


def fork(state: State) -> State:
    """An equal state that may be advanced for any number of steps without touching this one."""
    return _walk(state, lambda t: t, lambda n: n.fork())


def detach(state: State) -> State:
    """Cut the gradient at this point (truncated backpropagation)."""
    return map_tensors(lambda t: t.detach(), state)


def to(state: State, *args: Any, **kwargs: Any) -> State:
    """``Tensor.to`` on every tensor."""
    return map_tensors(lambda t: t.to(*args, **kwargs), state)


def canonical(state: State) -> State:
    """A plain tree that is equal for two states exactly when they behave alike."""
    return _walk(state, lambda t: t, lambda n: canonical(n.canonical()))


def nbytes(state: State) -> int:
    """Bytes that the live content of the state occupies, shared memory counted once."""
    return sum(t.numel() * t.element_size() for t in leaves(canonical(state)))


def allocated(state: State) -> int:
    """Bytes held by the tensors of the state, spare room of arenas included."""
    return sum(t.numel() * t.element_size() for t in leaves(state))


@dataclass(frozen=True)
class Shared(StateNode):
    """A tree of which each row serves ``fanout`` consecutive rows of the state around it.

    Memory keys and values are the same for all hypotheses of one source, so beams must not copy them:
    ``expand`` multiplies ``fanout``, ``reorder`` within the groups is free. A reader folds its queries
    (B*fanout, U, D) -> (B, fanout*U, D) instead; see :meth:`fold` and :meth:`unfold`.
    """

    value: Any
    fanout: int = 1

    def select(self, rows: Tensor) -> Shared:
        if self.fanout > 1:
            rows = rows // self.fanout
        return Shared(select(self.value, rows), 1)

    def expand(self, k: int) -> Shared:
        return Shared(self.value, self.fanout * k)

    def reorder(self, parents: Tensor) -> Shared:
        if self.fanout % parents.shape[1] == 0:
            return self
        return self.select(flat_parents(parents))

    def select_groups(self, groups: Tensor, k: int) -> Shared:
        if k % self.fanout == 0:
            return Shared(select_groups(self.value, groups, k // self.fanout), self.fanout)
        if self.fanout % k == 0:
            return Shared(select(self.value, groups // (self.fanout // k)), k)
        return self.select(group_rows(groups, k))

    def cat(self, others: Sequence[Shared]) -> Shared:
        if len({self.fanout, *(o.fanout for o in others)}) == 1:
            return Shared(cat([self.value, *(o.value for o in others)]), self.fanout)
        return Shared(cat([s.flat() for s in (self, *others)]), 1)

    def where(self, keep_new: Tensor, old: Shared) -> Shared:
        if old.value is self.value and old.fanout == self.fanout:
            return self
        return Shared(where(keep_new, self.flat(), old.flat()), 1)

    def fork(self) -> Shared:
        return self

    def flat(self) -> Any:
        """The tree with one row per row of the surrounding state."""
        return self.value if self.fanout == 1 else expand(self.value, self.fanout)

    def fold(self, query: Tensor) -> Tensor:
        """(G*fanout, U, ...) -> (G, fanout*U, ...)"""
        if self.fanout == 1:
            return query
        return query.reshape(query.shape[0] // self.fanout, self.fanout * query.shape[1], *query.shape[2:])

    def unfold(self, result: Tensor) -> Tensor:
        """(G, fanout*U, ...) -> (G*fanout, U, ...)"""
        if self.fanout == 1:
            return result
        steps = result.shape[1] // self.fanout
        return result.reshape(result.shape[0] * self.fanout, steps, *result.shape[2:])

    def canonical(self) -> Any:
        return self.value
