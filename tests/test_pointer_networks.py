"""Pointer networks: fields of points and positions, the pointer, searches, tours, geometry, and the page's check."""

import math
import random
from itertools import permutations

import numpy as np
import pytest
import torch
from cli_cases import refused

import transduce
from transduce import systems
from transduce.cli.main import main
from transduce.core.errors import DataError, UserError
from transduce.core.seq import BOS, EOS, PAD, UNK, Batch, Seq
from transduce.data import Corpus, DataSpec, Example, PointField, PositionField, TextField, encode, prepare
from transduce.data.synthetic import geometry, make
from transduce.models import PointerAttend, PointerDecoder, PointerNet
from transduce.nn.embed import Embed
from transduce.nn.recurrent import LSTMCell, Recurrence
from transduce.report.cost import decoding_costs
from transduce.search import Beam, EachOnce, Greedy, Sample, ratio, score
from transduce.systems.memory import _pointer_networks_check as full
from transduce.systems.memory.pointer_networks import Config, pointer_networks
from transduce.testing.decoder import check_decoder
from transduce.testing.search import check_search
from transduce.testing.system import tiny_data
from transduce.train.check import Check

LENGTHS = (4, 2, 5, 3)


def net(width=2, hidden=8, embed=None):
    torch.manual_seed(0)
    lstm = lambda: Recurrence(LSTMCell(width, hidden))
    decoder = PointerDecoder(width, lstm(), PointerAttend(hidden, hidden, hidden))
    return PointerNet(embed if embed is not None else torch.nn.Identity(), lstm(), decoder)


