"""Train and use models from Python: open one in one line, predict, score, evaluate, or walk it step by step."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from transduce import systems
from transduce.core import state as states
from transduce.core.dist import Categorical
from transduce.core.errors import BundleError, DataError
from transduce.core.protocols import Hypothesis, Model, Searcher, System
from transduce.core.seq import BOS, EOS, Batch, Seq
from transduce.data import (
    Corpus,
    DataSpec,
    Encoded,
    Example,
    TextField,
    anywhere,
    batches,
    encode,
    load_corpus,
    prepare,
)
from transduce.data.files import LONGEST
from transduce.search import Beam, LengthPenalty, Sample, align, ratio, score
from transduce.systems.build import assemble
from transduce.train import RunFolder, TrainConfig, Trainer, World, bundle, prepare_out
from transduce.train.evaluate import Evaluation, evaluate
from transduce.train.progress import reporter

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
    folder, request = Path(path), None
    if (folder / "config.json").is_file() and not (folder / "bundle.json").is_file():
        if not (folder / "bundle" / "bundle.json").is_file():
            raise BundleError(
                f"The run at {folder} has no bundle yet: it is still training or was stopped before its first save."
            )
        request = RunFolder(folder).read_config().get("request")
    if (folder / "bundle" / "bundle.json").is_file():
        folder = folder / "bundle"
    parts = bundle.read(folder)
    page = systems.find(parts.system_name)
    with torch.random.fork_rng(devices=[]):  # first weights are drawn and replaced; the caller's numbers stay
        system = page.build(parts.spec, parts.config_as(page.config_type))
    parts.load_into(system.model)
    system.model.to(device).eval()
    if request is None:
        request = {"data": parts.corpus.get("name")}
    return Transducer(system, parts.spec, parts.corpus, parts.metrics, folder, torch.device(device), request)


def fit(
    system: str,
    data: str | os.PathLike | Corpus,
    out: str | os.PathLike,
    *,
    config: Any = None,
    train: TrainConfig | None = None,
    device: str = "cpu",
    resume: bool = False,
    force: bool = False,
) -> Transducer:
    """Train a system, write its run folder ``out`` and open what came out.

    ``data``: a built-in corpus by name, a file or folder by path, or a :class:`transduce.data.Corpus`.
    ``config``: the system's own config (``systems.find(name).config_type``), its default where left out.
    ``train``: every training setting, limits included; the system's own ones where left out. ``resume`` goes
    on with the run in ``out`` (give the same config and settings), ``force`` replaces it.

    Raises :class:`UserError`, one sentence, for what the caller can mend, and KeyboardInterrupt when the
    training was interrupted; the run can be resumed then.
    """
    page = systems.find(system)
    corpus = data if isinstance(data, Corpus) else load_corpus(os.fspath(data))
    prepared, built = assemble(page, corpus, config, seed=train.seed if train is not None else 0)
    settings = train or built.train or TrainConfig()
    settings.suit(prepared.kind)
    if not resume:
        prepare_out(Path(out), force=force)
    built.model.to(device)
    request = {} if isinstance(data, Corpus) else {"data": anywhere(os.fspath(data))}
    for note in corpus.notes:
        warnings.warn(note, stacklevel=2)
    world = World.alone(device)
    run = Trainer(built, prepared, settings, out, world=world, reporter=reporter(), resume=resume, request=request)
    result = run.run()
    if result.interrupted:
        raise KeyboardInterrupt(f"stopped at step {result.steps}; fit(..., resume=True) goes on")
    return load(out, device=device)


def corpus_of(request: Mapping[str, Any]) -> Corpus:
    """The corpus that a run was asked to train on: ``data`` and, where given, ``data_dir``,
    ``source_column``, ``target_column``, ``source_units``, ``target_units``, ``max_bad`` and ``max_rows``."""
    if not request.get("data"):
        raise DataError("The model does not say which data it was trained on; name them.")
    columns = request.get("source_column"), request.get("target_column")
    return load_corpus(
        request["data"],
        data_dir=request.get("data_dir"),
        columns=(columns[0] or "source", columns[1] or "target") if any(columns) else None,
        source_units=request.get("source_units"),
        target_units=request.get("target_units"),
        max_rows=request.get("max_rows"),
        **({} if request.get("max_bad") is None else {"max_bad": request["max_bad"]}),
    )


@dataclass(frozen=True)
class Transducer:
    """A trained model with its fields. Made by :func:`load`."""

    system: System
    spec: DataSpec
    corpus: dict[str, Any]
    metrics: dict[str, Any]
    path: Path
    device: torch.device
    request: dict[str, Any] = field(default_factory=dict)

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
        own = self.system.search_wide  # how long answers may be and what they must obey is the system's to say
        limit, scorers = (own.max_length, own.scorers) if isinstance(own, Beam) else (LENGTH, ())
        return Beam(width, num_best=num_best, max_length=limit, length=LengthPenalty(1.0), scorers=scorers)

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
        encoded = encode(blank, self.spec.source, self.spec.target)
        for batch in batches(encoded, BATCH_SYMBOLS // max(beam or 1, num_best)):
            hypotheses = search(self.model, replace(batch.to(self.device), target=None))
            for row, best in zip(batch.rows, hypotheses):
                found[row] = [Prediction(self.spec.target.decode(h.ids), h.score, h) for h in best]
        return found

    def continue_text(self, text: str, *, length: int = 200, temperature: float = 0.8, seed: int = 0) -> str:
        """A language model's continuation of ``text``: ``length`` symbols at most, sampled from a seeded stream.

        Where the model learnt from texts that end (lines of a file), it may end earlier; where it learnt from
        windows of a long text, whose ends mean nothing, it never does.
        """
        if not self.is_language_model:
            raise DataError("This model turns sources into targets: use predict() instead.")
        side = self.spec.target
        if text:
            check_text(side, text, False, blank=True)
        ids = side.encode(text)
        session = self.start("")
        if ids:
            session.write(ids)
        sample = Sample(temperature, max_length=length, seed=seed)
        goes_on = _Continued(self.model, session, ends=not self.corpus.get("windowed", False))
        ((best,),) = sample(goes_on, Batch(None, Seq.from_lists([[EOS]])).to(self.device))
        # Decoded as a whole: what stands between the last given symbol and the first new one depends on both.
        return side.decode([*ids, *best.ids])[len(side.decode(ids)) :]

    def score(self, source: str | None, target: str) -> float:
        """log p(target | source) in nats, the end symbol included."""
        return float(score(self.model, self._batch(source, target).to(self.device))[0])

    def align(self, source: str, target: str | Prediction) -> Tensor | None:
        """Attention (U,S) of the target's symbols (and its end) to the source's; None for models without
        attention. A :class:`Prediction` is aligned symbol by symbol as it was decoded."""
        if isinstance(target, Prediction):
            read, written = self.spec.source.encode(source), list(target.hypothesis.ids)
        else:
            read, written = self._checked(self.spec.source, source), self._checked(self.spec.target, target)
        batch = Batch(Seq.from_lists([read]), Seq.from_lists([[*written, EOS]])).to(self.device)
        found = align(self.model, batch, [Hypothesis(tuple(written), 0.0)])
        return found[0] if found else None

    def evaluate(
        self,
        data: str | Encoded | Sequence[tuple[str, str]],
        *,
        beam: int | None = None,
        metrics: Sequence[str] | None = None,
    ) -> Evaluation:
        """Error rates (or bits per character), and what else the data are judged by.

        ``data``: "test", "valid" or "train", a part of the data that the model was trained on; encoded data; or
        (source, target) pairs. ``metrics``: say ``("bleu", "chrf")``; those of the data that the model was trained
        on where it is None.
        """
        if isinstance(data, str):
            encoded = self.part(data)
        elif isinstance(data, Encoded):
            encoded = data
        else:
            examples = [Example(s, t, (t,)) for s, t in data]
            encoded = encode(examples, self.spec.source, self.spec.target)
        if len(encoded) == 0:
            raise DataError("There is nothing to evaluate: this part of the data is empty.")
        search = None if self.is_language_model else self.searcher(beam)
        return evaluate(
            self.model,
            search,
            encoded,
            self.spec,
            batch_symbols=BATCH_SYMBOLS // (beam or 1),
            metrics=self.corpus.get("metrics", ()) if metrics is None else metrics,
        )

    def part(self, name: str, corpus: Corpus | None = None) -> Encoded:
        """A part of the data the model was trained on, or of another corpus, under the model's own fields."""
        if name not in ("train", "valid", "test"):
            raise DataError(f'Data have the parts train, valid and test, not "{name}".')
        corpus = self.own_corpus() if corpus is None else corpus
        return getattr(prepare(corpus, self.spec, references="first"), name)

    def own_corpus(self, changes: Mapping[str, Any] | None = None) -> Corpus:
        """The corpus that the model was trained on; ``changes`` to how it is found, say another ``data_dir``.

        Raises :class:`DataError` when the data cannot be found, or are not as many as they were.
        """
        corpus = corpus_of({**self.request, **(changes or {})})
        for part in ("valid", "test"):
            before, now = self.corpus.get(part), len(getattr(corpus, part))
            if before is not None and before != now:
                raise DataError(
                    f"{corpus.name} is not what the model was trained on: it has {now:,} {part} examples, not "
                    f"{before:,}; name the data."
                )
        return corpus

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
        self.write([BOS])

    @torch.no_grad()
    def write(self, ids: Sequence[int]) -> Tensor:
        """Write ids, one or many at a time; returns the log-probabilities (V) of what may follow."""
        device = next(self.model.parameters()).device
        dist, self.state = self.model(torch.tensor([list(ids)], device=device), self.state)
        self.scores = dist.scores[0, -1]
        self.ids += [i for i in ids if i != BOS]
        return self.scores

    def step(self, symbol: str) -> dict[str, float]:
        """Write one symbol; returns log-probabilities by symbol, ``<eos>`` for the end."""
        if symbol not in self.target.symbols[: len(self.scores)]:
            raise DataError(f'The target has no symbol "{symbol}".')
        self.write([self.target.symbols.index(symbol)])
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

    def __init__(self, model: Model, session: Session, ends: bool) -> None:
        super().__init__()
        self.inner, self.session, self.ends = model, session, ends

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> states.State:
        return (self.session.state, self.session.scores[None, None])

    def forward(
        self, prev: Tensor, state: states.State, *, mask: Tensor | None = None
    ) -> tuple[Categorical, states.State]:
        inner, scores = state
        if scores is None:
            dist, inner = self.inner(prev, inner)
            scores = dist.scores
        if not self.ends:
            scores = scores.clone()
            scores[..., EOS] = -torch.inf
        return Categorical(scores), (inner, None)


def check_text(text_field: TextField, text: str, allow_unknown: bool, *, blank: bool = False) -> None:
    """Raise :class:`DataError`, one sentence, for a text that the field cannot take; ``blank``: white space
    alone will do."""
    if not text.strip() and not blank:
        raise DataError("The text is empty; give at least one symbol.")
    if len(text) > LONGEST:
        raise DataError(f"The text has {len(text):,} characters; {LONGEST:,} are allowed, so split it up.")
    unknown = [] if allow_unknown else text_field.unknown(text)
    if unknown:
        shown = ", ".join(f'"{u}"' for u in unknown[:5]) + (" and more" if len(unknown) > 5 else "")
        raise DataError(
            f'"{text[:40]}" holds {shown}, which the model never saw; leave that out, or let it be read as an '
            "unknown symbol (--allow-unknown, or allow_unknown=True)."
        )
