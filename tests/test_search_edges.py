"""Search where it is easy to get wrong: ties, dead ends, limits by row, many samples, scorers that meet."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from transduce.core import state as states
from transduce.core.dist import Categorical
from transduce.core.errors import UserError
from transduce.core.protocols import Hypothesis, Model
from transduce.core.seq import BOS, EOS, PAD, UNK, Batch, Seq
from transduce.core.tap import tap
from transduce.search import (
    Beam, BlockNGrams, Constrain, CoveragePenalty, Ensemble, Fusion, Greedy, LengthPenalty, Sample,
    StepScorer, align, ratio, score,
)
from transduce.search.pool import best_candidates

NEVER = float("-inf")


class Fixed(Model):
    """The same scores at every step, or those of a list by step; counts the rows that it was called with."""

    def __init__(self, *steps: dict[int, float], num_symbols: int = 8) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.scores = torch.full((len(steps), num_symbols), NEVER)
        for t, step in enumerate(steps):
            for symbol, value in step.items():
                self.scores[t, symbol] = value

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> states.State:
        return torch.zeros(batch.size, dtype=torch.long)

    def forward(
        self, prev: Tensor, state: Tensor, *, mask: Tensor | None = None
    ) -> tuple[Categorical, states.State]:
        self.rows.append(len(prev))
        at = state[:, None] + torch.arange(prev.shape[1])
        return Categorical(self.scores[at.clamp_max(len(self.scores) - 1)]), state + prev.shape[1]


class CopyUntilEnd(Model):
    """Writes as many 4s as the source has symbols, then EOS; the source's lengths are shared by beams."""

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> states.State:
        step = torch.zeros(batch.size, dtype=torch.long)
        return {"step": step, "length": states.Shared(batch.source.lengths)}

    def forward(
        self, prev: Tensor, state: states.State, *, mask: Tensor | None = None
    ) -> tuple[Categorical, states.State]:
        at = state["step"][:, None] + torch.arange(prev.shape[1])
        logits = torch.zeros(*prev.shape, 8)
        logits[..., 4] = 8.0
        logits[..., EOS] = torch.where(at < state["length"].flat()[:, None], 0.0, 16.0)
        return Categorical(logits), {**state, "step": state["step"] + prev.shape[1]}


def sources(*lengths: int) -> Batch:
    return Batch(Seq.from_lists([[5] * n for n in lengths]), None)


def only(rows: list[list[Hypothesis]]) -> list[Hypothesis]:
    assert all(len(row) == 1 for row in rows)
    return [row[0] for row in rows]


# ------------------------------------------------------------- candidates and ties


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(5, 3000), st.integers(1, 40), st.integers(0, 10_000),
    st.booleans(),
)
def test_the_best_candidates_are_those_of_a_stable_sort(rows, count, size, levels, seed, some_never) -> None:
    """Few levels make many ties; sizes reach beyond where blocks are looked at first."""
    generator = torch.Generator().manual_seed(seed)
    total = -torch.randint(levels, (rows, size), generator=generator).float()
    if some_never:
        total[torch.rand(rows, size, generator=generator) < 0.9] = NEVER
    values, index = best_candidates(total, count)
    want = total.sort(dim=1, descending=True, stable=True)
    assert torch.equal(values, want.values[:, :count])
    alive = values > NEVER
    assert torch.equal(index[alive], want.indices[:, :count][alive])
    assert int(index.min()) >= 0 and int(index.max()) < size


def test_equal_scores_prefer_the_lower_id_everywhere() -> None:
    model = Fixed({4: 0.0, 5: 0.0, 6: 0.0}, {4: 0.0, 5: 0.0, 6: 0.0}, {EOS: 0.0})
    batch = sources(1, 1)
    assert [h.ids for h in only(Greedy(5)(model, batch))] == [(4, 4)] * 2
    assert [h.ids for h in Beam(3, num_best=3, max_length=5)(model, batch)[0]] == [(4, 4), (4, 5), (4, 6)]


# ------------------------------------------------------------- dead ends, NaN, special symbols


@pytest.mark.parametrize("search", [Greedy(5), Sample(max_length=5), Beam(3, max_length=5)])
def test_a_model_that_allows_only_special_symbols_leads_nowhere(search) -> None:
    """Nothing is made up: single searches stop unfinished with what they have, a beam returns nothing."""
    model = Fixed({4: 0.0}, {PAD: 0.0, BOS: -1.0, UNK: -2.0})
    for row in search(model, sources(1, 2)):
        assert [(h.ids, h.finished) for h in row] in ([], [((4,), False)])


