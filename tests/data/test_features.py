import math

import numpy as np
import pytest
import scipy.fft
import torch
from torch.testing import assert_close

from diminuendo.data.features import POWER_FLOOR, deltas, frame_counts, log_mel, mfcc
from diminuendo.families import family_of
from tiny import audio, tiny_model


def naive_log_mel(samples, num_bands, hop, window):
    """Frame by frame, bin by bin, with mel(f) = 1127 ln(1 + f / 700) and triangles straight in mel."""

    def mel(hertz):
        return 1127 * math.log(1 + hertz / 700)

    size = 512 if window == 400 else 1024
    edges = np.linspace(mel(20), mel(8000), num_bands + 2)
    rows = []
    for start in range(0, len(samples) - window + 1, hop):
        frame = [samples[start + n] * (0.5 - 0.5 * math.cos(2 * math.pi * n / window)) for n in range(window)]
        power = np.abs(np.fft.fft(frame, size)) ** 2
        bands = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            places = [mel(k * 16000 / size) for k in range(size // 2 + 1)]
            heights = [max(0, min((m - low) / (centre - low), (high - m) / (high - centre))) for m in places]
            bands.append(math.log(sum(h * p for h, p in zip(heights, power, strict=False)) + POWER_FLOOR))
        rows.append(bands)
    return np.array(rows)


@pytest.mark.parametrize(
    ("num_bands", "hop_seconds", "window_seconds"), [(80, 0.02, 0.025), (40, 0.01, 0.025), (80, 0.016, 0.064)]
)
def test_log_mel_equals_a_naive_loop(num_bands, hop_seconds, window_seconds):
    waveforms = 0.1 * audio(2, 2000)
    bands = log_mel(waveforms, num_bands, hop_seconds=hop_seconds, window_seconds=window_seconds)
    hop, window = round(16000 * hop_seconds), round(16000 * window_seconds)
    expected = np.stack([naive_log_mel(clip, num_bands, hop, window) for clip in waveforms.double().numpy()])
    assert_close(bands, torch.from_numpy(expected).float(), rtol=0, atol=1e-3)


def test_frames_are_those_of_the_convolutional_front_end():
    model = tiny_model()
    lengths = torch.tensor([400, 719, 720, 721, 8000, 16000, 16001])
    assert frame_counts(lengths).tolist() == family_of(model).frame_lengths(model, lengths).tolist()
    assert [log_mel(torch.zeros(1, n)).shape[1] for n in lengths] == frame_counts(lengths).tolist()


@pytest.mark.parametrize("frame", [0, 3, 5])
def test_frame_i_covers_samples_320_i_to_320_i_plus_400(frame):
    silence = torch.zeros(1, 2400)
    heard = []
    for start, stop in [(0, 320 * frame), (320 * frame, 320 * frame + 400), (320 * frame + 400, 2400)]:
        noise = silence.clone()
        noise[:, start:stop] = 1
        heard.append(not torch.equal(log_mel(noise)[:, frame], log_mel(silence)[:, frame]))
    assert heard == [False, True, False]


def test_a_clip_shorter_than_one_window_has_no_frames():
    assert frame_counts(torch.tensor([0, 100, 399, 400])).tolist() == [0, 0, 0, 1]
    assert log_mel(torch.zeros(2, 399)).shape == (2, 0, 80)


def test_mfcc_is_the_orthonormal_cosine_transform_of_the_bands():
    bands = log_mel(audio())
    expected = scipy.fft.dct(bands.numpy(), norm="ortho")[..., :20]
    assert_close(mfcc(bands), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_the_delta_of_a_ramp_is_its_slope_and_padding_is_never_read():
    ramp = 3.0 * torch.arange(9.0).expand(2, 9).clone()
    ramp[1, 7:] = torch.nan
    slopes = deltas(ramp[..., None], torch.tensor([9, 7]))[..., 0]
    # At the ends the outer frames repeat: (1 x 3 + 2 x 6) / 10, then (1 x 6 + 2 x 9) / 10.
    assert_close(slopes[0], torch.tensor([1.5, 2.4, 3, 3, 3, 3, 3, 2.4, 1.5]))
    assert_close(slopes[1, :7], torch.tensor([1.5, 2.4, 3, 3, 3, 2.4, 1.5]))
