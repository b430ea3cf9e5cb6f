import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from torch.testing import assert_close
from transformers import Wav2Vec2FeatureExtractor

from diminuendo.data.batching import Batch
from diminuendo.data.features import deltas, frame_counts, log_mel, mfcc
from diminuendo.data.manifest import read_cuts
from diminuendo.errors import UserError
from diminuendo.evaluation.probes import (
    HeadConfig,
    encoder_features,
    log_mel_features,
    mfcc_features,
    run,
    run_probe,
)
from diminuendo.evaluation.probes.keyword import keyword_clips
from diminuendo.evaluation.probes.probe import train_head
from diminuendo.evaluation.probes.speaker import speaker_clips
from diminuendo.families import family_of, model_inputs
from tiny import audio, tiny_model

QUICK = HeadConfig(steps=100)
SPLIT_OF = {"s1": "train", "s2": "train", "s3": "train", "s4": "train", "s5": "train", "s6": "dev", "s7": "test"}
PITCH = {"low": 300, "middle": 900, "high": 2700}


def as_cuts(tmp_path, rows):
    """Cuts of rows that name no real audio, all splits together."""
    lines = [json.dumps({"audio_filepath": f"{i}.wav", "duration": 0.2, **row}) for i, row in enumerate(rows)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    splits = sorted({row["split"] for row in rows if "split" in row}) or [None]
    cuts = [cut for split in splits for cut in read_cuts(tmp_path, split)]
    return CutSet(sorted(cuts, key=lambda cut: int(cut.id.removesuffix(".wav"))))


def keyword_rows(split_of=SPLIT_OF):
    return [
        {"speaker": s, "keyword": k, "split": split}
        for s, split in split_of.items()
        for k in PITCH
        for _take in range(2)
    ]


@pytest.fixture
def tones(tmp_path):
    """A pitch for each keyword, a loudness for each speaker."""
    random = np.random.default_rng(0)
    time = np.arange(3200) / 16000
    rows = keyword_rows()
    for i, row in enumerate(rows):
        tone = np.sin(2 * np.pi * PITCH[row["keyword"]] * random.uniform(0.9, 1.1) * time)
        loudness = 0.05 * int(row["speaker"][1:])
        soundfile.write(tmp_path / f"{i}.wav", loudness * tone + random.normal(0, 1e-3, 3200), 16000)
    return as_cuts(tmp_path, rows)


def batch_of(*clips, padding=0.0):
    lengths = torch.tensor([len(clip) for clip in clips])
    waveforms = torch.full((len(clips), int(lengths.max())), padding)
    for row, clip in zip(waveforms, clips, strict=True):
        row[: len(clip)] = clip
    return Batch(waveforms, lengths, (), 16000)


def test_a_probe_hears_keywords_of_unseen_speakers(tones):
    result = run_probe("keyword", log_mel_features(), tones, seed=1, head_config=QUICK)
    assert (result.accuracy, result.low, result.high, result.dev_accuracy) == (1, 1, 1, 1)
    assert (result.task, result.classes, result.train_clips, result.test_clips) == ("keyword", 3, 30, 6)
    assert result.layer_weights == (1,)
    assert result.outcomes == {"s7": "111111"}
    assert result.learning_rate in QUICK.learning_rates


def test_a_probe_of_an_encoder_weighs_the_projection_and_every_layer(tones):
    features = encoder_features(tiny_model(), Wav2Vec2FeatureExtractor(do_normalize=True))
    result = run_probe("keyword", features, tones, head_config=QUICK)
    assert len(result.layer_weights) == 4
    assert sum(result.layer_weights) == pytest.approx(1)
    assert result.accuracy > 0.5


def test_the_same_seed_gives_the_same_result(tones):
    first, second = (run_probe("speaker", mfcc_features(), tones, seed=3, head_config=QUICK) for _ in range(2))
    assert first == replace(second, seconds=first.seconds)


def test_a_sample_of_the_clips_bounds_the_cost_and_follows_from_the_seed(tones):
    heard = []

    def features(batch):
        heard.append({cut.id for cut in batch.cuts})
        return log_mel_features()(batch)

    for seed in (0, 0, 1):
        result = run_probe("keyword", features, tones, seed, max_clips=30, head_config=HeadConfig(steps=1))
        assert result.train_clips + result.test_clips < 30
    assert heard[0] == heard[1] != heard[2]
    assert len(heard[0]) == 30


def test_the_interval_draws_speakers_for_keywords_and_clips_for_speakers(tones, monkeypatch):
    drawn = []

    def interval(scores, groups, seed):
        drawn.append(groups)
        return 0.0, 1.0

    monkeypatch.setattr(run, "bootstrap_interval", interval)
    for task in ("keyword", "speaker"):
        run_probe(task, log_mel_features(), tones, head_config=HeadConfig(steps=1))
    assert drawn == [6 * ["s7"], [f"{6 * speaker + 5}.wav" for speaker in range(7)]]


def test_vectors_are_standardised_by_the_train_clips_alone(tones, monkeypatch):
    heard = []

    def spy(train, dev, *rest):
        heard.extend([train[0], dev[0]])
        return train_head(train, dev, *rest)

    monkeypatch.setattr(run, "train_head", spy)
    run_probe("keyword", log_mel_features(), tones, head_config=HeadConfig(steps=1))
    train, dev = heard
    assert_close(train.mean(0), torch.zeros(1, 160), rtol=0, atol=1e-3)
    assert_close(train.std(0, correction=0), torch.ones(1, 160), rtol=0, atol=1e-3)
    assert dev.mean(0).abs().max() > 0.5


def test_outcomes_are_in_the_order_of_a_speakers_clips(tones):
    wrong = next(cut.id for cut in tones if cut.supervisions[0].speaker == "s7")

    def features(batch):
        said = [list(PITCH).index(cut.supervisions[0].custom["keyword"]) for cut in batch.cuts]
        told = [(keyword + (cut.id == wrong)) % 3 for keyword, cut in zip(said, batch.cuts, strict=True)]
        return torch.eye(3)[told][:, None]

    assert run_probe("keyword", features, tones, head_config=QUICK).outcomes == {"s7": "011111"}


def test_a_clip_without_finite_features_is_left_out_and_named(tones, caplog):
    def features(batch):
        vectors = log_mel_features()(batch)
        vectors[[cut.id == "0.wav" for cut in batch.cuts]] = torch.nan
        return vectors

    result = run_probe("keyword", features, tones, head_config=QUICK)
    assert result.train_clips == 29
    assert [m for m in caplog.messages if "1 clips left out" in m and m.endswith(": 0.wav")]


def test_a_class_that_training_never_saw_is_left_out_and_counted(tones, caplog):
    chosen = [cut for cut in tones if cut.supervisions[0].custom != {"keyword": "low", "split": "train"}]
    result = run_probe("keyword", log_mel_features(), CutSet(chosen), head_config=QUICK)
    assert (result.classes, result.test_clips) == (2, 4)
    assert [m for m in caplog.messages if "4 clips left out, their class is not in train" in m]


def test_a_constant_feature_does_not_spoil_the_rest(tones):
    def features(batch):
        vectors = log_mel_features()(batch)
        return torch.cat([vectors, torch.full_like(vectors, 7)], dim=-1)

    assert run_probe("keyword", features, tones, head_config=QUICK).accuracy == 1


def test_speakers_of_the_test_split_that_train_has_too_are_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        keyword_clips(as_cuts(tmp_path, [{"speaker": "s", "keyword": "a", "split": s} for s in ("train", "test")]), 0)
    assert "1 speakers of the test split are in train or dev, too" in caplog.text


def test_clips_that_share_an_id_are_refused(tones):
    twice = CutSet([*tones, *tones])
    with pytest.raises(UserError, match=r"ids are of several clips, like '0\.wav'"):
        run_probe("keyword", log_mel_features(), twice)


def test_a_single_test_clip_is_refused(tones):
    first = next(cut for cut in tones if SPLIT_OF[cut.supervisions[0].speaker] == "test")
    cuts = tones.filter(lambda cut: SPLIT_OF[cut.supervisions[0].speaker] != "test" or cut.id == first.id)
    with pytest.raises(UserError, match="1 usable clip in the test split"):
        run_probe("keyword", log_mel_features(), cuts, head_config=QUICK)


def test_an_unknown_probe_is_refused(tmp_path):
    with pytest.raises(UserError, match="must be one of keyword, speaker, got 'emotion'"):
        run_probe("emotion", log_mel_features(), as_cuts(tmp_path, keyword_rows()))


def test_the_manifests_split_is_the_keyword_split_and_speakers_are_its_groups(tmp_path):
    clips = keyword_clips(as_cuts(tmp_path, keyword_rows()), seed=0)
    assert {(clip.speaker, clip.split) for clip in clips} == set(SPLIT_OF.items())
    assert [clip.label for clip in clips[:6]] == ["low", "low", "middle", "middle", "high", "high"]


@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_dev_split_a_fifth_of_the_train_speakers_is_dev_but_for_test_clips_of_theirs(tmp_path, seed):
    rows = [row for split in ("train", "test") for row in keyword_rows({f"s{i}": split for i in range(10)})]
    splits = {(clip.speaker, clip.split) for clip in keyword_clips(as_cuts(tmp_path, rows), seed)}
    assert sorted(split for _, split in splits) == 2 * ["dev"] + 10 * ["test"] + 8 * ["train"]


def test_without_speakers_a_fifth_of_the_train_clips_is_dev(tmp_path):
    rows = [{"keyword": "a", "split": "train"}] * 10 + [{"keyword": "a", "split": "test"}]
    splits = [clip.split for clip in keyword_clips(as_cuts(tmp_path, rows), 0)]
    assert sorted(splits) == 2 * ["dev"] + ["test"] + 8 * ["train"]


def test_a_speaker_alone_in_train_is_not_held_out(tmp_path):
    rows = keyword_rows({"s1": "train", "t": "test"})
    splits = [clip.split for clip in keyword_clips(as_cuts(tmp_path, rows), 0)]
    assert sorted(splits) == ["dev"] + 6 * ["test"] + 5 * ["train"]


def test_clips_without_a_keyword_or_with_a_split_of_their_own_are_counted(tmp_path, caplog):
    rows = [*keyword_rows(), {"split": "train"}, {"keyword": "low", "split": "extra"}]
    assert len(keyword_clips(as_cuts(tmp_path, rows), 0)) == 42
    assert caplog.messages == [
        "keyword probe: 1 clips left out: no keyword",
        "keyword probe: 1 clips left out: split 'extra'",
    ]


@pytest.mark.parametrize(
    ("rows", "counts"),
    [
        ([{"split": "train"}] * 3, "got 0 in train and 0 in test, 3 left out for no keyword; add"),
        ([{"keyword": "low", "split": "train"}] * 3, "got 3 in train and 0 in test; add"),
        ([{"keyword": "low", "split": "test"}] * 3, "got 0 in train and 3 in test; add"),
    ],
)
def test_a_keyword_probe_without_keywords_or_splits_is_refused(tmp_path, rows, counts):
    with pytest.raises(UserError, match=counts):
        keyword_clips(as_cuts(tmp_path, rows), 0)


def speaker_splits(tmp_path, takes_of_one):
    rows = [{"speaker": "one", "keyword": "low", **take} for take in takes_of_one]
    rows += [{"speaker": "two", "keyword": "low"}] * 5
    clips = speaker_clips(as_cuts(tmp_path, rows), 0)
    return [clip.split for clip in clips if clip.label == "one"]


def test_takes_1_to_6_are_train_7_and_8_dev_9_and_10_test_in_any_order(tmp_path):
    takes = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 10, 6]
    expected = [*2 * ["test"], *2 * ["dev"], *6 * ["train"], "test", "train"]
    assert speaker_splits(tmp_path, [{"take": take} for take in takes]) == expected
    assert speaker_splits(tmp_path, [{"take": str(take)} for take in takes]) == expected


