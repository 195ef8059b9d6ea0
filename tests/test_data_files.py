"""Files of every format and number, joined columns, hf: data sets, splits that keep sources apart, and memory."""

from __future__ import annotations

import builtins
import gzip
import itertools
import json
import os
import subprocess
import sys
import unicodedata

import pytest

from transduce.core.errors import DataError
from transduce.data import Example, anywhere, load_corpus, prepare
from transduce.data import files, hub, memory
from transduce.data.examples import Rows, merged
from transduce.data.fields import SEPARATOR
from transduce.data.identity import same_source
from transduce.data.split import bucket

ROWS = [(f"word{i}", f"w {i}") for i in range(60)]
THREE = ("train", "valid", "test")


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def table(rows, header="source\ttarget\n"):
    return header + "".join(f"{s}\t{t}\n" for s, t in rows)


def rows_of(corpus):
    return {(e.source, e.target) for part in THREE for e in getattr(corpus, part)}


def parquet(path, columns):
    pa = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_table(pa.table(columns), path)
    return str(path)


# ---------------------------------------------------------------- parquet


def test_parquet_gives_the_same_rows_as_a_table(tmp_path):
    path = parquet(
        tmp_path / "x.parquet",
        {"id": list(range(60)), "target": [t for _, t in ROWS], "source": [s for s, _ in ROWS]},
    )
    corpus = load_corpus(path)
    assert corpus.kind == "pairs" and rows_of(corpus) == set(ROWS)
    plain = load_corpus(written(tmp_path, "x.tsv", table(ROWS)))
    assert (corpus.train, corpus.valid, corpus.test) == (plain.train, plain.valid, plain.test)


def test_parquet_texts_dictionaries_and_named_values(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path / "t.parquet", {"text": [f"line {i}" for i in range(60)], "id": list(range(60))})
    assert load_corpus(path).kind == "text"
    pairs = [{"de": s, "en": t} for s, t in ROWS]
    path = parquet(tmp_path / "n.parquet", {"translation": pairs})
    assert rows_of(load_corpus(path, columns=("translation.de", "translation.en"))) == set(ROWS)
    with pytest.raises(DataError, match=r'no column "translation.fr"'):
        load_corpus(path, columns=("translation.fr", "translation.en"))
    with pytest.raises(DataError, match="named values .de, en; ask for one with a dot"):
        load_corpus(path, columns=("translation", "translation"))
    words = pa.array([s for s, _ in ROWS]).dictionary_encode()
    path = parquet(tmp_path / "d.parquet", {"source": words, "target": [t for _, t in ROWS]})
    assert rows_of(load_corpus(path)) == set(ROWS)


def test_broken_parquet_rows_and_files(tmp_path):
    pa = pytest.importorskip("pyarrow")
    sources = [*(s for s, _ in ROWS), None, "x"]
    targets = [*(t for _, t in ROWS), "y", " "]
    path = parquet(tmp_path / "x.parquet", {"source": sources, "target": targets})
    (note,) = load_corpus(path, max_bad=0.1).notes
    assert "2 of 62 rows" in note and "a missing value, first in row 61" in note
    with pytest.raises(
        DataError, match='row 61 has no value in column "source".*2 of 62 rows are broken, 1 of them'
    ):
        load_corpus(path)
    raw = pa.array([*(s.encode() for s, _ in ROWS), b"a\xff"], pa.binary())
    broken = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:])
    path = parquet(tmp_path / "u.parquet", {"source": broken, "target": [*(t for _, t in ROWS), "z"]})
    corpus = load_corpus(path, max_bad=0.1)
    assert rows_of(corpus) == set(ROWS) and "half a character, first in row 61" in corpus.notes[0]
    path = parquet(tmp_path / "n.parquet", {"source": [1, 2, 3], "target": ["a", "b", "c"]})
    with pytest.raises(DataError, match='column "source" holds int64, not text'):
        load_corpus(path)
    whole = (tmp_path / "x.parquet").read_bytes()
    for name, content in (("cut", whole[:-20]), ("text", b"source\ttarget\n"), ("empty", b"")):
        with pytest.raises(DataError, match="not a whole parquet file"):
            load_corpus(written(tmp_path, f"{name}.parquet", content))
    with pytest.raises(DataError, match='no column "source".*It has a, b'):
        load_corpus(parquet(tmp_path / "c.parquet", {"a": ["x"], "b": ["y"]}))
    with pytest.raises(DataError, match="no rows"):
        load_corpus(
            parquet(
                tmp_path / "e.parquet",
                {"source": pa.array([], pa.string()), "target": pa.array([], pa.string())},
            )
        )


