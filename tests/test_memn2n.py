"""Memory networks: the parts of a story, what a hop reads, answers, the language model, and the check of the page."""

import random

import numpy as np
import pytest
import torch
from cli_cases import refused

from transduce import systems
from transduce.cli.main import main
from transduce.core.errors import UserError
from transduce.core.seq import BOS, EOS, Batch, Seq
from transduce.core.tap import record
from transduce.data import Corpus, Example, prepare
from transduce.data.fields import SEPARATOR
from transduce.data.synthetic import make, stories
from transduce.nn.memory import MemoryHops, RecentHops, position_weights, read_parts
from transduce.systems.memory import _memn2n_check
from transduce.systems.memory.memn2n import Config, LinearStart, memory_network
from transduce.testing.decoder import check_decoder
from transduce.testing.system import check_system, tiny_data
from transduce.train.check import Check

SEP = 9


def hops(**settings):
    torch.manual_seed(0)
    return MemoryHops(12, 6, SEP, **{"noise": 0.0, **settings}).double().eval()


def weights_of(memory, ids, mask=None):
    with torch.no_grad(), record(memory, "weights") as seen:
        memory(ids, mask)
    return seen["weights"]


# ---------------------------------------------------------------- parts of a story


def test_positions_in_a_sentence_count_from_one():
    found = position_weights(torch.tensor([1, 2, 3, 4]), torch.tensor([4, 4, 4, 4]), 3)
    want = [[(1 - j / 4) - (k / 3) * (1 - 2 * j / 4) for k in (1, 2, 3)] for j in (1, 2, 3, 4)]
    torch.testing.assert_close(found, torch.tensor(want))
    alone = position_weights(torch.tensor([1]), torch.tensor([1]), 4)  # J = 1: l_k = k/d
    torch.testing.assert_close(alone, torch.tensor([[0.25, 0.5, 0.75, 1.0]]))


def test_the_parts_of_a_story_are_counted_from_the_question_backwards():
    ids = torch.tensor([[4, 5, SEP, 6, SEP, 7, 8, 7], [4, SEP, 5, 6, 0, 0, 0, 0]])
    parts = read_parts(ids, torch.tensor([[True] * 8, [True] * 4 + [False] * 4]), SEP)
    assert parts.age.tolist() == [[2, 2, -1, 1, -1, 0, 0, 0], [1, -1, 0, 0, -1, -1, -1, -1]]
    assert parts.sentences.tolist() == [2, 1]
    words = parts.age >= 0
    assert parts.place[words].tolist() == [1, 2, 1, 1, 2, 3, 1, 1, 2]
    assert parts.count[words].tolist() == [2, 2, 1, 3, 3, 3, 1, 2, 2]


def test_one_hop_is_the_published_equation():
    memory = hops(hops=1)
    a, c = memory.embed.detach()
    time_a, time_c = memory.time.detach()
    ids = torch.tensor([[4, 5, SEP, 6, SEP, 7, 8]])

    def bag(table, words):
        j = torch.arange(1, len(words) + 1)
        return (position_weights(j, torch.full_like(j, len(words)), 6).double() * table[list(words)]).sum(0)

    keys = torch.stack([bag(a, s) + time_a[i] for i, s in enumerate([(6,), (4, 5)])])
    values = torch.stack([bag(c, s) + time_c[i] for i, s in enumerate([(6,), (4, 5)])])
    u = bag(a, (7, 8))
    want = u + (keys @ u).softmax(0) @ values
    torch.testing.assert_close(memory(ids)[0], want)
    torch.testing.assert_close(weights_of(memory, ids)[0][0], (keys @ u).softmax(0))


@pytest.mark.parametrize("tying", ["adjacent", "layer-wise"])
def test_layers_share_what_their_tying_says(tying):
    memory = hops(hops=3, tying=tying)
    shapes = {name: tuple(p.shape) for name, p in memory.named_parameters()}
    tables = 4 if tying == "adjacent" else 2
    assert shapes["embed"] == (tables, 12, 6) and shapes["time"] == (tables, 50, 6)
    assert ("ask" in shapes, "carry.weight" in shapes) == ((False, False) if tying == "adjacent" else (True, True))


def test_padding_and_other_rows_change_nothing():
    memory = hops()
    short, long = [4, 5, SEP, 6, 7], [4, SEP, 5, 6, SEP, 7, SEP, 8, 4]
    together = Seq.from_lists([short, long])
    poisoned = torch.where(together.valid(), together.data, SEP)
    found = memory(poisoned, together.mask)
    for i, ids in enumerate((short, long)):
        torch.testing.assert_close(found[i : i + 1], memory(torch.tensor([ids])))
    first = weights_of(memory, together.data, together.mask)[0]
    assert first[0, 1:].tolist() == [0.0, 0.0], "sentences that a story does not have get no weight at all"


def test_a_question_without_a_story_is_answered_from_nothing():
    memory = hops()
    ids = torch.tensor([[4, 5]])
    assert weights_of(memory, ids)[0].sum() == 0
    assert bool(memory(ids).isfinite().all())


