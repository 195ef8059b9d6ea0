"""Bundles: what is written comes back, and everything that is not a sound bundle is refused."""

from __future__ import annotations

import errno
import json
import os
import struct
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as official_load
from safetensors.torch import save as format_tensors
from train_toys import ToyConfig, listing, pairs, toy

from transduce.core.errors import BundleError, UserError
from transduce.train import bundle, storage
from transduce.train.tensorfile import check_layout

DATA = pairs()
ABOUT = {
    "corpus": {
        "name": "toy words",
        "kind": "pairs",
        "licence": "CC0",
        "origin": "made up",
        "sequence_name": "word error",
        "symbol_name": "letter error",
        "train": 100,
        "valid": 10,
        "test": 10,
    },
    "training": {"steps": 1234, "seconds": 56.7, "schedule": "one-cycle"},
}
METRICS = {"valid": {"loss": 0.5, "sequence_error": 0.321, "symbol_error": 0.0456, "rows": 10}}


@pytest.fixture
def folder(tmp_path):
    system = toy(DATA)
    return bundle.write(tmp_path / "bundle", system.model, "toy", system.config, DATA.spec, METRICS, ABOUT)


def describe(folder, **changes):
    """Change entries of bundle.json; None removes one."""
    path = folder / "bundle.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def put_weights(folder, content: bytes):
    """Replace the weights and make size and checksum agree, as a forger would."""
    (folder / "model.safetensors").write_bytes(content)
    describe(folder, weights={"bytes": len(content), "sha256": storage.digest(content)})


def refused(folder, match):
    with pytest.raises(BundleError, match=match) as caught:
        bundle.read(folder)
    assert "\n" not in str(caught.value)


def raw(header: str | bytes, data: bytes) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header)) + header + data


def test_round_trip(folder):
    parts = bundle.read(folder)
    assert parts.system_name == "toy" and parts.metrics == METRICS and parts.corpus == ABOUT["corpus"]
    assert parts.config_as(ToyConfig) == ToyConfig()
    assert parts.spec.to_json() == DATA.spec.to_json()
    source, fresh = toy(DATA).model, toy(DATA, seed=1).model
    parts.load_into(fresh)
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), fresh.parameters()))
    assert fresh.out.weight is fresh.target.weight
    assert listing(folder.parent) == [
        "bundle",
        "bundle/README.md",
        "bundle/bundle.json",
        "bundle/model.safetensors",
    ]
    assert set(official_load((folder / "model.safetensors").read_bytes())) == set(parts.weights)


def test_the_card_says_what_was_measured_how_and_on_what(folder):
    card = (folder / "README.md").read_text()
    for expected in (
        "| valid | word error | 32.10 % |",
        "| valid | letter error | 4.56 % |",
        "CC0",
        "made up",
        "1,234",
        "transduce.load",
        "100 train, 10 valid, 10 test",
    ):
        assert expected in card
    bundle.add_metrics(folder, {"test": {"sequence_error": 0.25}})
    assert "| test | word error | 25.00 % |" in (folder / "README.md").read_text()
    assert bundle.read(folder).metrics == {**METRICS, "test": {"sequence_error": 0.25}}


def test_it_is_never_overwritten_unless_asked(folder):
    system = toy(DATA, seed=4)
    write = lambda overwrite: bundle.write(
        folder, system.model, "toy", system.config, DATA.spec, {}, None, overwrite
    )
    with pytest.raises(BundleError, match="exists already"):
        write(False)
    assert bundle.read(folder).metrics == METRICS
    write(True)
    assert bundle.read(folder).metrics == {} and len(listing(folder.parent)) == 4


def test_overwriting_spares_what_is_not_a_bundle(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    system = toy(DATA)
    with pytest.raises(BundleError, match="not a transduce bundle"):
        bundle.write(tmp_path / "thesis", system.model, "toy", system.config, DATA.spec, {}, None, True)
    assert listing(tmp_path) == ["thesis", "thesis/chapter.txt"]


@pytest.mark.parametrize("failing", ["model.safetensors", "README.md", "bundle.json"])
def test_a_full_disk_leaves_the_old_bundle(folder, monkeypatch, failing):
    def full(path, content):
        if path.name == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(content)

    monkeypatch.setattr(bundle, "write_new", full)
    system = toy(DATA, seed=4)
    with pytest.raises(UserError, match="disk is full"):
        bundle.write(folder, system.model, "toy", system.config, DATA.spec, {}, None, True)
    assert bundle.read(folder).metrics == METRICS and len(listing(folder.parent)) == 4


def test_weights_that_are_not_finite_are_neither_written_nor_read(folder, tmp_path):
    system = toy(DATA)
    good = bundle.read(folder).weights
    for value in (float("nan"), float("inf")):
        bad = {n: t.clone() for n, t in good.items()}
        bad["gru.bias_ih_l0"][3] = value
        put_weights(folder, format_tensors(bad))
        refused(folder, r"not finite numbers \(in gru.bias_ih_l0\)")
        with pytest.raises(BundleError, match="no bundle was written"):
            bundle.write(tmp_path / "other", bad, "toy", system.config, DATA.spec, {})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "text, match",
    [
        ('{"kind": "transduce bundle", "kind": "transduce bundle"}', "ambiguous.*kind"),
        ('{"kind": "transduce bundle", "format": 1, "config": {"a": 1, "a": 2}}', 'ambiguous.*"a"'),
        ('{"kind": "transduce bundle", "format": NaN}', "NaN"),
        ("[" * 100_000, "nested too deeply"),
        ('{"kind": "transduce bund', "cut off"),
        ("", "cut off"),
        ("[]", "not written by transduce"),
        ('{"model_type": "bert"}', "not written by transduce"),
        ('{"kind": "transduce bundle"}', "no valid format version"),
        ('{"kind": "transduce bundle", "format": "1"}', "no valid format version"),
        ('{"kind": "transduce bundle", "format": 1}', '"system" is missing'),
    ],
)
def test_bad_json_is_refused(folder, text, match):
    (folder / "bundle.json").write_text(text)
    refused(folder, match)


