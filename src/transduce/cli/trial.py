"""One training of a comparison, in a process of its own: train (or go on), measure, leave a record.

``python -m transduce.cli.trial REQUEST.json`` is what ``transduce compare`` starts; the request says it all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping

from transduce.core.errors import UserError

from .data import DataOptions
from .machine import set_up
from .options import replaced

if TYPE_CHECKING:
    from transduce.api import Transducer
    from transduce.data import Corpus, Encoded
    from transduce.train import TrainResult

MIDDLING = 9
"""Sources of about so many symbols make attention maps that can be read at a glance."""
EXAMPLES = 8
LONGEST_MAP = 40


@dataclass(frozen=True)
class Request:
    """One training: which system under which settings and seed, on which data, for how long, and where."""

    label: str
    system: str
    seed: int
    values: dict[str, Any]
    data: dict[str, Any]
    budget: float
    folder: str
    rows: int
    beam: int | None = None
    device: str = "cpu"
    lengths: list[int] = field(default_factory=list)

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.folder) / "runs" / self.name

    @property
    def record(self) -> Path:
        """What the comparison reads."""
        return Path(self.folder) / "runs" / f"{self.name}.json"

    @property
    def name(self) -> str:
        return f"{self.label}-seed{self.seed}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def carry_out(request: Request) -> dict[str, Any]:
    """Train what is not trained yet, measure, and return the record. Raises KeyboardInterrupt when training
    was interrupted: its checkpoint waits for the next call."""
    from transduce.api import load

    began = time.perf_counter()
    device = set_up(request.device)
    corpus = DataOptions.from_json(request.data).load()
    if not trained(request.run):
        result = _train(request, corpus, device)
        if result.interrupted:
            raise KeyboardInterrupt
    model = load(request.run, device=str(device))
    record = _measure(request, model, corpus)
    return {**record, "seconds": round(time.perf_counter() - began, 2)}


def trained(run: Path) -> bool:
    """True when the training in this folder has ended by itself and its model is stored."""
    try:
        described = json.loads((run / "bundle" / "bundle.json").read_text())
        return not described["training"]["stopped_because"].startswith("interrupted")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _train(request: Request, corpus: Corpus, device: Any) -> TrainResult:
    from transduce import systems
    from transduce.systems.build import assemble
    from transduce.train import TrainConfig, Trainer, World, checkpoint, prepare_out
    from transduce.train.progress import reporter
    from transduce.train.run import RunFolder

    from .settings import divided

    page = systems.find(request.system)
    model, train = divided(page, request.values)
    vocabulary = request.data.get("vocabulary")
    prepared, system = assemble(
        page, corpus, replaced(page.config_type(), model), vocabulary=vocabulary, seed=request.seed
    )
    settings = dataclasses.replace(
        system.train or TrainConfig(), max_time=request.budget, max_steps=None, max_epochs=None,
        seed=request.seed,
    )  # fmt: skip
    settings = replaced(settings, train)
    resume = checkpoint.stored(RunFolder(request.run).checkpoint)
    if not resume:
        prepare_out(request.run, force=True)
    system.model.to(device)
    return Trainer(
        system, prepared, settings, request.run, world=World.alone(device), reporter=reporter(), resume=resume,
        request=request.data,
    ).run()  # fmt: skip


def capped(part: Encoded, rows: int) -> Encoded:
    """At most ``rows`` rows, evenly over the part, the same ones for every system."""
    total = len(part)
    return part if total <= rows else part.select([i * total // rows for i in range(rows)])


def _measure(request: Request, model: Transducer, corpus: Corpus) -> dict[str, Any]:
    from transduce.report.cost import decoding_costs
    from transduce.train.check import machine

    part = capped(model.part("test" if len(corpus.test) else "valid", corpus), request.rows)
    described = json.loads((model.path / "bundle.json").read_text())
    return {
        "label": request.label,
        "system": request.system,
        "seed": request.seed,
        "config": described["config"],
        "parameters": described["parameters"],
        "weight_bytes": described["weights"]["bytes"],
        "training": described["training"],
        "speed": _speed(request.run, len(corpus.train)),
        "peak_bytes": peak_memory(),
        **_quality(model, part, request.beam),
        "costs": decoding_costs(model.model, model.spec, request.lengths, device=model.device),
        "examples": _examples(model, part),
        "attention": _attention(model, part),
        "machine": machine(),
    }


def _quality(model: Transducer, part: Encoded, beam: int | None) -> dict[str, Any]:
    """Figures on the part, with each row's counts, so that intervals can be pooled over seeds."""
    from transduce.report.quality import bits, counts

    began = time.perf_counter()
    if not model.is_language_model:
        found = model.evaluate(part, beam=beam)
        numbers, rows = found.numbers(), counts(found)
    else:
        from transduce.api import BATCH_SYMBOLS
        from transduce.data import batches
        from transduce.search import score

        nats: list[float] = [0.0] * len(part)
        for batch in batches(part, BATCH_SYMBOLS):
            for row, value in zip(batch.rows, score(model.model, batch.to(model.device)).tolist()):
                nats[row] = -value
        # As in training: the cost of an end counts against the model, its symbol does not.
        rows = {"bits_per_character": [[bits(n) for n in nats], [max(1, len(t) - 1) for t in part.targets]]}
        numbers = {"loss": sum(nats) / sum(map(len, part.targets)), "rows": len(part)}
    return {
        "numbers": numbers,
        "counts": rows,
        "rows": len(part),
        "measuring_seconds": round(time.perf_counter() - began, 3),
    }


