"""Models of this and other libraries as subjects of :mod:`.conform`. Imports no other library: a transformers model is
known by its ``config`` and told by the names of its arguments."""

from __future__ import annotations

import copy
import importlib
import inspect
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

from transduce.core import state as states
from transduce.core.errors import UserError
from transduce.core.protocols import Decoder, Mixer, Model

from .conform import Subject

_STATES = ("past_key_values", "cache_params", "state")
"""Names under which transformers models take and give back their state, the usual first."""


class _Ids(Subject):
    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def inputs(self, batch: int, steps: int, generator: torch.Generator) -> Tensor:
        low = min(4, self.vocabulary // 2)  # the first ids are often special
        return torch.randint(low, self.vocabulary, (batch, steps), generator=generator)


class FunctionSubject(_Ids):
    """Any function from ids (B,T) to logits (B,T,V), or to an object that holds them as ``logits``: no state."""

    has_state, takes_mask = False, False

    def __init__(self, function: Callable[[Tensor], Any], vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.function = function
        self.name = getattr(function, "__name__", type(function).__name__)

    def whole(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found = self.function(x)
        return found if isinstance(found, Tensor) else found.logits


class _OwnState(Subject):
    """The state algebra of this library."""

    def reorder(self, state: Any, rows: Tensor) -> Any:
        return states.select(state, rows)

    def nbytes(self, state: Any) -> int:
        return states.nbytes(state)


class MixerSubject(_OwnState):
    """A mixer of this library; its inputs are random vectors."""

    def __init__(self, mixer: Mixer, dim: int) -> None:
        self.mixer, self.dim, self.name, self.has_state = mixer, dim, type(mixer).__name__, mixer.causal

    def inputs(self, batch: int, steps: int, generator: torch.Generator) -> Tensor:
        like = next(self.mixer.parameters(), torch.zeros(()))
        return torch.randn(batch, steps, self.dim, generator=generator).to(like.dtype)

    def whole(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.mixer(x, mask=mask)[0]

    def start(self, batch: int) -> Any:
        return self.mixer.init_state(batch)

    def go(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        return self.mixer(x, state, mask=mask)


class DecoderSubject(_Ids, _OwnState):
    """A decoder without a memory of this library, or the language model around one."""

    def __init__(self, decoder: Decoder, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.decoder, self.name = decoder, type(decoder).__name__

    def whole(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.decoder(x, self.decoder.start(len(x), continues=False), mask=mask)[0].scores

    def start(self, batch: int) -> Any:
        return self.decoder.start(batch)

    def go(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        dist, state = self.decoder(x, state, mask=mask)
        return dist.scores, state


class TransformersSubject(_Ids):
    """A causal language model of the package transformers, called as its ``generate`` calls it.

    The state is the model's own cache object beside the mask of everything fed so far. Caches that reorder themselves
    (``reorder_cache``) do so; of others, every tensor whose first dimension is the batch is picked from. Where a model
    keeps its state inside its modules, nothing can be picked, and the probe says what comes of it.
    """

    def __init__(self, model: nn.Module, vocabulary: int | None = None) -> None:
        super().__init__(vocabulary or model.config.vocab_size)
        self.model, self.name = model, str(model.config.model_type)
        taken = inspect.signature(model.forward).parameters
        self.keyword = next((name for name in _STATES if name in taken), None)
        self.has_state = self.keyword is not None
        self.takes_mask = "attention_mask" in taken

    def whole(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        extra = {} if mask is None else {"attention_mask": mask.long()}
        if mask is not None and "position_ids" in inspect.signature(self.model.forward).parameters:
            extra["position_ids"] = _places(mask)
        return self.model(input_ids=x, use_cache=False, **extra).logits

    def start(self, batch: int) -> Any:
        return None, torch.zeros(batch, 0, dtype=torch.bool)

    def _first_cache(self) -> Any:
        """What ``generate`` begins with: the library's default cache where the model takes it."""
        supported = getattr(type(self.model), "_supports_default_dynamic_cache", None)
        if self.keyword != "past_key_values" or supported is None or not supported():
            return None
        return importlib.import_module("transformers").DynamicCache(config=self.model.config)

    def go(self, x: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        cache, seen = state
        seen = torch.cat((seen, torch.ones(x.shape, dtype=torch.bool) if mask is None else mask), 1)
        first = cache is None
        cache = self._first_cache() if first else cache
        given = self.model.prepare_inputs_for_generation(
            x,
            next_sequence_length=x.shape[1],
            attention_mask=seen.long(),
            position_ids=_places(seen)[:, -x.shape[1] :],
            is_first_iteration=first,
            use_cache=True,
            **({} if cache is None else {self.keyword: cache}),
        )
        taken = set(inspect.signature(self.model.forward).parameters) - {"logits_to_keep"}  # all are wanted
        found = self.model(**{k: v for k, v in given.items() if k in taken})
        after = next((v for name in _STATES if (v := getattr(found, name, None)) is not None), cache)
        return found.logits, (after if after is not None else "inside the model", seen)

    def reorder(self, state: Any, rows: Tensor) -> Any:
        cache, seen = state
        cache = copy.deepcopy(cache)
        if hasattr(cache, "reorder_cache"):
            cache.reorder_cache(rows)
        else:
            cache = _pick(cache, rows, len(seen))
        return cache, seen[rows]

    def nbytes(self, state: Any) -> int:
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in _tensors(state[0])}.values())


def _places(mask: Tensor) -> Tensor:
    """(B,T) position of every valid step in its row."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor inside an object: through sequences, mappings and attributes."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)
    elif hasattr(tree, "__dict__") and not isinstance(tree, (nn.Module, type)):
        yield from _tensors(vars(tree))


def _pick(tree: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(tree, Tensor):
        return tree[rows] if tree.dim() and tree.shape[0] == batch else tree
    if isinstance(tree, dict):
        return {key: _pick(value, rows, batch) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_pick(value, rows, batch) for value in tree)
    if hasattr(tree, "__dict__") and not isinstance(tree, (nn.Module, type)):
        picked = copy.copy(tree)
        vars(picked).update(_pick(vars(tree), rows, batch))
        return picked
    return tree


def adapt(model: Any, *, vocabulary: int | None = None, dim: int = 16) -> Subject:
    """A subject of whatever ``model`` is. ``dim``: width of the inputs of a mixer.

    Raises UserError where the kind of model cannot be told, or where the number of its symbols is needed and not
    given.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, Mixer):
        return MixerSubject(model, dim)
    if hasattr(model, "config") and hasattr(model.config, "model_type"):
        return TransformersSubject(model, vocabulary)
    if not callable(model):
        raise UserError(f"A {type(model).__name__} is no model: give a module, a function or a Subject.")
    decoder = getattr(model, "decoder", model) if isinstance(model, Model) else model
    if vocabulary is None:
        raise UserError(
            f"How many symbols a {type(model).__name__} reads cannot be told from it: add --vocabulary."
        )
    if isinstance(decoder, Decoder):
        return DecoderSubject(decoder, vocabulary)
    return FunctionSubject(model, vocabulary)
