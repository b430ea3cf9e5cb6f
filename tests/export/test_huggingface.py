"""Saving, and loading with and without this package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

import diminuendo
from conformance.test_removal import gated_and_removed
from diminuendo.export.huggingface import save, travelling_file
from diminuendo.families import family_of
from tiny import VARIANTS, audio, tiny_model

WITHOUT_PACKAGE = """
import json, sys
sys.modules["diminuendo"] = None  # importing it raises
import torch
from transformers import AutoFeatureExtractor, AutoModel, AutoModelForCTC
from safetensors.torch import load_file, save_file
out = {}
for directory in sys.argv[3:]:
    auto = AutoModelForCTC if directory.endswith("ctc") else AutoModel
    model = auto.from_pretrained(directory, trust_remote_code=True).eval()
    AutoFeatureExtractor.from_pretrained(directory)
    with torch.inference_mode():
        out[directory] = model(load_file(sys.argv[1])["audio"])[0].contiguous()
save_file(out, sys.argv[2])
"""


def compressed(family: str, style: str, *, ctc: bool = False) -> Any:
    return gated_and_removed(tiny_model(family, style, ctc=ctc), "sublayer", "every sublayer of a layer")[1]


def output(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(audio())[0]


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_save_and_load_round_trip_is_identical(family: str, style: str, tmp_path: Path) -> None:
    model = compressed(family, style)
    save(model, Wav2Vec2FeatureExtractor(do_normalize=True), tmp_path / "small")
    loaded = diminuendo.load(tmp_path / "small")
    assert torch.equal(output(loaded), output(model))
    assert loaded.config.diminuendo == model.config.diminuendo


def test_a_saved_compressed_model_can_be_compressed_and_saved_again(tmp_path: Path) -> None:
    save(compressed("hubert", "large"), Wav2Vec2FeatureExtractor(), tmp_path / "once")
    _, twice, _, _ = gated_and_removed(diminuendo.load(tmp_path / "once"), "groups", "some")
    save(twice, Wav2Vec2FeatureExtractor(), tmp_path / "twice")
    assert torch.equal(output(diminuendo.load(tmp_path / "twice")), output(twice))


def test_every_family_loads_without_this_package_in_one_process(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models = {}
    for family, style in VARIANTS:
        for ctc in (False, True):
            directory = tmp_path / f"{family}-{style}{'-ctc' if ctc else ''}"
            models[str(directory)] = compressed(family, style, ctc=ctc)
            save(models[str(directory)], Wav2Vec2FeatureExtractor(), directory)
    save_file({"audio": audio()}, tmp_path / "audio.safetensors")
    result = run(WITHOUT_PACKAGE, tmp_path / "audio.safetensors", tmp_path / "out.safetensors", *models)
    assert result.returncode == 0, result.stderr
    outputs = load_file(tmp_path / "out.safetensors")
    assert {name: torch.equal(outputs[name], output(model)) for name, model in models.items()} == dict.fromkeys(
        models, True
    )


@pytest.mark.parametrize("name", ["AutoModel", "AutoModelForCTC", "HubertModel", "AutoConfig"])
def test_plain_loading_without_remote_code_fails_clearly(name: str, tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    result = run(f"import sys, transformers; transformers.{name}.from_pretrained(sys.argv[1])", tmp_path)
    assert result.returncode != 0
    assert "trust_remote_code" in result.stderr or "diminuendo" in result.stderr, result.stderr[-2000:]


def test_a_head_that_we_do_not_offer_fails_instead_of_falling_back(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    code = "import sys, transformers as t; t.AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True)"
    assert run(code, tmp_path).returncode != 0


def test_what_travels_is_a_verbatim_copy(tmp_path: Path) -> None:
    model = compressed("hubert", "base")
    save(model, Wav2Vec2FeatureExtractor(), tmp_path)
    source = travelling_file(family_of(model))
    assert (tmp_path / source.name).read_bytes() == source.read_bytes()


def test_loading_runs_no_code_of_the_directory(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    (tmp_path / "ragged_wav2vec2.py").write_text("raise SystemExit('the code of the directory ran')")
    assert type(diminuendo.load(tmp_path)).__module__ == "diminuendo.modules.ragged_wav2vec2"


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "diminuendo_hubert"
