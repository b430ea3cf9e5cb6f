"""Loading: what comes back, and one clear line for everything that cannot be loaded."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    HubertForCTC,
    UniSpeechSatForPreTraining,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Processor,
)

from conformance.test_removal import gated_and_removed
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import load, load_feature_extractor
from tiny import VARIANTS, output_of, tiny_config, tiny_model


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("ctc", [False, True])
@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_a_stock_model_comes_back_as_it_was_saved(family: str, style: str, ctc: bool, tmp_path: Path) -> None:
    model = tiny_model(family, style, ctc=ctc)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert torch.equal(output_of(loaded), output_of(model))


@pytest.mark.parametrize(
    ("cls", "family", "encoder"),
    [(Wav2Vec2ForPreTraining, "wav2vec2", "wav2vec2"), (UniSpeechSatForPreTraining, "unispeech-sat", "unispeech_sat")],
)
def test_of_a_pretraining_checkpoint_the_encoder_is_taken_and_the_rest_is_named(
    cls: Any, family: str, encoder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = cls(tiny_config(family, "large", num_codevectors_per_group=4, codevector_dim=8)).eval()
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "diminuendo"):
        loaded = load(tmp_path)
    assert torch.equal(output_of(loaded), output_of(getattr(model, encoder)))
    assert "tensors are not used" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_load_in_fp32(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(output_of(loaded), output_of(model.float()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "model"
    save(tiny_model(), Wav2Vec2FeatureExtractor(), directory)
    return directory


@pytest.fixture(scope="module")
def saved_compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "compressed"
    model = gated_and_removed(tiny_model(), "channels", "some").removed
    save(model, Wav2Vec2FeatureExtractor(), directory)
    return directory


Damage = Callable[[Path], None]


def config(**changes: Any) -> Damage:
    def change(directory: Path) -> None:
        path = directory / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))

    return change


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def change(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        edit(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return change


def cut(fraction: float) -> Damage:
    def change(directory: Path) -> None:
        content = (directory / "model.safetensors").read_bytes()
        (directory / "model.safetensors").write_bytes(content[: int(len(content) * fraction)])

    return change


def written(name: str, content: bytes) -> Damage:
    return lambda directory: (directory / name).write_bytes(content) and None


def without(name: str) -> Damage:
    return lambda directory: (directory / name).unlink()


BROKEN: dict[str, tuple[Damage, str]] = {
    "no config": (without("config.json"), "has no config.json; expected a directory written by save_pretrained"),
    "no weights": (
        without("model.safetensors"),
        "weights cannot be read as a hubert model (Error no file named model.saf",
    ),
    "weights cut at half": (
        cut(0.5),
        "weights cannot be read as a hubert model (Error while deserializing header: incompl",
    ),
    "weights cut in the header": (
        cut(0.001),
        "weights cannot be read as a hubert model (Error while deserializing header",
    ),
    "empty weights": (cut(0.0), "weights cannot be read as a hubert model (Error while deserializing header"),
    "not speech": (config(model_type="bert"), "'bert' is not supported; supported are hubert, wav2vec2, unispeech-sat"),
    "no model type": (config(model_type=None), "config.json names no model_type; expected a transformers model"),
    "not JSON": (written("config.json", b'{"model_type": '), "config.json cannot be read as JSON (Expecting value"),
    "not text": (written("config.json", b"\xff\xfe"), "config.json cannot be read as JSON"),
    "a list": (written("config.json", b"[1]"), "config.json holds a list; expected an object with a model_type"),
    "a wrong value": (config(hidden_size="big"), "'hidden_size' expected int, got str"),
    "wrong conv lists": (config(conv_dim=[16] * 6), "weights cannot be read as a hubert model (Class validation error"),
    "a missing tensor": (
        weights(lambda tensors: tensors.pop("encoder.layer_norm.weight")),
        "1 tensors are missing or of another size (first: encoder.layer_norm.weight); expected the weights that",
    ),
    "a tensor of another size": (
        weights(lambda tensors: tensors.update({"encoder.layer_norm.bias": torch.zeros(5)})),
        "1 tensors are missing or of another size (first: encoder.layer_norm.bias)",
    ),
    "another size in the configuration": (
        config(intermediate_size=48),
        "9 tensors are missing or of another size (first: encoder.layers.0.feed_forward.intermediate_dense.bias)",
    ),
}
BROKEN_COMPRESSED: dict[str, tuple[Damage, str]] = {
    "no shape": (config(diminuendo=None), "its format is None, this diminuendo reads 1; use the version of diminuendo"),
    "a later format": (config(diminuendo={"format": 2}), "its format is 2, this diminuendo reads 1"),
    "half a shape": (
        config(diminuendo={"format": 1, "shape": {}}),
        "weights cannot be read as a diminuendo_hubert model",
    ),
    "weights cut at half": (cut(0.5), "weights cannot be read as a diminuendo_hubert model (Error while deserializing"),
    "a missing tensor": (
        weights(lambda tensors: tensors.pop("encoder.pos_conv_embed.conv.weight")),
        "1 tensors are missing or of another size (first: encoder.pos_conv_embed.conv.weight)",
    ),
}


def check_refused(source: str | Path, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load(source)
    line = str(error.value)
    assert "\n" not in line
    assert len(line.replace(str(source), "MODEL")) < 300


@pytest.mark.parametrize("damage", BROKEN)
def test_a_broken_directory_is_refused_in_one_line(damage: str, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "broken")
    change, message = BROKEN[damage]
    change(tmp_path / "broken")
    check_refused(tmp_path / "broken", message)


@pytest.mark.parametrize("damage", BROKEN_COMPRESSED)
def test_a_broken_compressed_model_is_refused_in_one_line(damage: str, saved_compressed: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_compressed, tmp_path / "broken")
    change, message = BROKEN_COMPRESSED[damage]
    change(tmp_path / "broken")
    check_refused(tmp_path / "broken", message)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("someone/no-such-model", "MODEL 'someone/no-such-model' is neither a directory nor a model the hub gives"),
        ("no such model?", "MODEL 'no such model?' is neither a directory nor a model the hub gives"),
        ("/no/such/directory", "MODEL /no/such/directory: no such directory; expected one with config.json"),
        ("./no-such-directory", "MODEL ./no-such-directory: no such directory"),
    ],
)
def test_an_unknown_model_is_refused_in_one_line(source: str, message: str) -> None:
    check_refused(source, message)


def test_a_file_is_refused_with_what_was_expected(saved: Path) -> None:
    check_refused(saved / "model.safetensors", "is a file; expected a directory with config.json and model.safetensors")


def test_what_a_smaller_configuration_leaves_unused_is_said(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(saved, tmp_path / "shallow")
    config(num_hidden_layers=2)(tmp_path / "shallow")
    with caplog.at_level(logging.WARNING, "diminuendo"):
        load(tmp_path / "shallow")
    assert "16 tensors are not used by HubertModel (first: encoder.layers.2.attention.k_proj.bias)" in caplog.text


def test_a_missing_mask_embedding_is_no_error(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "model")
    weights(lambda tensors: tensors.pop("masked_spec_embed"))(tmp_path / "model")
    found = load(tmp_path / "model")
    assert torch.equal(output_of(found), output_of(load(saved)))
    assert not found.masked_spec_embed.any()  # at random, no run of this model could be resumed


def test_a_recogniser_keeps_its_head_and_other_tasks_give_the_encoder(tmp_path: Path) -> None:
    model = tiny_model("hubert", ctc=True)
    model.save_pretrained(tmp_path / "ctc")
    loaded = load(tmp_path / "ctc")
    assert type(loaded) is HubertForCTC
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    config(architectures=["HubertForSequenceClassification"])(tmp_path / "ctc")
    assert torch.equal(output_of(load(tmp_path / "ctc")), output_of(model.hubert))


def test_a_loaded_model_is_the_one_that_transformers_loads(saved: Path) -> None:
    assert torch.equal(output_of(load(saved)), output_of(AutoModel.from_pretrained(saved).eval()))


@pytest.mark.parametrize("do_normalize", [True, False])
def test_the_feature_extractor_is_the_models_own(do_normalize: bool, tmp_path: Path) -> None:
    save(tiny_model(), Wav2Vec2FeatureExtractor(do_normalize=do_normalize), tmp_path)
    assert load_feature_extractor(tmp_path).do_normalize is do_normalize


def test_the_feature_extractor_inside_a_saved_processor_is_found(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>", unk_token="<unk>")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False), tokenizer).save_pretrained(tmp_path)
    tiny_model(ctc=True).save_pretrained(tmp_path)
    assert load_feature_extractor(tmp_path).do_normalize is False


def test_a_missing_feature_extractor_is_replaced_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_model().save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "diminuendo"):
        extractor = load_feature_extractor(tmp_path)
    assert (extractor.sampling_rate, extractor.do_normalize) == (16_000, True)
    assert "has no feature extractor: taking 16 kHz waveforms of zero mean and unit variance" in caplog.text


def test_a_missing_feature_extractor_of_a_model_that_reads_features_is_refused(tmp_path: Path) -> None:
    tiny_model("wav2vec2-bert").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="reads features and has no feature extractor"):
        load_feature_extractor(tmp_path)


def test_a_feature_extractor_that_cannot_be_read_is_not_replaced(tmp_path: Path) -> None:
    save(tiny_model(), Wav2Vec2FeatureExtractor(do_normalize=False), tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(path.read_text()[:-10])
    with pytest.raises(UserError, match="its feature extractor cannot be read"):
        load_feature_extractor(tmp_path)


def test_a_model_that_hears_another_sampling_rate_is_refused(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="8000 Hz; supported are models of 16000 Hz"):
        load_feature_extractor(tmp_path)
