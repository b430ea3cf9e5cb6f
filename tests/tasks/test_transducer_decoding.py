"""RNN-T and TDT decoding beside transformers' own, a plain reference, and sums over all paths there are."""

import math
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from conformance.test_removal import gated_and_removed
from diminuendo.errors import UserError
from diminuendo.families import model_inputs
from diminuendo.tasks.hypotheses import Hypothesis, log_add
from diminuendo.tasks.transducer import State, beam_search, greedy, joint_logits, predict
from tiny import TRANSDUCERS, extractor_of, tiny_transducer

BLANK = 10
RNNT = pytest.mark.parametrize("style", ["rnnt", "stateless"])
LENGTHS = torch.tensor([23, 9, 16, 1, 0])


def standardised(linear: nn.Linear, outputs: Float[Tensor, "places width"], deviation: float) -> None:
    """Changes the layer so that these outputs of it vary by that much, around 0."""
    with torch.no_grad():
        scale, mean = deviation / outputs.std(0), outputs.mean(0)
        linear.weight *= scale[:, None]
        linear.bias.copy_((linear.bias - mean) * scale)


def read_by_projector(model: Any) -> nn.Module:
    """What of the predictor runs once for every label."""
    return getattr(model.decoder, "lstm", None) or model.decoder.conv


def talkative(model: Any, blank_bias: float = 1.0) -> Any:
    """With a predictor whose outputs tell labels apart, and a joint network that is neither always nor never silent."""
    with torch.no_grad():
        for parameter in read_by_projector(model).parameters():
            parameter *= 2
        model.decoder.embedding.weight.normal_()
        standardised(model.decoder.decoder_projector, predict(model, torch.arange(10)[:, None])[:, 1], 1.0)
        pairs = joint_logits(model, frames_of(model, 1, 50), predict(model, torch.randint(0, 10, (1, 50))))
        standardised(model.joint.head, pairs.flatten(0, 2), 2.0)
        model.joint.head.bias[BLANK] += blank_bias
        # Of a TDT transformers embeds the most probable of labels and durations: so let durations be less probable.
        model.joint.head.bias[:11] += 40
        model.joint.head.bias[11:12] -= 2  # duration 0, of which transformers takes as many as come
    return model


def transducer(family: str = "parakeet", style: str = "rnnt", *, removed: bool = False, bias: float = 1.0) -> Any:
    model = tiny_transducer(family, style)
    return talkative(gated_and_removed(model, "channels", "some").removed if removed else model, bias)


def frames_of(model: Any, clips: int = 5, frames: int = 23) -> Float[Tensor, "clips frames joint"]:
    return 1.5 * torch.randn(clips, frames, model.joint.head.in_features)


def audio_inputs(model: Any) -> dict[str, Tensor]:
    """Four clips of 0.6 to 3 s; the model is changed so that its frames vary."""
    lengths = torch.tensor([48_000, 30_000, 20_000, 9_000])
    waveforms = torch.randn(4, 48_000).masked_fill(torch.arange(48_000) >= lengths[:, None], 0.0)
    inputs = model_inputs(extractor_of(model), waveforms, lengths)
    if "nemotron" in model.config.model_type:
        inputs["num_lookahead_tokens"] = 3
    with torch.inference_mode():
        found = model.get_audio_features(**inputs).pooler_output[0]
    standardised(model.encoder_projector, found.clone(), 1.5)
    return inputs


def generated(model: Any, inputs: dict[str, Tensor], counts: Int[Tensor, " batch"]) -> list[tuple[Any, Any]]:
    """Tokens and frames that transformers finds. Clips that are over go on beside others, at their last frame."""
    output = model.generate(**inputs, decoder_start_token_id=BLANK)
    found = []
    for symbols, durations, count in zip(output.sequences, output.durations, counts, strict=True):
        at = durations.cumsum(0) - durations
        valid = (symbols != BLANK) & (at < count)
        found.append((tuple(symbols[valid].tolist()), tuple(at[valid].tolist())))
    return found


