"""The full check of `palm-partial-attention`: the language model inside, fading attention, errors in long
outputs."""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor, nn

from transduce.analysis import attention_mass, log_slope, source_sensitivity
from transduce.core.protocols import Claim, Model
from transduce.core.seq import EOS, Batch, Seq
from transduce.core.tap import record
from transduce.data import Loader, Prepared, prepare
from transduce.data.synthetic import readings
from transduce.models import RedForm, RedSize, RegularisedEncoderDecoder
from transduce.nn.position import sinusoidal
from transduce.objectives import Likelihood, WithSide
from transduce.ops.attention import attention_weights
from transduce.search import Greedy
from transduce.train.check import Check, train_steps
from transduce.train.plots import curves

LM = RedForm()
PALM = RedForm(causal_source=False, consecutive=False, partial="own", segments=True)
SHARED = RedForm(causal_source=False, consecutive=False, partial="shared", segments=True)
FORMS = {"language model": LM, "PALM": PALM, "PALM, shared projections": SHARED}
SYMBOLS = ("<pad>", "<bos>", "<eos>", "<unk>", *"abcdefghijkl")
SOURCE, REPETITIONS, LAYERS, WIDTH = 24, 3, 2, 64


# ---------------------------------------------------------------- exact: the language model inside


@torch.no_grad()
def language_model_gap() -> float:
    """Largest difference in logits, float64, between all switches on and torch's own causal layers on
    [source; BOS; target] with the same weights."""
    torch.manual_seed(0)
    model = RegularisedEncoderDecoder(SYMBOLS, SYMBOLS, RedSize(32, 4, 3, 64), LM).double().eval()
    for p in model.parameters():
        p.add_(0.05 * torch.randn_like(p))
    source, target = torch.randint(4, len(SYMBOLS), (3, 7)), torch.randint(4, len(SYMBOLS), (3, 9))
    batch = Batch(Seq(source), Seq(target))
    dist, _ = model(batch.previous, model.start(batch))
    ids = torch.cat((source, batch.previous), 1)
    h = model.embed(ids) + sinusoidal(torch.arange(ids.shape[1])[None], 32, torch.float64)
    hidden = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], dtype=torch.float64)
    for layer in model.layers:
        h = _as_torch_layer(layer)(h, hidden)
    wanted = model.head(model.norm(h)).logits[:, source.shape[1] :]
    return float((dist.logits - wanted).abs().max())


def _as_torch_layer(layer: nn.Module) -> nn.Module:
    """A layer's weights in ``nn.TransformerEncoderLayer``."""
    a, f = layer.attention, layer.feedforward
    made = nn.TransformerEncoderLayer(
        32, 4, 64, 0.0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    ).eval()
    made.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat((a.query.weight, a.key_value.weight)),
            "self_attn.in_proj_bias": torch.cat((a.query.bias, a.key_value.bias)),
            "self_attn.out_proj.weight": a.output.weight,
            "self_attn.out_proj.bias": a.output.bias,
            "linear1.weight": f.widen.weight,
            "linear1.bias": f.widen.bias,
            "linear2.weight": f.narrow.weight,
            "linear2.bias": f.narrow.bias,
            "norm1.weight": layer.attention_norm.weight,
            "norm1.bias": layer.attention_norm.bias,
            "norm2.weight": layer.feedforward_norm.weight,
            "norm2.bias": layer.feedforward_norm.bias,
        }
    )
    return made


# ---------------------------------------------------------------- theory: attention fades


