import pytest
import torch

from diminuendo.errors import UserError
from diminuendo.tasks.clips import ClipHead, Whitening, clip_statistics, fit_whitening, whitening_of

COUNTS = torch.tensor([12, 5])


def test_statistics_are_those_of_a_clips_own_frames():
    bands = torch.randn(2, 12, 8)
    own = [bands[0], bands[1, :5]]
    expected = torch.stack([torch.cat([clip.mean(0), clip.std(0, correction=0)]) for clip in own])
    assert torch.allclose(clip_statistics(bands, COUNTS), expected, atol=1e-6)


def test_a_clip_without_a_frame_has_statistics_of_0():
    assert not clip_statistics(torch.randn(1, 3, 8), torch.tensor([0])).any()


def test_whitened_components_are_uncorrelated_with_variance_1():
    vectors = torch.randn(500, 6) @ torch.randn(6, 6) + 3.0
    whitened = fit_whitening(vectors)(vectors)
    assert torch.allclose(whitened.mean(0), torch.zeros(whitened.shape[1]), atol=1e-4)
    assert torch.allclose(whitened.T @ whitened / 500, torch.eye(whitened.shape[1]), atol=1e-3)


def test_as_many_components_are_kept_as_99_percent_of_the_variance_need():
    deviations = torch.tensor([10.0, 3.0, 1.2, 0.1])  # 0.908, 0.990 and 0.9999 of the variance
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(50, 4, generator=generator) - 0.0)[0]
    vectors = torch.linalg.qr(vectors - vectors.mean(0))[0] * deviations
    share = deviations.square().cumsum(0) / deviations.square().sum()
    assert fit_whitening(vectors).basis.shape == (4, int((share < 0.99).sum()) + 1) == (4, 3)
    assert fit_whitening(vectors * torch.tensor([1.0, 1.0, 0.5, 1.0])).basis.shape == (4, 2)


def test_clips_that_sound_alike_are_refused():
    with pytest.raises(UserError, match="the 3 clips looked at sound alike"):
        fit_whitening(torch.ones(3, 4))


def test_a_whitening_comes_back_from_its_tensors():
    vectors = torch.randn(20, 4)
    whitening = fit_whitening(vectors)
    assert torch.equal(whitening_of(whitening.tensors())(vectors), whitening(vectors))


def head(components: int = 3) -> ClipHead:
    return ClipHead(16, Whitening(torch.randn(16), torch.randn(16, components)))


def test_the_head_that_gives_a_clips_whitened_statistics_has_no_error():
    module, bands = head(), torch.randn(2, 12, 8)
    targets = Whitening(module.mean, module.basis)(clip_statistics(bands, COUNTS))
    torch.nn.init.zeros_(module.head.weight)
    for wanted, other in (targets, targets.flip(0)):
        with torch.no_grad():
            module.head.bias.copy_(wanted)
        assert torch.allclose(module(torch.randn(2, 12, 16), bands, COUNTS), (other - wanted).square().mean() / 2)


def test_the_error_does_not_depend_on_states_of_padding():
    states, bands = torch.randn(2, 12, 16), torch.randn(2, 12, 8)
    module, padded = head(), states.clone()
    padded[1, 5:] = 100.0
    assert torch.equal(module(padded, bands, COUNTS), module(states, bands, COUNTS))
    longer = torch.tensor([12, 6])
    assert not torch.equal(module(padded, bands, longer), module(states, bands, longer))


def test_half_precision_changes_nothing():
    states, bands, module = torch.randn(2, 12, 16), torch.randn(2, 12, 8), head()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(states, bands, COUNTS)
    assert torch.equal(found, module(states, bands, COUNTS))
