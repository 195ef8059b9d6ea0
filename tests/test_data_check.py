"""Broken rows and suspicious data: set aside up to a share, told in one line, listed by ``transduce data check``."""

from __future__ import annotations

import gzip
import json
import random

import pytest
from cli_cases import refused

from transduce import systems
from transduce.api import fit
from transduce.cli.data import DataOptions
from transduce.cli.main import main
from transduce.core.errors import DataError
from transduce.data import Example, load_corpus
from transduce.data.compare import are_swapped
from transduce.data.quarantine import Bad, Quarantine
from transduce.train import TrainConfig

GOOD = [(f"word{i}", f"w {i}") for i in range(400)]
TABLE = "source\ttarget\n" + "".join(f"{s}\t{t}\n" for s, t in GOOD)


def written(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(path)


def rows_of(corpus):
    return {(e.source, e.target) for part in (corpus.train, corpus.valid, corpus.test) for e in part}


def lines(text):
    return "".join(json.dumps(dict(zip(("source", "target"), row))) + "\n" for row in text)


BROKEN = {
    "too few columns": ("x.tsv", TABLE + "alone\n", "too few columns", 402),
    "too many columns": ("x.tsv", TABLE + "a\tb\tc\n", "too many columns", 402),
    "empty source": ("x.tsv", TABLE + " \tb\n", "an empty source", 402),
    "empty target": ("x.tsv", TABLE + "a\t\n", "an empty target", 402),
    "over-long": ("x.tsv", TABLE + "a" * 10_001 + "\tb\n", "an over-long source", 402),
    "no UTF-8": ("x.tsv", TABLE.encode() + b"a\xffb\tc\n", "not UTF-8", 402),
    "control character": ("x.tsv", TABLE + "a\x07b\tc\n", "a control character", 402),
    "bad JSON": ("x.jsonl", lines(GOOD) + "{nonsense\n", "not valid JSON", 401),
    "a list": ("x.jsonl", lines(GOOD) + "[1, 2]\n", "no JSON object", 401),
    "null": ("x.jsonl", lines([*GOOD, (None, "b")]), "a missing value", 401),
    "NaN": ("x.jsonl", lines([*GOOD, (float("nan"), "b")]), "a missing value", 401),
    "a number": ("x.jsonl", lines([*GOOD, (5, "b")]), "no text", 401),
    "a column that one row lacks": ("x.jsonl", lines([*GOOD, ("a",)]), "a missing column", 401),
    "half a character": (
        "x.jsonl",
        lines(GOOD) + '{"source": "\\ud800", "target": "b"}\n',
        "half a character",
        401,
    ),
    "text after a quote": (
        "x.csv",
        TABLE.replace("\t", ",") + '"a"b,c\n',
        "not valid csv",
        402,
    ),
}


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN)
def test_training_goes_on_without_a_broken_row(tmp_path, case):
    name, content, reason, line = case
    corpus = load_corpus(written(tmp_path, name, content))
    assert rows_of(corpus) == set(GOOD)
    (note,) = corpus.notes
    assert note == (
        f"{name}: 1 of 401 rows is broken and was left out; most often: {reason}, first in line {line}."
    )


def test_broken_lines_of_texts_are_left_out_too(tmp_path):
    content = "".join(f"line {i}\n" for i in range(300)).encode() + b"bell \x07\n" + b"byte \xff\n"
    corpus = load_corpus(written(tmp_path, "x.txt", content))
    assert len(rows_of(corpus)) == 300 and "2 of 302 rows are broken" in corpus.notes[0]
    running = b"abcdefghij" * 3000 + b"\xff" + b"klm nop qrs" * 3000
    corpus = load_corpus(written(tmp_path, "y.txt", running), max_bad=0.02)
    assert corpus.windowed and "1 of 247 rows is broken" in corpus.notes[0]


def test_above_the_limit_one_sentence_names_the_commonest_reason_and_its_first_row(tmp_path):
    path = written(tmp_path, "x.tsv", TABLE + "\tb\n" * 2 + "a\n" * 3)
    with pytest.raises(DataError) as caught:
        load_corpus(path)
    assert str(caught.value) == (
        f"{path} line 404 has 1 columns; 2 are needed (5 of 405 rows are broken, 3 of them so; 1 % may be: mend "
        "them or raise --max-bad, `transduce data check` lists them)."
    )
    assert len(rows_of(load_corpus(path, max_bad=0.02))) == 400
    with pytest.raises(DataError, match="0 % may be"):
        load_corpus(written(tmp_path, "y.tsv", TABLE + "a\n"), max_bad=0.0)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_the_limit_is_a_share(share):
    with pytest.raises(DataError, match="--max-bad is a share"):
        Quarantine(share)