def test_json_that_is_not_text_or_too_large_is_refused(folder, monkeypatch):
    (folder / "bundle.json").write_bytes(b"\xff\xfe{}")
    refused(folder, "damaged")
    monkeypatch.setattr(bundle, "LARGEST_JSON", 1)
    refused(folder, "more than the 1")


def test_a_newer_format_is_refused_with_the_remedy(folder):
    describe(folder, format=2, versions={"transduce": "7.1"})
    refused(folder, "upgrade transduce .*7.1")


@pytest.mark.parametrize("name", ["system", "config", "spec", "metrics", "weights", "versions"])
def test_missing_and_wrong_entries_are_named(folder, name):
    describe(folder, **{name: 5})
    refused(folder, f'"{name}"')
    describe(folder, **{name: None})
    refused(folder, f'"{name}"')


def test_damaged_fields_are_refused(folder):
    describe(folder, spec={"nothing": 1})
    refused(folder, "data fields")


def test_missing_and_strange_files_are_refused(folder, tmp_path):
    refused(tmp_path / "nowhere", "no bundle at")
    (folder / "model.safetensors").unlink()
    refused(folder, "no model.safetensors")
    os.mkfifo(folder / "model.safetensors")  # opening it would wait for ever
    refused(folder, "not an ordinary file")


def test_cut_lengthened_and_changed_weights_are_refused(folder):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    refused(folder, f"cut off: it has {len(content) - 100} bytes instead of {len(content)}")
    path.write_bytes(content + b"\0")
    refused(folder, "too large")
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(folder, "SHA-256")


ENTRY = '"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


@pytest.mark.parametrize(
    "content, match",
    [
        (raw("{" + ENTRY + ", " + ENTRY + "}", bytes(8)), '"w" stands there twice'),
        (
            raw('{"w": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
            "twice",
        ),
        (raw("{" + ENTRY + "}", bytes(12)), "8 bytes of data and 12 are there"),
        (raw("{" + ENTRY + "}", bytes(4)), "8 bytes of data and 4 are there"),
        (raw('{"w": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', bytes(12)), "gap or overlap"),
        (
            raw("{" + ENTRY + ', "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', bytes(12)),
            "gap or overlap",
        ),
        (raw('{"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', bytes(8)), "malformed"),
        (raw('{"w": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}', bytes(8)), "malformed"),
        (raw('{"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', bytes(8)), "malformed"),
        (raw('{"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}', bytes(8)), "malformed"),
        (raw('{"w": 3}', b""), "malformed"),
        (raw("[]", b""), "not a table"),
        (raw("{not json", b""), "not JSON"),
        (b"PK\x03\x04", "shorter than a header"),
        (b"\x80\x04\x95" + bytes(40), "header claims"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header claims"),
        (struct.pack("<Q", 100) + b"{}", "only 2 follow"),
    ],
)
def test_bad_tensor_files_are_refused(folder, content, match):
    put_weights(folder, content)
    refused(folder, match)


def test_the_official_reader_would_have_taken_duplicates():
    """Why the header is read here as well: the usual reader lets the later entry win without a word."""
    content = raw("{" + ENTRY + ", " + ENTRY + "}", struct.pack("<2f", 1.0, 2.0))
    assert official_load(content)["w"].tolist() == [1.0, 2.0]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_flip_of_the_header_is_sound_or_refused(data):
    content = bytearray(format_tensors({"a": torch.zeros(3), "b": torch.zeros(2, 2)}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 29))] = data.draw(st.integers(0, 255))
    try:
        check_layout(bytes(content), "file")
    except BundleError:
        return
    assert sum(t.numel() for t in official_load(bytes(content)).values()) <= 28


def test_tensors_must_fit_the_model(folder):
    parts = bundle.read(folder)
    model = toy(DATA, seed=3).model
    before = [p.clone() for p in model.parameters()]
    good = parts.weights

    def refuse(tensors, match):
        broken = bundle.BundleParts(tensors, "toy", {}, DATA.spec)
        with pytest.raises(BundleError, match=match):
            broken.load_into(model)

    refuse({n: t for n, t in good.items() if n != "out.bias"}, "lacks the tensor out.bias")
    refuse({**good, "extra": torch.zeros(1)}, "has the tensor extra")
    refuse({**good, "out.bias": torch.zeros(2)}, r"out.bias in shape \(2,\)")
    refuse(
        {**good, "out.bias": torch.zeros(good["out.bias"].shape, dtype=torch.long)}, "out.bias as torch.int64"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


@dataclass(frozen=True)
class Inner:
    heads: int = 2


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    sizes: tuple[int, ...] = (1, 2)
    width: int = field(default=8)

    def __post_init__(self):
        if self.width < 1:
            raise ValueError("width must be at least 1")


def test_configs_come_back_as_their_classes(tmp_path):
    config = Outer(Inner(4), (3, 4, 5), 16)
    parts = bundle.read(bundle.write(tmp_path / "b", toy(DATA).model, "toy", config, DATA.spec, {}))
    assert parts.config_as(Outer) == config
    for values, match in (
        ({"widht": 3}, 'Did you mean "width"'),
        ({"width": 0}, "width must be"),
        ({"inner": 3}, "table"),
    ):
        with pytest.raises(BundleError, match=match):
            bundle.BundleParts({}, "toy", values, DATA.spec).config_as(Outer)