def test_the_unknown_symbol_only_on_request() -> None:
    model = Fixed({UNK: 0.0, 4: -3.0}, {EOS: 0.0})
    for make in (Greedy, lambda n, **k: Beam(2, max_length=n, **k), lambda n, **k: Sample(max_length=n, **k)):
        assert only(make(3)(model, sources(1)))[0].ids == (4,)
    for make in (Greedy, lambda n, **k: Beam(2, max_length=n, **k)):
        assert only(make(3, allow_unknown=True)(model, sources(1)))[0].ids == (UNK,)


@pytest.mark.parametrize("search", [Greedy(5), Sample(max_length=5), Beam(3, max_length=5)])
def test_scores_that_are_nan_are_refused(search) -> None:
    with pytest.raises(UserError, match="NaN"):
        search(Fixed({4: float("nan"), 5: 0.0}), sources(1, 2))


def test_a_beam_wider_than_the_vocabulary() -> None:
    (row,) = Beam(50, num_best=50, max_length=2)(Fixed({4: 0.0, EOS: -1.0}, num_symbols=5), sources(1))
    assert {(h.ids, h.finished) for h in row} == {((), True), ((4,), True), ((4, 4), False)}


# ------------------------------------------------------------- limits and rows that are done


def test_each_row_has_its_own_limit() -> None:
    """A model that never ends is cut off by its own source's length, whatever is beside it in the batch."""
    endless = Fixed({4: 0.0})
    limit = ratio(2.0, 1)
    for search in (Greedy(limit), Beam(2, max_length=limit), Sample(max_length=limit)):
        found = only(search(endless, sources(1, 4, 2)))
        assert [len(h.ids) for h in found] == [3, 9, 5]
        assert not any(h.finished for h in found)


def test_limits_may_be_numbers_or_functions() -> None:
    endless = Fixed({4: 0.0})
    for limit in (3, lambda batch: 3, lambda batch: torch.full((batch.size,), 3)):
        assert [len(h.ids) for h in only(Greedy(limit)(endless, sources(1, 2)))] == [3, 3]
    with pytest.raises(UserError, match="max_length"):
        Greedy(0)(endless, sources(1))
    with pytest.raises(UserError, match="number"):
        Greedy(ratio(2.0, 1))(endless, Batch(None, Seq.from_lists([[EOS]])))


@pytest.mark.parametrize(
    "search", [Greedy(40), Beam(3, max_length=40), Sample(0.01, num_samples=3, max_length=40)]
)
def test_rows_that_are_done_leave_the_batch(search) -> None:
    """One long source among short ones must not cost the whole batch, and comes out right."""
    seen: list[int] = []

    class Counted(CopyUntilEnd):
        def forward(self, prev, state, *, mask=None):
            assert state["length"].value.shape[0] * state["length"].fanout == len(prev)
            seen.append(state["length"].value.shape[0])
            return super().forward(prev, state, mask=mask)

    found = search(Counted(), sources(2, 30, 1, 2))
    assert [len(row[0].ids) for row in found] == [2, 30, 1, 2]
    assert all(row[0].finished for row in found)
    assert seen[0] == 4 and seen[-1] == 1 and sum(seen) < 50, "one row of memory for each live source"


# ------------------------------------------------------------- scores and parts


@pytest.mark.parametrize("length", [LengthPenalty(0.0), LengthPenalty(0.8), LengthPenalty(0.6, reward=0.4)])
def test_the_parts_of_a_score_sum_up(length: LengthPenalty) -> None:
    scorers = [Fusion(Fixed({4: -0.2, EOS: -2.0}), 0.5), BlockNGrams(4)]
    model = Fixed({4: -0.5, 5: -1.0, EOS: -3.0})
    for row in Beam(4, num_best=4, max_length=6, length=length, scorers=scorers)(model, sources(1, 2)):
        for h in row:
            assert h.score == pytest.approx(sum(h.parts.values()), abs=1e-6)
            assert ("length" in h.parts) == (not length.is_neutral)
            raw = torch.tensor(h.parts["model"] + h.parts["lm"])
            assert h.score == pytest.approx(float(length(raw, len(h.ids) + h.finished)), abs=1e-5)


