"""What goes into a model and what its hidden states are, against transformers' own."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, SeamlessM4TFeatureExtractor, Wav2Vec2FeatureExtractor

from conformance.test_removal import gated_and_removed
from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.families import family_of, load, model_inputs
from diminuendo.families.recogniser import with_head
from tiny import TRANSFORMERS, VARIANTS, audio, extractor_of, tiny_model

# The mixed ones exist: wav2vec2-large-960h has the group norm at width 1024, some models the layer norm and post-norm.
STYLES = {
    "group norm, post-norm": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "group norm, pre-norm": {"feat_extract_norm": "group", "do_stable_layer_norm": True},
    "layer norm, post-norm": {"feat_extract_norm": "layer", "do_stable_layer_norm": False},
    "layer norm, pre-norm": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "adapter in every layer": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "adapter_attn_dim": 6},
}


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips that are neither centred nor of unit variance, zero where they have ended."""
    waveforms = 3 * audio(len(lengths), max(lengths)) + 0.7
    sizes = torch.tensor(lengths)
    return waveforms * (torch.arange(max(lengths)) < sizes[:, None]), sizes


@pytest.mark.parametrize("lengths", [[8000, 5000, 401], [6000, 6000]], ids=str)
@pytest.mark.parametrize("do_normalize", [True, False])
def test_model_inputs_equal_those_of_transformers(do_normalize: bool, lengths: list[int]) -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    waveforms, sizes = padded(lengths)
    clips = [waveform[:size].numpy() for waveform, size in zip(waveforms, lengths, strict=True)]
    expected = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    got = model_inputs(extractor, waveforms, sizes)
    torch.testing.assert_close(got["input_values"], expected["input_values"], rtol=1e-5, atol=1e-5)
    mask = got.get("attention_mask", torch.ones_like(expected["attention_mask"]))
    assert torch.equal(mask, expected["attention_mask"].long())


def test_there_is_no_attention_mask_where_nothing_is_padded() -> None:
    assert "attention_mask" not in model_inputs(Wav2Vec2FeatureExtractor(), *padded([5000, 5000]))


@pytest.mark.parametrize("lengths", [[8000, 5000, 1601], [6000, 6000], [1360]], ids=str)
def test_features_are_those_of_the_models_extractor_for_clips_cut_to_their_lengths(lengths: list[int]) -> None:
    extractor = SeamlessM4TFeatureExtractor()
    waveforms, sizes = padded(lengths)
    clips = [waveform[:size].numpy() for waveform, size in zip(waveforms, lengths, strict=True)]
    expected = extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    got = model_inputs(extractor, waveforms, sizes)
    assert torch.equal(got["input_features"], expected["input_features"])
    assert torch.equal(
        got.get("attention_mask", torch.ones_like(expected["attention_mask"])), expected["attention_mask"]
    )


def test_frames_of_features_are_those_that_the_extractor_does_not_mask() -> None:
    model, lengths = tiny_model("wav2vec2-bert"), [8000, 5000, *range(1600, 2300, 30)]
    masks = [model_inputs(extractor_of(model), *padded([length])) for length in lengths]
    expected = [int(made.get("attention_mask", torch.ones(made["input_features"].shape[:2])).sum()) for made in masks]
    assert family_of(model).frame_lengths(model, torch.tensor(lengths)).tolist() == expected


@pytest.mark.parametrize("position", ["relative_key", "relative", "rotary", None])
def test_padding_changes_no_frame_of_a_clip_where_convolutions_are_masked(position: str | None) -> None:
    check_padding_is_not_heard(tiny_model("wav2vec2-bert", position_embeddings_type=position))


@pytest.mark.parametrize(("family", "style"), [("data2vec-audio", "stacked"), ("wav2vec2-conformer", "large")])
@pytest.mark.parametrize("made", ["loaded", "plain", "removed", "with a head", "copied"])
def test_padding_changes_no_frame_of_a_clip_where_transformers_hears_it(
    family: str, style: str, made: str, tmp_path: Path
) -> None:
    stock = AutoModel.from_config(tiny_model(family, style).config).eval()
    stock.load_state_dict(tiny_model(family, style).state_dict())
    with pytest.raises(AssertionError):
        check_padding_is_not_heard(stock)
    stock.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    model = {
        "loaded": lambda: loaded,
        "plain": lambda: family_of(stock).plain(stock),
        "removed": lambda: gated_and_removed(stock, "neurons", "some").removed,
        "with a head": lambda: with_head(stock, "ctc", 5),
        "copied": lambda: copy.deepcopy(loaded),
    }[made]()
    check_padding_is_not_heard(model)


