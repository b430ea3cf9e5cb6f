"""The distillation loss, alone and with the models around it."""

import math
from typing import Any

import pytest
import torch
from transformers import Wav2Vec2FeatureExtractor

from diminuendo.distillation.hidden import CosineForm, HiddenDistillation, Maps, default_layers, valid_frames
from diminuendo.families import build_cost_model, family_of
from diminuendo.pruning.gating import Gates, attach
from diminuendo.training.objective import DistillationObjective, JointObjective
from tiny import VARIANTS, audio, extractor_of, tiny_model

# Everything that makes two forward passes of one model differ.
NOISY = {
    "hidden_dropout": 0.3,
    "attention_dropout": 0.3,
    "activation_dropout": 0.3,
    "feat_proj_dropout": 0.3,
    "layerdrop": 0.5,
    "apply_spec_augment": True,
    "mask_time_prob": 0.5,
    "mask_time_length": 2,
    "mask_feature_prob": 0.5,
    "mask_feature_length": 2,
}
LENGTHS = torch.tensor([5000, 8000])


def states(num: int = 4, dim: int = 6, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, dim, generator=generator) for _ in range(num)]


def by_loops(
    distillation: HiddenDistillation,
    student: list[torch.Tensor],
    teacher: list[torch.Tensor],
    frames: list[int],
    own: dict[int, int] | None = None,
) -> tuple[float, float]:
    """l1 and cosine part, frame by frame. own: by the teacher's layers the student's, where they are others."""
    l1, cosine = [], []
    for layer in distillation.layers:
        shared = "shared" if distillation.mapped_from == "shared" else f"layer_{layer}"
        linear: Any = distillation.maps[shared if layer else "first"]
        state = student[(own or {}).get(layer, layer)]
        for clip, count in enumerate(frames):
            for frame in range(count):
                a = linear.weight @ state[clip, frame] + linear.bias
                b = teacher[layer][clip, frame]
                l1.append((a - b).abs().mean().item())
                similarity = (a @ b / (a.norm() * b.norm())).item()
                one_minus, log_sigmoid = 1 - similarity, math.log(1 + math.exp(-similarity))
                cosine.append(one_minus if distillation.cosine == "one_minus" else log_sigmoid)
    return sum(l1) / len(l1), sum(cosine) / len(cosine)


@pytest.mark.parametrize("cosine", ["one_minus", "log_sigmoid"])
@pytest.mark.parametrize("teacher_dim", [6, 9])
def test_the_loss_is_its_formula_written_as_loops(cosine: CosineForm, teacher_dim: int) -> None:
    distillation = HiddenDistillation((0, 1, 3), 6, teacher_dim, cosine=cosine, cosine_weight=0.5)
    for parameter in distillation.parameters():
        torch.nn.init.normal_(parameter)
    student, teacher = states(), states(dim=teacher_dim, seed=1)
    got = distillation(student, teacher, torch.tensor([3, 5]))
    l1, cos = by_loops(distillation, student, teacher, [3, 5])
    assert {name: value.item() for name, value in got.items()} == pytest.approx(
        {"loss": l1 + 0.5 * cos, "l1": l1, "cosine": cos}, rel=1e-5
    )


@pytest.mark.parametrize(
    ("maps", "own"), [("shared", {2: 1, 4: 2, 6: 2}), ("layer", {2: 1, 4: 2, 6: 2}), ("last", {2: 2, 4: 2, 6: 2})]
)
def test_a_student_of_fewer_layers_learns_from_those_in_proportion_or_with_its_last(
    maps: Maps, own: dict[int, int]
) -> None:
    distillation = HiddenDistillation((0, 2, 4, 6), 6, 9, maps=maps)
    assert len(distillation.maps) == (2 if maps == "shared" else 4)
    student, teacher = states(3), states(7, dim=9, seed=1)
    got = distillation(student, teacher, torch.tensor([3, 5]))
    assert [got["l1"].item(), got["cosine"].item()] == pytest.approx(
        by_loops(distillation, student, teacher, [3, 5], own), rel=1e-5
    )


def test_frames_of_padding_do_not_count() -> None:
    distillation = HiddenDistillation((0, 2), 6, 6)
    student, teacher, lengths = states(), states(seed=1), torch.tensor([5, 3])
    before = distillation(student, teacher, lengths)["loss"]
    for state in (*student, *teacher):
        state[1, 3:] = torch.nan
    assert torch.equal(distillation(student, teacher, lengths)["loss"], before)
    student[2][1, 2] += 1.0
    assert not torch.equal(distillation(student, teacher, lengths)["loss"], before)


def test_valid_frames_are_those_before_the_length() -> None:
    assert valid_frames(torch.tensor([3, 0, 2]), 3).tolist() == [[True] * 3, [False] * 3, [True, True, False]]