def test_a_reward_makes_answers_longer() -> None:
    model = Fixed({4: -0.7, EOS: -0.7})
    plain = only(Beam(3, max_length=6)(model, sources(1)))[0]
    rewarded = only(Beam(3, max_length=6, length=LengthPenalty(0.0, reward=2.0))(model, sources(1)))[0]
    assert len(plain.ids) == 0 and len(rewarded.ids) == 5


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0, 2), st.floats(-1, 1), st.floats(-30, 0), st.integers(1, 20), st.integers(1, 20),
    st.lists(st.floats(-5, 0), min_size=20, max_size=20),
)
def test_no_hypothesis_beats_its_best_case(alpha, reward, start, length, more, steps) -> None:
    penalty, limit = LengthPenalty(alpha, reward), length + more
    score = torch.tensor(start, dtype=torch.float64)
    bound = float(penalty.best_case(score, length, limit))
    for n in range(length + 1, limit + 1):
        score = score + steps[n - length - 1]
        assert float(penalty(score, n)) <= bound + 1e-9


def test_long_sums_stay_exact() -> None:
    """The score of a long hypothesis is the sum of its steps, not what float32 leaves of it."""
    model = Fixed({4: 0.0, 5: 0.3})
    step = float(Categorical(model.scores).scores[0, 5].double())
    for search in (Greedy(800), Beam(2, max_length=800)):
        assert only(search(model, sources(1)))[0].score == pytest.approx(800 * step, rel=1e-9)


# ------------------------------------------------------------- scorers


class Attending(Model):
    """Attends to source position u at step u and to the last one for ever; would rather end at once."""

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> states.State:
        step = torch.zeros(batch.size, dtype=torch.long)
        return {"step": step, "source": states.Shared(batch.source.valid())}

    def forward(
        self, prev: Tensor, state: states.State, *, mask: Tensor | None = None
    ) -> tuple[Categorical, states.State]:
        valid = state["source"].flat()
        at = state["step"][:, None] + torch.arange(prev.shape[1])
        position = torch.minimum(at, valid.sum(1, keepdim=True) - 1)
        tap(self, "attend.weights", torch.nn.functional.one_hot(position, valid.shape[1]).float())
        tap(self, "other.weights", torch.full((*prev.shape, valid.shape[1]), 1.0 / valid.shape[1]))
        logits = torch.tensor([NEVER, NEVER, 0.2, NEVER, 0.0, 0.0]).expand(*prev.shape, -1)
        return Categorical(logits), {**state, "step": state["step"] + prev.shape[1]}


class UniformCoverage(CoveragePenalty):
    name = "uniform"


def test_coverage_keeps_the_search_going_until_all_is_read() -> None:
    batch = sources(4, 2)
    plain = only(Beam(3, max_length=9)(Attending(), batch))
    covered = only(Beam(8, max_length=9, scorers=[CoveragePenalty(1.0)])(Attending(), batch))
    assert [len(h.ids) for h in plain] == [0, 0]
    assert [len(h.ids) for h in covered] == [3, 1]
    assert [h.parts["coverage"] for h in covered] == pytest.approx([0.0, 0.0])


def test_two_scorers_may_watch_different_attentions() -> None:
    scorers = [CoveragePenalty(1.0), UniformCoverage(1.0, "*other.weights")]
    (h,) = only(Beam(8, max_length=9, scorers=scorers)(Attending(), sources(4)))
    assert h.parts["coverage"] == pytest.approx(0.0) and len(h.ids) == 3
    assert h.parts["uniform"] == pytest.approx(0.0, abs=1e-5)  # four steps of a quarter each
    (short,) = only(Beam(1, max_length=9, scorers=scorers)(Attending(), sources(1)))
    assert short.parts["uniform"] == pytest.approx(0.0)


def test_coverage_says_what_it_needs() -> None:
    search = Beam(2, max_length=4, scorers=[CoveragePenalty()])
    with pytest.raises(UserError, match="attention to its source"):
        search(CopyUntilEnd(), sources(2))
    with pytest.raises(UserError, match="needs sources"):
        search(Fixed({4: 0.0}), Batch(None, Seq.from_lists([[EOS]])))

    class Subsampled(Attending):
        def forward(self, prev, state, *, mask=None):
            tap(self, "attend.weights", torch.ones(*prev.shape, 1))
            return Fixed({4: 0.0})(prev, state["step"])[0], state

    with pytest.raises(UserError, match="2 weights"):
        search(Subsampled(), sources(2))


