"""What a joint compression of a recogniser minimises, without a run: the parts of the loss and what they see."""

from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch

from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.families import build_cost_model, family_of, model_inputs
from diminuendo.families.recogniser import with_head
from diminuendo.modules.transducer import LSTM_AXIS, TRANSDUCER_AXES
from diminuendo.pruning.gating import Gates, attach
from diminuendo.training import recognition
from diminuendo.training.hearing import Hearing
from diminuendo.training.objective import JointObjective, Teacher
from diminuendo.training.recognition import RecognitionObjective, TaughtRecognition, Weights
from diminuendo.training.removing import free_axes, gateable
from tiny import extractor_of, tiny_model


@pytest.mark.parametrize("task", ["ctc", "rnnt"])
@pytest.mark.parametrize("family", ["parakeet", "hubert"])
def test_what_is_distilled_of_identical_recognisers_is_nothing(family: str, task: Any) -> None:
    style = "encoder" if family == "parakeet" else "large"
    model = with_head(tiny_model(family, style), task, 10, width=24)
    extractor = extractor_of(model)
    distillation = HiddenDistillation((0, 1, 3), 32, 32)
    student = family_of(model).plain(model)
    objective = TaughtRecognition(
        student, Teacher(model), extractor, distillation, Hearing(augment_from=0), Weights(posteriors=1.0)
    )
    objective.train()
    waveforms = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0))
    scalars = objective(waveforms, torch.tensor([12_000, 9_000]), 3, 3, [[1, 2], [3]])
    assert scalars["hidden"].item() == pytest.approx(0, abs=2e-6)
    assert scalars["posteriors"].item() == pytest.approx(0, abs=2e-6)
    assert scalars["loss"].item() == pytest.approx(scalars["task"].item(), rel=1e-5)
    assert {module.training for module in student.modules() if isinstance(module, torch.nn.LSTM)} <= {True}
    assert not any(module.training for module in student.modules() if isinstance(module, torch.nn.Dropout))
    scalars["loss"].backward()
    heads = [p for p in student.parameters() if p.grad is not None]
    assert len(heads) > 10
    assert all(p.grad is None for p in model.parameters())


def flat_objective(
    task: Any, *, ctc_weight: float = 0.0, predictor: Any = "lstm", **settings: Any
) -> TaughtRecognition:
    """A flat start of 90 steps: whole in the first 60."""
    model = with_head(tiny_model("parakeet", "encoder"), task, 10, width=24, predictor=predictor)
    distillation = HiddenDistillation((0, 1, 3), 32, 32)
    torch.manual_seed(0)
    return TaughtRecognition(
        family_of(model).plain(model),
        Teacher(model),
        extractor_of(model),
        distillation,
        Hearing(flat_start=90),
        Weights(**settings),
        ctc_weight=ctc_weight,
    ).train()


CLIPS = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0)), torch.tensor([12_000, 9_000])


def hear(objective: torch.nn.Module, step: int) -> dict[str, torch.Tensor]:
    scalars: dict[str, torch.Tensor] = objective(*CLIPS, step, 0, [[1, 2], [3]])
    return scalars


@pytest.mark.parametrize(("task", "ctc_weight"), [("ctc", 0.0), ("rnnt", 0.3)])
def test_a_flat_start_weighs_in_a_compression_as_in_a_fine_tuning(task: Any, ctc_weight: float) -> None:
    taught = flat_objective(task, ctc_weight=ctc_weight, hidden=0.5, posteriors=0.25)
    alone = RecognitionObjective(taught.student, taught.extractor, taught.hearing, ctc_weight=ctc_weight).eval()
    alone.loss.load_state_dict(taught.task.state_dict())
    found = [hear(taught, step) for step in (0, 75, 90)]
    for scalars, step in zip(found, (0, 75, 90), strict=True):
        torch.testing.assert_close(scalars["task"], hear(alone, step)["loss"])
        whole = scalars["task"] + 0.5 * scalars["hidden"] + 0.25 * scalars["posteriors"]
        torch.testing.assert_close(scalars["loss"], whole)
    torch.testing.assert_close(found[1]["task"], 0.5 * found[0]["task"] + 0.5 * found[2]["task"])
    assert found[0]["task"] != found[2]["task"]


