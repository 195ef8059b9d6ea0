"""The conformance probe: kept promises of our own models, and every way to break one is found."""

import json

import pytest
import torch
from torch import nn

from transduce.cli.main import main
from transduce.core.errors import UserError
from transduce.models import mixer_language_model
from transduce.nn import GRU, Attention, Bidirectional, MinGRU
from transduce.testing.adapters import FunctionSubject, MixerSubject, TransformersSubject, adapt
from transduce.testing.conform import PROMISES, probe, render_findings


def broken(subject) -> set[str]:
    return {f.promise for f in probe(subject) if f.kept is False}


@pytest.mark.parametrize("make", [MinGRU, GRU, Attention], ids=lambda m: m.__name__)
def test_our_mixers_keep_every_promise(make):
    torch.manual_seed(0)
    findings = probe(adapt(make(16).double().eval()))
    assert [f.promise for f in findings] == list(PROMISES) and all(f.kept for f in findings)


def test_a_language_model_keeps_every_promise_and_tells_its_size():
    torch.manual_seed(0)
    lm = mixer_language_model([MinGRU(16), Attention(16, window=8)], 20, 16).double().eval()
    findings = {f.promise: f for f in probe(adapt(lm, vocabulary=20))}
    assert all(f.kept for f in findings.values())
    assert "does not grow" in findings["size of the state"].detail


class Careless(MixerSubject):
    """A GRU handled with one mistake."""

    def __init__(self, mistake: str) -> None:
        torch.manual_seed(0)
        super().__init__(GRU(16).double().eval(), 16)
        self.mistake = mistake

    def whole(self, x, mask=None):
        if self.mistake == "looks ahead":
            return super().whole(x.flip(1)).flip(1)
        if self.mistake == "mixes rows":
            return super().whole(x - x.mean(0), mask)
        if self.mistake == "ignores the mask":
            return super().whole(x)
        if self.mistake == "forgets":
            return x
        if self.mistake == "noise":
            return super().whole(x) + torch.randn(x.shape)
        return super().whole(x, mask)

    def go(self, x, state, mask=None):
        if self.mistake == "forgets the state of a chunk" and x.shape[1] > 1:
            state = self.start(len(x))
        if self.mistake == "forgets the state of a step" and x.shape[1] == 1:
            state = self.start(len(x))
        y, after = super().go(x, state, None if self.mistake == "ignores the mask" else mask)
        if self.mistake == "writes in place":
            state.copy_(after)
            return y, state
        return y, after

    def reorder(self, state, rows):
        return state if self.mistake == "never reorders" else super().reorder(state, rows)


@pytest.mark.parametrize(
    "mistake, found",
    [
        ("looks ahead", "nothing reads the future"),
        ("mixes rows", "rows do not see each other"),
        ("ignores the mask", "padding on the left changes nothing"),
        ("forgets", "the past matters"),
        ("noise", "the same call gives the same"),
        ("forgets the state of a chunk", "any chunks as at once"),
        ("forgets the state of a step", "step by step as at once"),
        ("writes in place", "an old state stays usable"),
        ("never reorders", "a beam may reorder the state"),
    ],
)
def test_a_mistake_is_found(mistake, found):
    assert found in broken(Careless(mistake))


def test_a_crash_is_a_broken_promise_and_is_told():
    subject = Careless("")
    subject.reorder = lambda state, rows: 1 / 0
    (finding,) = [f for f in probe(subject) if f.kept is False]
    assert finding.promise == "a beam may reorder the state" and "ZeroDivisionError" in finding.detail
    assert "1 promise broken" in render_findings("x", [finding])


def test_a_plain_function_is_tried_without_a_state():
    embed = nn.Embedding(9, 4).double()
    findings = probe(adapt(lambda ids: embed(ids).cumsum(1), vocabulary=9))
    assert {f.detail for f in findings if f.kept is None} == {"no state", "no mask"}
    assert not [f for f in findings if f.kept is False]
    with pytest.raises(ValueError, match="no state"):
        FunctionSubject(embed, 9).start(1)


def test_what_reads_everything_breaks_causality_and_has_no_state():
    findings = {f.promise: f for f in probe(adapt(Bidirectional(GRU(16), GRU(16)).double().eval()))}
    assert findings["nothing reads the future"].kept is False
    assert findings["any chunks as at once"].kept is None


def test_a_model_of_unknown_vocabulary_is_refused():
    with pytest.raises(UserError, match="--vocabulary"):
        adapt(lambda ids: ids)
    with pytest.raises(UserError, match="no model"):
        adapt(3)
    with pytest.raises(ValueError, match="16 steps"):
        probe(FunctionSubject(lambda ids: ids, 4), steps=5)


class Tiny(nn.Module):
    """What the probe needs of a transformers model: a running sum of embeddings, its state a list of tensors."""

    class config:
        model_type, vocab_size = "tiny", 11

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(11, 5)

    def prepare_inputs_for_generation(self, input_ids, next_sequence_length, state=None, **given):
        return {"input_ids": input_ids[:, -next_sequence_length:], "state": state, **given}

    def forward(self, input_ids, attention_mask=None, state=None, use_cache=False, logits_to_keep=0):
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask[:, -input_ids.shape[1] :, None]
        total = x.cumsum(1) + (0 if state is None else state[0][:, None])
        return type("Output", (), {"logits": total, "state": [total[:, -1]] if use_cache else None})()


def test_a_model_with_the_interface_of_transformers():
    subject = adapt(Tiny())
    assert isinstance(subject, TransformersSubject) and subject.keyword == "state"
    assert not broken(subject)


def test_the_command_tells_verdicts_and_writes_them(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["conform", "transduce.nn:MinGRU", "--json", str(out)]) == 0
    assert "every promise is kept" in capsys.readouterr().out
    assert len(json.loads(out.read_text())) == len(PROMISES)
    assert main(["conform", "torch.nn:Embedding", "--vocabulary", "9"]) == 2
    assert "cannot be called" in capsys.readouterr().err
    assert main(["conform", "transduce.nn"]) == 2
    assert "my_module:make_model" in capsys.readouterr().err


def test_the_command_says_when_a_promise_is_broken(tmp_path, monkeypatch, capsys):
    (tmp_path / "peeking.py").write_text(
        "import torch\ntable = torch.eye(8, dtype=torch.float64)\n"
        "def model(ids):\n    return table[ids].cumsum(1) + table[ids].mean(1, keepdim=True)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["conform", "peeking:model", "--vocabulary", "8"]) == 1
    said = capsys.readouterr().out
    assert "BROKEN  nothing reads the future" in said and "broken" in said.splitlines()[-1]