def test_no_ngram_comes_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    model = Fixed(dict(zip((4, 5, 6), torch.randn(3, generator=generator).tolist())))
    for n in (1, 2, 3):
        for row in Beam(6, num_best=6, max_length=20, scorers=[BlockNGrams(n)])(model, sources(1)):
            for h in row:
                grams = [h.ids[i : i + n] for i in range(len(h.ids) - n + 1)]
                assert len(set(grams)) == len(grams)


def test_constraints_know_their_source() -> None:
    """Each row may only write its own symbol, also after other rows have left the batch."""

    def allowed(history: Tensor, row: Tensor) -> Tensor:
        permitted = torch.zeros(len(history), 8, dtype=torch.bool)
        permitted[torch.arange(len(row)), 4 + row] = True
        permitted[:, EOS] = torch.tensor([2, 6, 1])[row] < history.shape[1]
        return permitted

    model = Fixed({4: 0.0, 5: 0.0, 6: 0.0, 7: 0.0, EOS: 1.0})
    found = only(Beam(2, max_length=12, scorers=[Constrain(allowed)])(model, sources(1, 1, 1)))
    assert [h.ids for h in found] == [(4,) * 2, (5,) * 6, (6,)]


def test_fusion_can_subtract_and_be_switched_off() -> None:
    model, other = Fixed({4: 0.0, 5: -0.1}, {EOS: 0.0}), Fixed({4: 0.0, 5: -4.0}, {EOS: 0.0})
    first = lambda weight: only(Beam(2, max_length=4, scorers=[Fusion(other, weight)])(model, sources(1)))[0]
    assert first(0.5).ids == (4,) and first(-0.5).ids == (5,)
    assert first(0.0).parts["lm"] == 0.0 and first(0.0).ids == (4,)


def test_models_of_different_vocabularies_are_told_apart() -> None:
    small, large = Fixed({4: 0.0}), Fixed({4: 0.0}, num_symbols=9)
    with pytest.raises(UserError, match='"lm".*8 symbols'):
        Beam(2, max_length=4, scorers=[Fusion(large)])(small, sources(1))
    with pytest.raises(UserError, match=r"\[8, 9\]"):
        Greedy(4)(Ensemble([small, large]), sources(1))


def test_scorers_need_different_names() -> None:
    other = Fixed({4: 0.0})
    with pytest.raises(UserError, match="different names"):
        Beam(scorers=[Fusion(other), Fusion(other)])
    assert Beam(scorers=[Fusion(other), Fusion(other, name="second")]).width == 5

    class Named(StepScorer):
        name = "model"

    with pytest.raises(UserError, match="different names"):
        Beam(scorers=[Named()])


def test_ensembles_mix_as_their_equations_say() -> None:
    a, b = Fixed({4: 0.0, 5: 1.0, EOS: -1.0}), Fixed({4: 2.0, 5: 0.0, EOS: 0.5})
    batch, weights = sources(1, 1), torch.tensor([0.2, 0.8])
    prev = torch.full((2, 1), BOS)
    p = torch.stack([m(prev, m.start(batch))[0].scores.exp() for m in (a, b)])
    for mode in ("prob", "log"):
        both = Ensemble([a, b], weights.tolist(), mode)
        got = both(prev, both.start(batch))[0].scores.exp()
        mixed = torch.einsum("m,m...->...", weights, p) if mode == "prob" else p[0] ** 0.2 * p[1] ** 0.8
        torch.testing.assert_close(got, mixed / mixed.sum(-1, keepdim=True))


# ------------------------------------------------------------- sampling, scoring, aligning


def test_samples_do_not_depend_on_how_many_or_how_long() -> None:
    model = Fixed({4: 0.0, 5: 0.3, 6: -0.4, EOS: -2.0})

    def draw(n: int, length: int) -> set[tuple[int, ...]]:
        return {h.ids for h in Sample(num_samples=n, max_length=length, seed=4)(model, sources(1))[0]}

    few, many = draw(3, 40), draw(8, 40)
    assert few < many
    assert {ids[:10] for ids in draw(3, 10)} == {ids[:10] for ids in few}


def test_rows_of_one_batch_draw_differently_unless_they_are_the_same_row() -> None:
    model, source = Fixed({i: 0.0 for i in range(4, 8)}), Seq.from_lists([[5], [5]])
    sample = Sample(max_length=12, seed=2)
    first, second = only(sample(model, Batch(source, None, (8, 9))))
    same, again = only(sample(model, Batch(source, None, (8, 8))))
    assert first.ids != second.ids and first.ids == same.ids == again.ids


