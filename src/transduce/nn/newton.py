"""A cell's recurrence as a problem for Newton's method: its state as numbers of channels, its Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.core.protocols import Cell
from transduce.core.state import State
from transduce.ops.newton import Newton, Solution, Step, automatic_jacobian, check_structure, newton_solve


class Channels:
    """The state of ``cell`` as (B,K,D): K tensors (B,D) that stand for K numbers of each of D channels.

    The cell says its Jacobian itself with a method ``jacobian(pre (B,P), state) -> (B,K,K,D)``, where entry i, j is
    the derivative of number i behind the step in number j before; one without the method is differentiated. Raises
    UserError for a state that is not of this form.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell, self.like = cell, cell.init_state(1)
        shapes = {tuple(t.shape) for t in states.leaves(self.like)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise UserError(
                f"{type(cell).__name__} cannot be solved by Newton's method: its state must be tensors (batch, width) "
                f'of one width, not {sorted(shapes)}; use solver="loop".'
            )

    def join(self, state: State) -> Tensor:
        return torch.stack(states.leaves(state), 1)

    def part(self, h: Tensor) -> State:
        return states.unflatten(self.like, h.unbind(1))

    def step(self, pre: Tensor, h: Tensor) -> Tensor:
        return self.join(self.cell.step(pre, self.part(h)))

    @property
    def jacobian(self) -> Step:
        given = getattr(self.cell, "jacobian", None)
        if given is None:
            return automatic_jacobian(self.step)
        return lambda pre, h: given(pre, self.part(h))

    def check(self, width: int) -> None:
        """Raise UserError where the channels mix. ``width``: numbers a step reads beside the state."""
        h = self.join(self.like)
        check_structure(self.step, h.new_zeros(1, width), h, type(self.cell).__name__)

    def solve(
        self,
        pre: Tensor,
        state: State,
        *,
        mask: Tensor | None = None,
        resets: Tensor | None = None,
        settings: Newton = Newton(),
    ) -> tuple[Tensor, State, Solution]:
        """Outputs (B,T,H), the state behind the last step, and how Newton's method went."""
        fresh = None if resets is None else self.join(self.cell.init_state(pre.shape[0]))
        h, solution = newton_solve(
            self.step, self.jacobian, pre, self.join(state), mask=mask, resets=resets, fresh=fresh, settings=settings
        )
        outputs = self.cell.output(self.part(h.flatten(0, 1))).unflatten(0, h.shape[:2])
        return outputs, states.map_tensors(torch.clone, self.part(h[:, -1])), solution
