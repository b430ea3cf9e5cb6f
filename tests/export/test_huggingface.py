"""Saving, and loading with and without this package."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoProcessor,
    AutoTokenizer,
    Speech2TextFeatureExtractor,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

import diminuendo
from conformance.test_removal import gated_and_removed
from diminuendo.export.huggingface import save, travelling_files
from diminuendo.families import family_of, load_feature_extractor
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.families.filter_banks import filter_bank_extractor
from tiny import VARIANTS, extractor_of, forward_inputs, output_of, tiny_model

WITHOUT_PACKAGE = """
import json, sys
sys.modules["diminuendo"] = None  # importing it raises
import torch
import transformers
from safetensors.torch import load_file, save_file
inputs, out = load_file(sys.argv[1]), {}
for directory in sys.argv[3:]:
    auto = getattr(transformers, directory.rpartition("-")[2])
    model = auto.from_pretrained(directory, trust_remote_code=True).eval()
    transformers.AutoFeatureExtractor.from_pretrained(directory)
    given = {name.rpartition("|")[2]: value for name, value in inputs.items() if name.startswith(directory + "|")}
    with torch.inference_mode():
        found = model(**given)
    out[directory] = (found.logits if "logits" in found else found.last_hidden_state).contiguous()
save_file(out, sys.argv[2])
"""


def compressed(family: str, style: str, *, ctc: bool = False) -> Any:
    return gated_and_removed(tiny_model(family, style, ctc=ctc), "sublayer", "every sublayer of a layer").removed


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_save_and_load_round_trip_is_identical(family: str, style: str, tmp_path: Path) -> None:
    model = compressed(family, style)
    save(model, extractor_of(model), tmp_path / "small")
    loaded = diminuendo.load(tmp_path / "small")
    assert torch.equal(output_of(loaded), output_of(model))
    assert loaded.config.diminuendo == model.config.diminuendo


def test_a_saved_compressed_model_can_be_compressed_and_saved_again(tmp_path: Path) -> None:
    save(compressed("hubert", "large"), Wav2Vec2FeatureExtractor(), tmp_path / "once")
    twice = gated_and_removed(diminuendo.load(tmp_path / "once"), "groups", "some").removed
    save(twice, Wav2Vec2FeatureExtractor(), tmp_path / "twice")
    assert torch.equal(output_of(diminuendo.load(tmp_path / "twice")), output_of(twice))


def test_every_family_loads_without_this_package_in_one_process(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    models, inputs = {}, {}
    for family, style in VARIANTS:
        for ctc in (False, True):
            model = compressed(family, style, ctc=ctc)
            architecture = family_of(model).architecture_of(model)
            assert architecture is not None
            directory = str(tmp_path / f"{family}-{style}-{architecture.auto_class}")
            models[directory] = model
            save(model, extractor_of(model), Path(directory))
            given = forward_inputs(model)
            inputs |= {f"{directory}|{name}": value.clone().contiguous() for name, value in given.items()}
    save_file(inputs, tmp_path / "in.safetensors")
    result = run(WITHOUT_PACKAGE, tmp_path / "in.safetensors", tmp_path / "out.safetensors", *models)
    assert result.returncode == 0, result.stderr
    outputs = load_file(tmp_path / "out.safetensors")
    assert {name: torch.equal(outputs[name], output_of(model)) for name, model in models.items()} == dict.fromkeys(
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
    auto = "transformers.AutoModelForSequenceClassification"
    code = f"import sys, transformers; {auto}.from_pretrained(sys.argv[1], trust_remote_code=True)"
    result = run(code, tmp_path)
    assert result.returncode != 0
    assert "AutoModelForSequenceClassification" in result.stderr


def test_what_travels_is_a_verbatim_copy(tmp_path: Path) -> None:
    model = compressed("wavlm", "base")
    save(model, Wav2Vec2FeatureExtractor(), tmp_path)
    sources = travelling_files(family_of(model).architecture_of(model))
    parts = {"blocked_attention", "filter_bank", "low_rank", "ragged", "ragged_wav2vec2", "ragged_wavlm", "residual"}
    assert {source.stem for source in sources} == parts
    for source in sources:
        assert (tmp_path / source.name).read_bytes() == source.read_bytes()


def test_loading_runs_no_code_of_the_directory(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    (tmp_path / "ragged_wav2vec2.py").write_text("raise SystemExit('the code of the directory ran')")
    assert type(diminuendo.load(tmp_path)).__module__ == "diminuendo.modules.ragged_wav2vec2"


def test_whoever_may_read_the_configuration_may_read_the_weights(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    weights, config = ((tmp_path / name).stat().st_mode for name in ("model.safetensors", "config.json"))
    assert weights == config


def test_nothing_is_pickled(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "diminuendo_hubert"


RESAVE = """
import sys
sys.modules["diminuendo"] = None  # importing it raises
from transformers import AutoFeatureExtractor, AutoModelForCTC
model = AutoModelForCTC.from_pretrained(sys.argv[1], trust_remote_code=True)
model.save_pretrained(sys.argv[2])
AutoFeatureExtractor.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
again = AutoModelForCTC.from_pretrained(sys.argv[2], trust_remote_code=True)
assert again.config.diminuendo == model.config.diminuendo
"""


def test_a_model_saved_again_by_transformers_keeps_loading(tmp_path: Path) -> None:
    model = compressed("wav2vec2", "large", ctc=True)
    save(model, Wav2Vec2FeatureExtractor(), tmp_path / "small")
    result = run(RESAVE, tmp_path / "small", tmp_path / "again")
    assert result.returncode == 0, result.stderr[-2000:]
    loaded = diminuendo.load(tmp_path / "again")
    assert torch.equal(output_of(loaded), output_of(model))
    loaded.save_pretrained(tmp_path / "third")
    assert torch.equal(output_of(diminuendo.load(tmp_path / "third")), output_of(model))
    plain = run("import sys, transformers; transformers.AutoModel.from_pretrained(sys.argv[1])", tmp_path / "again")
    assert plain.returncode != 0


def processor(directory: Path) -> Any:
    directory.mkdir()
    letters = ["<pad>", "<unk>", "|", *"abcdefgh"]
    (directory / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(directory / "vocab.json"), pad_token="<pad>", unk_token="<unk>")
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer)


def test_a_recognisers_tokenizer_travels_and_decodes_the_same(tmp_path: Path) -> None:
    original = processor(tmp_path / "original")
    original.save_pretrained(tmp_path / "original")
    model = compressed("hubert", "base", ctc=True)
    save(model, Wav2Vec2FeatureExtractor(), tmp_path / "small", tokenizer_of=str(tmp_path / "original"))
    travelled = Wav2Vec2Processor.from_pretrained(tmp_path / "small")
    tokens = output_of(model).argmax(-1)
    assert travelled.batch_decode(tokens) == original.batch_decode(tokens)


def test_a_processors_extractor_does_not_take_the_place_of_the_models_own(tmp_path: Path) -> None:
    processor(tmp_path / "original").save_pretrained(tmp_path / "original")
    said = json.loads((tmp_path / "original" / "processor_config.json").read_text())
    assert "feature_extractor" in said
    model = with_filter_banks(tiny_model("hubert", ctc=True))
    save(model, filter_bank_extractor(), tmp_path / "small", tokenizer_of=str(tmp_path / "original"))
    for opened in (
        AutoFeatureExtractor.from_pretrained(tmp_path / "small"),
        AutoProcessor.from_pretrained(tmp_path / "small").feature_extractor,
        load_feature_extractor(tmp_path / "small"),
    ):
        assert isinstance(opened, Speech2TextFeatureExtractor)


def test_a_tokenizer_that_is_known_by_its_model_type_travels_with_its_name_and_special_tokens(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model("wav2vec2", ctc=True).save_pretrained(source)
    Wav2Vec2FeatureExtractor().save_pretrained(source)
    (source / "vocab.json").write_text(json.dumps({"[PAD]": 0, "<s>": 1, "</s>": 2, "[UNK]": 3, "|": 4, "a": 5}))
    (source / "special_tokens_map.json").write_text('{"pad_token": "[PAD]", "unk_token": "[UNK]"}')
    (source / "added_tokens.json").write_text('{"[NOISE]": 6}')
    (source / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    save(
        compressed("wav2vec2", "base", ctc=True),
        Wav2Vec2FeatureExtractor(),
        tmp_path / "small",
        tokenizer_of=str(source),
    )
    values = json.loads((tmp_path / "small" / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "Wav2Vec2CTCTokenizer"
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "small", trust_remote_code=True), Wav2Vec2Processor)
    for directory in (source, tmp_path / "small"):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=True)
        assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("[PAD]", 0, 7)


def test_attention_of_a_loaded_model_can_be_chosen_in_a_process_that_knows_no_stock_model(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path)
    code = """
