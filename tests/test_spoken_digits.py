"""Spoken digits: the archive they are read from, and what is made of them."""

import io
import tarfile
import wave

import numpy as np
import pytest
import torch

from transduce.core.errors import DataError
from transduce.data.corpora import _spoken_digits
from transduce.data.corpora._spoken_digits import load_recordings
from transduce.systems.mixers import _spoken


def sound(samples: np.ndarray) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, _spoken_digits.RATE, 0, "NONE", ""))
        file.writeframes(samples.astype(np.int16).tobytes())
    return content.getvalue()


def tone(frequency: float, seconds: float) -> np.ndarray:
    return 8000 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * _spoken_digits.RATE)) / _spoken_digits.RATE)


@pytest.fixture
def archive(tmp_path):
    with tarfile.open(tmp_path / _spoken_digits.FILE, "w") as file:
        for digit, take in ((3, 0), (4, 5), (5, 10), (6, 49)):
            content = sound(tone(300 * digit, 0.1 + 0.05 * digit))
            member = tarfile.TarInfo(f"dataset-1.0/recordings/{digit}_ann_{take}.wav")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return tmp_path


def test_takes_make_the_parts(archive, monkeypatch):
    with pytest.raises(DataError, match="does not hold the expected"):
        load_recordings(archive)
    files = _spoken_digits._files(archive / _spoken_digits.FILE)
    monkeypatch.setattr(_spoken_digits, "DIGEST", _spoken_digits.digest(files))
    parts = load_recordings(archive)
    assert {name: [r.digit for r in part] for name, part in parts.items()} == {"train": [5, 6], "valid": [4], "test": [3]}
    assert parts["test"][0].samples.dtype == np.int16 and len(parts["test"][0].samples) == 2000


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / _spoken_digits.FILE).write_bytes(b"not a tar file")
    with pytest.raises(DataError, match="no archive"):
        load_recordings(tmp_path)


def test_a_tone_lights_its_band():
    recording = _spoken_digits.Recording(tone(1000, 0.5).astype(np.int16), 1)
    energies = _spoken.mel_energies(recording)
    assert energies.shape == (48, _spoken.BANDS)  # 25 ms every 10 ms of half a second
    brightest = energies.mean(0).argmax()
    bins = _spoken.mel_bands()[brightest].nonzero().flatten() * _spoken_digits.RATE / 256
    assert bins.min() <= 1000 <= bins.max()
    assert torch.isfinite(_spoken.mel_energies(_spoken_digits.Recording(np.zeros(50, np.int16), 0))).all()


def test_spoken_digits_end_in_nothing(archive, monkeypatch):
    found = _spoken_digits._files(archive / _spoken_digits.FILE)
    monkeypatch.setattr(_spoken_digits, "DIGEST", _spoken_digits.digest(found))
    monkeypatch.setenv("TRANSDUCE_DATA", str(archive))
    parts = _spoken.spoken_digits()
    assert parts["train"].labels.tolist() == [5, 6, 4] and parts["test"].labels.tolist() == [3]
    assert _spoken.spoken_digits(choosing=True)["test"].labels.tolist() == [4]
    lengths = _spoken.steps(parts["train"].inputs)
    assert lengths.tolist() == [33, 38, 28]
    assert parts["train"].inputs[1].mean().isfinite() and parts["train"].inputs[0, 33:].isnan().all()
