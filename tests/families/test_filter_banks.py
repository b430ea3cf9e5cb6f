"""Filter banks, and models that hear them in the place of the waveform."""

from pathlib import Path

import kaldi_native_fbank
import pytest
import torch
from transformers import AutoModel, AutoModelForCTC, Speech2TextFeatureExtractor

from conformance.test_removal import gated_and_removed
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import family_of, load, load_feature_extractor, model_inputs
from diminuendo.families.filter_bank_input import hears_filter_banks, hears_level, with_filter_banks
from diminuendo.families.filter_banks import FULL_SCALE, filter_bank_extractor, filter_bank_frames, filter_banks
from diminuendo.modules.filter_bank import FilterBankFrontEnd, without_level
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from families.test_inputs import check_padding_is_not_heard
from spoken import say
from tiny import VARIANTS, tiny_model

WAVEFORMS = [variant for variant in VARIANTS if family_of(tiny_model(*variant)).reads_waveforms]
EXTRACTOR = filter_bank_extractor()


def two_clips() -> tuple[torch.Tensor, torch.Tensor]:
    waveforms, lengths = (
        0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)),
        torch.tensor([8000, 5111]),
    )
    waveforms[1, 5111:] = 0.0
    return waveforms, lengths


def test_features_are_those_of_the_extractor_that_travels() -> None:
    waveforms, lengths = two_clips()
    found = model_inputs(EXTRACTOR, waveforms, lengths)
    clips = [clip[:length].numpy() for clip, length in zip(waveforms, lengths.tolist(), strict=True)]
    expected = EXTRACTOR(clips, sampling_rate=16_000, return_tensors="pt", padding=True)
    assert torch.allclose(found["input_features"], expected["input_features"], atol=5e-4)
    assert torch.equal(found["attention_mask"].int(), expected["attention_mask"].int())


