"""Fields: how one column of text becomes symbols, and back."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Any, Iterable, Literal

from transduce.core.errors import DataError
from transduce.core.seq import BOS, EOS, PAD, UNK

from .points import PointField, PositionField

Units = Literal["chars", "words", "bytes", "bpe"]
UNITS = ("chars", "words", "bytes", "bpe")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
SEPARATOR = "\N{SYMBOL FOR UNIT SEPARATOR}"
"""Stands between the parts of a source that is made of several (sentences of a story, versions of a text): one
symbol for characters and BPE, and for words where white space surrounds it."""
BYTES = (*SPECIAL, *(f"<{b:02x}>" for b in range(256)))
_SURROGATE = re.compile("[\ud800-\udfff]")
assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)


@dataclass(frozen=True)
class TextField:
    """A text column with its vocabulary.

    ``units``: "chars" (Unicode characters after NFC normalisation, spaces included), "words" (tokens
    between white space, after NFC normalisation), "bytes" (UTF-8 as it is, always 256 symbols) or "bpe"
    (byte-pair encoding after NFC normalisation, package ``tokenizers``). Bytes and BPE write every text, so
    no symbol is unknown to them. ``symbols``: symbol of each id; the first four are padding, begin, end and
    unknown, and no text is ever encoded as one of the first three, even where it spells their names.

    Raises :class:`DataError` for a vocabulary that cannot be right.
    """

    units: Units
    symbols: tuple[str, ...]
    tokenizer_json: str | None = None

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise DataError(f'Text is split into {", ".join(UNITS)}, not into "{self.units}".')
        if tuple(self.symbols[:4]) != SPECIAL or len(set(self.symbols)) != len(self.symbols):
            raise DataError(
                "This vocabulary is damaged: its first four symbols or its order are not what was saved."
            )
        ids = {s: i for i, s in enumerate(self.symbols) if i > UNK}
        bpe = _load_bpe(self.tokenizer_json) if self.units == "bpe" else None
        if self.units == "bytes":
            right = tuple(self.symbols) == BYTES
        elif bpe is not None:
            right = bpe.get_vocab() == {s: i for i, s in enumerate(self.symbols)}
        else:
            right = all(_pieces(s, self.units) == [s] for s in ids)
        if not right:
            raise DataError(f"This vocabulary is damaged: its symbols are not {self.units}.")
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_bpe", bpe)

    @classmethod
    def learn(cls, texts: Iterable[str], units: Units, *, size: int = 8000, min_count: int = 1) -> TextField:
        """The vocabulary of a column: its ``size`` most frequent symbols of at least ``min_count`` uses."""
        if units == "bytes":
            return cls("bytes", BYTES)
        if units == "bpe":
            return _learn_bpe(texts, size)
        if units not in UNITS:
            raise DataError(f'Text is split into {", ".join(UNITS)}, not into "{units}".')
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_pieces(text, units))
        for special in SPECIAL:
            counts.pop(special, None)
        kept = sorted((s for s, n in counts.items() if n >= min_count), key=lambda s: (-counts[s], s))[:size]
        if not kept:
            raise DataError("This column holds no text: every row is empty.")
        return cls(units, (*SPECIAL, *sorted(kept)))

    @property
    def size(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Ids without BOS and EOS; unknown symbols become UNK."""
        if self.units == "bytes":
            return [4 + b for b in _writable(text).encode("utf-8")]
        if self.units == "bpe":
            return self._bpe.encode(_normal(_writable(text))).ids
        ids = self._ids
        return [ids.get(piece, UNK) for piece in _pieces(text, self.units)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; padding, begin and end are left out, unknown symbols read ``<unk>``."""
        known = [i for i in ids if i > EOS]
        if self.units == "bytes":
            return bytes(i - 4 for i in known if i > UNK).decode("utf-8", errors="replace")
        if self.units == "bpe":
            return self._bpe.decode([i for i in known if i != UNK])
        return ("" if self.units == "chars" else " ").join(self.symbols[i] for i in known)

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The symbols of ids, for tables and pictures."""
        return [self.symbols[i] for i in ids if i > EOS]

    def unknown(self, text: str) -> list[str]:
        """Symbols of ``text`` that are not in the vocabulary, each once.

        For bytes and BPE these are lone surrogates only, which no encoding writes.
        """
        if self.units in ("bytes", "bpe"):
            return lone_surrogates(text)
        return [s for s in dict.fromkeys(_pieces(text, self.units)) if s not in self._ids]

    def id_of(self, symbol: str) -> int | None:
        """The id of one symbol; None where the vocabulary lacks it."""
        return self._ids.get(symbol)

    def to_json(self) -> dict[str, Any]:
        return {"units": self.units, "symbols": list(self.symbols), "tokenizer": self.tokenizer_json}

    @classmethod
    def from_json(cls, stored: Any) -> TextField:
        try:
            symbols = stored["symbols"]
            if not all(isinstance(s, str) for s in symbols):
                raise TypeError
            return cls(stored["units"], tuple(symbols), stored.get("tokenizer"))
        except (TypeError, KeyError, AttributeError):
            raise DataError(
                "This vocabulary is damaged: it is not a list of symbols with its units."
            ) from None


Field = TextField | PointField | PositionField
"""What one column is."""

_OTHER: dict[str, type] = {PointField.units: PointField, PositionField.units: PositionField}
"""Fields that are not text, by their units."""


def learn_field(texts: Iterable[str], units: str, *, side: str, size: int = 8000) -> Field:
    """The field of a column, of a kind given by its ``units``. ``side``: "source" or "target"."""
    if units in _OTHER:
        if (units == "points") != (side == "source"):
            raise DataError(f"A {side} is not made of {units}: points stand in sources, positions in targets.")
        return _OTHER[units].learn(texts)
    return TextField.learn(texts, units, size=size)


def field_from_json(stored: Any) -> Field:
    """The inverse of every field's ``to_json``. Raises :class:`DataError`."""
    units = stored.get("units") if isinstance(stored, dict) else None
    return _OTHER.get(units, TextField).from_json(stored) if isinstance(units, str) else TextField.from_json(stored)


@dataclass(frozen=True)
class DataSpec:
    """What a system is built from: the fields of the data and their longest rows, in symbols."""

    source: TextField | PointField | None
    target: TextField | PositionField
    longest_source: int
    longest_target: int

    def to_json(self) -> dict[str, Any]:
        return {
            "source": None if self.source is None else self.source.to_json(),
            "target": self.target.to_json(),
            "longest_source": self.longest_source,
            "longest_target": self.longest_target,
        }

    @classmethod
    def from_json(cls, stored: Any) -> DataSpec:
        try:
            source = stored["source"]
            return cls(
                None if source is None else field_from_json(source),
                field_from_json(stored["target"]),
                int(stored["longest_source"]),
                int(stored["longest_target"]),
            )
        except (TypeError, KeyError, ValueError) as problem:
            if isinstance(problem, DataError):
                raise
            raise DataError("This model's description of its data is damaged.") from None


def lone_surrogates(text: str) -> list[str]:
    """Halves of characters that no encoding can write, each once: broken bytes of a command line, broken JSON."""
    return [] if text.isascii() else list(dict.fromkeys(_SURROGATE.findall(text)))


def _normal(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _writable(text: str) -> str:
    """The text with U+FFFD for lone surrogates."""
    return text if text.isascii() else _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def _pieces(text: str, units: str) -> list[str]:
    text = _normal(text)
    return list(text) if units == "chars" else text.split()


def _tokenizers():
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            'Byte-pair encoding needs the package tokenizers: pip install "transduce[bpe]".'
        ) from None
    return tokenizers


def _load_bpe(stored: str | None):
    if stored is None:
        raise DataError("This vocabulary is damaged: its byte-pair encoding is missing.")
    tokenizers = _tokenizers()
    try:
        model = tokenizers.Tokenizer.from_str(stored)
        model.encode_special_tokens = True  # a text that spells "<eos>" must not end the sequence
        return model
    except Exception:  # the library raises bare Exception for a text that is no tokenizer
        raise DataError("This vocabulary is damaged: its byte-pair encoding cannot be read.") from None


def _learn_bpe(texts: Iterable[str], size: int) -> TextField:
    """Byte-level BPE (Sennrich et al. 2016 over bytes): every text can be written, so nothing is unknown."""
    tokenizers = _tokenizers()
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    separated = False

    def written() -> Iterable[str]:
        nonlocal separated
        for text in texts:
            separated = separated or SEPARATOR in text
            yield _normal(text).replace(SEPARATOR, " ")

    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=max(size, 260),
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(written(), trainer)
    if separated:  # one symbol of its own, whatever stands beside it, so that a model can cut at its id
        model.add_tokens([tokenizers.AddedToken(SEPARATOR, normalized=False, special=False)])
    symbols = sorted(model.get_vocab().items(), key=lambda item: item[1])
    return TextField("bpe", tuple(s for s, _ in symbols), model.to_str())
