"""The arena of keys and values: every state stays what it was, whatever is done with the others."""

from __future__ import annotations

import pytest
import torch

from transduce.core import state as st
from transduce.nn.arena import SLACK, KVArena
from transduce.nn.attention import Attention


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(window: int | None = None, **kwargs) -> Attention:
    torch.manual_seed(3)
    made = Attention(8, 2, window=window, **kwargs).double()
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.6)
    return made


def close(a, b) -> bool:
    pairs = list(zip(st.leaves(st.canonical(a)), st.leaves(st.canonical(b)), strict=True))
    return all(x.shape == y.shape and torch.allclose(x, y, atol=1e-10) for x, y in pairs)


def run(m: Attention, x: torch.Tensor, state, chunk: int = 1):
    outputs = []
    for part in x.split(chunk, 1):
        y, state = m(part, state)
        outputs.append(y)
    return torch.cat(outputs, 1), state


MODES = {
    "in place": torch.no_grad,
    "inference": torch.inference_mode,
    "with gradients": torch.enable_grad,
}


@pytest.fixture(params=MODES)
def mode(request):
    with MODES[request.param]():
        yield request.param


@pytest.fixture(params=[None, 4], ids=["growing", "ring"])
def window(request):
    return request.param


@pytest.mark.parametrize("chunk", [1, 3, SLACK + 1, SLACK + 2, 90])
def test_chunks_of_any_size_through_growth_and_around_the_ring(window, mode, chunk):
    m, x = layer(window), normal(2, 150, 8)
    whole, _ = m(x)
    y, state = run(m, x, m.init_state(2), chunk)
    assert torch.allclose(y, whole, atol=1e-10)
    assert close(state, run(m, x, m.init_state(2, capacity=150), 150)[1])


def test_masked_steps_and_resets_in_chunks(window, mode):
    m, x = layer(window), normal(3, 120, 8)
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(3, 120, generator=generator) > 0.4
    resets = torch.rand(3, 120, generator=generator) < 0.05
    whole, _ = m(x, mask=mask, resets=resets)
    state, outputs = m.init_state(3), []
    for part, valid, restart in zip(x.split(7, 1), mask.split(7, 1), resets.split(7, 1)):
        y, state = m(part.masked_fill(~valid[..., None], float("nan")), state, mask=valid, resets=restart)
        outputs.append(y)
    assert torch.allclose(torch.cat(outputs, 1)[mask], whole[mask], atol=1e-10)
    for row in range(3):  # each row is what its valid steps alone give, stretch by stretch
        starts = resets[row, mask[row]].nonzero().flatten().tolist()
        pieces = [p for p in x[row : row + 1, mask[row]].tensor_split(starts, 1) if p.shape[1]]
        alone = [m(p, m.init_state(1)) for p in pieces]
        assert torch.allclose(whole[row, mask[row]], torch.cat([y for y, _ in alone], 1)[0], atol=1e-10)
        assert close(st.select(state, [row]), alone[-1][1])


def test_decoding_writes_in_place_and_does_not_copy(window):
    m, x = layer(window), normal(2, 20, 8)
    with torch.no_grad():
        _, state = m(x[:, :1], m.init_state(2, capacity=20))
        address = state.keys.data_ptr()
        _, state = run(m, x[:, 1:], state)
    assert state.keys.data_ptr() == address


def test_an_old_state_is_exact_after_wrong_continuations(window, mode):
    m, x, wrong = layer(window), normal(2, 50, 8), normal(2, 60, 8, seed=1)
    whole, _ = m(x)
    _, old = run(m, x[:, :20], m.init_state(2))
    before = st.map_tensors(torch.clone, st.canonical(old))
    run(m, wrong[:, :SLACK], old)
    assert close(before, old)
    run(m, wrong[:, 10:], old, 11 if window is None else 50)
    y, _ = run(m, x[:, 20:], old)
    assert torch.allclose(y, whole[:, 20:], atol=1e-10)


def test_live_branches_of_one_state_do_not_disturb_each_other(window, mode):
    m, x, other = layer(window), normal(2, 40, 8), normal(2, 40, 8, seed=1)
    other[:, :15] = x[:, :15]
    _, root = run(m, x[:, :15], m.init_state(2))
    left, right, ys = root, root, []
    for t in range(15, 40):
        y, left = m(x[:, t : t + 1], left)
        z, right = m(other[:, t : t + 1], right)
        ys.append((y, z))
    assert torch.allclose(torch.cat([y for y, _ in ys], 1), m(x)[0][:, 15:], atol=1e-10)
    assert torch.allclose(torch.cat([z for _, z in ys], 1), m(other)[0][:, 15:], atol=1e-10)


def test_a_windowed_state_that_was_overwritten_is_refused_and_a_fork_is_not():
    m, x = layer(4), normal(2, 100, 8)
    with torch.no_grad():
        _, old = run(m, x[:, :10], m.init_state(2))
        kept = st.fork(old)
        run(m, x[:, 10 : 12 + SLACK], old)
        for use in (
            lambda: m(x[:, :1], old),
            lambda: st.select(old, [0]),
            lambda: st.canonical(old),
            lambda: st.fork(old),
        ):
            with pytest.raises(ValueError, match="fork"):
                use()
        assert torch.allclose(run(m, x[:, 10:], kept)[0], m(x)[0][:, 10:], atol=1e-10)


