import pytest
import torch
from torch.nn import functional as F
from transformers import HubertConfig, Wav2Vec2FeatureExtractor

from diminuendo.data.features import deltas, mfcc
from diminuendo.errors import UserError
from diminuendo.families import family_of, model_inputs
from diminuendo.tasks import selfsupervised
from diminuendo.tasks.clips import Whitening
from diminuendo.tasks.selfsupervised import (
    ClusterHead,
    Clusters,
    FrameGrid,
    FrontEndObjective,
    MaskedPrediction,
    Scale,
    centred,
    cepstral_frames,
    clusters_of,
    fit_clusters,
    fit_scale,
    frame_grid,
    layer_frames,
    log_mel_frames,
    span_mask,
)
from tiny import TRANSFORMER_VARIANTS, audio, tiny_config, tiny_model

EXTRACTOR = Wav2Vec2FeatureExtractor(do_normalize=True)
GRID = FrameGrid(320, 400)
SCALE = Scale(torch.full((80,), -3.0), torch.full((80,), 2.0))
WHITENING = Whitening(torch.zeros(160), torch.eye(160)[:, :5])
DROPPING = {"hidden_dropout": 0.5, "layerdrop": 0.5, "mask_time_prob": 0.5, "mask_time_length": 2}


def inputs_of(waveforms, lengths=None):
    lengths = torch.full((len(waveforms),), waveforms.shape[1]) if lengths is None else torch.tensor(lengths)
    return model_inputs(EXTRACTOR, waveforms, lengths)


def some_clusters(num=7, dim=39):
    generator = torch.Generator().manual_seed(0)
    scale = Scale(torch.randn(dim, generator=generator), torch.rand(dim, generator=generator) + 0.5)
    return Clusters(scale, torch.randn(num, dim, generator=generator))


def objective(model=None, features=None, **changes):
    model = tiny_model() if model is None else model
    features = (lambda inputs: cepstral_frames(inputs, GRID)) if features is None else features
    return MaskedPrediction(
        model, EXTRACTOR, features, some_clusters(), **{"fraction": 0.5, "span": 4, "seed": 3, **changes}
    ).train()


def loss_of(module, waveforms, draw=0):
    torch.manual_seed(draw)
    lengths = torch.full((len(waveforms),), waveforms.shape[1])
    return module(waveforms, lengths, 0, draw)


def test_the_grid_of_huberts_front_end_has_a_frame_of_25_ms_every_20_ms():
    assert frame_grid(HubertConfig()) == FrameGrid(320, 400, 16_000)


def test_a_grid_has_as_many_frames_as_the_front_end_it_describes():
    model = tiny_model(conv_kernel=[8, 5, 3, 2, 3, 2, 2], conv_stride=[4, 2, 3, 2, 1, 2, 1])
    lengths = torch.arange(2_000, 2_400, 7)
    assert torch.equal(frame_grid(model.config).counts(lengths), family_of(model).frame_lengths(model, lengths))


@pytest.mark.parametrize("features", [log_mel_frames, cepstral_frames])
def test_targets_have_as_many_frames_as_the_encoder(features):
    inputs, model = inputs_of(audio(2, 6_123)), tiny_model()
    assert features(inputs, GRID).shape[1] == family_of(model).hidden_states(model, inputs)[-1].shape[1]


def test_cepstral_frames_are_cepstra_slopes_and_slopes_of_slopes():
    inputs, counts = inputs_of(audio()), torch.tensor([24, 24])
    cepstra = mfcc(log_mel_frames(inputs, GRID), 13)
    slopes = deltas(cepstra, counts)
    expected = torch.cat([cepstra, slopes, deltas(slopes, counts)], dim=-1)
    assert torch.allclose(cepstral_frames(inputs, GRID), expected, atol=1e-5)


@pytest.mark.parametrize("features", [log_mel_frames, cepstral_frames])
def test_padding_does_not_change_a_clips_targets(features):
    clip = audio(1, 4_000)
    padded = inputs_of(torch.cat([F.pad(clip, (0, 2_000)), audio(1, 6_000, seed=1)]), [4_000, 6_000])
    alone = features(inputs_of(clip), GRID)
    assert torch.allclose(features(padded, GRID)[:1, : alone.shape[1]], alone, atol=1e-4)


@pytest.mark.parametrize("features", [log_mel_frames, cepstral_frames])
def test_autocast_does_not_change_targets(features):
    inputs = inputs_of(audio())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = features(inputs, GRID)
    assert torch.equal(under_autocast, features(inputs, GRID))


def test_layer_frames_are_the_states_of_a_model_that_sees_everything():
    model, inputs = tiny_model(), inputs_of(audio())
    frames = layer_frames(model, inputs)
    assert torch.equal(frames, family_of(model).hidden_states(model, inputs)[-1])
    assert not frames.is_inference()


