"""Every page of the catalogue: builds, obeys the decoder laws, learns one batch, saves and loads."""

import pytest
import torch

from transduce import systems
from transduce.nn.pyramid import GatedPyramid, brackets, read_tree
from transduce.core.seq import Seq
from transduce.systems.encoder_decoder import _grconv_check as grconv_check
from transduce.testing.system import check_system
from transduce.train.check import Check

VARIANTS = {
    "rnnsearch": [{"score": "location"}, {"score": "general"}, {"coverage": True}, {"encoder_layers": 2}],
    "grconv": [{"encoder": "rnn"}],
    "transformer": [{"position": "sinusoidal"}, {"position": "alibi"}],
    "transformer-lm": [{"window": 4}],
}


@pytest.mark.parametrize("name", systems.names())
def test_system(name):
    check_system(systems.find(name))


@pytest.mark.parametrize("name, change", [(n, c) for n, changes in VARIANTS.items() for c in changes])
def test_variants_of_a_system(name, change):
    page = systems.find(name)
    check_system(page, config=page.config_type(**change))


def test_pyramid_identities_are_exact():
    assert max(grconv_check.pyramid_identities().values()) < 1e-12


def test_the_apex_of_each_row_is_its_own():
    torch.manual_seed(0)
    pyramid = GatedPyramid(5, 7).double()
    x = torch.randn(3, 6, 5, dtype=torch.float64)
    lengths = torch.tensor([6, 1, 4])
    together = pyramid(Seq.from_lengths(x, lengths))
    for i, n in enumerate(lengths.tolist()):
        torch.testing.assert_close(together[i], pyramid(Seq(x[i : i + 1, :n]))[0])
    poisoned = torch.where(torch.arange(6)[None, :, None] < lengths[:, None, None], x, float("nan"))
    torch.testing.assert_close(pyramid(Seq.from_lengths(poisoned, lengths)), together)


def test_trees_follow_the_gates():
    merge, left, right = torch.eye(3)
    gates = [
        torch.stack([merge, left])[None],
        right[None, None],
    ]  # apex takes its right child, which passes its left one
    assert read_tree(gates, 0, 3) == 1
    gates = [torch.stack([merge, left])[None], merge[None, None]]
    assert read_tree(gates, 0, 3) == ((0, 1), 1)
    assert brackets(((0, 1), 2)) == {(0, 1), (0, 2)}


def test_a_quick_reproduction_writes_its_record(tmp_path):
    check = Check("grconv", tmp_path, quick=True, say=lambda text: None)
    grconv_check.check(check)
    assert check.write().is_file()
    assert {"grconv.json", "grconv-length.png", "grconv-unknown.png"} == {p.name for p in tmp_path.iterdir()}