def _speed(run: Path, rows: int) -> dict[str, Any]:
    """Median speed over the log (the first report is left out: kernels are compiled in it), and the held-out
    curve."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    reports = [r for r in lines if r.get("symbols_per_second")]
    reports = reports[1:] or reports
    middle = lambda key: sorted(r[key] for r in reports)[len(reports) // 2] if reports else None
    keys = ("seconds", "epoch", "valid_loss", "sequence_error", "symbol_error", "bits_per_character")
    return {
        "symbols_per_second": middle("symbols_per_second"),
        "rows_per_second": middle("rows_per_second"),
        "training_rows": rows,
        "losses": [[r["seconds"], r["loss"]] for r in lines if r.get("loss") is not None],
        "curve": [{k: r[k] for k in keys if k in r} for r in lines if r.get("valid_loss") is not None],
    }


def peak_memory() -> int | None:
    """Most bytes that this process has held; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def middling(part: Encoded) -> list[int]:
    """Rows of a part of pairs that the vocabulary can read, those of middling length first."""
    lengths = [len(s) for s in part.sources]
    return sorted(range(len(lengths)), key=lambda i: (abs(lengths[i] - MIDDLING), i))


def _examples(model: Transducer, part: Encoded) -> list[dict[str, Any]]:
    if model.is_language_model:
        begin = " ".join(part.examples[0].target.split()[:4])
        begin = "" if model.spec.target.unknown(begin) else begin
        return [{"source": begin, "answer": model.continue_text(begin, length=200), "right": None}]
    near = middling(part)[: 3 * EXAMPLES]
    rows = sorted(near[:: max(1, len(near) // EXAMPLES)][:EXAMPLES])
    answers = model.predict([part.examples[i].source for i in rows], allow_unknown=True)
    return [
        {
            "source": part.examples[i].source,
            "reference": part.examples[i].target,
            "answer": answer,
            "right": answer in part.examples[i].references,
        }
        for i, answer in zip(rows, answers)
    ]


def _attention(model: Transducer, part: Encoded) -> dict[str, Any] | None:
    """The weights behind the model's own answer to one source of middling length."""
    if model.is_language_model:
        return None
    row = middling(part)[0]
    source = part.examples[row].source
    ((best, *_),) = model.predictions([source], allow_unknown=True)
    if len(part.sources[row]) > LONGEST_MAP or len(best.hypothesis.ids) >= LONGEST_MAP:
        return None
    weights = model.align(source, best)
    if weights is None:
        return None
    return {
        "weights": [[round(w, 4) for w in line] for line in weights.tolist()],
        "source": model.spec.source.pieces(part.sources[row]),
        "target": [*model.spec.target.pieces(best.hypothesis.ids), "end"],
    }


@contextlib.contextmanager
def sentence(only_memory: bool = False) -> Iterator[list[str]]:
    """Collects in one sentence why a training came to nothing, where that is no mistake of ours.

    ``only_memory``: what the user has to mend goes on as an exception; a lack of memory alone is collected.
    """
    said: list[str] = []
    try:
        yield said
    except UserError as problem:
        if only_memory:
            raise
        said.append(str(problem))
    except MemoryError:
        said.append("There was not enough memory.")
    except RuntimeError as problem:
        if not any(words in str(problem) for words in ("can't allocate memory", "out of memory")):
            raise
        said.append("There was not enough memory.")


def main(argv: list[str]) -> int:
    from .report import write_json

    request = Request(**json.loads(Path(argv[0]).read_text()))
    record: Mapping[str, Any] = {}
    try:
        with sentence() as said:
            record = carry_out(request)
        if said:
            record = {"label": request.label, "seed": request.seed, "failed": said[0]}
        write_json(request.record, record)
    except KeyboardInterrupt:
        return 130
    except UserError as problem:  # the record itself cannot be written
        print(f"transduce: {problem}", file=sys.stderr)
        return 2
    return 2 if said else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
