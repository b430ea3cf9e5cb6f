"""BEST-RQ: what codes are of, what is masked, and what the loss is over."""

import pytest
import torch
from torch.nn import functional as F

from diminuendo.families import family_of, model_inputs
from diminuendo.tasks.best_rq import BestRQ, RandomQuantiser, normalised, stacks
from tiny import audio, tiny_model

FAMILIES = [("parakeet", "encoder"), ("nemotron", "encoder"), ("wav2vec2-bert", "base")]
SAMPLES = 24_000  # 150 features of 10 ms


def objective(family="parakeet", style="encoder", model=None, **changes):
    model = tiny_model(family, style) if model is None else model
    settings = {"codebooks": 2, "codes": 12, "code_dim": 4, "masked": 0.5, "span_seconds": 0.2, "seed": 3}
    return BestRQ(model, **settings | changes).train()


def loss_of(module, waveforms, draw=0, lengths=None):
    lengths = torch.tensor(lengths or [waveforms.shape[1]] * len(waveforms))
    return module(waveforms, lengths, 0, draw)


def listen(module):
    """What the model is given and what it puts out, filled in when it runs."""
    heard = {}

    def hear(model, args, kwargs, output):
        heard.update(kwargs, states=output.last_hidden_state)

    module.student.register_forward_hook(hear, with_kwargs=True)
    return heard


def features_of(module, waveforms, lengths):
    """Features, and how many of them are each clip's own."""
    made = model_inputs(module.heard.extractor, waveforms, torch.tensor(lengths))
    mask = made.get("attention_mask")
    counts = torch.full((len(waveforms),), made["input_features"].shape[1]) if mask is None else mask.long().sum(1)
    return made["input_features"], counts


def test_a_code_is_the_nearest_by_angle_to_the_projected_vector():
    quantiser, vectors = RandomQuantiser(20, codebooks=3, codes=7, dim=4, seed=0), torch.randn(5, 20)
    codes = quantiser(vectors)
    for book in range(3):
        projected = vectors @ quantiser.projections[book]
        angles = F.cosine_similarity(projected[:, None], quantiser.codes[book][None], dim=-1)
        assert torch.equal(codes[:, book], angles.argmax(-1))
    assert torch.equal(quantiser(100 * vectors), codes)


