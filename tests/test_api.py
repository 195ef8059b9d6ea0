"""The Python API: train, open, predict, score, evaluate, step; language models of both kinds."""

import json

import pytest
import torch

import transduce
from transduce import api, systems
from transduce.core.errors import BundleError, DataError, UserError
from transduce.data import synthetic
from transduce.systems import build
from transduce.systems.encoder_decoder import rnnsearch
from transduce.systems.language import gru_lm
from transduce.train import TrainConfig, progress

TINY = rnnsearch.Config(embed=8, encoder=8, hidden=16, attention=8, dropout=0.0)
SHORT = TrainConfig(max_steps=40, learning_rate=1e-2, evaluations=1, precision="float32", batch_symbols=600)
LETTERS = synthetic.make("synthetic-copy", train=300, held_out=20, shortest=1, longest=4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return transduce.fit(
        "rnnsearch", LETTERS, tmp_path_factory.mktemp("runs") / "run", config=TINY, train=SHORT
    )


def language_model(folder, text, units="chars"):
    """A small language model of a file, trained by hand-made options."""
    (folder / "text.txt").write_text(text)
    corpus = api.corpus_of({"data": str(folder / "text.txt"), "target_units": units})
    short = TrainConfig(max_steps=5, evaluations=0, precision="float32", batch_symbols=2000)
    return transduce.fit("gru-lm", corpus, folder / "run", config=gru_lm.Config(dim=8, layers=1), train=short)


# ---------------------------------------------------------------- train and open


def test_a_fit_is_what_load_opens(trained):
    drawn = torch.get_rng_state()
    again = transduce.load(trained.path.parent)
    assert torch.equal(torch.get_rng_state(), drawn), "opening a model disturbs nobody's random numbers"
    assert again.predict(["ab", "c"]) == trained.predict(["ab", "c"])
    assert transduce.load(trained.path).predict("ab") == trained.predict("ab")
    assert again.spec == trained.spec and again.metrics == trained.metrics and "valid" in again.metrics
    assert not again.model.training


def test_training_took_the_given_settings(trained):
    stored = json.loads((trained.path.parent / "config.json").read_text())
    assert stored["config"]["hidden"] == 16 and stored["train"]["learning_rate"] == 1e-2
    held_out = [(e.source, e.target) for e in LETTERS.valid]
    assert trained.evaluate(held_out).loss < 3.0, "chance is above 3.2 nats"


def test_a_run_is_not_overwritten_unless_forced(trained, tmp_path):
    with pytest.raises(UserError, match="force"):
        transduce.fit("rnnsearch", LETTERS, trained.path.parent, config=TINY, train=SHORT)
    with pytest.raises(UserError, match="plain text"):
        transduce.fit("gru-lm", LETTERS, tmp_path / "x")
    with pytest.raises(UserError, match="Did you mean"):
        transduce.fit("rnnsearch", "synthetic-revers", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_run_without_a_bundle_says_so(trained, tmp_path):
    (tmp_path / "config.json").write_bytes((trained.path.parent / "config.json").read_bytes())
    with pytest.raises(BundleError, match="no bundle yet"):
        transduce.load(tmp_path)


def test_an_interrupted_fit_raises_and_can_be_resumed(tmp_path, monkeypatch):
    import signal

    class StopsAt3(progress.Silent):
        def step(self, report):
            if report.step == 3:
                signal.raise_signal(signal.SIGINT)

    short = TrainConfig(max_steps=6, evaluations=0, precision="float32", batch_symbols=600)
    with monkeypatch.context() as patch:
        patch.setattr(api, "reporter", StopsAt3)
        with pytest.raises(KeyboardInterrupt, match="step 3"):
            transduce.fit("rnnsearch", LETTERS, tmp_path / "cut", config=TINY, train=short)
    resumed = transduce.fit("rnnsearch", LETTERS, tmp_path / "cut", config=TINY, train=short, resume=True)
    whole = transduce.fit("rnnsearch", LETTERS, tmp_path / "whole", config=TINY, train=short)
    for (name, a), (_, b) in zip(resumed.model.state_dict().items(), whole.model.state_dict().items()):
        assert torch.equal(a, b), name


def test_training_defaults_of_a_page_need_no_memory():
    before = torch.get_rng_state()
    assert build.train_defaults(systems.find("rnnsearch")).learning_rate == 3e-3
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- predict, score, evaluate


def test_predictions_keep_the_order_and_shape_of_what_was_asked(trained):
    texts = ["abcd", "a", "bc", "a"]
    greedy = trained.predict(texts)
    assert greedy == [trained.predict(t) for t in texts] and greedy[1] == greedy[3]
    assert trained.predict([]) == []
    for num_best, beam in ((3, None), (3, 2), (2, 4)):
        ranked = trained.predictions(texts, beam=beam, num_best=num_best)
        assert [len(row) for row in ranked] == [num_best] * 4
        assert all(a.score >= b.score for row in ranked for a, b in zip(row, row[1:]))
    assert trained.predict("ab", num_best=2) == [p.text for p in trained.predictions("ab", num_best=2)[0]]


def test_what_a_model_cannot_read_is_refused(trained):
    with pytest.raises(DataError, match='"!"'):
        trained.predict("ab!")
    with pytest.raises(DataError, match="empty"):
        trained.predict(["a", " "])
    with pytest.raises(DataError, match="allowed"):
        trained.predict("a" * 20_000)
    assert isinstance(trained.predict("ab!", allow_unknown=True), str)
    with pytest.raises(DataError, match="use predict"):
        trained.continue_text("a")
    with pytest.raises(DataError, match="never saw"):
        trained.score("ab", "a!")


def test_scores_are_those_of_the_search_and_of_stepping(trained):
    ((best, *_),) = trained.predictions("abc", beam=3, num_best=2)
    model_score = best.hypothesis.parts["model"]
    assert trained.score("abc", best.text) == pytest.approx(model_score, abs=1e-4)
    session = trained.start("abc")
    total = 0.0
    for symbol in [*best.text, "<eos>"]:
        following = session.next()
        assert sum(torch.tensor(list(following.values())).exp().tolist()) == pytest.approx(1.0, abs=1e-4)
        total += following[symbol]
        session.step(symbol)
    assert total == pytest.approx(model_score, abs=1e-4)
    with pytest.raises(DataError, match="no symbol"):
        session.step("!")


def test_sessions_fork(trained):
    session = trained.start("abc")
    session.step("a")
    left, right = session.fork(), session.fork()
    left.step("b"), left.step("b")
    after = right.step("c")
    assert (session.text, left.text, right.text) == ("a", "abb", "ac")
    alone = trained.start("abc")
    alone.step("a")
    assert alone.step("c") == pytest.approx(after, abs=1e-5)
    whole = trained.start("abc")
    whole.write(whole.target.encode("ac"))
    assert whole.next() == pytest.approx(after, abs=1e-5), "many symbols at once are the same as one by one"


def test_attention_belongs_to_a_models_own_answers(trained):
    ((best, *_),) = trained.predictions("ab!d", allow_unknown=True)
    weights = trained.align("ab!d", best)
    assert weights.shape == (len(best.hypothesis.ids) + 1, 4)
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=1e-4)
    assert torch.equal(trained.align("abcd", "ab"), trained.align("abcd", "ab"))


def test_evaluation_takes_pairs_parts_and_encoded_data(trained):
    pairs = [(e.source, e.target) for e in LETTERS.test]
    by_pairs = trained.evaluate(pairs)
    assert by_pairs.rows == 20
    assert by_pairs.numbers() == pytest.approx(trained.evaluate(trained.part("test", LETTERS)).numbers())
    assert trained.evaluate(pairs, beam=3).rates.edits.shape == (20,)
    for wrong in ([], "exam"):
        with pytest.raises(DataError):
            trained.evaluate(wrong)


def test_a_corpus_given_as_an_object_cannot_be_found_again(trained):
    """Its name may be that of other data, so the figures would be those of other data too."""
    with pytest.raises(DataError, match="does not say"):
        trained.evaluate("test")
    with pytest.raises(DataError, match="not what the model was trained on: it has 1,000 valid"):
        transduce.load(trained.path).evaluate("test")


def test_data_of_a_path_are_found_again(tmp_path, monkeypatch):
    (tmp_path / "pairs.tsv").write_text("".join(f"{e.source}\t{e.target}\n" for e in LETTERS.train[:100]))
    monkeypatch.chdir(tmp_path)
    short = TrainConfig(max_steps=1, evaluations=0, precision="float32")
    transduce.fit("rnnsearch", "pairs.tsv", "run", config=TINY, train=short)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert transduce.load(tmp_path / "run").evaluate("test").rows > 0


# ---------------------------------------------------------------- language models


def test_windows_of_running_text_are_continued_to_the_full_length(tmp_path):
    """Where a window was cut means nothing, so the model must not stop there."""
    model = language_model(tmp_path, "all work and no play " * 600)
    assert model.corpus["windowed"]
    for seed in range(4):
        assert len(model.continue_text("all ", length=300, seed=seed, temperature=2.0)) == 300
    assert model.continue_text(" ", length=5) == model.continue_text(" ", length=5)


def test_lines_may_end(tmp_path):
    model = language_model(tmp_path, "\n".join("ab" * (i % 7 + 1) for i in range(60)) + "\n")
    assert "windowed" not in model.corpus
    lengths = {len(model.continue_text("a", length=60, seed=seed, temperature=1.5)) for seed in range(8)}
    assert len(lengths) > 1
    with pytest.raises(DataError, match="continue_text"):
        model.predict("a")
    with pytest.raises(DataError, match='"z"'):
        model.continue_text("z")


def test_continued_words_are_set_apart(tmp_path):
    model = language_model(tmp_path, "\n".join(f"the cat sat on mat {i}" for i in range(60)), units="words")
    found = model.continue_text("the cat", length=3, temperature=2.0)
    assert found == "" or found.startswith(" ")
    assert len(model.continue_text("the cat", length=1, seed=1).split()) <= 1
