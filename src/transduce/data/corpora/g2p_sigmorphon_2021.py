"""SIGMORPHON 2021, task 1: American English words and their phonemes, with the official split (33,344 /
4,168 / 4,168).

The shared task's baseline makes 41.94 % word errors on the test part.
"""

from __future__ import annotations

import os

from ..batching import Corpus, Example
from ..fetch import find_file

FOLDER = "g2p-sigmorphon-2021"
ADDRESS = "https://raw.githubusercontent.com/sigmorphon/2021-task1/{commit}/data/high/{file}"
FILES = {
    "train": (
        "eng_us_train.tsv",
        "b025f4ee7ece536f674e83a92c4cd2bbf96e0bba",
        "bbe76f57ee799ef9094b1ed1fecf8861e754ac57c6aa4db7d5b18892c5401f7f",
    ),
    "valid": (
        "eng_us_dev.tsv",
        "ee8c46bc8f343cf630682d17f9b95063f9560d7b",
        "dcce99504c5f8a00ebf13499aa4d4c2b7fc37614b65127c98aa871855e77080e",
    ),
    "test": (
        "eng_us_test.tsv",
        "536f266999bbcb953b08772ddf360bc424c84e64",
        "726192932a69a7197348ee64898613e94968234ce426cfc67d984baf5ddd317c",
    ),
}


def parse(text: str) -> list[Example]:
    """Lines ``word TAB phonemes`` -> one example a word, with all of its pronunciations."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, spoken = line.partition("\t")
        if word and spoken.strip():
            found.setdefault(word, []).append(spoken.strip())
    return [Example(word, spoken[0], tuple(dict.fromkeys(spoken))) for word, spoken in found.items()]


def load(data_dir: str | os.PathLike | None = None) -> Corpus:
    parts = {}
    for name, (file, commit, digest) in FILES.items():
        address = ADDRESS.format(commit=commit, file=file)
        parts[name] = parse(find_file(f"{FOLDER}/{file}", digest, data_dir, address).read_text("utf-8"))
    return Corpus(
        FOLDER,
        "pairs",
        parts["train"],
        parts["valid"],
        parts["test"],
        "chars",
        "words",
        "word error",
        "phoneme error",
        licence="CC BY-SA 3.0",
        origin="SIGMORPHON 2021 shared task 1, eng_us",
    )
