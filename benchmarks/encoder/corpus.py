"""The audio of the encoder benchmark: folders with manifests, decoded once to WAV, as one manifest for training.

A row of a manifest.jsonl has `audio_filepath`, `duration` in seconds and, where there are splits, `split`; one of
arabic_commands also `keyword`, `speaker` and `take`. Ours are freely licensed recordings, 5.8 hours in train splits:
arabic_commands (github.com/abdulkaderghandoura/arabic-speech-commands-dataset: 40 words, 30 speakers, 10 takes of one
second), arctic (CMU ARCTIC, two voices), kathleen (github.com/rhasspy/dataset-voice-cathy), librispeech_unlabelled (one
clip of each speaker of train-clean-100) and digits (github.com/Jakobovski/free-spoken-digit-dataset).
"""

import json
import logging
import random
from pathlib import Path
from typing import Any

import soundfile

from diminuendo.data.audio import BadAudio, load_waveform
from diminuendo.data.manifest import ALL, read_cuts
from diminuendo.errors import UserError

log = logging.getLogger(__name__)

PROBE = "arabic_commands"


def prepare(speech: Path, work: Path) -> Path:
    """Decodes every folder of `speech` that has a manifest.jsonl to `work`/audio; gives that folder.

    Compressed audio is read at some 300 seconds a second, by every run again; WAV costs nothing. Audio is 16 kHz mono,
    16 bit. What is there already is kept; clips that cannot be used are left out and named.

    Raises UserError if the clips of the probes are not there.
    """
    if not (speech / PROBE / "manifest.jsonl").is_file():
        raise UserError(f"SPEECH {speech}: expected folders with a manifest.jsonl each, {PROBE} among them")
    for manifest in sorted(speech.glob("*/manifest.jsonl")):
        target = work / "audio" / manifest.parent.name
        done = target / "manifest.jsonl"
        if done.is_file():
            continue
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        cuts = {cut.recording.sources[0].source: cut for cut in read_cuts(manifest, ALL)}
        target.mkdir(parents=True, exist_ok=True)
        kept: list[dict[str, Any]] = []
        for i, row in enumerate(rows):
            cut = cuts[str(manifest.parent / row["audio_filepath"])]
            try:
                samples = load_waveform(cut)
            except BadAudio as bad:
                log.warning("left out %s: %s", row["audio_filepath"], bad)
                continue
            kept.append(row | {"audio_filepath": f"{i:05d}.wav"})
            soundfile.write(target / kept[-1]["audio_filepath"], samples, 16_000)
        beside = done.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        beside.rename(done)
    return work / "audio"


def training_manifest(audio: Path, fraction: float = 1.0, seed: int = 0) -> Path:
    """All train clips, of folders without splits all clips, as one manifest; or a seeded fraction of each folder's."""
    path = audio / f"train_{fraction:g}.jsonl"
    if path.is_file():
        return path
    chosen: list[dict[str, Any]] = []
    for manifest in sorted(audio.glob("*/manifest.jsonl")):
        rows = [json.loads(line) for line in manifest.read_text().splitlines()]
        rows = [row for row in rows if row.get("split", "train") == "train"]
        for row in random.Random(seed).sample(rows, round(fraction * len(rows))):
            seconds = {"duration": row["duration"]}
            chosen.append({"audio_filepath": f"{manifest.parent.name}/{row['audio_filepath']}", **seconds})
    beside = path.with_suffix(".tmp")
    beside.write_text("".join(json.dumps(row) + "\n" for row in chosen))
    beside.rename(path)
    return path
