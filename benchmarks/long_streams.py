"""Streams that never end: what a step costs far behind the beginning, and how far float32 drifts from float64.

``python -m benchmarks.long_streams [--only NAME ...]`` goes through the catalogue of causal mixers and writes
results/long-streams.json and results/long-streams.md; what stands there already is replaced mixer by mixer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Mapping

import torch

from transduce.core import state as states
from transduce.core.protocols import Mixer
from transduce.nn.catalogue import MIXERS
from transduce.train.check import machine

RESULTS = Path(__file__).resolve().parent.parent / "results"
NEAR, FAR, CALLS = 64, 16384, 400
DRIFT = (1_000, 10_000, 100_000)
CHUNK = 1024


def _advance(mixer: Mixer, state: Any, steps: int, width: int, generator: torch.Generator) -> Any:
    while steps > 0:
        size = min(CHUNK, steps)
        _, state = mixer(torch.randn(1, size, width, generator=generator), state)
        steps -= size
    return state


@torch.no_grad()
def decoding(name: str, width: int = 64) -> dict[str, Any]:
    """Median time of a step of one stream and bytes of its state, near the beginning and far behind it.

    Near and far take turns, so that a neighbour's noise meets both.
    """
    torch.manual_seed(0)
    mixer = MIXERS[name](width).eval()
    generator = torch.Generator().manual_seed(1)
    at = {
        position: _advance(mixer, mixer.init_state(1, capacity=position + 2 * CALLS), position, width, generator)
        for position in (NEAR, FAR)
    }
    size = {position: states.nbytes(state) for position, state in at.items()}
    times: dict[int, list[float]] = {NEAR: [], FAR: []}
    steps = torch.randn(CALLS, 1, 1, width, generator=generator)
    for x in steps:
        for position in at:
            started = time.perf_counter()
            _, at[position] = mixer(x, at[position])
            times[position].append(time.perf_counter() - started)
    middle = {position: 1e6 * statistics.median(found[CALLS // 10 :]) for position, found in times.items()}
    return {
        "grows": bool(mixer.bytes_per_step),
        f"us a step at {NEAR}": round(middle[NEAR], 1),
        f"us a step at {FAR}": round(middle[FAR], 1),
        "time ratio": round(middle[FAR] / middle[NEAR], 3),
        f"bytes at {NEAR}": size[NEAR],
        f"bytes at {FAR}": size[FAR],
    }


@torch.no_grad()
def drift(name: str, width: int = 16) -> dict[str, float]:
    """Largest difference of the outputs of the last chunk from float64, relative to the spread of the outputs."""
    torch.manual_seed(0)
    wide = MIXERS[name](width).double().eval()
    narrow = MIXERS[name](width).eval()
    narrow.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in wide.state_dict().items()})
    wide.load_state_dict({k: v.double() if v.is_floating_point() else v for k, v in narrow.state_dict().items()})
    if wide.bytes_per_step:
        return {}  # its time grows with the square of the length, and nothing accumulates
    generator = torch.Generator().manual_seed(2)
    a, b = wide.init_state(1), narrow.init_state(1)
    done, found = 0, {}
    while done < DRIFT[-1]:
        size = min(CHUNK, min(p for p in DRIFT if p > done) - done)
        x = torch.randn(1, size, width, generator=generator)
        y, a = wide(x.double(), a)
        z, b = narrow(x, b)
        done += size
        if done in DRIFT:
            found[str(done)] = float((y - z).abs().max() / y.std())
    return found


def page(record: Mapping[str, Any]) -> str:
    lines = [
        "# Streams that never end",
        "",
        "Every causal mixer of the catalogue, one stream, by `python -m benchmarks.long_streams`. Left: the median time of a step and the",
        f"bytes of the state at positions {NEAR} and {FAR:,}, width 64, one thread. Right: how far outputs in float32 are from float64 with the",
        "same weights after so many steps of random inputs, width 16, relative to the spread of the outputs.",
        "",
        f"| mixer | us at {NEAR} | us at {FAR:,} | ratio | bytes at {NEAR} | bytes at {FAR:,} | drift at "
        + " | drift at ".join(f"{p:,}" for p in DRIFT)
        + " |",
        "|---|" + "---:|" * (5 + len(DRIFT)),
    ]
    for name, found in sorted(record["mixers"].items()):
        d, e = found["decoding"], found["drift"]
        cells = [d[f"us a step at {NEAR}"], d[f"us a step at {FAR}"], d["time ratio"]]
        cells += [f"{d[f'bytes at {p}']:,}" for p in (NEAR, FAR)]
        cells += [f"{e[str(p)]:.0e}" if e else "grows" for p in DRIFT]
        lines.append(f"| `{name}` | " + " | ".join(map(str, cells)) + " |")
    constant = {n: f["decoding"] for n, f in record["mixers"].items() if not f["decoding"]["grows"]}
    late = sorted(n for n, d in constant.items() if d["time ratio"] > 1.2)
    grown = sorted(n for n, d in constant.items() if d[f"bytes at {FAR}"] > 1.2 * d[f"bytes at {NEAR}"])
    lines += [
        "",
        f"Of {len(constant)} mixers with a state of constant size, those whose step takes more than 1.2 times as long far behind: "
        + (", ".join(late) or "none")
        + "; those whose state is more than 1.2 times as large: "
        + (", ".join(grown) or "none")
        + ".",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=list(MIXERS), choices=list(MIXERS))
    only = parser.parse_args().only
    torch.set_num_threads(1)
    path = RESULTS / "long-streams.json"
    record = json.loads(path.read_text()) if path.is_file() else {"mixers": {}}
    for name in only:
        record["mixers"][name] = {"decoding": decoding(name), "drift": drift(name)}
        print(name, json.dumps(record["mixers"][name]), flush=True)
    record["command"], record["machine"] = "python -m benchmarks.long_streams", machine()
    path.write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / "long-streams.md").write_text(page(record))


if __name__ == "__main__":
    main()