@pytest.mark.parametrize("top_p, kept", [(0.5, {4}), (0.7, {4, 5}), (0.95, {4, 5, 6}), (1.0, {4, 5, 6, 7})])
def test_top_p_keeps_the_fewest_that_hold_it(top_p: float, kept: set[int]) -> None:
    p = torch.tensor([0.55, 0.3, 0.13, 0.02])
    model = Fixed({4 + i: float(x.log()) for i, x in enumerate(p)})
    (h,) = only(Sample(top_p=top_p, max_length=600)(model, sources(1)))
    assert set(h.ids) == kept


def test_temperature_sharpens() -> None:
    model = Fixed({4: 0.0, 5: -1.0})
    first = lambda t: [h.ids[0] for h in Sample(t, num_samples=2000, max_length=1)(model, sources(1))[0]]
    share = lambda t: first(t).count(4) / 2000
    for t in (0.5, 1.0, 2.0):
        want = 1 / (1 + float(torch.tensor(-1.0 / t).exp()))
        assert abs(share(t) - want) < 4 * (want * (1 - want) / 2000) ** 0.5


def test_scoring_reads_only_what_is_valid() -> None:
    model = Fixed({4: 0.0, EOS: -1.0})
    batch = Batch(Seq.from_lists([[5], [5]]), Seq.from_lists([[4, 4, EOS], [EOS]]))
    log_p = Categorical(model.scores).scores[0].double()
    want = torch.stack([2 * log_p[4] + log_p[EOS], log_p[EOS]])
    torch.testing.assert_close(score(model, batch).double(), want)
    with pytest.raises(UserError, match="targets"):
        score(model, sources(1))


def test_aligning_needs_a_hypothesis_for_each_row() -> None:
    batch = sources(3, 2)
    found = align(Attending(), batch, [Hypothesis((4, 4), 0.0), Hypothesis((4,), 0.0)])
    assert [m.argmax(1).tolist() for m in found] == [[0, 1, 2], [0, 1]]
    with pytest.raises(UserError, match="one hypothesis a row"):
        align(Attending(), batch, [Hypothesis((4,), 0.0)])
    assert align(Fixed({4: 0.0}), Batch(None, Seq.from_lists([[EOS]])), [Hypothesis((4,), 0.0)]) == []


def test_whole_groups_of_shared_memory_stay_shared() -> None:
    value = torch.arange(6)
    rows = lambda shared: shared.flat().tolist()
    for fanout, k in ((4, 4), (4, 2), (2, 4), (3, 2)):
        size = 6 if fanout != 3 else 4
        shared = states.Shared(value[:size], fanout)
        groups = torch.tensor([2, 0, 1])
        kept = states.select_groups(shared, groups, k)
        flat = torch.arange(size).repeat_interleave(fanout)
        assert rows(kept) == flat[states.group_rows(groups, k)].tolist()
        assert kept.fanout == {(4, 4): 4, (4, 2): 2, (2, 4): 2, (3, 2): 1}[fanout, k]


class OnCpu(Model):
    """A model that makes its tensors on the CPU, whatever the default device is."""

    def __init__(self, inner: Model) -> None:
        super().__init__()
        self.inner = inner

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> states.State:
        with torch.device("cpu"):
            return self.inner.start(batch, capacity=capacity, continues=continues)

    def forward(
        self, prev: Tensor, state: states.State, *, mask: Tensor | None = None
    ) -> tuple[Categorical, states.State]:
        with torch.device("cpu"):
            return self.inner(prev, state, mask=mask)


FUSION = Fusion(OnCpu(Fixed({4: 0.0, EOS: 0.0}, num_symbols=6)))


@pytest.mark.parametrize(
    "search",
    [
        Greedy(9), Sample(num_samples=2, top_k=3, top_p=0.9, max_length=9),
        Beam(3, num_best=2, max_length=9, length=LengthPenalty(0.6, 0.1)),
        Beam(3, max_length=9, scorers=[BlockNGrams(2), FUSION, CoveragePenalty()]),
        Beam(3, max_length=9, scorers=[Constrain(lambda history, _: history.new_ones(len(history), 6) > 0)]),
    ],
    ids=["greedy", "sample", "beam", "scorers", "constraint"],
)
def test_everything_lies_on_the_device_of_the_batch(search) -> None:
    """A tensor that is made without a device would come into being on the default one, here of no use."""
    model, batch = OnCpu(Attending()), sources(3, 1, 2)
    usual = search(model, batch)
    with torch.device("meta"):
        assert search(model, batch) == usual
