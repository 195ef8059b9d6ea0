"""The retentive network: its page, and what its check compares."""

import torch
import torch.nn.functional as F

from transduce.ops.retention import retention
from transduce.systems.mixers import _retnet_check
from transduce.train.check import Check


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("retnet", tmp_path, quick=True, say=lambda text: None)
    _retnet_check.check(check)
    assert check.write().is_file()
    assert {"retnet.json", "retnet-step.png", "retnet-memory.png"} == {p.name for p in tmp_path.iterdir()}
    held = {m.metric.split(":")[0]: m.holds for m in check.measured if m.holds is not None}
    assert held["the authors' scalings"] and held["largest difference of a form from the parallel one, float64"]


def test_the_scalings_of_both_forms_are_a_factor_a_head_and_step():
    """So the direction of every output is that of plain retention, however it is scaled."""
    q, k, v, decay = _retnet_check._inputs(40, torch.float64)
    plain, _ = retention(q, k, v, decay)
    for form in (_retnet_check.scaled_parallel, _retnet_check.scaled_recurrent):
        got = form(q, k, v, decay)
        torch.testing.assert_close(F.normalize(got, dim=-1), F.normalize(plain, dim=-1))
        assert not torch.allclose(got, plain, rtol=0.05)
