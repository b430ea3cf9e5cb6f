"""Filter banks, and models that hear them in the place of the waveform."""

import math
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


@pytest.mark.parametrize("plain", [False, True])
def test_a_plain_front_end_alone_hears_how_loud_a_clip_is_and_none_what_a_mask_leaves_out(plain: bool) -> None:
    waveforms, lengths = two_clips()
    model = with_filter_banks(tiny_model("hubert", "base", ctc=True), plain=plain).eval()

    def heard(gain: float, padding: float) -> list[torch.Tensor]:
        inputs = model_inputs(EXTRACTOR, gain * waveforms, lengths)
        features, mask = inputs["input_features"], inputs["attention_mask"]
        features = features.masked_fill(mask[..., None] == 0, padding)
        with torch.inference_mode():
            logits = model(input_features=features, attention_mask=mask).logits
            assert torch.equal(model(features, mask.bool()).logits, logits)
        counts = FilterBankFrontEnd.frames(lengths).tolist()
        return [clip[:count] for clip, count in zip(logits, counts, strict=True)]

    usual = heard(1.0, 0.0)
    for padding in (7.0, math.nan):
        assert all(map(torch.equal, heard(1.0, padding), usual))
    for clip, louder in zip(usual, heard(3.0, 0.0), strict=True):
        assert torch.allclose(clip, louder, atol=1e-3) != plain


def test_a_clips_level_is_the_mean_power_of_all_of_its_bands() -> None:
    waveforms, lengths = two_clips()
    features = model_inputs(EXTRACTOR, waveforms, lengths)["input_features"]
    found, rough = without_level(features), without_level(features.bfloat16())
    for i, count in enumerate(filter_bank_frames(lengths).tolist()):
        power = features[i, :count].double().exp()
        expected = (power / power.mean() + 1e-4).log().float()
        assert torch.allclose(found[i, :count], expected, atol=1e-4)
        assert torch.allclose(rough[i, :count].float(), expected, atol=0.2)
        assert expected.min() < -5.0
        assert not found[i, count:].any()
    assert without_level(features[:, :0]).shape == (2, 0, 80)
    assert not without_level(torch.zeros(1, 3, 80)).any()


def test_silence_is_none_the_louder_for_its_level() -> None:
    """As of waveforms, to whose variance the extractor adds 1e-7."""
    silence, hiss, speech = torch.zeros(1, 8000), *(scale * torch.randn(1, 8000) for scale in (1e-7**0.5, 0.1))
    mean = [without_level(filter_banks(clip)).exp().mean().item() for clip in (silence, hiss, speech)]
    assert mean == pytest.approx([1e-4, 0.5, 1.0], rel=0.1)


@pytest.mark.parametrize("sizes", [(6, 9), (5, 6, 9)])
def test_a_front_end_computes_what_saved_models_expect_of_it(sizes: tuple[int, ...]) -> None:
    front, features = FilterBankFrontEnd(*sizes), torch.randn(2, 11, 80) - 3.0
    state = front.state_dict()
    kernels = (3, 1) if len(sizes) == 2 else (1, 3, 1)
    shapes = {
        f"conv_layers.{i}.conv.{name}": shape
        for i, (reads, writes, kernel) in enumerate(zip((80, *sizes), sizes, kernels, strict=False))
        for name, shape in (("weight", (writes, reads, kernel)), ("bias", (writes,)))
    }
    assert {name: tuple(value.shape) for name, value in state.items()} == {"mean": (80,), "deviation": (80,)} | shapes
    front.mean.fill_(-2.0)
    front.deviation.fill_(3.0)
    hidden = ((features if len(sizes) == 2 else without_level(features)) + 2.0).transpose(1, 2) / 3.0
    for i, kernel in enumerate(kernels):
        weight, bias = (state[f"conv_layers.{i}.conv.{name}"] for name in ("weight", "bias"))
        past = torch.nn.functional.pad(hidden, (kernel - 1, 0))
        hidden = torch.nn.functional.conv1d(past, weight, bias, stride=2 if kernel == 3 else 1)
        if i + 1 < len(kernels):
            hidden = torch.nn.functional.gelu(hidden)
    assert torch.allclose(front(features), hidden, atol=1e-6)


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