def test_a_file_of_broken_rows_only_is_refused_at_any_limit(tmp_path):
    with pytest.raises(DataError, match="3 of 3 rows are broken"):
        load_corpus(written(tmp_path, "x.tsv", "source\ttarget\n" + "a\n" * 3), max_bad=1.0)


def test_an_unclosed_quote_costs_the_lines_that_it_swallows_and_no_more(tmp_path):
    before, after = GOOD[:200], GOOD[200:]
    text = lambda rows: "".join(f'"{s}","{t}"\n' for s, t in rows)
    path = written(tmp_path, "x.csv", "source,target\n" + text(before) + '"open,x\n' + text(after))
    corpus = load_corpus(path, max_bad=0.05)
    assert len(rows_of(corpus)) == 399, "the open quote and the line that closes it are lost"
    assert "2 of 401 rows" in corpus.notes[0] and "not valid csv, first in line 202" in corpus.notes[0]


def test_memory_of_broken_rows_is_bounded(tmp_path):
    quarantine = Quarantine(0.5)
    for row in range(10_000):
        quarantine.add(Bad(tmp_path, row, "alike", "message"))
    assert quarantine.bad == 10_000 and len(quarantine.shown["alike"]) == 3


# ---------------------------------------------------------------- held-out data that look wrong


def folder(tmp_path, **parts):
    for name, rows in parts.items():
        written(tmp_path, f"{name}.tsv", "".join(f"{s}\t{t}\n" for s, t in rows))
    return str(tmp_path)


def test_test_sources_in_training_are_counted(tmp_path):
    decomposed = "cafe\u0301 noir"
    train = [*GOOD[:300], ("caf\u00e9 noir", "k")]
    path = folder(
        tmp_path, train=train, valid=GOOD[300:310], test=[*GOOD[295:298], *GOOD[310:350], (decomposed, "k")]
    )
    (note,) = load_corpus(path).notes
    assert note.startswith('4 of 44 test sources stand in the training part too (the first: "word295")')


def translations(count, seed):
    """Two made-up languages with words of their own, as many letters in common as English and German."""
    rng = random.Random(seed)
    table = random.Random(0)
    words = ["".join(table.choices("etaoinshrdlu", k=table.randint(2, 7))) for _ in range(300)]
    others = ["".join(table.choices("enisratdhulcgm", k=table.randint(3, 10))) for _ in range(300)]
    picked = [rng.choices(range(300), k=rng.randint(3, 9)) for _ in range(count)]
    return [(" ".join(words[i] for i in p), " ".join(others[i] for i in p)) for p in picked]


def spoken(count, seed):
    rng = random.Random(seed)
    spelt = ["".join(rng.choices("abcdefghilmnoprst", k=rng.randint(4, 9))) for _ in range(count)]
    return [(s, " ".join(f"{c.upper()}H" for c in s)) for s in spelt]


def reversals(count, seed):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijk", k=rng.randint(2, 9))) for _ in range(count)]
    return [(w, w[::-1]) for w in words]


@pytest.mark.parametrize("make", [translations, spoken])
@pytest.mark.parametrize("seed", range(5))
def test_swapped_columns_are_noticed(make, seed):
    examples = lambda rows: [Example(s, t, (t,)) for s, t in rows]
    train, test = make(400, seed), make(40, seed + 100)
    turned = [(t, s) for s, t in test]
    assert are_swapped(examples(train), examples(turned))
    assert not are_swapped(examples(train), examples(test))


@pytest.mark.parametrize("seed", range(5))
def test_columns_that_are_alike_are_never_called_swapped(seed):
    examples = lambda rows: [Example(s, t, (t,)) for s, t in rows]
    assert not are_swapped(examples(reversals(400, seed)), examples(reversals(12, seed + 100)))