def plain_greedy(model: Any, frames: Float[Tensor, "frames joint"], limit: int = 10) -> Hypothesis:
    """One clip, one symbol at a time, the predictor run anew over all labels for each."""
    tokens, at, score, frame, here = [], [], 0.0, 0, 0
    while frame < len(frames):
        with torch.no_grad():
            predicted = predict(model, torch.tensor([tokens], dtype=torch.long))[:, -1:]
            logits = joint_logits(model, frames[None, frame, None], predicted)[0, 0, 0]
        best, symbol = logits[:11].log_softmax(-1).max(-1)
        step, of_duration = int(symbol == BLANK), torch.tensor(0.0)
        if hasattr(model.config, "durations"):
            of_duration, chosen = logits[11:].log_softmax(-1).max(-1)
            step = max(model.config.durations[int(chosen)], step)
        score += float(best + of_duration)
        if symbol != BLANK:
            tokens, at, here = [*tokens, int(symbol)], [*at, frame], here + 1
        if step == 0 and here == limit:
            step = 1
        frame, here = frame + step, 0 if step else here
    return Hypothesis(tuple(tokens), tuple(at), score)


def every_labelling(model: Any, frames: Float[Tensor, "frames joint"], limit: int) -> list[Hypothesis]:
    """Most probable first: summed over all paths of at most `limit` labels a frame; frames are the best path's."""
    labels = [label for label in range(11) if label != BLANK and model.joint.head.bias[label] > -math.inf]
    of_frame = [emitted for count in range(limit + 1) for emitted in product(labels, repeat=count)]
    found: dict[tuple[int, ...], tuple[float, float, tuple[int, ...]]] = {}
    scores: dict[tuple[int, ...], Tensor] = {}
    for path in product(of_frame, repeat=len(frames)):
        tokens = tuple(label for emitted in path for label in emitted)
        at = tuple(frame for frame, emitted in enumerate(path) for _ in emitted)
        if tokens not in scores:
            with torch.no_grad():
                predicted = predict(model, torch.tensor([tokens], dtype=torch.long))
                scores[tokens] = joint_logits(model, frames[None], predicted)[0].log_softmax(-1).double()
        log_probs = scores[tokens]
        score = sum(float(log_probs[frame, i, label]) for i, (frame, label) in enumerate(zip(at, tokens, strict=True)))
        score += sum(float(log_probs[t, sum(a <= t for a in at), BLANK]) for t in range(len(frames)))
        total, best, where = found.get(tokens, (-math.inf, -math.inf, ()))
        found[tokens] = (log_add(total, score), *max((best, where), (score, at)))
    hypotheses = [Hypothesis(tokens, at, total) for tokens, (total, _, at) in found.items()]
    return sorted(hypotheses, key=lambda one: -one.score)


def with_two_labels(model: Any) -> Any:
    """All others are impossible."""
    with torch.no_grad():
        model.joint.head.bias[2:BLANK] = -math.inf
    return model


