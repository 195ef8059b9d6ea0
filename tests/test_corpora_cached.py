"""The real corpora, whole, where their archives already lie in the cache: sizes, parts apart, and what they hold."""

import itertools

import pytest

from transduce.data import corpora, fetch, load_corpus
from transduce.data.corpora import _debian_index, digits, libreoffice_help, mnist, sotu
from transduce.data.fields import SEPARATOR


def cached(*archives):
    """Skips where a pinned archive is not there: these tests never fetch."""
    missing = [a.filename for a in archives if not (fetch.cache_dir() / a.client / a.filename).is_file()]
    return pytest.mark.skipif(bool(missing), reason=f"not in the cache: {', '.join(missing)}")


def indexed(*names):
    places = [fetch.cache_dir() / _debian_index.FOLDER]
    missing = [name for name in names if _debian_index._find(name, places) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not in the cache: {', '.join(missing)}")


def parts(corpus):
    return [getattr(corpus, part) for part in ("train", "valid", "test")]


def sizes(corpus):
    return tuple(map(len, parts(corpus)))


def assert_parts_are_apart(corpus):
    found = [{piece for e in part for piece in e.source.split(f" {SEPARATOR} ")} for part in parts(corpus)]
    assert not any(a & b for a, b in itertools.combinations(found, 2))


@cached(*map(libreoffice_help.archive, ("en", "de")))
def test_libreoffice_help():
    corpus = load_corpus("libreoffice-help")
    assert sizes(corpus) == (28594, 968, 2739)
    assert_parts_are_apart(corpus)
    assert corpus.name == load_corpus("libreoffice-help:en-de").name == "libreoffice-help"
    assert all("<" not in e.target or ">" not in e.target or "&" in e.source or "<" in e.source for e in corpus.test)


@cached(*map(libreoffice_help.archive, ("en", "de", "fr")))
def test_several_sources_are_test_rows_of_each_alone():
    both = load_corpus("libreoffice-help:de+fr-en")
    assert both.name == "libreoffice-help:de+fr-en" and sizes(both) == (26672, 953, 2308)
    assert_parts_are_apart(both)
    alone = {e.source for e in load_corpus("libreoffice-help:de-en").test}
    assert {e.source.split(f" {SEPARATOR} ")[0] for e in both.test} <= alone


@indexed("Packages", "Translation-en")
def test_debian_summaries():
    corpus = load_corpus("debian-descriptions")
    assert sum(sizes(corpus)) > 55_000 and min(sizes(corpus)) > 1000
    assert_parts_are_apart(corpus)


@indexed("Packages", "Translation-en", "Translation-de")
def test_debian_translations():
    corpus = load_corpus("debian-descriptions:en-de")
    assert sum(sizes(corpus)) > 30_000 and corpus.metrics == ("bleu", "chrf")
    assert_parts_are_apart(corpus)


@indexed("Packages", "Translation-en", "Translation-de", "Translation-fr")
def test_debian_synopses_from_two_languages():
    several = load_corpus("debian-synopses:de+fr-en")
    assert sum(sizes(several)) > 8000 and min(sizes(several)) > 100
    assert_parts_are_apart(several)
    assert all(e.source.count(SEPARATOR) == 1 and "\n" not in e.target for e in several.test)


@cached(sotu.ARCHIVE)
def test_sotu():
    corpus = load_corpus("sotu")
    assert [sum(len(e.target) for e in part) for part in parts(corpus)] == [9543382, 400334, 816071]


@cached(mnist.ARCHIVE)
def test_mnist():
    corpus = corpora.load("mnist")
    assert sizes(corpus) == (55000, 5000, 10000)
    assert "".join(e.target for e in corpus.train[:10]) == "5041921314"
    assert all(len(e.source) == 784 for e in corpus.test)


@cached(digits.ARCHIVE)
def test_small_digits():
    corpus = corpora.load("digits")
    assert sizes(corpus) == (1200, 200, 397)
    assert "".join(e.target for e in corpus.train[:10]) == "0123456789"
    assert all(len(e.source) == 64 and set(e.source) <= set("0123456789abcdefg") for e in corpus.test)


def test_python_stdlib():
    corpus = load_corpus("python-stdlib")
    text = "".join(e.target for e in corpus.test)
    assert len(text) > 500_000 and "def " in text and corpus.windowed
