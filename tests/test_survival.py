"""A process that is killed outright, at any moment, loses nothing: see benchmarks/survival.py for many more."""

from __future__ import annotations

from survival import killed_while_saving, killed_while_training


def test_killed_while_saving_the_newest_whole_checkpoint_is_read(tmp_path):
    found = killed_while_saving(tmp_path, kills=8, seed=1)
    assert found.kills == 8 and found.lost == 0
    assert found.in_the_middle > 0, "no kill hit a save that was under way"


def test_killed_while_training_the_resumed_losses_are_those_of_an_uninterrupted_run(tmp_path):
    found = killed_while_training(tmp_path, kills=4, seed=2)
    assert found.kills == 4 and found.lost == 0
    assert found.losses == found.uninterrupted
