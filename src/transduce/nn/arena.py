"""Keys and values of past steps, appended in place, yet every older state stays what it was.

A purely functional cache copies everything at every step. An arena is a buffer that successive states share:
each state knows how far its own row is filled (``count``), and the next one writes behind that. What a state
sees is therefore never touched by its successors, and only the newest state of a buffer writes into it; any
other one (a state that was continued before, a merge of two states) copies the buffer first. In short: copy
on write, where the common case, decoding step after step, never copies.

With a window the buffer is a ring of ``window + SLACK`` slots. A successor overwrites the oldest slots, so an
older state can be continued exactly while at most ``SLACK`` steps were written behind it, and refuses after
that; :func:`transduce.core.state.fork` beforehand makes an independent copy.

With gradients switched on, and while a graph is exported, nothing is written in place.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transduce.core.state import StateNode

SLACK = 32
"""Steps that may be written behind a windowed state before it can no longer be continued."""

_FIRST_ROOM = 32


@dataclass(frozen=True)
class Steps:
    """Where the steps of a chunk stand in their rows. ``index`` (B,T): how many valid steps precede the step
    in its row (at a masked step: that of the last valid one). ``start`` (B,T): index of the first step of its
    history. ``mask`` (B,T) or None. ``plain``: neither mask nor resets. ``whole``: no history ever
    began anew, so positions are indices. One row stands for all where they are equal."""

    index: Tensor
    start: Tensor
    mask: Tensor | None
    plain: bool = False
    whole: bool = False

    @property
    def position(self) -> Tensor:
        """(B,T): steps since the last reset."""
        return self.index if self.whole else (self.index - self.start).clamp(min=0)

    @classmethod
    def of_chunk(
        cls,
        steps: int,
        count: Tensor,
        start: Tensor,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Steps:
        """``count`` and ``start`` (B,) before the chunk; ``resets`` only at valid steps."""
        if mask is None:
            index = count[:, None] + torch.arange(steps, device=count.device)
        else:
            index = count[:, None] + mask.long().cumsum(1) - 1
        since = start[:, None]
        if resets is not None:
            since = torch.maximum(since, torch.where(resets, index, -1).cummax(1).values)
        return cls(index, since.expand(since.shape[0], steps), mask, mask is None and resets is None)

    @property
    def as_keys(self) -> Tensor:
        """(B,T): the index, -1 at masked steps, where there is nothing to attend to."""
        return self.index if self.mask is None else torch.where(self.mask, self.index, -1)


@dataclass(frozen=True)
class KVArena(StateNode):
    """Keys and values (B, slots+1, H, K) and what of them is filled; the last slot takes masked steps. In memory a
    head's slots lie together, which attention reads twice as fast as steps that lie together.

    count (B,): valid steps so far. start (B,): index of the first step since the last reset. written (B,):
    one past the highest index ever written into these buffers, by whichever state with a window, by this one
    without. steps: upper bound of ``count`` that needs no look at the device. version: that of ``keys`` when
    this state was made. owner: whether this state may write into the buffers as long as the version is still
    that one. window: steps that a query can see, itself included; None for all. aligned: every ``count`` is
    ``steps`` and every ``start`` 0, so that one row of indices stands for all and the next step may see every
    slot before it; never with a window. Without a window the step of index i is in slot i, with one in slot i
    modulo ``slots``.
    """

    keys: Tensor
    values: Tensor
    count: Tensor
    start: Tensor
    written: Tensor
    steps: int = 0
    version: int = 0
    owner: bool = False
    window: int | None = None
    aligned: bool = False

    @classmethod
    def empty(
        cls,
        batch: int,
        heads: int,
        width: int,
        *,
        like: Tensor,
        window: int | None = None,
        capacity: int | None = None,
    ) -> KVArena:
        """An arena without content, on the device and with the dtype of ``like``."""
        slots = max(1, _FIRST_ROOM if capacity is None else capacity)
        if window is not None:
            slots = window + SLACK
        with _ordinary_tensors():
            keys = like.new_zeros(batch, heads, slots + 1, width).transpose(1, 2)
            none = torch.zeros(batch, dtype=torch.long, device=like.device)
            values, start, written = keys.clone(), none.clone(), none.clone()
            return cls(keys, values, none, start, written, owner=True, window=window, aligned=window is None)

    @property
    def slots(self) -> int:
        return self.keys.shape[1] - 1

    @property
    def position(self) -> Tensor:
        """(B,): steps since the last reset."""
        return self.count - self.start

    def place(self, steps: int, mask: Tensor | None = None, resets: Tensor | None = None) -> Steps:
        """Where the next ``steps`` steps stand."""
        count, start = self.count, self.start
        if self._one_row_for_all():
            index = torch.arange(self.steps, self.steps + steps, device=count.device)[None]
            if mask is None and resets is None:
                return Steps(index, start[:1, None].expand(1, steps), None, plain=True, whole=True)
            count, start = index[:, 0], start[:1]
        return Steps.of_chunk(steps, count, start, mask, resets)

    # ------------------------------------------------------------ appending

    def append(self, k: Tensor, v: Tensor, at: Steps) -> tuple[Tensor, Tensor, Tensor, KVArena]:
        """Add a chunk k, v (B,T,H,K) at ``at``, which :meth:`place` gave.

        Returns the keys and values to attend to (B,S,H,K), the index of each (B,S), and the arena that holds
        the chunk. Indices outside a query's history (below its start, above its own) have nothing behind
        them.
        """
        self._check_intact()
        if self.window is not None and k.shape[1] > SLACK + 1:
            return self._append_long(k, v, at)
        arena = self._with_room(k.shape[1])
        if arena.start is not self.start and not self.aligned:  # its content has moved
            at = replace(at, index=at.index - self.start[:, None], start=at.start - self.start[:, None])
        arena = arena._write(k, v, at)
        live = min(arena.steps, arena.slots)
        return arena.keys[:, :live], arena.values[:, :live], arena._index_of_slots(live), arena

    def _append_long(self, k: Tensor, v: Tensor, at: Steps) -> tuple[Tensor, Tensor, Tensor, KVArena]:
        """A chunk that would overwrite in the ring what its own first steps still see: attend to old and new
        laid end to end, then keep the last part in a ring of its own."""
        old_k, old_v, old_index = self._newest(self.window - 1)
        seen_k, seen_v = torch.cat((old_k, k.to(old_k.dtype)), 1), torch.cat((old_v, v.to(old_v.dtype)), 1)
        seen_index = torch.cat((old_index, at.as_keys.expand(old_index.shape[0], -1)), 1)
        return seen_k, seen_v, seen_index, replace(self, owner=False)._write(k, v, at)

    def _write(self, k: Tensor, v: Tensor, at: Steps) -> KVArena:
        chunk = k.shape[1]
        count = self.count + chunk if at.mask is None else at.index[:, -1] + 1
        start = self.start if at.plain else at.start[:, -1].expand(k.shape[0])
        slot, stored = at.index, at.mask
        if self.window is not None:
            slot = slot % self.slots
            if chunk > self.slots:
                newest = at.index >= count[:, None] - self.slots
                stored = newest if stored is None else stored & newest
        if stored is not None:
            slot = torch.where(stored, slot, self.slots)
        k, v = k.to(self.keys.dtype), v.to(self.values.dtype)
        aligned = self._one_row_for_all() and at.plain
        functional = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if functional or not aligned:
            where = (torch.arange(k.shape[0], device=k.device)[:, None], slot)
        written = count
        if functional:
            keys, values = self.keys.index_put(where, k), self.values.index_put(where, v)
        else:
            keys, values, shared = self._own_buffers()
            if aligned:  # a quarter of the time that indices take
                keys[:, self.steps : self.steps + chunk], values[:, self.steps : self.steps + chunk] = k, v
            else:
                keys.index_put_(where, k)
                values.index_put_(where, v)
            if self.window is not None:
                written = torch.maximum(shared, count, out=shared)
        return KVArena(
            keys,
            values,
            count,
            start,
            written,
            self.steps + chunk,
            _version(keys),
            not functional,
            self.window,
            aligned,
        )

    def _own_buffers(self) -> tuple[Tensor, Tensor, Tensor]:
        """These buffers, or copies if another state may rely on what is behind ``count`` in them."""
        if self.owner and _version(self.keys) == self.version:
            return self.keys, self.values, self.written
        with _ordinary_tensors():
            return self.keys.clone(), self.values.clone(), self.count.clone()

    def _check_intact(self) -> None:
        """Refuse when successors have overwritten in the ring what this state still needs."""
        if self.window is None or torch.compiler.is_compiling() or _version(self.keys) == self.version:
            return
        if bool((self.written - self.count > SLACK + 1).any()):
            raise ValueError(
                f"more than {SLACK} steps were taken after this windowed attention state, so it cannot be "
                "continued; fork() a state that you want to come back to"
            )

    def _with_room(self, chunk: int) -> KVArena:
        """Room for ``chunk`` more steps. It at least doubles, so that all copies together stay linear."""
        if self.window is not None or self.steps + chunk <= self.slots:
            return self
        if torch.compiler.is_compiling():
            return self._resized(max(2 * self.slots, self.steps + chunk))
        # The one look at the device: masked steps and resets may have left more room than the bound knows.
        live = int(self.position.max())
        enough = live + chunk <= self.slots // 2
        return self._from_start(self.slots if enough else max(2 * self.slots, live + chunk), live)

    def _one_row_for_all(self) -> bool:
        """Whether rows are aligned; never in a graph, which serves any state of the same shapes."""
        return self.aligned and not torch.compiler.is_compiling()

    # ------------------------------------------------------------ moving

    def _resized(self, slots: int) -> KVArena:
        """More slots. The old bin becomes an ordinary slot, which nothing reads before it is written."""
        if slots == self.slots:
            return self
        keys, values = (_padded(t, slots - self.slots) for t in (self.keys, self.values))
        return replace(self, keys=keys, values=values, version=_version(keys), owner=False)

    def _from_start(self, slots: int, live: int) -> KVArena:
        """New buffers in which every row's history begins at slot 0; ``live``: length of the longest."""
        with _ordinary_tensors():
            keys, values = self._take(self.start[:, None] + torch.arange(live, device=self.start.device))
            keys, values = (_padded(t, slots + 1 - live) for t in (keys, values))
            count = self.position.clone()
            start, written = torch.zeros_like(count), count.clone()
            return KVArena(
                keys, values, count, start, written, live, _version(keys), True, aligned=self.aligned
            )

    def _index_of_slots(self, live: int) -> Tensor:
        """(B, live): index of the step in each slot, negative or not yet counted where there is none; (1, live)
        where rows are aligned."""
        slot = torch.arange(live, device=self.count.device)[None]
        if self.aligned:
            return slot
        if self.window is None:
            return slot.expand(self.count.shape[0], live)
        last = self.count[:, None] - 1
        return last - (last - slot) % self.slots

    def _take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B,n,H,K) of the steps with these indices (B,n), zeros where there is none."""
        there = (index >= self.start[:, None]) & (index < self.count[:, None])
        slot = torch.where(there, index % self.slots, self.slots)
        rows = torch.arange(index.shape[0], device=index.device)[:, None]
        there = there[..., None, None]
        zero = self.keys.new_zeros(())
        keys, values = self.keys[rows, slot], self.values[rows, slot]
        return torch.where(there, keys, zero), torch.where(there, values, zero)

    def _newest(self, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """The last ``steps`` steps of each row in order, keys, values and indices, zeros before the start."""
        index = self.count[:, None] - steps + torch.arange(steps, device=self.count.device)
        return *self._take(index), index

    # ------------------------------------------------------------ the row algebra

    def select(self, rows: Tensor) -> KVArena:
        self._check_intact()
        live = self.keys.shape[1]
        if self.window is None and 2 * self.steps <= self.slots:
            live = self.steps  # the room behind is empty: do not copy it
        room = self.keys.shape[1] - live
        with _ordinary_tensors():
            keys, values = (_padded(_rows(t[:, :live], rows), room) for t in (self.keys, self.values))
            count, start = self.count.index_select(0, rows), self.start.index_select(0, rows)
        return self._with(keys, values, count, start)

    def cat(self, others: Sequence[KVArena]) -> KVArena:
        parts = self._alike(others)
        with _ordinary_tensors():
            keys, values = (
                torch.cat([t.transpose(1, 2) for t in buffers]).transpose(1, 2)
                for buffers in ([p.keys for p in parts], [p.values for p in parts])
            )
            count, start = torch.cat([p.count for p in parts]), torch.cat([p.start for p in parts])
        aligned = all(p.aligned and p.steps == self.steps for p in parts)
        return replace(self, steps=max(p.steps for p in parts), aligned=aligned)._with(keys, values, count, start)

    def where(self, keep_new: Tensor, old: KVArena) -> KVArena:
        count = torch.where(keep_new, self.count, old.count)
        start = torch.where(keep_new, self.start, old.start)
        aligned, steps = self.aligned and old.aligned and self.steps == old.steps, max(self.steps, old.steps)
        if old.keys is self.keys:
            # One buffer holds both pasts, and ``self`` may go on writing in it, so the result is no owner.
            self._check_intact()
            old._check_intact()
            return replace(
                self, count=count, start=start, steps=steps, version=_version(self.keys), owner=False, aligned=aligned
            )
        new, old = self._alike([old])
        keep = keep_new.view(-1, 1, 1, 1)
        with _ordinary_tensors():
            keys, values = torch.where(keep, new.keys, old.keys), torch.where(keep, new.values, old.values)
        return replace(self, steps=steps, aligned=aligned)._with(keys, values, count, start)

    def fork(self) -> KVArena:
        self._check_intact()
        with _ordinary_tensors():
            keys, values = self.keys.clone(), self.values.clone()
        return self._with(keys, values, self.count, self.start)

    def canonical(self) -> dict[str, Any]:
        """What later queries can see, in order; zeros before it with a window, behind it without."""
        self._check_intact()
        if self.window is None:
            live = int(self.position.max()) if self.position.numel() else 0
            keys, values = self._take(self.start[:, None] + torch.arange(live, device=self.start.device))
        else:
            keys, values, _ = self._newest(self.window - 1)
        return {"keys": keys, "values": values, "position": self.position}

    def _alike(self, others: Sequence[KVArena]) -> list[KVArena]:
        """These arenas with one number of slots."""
        parts = [self, *others]
        for part in parts:
            part._check_intact()
            if part.window != self.window:
                raise ValueError(f"attention states of windows {self.window} and {part.window} do not join")
        slots = max(p.slots for p in parts)
        with _ordinary_tensors():
            return [p._resized(slots) for p in parts]

    def _with(self, keys: Tensor, values: Tensor, count: Tensor, start: Tensor) -> KVArena:
        """The state of new buffers that nobody else knows."""
        with _ordinary_tensors():
            written = count.clone()
        owner = not keys.requires_grad
        version = _version(keys)
        return KVArena(
            keys, values, count, start, written, self.steps, version, owner, self.window, self.aligned
        )


def _padded(t: Tensor, more: int) -> Tensor:
    """(B,S,H,K) with ``more`` empty slots behind, laid out head by head."""
    return F.pad(t.transpose(1, 2), (0, 0, 0, more)).transpose(1, 2)


def _rows(t: Tensor, rows: Tensor) -> Tensor:
    return t.transpose(1, 2).index_select(0, rows).transpose(1, 2)


@contextmanager
def _ordinary_tensors() -> Iterator[None]:
    """Inside inference mode, make tensors that count their versions all the same."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _version(t: Tensor) -> int:
    """How often a tensor was written in place; -1 where it is not counted."""
    return -1 if torch.compiler.is_compiling() or t.is_inference() else t._version