def test_only_the_newest_sentences_are_kept():
    memory = hops(capacity=2)
    tail = [6, SEP, 7, SEP, 8]
    kept = memory(torch.tensor([tail]))
    torch.testing.assert_close(memory(torch.tensor([[4, 5, SEP, 4, SEP, *tail]])), kept)
    assert not torch.allclose(hops(capacity=3)(torch.tensor([[4, 5, SEP, *tail]])), hops(capacity=3)(torch.tensor([tail])))


def test_time_is_all_that_tells_the_order_of_sentences():
    story, swapped = [4, 5, SEP, 6, 7, SEP, 8], [6, 7, SEP, 4, 5, SEP, 8]
    for temporal in (True, False):
        memory = hops(temporal=temporal)
        same = torch.allclose(memory(torch.tensor([story])), memory(torch.tensor([swapped])))
        assert same is not temporal


def test_empty_memories_shift_older_sentences_while_training():
    memory = hops(noise=0.5).train()
    torch.manual_seed(1)
    age = torch.tensor([[3, 2, 2, 1, -1, 0]]).repeat(200, 1)
    moved, count = memory._with_empty_memories(age, torch.full((200,), 3))
    assert bool((moved[:, 3] == 1).all()) and bool((moved[:, 4] == -1).all()) and bool((moved[:, 5] == 0).all())
    assert bool((moved[:, 1] == moved[:, 2]).all()), "a sentence stays together"
    assert bool((moved[:, 0] > moved[:, 1]).all()) and torch.equal(count, moved[:, 0])
    assert 0.4 < float((moved[:, 1] - 2).float().mean()) < 0.6 and int(moved[:, 1].max()) == 3


def test_linear_start_leaves_the_softmax_out_only_while_training_and_only_at_first():
    memory, ids = hops(hops=1), torch.tensor([[4, 5, SEP, 6, SEP, 7]])
    soft = weights_of(memory, ids)[0]
    seen = []
    objective = LinearStart(lambda model, batch, *, step, generator: seen.append(memory.linear), memory, 2)
    for step in range(4):
        objective(None, None, step=step)
    assert seen == [True, True, False, False]
    memory.linear = True
    torch.testing.assert_close(weights_of(memory, ids)[0], soft)
    linear = weights_of(memory.train(), ids)[0]
    torch.testing.assert_close(linear.softmax(-1), soft)
    assert not torch.allclose(linear, soft)


def test_a_linear_start_begins_with_the_published_smaller_weights():
    data = tiny([(f"ann went home {SEPARATOR} where is ann", "home"), (f"bob left {SEPARATOR} where is bob", "home")])
    for tying in ("adjacent", "layer-wise"):
        plain, small = (memory_network(data.spec, Config(dim=64, tying=tying, linear_start=n)).hops for n in (0, 1))
        for name in ("embed", "time") if tying == "adjacent" else ("embed", "time", "ask"):
            ratio = float((getattr(small, name).std() / getattr(plain, name).std()).detach())
            assert abs(ratio - 1 / 3) < 0.05, name


# ---------------------------------------------------------------- answers


def tiny(rows, units=("words", "words")):
    examples = [Example(s, t, (t,)) for s, t in rows]
    return prepare(Corpus("tiny", "pairs", examples, examples, examples, *units))


def test_answers_share_the_rows_of_the_words_that_stories_hold():
    data = tiny([(f"ann went home {SEPARATOR} where is ann", "home"), (f"bob left {SEPARATOR} where is bob", "nowhere")])
    model = memory_network(data.spec, Config(dim=4, noise=0.0)).eval()
    scores = model.start(data.train.batch(np.arange(2))).scores
    assert bool((scores[:, :3] == -torch.inf).all()) and bool(scores[:, 3:].isfinite().all())
    u = model.hops(*((b := data.train.batch(np.arange(2)).source).data, b.mask))
    home = model.hops.embed[-1, data.spec.source.id_of("home")]
    torch.testing.assert_close(scores[:, data.spec.target.id_of("home")], u @ home)
    assert len(model.answers.own) == 5, "four special symbols and the one word that no story holds"


def test_after_its_one_word_an_answer_ends():
    data = tiny([(f"ann went home {SEPARATOR} where is ann", "home"), (f"bob left {SEPARATOR} where is bob", "away")])
    model = memory_network(data.spec, Config(dim=4)).eval()
    batch = data.train.batch(np.arange(2))
    state = model.start(batch)
    dist, state = model(torch.full((2, 2), BOS), state, mask=torch.tensor([[True, True], [False, False]]))
    assert dist.scores[0, 1].argmax() == EOS and dist.scores[0, 1, EOS] == 0
    dist, _ = model(torch.full((2, 1), BOS), state)
    assert dist.scores[0, 0, EOS] == 0 and dist.scores[1, 0, EOS] == -torch.inf


