"""OpenNMT-py 3.0 as a contestant of ``benchmarks.seq2seq``: its parser's defaults, its model builder, its trainer,
its translator. Only sizes, Adam and dropout are set. Runs in its own environment, where transduce is not."""

from __future__ import annotations

import importlib.metadata
import io
import logging
from argparse import Namespace
from collections import Counter
from typing import Any, Callable

import torch
from torch import Tensor, nn

from benchmarks.seq2seq import (
    DROPOUT, HEADS, INNER, LAYERS, ROWS, SMOOTHING, STEPS, TARGET, VOCABULARY, WIDTH, pairs, parameters,
)

NUM_SPECIAL = 4


def settings(model: str, input_feed: bool) -> Namespace:
    from onmt.opts import train_opts
    from onmt.utils.parse import ArgumentParser

    arguments = {
        "data": "{}", "src_vocab": "-", "hidden_size": WIDTH, "word_vec_size": WIDTH, "dropout": DROPOUT,
        "label_smoothing": SMOOTHING, "optim": "adam", "learning_rate": 1e-4, "max_grad_norm": 1,
    }
    if model == "transformer":
        arguments |= {
            "encoder_type": "transformer", "decoder_type": "transformer", "layers": LAYERS, "heads": HEADS,
            "transformer_ff": INNER, "attention_dropout": 0.0,
        }
        flags = ["--position_encoding"]
    else:
        arguments |= {
            "encoder_type": "brnn", "decoder_type": "rnn", "rnn_type": "GRU", "layers": 1, "global_attention": "mlp",
            "input_feed": int(input_feed),
        }
        flags = []
    parser = ArgumentParser()
    train_opts(parser)
    options = parser.parse_args([*(f"--{name}={value}" for name, value in arguments.items()), *flags])
    options.data = {}
    ArgumentParser.update_model_opts(options)
    ArgumentParser.validate_model_opts(options)
    return options


def build(model: str, input_feed: bool) -> tuple[Namespace, dict[str, Any], nn.Module]:
    """Options, vocabularies and the model with random weights."""
    import pyonmttok
    from onmt.constants import DefaultTokens, ModelTask
    from onmt.model_builder import build_base_model

    logging.getLogger().setLevel(logging.ERROR)
    special = [DefaultTokens.UNK, DefaultTokens.PAD, DefaultTokens.BOS, DefaultTokens.EOS]
    words = Counter({f"w{i:04}": 1 for i in range(VOCABULARY - len(special))})
    vocabulary = pyonmttok.build_vocab_from_tokens(words, maximum_size=0, minimum_frequency=1, special_tokens=special)
    vocabulary.default_id = vocabulary[DefaultTokens.UNK]
    if len(vocabulary) != VOCABULARY:
        raise ValueError(f"{len(vocabulary)} symbols instead of {VOCABULARY}")
    vocabularies = {"src": vocabulary, "tgt": vocabulary, "data_task": ModelTask.SEQ2SEQ}
    options = settings(model, input_feed)
    torch.manual_seed(0)
    return options, vocabularies, build_base_model(options, vocabularies, False)


def mark(vocabularies: dict[str, Any], name: str) -> int:
    from onmt.constants import DefaultTokens

    return vocabularies["tgt"][getattr(DefaultTokens, name)]


def as_batch(source: Tensor) -> dict[str, Tensor]:
    rows, steps = source.shape
    return {"src": source[..., None], "srclen": torch.full((rows,), steps), "indices": torch.arange(rows)}


def note(model: nn.Module) -> str:
    return f"float32, {parameters(model)}, version {importlib.metadata.version('OpenNMT-py')}"


def training(model: str, *, input_feed: bool) -> tuple[Callable[[], object], str]:
    from onmt.trainer import build_trainer
    from onmt.utils.optimizers import Optimizer

    options, vocabularies, built = build(model, input_feed)
    trainer = build_trainer(options, -1, built, vocabularies, Optimizer.from_opt(built, options))
    first, last = mark(vocabularies, "BOS"), mark(vocabularies, "EOS")
    batches = []
    for source, target in (pairs(ROWS, seed) for seed in range(STEPS)):
        marked = nn.functional.pad(nn.functional.pad(target, (1, 0), value=first), (0, 1), value=last)
        lengths = torch.full((ROWS,), marked.shape[1])
        batches.append({**as_batch(source), "tgt": marked[..., None], "tgtlen": lengths})

    def steps() -> None:
        seen = trainer.train(iter(batches), 0)
        if seen.n_words != STEPS * ROWS * TARGET:
            raise ValueError(f"{seen.n_words} target symbols were trained on")

    return steps, note(built)


def decoding(model: str, beam: int, rows: int, *, input_feed: bool) -> tuple[Callable[[], object], str]:
    from onmt.translate import GNMTGlobalScorer, Translator

    _, vocabularies, built = build(model, input_feed)
    built.eval()
    with torch.no_grad():
        built.generator.bias[mark(vocabularies, "EOS")] = -1e4
    translator = Translator(
        built, vocabularies, max_length=TARGET, beam_size=beam, random_sampling_topk=1 if beam == 1 else 0,
        dump_beam="", global_scorer=GNMTGlobalScorer(0.0, 0.0, "none", "none"), out_file=io.StringIO(),
    )
    batch = as_batch(pairs(rows, 0)[0])
    found = translator.translate_batch(dict(batch), False)["predictions"]
    if any(len(best[0]) != TARGET for best in found):
        raise ValueError(f"sentences of other lengths than {TARGET}")
    return lambda: translator.translate_batch(dict(batch), False), note(built)
