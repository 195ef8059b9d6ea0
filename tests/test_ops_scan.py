from __future__ import annotations

import pytest
import torch

from transduce.ops.dispatch import use_backend
from transduce.ops.scan import linear_scan
from transduce.testing.ops import check_op

BACKENDS = ("numba", "loop", "reference")


def inputs(batch=2, steps=6, width=3, dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(batch, steps, width, dtype=dtype, generator=g) for _ in range(2))
    return a, b, torch.randn(batch, width, dtype=dtype, generator=g)


def test_every_backend_obeys_the_law():
    record = check_op(linear_scan)
    assert {c.backend for c in record if c.refused is None} == set(BACKENDS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_equation_itself(dtype):
    a, b, h0 = inputs(dtype=dtype)
    h, before = linear_scan(a, b, h0), h0
    for t in range(a.shape[1]):
        torch.testing.assert_close(h[:, t], a[:, t] * before + b[:, t])
        before = h[:, t]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1, 300, 96), (3, 50, 260), (5, 700, 33)])
def test_any_number_of_threads_gives_the_same_bits_where_time_is_whole(threads, shape):
    a, b, h0 = inputs(*shape, dtype=torch.float32)
    a = a.sigmoid()
    expected = linear_scan.run("numba", a, b, h0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(linear_scan.run("numba", a, b, h0), expected)
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def five_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("decay", ["keeps", "fades", "restarts"])
def test_pieces_of_time_join_to_the_whole(five_threads, decay, reverse, dtype):
    a, b, h0 = inputs(2, 6000, 8, dtype)
    a = a / a.abs() if decay == "keeps" else a / (1 + a.abs())
    resets = torch.rand(2, 6000, generator=torch.Generator().manual_seed(1)) < 2e-3 if decay == "restarts" else None
    found = []
    for backend in ("numba", "loop"):
        leaves = [x.clone().requires_grad_() for x in (a, b, h0)]
        h = linear_scan.run(backend, *leaves, resets=resets, reverse=reverse)
        found.append((h.detach(), *torch.autograd.grad(h, leaves, torch.cos(b))))
    for pieces, whole in zip(*found):
        torch.testing.assert_close(pieces, whole, rtol=1e-11, atol=1e-11 * float(whole.abs().max()))


@pytest.mark.parametrize("reverse", [False, True])
def test_nothing_before_a_restart_reaches_a_later_piece_of_time(five_threads, reverse):
    a, b, h0 = inputs(1, 20000, 8)
    a, resets = a.sigmoid(), torch.zeros(1, 20000, dtype=torch.bool)
    b[0, 13000 if reverse else 7000] = float("nan")
    resets[0, 9000] = True
    h = linear_scan.run("numba", a, b, h0, resets=resets, reverse=reverse)
    spoiled = slice(9001, 13001) if reverse else slice(7000, 9000)
    expected = torch.zeros(20000, dtype=torch.bool)
    expected[spoiled] = True
    assert torch.equal(h.isnan().any(-1)[0], expected)


def test_a_product_of_decays_that_overflows_spoils_no_zeros(five_threads):
    a, b, h0 = inputs(1, 30000, 8, torch.float32)
    assert not linear_scan.run("numba", 0 * a + 1.1, 0 * b, 0 * h0).any()


@pytest.mark.parametrize("backend", BACKENDS)
class TestEveryBackend:
    def test_a_chunk_at_a_time_is_the_whole(self, backend):
        a, b, h0 = inputs(steps=9)
        whole = linear_scan.run(backend, a, b, h0)
        first = linear_scan.run(backend, a[:, :4], b[:, :4], h0)
        second = linear_scan.run(backend, a[:, 4:], b[:, 4:], first[:, -1])
        torch.testing.assert_close(torch.cat((first, second), 1), whole, rtol=0, atol=0)

    def test_reverse_is_the_scan_of_the_flipped_sequence(self, backend):
        a, b, h0 = inputs()
        flipped = linear_scan.run(backend, a.flip(1), b.flip(1), h0).flip(1)
        assert torch.equal(linear_scan.run(backend, a, b, h0, reverse=True), flipped)

    @pytest.mark.parametrize("reverse", [False, True])
    def test_a_reset_forgets_even_nan_and_blocks_its_gradient(self, backend, reverse):
        a, b, h0 = (x.clone().requires_grad_() for x in inputs(1, 5, 2))
        resets = torch.tensor([[False, False, True, False, False]])
        with torch.no_grad():
            b[:, 4 if reverse else 0] = float("nan")
            a[:, 2] = float("inf")
        h = linear_scan.run(backend, a, b, h0, resets=resets, reverse=reverse)
        after = h[:, :3] if reverse else h[:, 2:]
        assert after.isfinite().all() and torch.equal(h[:, 2], b[:, 2])
        da, db, dh0 = torch.autograd.grad(after.sum(), (a, b, h0))
        since = da[:, :3] if reverse else da[:, 2:]  # before, 0 * NaN belongs to a history that holds NaN
        assert since.isfinite().all() and db.isfinite().all()
        assert not dh0.any() and not da[:, 2].any()

    def test_a_reset_at_the_first_step_hides_the_initial_state(self, backend):
        a, b, h0 = inputs()
        resets = torch.zeros(2, 6, dtype=torch.bool)
        resets[:, 0] = True
        assert torch.equal(linear_scan.run(backend, a, b, h0, resets=resets), linear_scan.run(backend, a, b))

    def test_no_steps_no_rows(self, backend):
        a, b, h0 = inputs()
        assert linear_scan.run(backend, a[:, :0], b[:, :0], h0).shape == (2, 0, 3)
        assert linear_scan.run(backend, a[:0], b[:0], h0[:0]).shape == (0, 6, 3)
        empty = b[:, :0].clone().requires_grad_()
        linear_scan.run(backend, a[:, :0], empty, h0).sum().backward()
        assert empty.grad.shape == (2, 0, 3)

    def test_half_precision_is_computed_in_float32(self, backend):
        a, b, h0 = (x.bfloat16() for x in inputs(steps=200))
        a = a.sigmoid()
        wide = linear_scan.run(backend, a.float(), b.float(), h0.float())
        narrow = linear_scan.run(backend, a, b, h0)
        assert narrow.dtype == torch.bfloat16 and torch.equal(narrow, wide.bfloat16())
        assert torch.equal(linear_scan.run(backend, a, b, h0.float()), wide)

    def test_real_decay_of_a_complex_sequence(self, backend):
        a, _, _ = inputs()
        _, b, h0 = inputs(dtype=torch.complex128)
        expected = linear_scan.run(backend, a.to(torch.complex128), b, h0)
        torch.testing.assert_close(linear_scan.run(backend, a, b, h0), expected)
        a.requires_grad_()
        (grad,) = torch.autograd.grad(linear_scan.run(backend, a, b, h0).abs().sum(), a)
        assert grad.dtype == torch.float64


@pytest.mark.parametrize("backend", ["numba", "loop"])
def test_a_second_derivative_is_refused(backend):
    a, b, _ = inputs()
    b.requires_grad_()
    (grad,) = torch.autograd.grad(linear_scan.run(backend, a, b).square().sum(), b, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_the_reference_has_a_second_derivative():
    a, b, h0 = (x.requires_grad_() for x in inputs(1, 3, 2))
    with use_backend(linear_scan="reference"):
        assert torch.autograd.gradgradcheck(linear_scan, (a, b, h0))


@pytest.mark.parametrize("reverse", [False, True])
def test_the_matrix_times_the_inputs_is_the_scan(reverse):
    a, b, _ = inputs(dtype=torch.complex128)
    a[0, 3, 1] = 0
    resets = torch.rand(2, 6, generator=torch.Generator().manual_seed(1)) < 0.3
    matrix = linear_scan.matrix(a, resets=resets, reverse=reverse)
    product = torch.einsum("bdts,bsd->btd", matrix, b)
    torch.testing.assert_close(product, linear_scan(a, b, resets=resets, reverse=reverse))
    assert not (matrix.tril(-1) if reverse else matrix.triu(1)).any()


def test_the_matrix_of_a_constant_decay():
    matrix = linear_scan.matrix(torch.full((1, 1, 1), 0.5), 3)
    assert torch.equal(matrix[0, 0], torch.tensor([[1, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]]))


def test_why_says_what_is_used():
    a, b, _ = inputs()
    assert linear_scan.why(a, b) == {"numba": "used"}
    assert "the kernel runs on the CPU" in linear_scan.why(a.to("meta"), b)["numba"]


def test_export_falls_back_to_the_reference():
    class Scan(torch.nn.Module):
        def forward(self, a, b):
            return linear_scan(a, b)

    a, b, _ = inputs()
    exported = torch.export.export(Scan(), (a, b), strict=False)
    torch.testing.assert_close(exported.module()(a, b), linear_scan(a, b))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b, h0: (a[0], b, h0), "shape"),
        (lambda a, b, h0: (a, b, h0[:, :2]), "broadcast|h0 of shape"),
        (lambda a, b, h0: (a.long(), b.long(), h0.long()), "floating point"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        linear_scan(*change(*inputs()))


def test_wrong_resets_are_named():
    a, b, _ = inputs()
    with pytest.raises(ValueError, match="bool resets of shape"):
        linear_scan(a, b, resets=torch.zeros(2, 5, dtype=torch.bool))
