"""The exact parts of the page `regular-lrnn`, and its variants."""

from transduce import systems
from transduce.systems.mixers import _regular_lrnn_check as regular
from transduce.testing.system import check_system
from transduce.train.check import Check


def test_other_blocks_make_a_language_model():
    page = systems.find("regular-lrnn")
    check_system(page, config=page.config_type(blocks="stochastic"))


def test_blocks_set_by_hand_are_right_at_any_length():
    assert regular.built_by_hand(2000) == {"sum": 1.0, "even pair": 1.0}


def test_no_read_out_of_a_diagonal_recovers_the_sum():
    assert regular.best_readout_of_a_diagonal(200, 1000) < 0.3


def test_quick_check(tmp_path):
    report = Check("regular-lrnn", tmp_path, quick=True, seeds=(0,), say=lambda line: None)
    regular.check(report)
    measured = {m.metric: m for m in report.measured}
    assert all(m.holds for name, m in measured.items() if "hand" in name or "log-depth" in name)
    assert (tmp_path / "regular-lrnn-sum.png").exists() and len(measured) == 21