@torch.no_grad()
def gaussian_mass(steps: int = 72, rows: int = 2048, width: int = 16) -> Tensor:
    """Mean attention on the source at target step i = 1..steps for Gaussian queries and keys in one softmax:
    (steps,)"""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(steps)
    mask = torch.ones(steps, steps, dtype=torch.bool).tril()
    mask = torch.cat((torch.ones(steps, SOURCE, dtype=torch.bool), mask), 1)
    for _ in range(rows // 128):
        q = torch.randn(128, steps, 1, width, generator=generator)
        k = torch.randn(128, SOURCE + steps, 1, width, generator=generator)
        total += attention_weights(q, k, mask=mask)[..., :SOURCE].sum(-1).mean((0, 1)) * 128
    return total / (rows // 128 * 128)


@torch.no_grad()
def partial_mass() -> float:
    """Largest distance from 1 of what PALM's partial attention spends on the source, over heads, layers and
    steps."""
    torch.manual_seed(0)
    model = RegularisedEncoderDecoder(SYMBOLS, SYMBOLS, RedSize(32, 4, 2, 64), PALM).double().eval()
    batch = _random_batch(4, SOURCE, 72)
    with record(model, "*partial_attend.weights") as seen:
        model(batch.previous, model.start(batch))
    return max(float((w[0].sum(-1) - 1.0).abs().max()) for w in seen.values())


PLACES = (63, 90, 127, 180, 255, 361, 511)


def sensitivity(form: RedForm) -> list[float]:
    """Norm of the derivative of a fresh layer's attention output at ``PLACES`` by the source's vectors, 8
    symbols."""
    torch.manual_seed(0)
    model = RegularisedEncoderDecoder(SYMBOLS, SYMBOLS, RedSize(64, 4, 1, 64), form).eval()
    return source_sensitivity(model, _random_batch(2, 8, 512), "layers.0.read", places=PLACES).tolist()


def _random_batch(rows: int, source: int, target: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    draw = lambda n: Seq(torch.randint(4, len(SYMBOLS), (rows, n), generator=generator))
    return Batch(draw(source), draw(target))


# ---------------------------------------------------------------- behaviour: long outputs


def build(prepared: Prepared, form: RedForm) -> Model:
    size = RedSize(WIDTH, 4, LAYERS, 2 * WIDTH)
    return RegularisedEncoderDecoder(prepared.spec.source.symbols, prepared.spec.target.symbols, size, form)


@torch.no_grad()
def errors_by_third(model: Model, prepared: Prepared, rows: int = 256) -> list[float]:
    """Teacher-forced error of the target's symbols in its first, second and last third, on test rows."""
    batch = _test_batch(prepared, rows)
    dist, _ = model(batch.previous, model.start(batch, continues=False))
    wrong = (dist.mode() != batch.target.data)[:, : SOURCE * REPETITIONS].float()
    return [float(part.mean()) for part in wrong.chunk(3, 1)]


def generated_error(model: Model, prepared: Prepared, rows: int = 128) -> float:
    """Share of wrong symbols in the last third of what greedy search writes, place by place, on test rows."""
    batch = _test_batch(prepared, rows)
    size = SOURCE * REPETITIONS
    found = Greedy(max_length=size + 1)(model, Batch(batch.source, None, batch.rows))
    written = torch.tensor([[*best.ids, *[EOS] * size][:size] for best, *_ in found])
    return float((written != batch.target.data[:, :size])[:, -SOURCE:].float().mean())


def _test_batch(prepared: Prepared, rows: int) -> Batch:
    from numpy import arange

    return prepared.test.batch(arange(min(rows, len(prepared.test))))


def check(report: Check) -> None:
    """Exact parts, the decay of attention and derivatives, then both models trained for the same number of
    steps."""
    report.measure(
        "all switches on, against a causal language model: largest difference of logits",
        language_model_gap(),
        Claim("language_model", "five switches make an encoder-decoder of a language model", at_most=1e-5),
    )
    mass = gaussian_mass()
    expected = torch.tensor([SOURCE / (SOURCE + i) for i in range(1, 73)])
    report.measure(
        "one softmax, Gaussian queries and keys: attention on the source against |s| / (|s| + i), largest relative gap",
        float((mass / expected - 1.0).abs().max()),
        Claim("degeneration", "keys are exchangeable, so attention is shared by number", at_most=0.02),
    )
    report.measure(
        "partial attention: what it spends on the source, largest distance from 1",
        partial_mass(),
        Claim("partial_mass", "its softmax is over the source alone", at_most=1e-12),
    )
    derivatives = {name: sensitivity(form) for name, form in FORMS.items()}
    for name, norms in derivatives.items():
        slope = log_slope([p + 1 for p in PLACES], norms)
        bounds = (-1.1, -0.9) if FORMS[name].partial == "none" else (-0.1, 0.1)
        report.measure(
            f"{name}, untrained: slope of log |d read_i / d source| over log i",
            slope,
            Claim(
                "sensitivity",
                "-1 under one softmax, 0 with partial attention",
                at_most=bounds[1],
                at_least=bounds[0],
            ),
        )
    trained = _behaviour(report)
    _draw(report, mass, expected, derivatives, trained)


def _behaviour(report: Check) -> dict[str, list[Model]]:
    """Every form trained for ``STEPS`` batches of ``ROWS`` with Adam, its errors watched on the way."""
    sizes = {"train": 200, "held_out": 20} if report.quick else {"train": 20000, "held_out": 300}
    prepared = prepare(readings(**sizes))
    last: dict[str, list[float]] = {}
    written: dict[str, list[float]] = {}
    trained: dict[str, list[Model]] = {}
    curve: dict[str, list[list[float]]] = {}
    for name in TRAINED:
        thirds: list[list[float]] = []
        for seed in report.seeds:
            torch.manual_seed(seed)
            model = build(prepared, FORMS[name])
            loader = iter(Loader(prepared.train, batch_symbols=ROWS * (SOURCE * 4 + 1), seed=seed))
            steps = 4 if report.quick else STEPS
            seen: list[float] = []
            train_steps(
                model,
                WithSide(Likelihood(), {"source": 0.1}),
                _watched(loader, model, prepared, steps, seen),
                steps,
                learning_rate=RATE,
                say=report.say,
                label=f"{name}, seed {seed},",
            )
            thirds.append(errors_by_third(model, prepared))
            written.setdefault(name, []).append(generated_error(model, prepared))
            curve.setdefault(name, []).append([*seen, thirds[-1][2]])
            trained.setdefault(name, []).append(model)
        last[name] = [row[2] for row in thirds]
        report.notes[f"parameters, {name}"] = sum(p.numel() for p in model.parameters())
        report.notes[f"error by third of the target, {name}"] = [[round(v, 4) for v in row] for row in thirds]
        report.notes[f"error in the last third while training, {name}"] = [
            [round(v, 4) for v in row] for row in curve[name]
        ]
    lm = last["language model"]
    report.measure("language model: error in the last third", lm)
    for name in TRAINED[1:]:
        report.measure(f"{name}: error in the last third", last[name], baseline=sum(lm) / len(lm))
        report.measure(
            f"{name}: teacher-forced error in the last third over the language model's",
            [a / max(b, 1e-6) for a, b in zip(last[name], lm)],
            Claim("last_third", "the source stays in view however long the output is", at_most=0.6),
        )
        # A seed whose language model learns the task makes the mean of the ratios above say little.
        report.measure(f"{name}: the same, mean error of all seeds over mean error", [sum(last[name]) / sum(lm)])
        report.measure(
            f"{name}: error in the last third of what it writes itself over the language model's",
            [a / max(b, 1e-6) for a, b in zip(written[name], written["language model"])],
            Claim("last_third_written", "nobody corrects a text on the way when it is written", at_most=0.6),
            baseline=sum(written["language model"]) / len(written["language model"]),
        )
    _draw_errors(report, curve)
    return trained


def _watched(
    batches: Iterator[Batch], model: Model, prepared: Prepared, steps: int, seen: list[float]
) -> Iterator[Batch]:
    """The batches; ten times on the way the error in the last third is measured."""
    for step in range(steps):
        if step % max(1, steps // 10) == 0:
            model.eval()
            seen.append(errors_by_third(model, prepared, 64)[2])
            model.train()
        yield next(batches)


TRAINED = ("language model", "PALM", "PALM, shared projections")
STEPS, ROWS, RATE = 400, 16, 4e-3


def _draw(
    report: Check,
    mass: Tensor,
    expected: Tensor,
    derivatives: dict[str, list[float]],
    trained: dict[str, list[Model]],
) -> None:
    places = [p + 1 for p in PLACES]
    curves(
        {name: (places, [v / norms[0] for v in norms]) for name, norms in derivatives.items()},
        report.figure("sensitivity"),
        x_label="target step",
        y_label=f"derivative by the source, that at step {places[0]} = 1",
        title="One softmax loses sight of the source, partial attention does not",
    )
    steps = list(range(1, 73))
    lines = {"Gaussian queries and keys": (steps, mass.tolist())}
    prepared = prepare(readings(train=50, held_out=20))
    for name, models in trained.items():
        found = attention_mass(models[0], _test_batch(prepared, 20), "*attention.weights")
        mean = torch.stack(list(found.values())).mean(0)[:72]
        lines[f"{name}, trained"] = (steps, mean.tolist())
    curves(
        {**lines, "|s| / (|s| + i)": (steps, expected.tolist())},
        report.figure("mass"),
        x_label="target step i",
        y_label="share of the joint softmax on the source",
        title="What is left for the source",
    )


def _draw_errors(report: Check, curve: dict[str, list[list[float]]]) -> None:
    points = len(next(iter(curve.values()))[0])
    steps = [round(STEPS * i / (points - 1)) for i in range(points)]
    curves(
        {name: (steps, [list(column) for column in zip(*rows)]) for name, rows in curve.items()},
        report.figure("errors"),
        x_label="training step",
        y_label="share of wrong symbols in the last third",
        title="24 letters read three times over in a permuted order",
    )