def point_batch(targets=None, lengths=LENGTHS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    rows = [[tuple(p) for p in torch.rand(n, 2, generator=generator).tolist()] for n in lengths]
    return Batch(Seq.from_lists(rows), None if targets is None else Seq.from_lists(targets))


def sharp(model):
    """The same model, its choices further apart, so that searches differ."""
    with torch.no_grad():
        model.decoder.attend.score.mul_(8)
    return model


# ---------------------------------------------------------------- fields


def test_points_are_centred_and_scaled_and_written_back():
    field = PointField.learn(["0,10 20,10", "10,0 10,20"])
    assert field.shift == (10.0, 10.0) and math.isclose(field.scale, math.sqrt(50))
    (a, b) = field.encode("20,10 1e1,-10")
    assert math.isclose(a[0], 10 / field.scale) and a[1] == 0 and math.isclose(b[1], -20 / field.scale)
    assert field.pieces([a, b]) == ["20,10", "10,-10"]
    assert PointField.learn(["3", "3 3"]).scale == 1.0, "points that are all one have no spread to divide by"


def test_positions_have_ids_behind_the_special_ones_and_no_upper_end():
    field = PositionField.learn(["1 4 2"])
    assert field.size == 8 and field.encode("1 4 2") == [4, 7, 5]
    assert field.decode([BOS, 4, 7, 5, EOS, PAD]) == "1 4 2" and field.decode([UNK + 600]) == "600"
    assert field.id_of("9") == 12 and field.id_of("x") is None and field.unknown("7") == []


def test_a_description_of_the_data_keeps_every_kind_of_field():
    spec = DataSpec(PointField(2, (0.5, 0.25), 0.1), PositionField(7), 7, 8)
    assert DataSpec.from_json(spec.to_json()) == spec
    text = TextField.learn(["ab"], "chars")
    mixed = DataSpec(text, PositionField(2), 2, 3)
    assert DataSpec.from_json(mixed.to_json()) == mixed
    for broken in ({"units": "points", "width": 2, "shift": [0], "scale": 1}, {"units": "points"}, {"units": "positions"}):
        with pytest.raises(DataError, match="damaged"):
            DataSpec.from_json({**spec.to_json(), "source": broken})


@pytest.mark.parametrize(
    "source, target, said",
    [
        ("0.1,0.2 0.3;0.4", "1", "0.3;0.4"),
        ("0.1,nan 0.3,0.4", "1", "0.1,nan"),
        ("0.1,0.2 0.3", "1", "has 1"),
        ("0.1,0.2 0.3,0.4", "3", "only 2 elements"),
        ("0.1,0.2 0.3,0.4", "0", '"0" is not a position'),
        ("0.1,0.2 0.3,0.4", "1 b", '"b" is not a position'),
    ],
)
def test_what_is_no_point_or_position_is_refused(source, target, said):
    rows = [Example(source, target, (target,))]
    with pytest.raises(DataError, match=said):
        prepare(Corpus("bad", "pairs", rows, rows, rows, "points", "positions"))


def test_points_are_no_targets_and_positions_no_sources():
    rows = [Example("1 2", "1", ("1",))]
    for units in (("positions", "chars"), ("chars", "points")):
        with pytest.raises(DataError, match="points stand in sources"):
            prepare(Corpus("bad", "pairs", rows, rows, rows, *units))


def test_batches_of_points_are_padded_with_zeros():
    field = PointField(2, (0.0, 0.0), 1.0)
    rows = [Example("1,2 3,4 5,6", "1 3", ("1 3",)), Example("7,8", "1", ("1",))]
    batch = encode(rows, field, PositionField(3)).batch(np.array([1, 0]))
    assert batch.source.data.tolist() == [[[7, 8], [0, 0], [0, 0]], [[1, 2], [3, 4], [5, 6]]]
    assert batch.source.mask.tolist() == [[True, False, False], [True] * 3] and batch.source.data.dtype == torch.float32


# ---------------------------------------------------------------- the pointer


def test_scores_are_the_published_equation():
    model, batch = net().double(), point_batch(lengths=(3,))
    x = batch.source.data.double()
    dist, _ = model(torch.tensor([[BOS, 6]]), model.start(Batch(Seq(x), None)))
    with torch.no_grad():
        e, state = model.encoder(x, model.encoder.init_state(1))
        # the second step reads the third element itself
        d, _ = model.decoder.mixer(torch.stack((model.decoder.first, x[0, 2]))[None], state)
        attend = model.decoder.attend
        keys = torch.cat((attend.end[None], attend.key(e)[0]))
        u = torch.tanh(keys[None] + attend.query(d)[0][:, None]) @ attend.score
    torch.testing.assert_close(dist.scores[0][:, [EOS, 4, 5, 6]], u.log_softmax(-1))
    assert bool((dist.scores[0][:, [PAD, BOS, UNK]] == -torch.inf).all())


def test_padding_cannot_be_pointed_to():
    model, batch = net(), point_batch()
    dist, _ = model(torch.full((4, 1), BOS), model.start(batch))
    p = dist.scores[:, 0, UNK + 1 :].exp()
    assert bool((p[~batch.source.valid()] == 0).all()) and bool((p[batch.source.valid()] > 0).all())


def test_the_decoder_laws_hold_for_points_and_for_symbols():
    targets = [[4, 6, 5, EOS], [5, EOS], [8, 4, 6, 7, EOS], [4, 5, EOS]]
    check_decoder(net(), point_batch(targets))
    symbols = Seq.from_lists([[5, 4, 6, 7], [4, 4], [6, 7, 5, 4, 4], [7, 6, 5]])
    check_decoder(net(3, embed=Embed(8, 3)), Batch(symbols, Seq.from_lists(targets)))


def test_the_search_laws_hold():
    check_search(lambda num_symbols: sharp(net()), batch=point_batch(lengths=(3, 3, 3, 3)), num_symbols=7, longest=3)


@pytest.mark.parametrize("search", [Greedy(6), Beam(3, max_length=6), Sample(seed=3, max_length=6)])
def test_rows_of_different_length_decode_as_if_alone(search):
    model, batch = sharp(net()).double(), point_batch()
    together = search(model, Batch(Seq(batch.source.data.double(), batch.source.mask), None, (0, 1, 2, 3)))
    for i, n in enumerate(LENGTHS):
        (alone,) = search(model, Batch(Seq(batch.source.data[i : i + 1, :n].double()), None, (i,)))
        assert [h.ids for h in alone] == [h.ids for h in together[i]]
        assert all(id < 4 + n for h in together[i] for id in h.ids)


@pytest.mark.parametrize("width", [1, 3, 10])
def test_a_beam_that_visits_each_point_once_yields_permutations(width):
    model, batch = sharp(net()), point_batch(lengths=(4, 1, 6, 2))
    search = Beam(width, num_best=1, max_length=ratio(1.0, 1), scorers=[EachOnce()])
    for n, row in zip((4, 1, 6, 2), search(model, batch)):
        assert sorted(row[0].ids) == list(range(4, 4 + n)) and row[0].finished


def test_a_full_beam_finds_the_best_permutation():
    model, batch = sharp(net()).double(), point_batch(lengths=(4,))
    source = Seq(batch.source.data.double())
    ((best, *_),) = Beam(24, max_length=5, scorers=[EachOnce()])(model, Batch(source, None))
    orders = list(permutations(range(4, 8)))
    forced = Batch(Seq(source.data.expand(24, -1, -1)), Seq.from_lists([[*o, EOS] for o in orders]))
    scores = score(model, forced)
    assert best.ids == orders[int(scores.argmax())]
    assert math.isclose(best.score, float(scores.max()), rel_tol=1e-9)


def test_each_once_needs_a_pointer():
    data = tiny_data("pairs")
    system = systems.find("rnnsearch").build(data.spec, systems.find("rnnsearch").config_type())
    with pytest.raises(UserError, match="points into its source"):
        Beam(2, scorers=[EachOnce()])(system.model.eval(), data.train.batch(np.arange(2)))


def test_the_page_needs_positions_and_takes_symbols():
    text = TextField.learn(["ab"], "chars")
    with pytest.raises(UserError, match="--target-units positions"):
        pointer_networks(DataSpec(text, text, 2, 3))
    system = pointer_networks(DataSpec(text, PositionField(2), 2, 3), Config(hidden=8, embed=4))
    found = system.search(system.model, Batch(Seq.from_lists([[4, 5], [5, 5]]), None))
    assert all(i in (4, 5) for row in found for i in row[0].ids)


def test_what_decoding_costs_can_be_measured_on_points():
    spec = DataSpec(PointField(2, (0.0, 0.0), 1.0), PositionField(5), 5, 6)
    small, large = decoding_costs(pointer_networks(spec, Config(hidden=8)).model, spec, lengths=(8, 32))
    assert "refused" not in small and 0 < small["bytes"] < large["bytes"], "the state holds the source"


# ---------------------------------------------------------------- geometry


def test_hulls_begin_at_their_lowest_position_and_turn_left():
    square = [(0.5, 0.5), (1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.0)]
    assert geometry.hull(square) == [2, 5, 3, 4], "inner points and points on an edge are no corners"
    assert geometry.hull([(0.3, 0.3)]) == [1]
    assert full.unfaithful_permutations(200) == 0
    rng = random.Random(0)
    for _ in range(50):
        points = geometry.random_points(rng, 9)
        corners = [points[k - 1] for k in geometry.hull(points)]
        assert geometry.area(corners) > 0 and geometry.is_simple(corners)
        for a, b in zip(corners, [*corners[1:], corners[0]]):
            assert all(geometry._turn(a, b, p) >= 0 for p in points)


def test_triangulations_fill_the_hull_and_have_empty_circles():
    rng = random.Random(1)
    for _ in range(20):
        points = geometry.random_points(rng, 8)
        triangles = geometry.delaunay(points)
        corners = geometry.hull(points)
        total = sum(abs(geometry.area([points[k - 1] for k in t])) for t in triangles)
        assert math.isclose(total, geometry.area([points[k - 1] for k in corners]), rel_tol=1e-9)
        assert len(triangles) == 2 * 8 - 2 - len(corners), "Euler's formula"
        assert geometry.triangle_coverage(triangles, [k for t in triangles for k in reversed(t)]) == 1.0
        assert geometry.triangle_coverage(triangles, [k for t in triangles[1:] for k in t]) < 1.0


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 7])
def test_tours_are_the_shortest_of_all(size):
    rng = random.Random(size)
    sets = np.array([geometry.random_points(rng, size) for _ in range(4)])
    for points, way in zip(sets, geometry.tours(sets).tolist()):
        assert way[0] == 1 and sorted(way) == list(range(1, size + 1)) and (size < 3 or way[1] < way[-1])
        best = min(geometry.tour_length(points, (1, *rest)) for rest in permutations(range(2, size + 1)))
        assert math.isclose(geometry.tour_length(points, way), best, rel_tol=1e-12)


