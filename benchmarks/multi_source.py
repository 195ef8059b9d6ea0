"""Two languages against one: synopses of Debian's packages, German and French to English.

``python -m benchmarks.multi_source --minutes 3``: trains ``multi-source-transformer`` on
``debian-synopses:de+fr-en`` with every way to combine the two memories, and on either language alone, each
for the same time, and writes chrF on the test part to ``results/multi-source-transformer-synopses.json``. A model
that reads the French part must lose when it is another row's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from transduce import systems
from transduce.core.protocols import Claim
from transduce.data import load_corpus
from transduce.systems.encoder_decoder import _multi_source_check as check
from transduce.train import TrainConfig
from transduce.train.check import Check
from transduce.train.trainer import Trainer

SMALL = {"dim": 96, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 192, "dropout": 0.1}
PLAN = {"learning_rate": 6e-3, "batch_symbols": 1024}
VOCABULARY = 1000
"""What three minutes are enough for: one layer a side, few symbols. Chosen with another seed on the validation part
and on a tenth of the training packages that was held out for it, among widths of 96 and 128, vocabularies of 500, 1,000
and 2,000, batches of 512 and 1,024, rates of 3e-3, 4e-3 and 6e-3."""

SINGLES = {"German alone": 0, "French alone": 1}


def chrf(cross: str, prepared, seconds: float, seed: int, limit: int) -> tuple[float, float]:
    """chrF after that time, and with French texts of other rows (nan for one source)."""
    page = systems.find("multi-source-transformer")
    torch.manual_seed(seed)
    system = page.build(prepared.spec, page.config_type(cross=cross, **SMALL))
    plan = replace(system.train or TrainConfig(), max_time=seconds, seed=seed, evaluations=0, **PLAN)
    with tempfile.TemporaryDirectory() as folder:
        Trainer(system, prepared, plan, Path(folder) / "run").run()
    return check.chrf(system, prepared, limit), check.chrf(system, prepared, limit, swap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="training time of each model")
    parser.add_argument("--rows", type=int, default=1000, help="test rows that are translated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir", default=None, help="directory with data that no package brings")
    parser.add_argument("--out", type=Path, default=Path("results"))
    options = parser.parse_args()
    corpus = load_corpus("debian-synopses:de+fr-en", data_dir=options.data_dir)
    report = Check("multi-source-transformer-synopses", options.out, seeds=(options.seed,))
    measured = lambda cross, data: chrf(cross, data, 60 * options.minutes, options.seed, options.rows)
    best = 0.0
    for name, part in SINGLES.items():
        value, _ = measured("parallel", check.translations(corpus, part, VOCABULARY))
        report.measure(f"{name}: chrF", value)
        best = max(best, value)
    both = check.translations(corpus, vocabulary=VOCABULARY)
    for cross in check.STRATEGIES:
        value, wrong = measured(cross, both)
        report.measure(
            f"{cross}: chrF",
            value,
            Claim("beats_single", "two sources say more than one", at_least=best + 1.0),
            best,
        )
        report.measure(
            f"{cross}: chrF lost to a wrong French source",
            value - wrong,
            Claim("uses_french", "a model that reads the part misses it", at_least=2.0),
        )
    path = report.write()
    record = json.loads(path.read_text())
    record["command"] = f"python -m benchmarks.multi_source --minutes {options.minutes:g}"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
