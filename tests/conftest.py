import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for tests/tiny.py


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """The command line sets the level of our log, for good."""
    yield
    logging.getLogger("diminuendo").setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def audio_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clips of 0.6 to 1.3 s, 16 kHz."""
    folder = tmp_path_factory.mktemp("audio")
    generator = np.random.default_rng(0)
    for i in range(8):
        samples = 0.1 * generator.standard_normal(9600 + 1600 * i)
        soundfile.write(folder / f"clip{i}.wav", samples, 16_000)
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny HuBERT with random weights, saved."""
    from transformers import Wav2Vec2FeatureExtractor

    from diminuendo.export.huggingface import save
    from tiny import tiny_model

    folder = tmp_path_factory.mktemp("models") / "teacher"
    save(tiny_model(), Wav2Vec2FeatureExtractor(), folder)
    return folder
