"""What stands at the end of a run: figures on the test part, pictures, and the next commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transduce.api import Transducer, load
from transduce.core.errors import UserError
from transduce.data import Encoded, Prepared, bootstrap
from transduce.train import Evaluation, RunFolder, TrainResult, bundle
from transduce.train.check import machine
from transduce.train.plots import attention_map

PICTURES = 3


def finish(out: Path, prepared: Prepared, result: TrainResult, device: Any) -> None:
    """Measure the bundle on the test part, draw attention maps, and print where everything is."""
    folder = RunFolder(out)
    model = load(out, device=str(device))
    print(f"trained {result.steps:,} steps in {result.seconds / 60:.1f} minutes ({result.stopped_because})")
    figures: dict[str, Any] = {}
    for label, beam in (("greedy", None), ("beam 5", 5)):
        if beam is not None and prepared.kind != "pairs":
            continue
        found = model.evaluate(prepared.test, beam=beam)
        figures["test" if beam is None else f"test_beam_{beam}"] = found.numbers()
        print(f"test {label}: {describe(found, prepared.sequence_name, prepared.symbol_name)}")
    bundle.add_metrics(folder.bundle, figures)
    drawn = draw_attention(model, prepared.test, folder) if prepared.kind == "pairs" else []
    print(f"bundle: {folder.bundle}   curve: {folder.curve}")
    print(
        f"attention: {', '.join(map(str, drawn))}" if drawn else "attention: this model attends to no source"
    )
    if prepared.kind == "pairs":
        example = prepared.test.examples[0].source
        print(f"next:\n  transduce predict {out} {quoted(example)}\n  transduce eval {out} --beam 5")
    else:
        print(f'next:\n  transduce predict {out} "{prepared.test.examples[0].target[:12].strip()}"')


def quoted(text: str) -> str:
    return f'"{text}"' if " " in text or "'" in text else text


def describe(found: Evaluation, sequence_name: str, symbol_name: str) -> str:
    """The figures of an evaluation with their 95 % bootstrap intervals over rows."""
    if found.rates is None:
        return f"{found.bits_per_character:.3f} bits per character ({found.rows:,} rows)"
    rates = found.rates
    word = bootstrap(rates.wrong)
    symbol = bootstrap(rates.edits, rates.lengths)
    return (
        f"{sequence_name} {percent(rates.sequence)} [{percent(word[0])} to {percent(word[1])}], "
        f"{symbol_name} {percent(rates.symbol)} [{percent(symbol[0])} to {percent(symbol[1])}] ({found.rows:,} rows)"
    )


def add_record(path: Path, model: Transducer, label: str, found: Evaluation) -> None:
    """Add one evaluation to a JSON file of measured results: figures, intervals, training, machine."""
    try:
        record = json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise UserError(f"{path} is no JSON file of results; name another one.") from None
    described = json.loads((model.path / "bundle.json").read_text())
    figures: dict[str, Any] = dict(found.numbers())
    if found.rates is not None:
        figures["sequence_error_95"] = list(bootstrap(found.rates.wrong))
        figures["symbol_error_95"] = list(bootstrap(found.rates.edits, found.rates.lengths))
    record.update(
        system=model.system.name,
        config=described["config"],
        parameters=described["parameters"],
        corpus=described["corpus"],
        training=described["training"],
        versions=described["versions"],
        machine=machine(),
    )
    record.setdefault("measured", {})[label] = figures
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def draw_attention(model: Transducer, part: Encoded, folder: RunFolder) -> list[Path]:
    """Attention maps of the model's own answers to a few sources of middling length."""
    lengths = [len(s) for s in part.sources]
    order = sorted(range(len(lengths)), key=lambda i: (abs(lengths[i] - 9), i))[:PICTURES]
    drawn: list[Path] = []
    for number, row in enumerate(order, 1):
        source = part.examples[row].source
        ((best, *_),) = model.predictions([source], allow_unknown=True)
        target = model.spec.target.decode(best.hypothesis.ids)
        weights = model.align(source, target) if target else None
        if weights is None:
            return drawn
        read = model.spec.source.pieces(model.spec.source.encode(source))
        written = [*model.spec.target.pieces(best.hypothesis.ids), "end"]
        drawn.append(attention_map(weights, read, written, folder.attention(number)))
    return drawn
