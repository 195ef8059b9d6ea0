"""The model card: what the model does, how well, how it was trained, on what, and how to use it."""

from __future__ import annotations

from typing import Any, Mapping

from transduce.data.metrics import METRICS

_UNITS = {
    "loss": ("loss, nats per target symbol", lambda v: f"{v:.4f}"),
    "bits_per_character": ("bits per character", lambda v: f"{v:.4f}"),
    "rows": ("examples", lambda v: f"{v:,}"),
}

_NO_LICENCE = "not stated; ask whoever gave you the data before you share this model"


def model_card(described: Mapping[str, Any]) -> str:
    """Markdown from the content of ``bundle.json``. Only measured numbers appear."""
    corpus, training = described["corpus"], described["training"]
    name = corpus.get("name", "unnamed data")
    lines = [
        f"# {described['system']} trained on {name}",
        "",
        f"A `{described['system']}` sequence model with {described['parameters']:,} parameters, "
        f"written by transduce {described['versions']['transduce']}.",
        "",
        "## Measured",
        "",
        *_measured(described["metrics"], corpus),
        "",
        "## Training",
        "",
        *_training(training),
        "",
        "## Data",
        "",
        f"* Corpus: {name}{_sizes(corpus)}",
        f"* Origin: {corpus.get('origin') or 'not stated'}",
        f"* Licence of the data: {corpus.get('licence') or _NO_LICENCE}",
        "",
        "## Use",
        "",
        "```python",
        "import transduce",
        "",
        'model = transduce.load("path/to/this/folder")',
        *_example(corpus),
        "```",
        "",
        "The weights are in `model.safetensors`, everything else in `bundle.json`; reading runs no code. "
        "The model knows only the symbols of its training data, and its errors on other data may be larger "
        "than those above.",
        "",
    ]
    return "\n".join(lines)


def _measured(metrics: Mapping[str, Any], corpus: Mapping[str, Any]) -> list[str]:
    rows = []
    for split, group in metrics.items():
        for key, value in group.items() if isinstance(group, Mapping) else [(split, group)]:
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                where = split if isinstance(group, Mapping) else ""
                rows.append(f"| {where} | {_label(key, corpus)} | {_number(key, value)} |")
    if not rows:
        return ["Nothing was measured."]
    return ["| examples | measure | value |", "|---|---|---|", *rows]


def _label(key: str, corpus: Mapping[str, Any]) -> str:
    if key in ("sequence_error", "symbol_error"):
        return str(corpus.get(key.replace("_error", "_name")) or key.replace("_", " "))
    if key in METRICS:
        return METRICS[key][0]
    return _UNITS[key][0] if key in _UNITS else key.replace("_", " ")


def _number(key: str, value: float) -> str:
    if key in _UNITS:
        return _UNITS[key][1](value)
    if key.endswith("_error"):
        return f"{100 * value:.2f} %"
    if key in METRICS:
        return f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _training(training: Mapping[str, Any]) -> list[str]:
    if not training:
        return ["Not recorded."]
    return [
        f"* {key.replace('_', ' ')}: {_plain(value)}" for key, value in training.items() if value is not None
    ]


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _sizes(corpus: Mapping[str, Any]) -> str:
    parts = [f"{corpus[k]:,} {k}" for k in ("train", "valid", "test") if isinstance(corpus.get(k), int)]
    return f" ({', '.join(parts)} examples)" if parts else ""


def _example(corpus: Mapping[str, Any]) -> list[str]:
    if corpus.get("kind") == "text":
        return ['session = model.start("")', "scores, state = session.step(symbol)"]
    return [f"model.predict({corpus.get('example', 'your text')!r})"]
