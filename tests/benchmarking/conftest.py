"""Recordings of words and sentences that benchmarks of recognisers make their tasks of."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """Three words by a speaker of each split and by two of digits, one of them for tests; a sentence in each split."""
    random = np.random.default_rng(0)
    voices = {"arabic_commands": {"0001": "train", "0002": "dev", "0003": "test"}, "digits": {"a": None, "theo": None}}
    for folder, speakers in voices.items():
        (tmp_path / "speech" / folder).mkdir(parents=True)
        rows = []
        for speaker, split in speakers.items():
            for keyword in ("zero", "one", "two"):
                path = f"{speaker}_{keyword}.wav"
                soundfile.write(tmp_path / "speech" / folder / path, random.uniform(-0.5, 0.5, 8000), 16_000)
                row = {"audio_filepath": path, "duration": 0.5, "keyword": keyword, "speaker": speaker}
                rows.append(row | ({"split": split} if split else {}))
        manifest = tmp_path / "speech" / folder / "manifest.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "speech" / "arctic").mkdir()
    rows = []
    for split in ("train", "dev", "test"):
        soundfile.write(tmp_path / "speech" / "arctic" / f"{split}.wav", random.uniform(-0.5, 0.5, 32_000), 16_000)
        row = {"audio_filepath": f"{split}.wav", "duration": 2.0, "text": "Not at this, Tom!", "speaker": "slt"}
        rows.append(row | {"split": split})
    (tmp_path / "speech" / "arctic" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "speech"