def test_codebooks_differ_and_depend_on_the_seed_alone():
    first, again, other = (RandomQuantiser(20, codebooks=2, codes=7, dim=4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.codes, again.codes)
    assert torch.equal(first.projections, again.projections)
    assert not torch.equal(first.projections, other.projections)
    assert not torch.equal(first.codes[0], first.codes[1])
    assert torch.allclose(first.codes.norm(dim=-1), torch.ones(2, 7))


def test_bands_have_mean_0_and_variance_1_over_a_clips_own_features():
    features = 5 + torch.tensor([1.0, 10.0, 0.0]) * torch.randn(2, 30, 3)
    found = normalised(features, torch.tensor([30, 12]))[1, :12]
    assert torch.allclose(found.mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-4)


@pytest.mark.parametrize(
    ("frames", "stacked", "first", "expected"),
    [
        (2, 3, 0, [[1, 2, 3], [4, 5, 0]]),
        (1, 3, 0, [[1, 2, 3]]),
        (3, 3, -2, [[0, 0, 1], [2, 3, 4], [5, 0, 0]]),
        (5, 1, 0, [[1], [2], [3], [4], [5]]),
    ],
)
def test_a_frame_has_the_features_that_it_is_made_of(frames, stacked, first, expected):
    features = torch.arange(1, 6)[None, :, None]
    assert stacks(features, frames, stacked, first).tolist() == [expected]


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_labels_are_of_features_that_the_frame_hears(family, style):
    """So that a frame could know its label, were it not masked: what it is made of moves it."""
    model = tiny_model(family, style)
    heard = family_of(model).features(model.config)
    features = torch.randn(1, 64, family_of(model).example(model, 16_000)["input_features"].shape[-1])
    numbered = stacks(torch.arange(1, 65)[None, :, None], 64 // heard.stacked, heard.stacked, heard.first)
    with torch.inference_mode():
        subsampled = getattr(model, "subsampling", lambda given: model.feature_projection(given)[0])
        before = subsampled(features)
        for index in (numbered[0, 3] - 1).tolist():
            changed = features.clone()
            changed[0, index] += 1
            assert not torch.equal(subsampled(changed)[0, 3], before[0, 3])


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_labels_depend_on_neither_padding_nor_batch_mates(family, style):
    module, clip = objective(family, style, codes=200), audio(1, 12_000)
    batch = torch.cat([F.pad(clip, (0, SAMPLES - 12_000)), audio(1, SAMPLES, seed=1)])
    frames = int(family_of(module.student).frame_lengths(module.student, torch.tensor(12_000)))
    alone = module.labels(*features_of(module, clip, [12_000]), frames)
    among = module.labels(*features_of(module, batch, [12_000, SAMPLES]), frames)
    own = torch.ones(1, 36 if family == "wav2vec2-bert" else 75, dtype=torch.bool)
    whole = module.whole(own, frames)
    assert whole.sum() >= frames - 2  # a streaming encoder's first is of one feature; the last may be cut
    assert torch.equal(among[:1][whole], alone[whole])
    assert len(alone.unique()) > 10


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_labels_depend_on_neither_the_level_nor_the_range_of_a_clips_bands(family, style):
    module = objective(family, style, codes=200)
    features, counts = features_of(module, audio(1, SAMPLES), [SAMPLES])
    frames = features.shape[1] // module.heard.stacked
    louder = module.labels(2 * features + torch.linspace(-9, 9, features.shape[-1]), counts, frames)
    whole = module.whole(torch.arange(features.shape[1])[None] < counts[:, None], frames)
    assert torch.equal(louder[whole], module.labels(features, counts, frames)[whole])


def test_autocast_does_not_change_labels():
    module = objective(codes=200)
    features, counts = features_of(module, audio(1, SAMPLES), [SAMPLES])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = module.labels(features, counts, 18)
    assert torch.equal(under_autocast, module.labels(features, counts, 18))


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_spans_of_a_clips_own_features_become_noise_and_others_stay(family, style):
    module, lengths = objective(family, style), [SAMPLES, 16_000]
    waveforms = audio(2, SAMPLES) * (torch.arange(SAMPLES) < torch.tensor(lengths)[:, None])
    heard, (features, counts) = listen(module), features_of(module, waveforms, lengths)
    clips = [clip[:count] for clip, count in zip(features, counts.tolist(), strict=True)]
    mean, deviation = (
        torch.stack([of(clip) for clip in clips])[:, None] for of in (lambda c: c.mean(0), lambda c: c.std(0))
    )
    changed = torch.zeros(2, features.shape[1], dtype=torch.bool)
    drawn: list[torch.Tensor] = []
    for draw in range(40):
        loss_of(module, waveforms, draw, lengths)
        masked = (heard["input_features"] != features).any(-1)
        drawn += [((heard["input_features"] - mean) / deviation)[masked]]
        changed |= masked
    assert changed.sum(1).tolist() == counts.tolist()  # every one of them in some draw, nothing beside them in any
    noise = torch.cat(drawn)
    assert abs(noise.mean()) < 2e-3
    assert abs(noise.std() - 0.1) < 2e-3
    assert 0.4 < len(noise) / (40 * int(counts.sum())) < 0.6


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_the_loss_is_that_of_frames_whose_features_are_all_masked(family, style):
    module, lengths = objective(family, style).eval(), [SAMPLES, 16_000]
    waveforms = audio(2, SAMPLES) * (torch.arange(SAMPLES) < torch.tensor(lengths)[:, None])
    heard, (features, counts) = listen(module), features_of(module, waveforms, lengths)
    found = loss_of(module, waveforms, 1, lengths)
    masked, states = (heard["input_features"] != features).any(-1), heard["states"]
    labels = module.labels(features, counts, states.shape[1])
    losses, right = [], []
    stacked, first = module.heard.stacked, module.heard.first
    for clip, frames in enumerate(family_of(module.student).frame_lengths(module.student, torch.tensor(lengths))):
        for frame in range(frames):
            begin = frame * stacked + first
            if begin < 0 or begin + stacked > counts[clip] or not masked[clip, begin : begin + stacked].all():
                continue
            for book, logits in enumerate(module.head(states[clip, frame]).unflatten(0, (2, 12))):
                losses.append(F.cross_entropy(logits, labels[clip, frame, book]))
                right.append(logits.argmax() == labels[clip, frame, book])
    assert len(losses) > 10
    assert torch.allclose(found["loss"], torch.stack(losses).mean(), rtol=1e-5)
    assert torch.allclose(found["accuracy"], torch.stack(right).float().mean())


def test_the_commonest_code_is_counted_over_all_whole_frames():
    module = objective(codebooks=1, codes=2)
    features, counts = features_of(module, audio(1, SAMPLES), [SAMPLES])
    labels = module.labels(features, counts, 18).flatten()  # of 150 features 144 make whole frames
    assert torch.allclose(loss_of(module, audio(1, SAMPLES))["commonest"], labels.bincount().max() / torch.tensor(18.0))


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_gradients_reach_the_encoder_and_the_head_but_not_the_quantiser(family, style):
    module = objective(family, style)
    loss_of(module, audio(2, SAMPLES))["loss"].backward()
    without = {name for name, parameter in module.named_parameters() if parameter.grad is None}
    assert without <= {"student.masked_spec_embed"}
    assert [name for name, _ in module.quantiser.named_parameters()] == []
    assert not any(buffer.requires_grad for buffer in module.quantiser.buffers())


def test_a_batch_without_a_masked_frame_has_no_loss():
    module = objective(masked=1e-6)
    found = loss_of(module, audio(1, SAMPLES))
    found["loss"].backward()
    assert (found["loss"].item(), found["accuracy"].item()) == (0.0, 0.0)


def test_clips_shorter_than_a_frame_have_no_loss():
    found = loss_of(objective(), audio(2, 1_000))
    assert {name: value.item() for name, value in found.items()} == {"loss": 0.0, "accuracy": 0.0, "commonest": 0.0}


@pytest.mark.parametrize(("family", "style"), FAMILIES)
def test_a_step_depends_on_its_draw_and_on_no_other_chance(family, style):
    dropping = {"layerdrop": 0.5, "attention_dropout": 0.5, "activation_dropout": 0.5}
    module, waveforms = objective(family, style, tiny_model(family, style, **dropping)), audio(2, SAMPLES)
    losses = []
    for seed, draw in [(0, 5), (1, 5), (1, 6)]:
        torch.manual_seed(seed)
        losses.append(loss_of(module, waveforms, draw)["loss"].item())
    assert losses[0] == losses[1] != losses[2]


def test_batch_norms_follow_what_they_hear_and_nothing_else_trains():
    module = objective()
    training = {type(part).__name__ for part in module.student.modules() if part.training}
    before = {name: value.clone() for name, value in module.student.state_dict().items()}
    loss_of(module, audio(2, SAMPLES))
    moved = {
        name.rsplit(".", 1)[1] for name, value in module.student.state_dict().items() if not value.equal(before[name])
    }
    assert (training, moved) == ({"BatchNorm1d"}, {"running_mean", "running_var", "num_batches_tracked"})
    assert not any(part.training for part in module.eval().modules())


def test_every_lookahead_is_drawn_and_the_same_for_the_same_draw():
    module = objective("nemotron", lookaheads=(0, 1, 6))
    heard, drawn = listen(module), []
    for draw in (*range(12), *range(12)):
        loss_of(module, audio(1, SAMPLES), draw)
        drawn.append(heard["num_lookahead_tokens"])
    assert set(drawn) == {0, 1, 6}
    assert drawn[:12] == drawn[12:]


@pytest.mark.parametrize("lookahead", [0, 1, 6])
def test_a_streaming_frame_hears_nothing_beyond_the_end_of_its_chunk(lookahead):
    module = objective("nemotron", lookaheads=(lookahead,), masked=0.1)
    heard, states = listen(module), []
    changed = 18_500  # in the windows of features 115 and later, so heard by frames 15 and later
    for seed in (1, 2):
        waveforms = audio(1, SAMPLES)
        waveforms[:, changed:] = audio(1, SAMPLES - changed, seed=seed)
        loss_of(module, waveforms, draw=4)
        states.append(heard["states"][0].detach())
    first = next(i for i, (one, other) in enumerate(zip(*states, strict=True)) if not torch.equal(one, other))
    assert first == 15 - 15 % (lookahead + 1)
