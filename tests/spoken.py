"""Clips that say something: every word is a tone of its own, so that tiny models can learn to tell words apart."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
TONES = {"ba": 300.0, "du": 900.0, "ki": 2500.0}


def say(text: str, seconds: float = 0.32) -> np.ndarray:
    """Tones with silence around, and a little noise."""
    noise = np.random.default_rng(len(text)).standard_normal
    time = np.arange(round(seconds * RATE)) / RATE
    gap = np.zeros(round(0.1 * RATE))
    parts = [gap]
    for word in text.split():
        parts += [0.3 * np.sin(2 * np.pi * TONES.get(word, 150.0) * time) * np.hanning(len(time)), gap]
    joined = np.concatenate(parts)
    return joined + 0.003 * noise(len(joined))


def spoken_corpus(folder: Path, texts: Sequence[str | None], splits: Sequence[str] = ()) -> Path:
    """A manifest of clips that say these texts; of None a word is said that is written nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, text in enumerate(texts):
        samples = say(text or "ba")
        soundfile.write(folder / f"{i}.wav", samples, RATE)
        row = {"audio_filepath": f"{i}.wav", "duration": len(samples) / RATE, "speaker": f"s{i % 2}"}
        row |= {} if text is None else {"text": text}
        row |= {"split": splits[i]} if splits else {}
        rows.append(json.dumps(row) + "\n")
    (folder / "manifest.jsonl").write_text("".join(rows))
    return folder / "manifest.jsonl"
