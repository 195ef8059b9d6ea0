"""Layers of packages that hold one kind of layer each. Nothing of transduce is imported here."""

from __future__ import annotations

import math
import os
from types import SimpleNamespace
from typing import Any, Callable
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.witness_parts import BATCH, DIM, Step, Witness, float32_means, randomize

Begun = tuple[Step, Callable[[], dict[str, Tensor]]]


def slstm(dtype: torch.dtype) -> Witness:
    from xlstm.blocks.slstm.cell import sLSTMCell_vanilla, sLSTMCellConfig

    heads = 4
    with float32_means(dtype):
        cell = sLSTMCell_vanilla(
            sLSTMCellConfig(hidden_size=DIM, num_heads=heads, backend="vanilla", output_shape="BSH", dtype="float32")
        )
    module = nn.ModuleDict({"input": nn.Linear(DIM, 4 * DIM), "cell": cell})
    randomize(module, dtype)

    def begin() -> Begun:
        kept: list[Any] = [None]

        def feed(x: Tensor) -> Tensor:
            y, kept[0] = cell(module["input"](x), kept[0])
            return y

        return feed, lambda: dict(zip(("h", "c", "n", "m"), kept[0]))

    return Witness(
        "xlstm", "sLSTMCell_vanilla", module, lambda x: cell(module["input"](x))[0], begin, {"heads": heads}
    )


def s5(dtype: torch.dtype) -> Witness:
    from s5 import s5_model

    module = s5_model.S5(DIM, 12, bcInit="dense")
    damped = lambda z: torch.complex(-torch.exp(z.real), 3 * z.imag)
    randomize(module, dtype, log_step=lambda z: 0.5 * z - 1, **{"complex Lambda": damped})

    def call(x: Tensor, **how: Any) -> Any:
        with float32_means(dtype), patch.object(s5_model.as_complex, "__defaults__", (dtype.to_complex(),)):
            return module(x, **how)

    def begin() -> Begun:
        kept: dict[str, Tensor] = {}

        def feed(x: Tensor) -> Tensor:
            y, kept["state"] = call(x, return_state=True, **kept)
            return y

        return feed, lambda: {"memory": torch.view_as_real(kept["state"]).mT}

    return Witness(
        "s5-pytorch", "S5", module, call, begin, note="in float64 its cast of B to complex64 is made one to complex128"
    )


def lru(dtype: torch.dtype) -> Witness:
    from LRU_pytorch import LRU

    module = LRU(DIM, DIM, 12)
    randomize(module, dtype, nu_log=lambda z: 0.5 * z - 1, theta_log=lambda z: 0.5 * z, gamma_log=lambda z: 0.3 * z)
    with torch.no_grad():
        module.D.copy_(torch.diag(module.D.diagonal()))

    def run(x: Tensor) -> Tensor:
        with float32_means(dtype):
            return module(x)

    note = "its skip is a matrix, of which only the diagonal is used; it takes a state but gives none back"
    return Witness("lru-pytorch", "LRU", module, run, note=note)


# ---------------------------------------------------------------- retention

HEADS = 2


def _rotary_angles(width: int) -> Tensor:
    """10000^(-2i/width) for each pair of neighbours, twice."""
    steps = torch.arange(0, width, 2, dtype=torch.float64) / width
    return (10000.0**-steps).repeat_interleave(2)