@pytest.mark.parametrize("module, name", [("pyarrow", "x.parquet"), ("datasets", "hf:some/set")])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, module, name):
    real = builtins.__import__

    def fail(wanted, *rest, **more):
        if wanted.split(".")[0] == module:
            raise ImportError(wanted)
        return real(wanted, *rest, **more)

    written(tmp_path, "x.parquet", b"PAR1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(DataError, match=rf"package {module}: pip install .transduce\[data\]"):
        load_corpus(name)


# ---------------------------------------------------------------- folders


def test_a_part_may_have_several_files(tmp_path):
    for i in range(3):
        written(tmp_path, f"train-{i:05d}-of-00003.tsv", table(ROWS[10 * i : 10 * i + 10]))
    written(
        tmp_path,
        "validation.jsonl",
        "".join(json.dumps({"source": s, "target": t}) + "\n" for s, t in ROWS[30:40]),
    )
    written(tmp_path, "test/a.csv.gz", gzip.compress(b"source,target\nword50,x\n"))
    written(tmp_path, "test/b.csv.gz", gzip.compress(b"target,source\ny,word51\n"))
    written(tmp_path, "training-notes.txt", "not a part")
    written(tmp_path, "test/README.md", "not a table")
    corpus = load_corpus(str(tmp_path))
    assert [(e.source, e.target) for e in corpus.train] == ROWS[:30]
    assert [(e.source, e.target) for e in corpus.valid] == ROWS[30:40]
    assert [(e.source, e.target) for e in corpus.test] == [("word50", "x"), ("word51", "y")]


@pytest.mark.parametrize(
    "names, message",
    [
        (["train.tsv", "train-1.tsv"], "has train.tsv and train-1.tsv; keep the one"),
        (["train-1.tsv", "train-2.csv"], "are .csv and .tsv; give them in one format"),
        (["train-0-of-3.tsv", "train-2-of-3.tsv"], "2 of 3 train files; some are missing"),
        (["train/a.tsv", "train.tsv"], "has train and train.tsv; keep the one"),
        (["train/notes.md"], "has no file to read"),
        (["training.tsv"], "no train file"),
    ],
)
def test_folders_that_can_be_read_in_two_ways_are_refused(tmp_path, names, message):
    for name in names:
        written(tmp_path, name, "source,target\na,b\n" if "csv" in name else table([("a", "b")]))
    with pytest.raises(DataError, match=message) as caught:
        load_corpus(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_files_of_one_part_agree_in_kind(tmp_path):
    written(tmp_path, "train-1.jsonl", '{"text": "a"}\n')
    written(tmp_path, "train-2.jsonl", '{"source": "a", "target": "b"}\n')
    for name in ("valid", "test"):
        written(tmp_path, f"{name}.jsonl", '{"text": "b"}\n')
    with pytest.raises(DataError, match="train-2.jsonl holds pairs.*the files before it texts"):
        load_corpus(str(tmp_path))


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_columns_are_joined_with_the_separator(tmp_path, kind):
    rows = [{"de": f"ein {i}", "fr": f"un {i}", "en": f"one {i}"} for i in range(60)]
    if kind == "parquet":
        path = parquet(tmp_path / "x.parquet", {c: [r[c] for r in rows] for c in rows[0]})
    elif kind == "jsonl":
        path = written(tmp_path, "x.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(r.values()) for r in rows)]
        path = written(tmp_path, f"x.{kind}", "\n".join(lines))
    letters = load_corpus(path, columns=("de+fr", "en"))
    assert (f"ein 7{SEPARATOR}un 7", "one 7") in rows_of(letters)
    words = load_corpus(path, columns=("de+fr", "en"), source_units="words")
    assert (f"ein 7 {SEPARATOR} un 7", "one 7") in rows_of(words)
    assert SEPARATOR in prepare(words).spec.source.symbols
    with pytest.raises(DataError, match='no column "frr".*Did you mean "fr"'):
        load_corpus(path, columns=("de+frr", "en"))


def test_a_column_may_have_a_plus_in_its_name_and_joined_texts_may_not_be_empty(tmp_path):
    path = written(tmp_path, "x.tsv", table(ROWS, "a+b\ttarget\n"))
    assert rows_of(load_corpus(path, columns=("a+b", "target"))) == set(ROWS)
    path = written(tmp_path, "y.tsv", "a\tb\ttarget\nx\t\tz\n")
    with pytest.raises(DataError, match=r"line 2 has an empty source \(column b\)"):
        load_corpus(path, columns=("a+b", "target"))


# ---------------------------------------------------------------- hf:

datasets = pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path):
    """A data set of pairs with pictures, whose bytes no decoder could read, saved with all three splits."""
    part = lambda rows: (
        datasets.Dataset.from_dict(
            {
                "translation": [{"de": s, "en": t} for s, t in rows],
                "source": [s for s, _ in rows],
                "target": [t for _, t in rows],
                "picture": [{"bytes": b"no picture", "path": None} for _ in rows],
                "sound": [{"bytes": b"no sound", "path": None} for _ in rows],
            }
        )
        .cast_column("picture", datasets.Image())
        .cast_column("sound", datasets.Audio())
    )
    folder = tmp_path / "saved"
    datasets.DatasetDict(
        {"train": part(ROWS[:40]), "validation": part(ROWS[40:50]), "test": part(ROWS[50:])}
    ).save_to_disk(folder)
    return folder


def test_saved_data_sets_are_read_without_a_network_and_undecoded(saved):
    corpus = load_corpus(f"hf:{saved}")
    assert [(e.source, e.target) for e in corpus.test] == ROWS[50:] and len(corpus.valid) == 10
    assert corpus.name == "saved"
    named = load_corpus(f"hf:{saved}", columns=("translation.de", "translation.en"))
    assert named.train == corpus.train
    with pytest.raises(DataError, match='column "picture" holds sounds or pictures, not text'):
        load_corpus(f"hf:{saved}", columns=("picture", "target"))


def test_one_split_is_split_up_by_source(saved):
    corpus = load_corpus(f"hf:{saved}:train")
    assert rows_of(corpus) == set(ROWS[:40]) and len(corpus.valid) and len(corpus.test)
    with pytest.raises(DataError, match='no split "tset". Did you mean "test"'):
        load_corpus(f"hf:{saved}:tset")


def test_a_data_set_without_a_validation_part_takes_it_out_of_training(tmp_path):
    make = lambda rows: datasets.Dataset.from_dict(
        {"source": [s for s, _ in rows], "target": [t for _, t in rows]}
    )
    datasets.DatasetDict({"train": make(ROWS[:50]), "test": make(ROWS[50:])}).save_to_disk(tmp_path / "d")
    corpus = load_corpus(f"hf:{tmp_path / 'd'}")
    assert {e.source for e in corpus.test} == {s for s, _ in ROWS[50:]}
    assert len(corpus.valid) and {e.source for e in corpus.valid} | {e.source for e in corpus.train} == {
        s for s, _ in ROWS[:50]
    }


def test_data_sets_that_cannot_be_had_are_one_sentence(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="could not be loaded: no route to host; .*hf:FOLDER") as caught:
        load_corpus("hf:some/set:config")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="the form is hf:NAME"):
        load_corpus("hf:a:b:c:d")


def test_names_of_data_sets_are_taken_apart(tmp_path, monkeypatch):
    assert hub.parse("hf:a/b") == ("a/b", None, None)
    assert hub.parse("hf:a/b:de-en") == ("a/b", "de-en", None)
    assert hub.parse("hf:a/b:de-en:test") == ("a/b", "de-en", "test")
    assert hub.parse("hf:a/b::test") == ("a/b", None, "test")
    assert hub.parse(f"hf:{tmp_path}:test") == (str(tmp_path), None, "test")
    monkeypatch.chdir(tmp_path.parent)
    assert anywhere(f"hf:{tmp_path.name}:test") == f"hf:{tmp_path}:test"
    assert anywhere("hf:a/b:c") == "hf:a/b:c" and anywhere("cmudict") == "cmudict"
    assert anywhere(tmp_path.name) == str(tmp_path)


# ---------------------------------------------------------------- splits


def test_sources_that_differ_in_typing_only_stay_together(tmp_path):
    accented = [f"caf\u00e9 num\u00e9ro {i}" for i in range(60)]
    spellings = [
        accented,
        [unicodedata.normalize("NFD", s) for s in accented],
        [s.replace(" ", "  ") for s in accented],
    ]
    path = written(
        tmp_path,
        "x.tsv",
        "".join(f"{s}\t{k}{i}\n" for k, form in enumerate(spellings) for i, s in enumerate(form)),
    )
    corpus = load_corpus(path)
    parts = [{same_source(e.source) for e in getattr(corpus, part)} for part in THREE]
    assert all(not a & b for a, b in itertools.combinations(parts, 2)) and all(parts)
    assert sum(len(getattr(corpus, part)) for part in THREE) == 180, (
        "to the letter they are different sources"
    )
    assert bucket(spellings[1][0]) == bucket(accented[0])


def test_the_tiniest_files_keep_spellings_together_too(tmp_path):
    rows = [("a b", "1"), ("a  b", "2"), ("c", "3"), ("d", "4")]
    corpus = load_corpus(written(tmp_path, "x.tsv", table(rows)))
    parts = [{same_source(e.source) for e in getattr(corpus, part)} for part in THREE]
    assert sum(map(len, parts)) == 3 and all(parts)


# ---------------------------------------------------------------- memory


def test_rows_are_kept_as_bytes_and_come_back_as_they_were():
    rows = Rows()
    given = [("b", "1"), ("a", "2"), ("b", "3"), ("b", "1"), ("\u00e9", "4"), ("e\u0301", "5")]
    for row in given:
        rows.add(*row)
    found = rows.examples()
    assert found == merged(Example(s, t, (t,)) for s, t in given)
    assert list(found) == [
        Example("b", "1", ("1", "3")),
        Example("a", "2", ("2",)),
        Example("\u00e9", "4", ("4",)),
        Example("e\u0301", "5", ("5",)),
    ]
    assert found[-1].target == "5" and found[1:3] == list(found)[1:3] and found == list(found)
    assert found.rows == 6 and found.repeated() == 1 and found.select([3, 0])[0].target == "5"


def test_memory_of_a_row_is_its_text_and_a_little_more():
    rows = Rows()
    for i in range(20_000):
        rows.add(f"source number {i}", f"target number {i}")
    text = rows.text_bytes
    assert rows.nbytes < text + 40 * 20_000
    encoded = prepare(load_like(rows)).train
    assert encoded.sources.flat.itemsize == 1, "a letter of a small alphabet is one byte"
    assert encoded.sources.flat.nbytes + encoded.targets.flat.nbytes <= text + 20_000


def load_like(rows):
    from transduce.data import Corpus

    part = rows.examples()
    return Corpus("rows", "pairs", part, part.select([0]), part.select([1]), "chars", "chars")


@pytest.mark.parametrize("kind", ["tsv", "tsv.gz", "parquet"])
def test_a_file_that_cannot_fit_is_refused_early_with_what_to_do(tmp_path, monkeypatch, kind):
    rows = [(f"source number {i}", f"target number {i}") for i in range(50_000)]
    if kind == "parquet":
        path = parquet(
            tmp_path / "x.parquet", {"source": [s for s, _ in rows], "target": [t for _, t in rows]}
        )
    else:
        text = table(rows).encode()
        path = written(tmp_path, f"x.{kind}", gzip.compress(text) if kind.endswith("gz") else text)
    read = []
    monkeypatch.setattr(files, "LOOK_EVERY", 1000)
    monkeypatch.setattr(files, "LOOK_FROM", 100_000)
    monkeypatch.setattr(memory, "available", lambda: read.append(1) or 3_000_000)
    with pytest.raises(
        DataError, match=r"would take .* MB of memory and .* MB are free: read a part of it"
    ) as caught:
        load_corpus(path)
    assert len(read) < 10, "long before the end"
    advised = int(str(caught.value).split("--max-rows ")[1].split(",")[0])
    assert 5_000 < advised < 30_000
    corpus = load_corpus(path, max_rows=advised)
    assert len(rows_of(corpus)) == advised
    monkeypatch.setattr(memory, "available", lambda: 100_000_000)
    assert len(rows_of(load_corpus(path))) == 50_000


def test_max_rows_counts_every_part_and_broken_rows(tmp_path):
    for name in THREE:
        written(tmp_path, f"{name}-1.tsv", table(ROWS[:10]))
        written(tmp_path, f"{name}-2.tsv", table([("", "x"), *ROWS[10:20]]))
    corpus = load_corpus(str(tmp_path), max_rows=13, max_bad=0.1)
    assert [len(getattr(corpus, part)) for part in THREE] == [12, 12, 12]
    with pytest.raises(DataError, match="--max-rows must be at least 1"):
        load_corpus(str(tmp_path), max_rows=0)


def test_groups_of_processes_limit_the_memory(tmp_path):
    written(tmp_path, "memory.max", "1000000\n")
    written(tmp_path, "memory.current", "700000\n")
    written(tmp_path, "memory.stat", "anon 1\nactive_file 100000\ninactive_file 200000\n")
    assert memory._group(str(tmp_path)) == 600_000
    written(tmp_path, "memory.max", "max\n")
    assert memory._group(str(tmp_path)) is None and memory._group(str(tmp_path / "x")) is None
    assert memory.available() > 1_000_000 and memory.size(1.5e9) == "1.5 GB"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="peak memory is read from /proc")
def test_reading_a_file_takes_little_more_memory_than_the_file(tmp_path):
    size = 12_000_000
    line = "source sentence number %d with some words\ttarget sentence number %d with some words\n"
    path = written(tmp_path, "x.tsv", "".join(line % (i, i) for i in range(size // 88)))
    code = (
        "import sys, resource\n"
        "from transduce.data import load_corpus\n"
        "load_corpus(sys.argv[1], max_rows=3)\n"
        "peak = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
        "before = peak()\n"
        "corpus = load_corpus(sys.argv[1])\n"
        "print(1024 * (peak() - before))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 4 * size, "as Python objects they would take eight times the size"