@pytest.mark.parametrize("take", [{}, {"take": 1}])
def test_without_takes_the_order_of_the_clips_splits_a_speaker(tmp_path, take):
    assert speaker_splits(tmp_path, [take] * 5) == ["train", "train", "train", "dev", "test"]


def test_clips_of_every_split_of_the_manifest_are_split_anew_for_speakers(tmp_path):
    rows = [{"speaker": s, "split": split} for s in "ab" for split in ("train", "dev", "test") for _ in range(2)]
    splits = [clip.split for clip in speaker_clips(as_cuts(tmp_path, rows), 0)]
    assert splits == 2 * (4 * ["train"] + ["dev"] + ["test"])


def test_a_speaker_with_fewer_than_5_clips_is_left_out_and_counted(tmp_path, caplog):
    rows = [{"speaker": s} for s in 5 * "a" + 6 * "b" + 4 * "c"] + [{}]
    clips = speaker_clips(as_cuts(tmp_path, rows), 0)
    assert {clip.label for clip in clips} == {"a", "b"}
    expected = "speaker probe: left out 1 speakers with fewer than 5 clips and 1 clips without a speaker"
    assert expected in caplog.messages


def test_a_speaker_probe_needs_two_speakers(tmp_path):
    with pytest.raises(UserError, match="got 1 of 2 speakers, and 2 clips without one"):
        speaker_clips(as_cuts(tmp_path, [{"speaker": s} for s in "aaaaabbb"] + [{}, {}]), 0)


