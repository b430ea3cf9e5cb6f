"""Parakeet and streaming Nemotron: what a recogniser puts out, and streaming after removal."""

from typing import Any

import pytest
import torch
from transformers.models.parakeet.generation_parakeet import ParakeetRNNTDecoderCache

from conformance.test_removal import gated_and_removed
from diminuendo.families import family_of
from diminuendo.families.parakeet import LOG_MEL
from diminuendo.training.configurations import read_configuration
from diminuendo.training.own_prediction import encoder_of
from tiny import TRANSDUCERS, extractor_of, inputs_of, tiny_model, tiny_transducer


def logits(model: Any) -> torch.Tensor:
    tokens = torch.tensor([[10, 1, 2, 3], [10, 4, 5, 5]])
    with torch.inference_mode():
        found: torch.Tensor = model(**inputs_of(model), decoder_input_ids=tokens).logits
    return found


@pytest.mark.parametrize(
    ("kind", "edge"), [("channels", "some"), ("channels", "one"), ("sublayer", "some"), ("width", "some")]
)
@pytest.mark.parametrize(("family", "style"), TRANSDUCERS)
def test_logits_of_a_removed_transducer_equal_those_of_the_gated_one(
    family: str, style: str, kind: str, edge: str
) -> None:
    pair = gated_and_removed(tiny_transducer(family, style), kind, edge)
    gated, removed = pair.gated, pair.removed
    torch.testing.assert_close(logits(removed), logits(gated), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "style"), TRANSDUCERS)
def test_greedy_decoding_with_a_cache_follows_the_widths(family: str, style: str) -> None:
    removed = gated_and_removed(tiny_transducer(family, style), "channels", "some").removed
    decoder = removed.decoder
    between = decoder.conv.groups if style == "stateless" else decoder.lstm.hidden_size
    assert (decoder.embedding.embedding_dim, between, decoder.decoder_projector.in_features) == (12, 12, 12)
    assert removed.joint.head.in_features == 12
    tokens = torch.tensor([[10], [10]])
    with torch.inference_mode():
        whole = removed.decoder(torch.tensor([[10, 3, 4], [10, 5, 6]]))
        held = ParakeetRNNTDecoderCache(removed.config)
        steps = [removed.decoder(tokens, held)]
        for step in ([[3], [10]], [[10], [10]], [[10], [5]], [[4], [6]]):  # of one clip a blank, and of both
            steps.append(removed.decoder(torch.tensor(step), held))
    found = torch.cat([torch.stack([steps[i][0], steps[j][1]]) for i, j in ((0, 2), (2, 3), (4, 4))], 1)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
@pytest.mark.parametrize(
    ("kind", "edge"),
    [
        ("heads", "some"),
        ("channels", "some"),
        ("width", "some"),
        ("sublayer", "first attention"),
        ("sublayer", "some"),
    ],
)
def test_chunk_by_chunk_equals_the_whole_utterance_after_removal(kind: str, edge: str, lookahead: int) -> None:
    """Chunks of lookahead + 1 frames; the first one is shorter, since the subsampling has no past to see."""
    model = tiny_model("nemotron", "rnnt")
    removed = gated_and_removed(model, kind, edge).removed
    frames = 8 * 12 - 7
    features, chunks = torch.randn(2, frames, 32), []
    cache, padding, start = None, None, 0
    with torch.inference_mode():
        whole = removed.encoder(features, num_lookahead_tokens=lookahead).last_hidden_state
        while start < frames:
            end = start + 8 * (lookahead + 1) - (7 if start == 0 else 0)
            output = removed.encoder(
                features[:, start:end],
                use_cache=True,
                past_key_values=cache,
                padding_cache=padding,
                num_lookahead_tokens=lookahead,
            )
            cache, padding, start = output.past_key_values, output.padding_cache, end
            chunks.append(output.last_hidden_state)
    torch.testing.assert_close(torch.cat(chunks, 1), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lookahead", [0, 1, 3])
def test_no_gradient_comes_from_behind_the_lookahead_in_training(lookahead: int) -> None:
    """A chunk of lookahead + 1 frames ends with feature 8 f of its last frame f: that one counts, none behind it."""
    encoder = tiny_model("nemotron", "encoder", layerdrop=0.0).train()
    features = torch.randn(1, 8 * 12 - 7, 32, requires_grad=True)
    states = encoder(features, num_lookahead_tokens=lookahead).last_hidden_state
    for frame in range(12):
        (gradient,) = torch.autograd.grad(states[0, frame].square().sum(), features, retain_graph=True)
        last = frame - frame % (lookahead + 1) + lookahead
        assert gradient[0].abs().sum(1).nonzero().max() == 8 * last


def test_frames_are_those_that_the_extractor_and_the_model_do_not_mask() -> None:
    for family, style in [("parakeet", "encoder"), ("nemotron", "encoder")]:
        model = tiny_model(family, style)
        lengths = torch.tensor([8000, 5000, 4999, 1700])
        waveforms = torch.randn(4, 8000) * (torch.arange(8000) < lengths[:, None])
        clips = [clip[:length].numpy() for clip, length in zip(waveforms, lengths.tolist(), strict=True)]
        made = extractor_of(model)(clips, sampling_rate=16_000, return_tensors="pt", padding=True)
        with torch.inference_mode():
            mask = model(made["input_features"], attention_mask=made["attention_mask"]).attention_mask
        assert family_of(model).frame_lengths(model, lengths).tolist() == mask.sum(1).tolist()


@pytest.mark.parametrize(("kind", "edge"), [("channels", "some"), ("sublayer", "some"), ("width", "some")])
@pytest.mark.parametrize(("family", "style"), TRANSDUCERS)
def test_a_removed_transducer_decodes_the_tokens_of_the_gated_one(
    family: str, style: str, kind: str, edge: str
) -> None:
    model = tiny_transducer(family, style)
    with torch.no_grad():  # the stock loop of TDT takes a duration for a token where that has the largest logit
        model.joint.head.weight[11:] = 0
    pair = gated_and_removed(model, kind, edge)
    gated, removed = pair.gated, pair.removed
    options = {"decoder_start_token_id": 10, "max_new_tokens": 30}
    with torch.inference_mode():
        found, expected = (model.generate(**inputs_of(model), **options).sequences for model in (removed, gated))
    assert torch.equal(found, expected)
    assert found.shape[1] > 1


@pytest.mark.parametrize(
    ("name", "mean", "deviation"),
    [("tiny-parakeet", 0.0, 1.0), ("tiny-parakeet-40ms", 0.0, 1.0), ("tiny-nemotron", *LOG_MEL)],
)
def test_fresh_weights_keep_the_size_of_what_changes_over_time(name: str, mean: float, deviation: float) -> None:
    """By torch's own weights it is a hundredth, and a fifth of what the biases add."""
    torch.manual_seed(0)
    encoder = encoder_of(read_configuration(name))
    features = mean + deviation * torch.randn(4, 800, 80)
    with torch.inference_mode():
        first = family_of(encoder).hidden_states(encoder, {"input_features": features})[0]
    assert 0.5 < first.std(1).mean() < 2
    assert 0.5 < first.std() < 2