def test_polygons_that_cross_themselves_cover_nothing():
    square = [(0, 0), (1, 0), (1, 1), (0, 1), (0.5, 0.5)]
    assert geometry.hull_coverage(square, [1, 2, 3, 4]) == 1.0
    assert geometry.hull_coverage(square, [1, 2, 3, 5]) == 0.5, "three corners and the middle"
    assert geometry.hull_coverage(square, [1, 4, 3, 2]) == 1.0, "either direction"
    for invalid in ([1, 3, 2, 4], [1, 2], [], [1, 2, 2, 3], [1, 2, 9], [1, 5, 3]):
        assert geometry.hull_coverage(square, invalid) is None, invalid
    assert not geometry.is_simple([(0, 0), (2, 0), (1, 0), (1, 1)]), "folds back on itself"
    assert not geometry.is_simple([(0, 0), (2, 0), (2, 2), (1, 0), (0, 2)]), "a corner on another side"


def test_generated_sets_come_with_their_answers():
    for task, answer in (("hull", geometry.hull), ("tour", geometry.tour)):
        corpus = make(f"synthetic-{task}", train=30, held_out=5, shortest=4, longest=6, seed=3)
        assert corpus.train != make(f"synthetic-{task}", train=30, held_out=5, shortest=4, longest=6, seed=4).train
        for e in [*corpus.train, *corpus.valid, *corpus.test]:
            points = [tuple(map(float, p.split(","))) for p in e.source.split()]
            assert 4 <= len(points) <= 6 and e.target == " ".join(map(str, answer(points)))
        sources = [e.source for part in (corpus.train, corpus.valid, corpus.test) for e in part]
        assert len(set(sources)) == 40