def test_scaled_frames_have_mean_0_and_deviation_1_over_all_clips():
    frames = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([3.0, 0.0, -2.0])
    scaled = fit_scale(frames)(frames)
    assert torch.allclose(scaled.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(scaled.std(0), torch.ones(3), atol=1e-5)


def test_the_nearest_centre_is_the_one_at_the_smallest_distance():
    clusters, frames = some_clusters(), torch.randn(2, 50, 39)
    scaled = (frames - clusters.scale.mean) / clusters.scale.deviation
    assert torch.equal(clusters.nearest(frames), torch.cdist(scaled, clusters.centres).argmin(-1))


def test_k_means_finds_the_centres_of_a_stream(monkeypatch):
    monkeypatch.setattr(selfsupervised, "FRAMES_PER_BATCH", 300)
    truth = 10 * torch.eye(4)
    stream = (truth[torch.arange(100) % 4] + 0.1 * torch.randn(100, 4) for _ in range(20))
    clusters = fit_clusters(stream, 4, seed=0)
    centres = clusters.centres * clusters.scale.deviation + clusters.scale.mean
    assert torch.cdist(truth, centres).min(1).values.max() < 0.1


def test_clusters_come_back_from_their_tensors():
    clusters, frames = fit_clusters(iter([torch.randn(200, 5)]), 3, seed=0), torch.randn(1, 40, 5)
    assert torch.equal(clusters_of(clusters.tensors()).nearest(frames), clusters.nearest(frames))


def test_loudness_weighs_no_more_than_another_dimension():
    louder = torch.tensor([100.0, 1.0, 1.0])
    frames = torch.randn(400, 3)
    labels = [fit_clusters(iter([frames * scale]), 8, seed=0).nearest(frames * scale) for scale in (1.0, louder)]
    assert torch.equal(*labels)


def test_fewer_frames_than_clusters_is_the_users_error():
    with pytest.raises(UserError, match="100 clusters of 30 frames"):
        fit_clusters(iter([torch.randn(30, 4)]), 100, seed=0)


@pytest.mark.parametrize(("fraction", "span"), [(0.5, 10), (0.5, 1), (0.2, 5)])
def test_the_asked_fraction_of_frames_is_masked(fraction, span):
    generator = torch.Generator().manual_seed(0)
    mask = span_mask(torch.full((2_000,), 50), 50, fraction, span, generator)
    assert torch.allclose(mask.float().mean(0), torch.full((50,), fraction), atol=0.05)
    assert abs(float(mask.float().mean()) - fraction) < 0.02


def test_masked_frames_lie_in_whole_spans_unless_the_clip_cuts_them():
    mask = span_mask(torch.tensor([300]), 300, 0.3, 6, torch.Generator().manual_seed(0))[0]
    values, runs = torch.unique_consecutive(mask, return_counts=True)
    assert all(run >= 6 for value, run in list(zip(values, runs, strict=True))[1:-1] if value)


def test_frames_past_a_clips_end_are_never_masked():
    mask = span_mask(torch.tensor([20, 5, 0]), 20, 0.9, 4, torch.Generator().manual_seed(0))
    assert (mask[0, 5:].any(), mask[1, 5:].any(), mask[2].any()) == (True, False, False)


def test_a_mask_depends_on_seed_and_draw_alone():
    counts = torch.tensor([80, 80])
    first = objective().mask(counts, 80, draw=5)
    torch.manual_seed(99)
    assert torch.equal(objective().mask(counts, 80, draw=5), first)
    assert not torch.equal(objective().mask(counts, 80, draw=6), first)
    assert not torch.equal(objective(seed=4).mask(counts, 80, draw=5), first)


@pytest.mark.parametrize(("family", "style"), TRANSFORMER_VARIANTS)
def test_an_encoder_sees_nothing_of_masked_frames(family, style):
    model = tiny_model(family, style)
    one, other = inputs_of(audio(seed=1)), inputs_of(audio(seed=2))
    frames = family_of(model).hidden_states(model, one)[-1].shape[1]
    masked = {"mask_time_indices": torch.ones(2, frames, dtype=torch.bool)}
    states = [family_of(model).hidden_states(model, {**inputs, **masked})[-1] for inputs in (one, other)]
    assert torch.equal(*states)
    seeing, masking = (family_of(model).hidden_states(model, inputs) for inputs in (one, {**one, **masked}))
    assert not torch.equal(states[0], seeing[-1])
    assert torch.equal(masking[0], seeing[0])  # the projection comes before the mask


@pytest.mark.parametrize(("family", "style"), TRANSFORMER_VARIANTS)
def test_in_training_nothing_but_the_drawn_mask_is_random(family, style):
    module = objective(tiny_model(family, style, **DROPPING))
    torch.manual_seed(1)
    first = module(audio(), torch.tensor([8_000, 8_000]), 0, 7)
    torch.manual_seed(2)
    assert torch.equal(module(audio(), torch.tensor([8_000, 8_000]), 0, 7)["loss"], first["loss"])


@pytest.mark.parametrize(("family", "style"), TRANSFORMER_VARIANTS)
def test_masked_prediction_trains_every_parameter(family, style):
    module = objective(tiny_model(family, style), whitening=WHITENING, clip_weight=1.0)
    loss_of(module, audio(4))["loss"].backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("style", ["base", "large"])
def test_the_losses_are_the_cross_entropy_of_masked_frames_and_the_clip_loss_of_the_projection(style):
    module = objective(tiny_model(style=style), whitening=WHITENING, clip_weight=1.0)
    waveforms, lengths, counts = 3 * audio() + 0.7, [8_000, 5_000], torch.tensor([24, 15])
    waveforms[1, 5_000:] = 0
    inputs = inputs_of(waveforms, lengths)
    targets = module.clusters.nearest(cepstral_frames(inputs, GRID))
    mask = module.mask(counts, 24, draw=2)
    states = family_of(module.student).hidden_states(module.student, {**inputs, "mask_time_indices": mask})
    logits = module.head(states[-1])
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    scalars = module(waveforms, torch.tensor(lengths), 0, 2)
    assert torch.allclose(scalars["masked"], losses[mask].mean())
    assert torch.allclose(scalars["accuracy"], (logits.argmax(-1) == targets)[mask].float().mean())
    assert torch.allclose(scalars["clip"], module.clip_head(states[0], log_mel_frames(inputs, GRID), counts))


def test_a_batch_without_a_masked_frame_has_loss_0_and_finite_gradients():
    module = objective(fraction=1e-9)
    scalars = loss_of(module, audio(1, 500))
    scalars["loss"].backward()
    assert (scalars["loss"].item(), scalars["accuracy"].item()) == (0.0, 0.0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_logits_are_cosines_over_the_temperature():
    head = ClusterHead(6, 4)
    states = torch.randn(3, 6)
    expected = F.cosine_similarity(head.projection(states)[:, None], head.embeddings[None], dim=-1) / 0.1
    assert torch.allclose(head(states), expected, atol=1e-5)


@pytest.mark.parametrize(("family", "style"), TRANSFORMER_VARIANTS)
def test_the_warm_up_trains_the_front_end_alone(family, style):
    model = tiny_model(family, style)
    module = FrontEndObjective(model, EXTRACTOR, SCALE, WHITENING, 1.0).train()
    loss_of(module, audio())["loss"].backward()
    assert [name for name, p in module.named_parameters() if "head" in name and p.grad is None] == []
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"feature_extractor", "feature_projection"}


def test_the_warm_up_loss_is_the_mean_square_over_the_clips_own_frames():
    model = tiny_model(style="large")
    module = FrontEndObjective(model, EXTRACTOR, SCALE).train()
    torch.nn.init.zeros_(module.head.weight)
    torch.nn.init.zeros_(module.head.bias)
    waveforms, lengths = audio(2, 6_000), [6_000, 3_000]
    waveforms[1, 3_000:] = 0
    target = SCALE(log_mel_frames(inputs_of(waveforms, lengths), GRID))
    own = torch.cat([target[0], target[1, :9]])  # (3000 - 400) // 320 + 1
    assert torch.allclose(module(waveforms, torch.tensor(lengths), 0, 0)["loss"], own.square().mean())


def test_centred_features_have_no_mean_over_a_clips_own_frames():
    waveforms = audio(2, 6_000)
    waveforms[1, 3_000:] = 0
    inputs = inputs_of(waveforms, [6_000, 3_000])
    plain, frames = cepstral_frames(inputs, GRID), centred(lambda i: cepstral_frames(i, GRID), GRID)(inputs)
    for clip, own in enumerate((18, 9)):  # (6000 - 400) // 320 + 1, (3000 - 400) // 320 + 1
        assert torch.allclose(frames[clip, :own].mean(0), torch.zeros(39), atol=1e-4)
        expected = plain[clip, :own] - plain[clip, :own].mean(0)
        assert torch.allclose(frames[clip, :own], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["masked", "frame"])
def test_the_clip_weight_adds_that_much_of_the_clip_loss(kind):
    def make(*clips):
        torch.manual_seed(0)
        model = tiny_model()
        if kind == "frame":
            return FrontEndObjective(model, EXTRACTOR, SCALE, *clips).train()
        return objective(model, **dict(zip(("whitening", "clip_weight"), clips, strict=False)))

    scalars, alone = loss_of(make(WHITENING, 3.0), audio()), loss_of(make(), audio())
    assert torch.allclose(scalars["loss"], scalars[kind] + 3.0 * scalars["clip"])
    assert torch.equal(alone["loss"], scalars[kind])
    assert "clip" not in alone


def test_the_tiny_models_of_these_tests_drop_and_mask_in_training_mode():
    assert tiny_config(**DROPPING).layerdrop == 0.5
    model = tiny_model(**DROPPING).train()
    assert not torch.equal(model(audio()).last_hidden_state, model(audio()).last_hidden_state)