def test_rows_are_picked_joined_and_merged_after_growth_and_wrap(window, mode):
    m, x = layer(window), normal(4, 80, 8)
    states, lengths = [], (70, 45, 3, 0)
    for row, length in enumerate(lengths):
        _, state = run(m, x[row : row + 1, :length], m.init_state(1)) if length else (None, m.init_state(1))
        states.append(state)
    joined = st.cat(states)
    assert st.batch_size(joined) == 4
    order = [2, 0, 3, 0]
    picked = st.select(joined, order)
    for place, row in enumerate(order):
        alone, _ = run(m, x[row : row + 1, 60:], states[row], 5)
        together, _ = run(m, x[order, 60:], picked, 5)
        assert torch.allclose(together[place], alone[0], atol=1e-10)
    keep = torch.tensor([True, False, True, False])
    merged = st.where(keep, picked, joined)
    y, _ = run(m, x[:, 60:], merged)
    expected, _ = run(m, x[:, 60:], st.cat([states[row] for row in (2, 1, 3, 3)]))
    assert torch.allclose(y, expected, atol=1e-10)


def test_frozen_rows_share_the_buffer_and_stay_apart(window, mode):
    m, x = layer(window), normal(2, 30, 8)
    _, old = run(m, x[:, :10], m.init_state(2))
    _, new = run(m, x[:, 10:13], old)
    merged = st.where(torch.tensor([True, False]), new, old)
    if mode != "with gradients":
        assert merged.keys is new.keys
    y, _ = run(m, x[:, 13:], merged)
    z, _ = run(m, x[:, 13:], new)
    skipping = torch.cat((x[1:, :10], x[1:, 13:]), 1)
    assert torch.allclose(y[0], m(x)[0][0, 13:], atol=1e-10)
    assert torch.allclose(y[1], m(skipping)[0][0, 10:], atol=1e-10)
    assert torch.allclose(z, m(x)[0][:, 13:], atol=1e-10)


def test_beams_expand_and_reorder(window, mode):
    m, x = layer(window), normal(6, 30, 8)
    _, state = run(m, x[::3, :12], m.init_state(2))
    beams = st.expand(state, 3)
    _, beams = run(m, x[:, 12:20], beams)
    parents = torch.tensor([[2, 2, 0], [1, 0, 1]])
    y, _ = run(m, x[:, 20:], st.reorder(beams, parents))
    for row, (first, parent) in enumerate([(0, 2), (0, 2), (0, 0), (3, 4), (3, 3), (3, 4)]):
        history = torch.cat((x[first, :12], x[parent, 12:20], x[row, 20:]))
        assert torch.allclose(y[row], m(history[None])[0][0, 20:], atol=1e-10)


def test_live_bytes_grow_as_declared_and_room_at_most_doubles():
    for window in (None, 4):
        m = layer(window, kv_heads=1)
        with torch.no_grad():
            sizes, state = [], m.init_state(3)
            for t in range(100):
                _, state = m(normal(3, 1, 8, seed=t), state)
                sizes.append(st.nbytes(state))
        assert {b - a for a, b in zip(sizes, sizes[1:])} == {3 * m.bytes_per_step}
        if window is None:
            assert st.allocated(state) < 3 * sizes[-1]
    assert layer().bytes_per_step == 2 * 8 * 8 and layer(4).bytes_per_step == 0


def test_masked_steps_and_resets_do_not_use_up_room():
    m, x = layer(), normal(2, 1, 8)
    nothing, restart = torch.zeros(2, 1, dtype=torch.bool), torch.ones(2, 1, dtype=torch.bool)
    with torch.no_grad():
        _, state = m(x, m.init_state(2))
        before = st.canonical(state)
        room = st.allocated(state)
        for _ in range(200):
            _, state = m(x.fill_(float("nan")), state, mask=nothing)
        assert close(state, before) and st.allocated(state) == room
        for t in range(200):
            _, state = m(normal(2, 1, 8), state, resets=restart if t % 10 == 0 else None)
        assert st.allocated(state) <= 2 * room


def test_gradients_through_the_cache_equal_those_of_one_call(window):
    m, x = layer(window), normal(2, 60, 8).requires_grad_()
    weights = normal(2, 60, 8, seed=5)
    whole = torch.autograd.grad((m(x)[0] * weights).sum(), (x, *m.parameters()))
    stepped = torch.autograd.grad((run(m, x, m.init_state(2), 13)[0] * weights).sum(), (x, *m.parameters()))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(whole, stepped))


def test_writing_in_place_never_reaches_a_tensor_that_backward_needs(window):
    m, x = layer(window), normal(2, 12, 8)
    y, state = run(m, x, m.init_state(2), 6)
    with torch.no_grad():
        run(m, x, state)
    y.sum().backward()
    assert all(p.grad is not None for p in m.parameters())


def test_arenas_of_different_windows_do_not_join():
    with pytest.raises(ValueError, match="do not join"):
        st.cat([KVArena.empty(1, 1, 2, like=torch.zeros(1), window=w) for w in (2, 3)])


@pytest.mark.parametrize("chunk", [1, 7, SLACK + 8])
def test_gradients_into_the_initial_state_do_not_depend_on_chunks(window, chunk):
    m, x, weights = layer(window), normal(2, 52, 8), normal(2, 40, 8, seed=5)
    with torch.no_grad():
        _, past = run(m, x[:, :12], m.init_state(2), 5)

    def gradients(size: int) -> tuple[torch.Tensor, ...]:
        keys, values = (t.detach().clone().requires_grad_() for t in (past.keys, past.values))
        state = st.unflatten(past, [keys, values, *st.leaves(past)[2:]])
        y, _ = run(m, x[:, 12:], state, size)
        return torch.autograd.grad((y * weights).sum(), (keys, values))

    whole = gradients(40)
    assert all(g.abs().sum() > 0 for g in whole)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(whole, gradients(chunk), strict=True))