def assert_equal(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [(one.tokens, one.frames) for one in found] == [(one.tokens, one.frames) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-3, rel=2e-4)


class Calls:
    """Rows of every run of the predictor."""

    def __init__(self, model: Any) -> None:
        self.rows: list[int] = []
        part = read_by_projector(model)
        part.register_forward_hook(lambda module, inputs, output: self.rows.append(len(inputs[0])))


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(("family", "style"), TRANSDUCERS)
def test_training_logits_are_those_of_the_models_own_forward_pass(family, style, removed):
    model = transducer(family, style, removed=removed)
    inputs, targets = audio_inputs(model), torch.randint(0, 10, (4, 5))
    with torch.no_grad():
        frames = model.get_audio_features(**inputs).pooler_output
        started = torch.cat([torch.full((4, 1), BLANK), targets], 1)
        expected = model(**inputs, decoder_input_ids=started).logits
        found = joint_logits(model, frames, predict(model, targets))
    assert found.shape == (4, frames.shape[1], 6, model.joint.head.out_features)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("removed", [False, True])
@pytest.mark.parametrize(("family", "style"), TRANSDUCERS)
def test_greedy_decoding_finds_what_transformers_generates(family, style, removed):
    model = transducer(family, style, removed=removed)
    inputs = audio_inputs(model)
    with torch.no_grad():
        encoded = model.get_audio_features(**inputs, output_attention_mask=True)
    counts = encoded.attention_mask.sum(-1)
    found, _ = greedy(model, encoded.pooler_output, counts)
    assert [(one.tokens, one.frames) for one in found] == generated(model, inputs, counts)
    spoken = Counter(token for one in found for token in one.tokens)
    assert len(spoken) > 2
    assert counts.sum() / 8 < spoken.total() < counts.sum() * 8


@pytest.mark.parametrize("limit", [1, 2])
def test_a_frame_that_has_emitted_its_limit_of_labels_is_left_as_transformers_leaves_it(limit):
    model = transducer(bias=-1.0)
    inputs = audio_inputs(model)
    with torch.no_grad():
        encoded = model.get_audio_features(**inputs, output_attention_mask=True)
    counts = encoded.attention_mask.sum(-1)
    model.config.max_symbols_per_step = model.max_symbols_per_step = limit
    expected = generated(model, inputs | {"max_new_tokens": 200}, counts)
    assert max(Counter(expected[0][1]).values()) == limit
    for given in (None, limit):
        found, _ = greedy(model, encoded.pooler_output, counts, max_symbols=given)
        assert [(one.tokens, one.frames) for one in found] == expected


@pytest.mark.parametrize(
    ("style", "durations"), [("rnnt", None), ("stateless", None), ("tdt", [0, 1, 2, 3, 4]), ("tdt", [0, 2, 3, 5, 9])]
)
def test_greedy_decoding_of_a_batch_takes_the_most_probable_symbol_at_every_step_of_each_clip(style, durations):
    model = transducer(style=style)
    if durations:
        model.config.durations = durations
    frames = frames_of(model)
    found, _ = greedy(model, frames, LENGTHS, max_symbols=3)
    assert_equal(found, [plain_greedy(model, clip[:n], 3) for clip, n in zip(frames, LENGTHS, strict=True)])
    assert found[-1] == Hypothesis((), (), 0.0)


def test_a_tdt_that_says_duration_0_for_ever_leaves_a_frame_at_the_limit():
    model = transducer(style="tdt", bias=-100.0)
    with torch.no_grad():
        model.joint.head.bias[11] += 100
    found, _ = greedy(model, frames_of(model, 1, 5), torch.tensor([5]), max_symbols=3)
    assert found[0].frames == (0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4)


def test_a_blank_of_duration_0_takes_a_frame():
    model = transducer(style="tdt", bias=100.0)
    with torch.no_grad():
        model.joint.head.bias[11] += 100
    frames = frames_of(model, 1, 5)
    found, state = greedy(model, frames, torch.tensor([5]))
    assert_equal(found, [plain_greedy(model, frames[0])])
    assert (found[0].tokens, state.ahead) == ((), (0,))


@pytest.mark.parametrize("chunk", [1, 2, 5, 22])
@pytest.mark.parametrize(("family", "style"), TRANSDUCERS)
def test_chunk_by_chunk_greedy_decoding_equals_that_of_all_frames_at_once(family, style, chunk):
    model = transducer(family, style)
    if style == "tdt":
        model.config.durations = [0, 1, 2, 5, 9]  # over more than a chunk
    frames = frames_of(model)
    whole, end = greedy(model, frames, LENGTHS)
    state: State | None = None
    parts: list[Hypothesis] = [Hypothesis((), (), 0.0)] * len(frames)
    for first in range(0, frames.shape[1], chunk):
        counts = (LENGTHS - first).clamp(0, chunk)
        found, state = greedy(model, frames[:, first : first + chunk], counts, state=state)
        parts = [
            Hypothesis(a.tokens + b.tokens, a.frames + tuple(first + at for at in b.frames), a.score + b.score)
            for a, b in zip(parts, found, strict=True)
        ]
    assert_equal(parts, whole)
    assert sum(len(one.tokens) for one in whole) > 10
    torch.testing.assert_close(vars(state.predicted), vars(end.predicted))


@RNNT
def test_the_predictor_runs_once_for_every_label_and_never_for_a_frame(style):
    model = transducer(style=style)
    calls = Calls(model)
    found, _ = greedy(model, frames_of(model, 1, 60), torch.tensor([60]))
    assert calls.rows == [1] * (1 + len(found[0].tokens))
    assert len(found[0].tokens) > 20

    calls.rows.clear()
    found, state = greedy(model, frames_of(model), LENGTHS)
    assert (calls.rows[0], sum(calls.rows[1:])) == (5, sum(len(one.tokens) for one in found))
    assert len(calls.rows) < 0.8 * sum(calls.rows)

    calls.rows.clear()
    found, _ = greedy(model, frames_of(model), LENGTHS, state=state)
    assert sum(calls.rows) == sum(len(one.tokens) for one in found)

    silent = transducer(style=style, bias=100.0)
    calls = Calls(silent)
    greedy(silent, frames_of(silent), LENGTHS)
    assert calls.rows == [5]


@pytest.mark.parametrize(("style", "limit"), [("rnnt", 1), ("rnnt", 2), ("stateless", 2)])
def test_a_wide_beam_gives_every_labelling_the_sum_over_its_alignments_and_the_frames_of_the_best(style, limit):
    model = with_two_labels(transducer(style=style, bias=0.0))
    frames, lengths = frames_of(model, 4, 3), [3, 2, 1, 0]
    found = beam_search(model, frames, torch.tensor(lengths), beam=500, n_best=500, max_symbols=limit)
    expected = [every_labelling(model, clip[:n], limit) for clip, n in zip(frames, lengths, strict=True)]
    assert [len(clip) for clip in expected] == [2 ** (limit * n + 1) - 1 for n in lengths]
    for hypotheses, of_clip in zip(found, expected, strict=True):
        assert_equal(hypotheses, of_clip)


def test_a_narrow_beam_gives_no_labelling_more_than_its_alignments_and_the_best_nearly_all_of_them():
    model = with_two_labels(transducer(bias=0.0))
    frames = frames_of(model, 6, 3)
    found = beam_search(model, frames, torch.full((6,), 3), beam=8, n_best=8, max_symbols=2)
    for clip, hypotheses in zip(frames, found, strict=True):
        exact = {one.tokens: one.score for one in every_labelling(model, clip, 2)}
        assert all(one.score <= exact[one.tokens] + 1e-4 for one in hypotheses)
        assert hypotheses[0].score > max(exact.values()) - 0.3


@RNNT
def test_a_beam_of_1_finds_what_greedy_decoding_finds_if_the_model_is_sure(style):
    model = transducer(style=style, bias=3.0)
    with torch.no_grad():
        for parameter in model.joint.head.parameters():
            parameter *= 50
    frames, lengths = frames_of(model, 60, 6), torch.full((60,), 6)
    expected, _ = greedy(model, frames, lengths)
    found = beam_search(model, frames, lengths, beam=1, n_best=1)
    # A frame left at the limit is left for nothing by the one, with a blank by the other.
    pairs = [
        (a, b) for a, (b,) in zip(expected, found, strict=True) if max(Counter(a.frames).values(), default=10) < 10
    ]
    assert len({a.tokens for a, _ in pairs}) > 5
    assert [(b.tokens, b.frames) for _, b in pairs] == [(a.tokens, a.frames) for a, _ in pairs]


@RNNT
def test_n_best_are_the_first_of_the_beam_and_clips_do_not_change_each_other(style):
    model = transducer(style=style, removed=True)
    frames = frames_of(model)
    whole = beam_search(model, frames, LENGTHS, beam=5, n_best=5)
    assert [len({one.tokens for one in clip}) for clip in whole] == [5, 5, 5, 5, 1]
    assert all(clip == sorted(clip, key=lambda one: -one.score) for clip in whole)
    assert beam_search(model, frames, LENGTHS, beam=5, n_best=2) == [clip[:2] for clip in whole]
    for clip, count in enumerate(LENGTHS):
        (alone,) = beam_search(model, frames[clip, None, :count], count[None], beam=5, n_best=5)
        assert_equal(alone, whole[clip])


def test_the_predictor_runs_once_for_all_hypotheses_that_grow_together():
    model = transducer()
    calls = Calls(model)
    beam_search(model, frames_of(model), LENGTHS, beam=4, n_best=1, max_symbols=2)
    assert len(calls.rows) <= 1 + 23 * 2
    assert calls.rows[0] == 5
    assert 4 < max(calls.rows) <= 4 * 4


def test_what_cannot_be_decoded_is_the_users_error():
    rnnt, tdt = transducer(), transducer(style="tdt")
    with pytest.raises(UserError, match="this model is a TDT"):
        beam_search(tdt, frames_of(tdt), LENGTHS, beam=2, n_best=1)
    with pytest.raises(UserError, match="a beam of 2 cannot give the 3 best"):
        beam_search(rnnt, frames_of(rnnt), LENGTHS, beam=2, n_best=3)
    for search in (greedy, lambda *given, **options: beam_search(*given, 2, 1, **options)):
        with pytest.raises(UserError, match="max_symbols 0"):
            search(rnnt, frames_of(rnnt), LENGTHS, max_symbols=0)