def check_padding_is_not_heard(model: Any) -> None:
    waveforms, lengths = padded([5000, 8000])
    both = (waveforms[:1, :5000], lengths[:1]), (waveforms, lengths)
    alone, beside = (model_inputs(extractor_of(model), *clips) for clips in both)
    frames = int(family_of(model).frame_lengths(model, torch.tensor(5000)))
    with torch.inference_mode():
        states = [family_of(model).hidden_states(model, inputs) for inputs in (alone, beside)]
    for one, other in zip(*states, strict=True):
        torch.testing.assert_close(one[0, :frames], other[0, :frames], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TRANSFORMERS)
@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_padding_does_not_change_the_loss(family: str, do_normalize: bool, pre_norm: bool) -> None:
    model = tiny_model(family, "large", do_stable_layer_norm=pre_norm)
    teacher = tiny_model(family, "large", do_stable_layer_norm=pre_norm, seed=1)
    extractor = Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
    distillation = HiddenDistillation((0, 1, 3), 32, 32)

    def loss(samples: int) -> torch.Tensor:
        waveforms, lengths = padded([5000])
        inputs = model_inputs(extractor, torch.nn.functional.pad(waveforms, (0, samples)), lengths)
        states = [family_of(one).hidden_states(one, inputs) for one in (model, teacher)]
        result: torch.Tensor = distillation(*states, family_of(model).frame_lengths(model, lengths))["loss"]
        return result

    with torch.inference_mode():
        torch.testing.assert_close(loss(3000), loss(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_frame_lengths_equal_those_of_transformers(family: str) -> None:
    model = tiny_model(family)
    samples = torch.arange(400, 20_001)
    expected = model._get_feat_extract_output_lengths(samples)
    assert torch.equal(family_of(model).frame_lengths(model, samples), expected)


def test_frame_lengths_of_a_compressed_model_are_those_of_the_original() -> None:
    model = tiny_model()
    removed = gated_and_removed(model, "channels", "some").removed
    samples = torch.arange(400, 20_001)
    frames = family_of(model).frame_lengths(model, samples)
    assert torch.equal(family_of(removed).frame_lengths(removed, samples), frames)
    with torch.inference_mode():
        assert removed(audio(1, 4321))[0].shape[1] == frames[4321 - 400]


def check_hidden_states(model: Any) -> None:
    encoder = family_of(model).encoder(model)
    inputs = model_inputs(extractor_of(model), *padded([8000, 5000]))
    with torch.inference_mode():
        got = family_of(model).hidden_states(model, inputs)
        full = encoder(**inputs, output_hidden_states=True)
        if family_of(model).reads_waveforms:
            projected = encoder.feature_projection(encoder.feature_extractor(inputs["input_values"]).transpose(1, 2))
        elif hasattr(encoder, "subsampling"):
            projected = encoder.subsampling(inputs["input_features"], inputs["attention_mask"])
        else:
            projected = encoder.feature_projection(inputs["input_features"])
    first = projected[0] if isinstance(projected, tuple) else projected
    frames = family_of(model).frame_lengths(model, torch.tensor([8000, 5000]))
    valid = torch.arange(first.shape[1]) < frames[:, None]
    # Ours is before the positional convolution, theirs after it; padding is zeroed there.
    assert torch.equal(got[0][valid], first[valid])
    assert len(got) == len(full.hidden_states) == encoder.config.num_hidden_layers + 1
    assert all(torch.equal(a, b) for a, b in zip(got[1:-1], full.hidden_states[1:-1], strict=True))
    # Theirs is before the final norm of pre-norm models and conformers, ours after it, as the last_hidden_state is.
    last = full.hidden_states[-1]
    if getattr(model.config, "do_stable_layer_norm", model.config.model_type == "wav2vec2-conformer"):
        with torch.inference_mode():
            last = encoder.encoder.layer_norm(last)
    assert torch.equal(got[-1], last)
    if not getattr(model.config, "add_adapter", False):
        assert torch.equal(got[-1], full.last_hidden_state)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", TRANSFORMERS)
def test_hidden_states_equal_those_of_transformers(family: str, style: str) -> None:
    check_hidden_states(tiny_model(family, "large", **STYLES[style]))


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_the_hidden_states_of_a_recogniser_are_those_of_its_encoder(family: str, style: str) -> None:
    check_hidden_states(tiny_model(family, style, ctc=True))


def test_hidden_states_end_before_an_adapter_on_top() -> None:
    check_hidden_states(tiny_model("wav2vec2", "large", add_adapter=True))


def test_hidden_states_leave_no_hook_behind() -> None:
    model = tiny_model()
    family_of(model).hidden_states(model, {"input_values": audio()})
    with pytest.raises((RuntimeError, ValueError)):  # shorter than one frame
        family_of(model).hidden_states(model, {"input_values": audio(1, 10)})
    assert [name for name, module in model.named_modules() if module._forward_hooks] == []
