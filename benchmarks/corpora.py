"""Trivial baselines of the built-in corpora, on their test parts: what a model has to beat.

    python benchmarks/corpora.py libreoffice-help libreoffice-help:en-fr sotu ...

Translations: the source copied as the answer (the first of several), BLEU and chrF. Summaries: the first eight words,
ROUGE. Texts: bits per symbol of a unigram model of the training part, and of gzip -9 and xz -9e on the test text alone.
mnist: the most frequent digit, and the nearest mean image.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import math
from collections import Counter

import numpy as np

from transduce.data import Corpus, load_corpus
from transduce.data.fields import SEPARATOR
from transduce.data.metrics import TRANSLATION, described, measures

NAMES = (
    "libreoffice-help", "libreoffice-help:en-fr", "libreoffice-help:de+fr-en", "debian-descriptions",
    "debian-descriptions:en-de", "debian-descriptions:en-fr",
    "debian-synopses", "debian-synopses:de+fr-en", "sotu", "python-stdlib", "mnist",
)  # fmt: skip
LEAD = 8


def text_baselines(corpus: Corpus) -> str:
    """Bits per symbol: characters, or bytes where the corpus is split into them."""
    seen, held_out = (join(part, corpus) for part in (corpus.train, corpus.test))
    counts = Counter(seen)
    size, total = len(set(counts) | set(held_out)), len(seen)
    unigram = sum(-math.log2((counts[s] + 1) / (total + size)) * n for s, n in Counter(held_out).items())
    content = held_out if isinstance(held_out, bytes) else held_out.encode()
    packed = [len(gzip.compress(content, 9)), len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))]
    found = [unigram, *(8 * n for n in packed)]
    unigram, zipped, xz = (bits / len(held_out) for bits in found)
    return f"unigram {unigram:.3f}, gzip {zipped:.3f}, xz {xz:.3f} bits per symbol"


def join(part, corpus: Corpus) -> str | bytes:
    text = "".join(e.target for e in part)
    return text.encode() if corpus.target_units == "bytes" else text


def pair_baselines(corpus: Corpus) -> str:
    references = [e.references for e in corpus.test]
    if corpus.metrics and set(corpus.metrics) <= set(TRANSLATION):
        copies = [e.source.split(f" {SEPARATOR} ")[0] for e in corpus.test]
        return f"copied source: {described(measures(corpus.metrics, copies, references))}"
    lead = [" ".join(e.source.split()[:LEAD]) for e in corpus.test]
    return f"first {LEAD} words: {described(measures(corpus.metrics, lead, references))}"


def digit_baselines(data_dir: str | None) -> str:
    from transduce.data.corpora.mnist import load_images

    images = load_images(data_dir)
    seen, held_out = images["train"], images["test"]
    means = np.stack([seen.pixels[seen.digits == d].mean(0).ravel() for d in range(10)])
    pixels = held_out.pixels.reshape(len(held_out.digits), -1).astype(np.float64)
    nearest = ((means**2).sum(1) - 2 * pixels @ means.T).argmin(1)
    usual = np.bincount(seen.digits).argmax()
    wrong = [100 * float((guess != held_out.digits).mean()) for guess in (usual, nearest)]
    return f"most frequent digit {wrong[0]:.2f} %, nearest mean image {wrong[1]:.2f} % digit error"


def main() -> None:
    parser = argparse.ArgumentParser(description="Trivial baselines of the built-in corpora.")
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--data-dir", help="folder with data files that are not fetched")
    options = parser.parse_args()
    for name in options.names:
        corpus = load_corpus(name, data_dir=options.data_dir)
        rows = " / ".join(f"{len(part):,}" for part in (corpus.train, corpus.valid, corpus.test))
        if name == "mnist":
            found = digit_baselines(options.data_dir)
        else:
            found = text_baselines(corpus) if corpus.kind == "text" else pair_baselines(corpus)
        print(f"{name}: {rows} rows; {found}", flush=True)


if __name__ == "__main__":
    main()