# ---------------------------------------------------------------- from end to end


@pytest.fixture(scope="module")
def tours_run(tmp_path_factory):
    """A pointer bound to permutations, fitted for a few steps to a user's file."""
    folder = tmp_path_factory.mktemp("tours")
    corpus = make("synthetic-tour", train=40, held_out=4, shortest=4, longest=5)
    rows = [*corpus.train, *corpus.valid, *corpus.test]
    (folder / "tours.tsv").write_text("".join(f"{e.source}\t{e.target}\n" for e in rows))
    units = ["--source-units", "points", "--target-units", "positions"]
    fast = ["--max-steps", "4", "--evaluations", "1", "--precision", "float32", "--hidden", "8", "--once"]
    data = ["--data", str(folder / "tours.tsv"), "--out", str(folder / "run")]
    assert main(["fit", "pointer-networks", *data, *units, *fast]) == 0
    return folder / "run"


def test_predict_answers_with_positions(tours_run, capsys):
    capsys.readouterr()
    text = "0.1,0.2 0.3,0.9 0.7,0.7 0.8,0.2 0.5,0.5 0.4,0.1"
    for extra in ([], ["--beam", "4"]):
        assert main(["predict", str(tours_run), text, *extra]) == 0
        answer = capsys.readouterr().out.strip().split("\t")[1]
        assert sorted(map(int, answer.split())) == [1, 2, 3, 4, 5, 6], "also longer than any source of training"
    assert "is not a point" in refused(capsys, "predict", tours_run, "0.1,0.2 three")
    assert "3 coordinates" in refused(capsys, "predict", tours_run, "0.1,0.2,0.3")
    assert main(["eval", str(tours_run)]) == 0
    assert "sequence error" in capsys.readouterr().out


def test_a_session_steps_through_positions(tours_run):
    model = transduce.load(tours_run)
    session = model.start("0.1,0.2 0.3,0.9 0.7,0.7")
    following = session.next()
    assert list(following) == ["<pad>", "<bos>", "<eos>", "<unk>", "1", "2", "3"]
    assert math.isclose(sum(map(math.exp, following.values())), 1.0, rel_tol=1e-5)
    session.step("2")
    assert session.text == "2"
    with pytest.raises(DataError, match='no symbol "4"'):
        session.step("4")
    weights = model.align("0.1,0.2 0.3,0.9 0.7,0.7", "2 1 3")
    assert tuple(weights.shape) == (4, 3) and bool((weights.sum(1) <= 1 + 1e-5).all())


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("pointer-networks", tmp_path, quick=True, say=lambda text: None)
    full.check(check)
    assert check.write().is_file()
    exact = {m.metric: m.value for m in check.measured if m.claim is not None and m.claim.at_most == 0}
    assert len(exact) == 3 and set(exact.values()) == {0.0}, "what holds exactly holds without training"
    names = {"pointer-networks.json", "pointer-networks-sizes.png", "pointer-networks-hulls.png"}
    assert names == {p.name for p in tmp_path.iterdir()}
