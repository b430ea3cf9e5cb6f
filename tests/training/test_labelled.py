"""Clips that have no texts, some or all of them: what is learned of those."""

from pathlib import Path
from typing import Any

import pytest

from diminuendo import api
from diminuendo.data.manifest import read_cuts
from diminuendo.data.tokens import load_tokens
from diminuendo.errors import UserError
from diminuendo.given import source_of
from diminuendo.training.labelled import PartlyLabelledClips
from spoken import spoken_corpus
from tiny import QUIET, micro_encoder

SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 8, "seconds_per_batch": 6.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An encoder, and recognisers on it."""
    folder = tmp_path_factory.mktemp("models")
    micro_encoder("parakeet", folder)
    corpus = spoken_corpus(tmp_path_factory.mktemp("spoken"), ["ba", "du", "ki", "ba du", "du ki", "ki ba"])
    for task in ("ctc", "rnnt"):
        made = {"task": task, "tokens": "words", "predictor_width": 16}
        api.finetune(folder / "parakeet", corpus, folder / f"parakeet-{task}", **made, **SETTINGS)
    return {path.name: path for path in folder.iterdir()}


def compress(model: Path, corpus: Path, out: Path, **settings: Any) -> dict[str, Any]:
    given = {"keep": "params=0.5", "task": "own", "round_to": 1, **SETTINGS, **settings}
    return api.compress_to_result(model, corpus, out, **given)


def test_clips_without_texts_say_what_the_teacher_hears(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = spoken_corpus(tmp_path / "silent", [None] * 6)
    with caplog.at_level("INFO", logger="diminuendo"):
        result = compress(models["parakeet-ctc"], silent, tmp_path / "small")
    assert "DATA has no texts: what the teacher hears is what is learned" in caplog.text
    assert result["params"]["kept"] <= 0.5
    with pytest.raises(UserError, match="DATA has no texts"):
        compress(models["parakeet"], silent, tmp_path / "other")


def test_what_some_clips_say_is_learned_beside_what_the_teacher_hears_in_the_others(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: dict[str, list[int]] = {}
    original = PartlyLabelledClips.texts

    def texts(self: Any, batch: Any) -> Any:
        batch, found = original(self, batch)
        learned.update(zip([cut.id for cut in batch.cuts], found, strict=True))
        return batch, found

    monkeypatch.setattr(PartlyLabelledClips, "texts", texts)
    corpus = spoken_corpus(tmp_path / "partly", ["ba", None, "du", None, "ki", "ba du"])
    with caplog.at_level("INFO", logger="diminuendo"):
        compress(models["parakeet-rnnt"], corpus, tmp_path / "small")
    assert "2 of 6 clips have no text: of these what the teacher hears is what is learned" in caplog.text
    source = source_of(models["parakeet-rnnt"])
    tokens = load_tokens(str(models["parakeet-rnnt"]), source.model.config)
    cuts = list(read_cuts(corpus, None))
    heard = api.transcribe(models["parakeet-rnnt"], [cut.recording.sources[0].source for cut in cuts])
    for cut, one in zip(cuts, heard, strict=True):
        text = cut.supervisions[0].text
        assert tokens.decode(learned[cut.id]) == (one["text"] if text is None else text)


def test_without_a_teacher_clips_without_texts_say_what_the_recogniser_heard_before_it_was_cut(
    models: dict[str, Path], tmp_path: Path
) -> None:
    silent = spoken_corpus(tmp_path / "silent", [None] * 6)
    result = compress(models["parakeet-rnnt"], silent, tmp_path / "small", recipe="prune-only-l0")
    assert result["params"]["kept"] <= 0.5
