"""BLEU, chrF and ROUGE of whole texts, and how a corpus that declares them gets them reported."""

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import transduce
from transduce.core.errors import DataError
from transduce.data import Corpus, Example
from transduce.data.metrics import _common_subsequence, bleu, bleu_chrf, chrf, described, measures, rouge
from transduce.train import TrainConfig

ANSWERS = [["the cat sat on the mat today"], ["there is a dog in the house", "a dog is in the house"]]


def test_bleu_and_chrf_are_those_of_sacrebleu():
    import sacrebleu

    guesses = ["the cat sat on a mat today", "there is one dog in the house"]
    # one reference each: the published call of the package itself
    singles = [answers[0] for answers in ANSWERS]
    found = bleu_chrf(guesses, [[s] for s in singles])
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(guesses, [singles]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(guesses, [singles]).score)
    perfect = [answers[-1] for answers in ANSWERS]
    assert bleu(perfect, ANSWERS) == pytest.approx(100) and chrf(perfect, ANSWERS) == pytest.approx(100)
    assert bleu(perfect, [a[:1] for a in ANSWERS]) < 100, "the second reference must count"
    assert described({"bleu": 1.234, "chrf": 5}) == "BLEU 1.23, chrF 5.00"


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(DataError, match=r'pip install "transduce\[metrics\]"'):
        bleu(["a"], [["a"]])
    assert measures(("rouge1",), ["a"], [["a"]]) == {"rouge1": 100.0}, "ROUGE needs no package"


@pytest.mark.parametrize(
    "order, guess, answers, score",
    [
        (1, "police killed the gunman", ["police kill the gunman"], 75),
        (2, "police killed the gunman", ["police kill the gunman"], 100 / 3),
        (0, "the gunman police killed", ["police killed the gunman"], 50),
        (1, "The GUNMAN!", ["unrelated", "the gunman"], 100),
        (1, "a a a", ["a"], 50),  # a word counts as often as the reference has it
        (2, "a", ["a"], 0),  # no pair of words on either side
        (1, "", ["a"], 0),
    ],
)
def test_rouge_by_hand(order, guess, answers, score):
    assert rouge(order, [guess], [answers]) == pytest.approx(score)


def test_metrics_refuse_rows_without_references():
    for guesses, answers in (([], []), (["a"], [[]]), (["a"], [])):
        with pytest.raises(ValueError, match="reference or more"):
            rouge(1, guesses, answers)


def longest_common(a, b):
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_the_longest_common_subsequence_is_that_of_its_definition(a, b):
    assert _common_subsequence(a, b) == longest_common(a, b)


# ---------------------------------------------------------------- from a corpus to its report


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    rows = [Example(f"{a} {b}", f"{b} {a}", (f"{b} {a}", f"{b}, {a}")) for a in "abcd" for b in "efgh"]
    corpus = Corpus(
        "toy", "pairs", rows[:12], rows[12:14], rows[14:], "words", "words", metrics=("bleu", "chrf", "rouge1")
    )
    out = tmp_path_factory.mktemp("run") / "run"
    settings = TrainConfig(max_steps=3)
    return transduce.fit("rnnsearch", corpus, out, train=settings), corpus, out


def test_evaluation_reports_the_metrics_that_the_corpus_declares(trained):
    model, corpus, _ = trained
    found = model.evaluate(model.part("test", corpus))
    assert set(found.scores) == {"bleu", "chrf", "rouge1"} and not found.note
    assert all(0 <= value <= 100 for value in found.scores.values())
    assert found.numbers()["chrf"] == found.scores["chrf"] and "sequence_error" in found.numbers()
    texts = [model.spec.target.decode(row[0].ids) for row in found.hypotheses]
    assert found.scores["chrf"] == pytest.approx(chrf(texts, [e.references for e in corpus.test]))
    assert model.evaluate(model.part("test", corpus), metrics=()).scores == {}


def test_a_missing_package_costs_the_metrics_and_not_the_error_rates(trained, monkeypatch):
    from transduce.cli.report import describe

    model, corpus, _ = trained
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    found = model.evaluate(model.part("test", corpus))
    assert found.scores == {} and found.sequence_error is not None
    assert describe(found, "sentence error", "word error").endswith('pip install "transduce[metrics]".')


def test_eval_prints_and_records_them(trained, tmp_path, capsys, monkeypatch):
    from transduce import api
    from transduce.cli.main import main
    from transduce.train.card import model_card

    _, corpus, out = trained
    monkeypatch.setattr(api, "corpus_of", lambda request: corpus)
    record = tmp_path / "record.json"
    assert main(["eval", str(out), "--record", str(record)]) == 0
    printed = capsys.readouterr().out
    assert "sequence error" in printed and "BLEU" in printed and "chrF" in printed and "ROUGE-1" in printed
    stored = json.loads(record.read_text())
    assert {"bleu", "chrf", "rouge1"} <= set(stored["measured"]["test"])
    card = model_card(json.loads((out / "bundle" / "bundle.json").read_text()))
    assert "| test | BLEU |" in card and "| test | chrF |" in card
    assert main(["systems", "--results", str(tmp_path)]) == 0
    assert "BLEU" in capsys.readouterr().out