@pytest.mark.parametrize("posteriors", [0.0, 1.0])
def test_a_flat_start_leaves_a_transducers_head_alone_but_for_its_posteriors(posteriors: float) -> None:
    taught = flat_objective("rnnt", ctc_weight=0.3, posteriors=posteriors)
    for step, seen in ((0, bool(posteriors)), (75, True)):
        taught.zero_grad()
        hear(taught, step)["loss"].backward()
        head = [*taught.student.joint.parameters(), *taught.student.decoder.parameters()]
        assert [parameter.grad is not None for parameter in head] == [seen] * len(head)
        assert all(parameter.grad is not None for parameter in taught.task.parameters())
        assert taught.unseen(step) == (() if seen else TRANSDUCER_AXES)


def test_along_the_teachers_path_whole_distributions_are_learned() -> None:
    taught = flat_objective("rnnt", posteriors=1.0)
    taught.posteriors = "path"
    assert hear(taught, 90)["posteriors"].item() == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        taught.student.joint.head.weight += 0.3 * torch.randn(taught.student.joint.head.weight.shape)
    found = hear(taught, 90)["posteriors"]

    labels, counts = recognition.padded([[1, 2], [3]], 10), torch.tensor([10, 7])
    inputs = model_inputs(taught.extractor, *CLIPS)
    with torch.no_grad():
        states = family_of(taught.student).hidden_states(taught.student, inputs)[-1]
        student, teacher = (
            recognition.output_logits(model, states, labels).double().log_softmax(-1)
            for model in (taught.student, taught.teacher.model)
        )
    assert family_of(taught.student).frame_lengths(taught.student, CLIPS[1]).equal(counts)
    found_by_hand = []
    for clip, (frames, text) in enumerate(((10, [1, 2]), (7, [3]))):
        best: tuple[float, list[tuple[int, int]]] = (-torch.inf, [])
        for emitted in combinations_with_replacement(range(frames), len(text)):
            nodes, score = [], 0.0
            for frame in range(frames):
                for u in range(len(text)):
                    if emitted[u] == frame:
                        nodes.append((frame, u))
                        score += float(teacher[clip, frame, u, text[u]])
                nodes.append((frame, sum(at <= frame for at in emitted)))
                score += float(teacher[clip][nodes[-1]][10])
            best = max(best, (score, nodes))
        for node in best[1]:
            p, q = teacher[clip][node], student[clip][node]
            found_by_hand.append(float((p.exp() * (p - q)).sum()))
    assert len(found_by_hand) == 10 + 2 + 7 + 1
    assert found.item() == pytest.approx(sum(found_by_hand) / 20, rel=1e-4)


@pytest.mark.parametrize(
    ("predictor", "axes"), [("lstm", set(TRANSDUCER_AXES)), ("stateless", set(TRANSDUCER_AXES) - {LSTM_AXIS})]
)
def test_what_a_flat_start_does_not_see_the_budget_does_not_shut(predictor: str, axes: set[str]) -> None:
    taught = flat_objective("rnnt", ctc_weight=0.3, predictor=predictor)
    gates = Gates(free_axes(taught.student, (), head=True))
    cost = build_cost_model(gateable(taught.student, factored=False, meta=True), gates.axes)
    attach(taught.student, gates)
    total = cost.total("params")
    settings: dict[str, Any] = {"kind": "params", "total": total, "removed": 0.5, "ramp_steps": 1}
    joint = JointObjective(taught, gates=gates, cost=cost, unseen=taught.unseen, **settings)
    with torch.no_grad():
        joint.multipliers.linear.fill_(1.0)
    kept = []
    for step in (0, 75):
        gates.log_alpha.grad = None
        scalars = hear(joint, step)
        scalars["loss"].backward()
        kept.append(scalars["expected_kept"].item())
        assert gates.log_alpha.grad is not None
        moved = {axis.name: bool(gates.log_alpha.grad[gates.of(axis.name)].any()) for axis in gates.axes}
        assert {name for name, moves in moved.items() if not moves} == (set() if step else axes)
    assert kept[0] == kept[1]
