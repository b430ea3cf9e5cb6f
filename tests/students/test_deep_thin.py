"""The deep and thin student."""

import pytest
import torch
from transformers import HubertConfig

from conformance.test_removal import gated_and_removed
from diminuendo.errors import UserError
from diminuendo.families import family_of
from diminuendo.students.deep_thin import deep_thin, thin_config
from families.test_inputs import check_padding_is_not_heard
from tiny import TRANSFORMER_VARIANTS, audio, inputs_of, tiny_model


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("family", "style"), TRANSFORMER_VARIANTS)
def test_it_is_the_widest_that_fits_with_the_depth_and_the_front_end_of_its_teacher(family: str, style: str) -> None:
    teacher = tiny_model(family, style)
    budget = 0.6 * size(teacher)
    student = deep_thin(teacher, budget)
    wider = type(teacher)(thin_config(teacher.config, student.config.hidden_size + 4))
    assert size(student) <= budget < size(wider)
    neuron_a_layer = student.config.num_hidden_layers * (2 * student.config.hidden_size + 1)
    assert budget - size(student) < neuron_a_layer
    assert student.config.num_hidden_layers == teacher.config.num_hidden_layers
    with torch.inference_mode():
        assert torch.equal(student.feature_extractor(audio()), teacher.feature_extractor(audio()))
        assert student(audio()).last_hidden_state.shape[-1] == student.config.hidden_size


def test_its_feed_forward_width_keeps_its_ratio_to_the_width() -> None:
    assert thin_config(HubertConfig(), 384).intermediate_size == 1536


def test_heads_and_groups_of_the_positional_convolution_both_divide_its_width() -> None:
    teacher = tiny_model(hidden_size=48, num_attention_heads=6)
    assert deep_thin(teacher, 0.6 * size(teacher)).config.hidden_size % 12 == 0


def test_the_student_of_a_recogniser_is_that_of_its_encoder() -> None:
    teacher = tiny_model(ctc=True)
    students = [deep_thin(model, 15_000)(audio()).last_hidden_state for model in (teacher, teacher.hubert)]
    assert torch.equal(*students)


def test_the_seed_decides_its_weights() -> None:
    teacher = tiny_model()
    weights = [deep_thin(teacher, 20_000, seed=seed).encoder.layers[0].attention.q_proj.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_teacher_that_was_compressed_is_refused() -> None:
    with pytest.raises(UserError, match="give the original"):
        deep_thin(gated_and_removed(tiny_model(), "heads", "some").removed, 20_000)


@pytest.mark.parametrize("family", ["parakeet", "nemotron"])
def test_a_fast_conformer_becomes_thin_behind_the_front_end_that_it_had(family: str) -> None:
    teacher = tiny_model(family, "encoder")
    whole = sum(p.numel() for p in teacher.parameters())
    student = deep_thin(teacher, 0.6 * whole)
    assert 0.55 * whole < sum(p.numel() for p in student.parameters()) <= 0.6 * whole
    assert student.config.num_hidden_layers == teacher.config.num_hidden_layers
    assert student.config.hidden_size < teacher.config.hidden_size
    front = {name: value for name, value in teacher.subsampling.state_dict().items() if "linear" not in name}
    assert all(torch.equal(student.subsampling.state_dict()[name], value) for name, value in front.items())
    with torch.inference_mode():
        assert len(family_of(student).hidden_states(student, inputs_of(teacher))) == 4


@pytest.mark.parametrize("style", ["base", "large"])
@pytest.mark.parametrize("family", ["wav2vec2-conformer", "wav2vec2-bert"])
def test_a_conformer_becomes_thin_and_hears_no_padding(family: str, style: str) -> None:
    teacher = tiny_model(family, style)
    student = deep_thin(teacher, 0.6 * size(teacher))
    assert 0.55 * size(teacher) < size(student) <= 0.6 * size(teacher)
    assert student.config.num_hidden_layers == teacher.config.num_hidden_layers
    assert student.config.hidden_size < teacher.config.hidden_size
    with torch.inference_mode():
        assert len(family_of(student).hidden_states(student, inputs_of(teacher))) == 4
    if style == "large":  # the other has a group norm over time
        check_padding_is_not_heard(student)


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(UserError, match="even width 4 has more"):
        deep_thin(tiny_model(), 100)
