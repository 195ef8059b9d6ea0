"""``transduce conform``: which promises a causal model of any library keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Sequence

import tyro

from transduce.core.errors import UserError

from .machine import set_up
from .options import MaybeInt, MaybePath, parse
from .own_module import from_module, said


@dataclass(frozen=True)
class Conform:
    model: tyro.conf.Positional[str]
    """module:name of a function without arguments that makes a causal model (a transformers model, a language model of
    this library, a transduce.testing.conform.Subject), of a class of mixers, or of a function from ids to logits."""
    vocabulary: MaybeInt = None
    """Number of symbols the model reads, where it cannot be told from the model."""
    dim: int = 16
    """Width of the inputs of a mixer."""
    steps: int = 24
    """Length of the sequences that are tried."""
    dtype: Literal["float32", "float64"] = "float64"
    """Arithmetic of the check."""
    jitter: float = 0.0
    """Noise of this size is added to all weights first, so that an untrained model does not hide its mistakes."""
    seed: int = 0
    """Seed of weights, noise and inputs."""
    tolerance: float = 1e-4
    """Largest error of a kept promise, relative to the spread of the outputs."""
    json: MaybePath = None
    """Also write the findings to this file."""


def conform_command(arguments: Sequence[str]) -> int:
    options = parse(Conform, arguments, "conform", "Tell which promises of decoding a causal model keeps.")
    if options.steps < 16:
        raise UserError(f"--steps must be at least 16, got {options.steps}.")
    made = from_module(options.model, "the model", "my_module:make_model")
    set_up()
    import torch

    from transduce.testing.adapters import adapt
    from transduce.testing.conform import probe, render_findings

    torch.manual_seed(options.seed)
    subject = adapt(_model(made, options), vocabulary=options.vocabulary, dim=options.dim)
    try:
        findings = probe(subject, steps=options.steps, tolerance=options.tolerance, seed=options.seed)
    except Exception as problem:  # the very first plain call failed
        raise UserError(f"{options.model} cannot be called with {options.steps} steps: {said(problem)}.") from None
    print(render_findings(f"{options.model} ({subject.name}, {options.dtype})", findings))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(f) for f in findings], indent=1) + "\n")
    return 0 if all(f.kept is not False for f in findings) else 1


def _made(maker: Any, dim: int) -> Any:
    """What a maker makes: of nothing, or (mixers) of a width; a function that is the model itself is left alone."""
    import inspect

    needed = [p for p in inspect.signature(maker).parameters.values() if p.default is p.empty and p.kind < 2]
    if not needed:
        return maker()
    return maker(dim) if inspect.isclass(maker) and len(needed) == 1 else maker


def _model(made: Any, options: Conform) -> Any:
    """The model itself, in evaluation mode, in the wanted arithmetic, with its noise."""
    import torch
    from torch import nn

    from transduce.testing.conform import Subject

    try:
        model = made if isinstance(made, (nn.Module, Subject)) else _made(made, options.dim)
    except Exception as problem:
        raise UserError(f"{options.model} cannot make a model: {said(problem)}.") from None
    if isinstance(model, nn.Module):
        model = model.to(getattr(torch, options.dtype)).eval()
        generator = torch.Generator().manual_seed(options.seed)
        with torch.no_grad():
            for p in model.parameters() if options.jitter else ():
                p.add_(options.jitter * torch.randn(p.shape, generator=generator).to(p.dtype))
    return model
