"""The corpora that are fetched as packages: parsing on small built archives, splits, names and directions.

The whole corpora are read only where their archives already lie in the cache or in a data directory.
"""

import gzip
import hashlib
import io
import itertools
import lzma
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest

from transduce.core.errors import DataError
from transduce.data import Example, TextField, corpora, fetch, load_corpus, prepare
from transduce.data.archives import members
from transduce.data.corpora import (
    _debian_index,
    debian_descriptions,
    libreoffice_help,
    mnist,
    python_stdlib,
    sotu,
)
from transduce.data.corpora._directions import Direction, direction
from transduce.data.fields import SEPARATOR
from transduce.data.split import part_of, split_grouped

# ---------------------------------------------------------------- archives


def tar(files: dict[str, str | bytes], mode: str) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode) as archive:
        for name, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return made.getvalue()


def deb(files: dict[str, str]) -> bytes:
    """A Debian package by hand: two members before the data, one of them of odd length."""
    out = b"!<arch>\n"
    for name, content in (
        ("debian-binary", b"2.0"),
        ("control.tar.xz", tar({}, "w:xz")),
        ("data.tar.xz", tar(files, "w:xz")),
    ):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        out += header + content + b"\n" * (len(content) % 2)
    return out


def zipped(files: dict[str, str]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


FILES = {"a/one.txt": "1", "a/two.html": "zwei", "b/three.txt": "3"}


@pytest.mark.parametrize(
    "name, made",
    [
        ("x.deb", deb({f"./{n}": c for n, c in FILES.items()})),
        ("x.tgz", tar(FILES, "w:gz")),
        ("x.whl", zipped(FILES)),
    ],
)
def test_files_are_read_out_of_every_kind_of_archive(tmp_path, name, made):
    path = tmp_path / name
    path.write_bytes(made)
    found = dict(members(path, lambda member: member.endswith(".txt")))
    assert found == {"a/one.txt": b"1", "b/three.txt": b"3"}
    for broken in (made[: len(made) // 2], b"!<arch>\n" + b"?" * 200, b""):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="not a readable archive"):
            list(members(path, lambda member: True))


def test_an_archive_is_not_read_beyond_its_limit(tmp_path, monkeypatch):
    path = tmp_path / "x.tgz"
    path.write_bytes(tar({"big": b"0" * 1000, "small": b"0" * 10}, "w:gz"))
    monkeypatch.setattr("transduce.data.archives.MOST_BYTES", 500)
    assert [n for n, _ in members(path, lambda n: n == "small")] == ["small"]
    with pytest.raises(DataError, match="larger than"):
        list(members(path, lambda n: True))


# ---------------------------------------------------------------- fetching Debian's packages


PACKAGE = fetch.Archive(
    "debian", "toy", "1-1", "toy_1-1_all.deb", hashlib.sha256(b"pinned").hexdigest(), "https://x/toy.deb"
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSDUCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TRANSDUCE_DATA", raising=False)
    fetch.warn.cache_clear()
    return tmp_path / "cache"


def apt(monkeypatch, files):
    """A stand-in for ``apt-get download``: what it writes for an argument, None for a refusal."""

    def client(command, cwd, **_):
        name, content = files.get(command[-1], (None, None))
        if name is not None:
            (cwd / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0 if name else 100, "", "")

    monkeypatch.setattr(fetch.subprocess, "run", client)


def test_another_version_of_a_debian_package_is_taken_with_a_warning(cache, monkeypatch, capsys):
    apt(monkeypatch, {"toy": ("toy_1-2_all.deb", b"newer")})
    assert fetch.fetch(PACKAGE).read_bytes() == b"newer"
    assert "another version" in capsys.readouterr().err
    monkeypatch.setattr(fetch.subprocess, "run", None)  # from the cache, and said only once a process
    assert fetch.fetch(PACKAGE).name == "toy_1-2_all.deb"
    assert capsys.readouterr().err == ""


def test_the_pinned_version_is_silent_and_a_damaged_one_is_fetched_again(cache, monkeypatch, capsys):
    apt(monkeypatch, {"toy=1-1": ("toy_1-1_all.deb", b"pinned")})
    (cache / "debian").mkdir(parents=True)
    (cache / "debian" / "toy_1-1_all.deb").write_bytes(b"damaged")
    assert fetch.fetch(PACKAGE).read_bytes() == b"pinned"
    assert "warning" not in capsys.readouterr().err
    apt(monkeypatch, {"toy=1-1": ("toy_1-1_all.deb", b"forged")})
    (cache / "debian" / "toy_1-1_all.deb").unlink()
    with pytest.raises(DataError, match="SHA-256 differs"):
        fetch.fetch(PACKAGE)


def test_without_apt_the_file_comes_from_its_address_and_must_be_the_pinned_one(cache, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(fetch.subprocess, "run", missing)
    answers = {"https://x/toy.deb": b"forged"}
    monkeypatch.setattr(fetch.urllib.request, "urlopen", lambda address, **_: io.BytesIO(answers[address]))
    with pytest.raises(DataError, match="SHA-256 differs"):
        fetch.fetch(PACKAGE)
    answers["https://x/toy.deb"] = b"pinned"
    assert fetch.fetch(PACKAGE).read_bytes() == b"pinned"


def test_offline_the_sentence_says_which_file_belongs_where(cache, monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    def offline(*_, **__):
        raise OSError

    monkeypatch.setattr(fetch.subprocess, "run", missing)
    monkeypatch.setattr(fetch.urllib.request, "urlopen", offline)
    with pytest.raises(DataError, match="apt-get, which is not installed.*toy_1-1_all.deb.*--data-dir"):
        fetch.fetch(PACKAGE)


# ---------------------------------------------------------------- names and directions


def test_new_names_are_listed_and_suggested():
    new = {"libreoffice-help", "debian-descriptions", "debian-synopses", "sotu", "mnist", "python-stdlib"}
    assert new <= set(corpora.names()) and not any(name.startswith("_") for name in corpora.names())
    with pytest.raises(DataError, match='Did you mean "libreoffice-help"'):
        load_corpus("libreofice-help:en-fr")
    with pytest.raises(DataError, match="has no variants"):
        load_corpus("synthetic-copy:de")


@pytest.mark.parametrize(
    "text, sources, target",
    [
        ("en-de", ("en",), "de"),
        ("de+fr-en", ("de", "fr"), "en"),
        ("en-pt-br", ("en",), "pt-br"),
        ("pt-br+zh-cn-en-gb", ("pt-br", "zh-cn"), "en-gb"),
        ("pt-en", ("pt",), "en"),
    ],
)
def test_directions_are_cut_between_known_languages(text, sources, target):
    found = direction("libreoffice-help", text, libreoffice_help.DIGESTS)
    assert found == Direction(sources, target) and str(found) == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("en-xx", 'no language "xx"'),
        ("en-pt-xx", 'no language "pt-xx"'),
        ("deu-en", 'no language "deu"; choose among ca, cs'),
        ("de", "is no direction"),
        ("", "is no direction"),
        ("de+de-en", "twice"),
        ("de-de", "twice"),
    ],
)
def test_wrong_directions_are_refused_in_one_sentence(text, said):
    with pytest.raises(DataError, match=said):
        direction("libreoffice-help", text, libreoffice_help.DIGESTS)


# ---------------------------------------------------------------- splits


def page(part: str, number: int = 0) -> str:
    """A group's name that falls into a part."""
    return next(itertools.islice((n for n in map("page{}".format, range(9999)) if part_of(n) == part), number, None))


def example(source: str, target: str) -> Example:
    return Example(source, target, (target,))


def test_groups_stay_together_and_shared_texts_are_for_training():
    rows = [
        (page("test"), example("only here", "a")),
        (page("test"), example("everywhere", "b")),
        (page("train"), example("everywhere", "c")),
        (page("valid"), example("held out", "d")),
        (page("valid", 1), example("held out", "e")),
        (page("train"), example("seen", "f")),
    ]
    parts = split_grouped(rows)
    assert parts["test"] == [example("only here", "a")]
    assert parts["valid"] == [Example("held out", "d", ("d", "e"))], "rows of one source are one example"
    assert parts["train"] == [Example("everywhere", "b", ("b", "c")), example("seen", "f")]


def test_a_piece_that_was_seen_takes_its_row_and_what_hangs_on_it_into_training():
    rows = [
        (page("train"), example("de1|fr1", "a")),
        (page("test"), example("de1|fr2", "b")),  # de1 was seen, so fr2 is seen now as well
        (page("valid"), example("de3|fr2", "c")),
        (page("test"), example("de4|fr4", "d")),
    ]
    parts = split_grouped(rows, lambda source: source.split("|"))
    assert [e.target for e in parts["train"]] == ["a", "b", "c"]
    assert [e.target for e in parts["test"]] == ["d"] and parts["valid"] == []


# ---------------------------------------------------------------- libreoffice-help


def help_page(paragraphs: dict[str, str]) -> str:
    body = "".join(f'<p id="{i}" class="paragraph" dir="auto">{text}</p>\n' for i, text in paragraphs.items())
    return f'<html><head><title>x</title></head><body><p dir="auto">no id</p><h1 id="hd_1">Title &amp; more</h1>{body}</body></html>'


def test_help_paragraphs_have_ids_plain_text_and_the_default_variant():
    switch = (
        '<span id="s" class="switchinline"><span hidden="true" id="M" class="MAC"><span class="k">Command</span></span>'
        '<span hidden="true" id="d"><span class="k">Ctrl</span></span></span><span class="k"> + F</span>'
    )
    first = (
        '<span class="switchinline"><span hidden="true" class="WRITER">text</span>'
        '<span hidden="true" class="CALC">sheet</span></span>'
    )
    content = help_page(
        {"par_1": f"Press {switch} to\n  search.", "par_2": f"A {first}.", "par_3": '<img src="x">', "x": "no"}
    )
    assert list(libreoffice_help.units(content)) == [
        ("hd_1", "Title & more"),
        ("par_1", "Press Ctrl + F to search."),
        ("par_2", "A text."),
    ]


def test_help_pages_are_aligned_by_page_and_id(tmp_path):
    path = tmp_path / "toy.deb"
    place = "./usr/share/libreoffice/help"
    path.write_bytes(
        deb(
            {
                f"{place}/pt-BR/text/shared/a.html": help_page({"par_1": "um dois"}),
                f"{place}/pt/text/shared/a.html": help_page({"par_1": "other"}),
                f"{place}/pt-BR/media/x.html": "no page",
            }
        )
    )
    found = libreoffice_help.read(path, "pt-br")
    assert found == {("shared/a", "hd_1"): "Title & more", ("shared/a", "par_1"): "um dois"}
    with pytest.raises(DataError, match="no help pages"):
        libreoffice_help.read(path, "fr")
    de = {("p", "1"): "eins zwei", ("p", "2"): "Wort", ("p", "3"): "gleich alles", ("q", "1"): "x " * 81}
    en = {("p", "1"): "one", ("p", "2"): "some words", ("p", "3"): "gleich alles", ("q", "1"): "many words"}
    fr = {("p", "1"): "un"}
    assert list(libreoffice_help.aligned([de, en])) == [("p", example("eins zwei", "one"))]
    assert list(libreoffice_help.aligned([en, de])) == [("p", example("some words", "Wort"))]
    both = list(libreoffice_help.aligned([de, fr, en]))
    assert both == [("p", example(f"eins zwei {SEPARATOR} un", "one"))]


@pytest.mark.parametrize("units", ["chars", "words", "bpe"])
def test_the_separator_is_one_symbol(units):
    texts = [f"eins zwei {SEPARATOR} un deux", f"drei {SEPARATOR} trois"]
    field = TextField.learn(texts, units, size=300)
    field = TextField.from_json(field.to_json())
    at = field.id_of(SEPARATOR)
    assert at is not None and [field.encode(text).count(at) for text in texts] == [1, 1]
    assert [field.decode(field.encode(text)) for text in texts] == texts


def test_a_shared_vocabulary_is_one_field(tmp_path):
    rows = [example(f"word{i} abc", f"abc wort{i}") for i in range(20)]
    corpus = corpora.Corpus("toy", "pairs", rows, rows[:2], rows[2:4], "bpe", "bpe", vocabulary=280, shared=True)
    prepared = prepare(corpus)
    assert prepared.spec.source is prepared.spec.target and prepared.spec.source.size <= 280
    assert prepare(corpus, vocabulary=270).spec.target.size <= 270
    apart = prepare(corpora.Corpus("toy", "pairs", rows, rows[:2], rows[2:4], "words", "words"))
    assert "wort3" not in apart.spec.source.symbols and "wort3" in apart.spec.target.symbols


# ---------------------------------------------------------------- debian-descriptions


ENGLISH = """Package: foo-1.2
Description-md5: aaa
Description-en: tool that does foo
 Foo does what foo does,
 and does it well enough for all.
 .
 It has a list:
  * of one

Package: bar
Description-md5: bbb
Description-en: bar
 Only one paragraph stands here.
"""
GERMAN = """Package: foo-1.2
Description-md5: aaa
Description-de: Werkzeug für Foo
 Foo tut, was Foo tut,
 und zwar gut.
 .
 Es hat eine Liste: * mit einem

Package: bar
Description-md5: bbb
Description-de: Bar
 Ein Absatz.
 .
 Noch ein Absatz, den es dort nicht gibt.
"""
PACKAGES = """Package: foo-1.2
Source: foo-suite-3.4 (3.4-1)
Version: 1

Package: bar
Version: 2
Depends: foo
"""


def test_descriptions_are_cut_into_paragraphs():
    found = debian_descriptions.descriptions(ENGLISH)
    assert found["aaa"] == (
        "foo-1.2",
        "tool that does foo",
        ("Foo does what foo does, and does it well enough for all.", "It has a list: * of one"),
    )
    assert found["bbb"].paragraphs == ("Only one paragraph stands here.",)


def test_packages_are_grouped_by_source_without_versions():
    groups = debian_descriptions.families(PACKAGES)
    assert groups == {"foo-1.2": "foo-suite", "bar": "bar"}
    families = {debian_descriptions.family(name) for name in ("gcc-11", "gcc-12.2", "gcc")}
    assert families == {"gcc"} and debian_descriptions.family("4") == "4"


def test_synopses_and_paragraphs_are_aligned_where_their_number_agrees():
    versions = [debian_descriptions.descriptions(text) for text in (ENGLISH, GERMAN)]
    groups = debian_descriptions.families(PACKAGES)
    rows = sorted(debian_descriptions.aligned(versions, groups))
    assert {group for group, _ in rows} == {"foo-suite"}  # "bar" has one word and other paragraphs
    assert [(e.source, e.target) for _, e in rows] == [
        ("Foo does what foo does, and does it well enough for all.", "Foo tut, was Foo tut, und zwar gut."),
        ("It has a list: * of one", "Es hat eine Liste: * mit einem"),
        ("tool that does foo", "Werkzeug für Foo"),
    ]
    alone = debian_descriptions.aligned(versions, groups, paragraphs=False)
    assert sorted((e.source, e.target) for _, e in alone) == [
        ("bar", "Bar"),
        ("tool that does foo", "Werkzeug für Foo"),
    ]
    ((group, only),) = debian_descriptions.summaries(versions[0], groups)
    assert group == "foo-suite" and only.target == "tool that does foo" and only.source.endswith("* of one")


def test_the_index_is_read_plain_or_compressed_and_a_newer_one_is_named(cache, tmp_path, capsys):
    (tmp_path / "debian-bookworm").mkdir()
    (tmp_path / "Translation-en.xz").write_bytes(lzma.compress(ENGLISH.encode()))
    (tmp_path / "debian-bookworm" / "Packages").write_text(PACKAGES)
    assert _debian_index.read(["Packages", "Translation-en"], tmp_path) == [PACKAGES, ENGLISH]
    assert capsys.readouterr().err.count("another version") == 2
    (tmp_path / "Translation-en.xz").write_bytes(b"no xz")
    with pytest.raises(DataError, match="cannot be read"):
        _debian_index.read(["Translation-en"], tmp_path)


def test_the_index_comes_from_apt_else_from_a_mirror(cache, monkeypatch):
    def client(command, cwd, **_):
        own = dict(word.split("=", 1) for word in command if word.startswith(("Dir::", "APT::")))
        assert all(own[key].startswith(str(cache)) for key in ("Dir::State::lists", "Dir::Cache"))
        assert own["Dir::Etc::sourceparts"] == "/dev/null"
        assert 'Languages { "de"; }' in (cwd / "apt.conf").read_text()
        (cwd / "lists" / "deb.debian.org_dists_bookworm_main_i18n_Translation-de").write_text(GERMAN)
        return subprocess.CompletedProcess(command, 0)

    packed = lzma.compress(PACKAGES.encode())
    monkeypatch.setattr(_debian_index.subprocess, "run", client)
    monkeypatch.setattr(_debian_index, "download", lambda address: packed)
    assert _debian_index.read(["Translation-de", "Packages"]) == [GERMAN, PACKAGES]
    kept = sorted(p.name for p in (cache / "debian-bookworm").iterdir())
    assert kept == ["Packages.gz", "Translation-de.gz"], "nothing temporary stays"
    assert gzip.decompress((cache / "debian-bookworm" / "Packages.gz").read_bytes()).decode() == PACKAGES


def test_an_index_that_cannot_be_had_is_named_with_its_address(cache, monkeypatch):
    def offline(*_, **__):
        raise OSError

    monkeypatch.setattr(_debian_index.subprocess, "run", offline)
    monkeypatch.setattr(_debian_index, "download", offline)
    with pytest.raises(DataError, match="Translation-fr was not found.*i18n/Translation-fr.bz2.*--data-dir"):
        _debian_index.read(["Translation-fr"])


# ---------------------------------------------------------------- sotu, python-stdlib, mnist


def test_the_last_tenth_of_the_years_is_for_test():
    addresses = [(f"{year}_x", year, f"speech’s {year}") for year in range(1950, 2010)]
    addresses.append(("2009_y", 2009, " second speech of a year "))
    parts = sotu.split(reversed(addresses))
    assert [len(parts[p]) for p in ("train", "valid", "test")] == [51, 3, 7]
    assert parts["test"][-1] == "second speech of a year" and parts["train"][0] == "speech's 1950"


def test_library_files_keep_their_package_together(tmp_path):
    tops = [page("train"), page("valid"), page("test")]
    for top in tops:
        (tmp_path / top / "tests").mkdir(parents=True)
        (tmp_path / top / "a.py").write_text(f"# {top} a")
        (tmp_path / top / "b.py").write_bytes(b"# latin \xe9")
        (tmp_path / top / "tests" / "c.py").write_text("# a test")
    (tmp_path / f"{page('test', 1)}.py").write_text("# module")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "x.py").write_text("# installed")
    assert python_stdlib.texts(tmp_path) == {
        "train": [f"# {tops[0]} a"],
        "valid": [f"# {tops[1]} a"],
        "test": sorted([f"# {tops[2]} a", "# module"], key=lambda t: t == "# module"),
    }


def table(digits: list[int]) -> bytes:
    rows = [",".join([str(d)] + [str((d * 50 + i) % 256) for i in range(784)]) for d in digits]
    return ("\n".join(["label," + ",".join(f"p{i}" for i in range(784)), *rows]) + "\n").encode()


def test_digits_are_read_and_written_in_16_grey_levels():
    images = mnist.parse(table([3, 0]))
    assert images.pixels.shape == (2, 28, 28) and images.pixels.dtype == np.uint8
    assert images.digits.tolist() == [3, 0] and images.pixels[0, 0, 0] == 150 and images.pixels[1, 27, 27] == 783 % 256
    first, second = mnist.examples(images)
    assert first.target == "3" and len(first.source) == 784 and first.source[:11] == "9" * 10 + "a"
    assert second.source.startswith("0" * 16 + "1")


@pytest.mark.parametrize("damaged", [b"", b"header\n", table([1])[:-20], table([1]).replace(b"\n1,", b"\n11,")])
def test_a_damaged_table_of_digits_is_refused(damaged):
    with pytest.raises(DataError, match="damaged"):
        mnist.parse(damaged)