def test_maps_start_as_the_identity() -> None:
    distillation = HiddenDistillation((0, 1), 6, 6)
    hidden = torch.randn(3, 6)
    assert [torch.equal(linear(hidden), hidden) for linear in distillation.maps.values()] == [True, True]


@pytest.mark.parametrize(
    ("layers", "names"), [((0, 1, 2), ["first", "shared"]), ((0,), ["first"]), ((1, 3), ["shared"])]
)
def test_layer_0_has_a_map_of_its_own_and_none_is_made_for_nothing(layers: tuple[int, ...], names: list[str]) -> None:
    assert list(HiddenDistillation(layers, 6, 6).maps) == names


@pytest.mark.parametrize(("depth", "layers"), [(12, (0, 4, 8, 12)), (24, (0, 8, 16, 24)), (2, (0, 1, 2)), (1, (0, 1))])
def test_the_published_layers_in_proportion(depth: int, layers: tuple[int, ...]) -> None:
    assert default_layers(depth) == layers


def test_the_published_layers_of_students_made_by_hand() -> None:
    assert default_layers(12, "last") == (4, 8, 12)
    assert default_layers(4, "layer") == (1, 2, 3, 4)


def test_of_a_student_of_few_layers_no_two_learn_from_one_state() -> None:
    assert [default_layers(12, "shared", layers) for layers in (1, 2)] == [(0, 12), (0, 6, 12)]
    assert [default_layers(12, "shared", layers) for layers in (3, 6)] == 2 * [(0, 4, 8, 12)]
    for depth in range(1, 33):
        for own in range(1, min(depth, 8) + 1):
            layers = default_layers(depth, "shared", own)
            learned = [math.ceil(layer * own / depth) for layer in layers]  # by HiddenDistillation
            assert len({*learned}) == len(layers), (depth, own)
    assert default_layers(12, "last", 2) == (4, 8, 12)


def joint(student: Any, teacher: Any, **settings: Any) -> JointObjective:
    family = family_of(student)
    plain = family.plain(student)
    cost = build_cost_model(plain)
    gates = Gates(family.axes(plain))
    attach(plain, gates)
    distillation = HiddenDistillation((0, 1, 3), 32, 32)
    objective = DistillationObjective(plain, teacher, Wav2Vec2FeatureExtractor(), distillation)
    budget = {"kind": "params", "total": cost.total("params"), "removed": 0.5, "ramp_steps": 10, **settings}
    return JointObjective(objective, gates=gates, cost=cost, **budget)


def loss_of(objective: torch.nn.Module, draw: int = 0) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = objective(0.1 * audio() + 0.2, LENGTHS, 0, draw)
    return result


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_distillation_is_minimal_for_identical_models_in_training_mode(family: str, style: str) -> None:
    teacher = tiny_model(family, style, **NOISY).train()
    student = family_of(teacher).plain(teacher)
    objective = DistillationObjective(
        student, teacher, extractor_of(teacher), HiddenDistillation((0, 1, 2, 3), 32, 32)
    ).train()
    loss = loss_of(objective)["loss"]
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert loss_of(objective)["loss"] == loss
    for seed in range(3):
        moved = family_of(teacher).plain(teacher)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
        assert loss_of(_with_student(objective, moved))["loss"] > 10 * loss.abs() + 1e-4


def _with_student(objective: DistillationObjective, student: Any) -> DistillationObjective:
    return DistillationObjective(
        student, objective.teacher, objective.extractor, HiddenDistillation((0, 1, 2, 3), 32, 32)
    ).train()


def test_padding_behind_a_batch_does_not_change_the_loss() -> None:
    student, teacher = tiny_model(style="large"), tiny_model(style="large", seed=1)
    distillation = HiddenDistillation((0, 1, 3), 32, 32)
    objective = DistillationObjective(student, teacher, Wav2Vec2FeatureExtractor(), distillation)
    clips = 0.1 * audio() + 0.2
    clips[0, LENGTHS[0] :] = 0.0
    longer = torch.nn.functional.pad(clips, (0, 3000))
    losses = [objective(waveforms, LENGTHS, 0, 0)["loss"] for waveforms in (clips, longer)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)


def test_what_is_expected_is_of_the_budgets_kind_and_of_the_chances_to_be_open() -> None:
    objective = joint(tiny_model(seed=1), tiny_model(), kind="macs")
    objective.total = objective.cost.total("macs")
    with torch.no_grad():
        objective.gates.log_alpha.uniform_(-3, 3)
    chances = torch.sigmoid(objective.gates.log_alpha + 2 / 3 * math.log(11))
    expected = float(objective.cost.expected("macs", chances.detach())) / objective.total
    assert float(objective.expected_kept().detach()) == pytest.approx(expected, rel=1e-5)


