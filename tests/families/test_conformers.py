"""What we change about conformers before they are gated changes nothing that they compute."""

import pytest
import torch

from conformance.test_removal import gated_and_removed, relative_errors
from diminuendo.families import family_of
from tiny import inputs_of, tiny_model

CONFORMERS = ["wav2vec2-conformer", "wav2vec2-bert"]
LENGTHS = torch.tensor([8000, 5000])


@pytest.mark.parametrize("position", ["relative", "rotary", None])
@pytest.mark.parametrize("name", CONFORMERS)
def test_a_plain_copy_equals_the_stock_model(name: str, position: str | None) -> None:
    model = tiny_model(name, position_embeddings_type=position)
    assert max(relative_errors(family_of(model).plain(model), model, LENGTHS)) < 1e-6


def test_the_positional_convolution_that_is_never_called_is_left_out() -> None:
    model = tiny_model("wav2vec2-conformer")
    plain = family_of(model).plain(model)
    gone = {name for name in model.state_dict() if name not in plain.state_dict()}
    assert {name.rpartition("pos_conv_embed")[0] for name in gone} == {"encoder."}
    assert all("pos_conv_embed" not in name for name in plain.state_dict())


@pytest.mark.parametrize("position", ["relative", "rotary"])
@pytest.mark.parametrize("frames", [1, 2, 90])
@pytest.mark.parametrize("name", CONFORMERS)
def test_positions_are_the_stock_ones(name: str, frames: int, position: str) -> None:
    model = tiny_model(name, position_embeddings_type=position)
    ours, hidden = family_of(model).plain(model).encoder.embed_positions, torch.zeros(2, frames, 32)
    assert torch.equal(ours(hidden), model.encoder.embed_positions(hidden))


@pytest.mark.parametrize("position", ["relative", "rotary"])
def test_a_pass_in_bf16_or_in_inference_mode_leaves_nothing_behind(position: str) -> None:
    model = tiny_model("wav2vec2-conformer", position_embeddings_type=position)
    plain, inputs = family_of(model).plain(model), inputs_of(model)
    with torch.inference_mode():
        before = plain(**inputs).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            plain(**inputs)
    after = plain(**inputs).last_hidden_state
    after.sum().backward()
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("style", ["base", "large"])
@pytest.mark.parametrize("name", CONFORMERS)
def test_removing_again_from_a_removed_model_equals_gating_it(name: str, style: str) -> None:
    once = gated_and_removed(tiny_model(name, style), "channels", "minimum").removed
    assert not hasattr(once.encoder.layers[0].conv_module, "pointwise_conv1")
    gated_and_removed(once, "heads", "some").check()
