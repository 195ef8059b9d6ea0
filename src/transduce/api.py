"""Use a trained model from Python: open it in one line, predict, score, evaluate, or walk it step by step."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Sequence

import torch
from torch import Tensor

from transduce import systems
from transduce.core import state as states
from transduce.core.dist import Categorical
from transduce.core.errors import BundleError, DataError
from transduce.core.protocols import Hypothesis, Model, Searcher, System
from transduce.core.seq import BOS, EOS, Batch, Seq
from transduce.data import DataSpec, Encoded, Example, TextField, batches, encode
from transduce.data.files import LONGEST
from transduce.search import Beam, LengthPenalty, Sample, align, ratio, score
from transduce.train import bundle
from transduce.train.evaluate import Evaluation, evaluate

BATCH_SYMBOLS = 16384
LENGTH = ratio(2.0, 10)


@dataclass(frozen=True)
class Prediction:
    """One answer: its text, its score (log-probability, normalised by length under a beam) and the score's
    parts."""

    text: str
    score: float
    hypothesis: Hypothesis = field(repr=False)


def load(path: str | os.PathLike, *, device: str = "cpu") -> Transducer:
    """Open a run folder or a bundle. Loading never runs code from a file.

    Raises :class:`BundleError`, one sentence, for a file that is damaged, foreign or newer than this version.
    """
    folder = Path(path)
    if (folder / "bundle" / "bundle.json").is_file():
        folder = folder / "bundle"
    elif (folder / "config.json").is_file() and not (folder / "bundle.json").is_file():
        raise BundleError(
            f"The run at {folder} has no bundle yet: it is still training or was stopped before its first save."
        )
    parts = bundle.read(folder)
    page = systems.find(parts.system_name)
    system = page.build(parts.spec, parts.config_as(page.config_type))
    parts.load_into(system.model)
    system.model.to(device).eval()
    return Transducer(system, parts.spec, parts.corpus, parts.metrics, folder, torch.device(device))


@dataclass(frozen=True)
class Transducer:
    """A trained model with its fields. Made by :func:`load`."""

    system: System
    spec: DataSpec
    corpus: dict[str, Any]
    metrics: dict[str, Any]
    path: Path
    device: torch.device

    @property
    def model(self) -> Model:
        return self.system.model

    @property
    def is_language_model(self) -> bool:
        return self.spec.source is None

    def searcher(self, beam: int | None = None, num_best: int = 1) -> Searcher:
        """The system's own greedy search, or a beam of the given width with length-normalised scores."""
        if beam is None and num_best == 1:
            return self.system.search
        width = max(beam or 5, num_best)
        return Beam(width, num_best=num_best, max_length=LENGTH, length=LengthPenalty(1.0))

    def predict(
        self,
        texts: str | Sequence[str],
        *,
        beam: int | None = None,
        num_best: int = 1,
        allow_unknown: bool = False,
    ) -> Any:
        """The answer to a text, or a list of answers to a list of texts; with ``num_best`` above 1 a list
        each.

        Raises :class:`DataError` for an empty or over-long text, or one with unknown symbols unless
        ``allow_unknown`` (they then read as the unknown symbol).
        """
        found = self.predictions(texts, beam=beam, num_best=num_best, allow_unknown=allow_unknown)
        answers = [[p.text for p in row] if num_best > 1 else (row[0].text if row else "") for row in found]
        return answers[0] if isinstance(texts, str) else answers

    def predictions(
        self,
        texts: str | Sequence[str],
        *,
        beam: int | None = None,
        num_best: int = 1,
        allow_unknown: bool = False,
    ) -> list[list[Prediction]]:
        """Like :meth:`predict`, with scores: an n-best list for each text."""
        if self.is_language_model:
            raise DataError(
                "This is a language model: give it the beginning of a text with continue_text() instead."
            )
        rows = [texts] if isinstance(texts, str) else list(texts)
        for text in rows:
            check_text(self.spec.source, text, allow_unknown)
        blank = [Example(text, "", ("",)) for text in rows]
        found: list[list[Prediction]] = [[] for _ in rows]
        if not rows:
            return found
        search = self.searcher(beam, num_best)
        for batch in batches(encode(blank, self.spec.source, self.spec.target), BATCH_SYMBOLS):
            hypotheses = search(self.model, replace(batch.to(self.device), target=None))
            for row, best in zip(batch.rows, hypotheses):
                found[row] = [Prediction(self.spec.target.decode(h.ids), h.score, h) for h in best]
        return found

    def continue_text(self, text: str, *, length: int = 200, temperature: float = 0.8, seed: int = 0) -> str:
        """A language model's continuation of ``text``: ``length`` symbols at most, sampled from a seeded
        stream."""
        if not self.is_language_model:
            raise DataError("This model turns sources into targets: use predict() instead.")
        ids = self._checked(self.spec.target, text) if text else []
        session = self.start("")
        for symbol in ids:
            session.step_id(symbol)
        sample = Sample(temperature, max_length=length, seed=seed)
        ((best,),) = sample(_Continued(self.model, session), Batch(None, Seq.from_lists([[EOS]])))
        return self.spec.target.decode(best.ids)

    def score(self, source: str | None, target: str) -> float:
        """log p(target | source) in nats, the end symbol included."""
        return float(score(self.model, self._batch(source, target).to(self.device))[0])

    def align(self, source: str, target: str) -> Tensor | None:
        """Attention (U,S) of the target's symbols (and its end) to the source's; None for models without
        attention."""
        batch = self._batch(source, target).to(self.device)
        found = align(self.model, batch, [Hypothesis(tuple(batch.target.data[0, :-1].tolist()), 0.0)])
        return found[0] if found else None

    def evaluate(
        self, encoded: Encoded | Sequence[tuple[str, str]], *, beam: int | None = None
    ) -> Evaluation:
        """Error rates (or bits per character) on encoded data or on (source, target) pairs."""
        if not isinstance(encoded, Encoded):
            examples = [Example(s, t, (t,)) for s, t in encoded]
            encoded = encode(examples, self.spec.source, self.spec.target)
        search = None if self.is_language_model else self.searcher(beam)
        return evaluate(
            self.model,
            search,
            encoded,
            self.spec,
            batch_symbols=BATCH_SYMBOLS // (beam or 1),
            device=self.device,
        )

    def start(self, text: str = "") -> Session:
        """Begin a target for this source and choose its symbols yourself; see :class:`Session`."""
        source = None if self.is_language_model else Seq.from_lists([self._checked(self.spec.source, text)])
        batch = Batch(source, Seq.from_lists([[EOS]])).to(self.device)
        return Session(self.model, self.spec.target, self.model.start(batch))

    def _batch(self, source: str | None, target: str) -> Batch:
        read = (
            None
            if self.is_language_model
            else Seq.from_lists([self._checked(self.spec.source, source or "")])
        )
        return Batch(read, Seq.from_lists([[*self._checked(self.spec.target, target), EOS]]))

    def _checked(self, text_field: TextField, text: str) -> list[int]:
        check_text(text_field, text, False)
        return text_field.encode(text)


