"""Tiny Shakespeare: 1,115,394 characters of plays, cut into windows; 90 % train, 5 % valid, 5 % test in the
order of the text."""

from __future__ import annotations

import os

from ..batching import Corpus
from ..fetch import find_file
from ..files import windows

FILE = "tiny-shakespeare/input.txt"
DIGEST = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
ADDRESS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/"
    "d1d7aa34fdb3626174bce1d753e6cc6845ce7087/data/tinyshakespeare/input.txt"
)


def load(data_dir: str | os.PathLike | None = None, *, window: int = 256) -> Corpus:
    text = find_file(FILE, DIGEST, data_dir, ADDRESS).read_text("utf-8")
    first, second = len(text) * 90 // 100, len(text) * 95 // 100
    parts = [windows(part, window) for part in (text[:first], text[first:second], text[second:])]
    return Corpus(
        "shakespeare",
        "text",
        *parts,
        "chars",
        "chars",
        licence="public domain",
        origin="Tiny Shakespeare, collected for char-rnn",
        windowed=True,
    )