def test_every_forward_pass_of_a_step_draws_gates_of_its_own() -> None:
    objective = joint(tiny_model(seed=1), tiny_model())
    torch.nn.init.zeros_(objective.gates.log_alpha)
    draws = []
    for draw in (0, 1):
        loss_of(objective, draw)
        draws.append(objective.gates.values.detach())
    assert not torch.equal(*draws)


def test_gates_that_are_open_keep_the_loss_of_identical_models_minimal() -> None:
    teacher = tiny_model("hubert", "large", **NOISY)
    objective = joint(teacher, teacher).train()
    objective.gates.sample = lambda draw: objective.gates.evaluate()  # type: ignore[method-assign]
    assert loss_of(objective)["distillation"].item() == pytest.approx(0.0, abs=1e-5)


def test_student_and_teacher_stay_in_evaluation_mode_while_training() -> None:
    student, teacher = tiny_model(**NOISY).train(), tiny_model(**NOISY).train()
    objective = DistillationObjective(student, teacher, Wav2Vec2FeatureExtractor(), HiddenDistillation((0,), 32, 32))
    objective.train()
    assert objective.training
    assert objective.distillation.training
    assert not any(module.training for model in (student, teacher) for module in model.modules())


def test_the_teacher_receives_no_gradient_and_the_student_does() -> None:
    student, teacher = tiny_model(seed=1), tiny_model()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    objective = joint(student, teacher).train()
    loss_of(objective)["loss"].backward()
    assert [name for name, parameter in teacher.named_parameters() if parameter.grad is not None] == []
    trained = {name for name, parameter in objective.named_parameters() if parameter.requires_grad}
    without = {name for name, parameter in objective.named_parameters() if parameter.grad is None}
    assert trained & without == set()
    assert {"gates.log_alpha", "multipliers.linear", "multipliers.quadratic"} <= trained
    assert not [name for name in objective.state_dict() if "teacher" in name]
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_what_hidden_states_do_not_depend_on_is_not_trained() -> None:
    student = tiny_model("wav2vec2", ctc=True)
    DistillationObjective(student, tiny_model(), Wav2Vec2FeatureExtractor(), HiddenDistillation((0,), 32, 32))
    frozen = {name for name, parameter in student.named_parameters() if not parameter.requires_grad}
    assert frozen == {"lm_head.weight", "lm_head.bias", "wav2vec2.masked_spec_embed"}


def test_a_teacher_may_be_wider_than_its_student() -> None:
    student, teacher = tiny_model(), tiny_model(hidden_size=48, num_attention_heads=6)
    objective = DistillationObjective(student, teacher, Wav2Vec2FeatureExtractor(), HiddenDistillation((0, 3), 32, 48))
    loss_of(objective)["loss"].backward()
    assert objective.distillation.maps["shared"].weight.shape == (48, 32)
    assert bool(loss_of(objective)["loss"].isfinite())


def test_the_joint_loss_is_distillation_plus_multipliers_times_the_gap() -> None:
    objective = joint(tiny_model(seed=1), tiny_model())
    with torch.no_grad():
        objective.multipliers.linear.fill_(0.3)
        objective.multipliers.quadratic.fill_(0.7)
    got = {name: float(value.detach()) for name, value in loss_of(objective).items()}
    gap = 1 - got["expected_kept"] - 0.05  # the first of ten steps to 0.5
    assert got["target_kept"] == pytest.approx(0.95)
    assert got["loss"] == pytest.approx(got["distillation"] + 0.3 * gap + 0.7 * gap**2, rel=1e-5)
    assert got["distillation"] == pytest.approx(got["l1"] + got["cosine"], rel=1e-6)


def test_the_target_rises_linearly_and_stays() -> None:
    objective = joint(tiny_model(), tiny_model(), removed=0.8, ramp_steps=4)
    assert [objective.target(step) for step in (0, 1, 3, 4, 100)] == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])
    assert joint(tiny_model(), tiny_model(), ramp_steps=0).target(0) == 0.5


def test_the_loss_under_bf16_is_fp32_and_near_the_exact_one() -> None:
    objective = joint(tiny_model("hubert", "large", seed=1), tiny_model("hubert", "large"))
    with torch.no_grad():
        objective.gates.log_alpha.uniform_(-1, 1, generator=torch.Generator().manual_seed(0))  # the masked norms too
    exact = loss_of(objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss_of(objective)
    assert half["loss"].dtype == torch.float32
    assert half["distillation"].item() == pytest.approx(exact["distillation"].item(), rel=0.05)
    half["loss"].backward()
    assert bool(objective.gates.log_alpha.grad.isfinite().all())