import sys, diminuendo
model = diminuendo.load(sys.argv[1])
model.set_attn_implementation("eager")
print(model.config._attn_implementation)
"""
    assert run(code, tmp_path).stdout == "eager\n"


def test_an_encoder_takes_no_tokenizer_along(tmp_path: Path) -> None:
    processor(tmp_path / "original").save_pretrained(tmp_path / "original")
    encoder = compressed("hubert", "base")
    save(encoder, Wav2Vec2FeatureExtractor(), tmp_path / "small", tokenizer_of=str(tmp_path / "original"))
    assert not (tmp_path / "small" / "vocab.json").exists()


@pytest.mark.parametrize("source", ["someone/not-in-the-cache", "/gone/since/then"])
def test_a_tokenizer_that_cannot_be_reached_does_not_lose_the_model(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = compressed("hubert", "base", ctc=True)
    save(model, Wav2Vec2FeatureExtractor(), tmp_path, tokenizer_of=source)
    assert torch.equal(output_of(diminuendo.load(tmp_path)), output_of(model))


def test_the_model_card_is_written(tmp_path: Path) -> None:
    save(compressed("hubert", "base"), Wav2Vec2FeatureExtractor(), tmp_path, card="# A card")
    assert (tmp_path / "README.md").read_text() == "# A card"


@pytest.mark.parametrize("before", [False, True], ids=["into an empty directory", "over an older model"])
def test_a_kill_while_saving_leaves_no_directory_that_looks_complete(
    before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compressed("hubert", "base")
    if before:
        save(compressed("hubert", "large"), Wav2Vec2FeatureExtractor(), tmp_path)
    replace, moved = os.replace, []

    def killed(source: Path, target: Path) -> None:
        if len(moved) == 2:
            raise KeyboardInterrupt
        moved.append(Path(target).name)
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("diminuendo.export.huggingface.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(model, Wav2Vec2FeatureExtractor(), tmp_path)
    assert not (tmp_path / "config.json").exists()
    save(model, Wav2Vec2FeatureExtractor(), tmp_path)  # what was left is in nobody's way
    assert torch.equal(output_of(diminuendo.load(tmp_path)), output_of(model))
    assert not (tmp_path / ".saving").exists()
