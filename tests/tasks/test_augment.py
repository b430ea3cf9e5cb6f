"""SpecAugment: what is masked, of every clip its own share."""

import pytest
import torch

from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.tasks.augment import (
    BAND_MASKS,
    BAND_SHARE,
    STATES_MASKED,
    TIME_MASKS,
    TIME_SHARE,
    augmented,
    masked_features,
)
from diminuendo.tasks.selfsupervised import generator_of
from tiny import tiny_model


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


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_a_strength_is_a_share_of_the_largest_masks(strength: float) -> None:
    given, valid = torch.randn(1, 400, 80), torch.ones(1, 400, dtype=torch.bool)
    widest, longest, whole, weak = 0, 0, 0.0, 0.0
    for draw in range(60):
        changed = masked_features(given, valid, generator_of(2, draw), strength) != given
        widest, longest = max(widest, int(changed.all(1).sum())), max(longest, int(changed.all(2).sum()))
        weak += float(changed.all(2).double().mean()) / 60
        whole += float((masked_features(given, valid, generator_of(2, draw)) != given).all(2).double().mean()) / 60
    assert strength * BAND_SHARE * 80 < widest <= BAND_MASKS * (strength * BAND_SHARE * 80 + 1)
    assert strength * TIME_SHARE * 400 < longest <= TIME_MASKS * (strength * TIME_SHARE * 400 + 1)
    assert weak == pytest.approx(strength * whole, rel=0.15)  # spans overlap less


def test_of_waveforms_a_strength_is_a_share_of_masked_frames() -> None:
    model, counts = tiny_model(), torch.full((40,), 500)
    shares = [
        float(
            augmented(model, {"input_values": torch.zeros(1)}, counts, generator_of(0, 0), strength)[
                "mask_time_indices"
            ]
            .double()
            .mean()
        )
        for strength in (1.0, 0.25)
    ]
    assert shares == pytest.approx([STATES_MASKED, 0.25 * STATES_MASKED], rel=0.1)


def test_filter_banks_in_the_place_of_a_waveform_are_masked_behind_the_front_end_too() -> None:
    inputs, counts = {"input_features": torch.randn(2, 100, 80)}, torch.tensor([50, 50])
    found = augmented(with_filter_banks(tiny_model()), inputs, counts, generator_of(0, 0))
    assert torch.equal(found["input_features"], inputs["input_features"])
    assert 0 < float(found["mask_time_indices"].double().mean()) < 0.4


def test_masks_depend_on_seed_and_draw_alone() -> None:
    given, valid = features()
    one, same, other = (masked_features(given, valid, generator_of(0, draw)) for draw in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
