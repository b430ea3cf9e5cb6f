"""Runs that train a student made by hand: what comes out, that they can be stopped, what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2CTCTokenizer

import diminuendo
from diminuendo import api
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from spoken import spoken_corpus
from tiny import QUIET, extractor_of, interrupt, micro_encoder, tiny_model, weights

SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 8, "seconds_per_batch": 6.0, "tokens": "words", "round_to": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), ["ba", "du", "ki", "ba du", "du ki", "ki ba"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_encoder("parakeet", tmp_path_factory.mktemp("encoder"))


def compress(model: Path, corpus: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return api.compress_to_result(model, corpus, out, **{"keep": "params=0.5", "task": "own", **SETTINGS, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": "wide"}, "'wide' is none of a shape's"),
        ({"student": "layers=1,width=15"}, "take a multiple of"),
        ({"student": "layers=2,width=16,ffn=9999"}, "width 16 has more than .* allow more parameters"),
        ({"student": "thin", "method": "l0"}, "--method l0 makes none"),
        ({"student": "thin", "method": "student", "matching": "free"}, "matching free: .* leave one of the two out"),
        ({"method": "l0", "maps": "last", "matching": "free"}, "matching free: maps last"),
        ({"maps": "each"}, "maps 'each': expected one of shared, layer, last"),
    ],
)
def test_students_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compress(encoder, corpus, tmp_path / "small", task="ctc", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("text", "maps"), [("layers=1,copy=first", "last"), pytest.param("deep-thin", "layer", marks=pytest.mark.slow)]
)
def test_a_student_made_by_hand_is_trained_saved_and_the_same_when_resumed(
    text: str, maps: str, encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"student": text, "maps": maps, "keep": "params=0.7", "task": "ctc"}
    result = compress(encoder, corpus, tmp_path / "whole", **settings)
    model = diminuendo.load(tmp_path / "whole")
    assert type(model).__name__ == "ParakeetForCTC"
    shape, config = result["student"], model.config.encoder_config
    assert (shape["layers"], shape["width"]) == (config.num_hidden_layers, config.hidden_size)
    assert (shape["begun_as_layers"], shape["copied"] == 1.0) == (([0], True) if maps == "last" else ([], False))
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            compress(encoder, corpus, tmp_path / "parts", **settings)
    compress(encoder, corpus, tmp_path / "parts", resume=True, **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_thin_student_of_a_model_whose_blank_is_not_last_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = tiny_model("hubert", "base", ctc=True)  # whose blank is 0
    save(model, extractor_of(model), tmp_path / "asr")
    labels = {"<pad>": 0, "|": 1, **{letter: i for i, letter in enumerate("badukizos"[:9], start=2)}}
    (tmp_path / "vocab.json").write_text(json.dumps(labels))
    Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", pad_token="<pad>", unk_token=None).save_pretrained(tmp_path / "asr")
    with pytest.raises(UserError, match="MODEL's blank is 0, a new head has it last"):
        compress(tmp_path / "asr", corpus, tmp_path / "small", method="student", tokens=None, keep="params=0.9")


@pytest.mark.parametrize(("text", "by_batch"), [("thin", True), ("layers=1,copy=first", False)])
def test_batch_norms_learn_statistics_in_layers_that_are_drawn_anew_and_keep_those_that_are_copied(
    text: str, by_batch: bool, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    compress(encoder, corpus, tmp_path / "small", student=text, task="ctc", keep="params=0.8")
    model = diminuendo.load(tmp_path / "small")
    means = [module.running_mean for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert means
    assert all(bool(mean.any()) == by_batch for mean in means)
