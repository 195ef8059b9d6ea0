"""LibreOffice's help pages as a translation corpus: paragraphs aligned by their ids, split by page.

``libreoffice-help`` is English to German; ``libreoffice-help:en-fr`` chooses another direction among 34 languages, and
``libreoffice-help:de+fr-en`` joins several versions of a paragraph into one source with the separator of
:mod:`transduce.data.fields` between them. Kept are paragraphs whose first source has 2 to 80 words and whose other
versions have at most 80, and which differ in all of the languages. A page's path decides the part; a paragraph that
pages of several parts share is for training, with all of its versions, so that nothing held out was seen.

Where a text has variants for a system or a module, the default one is read, or else the first.
"""

from __future__ import annotations

import html
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Iterable, Iterator, Mapping

from transduce.core.errors import DataError

from ..archives import members
from ..batching import Corpus, Example
from ..fetch import Archive, fetch
from ._directions import direction, joined, sentence_pairs

NAME = "libreoffice-help"
VARIANT = "en-de"
VERSION = "7.4.7-1+deb12u14"
POOL = "https://deb.debian.org/debian/pool/main/libr/libreoffice"
SHORTEST, LONGEST = 2, 80
DIGESTS = {
    "ca": "194dfad8a2f1bc76a442a568d3eee13add77338ff081e177f8df6eb95e336ace",
    "cs": "9fcbf9b3cbbc1370d827d5bc59df0227fa95bdf3b5628b907ef5fb4d8d55be6a",
    "da": "53313a9c7a4bb25ff3d648ab629f69144a65adc4f67ad38da6e55b05165618c8",
    "de": "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
    "dz": "1380379dab641b8a9a4740474878e245bab22f9d3c2794b5585dcf025f24b749",
    "el": "ed4c905d0df5761be817f59381ce7c48fa50ec9cef5737c83e66aa7d3c898f79",
    "en-gb": "14255f4605fe2ca388ac70df7acce49da316e9c6f0f8d2c2435cbc7cc234a8bf",
    "en": "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
    "es": "9128a84d83d92c8b1c618d90469d16affddb7d1290b09d42a0c5109cb16f0480",
    "et": "e52d7115195642283a14c052e610957cbed8435f06beb35139823722c8942839",
    "eu": "e88eaa5da5d9254a7c9bc1a6ac89d04758380adc044f9a007f666de68ef9aa91",
    "fi": "47b0bf9820e7eef19de7d56400aae8139de26eca4f3d72f57d6769c751630f26",
    "fr": "c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206",
    "gl": "c1cf71cc98ed2c08060bfcf55cbc03d3d72e0fe7c3f5192b034c87cbf6b6e679",
    "hi": "fda6f59354cb79f7ecfe379a502b009119a506aa0873416b044f1f39ad00a4cf",
    "hu": "d4ae75812fdeb6f2b03fac6bc0f95d3f6824b75706930e806d41c751e68ffe27",
    "id": "5aa8c2894f8638fb2ec50cce72f81e9559f9baf45845c40b990b7f046e3f73d4",
    "it": "7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212",
    "ja": "7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9",
    "km": "58700c6513c15d78e6dbbfda82b05f45fcb5a8acf0832f3dca50918d71e27f50",
    "ko": "7ef2d854e9ed58e6bf861cfa9fa2579555233f9df874baf327fcb07ccd190669",
    "nl": "8b4b49a7d1bd0df3aa4693eeebe3f6886655427eaf736d9289c5ff6fbf489591",
    "om": "97c58a5f6b34a871594c807b034c5d5dce693d10e089a41c5faf1e50cf37bf8b",
    "pl": "27441ce6d1303524b223aa94a17356bf7195f388d9b05a9e5e346866d7983694",
    "pt": "0130802d755de8666c663cc0745ba7a23d546d35a918f349a7a9adb78d16e7a4",
    "pt-br": "600d4294e52a6534be923521aff7b1b9eb7e6ddb7e30b2598ad04b2fe9cf8278",
    "ru": "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2",
    "sk": "a7f7bb474998c355370f1e6dd91a01618ace47e2c408d957406457f0c74c90ea",
    "sl": "98c06e58e4cf90c5ccc98d5d7bb069edbbf64845dcdf485cce24a16598d40c90",
    "sv": "1b34145188f08aff7029fdc1ae378141494743d93cb09d9a3e782a229941ab66",
    "tr": "8fe832104805b66d2dc5c153564bcc55b5a084e10b3c3a3ea773c4b57659bfb8",
    "vi": "fcc4f84cd28d094f8663d1b68b98a7d562f3c71c8beeb71401c4859f1027aaaf",
    "zh-cn": "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee",
    "zh-tw": "f79cb2bee8d8d783efd825051a957b4c97a56dad5a05bde0ee90e66099331209",
}

