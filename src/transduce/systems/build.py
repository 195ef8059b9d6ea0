"""From a page and data to a system that can be trained."""

from __future__ import annotations

from typing import Any

import torch

from transduce.core.errors import UserError
from transduce.core.protocols import System
from transduce.core.registry import Page
from transduce.data import Corpus, DataSpec, Example, Prepared, TextField, prepare
from transduce.train import TrainConfig

KINDS = {"pairs": "pairs of source and target", "text": "plain text"}


def assemble(
    page: Page, corpus: Corpus, config: Any = None, *, vocabulary: int | None = None, seed: int = 0
) -> tuple[Prepared, System]:
    """The data as ids and the page's system built for them, its weights drawn from ``seed``.

    ``config``: the page's own config, its default where left out. Raises :class:`UserError` for data of another kind.
    """
    if corpus.kind != page.kind:
        raise UserError(
            f"{page.name} trains on {KINDS[page.kind]}; {corpus.name} holds {KINDS[corpus.kind]}."
        )
    prepared = prepare(corpus, vocabulary=vocabulary)
    torch.manual_seed(seed)
    return prepared, build(page, prepared.spec, config)


def build(page: Page, spec: DataSpec, config: Any = None) -> System:
    """The page's system for data of this form. Raises :class:`UserError` for settings that a layer refuses."""
    try:
        built = page.build(spec, config if config is not None else page.config_type())
    except ValueError as problem:
        if isinstance(problem, UserError):
            raise
        raise UserError(f"{page.name} cannot be built with these settings: {problem}.".replace("..", ".")) from problem
    empty = next((name for name, p in built.model.named_parameters() if p.numel() == 0), None)
    if empty is not None:
        raise UserError(f"{page.name} cannot be built with these settings: {empty} would hold no numbers; make widths at least 1.")
    return built


def train_defaults(page: Page, config: Any = None) -> TrainConfig:
    """The training settings that a page starts from. It is built for its sample or a one-letter alphabet, on no
    memory; with ``config``, its default where left out, so that one that makes no sense is refused here."""
    if page.sample is not None:
        rows = [Example(source, target, (target,)) for source, target in page.sample.rows]
        spec = prepare(Corpus("sample", page.kind, rows, rows, rows, *page.sample.units)).spec
    else:
        letters = TextField.learn(["a"], "chars")
        spec = DataSpec(letters if page.kind == "pairs" else None, letters, 8, 8)
    with torch.device("meta"):
        return build(page, spec, config).train or TrainConfig()