def yet_another_retention(dtype: torch.dtype) -> Witness:
    from yet_another_retnet.retention import MultiScaleRetention, _build_decay_gammas

    module = MultiScaleRetention(DIM, HEADS, bias=False)
    randomize(module, dtype)
    with torch.no_grad():
        v = module.v_proj.weight.view(HEADS, -1, DIM)
        v -= v.mean(1, keepdim=True)
        module.thetas.copy_(_rotary_angles(DIM // HEADS))
    decays = _build_decay_gammas(HEADS, dtype=dtype).tolist()

    def begin() -> Begun:
        kept: list[Any] = [0, None]

        def feed(x: Tensor) -> Tensor:
            if x.shape[1] == 1:
                y, kept[1] = module.forward_recurrent(x[:, 0], x[:, 0], x[:, 0], kept[0], kept[1])
                y = y[:, None]
            else:
                y, kept[1] = module.forward_chunkwise(x, x, x, kept[0], kept[1])
            kept[0] += x.shape[1]
            return y

        return feed, lambda: {"memory": kept[1]}

    note = (
        "its group norm also takes the mean out, so its values are given weights whose mean in a head is zero; "
        "its angles are set to those of rotary positions"
    )
    settings = {"decays": decays, "expansion": 1}
    run = lambda x: module(x, x, x)[0]
    return Witness("yet-another-retnet", "MultiScaleRetention", module, run, begin, settings, note)


def torchscale_retention(dtype: torch.dtype) -> Witness:
    from torchscale.component.multiscale_retention import MultiScaleRetention

    args = SimpleNamespace(multiway=False, layernorm_eps=1e-6)
    module = MultiScaleRetention(args, DIM, 2 * DIM, HEADS)
    randomize(module, dtype)
    with torch.no_grad():
        module.v_proj.weight *= 1e5
    angles, decays = _rotary_angles(DIM // HEADS), 1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))

    def at(first: int, steps: int) -> tuple[Tensor, Tensor]:
        angle = torch.arange(first, first + steps, dtype=torch.float64)[:, None] * angles
        return angle.sin().to(dtype), angle.cos().to(dtype)

    def run(x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], dtype=torch.float64)
        distance = place[:, None] - place
        mask = torch.where(distance >= 0, decays[:, None, None] ** distance.clamp(min=0), 0).to(dtype)
        return module(x, (at(0, x.shape[1]), mask))

    def begin() -> Begun:
        kept: dict[str, Tensor] = {}
        seen = [0]

        def feed(x: Tensor) -> Tensor:
            outputs = []
            for x_t in x.unbind(1):
                outputs.append(module(x_t[:, None], (at(seen[0], 1), decays.to(dtype)), incremental_state=kept))
                seen[0] += 1
            return torch.cat(outputs, 1)

        return feed, lambda: {"memory": (kept["prev_key_value"] * kept["scale"].sqrt()[:, None, None]).mT}

    note = (
        "it is handed the angles of rotary positions and the plain powers of the decays; it divides scores and states "
        "by numbers that its norm takes out again up to the norm's epsilon, so its values are given large weights"
    )
    settings = {"decays": decays.tolist(), "expansion": 2}
    return Witness("torchscale", "MultiScaleRetention", module, run, begin, settings, note)


# ---------------------------------------------------------------- RWKV-7


def _exact(function: Callable, constants: dict[float, float]) -> Callable:
    """The same function with some numbers in its code exchanged."""
    code = function.__code__
    changed = tuple(constants.get(c, c) if isinstance(c, float) else c for c in code.co_consts)
    return type(function)(code.replace(co_consts=changed), function.__globals__)


RWKV7_PARTS = "x_r x_w x_k x_v x_a x_g w0 w1 w2 a0 a1 a2 v0 v1 v2 g1 g2 k_k k_a r_k R_ K_ V_ O_ ln_w ln_b".split()


def rwkv7(dtype: torch.dtype) -> Witness:
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
    with patch.object(torch.jit, "script", lambda function: function):  # it would hide its code
        from rwkv.model import RWKV_x070_TMix_seq

    width, head, rank = 128, 64, 16
    module = nn.Module()
    shapes = {"w1": (width, rank), "a1": (width, rank), "g1": (width, rank)}
    shapes |= {"w2": (rank, width), "a2": (rank, width), "g2": (rank, width), "v1": (width, rank), "v2": (rank, width)}
    shapes |= dict.fromkeys(("R_", "K_", "V_", "O_"), (width, width))
    for name in RWKV7_PARTS:
        module.register_parameter(name, nn.Parameter(torch.empty(shapes.get(name, (width,))), requires_grad=False))
    share = dict.fromkeys(("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"), torch.sigmoid)
    randomize(module, dtype, ln_w=lambda z: 1 + 0.3 * z, **share)
    function = _exact(RWKV_x070_TMix_seq, {0.606531: math.exp(-0.5), -0.606531: -math.exp(-0.5)})
    weights = [getattr(module, name) for name in RWKV7_PARTS]

    def call(x: Tensor, last: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, last, memory, _ = function(0, width // head, head, x, last, torch.empty_like(x), memory, *weights)
        return y, last, memory

    def fresh() -> tuple[Tensor, Tensor]:
        return torch.zeros(width, dtype=dtype), torch.zeros(width // head, head, head, dtype=dtype)

    def begin() -> Begun:
        kept = [fresh() for _ in range(BATCH)]

        def feed(x: Tensor) -> Tensor:
            outputs = []
            for row, x_row in enumerate(x):
                y, *kept[row] = call(x_row, *kept[row])
                outputs.append(y)
            return torch.stack(outputs)

        return feed, lambda: {
            "last": torch.stack([last for last, _ in kept]),
            "memory": torch.stack([memory for _, memory in kept]).mT,
        }

    return Witness(
        "rwkv", "RWKV_x070_TMix_seq", module, lambda x: torch.stack([call(row, *fresh())[0] for row in x]), begin,
        {"head_width": head}, "the number 0.606531 in its code is exchanged for exp(-1/2), which it stands for", width,
    )  # fmt: skip


# ---------------------------------------------------------------- convolution and spikes


def tcn(dtype: torch.dtype) -> Witness:
    from pytorch_tcn.conv import TemporalConv1d

    module = TemporalConv1d(DIM, DIM, 4, dilation=3, causal=True)
    randomize(module, dtype, weight=lambda z: z / (4 * DIM) ** 0.5)

    def begin() -> Begun:
        kept = [torch.zeros_like(module.buffer) for _ in range(BATCH)]

        def feed(x: Tensor) -> Tensor:  # it streams one row at a time
            outputs = []
            for row in range(BATCH):
                module.buffer = kept[row]
                outputs.append(module(x[row : row + 1].mT, inference=True).mT)
                kept[row] = module.buffer
            return torch.cat(outputs)

        return feed, lambda: {"tail": torch.cat(kept).mT}

    return Witness("pytorch-tcn", "TemporalConv1d", module, lambda x: module(x.mT).mT, begin, {"dilation": 3})


def lif(dtype: torch.dtype) -> Witness:
    import snntorch

    module = snntorch.Leaky(beta=0.5, reset_mechanism="zero").to(dtype)

    def over(x: Tensor, mem: Tensor | None) -> tuple[Tensor, Tensor]:
        spikes = []
        with float32_means(dtype):
            for x_t in x.unbind(1):
                spike, mem = module(x_t / 2, mem)
                spikes.append(spike)
        return torch.stack(spikes, 1), mem

    def begin() -> Begun:
        kept: list[Any] = [torch.zeros(BATCH, DIM, dtype=dtype)]

        def feed(x: Tensor) -> Tensor:
            y, kept[0] = over(x, kept[0])
            return y

        return feed, lambda: {"membrane": torch.where(kept[0] > 1, 0, kept[0])}

    zero = torch.zeros(BATCH, DIM, dtype=dtype)
    note = "its membrane is kept from before the reset, which it makes up for at the next step; its inputs are halved"
    return Witness("snntorch", "Leaky", module, lambda x: over(x, zero)[0], begin, note=note, inputs=lambda z: 3 * z)


SMALL: dict[str, Callable[[torch.dtype], Witness]] = {
    "slstm": slstm,
    "lru": lru,
    "lru s5": s5,
    "retention yet-another": yet_another_retention,
    "retention torchscale": torchscale_retention,
    "rwkv7": rwkv7,
    "conv tcn": tcn,
    "lif": lif,
}
