"""What stands at the end of a run: figures on the test part, pictures, and the next commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from transduce.api import Transducer, load
from transduce.core.errors import UserError
from transduce.data import Encoded, Prepared, bootstrap
from transduce.data.metrics import described
from transduce.train import Evaluation, RunFolder, TrainResult, bundle
from transduce.train.check import machine
from transduce.train.plots import attention_map
from transduce.train.storage import replace_file, to_json, writing

PICTURES = 3
MIDDLING = 9
"""Sources of about so many symbols make attention maps and examples that can be read at a glance."""


def finish(out: Path, prepared: Prepared, result: TrainResult, device: Any) -> None:
    """Measure the bundle on the test part, draw attention maps, and print where everything is."""
    folder = RunFolder(out)
    model = load(out, device=str(device))
    print(f"trained {result.steps:,} steps in {result.seconds / 60:.1f} minutes ({result.stopped_because})")
    _measure_test(model, prepared, folder)
    print(f"bundle: {folder.bundle}   curve: {folder.curve}")
    split = "test" if len(prepared.test) else "valid"
    held_out = getattr(prepared, split)
    if prepared.kind == "pairs":
        drawn = draw_attention(model, held_out, folder)
        nothing = "no picture, this model has no weights of outputs over source symbols"
        print(f"attention: {', '.join(map(str, drawn)) if drawn else nothing}")
    print(
        "next:",
        *(f"  transduce {shlex.join(words)}" for words in _next(model, held_out, split, out)),
        sep="\n",
    )


def _next(model: Transducer, held_out: Encoded, split: str, out: Path) -> list[list[str]]:
    """Commands that work on this model: an example it can read, and its figures."""
    if model.is_language_model:
        # A word from inside, since the first one may be half cut off.
        words = (word for e in held_out.examples for word in e.target.split()[1:2] or e.target.split())
        plain = (word for word in words if shlex.quote(word) == word and not model.spec.target.unknown(word))
        return [["predict", str(out), next(plain, "")]]
    sources = [held_out.examples[i].source for i in _by_length(held_out)]
    known = next((s for s in sources if not model.spec.source.unknown(s)), None)
    example = [sources[0], "--allow-unknown"] if known is None else [known]
    part = [] if split == "test" else ["--split", split]
    return [["predict", str(out), *example], ["eval", str(out), "--beam", "5", *part]]


def _measure_test(model: Transducer, prepared: Prepared, folder: RunFolder) -> None:
    """Print the figures on the test part, greedy and with a beam, and put them into the bundle."""
    if len(prepared.test) == 0:
        print("test: the data have no test part")
        return
    figures: dict[str, Any] = {}
    searches = (("", None), ("beam 5", 5)) if prepared.kind == "pairs" else (("", None),)
    for name, beam in searches:
        found = model.evaluate(prepared.test, beam=beam, metrics=prepared.metrics)
        figures[label("test", beam)] = found.numbers()
        shown = name or ("greedy" if prepared.kind == "pairs" else "")
        where = f"test {shown}".strip()
        print(f"{where}: {describe(found, prepared.sequence_name, prepared.symbol_name)}", flush=True)
    bundle.add_metrics(folder.bundle, figures)


def label(split: str, beam: int | None) -> str:
    """The name of a group of figures: "test", "test_beam_5"."""
    return split if beam is None else f"{split}_beam_{beam}"


def describe(found: Evaluation, sequence_name: str, symbol_name: str) -> str:
    """The figures of an evaluation with their 95 % bootstrap intervals over rows."""
    if found.rates is None:
        return f"{found.bits_per_character:.3f} bits per character ({found.rows:,} rows)"
    rates, between = found.rates, intervals(found)
    scores = f", {described(found.scores)}" if found.scores else ""
    return (
        f"{sequence_name} {percent(rates.sequence)} [{' to '.join(map(percent, between['sequence_error_95']))}], "
        f"{symbol_name} {percent(rates.symbol)} [{' to '.join(map(percent, between['symbol_error_95']))}] "
        f"({found.rows:,} rows){scores}{f'; {found.note}' if found.note else ''}"
    )


def intervals(found: Evaluation) -> dict[str, list[float]]:
    """95 % bootstrap intervals of the error rates; none for texts."""
    if found.rates is None:
        return {}
    return {
        "sequence_error_95": list(bootstrap(found.rates.wrong)),
        "symbol_error_95": list(bootstrap(found.rates.edits, found.rates.lengths)),
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write a file of figures atomically."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, to_json(record))


def add_record(path: Path, model: Transducer, name: str, found: Evaluation) -> None:
    """Add one evaluation to a JSON file of measured results: figures, intervals, training, machine.

    A file about another training run is replaced: figures of two models never stand in one record.
    """
    try:
        record = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is no JSON file of results; name another one.") from None
    described = json.loads((model.path / "bundle.json").read_text())
    about = {name: described[name] for name in ("config", "corpus", "training")}
    if any(record.get(name) != value for name, value in about.items()):
        record = {}
    record.update(
        system=model.system.name,
        **about,
        parameters=described["parameters"],
        versions=described["versions"],
        machine=machine(),
    )
    record.setdefault("measured", {})[name] = {**found.numbers(), **intervals(found)}
    write_json(path, record)


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _by_length(part: Encoded) -> list[int]:
    """Rows of pairs, those of middling length first."""
    lengths = [len(s) for s in part.sources]
    return sorted(range(len(lengths)), key=lambda i: (abs(lengths[i] - MIDDLING), i))


def draw_attention(model: Transducer, part: Encoded, folder: RunFolder) -> list[Path]:
    """Attention maps of the model's own answers to a few sources of middling length."""
    drawn: list[Path] = []
    for number, row in enumerate(_by_length(part)[:PICTURES], 1):
        source = part.examples[row].source
        ((best, *_),) = model.predictions([source], allow_unknown=True)
        weights = model.align(source, best)
        if weights is None:
            return drawn
        read = model.spec.source.pieces(part.sources[row])
        written = [*model.spec.target.pieces(best.hypothesis.ids), "end"]
        drawn.append(attention_map(weights, read, written, folder.attention(number)))
    return drawn
