"""Checkpoints are absent, temporary or complete, whatever happens to the process or the disk."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from train_toys import listing

from transduce.core.errors import UserError
from transduce.train import checkpoint, storage


def put(folder: Path, number: int) -> Path:
    return checkpoint.save(
        folder,
        {"model": {"w": torch.full((3, 4), float(number)), "n": torch.tensor(number)}},
        {"step": number},
    )


def test_round_trip_keeps_tensors_state_and_only_the_newest(tmp_path):
    tensors = {
        "model": {"w": torch.randn(3, 4), "half": torch.randn(2).bfloat16(), "scalar": torch.tensor(3)},
        "random": {"cpu": torch.get_rng_state()},
        "empty": {},
    }
    checkpoint.save(tmp_path, tensors, {"step": 1})
    path = checkpoint.save(tmp_path, tensors, {"step": 2, "note": "ü", "nested": [1, None, {"a": 0.1}]})
    found = checkpoint.load(tmp_path)
    assert found.state == {"step": 2, "note": "ü", "nested": [1, None, {"a": 0.1}]}
    assert {g: set(t) for g, t in found.tensors.items()} == {g: set(t) for g, t in tensors.items()}
    for group, named in tensors.items():
        for name, tensor in named.items():
            assert torch.equal(found.tensors[group][name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    suffixes = {p.suffix for p in path.iterdir()}
    assert suffixes == {".safetensors", ".json"}


@pytest.mark.parametrize("harm", ["cut", "flip", "missing", "longer"])
@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_harm_is_found_and_the_file_named(tmp_path, harm, file):
    victim = put(tmp_path, 1) / file
    content = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    else:
        flipped = bytes([content[-3] ^ 1])
        victim.write_bytes(
            {"cut": content[:-1], "flip": content[:-3] + flipped + content[-2:], "longer": content + b" "}[
                harm
            ]
        )
    with pytest.raises(checkpoint.CheckpointError, match=file.replace(".", r"\.")) as caught:
        checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"files": {}}', b"\xff", b'{"format": 1, "files": {"state.json": 3}}']
)
def test_a_damaged_manifest_is_one_sentence(tmp_path, content):
    (put(tmp_path, 1) / "manifest.json").write_bytes(content)
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path)


def test_a_manifest_cannot_reach_outside_its_folder(tmp_path):
    path = put(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": storage.digest(b"x")}
    (tmp_path / "secret").write_bytes(b"x")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(checkpoint.CheckpointError, match="secret"):
        checkpoint.load(tmp_path)


def test_another_format_is_refused(tmp_path):
    path = put(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(checkpoint.CheckpointError, match="format 99"):
        checkpoint.load(tmp_path)


def test_an_older_intact_one_is_used_and_the_damage_told(tmp_path, monkeypatch):
    put(tmp_path, 1)
    with monkeypatch.context() as patch:
        # as if the process had died before the older one was deleted
        patch.setattr(checkpoint, "verify", lambda path: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError):
            put(tmp_path, 2)
    newest = checkpoint.stored(tmp_path)[0]
    assert checkpoint.load(tmp_path).state == {"step": 2}
    (newest / "state.json").write_bytes(b"{}")
    found = checkpoint.load(tmp_path)
    assert found.state == {"step": 1} and "state.json" in found.skipped[0]


def test_nothing_stored_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path / "none")


@pytest.mark.parametrize(
    "code, word", [(errno.ENOSPC, "full"), (errno.EROFS, "read-only"), (errno.EACCES, "permission")]
)
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_disk_that_refuses_leaves_the_last_one_intact(tmp_path, monkeypatch, code, word, failing):
    put(tmp_path, 1)
    before = listing(tmp_path)
    calls = []

    def refuse(path, content):
        calls.append(path)
        path.write_bytes(content[: len(content) // 2])
        if len(calls) > failing:
            raise OSError(code, os.strerror(code))
        path.write_bytes(content)

    monkeypatch.setattr(checkpoint, "write_new", refuse)
    with pytest.raises(UserError, match=word):
        put(tmp_path, 2)
    assert listing(tmp_path) == before
    assert checkpoint.load(tmp_path).state == {"step": 1}


def test_random_state_round_trip():
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    kept = {k: v.clone() for k, v in checkpoint.random_state(generator).items()}
    first = (torch.rand(3), torch.rand(3, generator=generator))
    checkpoint.restore_random(kept, generator)
    assert torch.equal(first[0], torch.rand(3)) and torch.equal(first[1], torch.rand(3, generator=generator))


def test_killed_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL in the middle of saving, ten times over the same folder."""
    folder, moments, last = tmp_path / "checkpoint", random.Random(0), 0
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                number = last
                while True:
                    number += 1
                    tensors = {
                        g: {str(i): torch.full((50_000,), float(number)) for i in range(4)}
                        for g in ("a", "b")
                    }
                    checkpoint.save(folder, tensors, {"step": number})
            finally:
                os._exit(1)
        deadline = time.monotonic() + 20
        while not checkpoint.stored(folder) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoint.load(folder)
        assert found.skipped == () and found.state["step"] >= last
        last = found.state["step"]
        assert all(bool((t == last).all()) for group in found.tensors.values() for t in group.values())
    put(folder, last + 1)
    assert len(list(folder.iterdir())) == 1
