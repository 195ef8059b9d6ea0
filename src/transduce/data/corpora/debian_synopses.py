"""One-line synopses of Debian's packages in several languages: a small set of short, real translations.

``debian-synopses``: from English to German; ``debian-synopses:de+fr-en`` and so on: any of 15 languages, aligned by the MD5
of the English description that was translated. The synopses are those of :mod:`.debian_descriptions`, split like them,
without the paragraphs.
"""

from __future__ import annotations

import os

from ..batching import Corpus
from . import _debian_index as index
from . import debian_descriptions as descriptions
from ._directions import direction, sentence_pairs

NAME, VARIANT = "debian-synopses", "en-de"


def load(data_dir: str | os.PathLike | None = None, variant: str = VARIANT) -> Corpus:
    chosen = direction(NAME, variant, descriptions.LANGUAGES)
    versions, groups = descriptions.read(chosen.languages, data_dir)
    return sentence_pairs(
        NAME if str(chosen) == VARIANT else f"{NAME}:{chosen}",
        sorted(descriptions.aligned(versions, groups, paragraphs=False)),
        licence=descriptions.LICENCE,
        origin=f"synopses in the package index of Debian {index.RELEASE}, main, {chosen}",
        metrics=chosen.metrics,
        vocabulary=4000,
    )