@pytest.mark.parametrize(
    "rows, units, said",
    [
        ([("ann went home", "home")], ("words", "words"), "--source-units words"),
        ([(f"a {SEPARATOR} b", "home"), (f"a {SEPARATOR} c", "at home")], ("words", "words"), "2 symbols"),
        ([(f"a {SEPARATOR} b", "home")], ("chars", "words"), "--source-units words"),
    ],
)
def test_data_of_another_form_are_refused_in_one_sentence(rows, units, said):
    with pytest.raises(UserError, match=said):
        memory_network(tiny(rows, units).spec, Config())


@pytest.mark.parametrize("change", [{"tying": "layer-wise"}, {"linear_start": 20}])
def test_variants_of_the_page(change):
    # A linear start begins with smaller weights, which takes more steps.
    check_system(systems.find("memn2n"), config=Config(**change), steps=200 if "linear_start" in change else 100)


@pytest.mark.parametrize("change", [{"temporal": False}, {"hops": 1}, {"capacity": 1}])
def test_variants_that_cannot_learn_everything_obey_the_laws(change):
    page = systems.find("memn2n")
    data = tiny_data(page.kind, page.sample)
    rows = data.train.batch(np.arange(6))
    longer = Seq.from_lists([[4, EOS], [5, 4, 4, EOS], [4, 4, EOS], [5, EOS], [4, EOS], [5, EOS]])
    check_decoder(memory_network(data.spec, Config(**change)), Batch(rows.source, longer))


def test_fit_and_ask_on_the_command_line(tmp_path, capsys):
    rows = make("synthetic-where", train=40, held_out=4)
    file = tmp_path / "stories.tsv"
    file.write_text("".join(f"{e.source}\t{e.target}\n" for part in (rows.train, rows.valid, rows.test) for e in part))
    out, units = tmp_path / "run", ["--source-units", "words", "--target-units", "words"]
    fast = ["--max-steps", "4", "--evaluations", "1", "--precision", "float32"]
    assert main(["fit", "memn2n", "--data", str(file), "--out", str(out), *units, *fast]) == 0
    capsys.readouterr()
    assert main(["predict", str(out), rows.test[0].source]) == 0
    assert capsys.readouterr().out.strip().split("\t")[1] in stories.PLACES + stories.ACTORS + stories.THINGS
    said = refused(capsys, "fit", "memn2n", "--data", file, "--out", tmp_path / "other")
    assert "--source-units words --target-units words" in said


# ---------------------------------------------------------------- stories, language model, check


def test_a_story_is_answered_by_the_two_facts_it_names():
    rng = random.Random(0)
    for _ in range(200):
        told = stories.story(rng)
        assert len(told.sentences) == 10 and stories.parse(told.source) == told
        thing, actor = told.question.split()[-1], told.sentences[told.holder].split()[0]
        assert told.sentences[told.holder] == f"{actor} took the {thing}"
        assert told.sentences[told.place] == f"{actor} went to the {told.answer}"
        assert not any(s.endswith(f"took the {thing}") for s in told.sentences[told.holder + 1 :])
        assert not any(s.startswith(f"{actor} went") for s in told.sentences[told.place + 1 :])


def test_recent_words_are_read_by_how_long_ago_they_came():
    torch.manual_seed(0)
    memory = RecentHops(8, 6, hops=1, capacity=2).double()
    ids, age = torch.tensor([[4, 5, 6]]), torch.tensor([[[2, 1, 0], [1, 0, -1]]])
    found = memory(ids, age)
    u = torch.full((6,), 0.1, dtype=torch.float64)
    for step, words in enumerate(((6, 5), (5, 4))):  # age 0 first; what is older than the capacity is forgotten
        keys, values = memory.key[list(words)] + memory.key_time, memory.value[list(words)] + memory.value_time
        want = memory.carry(u) + (keys @ u).softmax(0) @ values
        torch.testing.assert_close(found[0, step], torch.cat((want[:3], want[3:].relu())))


@pytest.mark.parametrize("capacity", [1, 3, 100])
def test_the_language_model_obeys_the_laws_beyond_its_capacity(capacity):
    page = systems.find("memn2n-lm")
    if capacity == 1:
        data = tiny_data("text")
        system = page.build(data.spec, page.config_type(dim=8, hops=2, capacity=1))
        check_decoder(system.model, data.train.batch(np.arange(8)))
    else:
        check_system(page, config=page.config_type(capacity=capacity))


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("memn2n", tmp_path, quick=True, say=lambda text: None)
    _memn2n_check.check(check)
    assert check.write().is_file()
    assert {"memn2n.json", "memn2n-hops.png", "memn2n-loss.png"} == {p.name for p in tmp_path.iterdir()}


def test_a_batch_needs_a_story():
    data = tiny([(f"a {SEPARATOR} b", "c"), (f"b {SEPARATOR} a", "c")])
    with pytest.raises(ValueError, match="source"):
        memory_network(data.spec, Config()).start(Batch(None, Seq.from_lists([[4, EOS]])))
