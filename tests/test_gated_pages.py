"""The checks of min-rnn, hgrn and griffin: they run, write their records, and measure what they say."""

import json

import pytest
import torch
from torch import nn

from transduce.core.dist import Categorical
from transduce.nn import LowerBounds
from transduce.systems.mixers import _griffin_check as griffin_check
from transduce.systems.mixers import _hgrn_check as hgrn_check
from transduce.systems.mixers import _min_rnn_check as min_rnn_check
from transduce.train.check import Check
from transduce.train.streams import smoothed

CHECKS = {"min-rnn": min_rnn_check, "hgrn": hgrn_check, "griffin": griffin_check}


@pytest.mark.parametrize("name", CHECKS)
def test_a_quick_reproduction_writes_its_record(tmp_path, monkeypatch, name):
    text = torch.randint(4, 100, (6000,), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(griffin_check, "descriptions", lambda quick: (text, text[: 2 * griffin_check.LONG]))
    monkeypatch.setattr(griffin_check, "BATCH", 4)
    report = Check(name, tmp_path, quick=True, seeds=(0,), say=lambda text: None)
    CHECKS[name].check(report)
    record = json.loads(report.write().read_text())
    assert record["passed"], [m for m in record["measured"] if m["holds"] is False]  # what is exact holds in any run
    assert record["figures"] and all((tmp_path / figure).exists() for figure in record["figures"])


class Knows(nn.Module):
    """Gives every byte a probability of its own, wherever it stands; as a language model it has no state."""

    def start(self, batch, *, capacity=None, continues=True):
        return None

    def forward(self, prev, state, *, mask=None):
        logits = torch.linspace(0, 3, 260).expand(*prev.shape, 260)
        return Categorical(logits), state


def test_griffin_compares_the_same_bytes_far_and_near():
    ids = torch.randint(4, 260, (3 * griffin_check.LONG,), generator=torch.Generator().manual_seed(0))
    by_position, far, near = griffin_check.far_and_near(Knows(), ids)
    assert by_position.shape == (griffin_check.LONG,)
    assert far == pytest.approx(near, abs=1e-5)
    assert far == pytest.approx(float(by_position[griffin_check.LONG // 2 :].mean()), abs=1e-5)


def test_hgrn_finds_a_gate_that_opens_too_far():
    bounds = LowerBounds(3, 4).double()
    assert hgrn_check.smallest_room(bounds) >= -1e-12
    shifted = lambda: bounds() + torch.tensor([0.0, 0.0, 0.6], dtype=torch.float64)[:, None]  # a bound above one
    assert hgrn_check.smallest_room(shifted) < -1e-3


def test_losses_are_smoothed_over_stretches():
    ends, values = smoothed([[1.0, 3.0, 5.0, 7.0, 100.0], [0.0, 0.0, 2.0, 2.0, 100.0]], pieces=2)
    assert ends == [2, 4] and values == [(2.0, 0.0), (6.0, 2.0)]
