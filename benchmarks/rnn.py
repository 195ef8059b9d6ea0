"""Recurrent layers, input products included, against torch's: ``python -m benchmarks.rnn [--keep-heap]``.

Limit: the multiply-adds of all matrix products (three times as many for training) at the rate of a large
float32 product in the same process. "transduce" is the layer of :mod:`transduce.nn` with the same weights, "transduce op"
its op with a product in front. Rows with heads or of the sLSTM compute something else at the same width; they are held
against their own plain loop, and their limit is that of the dense network.
"""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Result, measure, run, seconds

SIZES = {
    "256x8x192": (256, 8, 192),
    "32x128x256": (32, 128, 256),
    "8x1024x512": (8, 1024, 512),
    "1x4096x256": (1, 4096, 256),
}
GATES = {"GRU": 3, "LSTM": 4, "RNN": 1}
CASES = [f"{kind} {work} {size}" for size in SIZES for kind in GATES for work in ("inference", "training")]
Layer = Callable[[Tensor], Tensor]


def torch_layer(module: nn.RNNBase) -> Layer:
    return lambda x: module(x)[0]


def our_mixer(module: nn.RNNBase, kind: str) -> Layer:
    """The mixer with the same weights, which then are the module's own."""
    from transduce.nn import from_torch

    module.cell = from_torch(module)
    return lambda x: module.cell(x)[0]


def with_heads(peer: str, kind: str, width: int) -> nn.Module:
    """The mixer behind a name of ``HEADED``."""
    from transduce import nn as ours

    name = "SLSTM" if "sLSTM" in peer else {"RNN": "Elman"}.get(kind, kind)
    return getattr(ours, name)(width, heads=4 if "4 heads" in peer else 1)


def cell_loop(module: nn.RNNBase, kind: str) -> Layer:
    """A Python loop over torch's cell."""
    width = module.hidden_size
    cell = {"GRU": nn.GRUCell, "LSTM": nn.LSTMCell, "RNN": nn.RNNCell}[kind](width, width)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
    module.cell = cell

    def layer(x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x.unbind(1):
            state = cell(step, state)
            outputs.append(state[0] if kind == "LSTM" else state)
        return torch.stack(outputs, 1)

    return layer


def our_layer(module: nn.RNNBase, kind: str, bf16: bool = False) -> Layer:
    """The same layer through transduce's op; the weights are the module's own parameters."""
    from transduce.ops.rnn import elman, gru, lstm

    width = module.hidden_size

    def layer(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            bias = module.bias_ih_l0 + module.bias_hh_l0
            zero = x.new_zeros(x.shape[0], width)
            if kind == "GRU":
                inner = module.bias_hh_l0[2 * width :]
                bias = torch.cat((bias[: 2 * width], module.bias_ih_l0[2 * width :]))
                return gru(
                    nn.functional.linear(x, module.weight_ih_l0, bias), module.weight_hh_l0, inner, zero
                )
            pre = nn.functional.linear(x, module.weight_ih_l0, bias)
            if kind == "LSTM":
                return lstm(pre, module.weight_hh_l0, zero, zero)[0]
            return elman(pre, module.weight_hh_l0, zero)

    return layer


def forced(backend: str, layer: Layer) -> Layer:
    """The layer with one backend of ours."""
    from transduce.ops.dispatch import use_backend

    def run_forced(x: Tensor) -> Tensor:
        with use_backend(backend):
            return layer(x)

    return run_forced


PEERS: dict[str, Callable[[nn.RNNBase, str], Layer]] = {
    "transduce": our_mixer,
    "transduce op": our_layer,
    "transduce, bf16 autocast": lambda module, kind: our_layer(module, kind, bf16=True),
    "transduce loop": lambda module, kind: forced("loop", our_layer(module, kind)),
    "torch.nn": lambda module, kind: torch_layer(module),
    "torch cell loop": cell_loop,
}
HEADED = ("transduce, 4 heads", "transduce sLSTM", "transduce sLSTM, 4 heads")


def peers(case: str) -> list[str]:
    return [*PEERS, *(HEADED if case.startswith("LSTM") else HEADED[:1])]


def child(case: str, peer: str) -> Result:
    kind, work, size = case.split(" ")
    batch, steps, width = SIZES[size]
    torch.manual_seed(0)
    module = getattr(nn, kind)(width, width, batch_first=True)
    x, grad = torch.randn(batch, steps, width), torch.randn(batch, steps, width)
    square = torch.randn(1024, 1024)
    with torch.no_grad():
        rate = 2 * 1024**3 / min(seconds(lambda: square @ square, budget=0.5))
        if peer in HEADED:
            from transduce.nn import Recurrence

            module.cell = with_heads(peer, kind, width)
            layer = lambda x: module.cell(x)[0]
            start = x[:, :32]
            error = float((layer(start) - Recurrence(module.cell.cell, solver="loop")(start)[0]).abs().max())
        else:
            layer = PEERS[peer](module, kind)
            error = float((layer(x) - module(x)[0]).abs().max())
    flops = 2 * 2 * batch * steps * width * width * GATES[kind] * (3 if work == "training" else 1)
    if not error < (0.1 if "bf16" in peer else 1e-3):
        return Result(case, peer, limit_ms=flops / rate * 1e3, problem=f"wrong: off by {error:.2g}")
    if work == "inference":
        return measure(case, peer, torch.no_grad()(lambda: layer(x)), flops / rate)
    x.requires_grad_()
    used = [x, *(module.cell if hasattr(module, "cell") else module).parameters()]
    return measure(case, peer, lambda: torch.autograd.grad(layer(x), used, grad), flops / rate)


def main() -> int:
    ops = (*(f"transduce.ops.rnn:{name}" for name in ("elman", "gru", "lstm")), "transduce.ops.slstm:slstm")
    return run(Benchmark("rnn", __doc__, CASES, peers, child, ops))


if __name__ == "__main__":
    raise SystemExit(main())