@pytest.mark.parametrize("features", [log_mel_features(), mfcc_features()])
def test_a_floor_does_not_depend_on_the_batch_or_its_padding(features):
    long, short = audio(2, 16000)[0], audio(2, 16000)[1, :5001]
    together = features(batch_of(long, short, padding=100.0))
    assert_close(together, torch.cat([features(batch_of(long)), features(batch_of(short))]), rtol=1e-5, atol=1e-5)


def test_a_floor_is_the_mean_and_deviation_over_frames():
    clip = audio(1, 16000)[0]
    bands = log_mel_features(40)(batch_of(clip, clip))
    frames = log_mel(clip[None], 40)[0]
    assert bands.shape == (2, 1, 80)
    assert_close(bands[0, 0], torch.cat([frames.mean(0), frames.std(0, correction=0)]))


def test_the_cepstral_floor_is_of_cepstra_slopes_and_slopes_of_slopes():
    clip = audio(1, 16000)
    cepstra, counts = mfcc(log_mel(clip)), frame_counts(torch.tensor([16000]))
    slopes = deltas(cepstra, counts)
    frames = torch.cat([cepstra, slopes, deltas(slopes, counts)], dim=-1)[0]
    wanted = torch.cat([frames.mean(0), frames.std(0, correction=0)])
    assert_close(mfcc_features()(batch_of(clip[0]))[0, 0], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ctc", [False, True])
def test_encoder_features_are_means_and_deviations_of_hidden_states_over_own_frames(ctc):
    model, extractor = tiny_model(style="large", ctc=ctc).train(), Wav2Vec2FeatureExtractor(do_normalize=True)
    long, short = audio(2, 16000)[0], audio(2, 16000)[1, :5001]
    together = encoder_features(model, extractor)(batch_of(long, short))
    assert model.training
    model.eval()
    for clip, vectors in zip((long, short), together, strict=True):
        inputs = model_inputs(extractor, clip[None], torch.tensor([len(clip)]))
        states = [state[0] for state in family_of(model).hidden_states(model, inputs)]
        wanted = torch.stack([torch.cat([state.mean(0), state.std(0, correction=0)]) for state in states])
        assert_close(vectors, wanted, rtol=1e-3, atol=1e-4)
