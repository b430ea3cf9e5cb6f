"""SpecAugment: what is masked, of every clip its own share."""

import torch

from diminuendo.tasks.augment import BAND_MASKS, BAND_SHARE, TIME_MASKS, TIME_SHARE, generator_of, masked_features


def features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    valid = torch.arange(400) < torch.tensor([[400], [40]])
    return torch.where(valid[..., None], -11 + torch.randn(2, 400, 80, generator=generator), 0.0), valid


def test_masks_are_the_mean_of_the_clip_itself_and_leave_padding_alone() -> None:
    given, valid = features()
    masked = masked_features(given, valid, generator_of(0, 0))
    changed = masked != given
    assert not changed[1, 40:].any()
    for clip, frames in enumerate((400, 40)):
        mean = given[clip, :frames].mean()
        torch.testing.assert_close(masked[clip][changed[clip]], mean.expand(int(changed[clip].sum())))


def test_no_more_is_masked_than_the_shares_of_every_clip_and_something_is() -> None:
    given, valid = features()
    time = [0.0, 0.0]
    for draw in range(40):
        changed = masked_features(given, valid, generator_of(1, draw)) != given
        for clip, frames in enumerate((400, 40)):
            bands = changed[clip, :frames].all(0)
            spans = changed[clip, :frames].all(1)
            assert bands.sum() <= BAND_MASKS * (BAND_SHARE * 80 + 1)
            assert spans.sum() <= TIME_MASKS * (TIME_SHARE * frames + 1)
            time[clip] += float(spans.double().mean()) / 40
    assert 0.15 < time[0] < 0.3
    assert 0.15 < time[1] < 0.35


def test_masks_depend_on_seed_and_draw_alone() -> None:
    given, valid = features()
    one, same, other = (masked_features(given, valid, generator_of(0, draw)) for draw in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