def test_features_are_those_that_kaldi_streams() -> None:
    """Both are rounded, and a logarithm shows it where next to nothing is left: there energies are compared."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.mel_opts.num_bins = 0.0, 80
    waveform = torch.from_numpy(say("a clip to be heard")).float() + 0.003 * torch.randn(1)  # an offset, too
    stream = kaldi_native_fbank.OnlineFbank(options)
    for start in range(0, len(waveform), 1000):
        stream.accept_waveform(16_000, (FULL_SCALE * waveform[start : start + 1000]).tolist())
    expected = torch.stack([torch.from_numpy(stream.get_frame(i)) for i in range(stream.num_frames_ready)])
    found = filter_banks(waveform[None])[0]
    assert found.shape == expected.shape
    energy = expected.exp().sum(1, keepdim=True)
    assert ((found.exp() - expected.exp()).abs() / energy).max() < 1e-5
    heard = expected.exp() > 1e-4 * energy
    assert heard.float().mean() > 0.3
    assert (found - expected)[heard].abs().max() < 1e-4


def test_what_stock_classes_ask_of_a_front_end_is_there(tmp_path: Path) -> None:
    model = with_filter_banks(tiny_model("hubert", "base", ctc=True))
    save(model, EXTRACTOR, tmp_path)
    stock = AutoModelForCTC.from_pretrained(tmp_path, trust_remote_code=True)
    assert stock.config.inputs_to_logits_ratio == 320  # in samples: by it pipelines put chunks together
    assert tiny_model().config.inputs_to_logits_ratio == 320
    stock.freeze_feature_encoder()
    front_end = "feature_extractor."
    assert {name for name, value in stock.named_parameters() if not value.requires_grad} == {
        name for name, _ in stock.named_parameters() if front_end in name
    }
    inputs = model_inputs(EXTRACTOR, two_clips()[0][:1], torch.tensor([8000]))
    assert "attention_mask" not in inputs
    labels = torch.tensor([[1, 2]])
    masked = inputs | {"attention_mask": torch.ones(1, inputs["input_features"].shape[1], dtype=torch.long)}
    assert stock.eval()(**inputs, labels=labels).loss == stock(**masked, labels=labels).loss


def test_an_extractor_of_other_filter_banks_is_refused_and_none_is_taken_for_waveforms(tmp_path: Path) -> None:
    save(with_filter_banks(tiny_model()), EXTRACTOR, tmp_path)
    assert load_feature_extractor(tmp_path).to_dict() == EXTRACTOR.to_dict()
    Speech2TextFeatureExtractor(do_ceptral_normalize=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="other filter banks than diminuendo gives"):
        load_feature_extractor(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="reads features and has no feature extractor"):
        load_feature_extractor(tmp_path)


def test_of_a_clip_shorter_than_a_frame_there_is_none() -> None:
    assert filter_banks(torch.zeros(2, 399)).shape == (2, 0, 80)


@pytest.mark.parametrize("chunk", [160, 400, 1000])
def test_features_of_chunks_are_those_of_the_whole(chunk: int) -> None:
    waveforms, _ = two_clips()
    whole, frames, heard = filter_banks(waveforms[:1])[0], [], torch.zeros(0)
    for start in range(0, 8000, chunk):
        heard = torch.cat([heard, waveforms[0, start : start + chunk]])
        ready = int(filter_bank_frames(len(heard)))
        if ready > 0:
            frames.append(filter_banks(heard[None, : 400 + 160 * (ready - 1)])[0])
            heard = heard[160 * ready :]
    assert torch.allclose(torch.cat(frames), whole, atol=1e-4)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("family", "style"), WAVEFORMS)
def test_a_model_has_as_many_frames_as_before_and_is_the_same_saved_and_in_transformers(
    family: str, style: str, plain: bool, tmp_path: Path
) -> None:
    before = tiny_model(family, style)
    model, house = with_filter_banks(before, plain=plain), family_of(before)
    assert hears_filter_banks(model)
    assert not hears_filter_banks(before)
    for samples in (400, 719, 720, 16_000, 20_123):
        counts = [int(house.frame_lengths(one, torch.tensor(samples))) for one in (before, model)]
        assert counts[0] == counts[1]
    inputs = model_inputs(EXTRACTOR, *two_clips())
    save(model, EXTRACTOR, tmp_path)
    stock = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    with torch.inference_mode():
        states = house.hidden_states(model, inputs)
        again = load(tmp_path)
        assert hears_level(again) == plain
        assert torch.equal(house.hidden_states(again, inputs)[-1], states[-1])
        assert torch.allclose(stock(**inputs).last_hidden_state, states[-1], atol=1e-5)
    assert len(states) == 4
    assert count_macs_per_second(model) < count_macs_per_second(before)
    behind = {name: value for name, value in before.named_parameters() if "conv" not in name}
    kept = model.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in behind.items())


@pytest.mark.parametrize(("family", "style"), WAVEFORMS)
def test_what_lies_beside_a_clip_is_not_heard(family: str, style: str) -> None:
    model = with_filter_banks(tiny_model(family, style))
    family_of(model).encoder(model).feature_extractor.mean.fill_(3.0)  # so that padding is no silence
    check_padding_is_not_heard(model)


@pytest.mark.parametrize("padding", [0.0, 7.0])
def test_how_loud_a_clip_is_is_heard_by_a_plain_front_end_alone_and_what_a_mask_leaves_out_by_none(
    padding: float,
) -> None:
    waveforms, lengths = two_clips()
    quiet, loud = (model_inputs(EXTRACTOR, gain * waveforms, lengths) for gain in (1.0, 3.0))
    own = quiet["attention_mask"][..., None]
    loud["input_features"] = loud["input_features"] * own + padding * (1 - own)
    counts = FilterBankFrontEnd.frames(lengths)
    for plain in (False, True):
        model = with_filter_banks(tiny_model("hubert", "base", ctc=True), plain=plain).eval()
        with torch.inference_mode():
            logits, louder = (model(**inputs).logits for inputs in (quiet, loud))
            by_position = model(loud["input_features"], loud["attention_mask"]).logits
        assert torch.equal(by_position, louder)
        same = [
            torch.allclose(one[:count], other[:count], atol=1e-4)
            for one, other, count in zip(logits, louder, counts.tolist(), strict=True)
        ]
        assert same == [not plain] * 2


def test_a_clips_level_is_its_mean_power() -> None:
    waveforms, lengths = two_clips()
    features = model_inputs(EXTRACTOR, waveforms, lengths)["input_features"]
    counts = filter_bank_frames(lengths).tolist()
    for found in (without_level(features), without_level(features.bfloat16())):
        assert [one[:count].float().exp().mean().item() for one, count in zip(found, counts, strict=True)] == (
            pytest.approx([1.0, 1.0], rel=1e-4 if found.dtype == torch.float32 else 1e-2)
        )
        assert not found[1, counts[1] :].any()
    assert without_level(features[:, :0]).shape == (2, 0, 80)
    assert not without_level(torch.zeros(1, 3, 80)).any()


@pytest.mark.parametrize(("family", "style"), WAVEFORMS)
def test_a_front_end_without_level_has_no_more_parameters_than_a_plain_one(family: str, style: str) -> None:
    deep, plain = (
        count_parameters(with_filter_banks(tiny_model(family, style), plain=plain)) for plain in (False, True)
    )
    assert 0.99 * plain < deep <= plain


@pytest.mark.parametrize("kind", ["channels", "heads", "width", "sublayer"])
@pytest.mark.parametrize(("family", "style"), [("hubert", "base"), ("wavlm", "large"), ("data2vec-audio", "stacked")])
def test_removing_equals_gating(family: str, style: str, kind: str) -> None:
    gated_and_removed(with_filter_banks(tiny_model(family, style)), kind, "some").check()