_UNIT = re.compile(r'<(p|h[1-6])\b[^>]*?\bid="((?:par|hd|tit)[^"]*)"[^>]*>(.*?)</\1>', re.DOTALL)
_TAG = re.compile(r"<(/?)(\w+)([^>]*)>|([^<]+)")


def archive(language: str) -> Archive:
    """The pinned package of a language."""
    package = f"{NAME}-{'en-us' if language == 'en' else language}"
    name = f"{package}_{VERSION}_all.deb"
    return Archive(
        "debian",
        package,
        f"4:{VERSION}",
        name.replace("_", "_4%3a", 1),
        DIGESTS[language],
        f"{POOL}/{name}",
    )


def units(page: str) -> Iterator[tuple[str, str]]:
    """Id and text of every paragraph and heading of an HTML page that has both."""
    for unit in _UNIT.finditer(page):
        text = " ".join(html.unescape(_plain(unit[3])).split())
        if text:
            yield unit[2], text


def _plain(content: str) -> str:
    """Text without tags. Of the variants inside a ``<span class="switchinline">``, each a hidden span of its own,
    the one without a class is the default."""
    if "switchinline" not in content:
        return re.sub(r"<[^>]+>", "", content)
    kept: list[str] = []  # text outside of variants
    variants: list[tuple[bool, list[str]]] = []  # of the switch being read: is it the default, its text
    depth = switch = variant = 0  # nested spans, and at which depth the switch and the variant were opened
    for closing, tag, attributes, text in _TAG.findall(content):
        if text:
            (variants[-1][1] if variant else kept).append(text)
        elif tag == "span" and not closing:
            depth += 1
            if 'class="switchinline"' in attributes and not switch:
                switch, variants = depth, []
            elif switch and not variant and "hidden" in attributes:
                variant = depth
                variants.append(("class=" not in attributes, []))
        elif tag == "span":
            if depth == variant:
                variant = 0
            elif depth == switch:
                switch = 0
                kept += next((words for usual, words in variants if usual), variants[0][1] if variants else [])
            depth -= 1
    return "".join(kept)


@lru_cache(maxsize=4)
def read(path: Path, language: str) -> dict[tuple[str, str], str]:
    """Text of every paragraph in a package, by page and id."""
    code, _, land = ("en-us" if language == "en" else language).partition("-")
    place = re.compile(rf"usr/share/libreoffice/help/{code}{f'-{land.upper()}' if land else ''}/text/(.+)\.html")
    found: dict[tuple[str, str], str] = {}
    for name, content in members(path, lambda name: place.fullmatch(name) is not None):
        page = place.fullmatch(name)[1]
        for unit, text in units(content.decode("utf-8", errors="replace")):
            found[page, unit] = text
    if not found:
        raise DataError(f"{path} holds no help pages in the language {language}; remove it and fetch it again.")
    return found


def aligned(versions: list[Mapping[tuple[str, str], str]]) -> Iterable[tuple[str, Example]]:
    """``(page, example)`` of each paragraph that all versions have; the last one is the target."""
    for key in sorted(set(versions[0]).intersection(*versions[1:])):
        *sources, target = texts = [version[key] for version in versions]
        lengths = [len(text.split()) for text in texts]
        if SHORTEST <= lengths[0] and max(lengths) <= LONGEST and target not in sources:
            yield key[0], Example(joined(sources), target, (target,))


def load(data_dir: str | os.PathLike | None = None, variant: str = VARIANT) -> Corpus:
    chosen = direction(NAME, variant, DIGESTS)
    versions = [read(fetch(archive(code), data_dir), code) for code in chosen.languages]
    return sentence_pairs(
        NAME if str(chosen) == VARIANT else f"{NAME}:{chosen}",
        aligned(versions),
        licence="MPL-2.0, The Document Foundation and contributors",
        origin=f"LibreOffice help, Debian package {NAME} {VERSION}, {chosen}",
        metrics=chosen.metrics,
        vocabulary=4000,
    )