def test_training_warns_of_swapped_columns_and_of_test_sources(tmp_path, capsys):
    train, test = translations(200, 1), translations(30, 2)
    path = folder(
        tmp_path / "d", train=train, valid=translations(10, 3), test=[(t, s) for s, t in test] + train[:2]
    )
    DataOptions(data=path).load()
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2 and "2 of 32 test sources stand in the training" in notes[0]
    assert "The test sources look like the training targets" in notes[1]


def test_python_is_warned_too(tmp_path):
    path = written(tmp_path, "x.txt", "".join(f"some line {i}\n" for i in range(200)) + "\x07\n")
    settings = TrainConfig(max_steps=1, evaluations=0, precision="float32")
    config = systems.find("gru-lm").config_type(dim=8, layers=1)
    with pytest.warns(UserWarning, match="1 of 201 rows is broken"):
        fit("gru-lm", path, tmp_path / "run", config=config, train=settings)


# ---------------------------------------------------------------- the command


def test_the_report_lists_everything(tmp_path, capsys):
    content = TABLE + "word1\tw 1\nword2\tanother\n\tb\na\x01\tb\nnan\tx\nNone\ty\nNULL\tz\n"
    path, out = written(tmp_path, "x.tsv", content), tmp_path / "bad.jsonl"
    assert main(["data", "check", path, "--quarantine", str(out)]) == 0
    said = capsys.readouterr().out
    assert "x.tsv: 407 rows, 2 broken (0.491 %; 1 % may be): left out in training" in said
    assert "1 (0.246 %): an empty source\n             x.tsv 404: '\\tb'" in said
    assert (
        "a control character" in said and "403 sources, 1 of them with several targets; 1 rows repeat" in said
    )
    assert "sources    3 to 7 chars" in said and "3 sources that read nan, none" in said
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["row"], r["reason"], r["raw"]) for r in found] == [
        (404, "an empty source", "\tb"),
        (405, "a control character", "a\x01\tb"),
    ]


def test_the_exit_code_follows_the_limit(tmp_path, capsys):
    path = written(tmp_path, "x.tsv", TABLE + "a\n" * 20)
    assert main(["data", "check", path]) == 1
    assert "20 broken (4.76 %; 1 % may be): too many" in capsys.readouterr().out
    assert main(["data", "check", path, "--max-bad", "0.05"]) == 0


def test_files_and_parts_are_compared(tmp_path, capsys):
    train, test = translations(200, 1), translations(30, 2)
    a = written(tmp_path, "a.tsv", "".join(f"{s}\t{t}\n" for s, t in train))
    b = written(tmp_path, "b.tsv", "".join(f"{t}\t{s}\n" for s, t in test) + f"{train[0][0]}\tQ\n")
    assert main(["data", "check", b, "--train", a]) == 0
    said = capsys.readouterr().out
    assert (
        "train: 200 rows, none broken" in said
        and "columns of one of the two files seem to be swapped" in said
    )
    assert "1 of 31 test sources stand in the training part too" in said
    assert "The test targets hold 2 chars that the training part lacks ('o' 'Q')" in said
    path = folder(tmp_path / "d", train=train, valid=train[:3], test=test)
    assert main(["data", "check", path, "--source-units", "words"]) == 0
    said = capsys.readouterr().out
    assert "warning: 3 of 3 valid sources" in said and "swapped" not in said and "9 words" in said


def test_mistakes_are_one_sentence(tmp_path, capsys):
    assert 'Did you mean "check"' in refused(capsys, "data", "chek")
    assert "transduce data check FILE" in refused(capsys, "data")
    assert "no file or folder" in refused(capsys, "data", "check", tmp_path / "x.tsv")
    assert "built in" in refused(capsys, "data", "check", "cmudict")
    cut = written(tmp_path, "x.tsv.gz", gzip.compress(TABLE.encode())[:-9])
    assert "not a whole gzip file" in refused(capsys, "data", "check", cut)
    table, text = written(tmp_path, "a.tsv", TABLE), written(tmp_path, "b.txt", "a\nb\n")
    assert "compare like with like" in refused(capsys, "data", "check", text, "--train", table)
    assert "--max-rows" in refused(capsys, "data", "check", table, "--max-rows", "0")
    assert 'no column "wrod"' in refused(capsys, "data", "check", table, "--source-column", "wrod")
