"""When two sources are the same one."""

from __future__ import annotations

import hashlib
import unicodedata


def same_source(text: str) -> str:
    """What two texts share that count as one source: Unicode normal form NFC, white space in single spaces.

    However it was typed, a source must not stand in training and in the test.
    """
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def fingerprint(source: str) -> tuple[int, int]:
    """(the first eight bytes of the SHA-1 of :func:`same_source`, the whole of it modulo 100)."""
    digest = hashlib.sha1(same_source(source).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest, "big") % 100