class Session:
    """A target that is written symbol by symbol. ``scores`` are the log-probabilities of the next symbol (V).

    ``state`` is the model's state; :meth:`fork` gives an independent copy of the session, so alternatives
    can be tried.
    """

    def __init__(self, model: Model, target: TextField, state: states.State) -> None:
        self.model, self.target, self.state = model, target, state
        self.ids: list[int] = []
        self.step_id(BOS)

    @torch.no_grad()
    def step_id(self, symbol: int) -> Tensor:
        """Write one id; returns the log-probabilities (V) of what may follow."""
        device = next(self.model.parameters()).device
        dist, self.state = self.model(torch.tensor([[symbol]], device=device), self.state)
        self.scores = dist.scores[0, -1]
        if symbol != BOS:
            self.ids.append(symbol)
        return self.scores

    def step(self, symbol: str) -> dict[str, float]:
        """Write one symbol; returns log-probabilities by symbol, ``<eos>`` for the end."""
        if symbol not in self.target.symbols:
            raise DataError(f'The target has no symbol "{symbol}".')
        self.step_id(self.target.symbols.index(symbol))
        return self.next()

    def next(self) -> dict[str, float]:
        """Log-probabilities of the next symbol."""
        return dict(zip(self.target.symbols, self.scores.tolist()))

    @property
    def text(self) -> str:
        return self.target.decode(self.ids)

    def fork(self) -> Session:
        copy = object.__new__(Session)
        copy.model, copy.target, copy.state = self.model, self.target, states.fork(self.state)
        copy.ids, copy.scores = list(self.ids), self.scores
        return copy


class _Continued(Model):
    """A model whose text has begun: the first call answers from the session, later ones step the model."""

    def __init__(self, model: Model, session: Session) -> None:
        super().__init__()
        self.inner, self.session = model, session

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True):
        return (self.session.state, self.session.scores[None, None])

    def forward(self, prev: Tensor, state, *, mask: Tensor | None = None):
        inner, pending = state
        if pending is not None:
            return Categorical(pending), (inner, None)
        dist, inner = self.inner(prev, inner)
        return dist, (inner, None)


def check_text(text_field: TextField, text: str, allow_unknown: bool) -> None:
    """Raise :class:`DataError`, one sentence, for a text that the field cannot take."""
    if not text.strip():
        raise DataError("The text is empty; give at least one symbol.")
    if len(text) > LONGEST:
        raise DataError(f"The text has {len(text):,} characters; {LONGEST:,} are allowed, so split it up.")
    unknown = text_field.unknown(text)
    if unknown and not allow_unknown:
        shown = ", ".join(f'"{u}"' for u in unknown[:5]) + (" and more" if len(unknown) > 5 else "")
        raise DataError(
            f'"{text[:40]}" holds {shown}, which the model never saw; --allow-unknown reads them as unknown.'
        )
