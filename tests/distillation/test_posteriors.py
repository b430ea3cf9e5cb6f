"""Distillation of posteriors: CTC's frames, a transducer's collapsed lattice and its best alignment."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from diminuendo.distillation.posteriors import (
    along,
    best_path,
    collapsed_lattice,
    ctc_posteriors,
    log1mexp,
    one_best_path,
)

BLANK = 1
FRAMES, LABELS = torch.tensor([4, 2, 1, 3]), torch.tensor([3, 2, 3, 0])
TARGETS = torch.tensor([[2, 0, 3], [3, 3, 0], [2, 4, 0], [0, 0, 0]])
NODES = torch.tensor([7, 4, 4, 3])

Loss = Callable[[Tensor, Tensor], Tensor]


def lattice_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of blank and of TARGETS in each column, -inf from the column where none is left."""
    log_probs = logits.log_softmax(-1)
    index = TARGETS[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    labels = log_probs[:, :, :-1].gather(3, index)[..., 0]
    labels = torch.cat([labels, labels[..., :1]], 2)
    return log_probs[..., BLANK], labels.masked_fill(torch.arange(4) >= LABELS[:, None, None], -torch.inf)


def of_frames(student: Tensor, teacher: Tensor) -> Tensor:
    return ctc_posteriors(student, teacher, FRAMES, BLANK, temperature=2.0, label_weight=0.5)["loss"]


def of_lattice(student: Tensor, teacher: Tensor) -> Tensor:
    return collapsed_lattice(lattice_of(student), lattice_of(teacher), FRAMES, LABELS)


def of_path(student: Tensor, teacher: Tensor) -> Tensor:
    return one_best_path(student, teacher, torch.arange(8) < NODES[:, None], temperature=2.0)


# Each loss, the shape of its logits without vocabulary, and which of them count.
LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "ctc": (of_frames, torch.arange(6) < FRAMES[:, None]),
    "lattice": (
        of_lattice,
        (torch.arange(5) < FRAMES[:, None])[:, :, None] & (torch.arange(4) <= LABELS[:, None])[:, None],
    ),
    "path": (of_path, torch.arange(8) < NODES[:, None]),
}
every_loss = pytest.mark.parametrize(("loss", "counts"), LOSSES.values(), ids=LOSSES.keys())


def logits_for(counts: Tensor) -> Tensor:
    return (2 * torch.randn(*counts.shape, 5)).requires_grad_()


@every_loss
def test_of_identical_models_the_loss_and_its_gradient_are_zero(loss: Loss, counts: Tensor) -> None:
    student = logits_for(counts)
    found = loss(student, student.detach())
    found.backward()
    assert found.item() == pytest.approx(0.0, abs=1e-7)
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0.0, atol=1e-6)


@every_loss
def test_of_different_models_the_loss_is_positive_and_descent_lowers_it(loss: Loss, counts: Tensor) -> None:
    student, teacher = logits_for(counts), logits_for(counts)
    found = loss(student, teacher)
    found.backward()
    assert student.grad is not None
    assert found > 0.05
    assert loss(student.detach() - 0.1 * student.grad, teacher) < found


@every_loss
def test_the_teacher_gets_no_gradient(loss: Loss, counts: Tensor) -> None:
    student, teacher = logits_for(counts), logits_for(counts)
    loss(student, teacher).backward()
    assert teacher.grad is None or teacher.grad.abs().max() == 0
    assert student.grad is not None
    assert torch.equal(student.grad.abs().sum(-1) > 0, counts)


@every_loss
def test_padding_changes_nothing(loss: Loss, counts: Tensor) -> None:
    student, teacher = logits_for(counts), logits_for(counts)
    found = loss(student, teacher)
    padded = [logits.detach().masked_fill(~counts[..., None], torch.nan) for logits in (student, teacher)]
    assert torch.equal(loss(*padded), found)


def divergence(p: Tensor, q: Tensor) -> float:
    return (p * (p / q).log()).sum().item()


def test_the_ctc_loss_is_its_formula_written_as_loops() -> None:
    student, teacher = logits_for(LOSSES["ctc"][1]), logits_for(LOSSES["ctc"][1])
    blank, labels, speech = [], [], []
    for clip, count in enumerate(FRAMES.tolist()):
        for frame in range(count):
            p, q = ((logits[clip, frame].double() / 2).softmax(-1) for logits in (teacher, student))
            rest = [i for i in range(5) if i != BLANK]
            two = [torch.stack([x[BLANK], x[rest].sum()]) for x in (p, q)]
            blank.append(divergence(*two))
            speech.append(1 - p[BLANK].item())
            labels.append(speech[-1] * divergence(p[rest] / p[rest].sum(), q[rest] / q[rest].sum()))
            assert blank[-1] + labels[-1] == pytest.approx(divergence(p, q))
    expected = {"blank": sum(blank) / len(blank), "labels": sum(labels) / sum(speech)}
    assert sum(speech) > 1
    expected["loss"] = 4 * (expected["blank"] + 0.5 * expected["labels"])
    got = ctc_posteriors(student, teacher, FRAMES, BLANK, temperature=2.0, label_weight=0.5)
    assert {name: value.item() for name, value in got.items()} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("blank", [0, 4])
def test_blank_may_be_the_first_or_the_last_of_the_vocabulary(blank: int) -> None:
    student, teacher = logits_for(LOSSES["ctc"][1]), logits_for(LOSSES["ctc"][1])
    order = [i for i in range(5) if i != BLANK]
    order.insert(blank, BLANK)
    moved = ctc_posteriors(student[..., order], teacher[..., order], FRAMES, blank)
    torch.testing.assert_close(moved, ctc_posteriors(student, teacher, FRAMES, BLANK))


def test_more_frames_of_certain_blank_do_not_dilute_what_is_learned_of_labels() -> None:
    student, teacher = torch.randn(1, 4, 5), torch.randn(1, 4, 5)
    silence = torch.zeros(1, 50, 5)
    silence[..., BLANK] = 30.0
    longer = [torch.cat([logits, silence], 1) for logits in (student, teacher)]
    before = ctc_posteriors(student, teacher, torch.tensor([4]), BLANK)
    after = ctc_posteriors(*longer, torch.tensor([54]), BLANK)
    torch.testing.assert_close(after["labels"], before["labels"])
    torch.testing.assert_close(after["blank"], before["blank"] * 4 / 54)
    # Of silence alone hardly anything, however much they differ.
    alone = ctc_posteriors(silence + torch.randn(5), silence, torch.tensor([50]), BLANK)
    assert alone["labels"] < 1e-9


def test_the_collapsed_lattice_is_three_classes_a_node() -> None:
    counts = LOSSES["lattice"][1]
    student, teacher = logits_for(counts), logits_for(counts)
    found = []
    for clip, t, u in counts.nonzero().tolist():
        classes = [{BLANK}, {int(TARGETS[clip, u])} if u < LABELS[clip] else set()]
        classes = [c for c in (*classes, set(range(5)) - classes[0] - classes[1]) if c]
        p, q = (logits[clip, t, u].double().softmax(-1) for logits in (teacher, student))
        three = [torch.stack([x[sorted(c)].sum() for c in classes]) for x in (p, q)]
        found.append(divergence(*three))
    assert of_lattice(student, teacher).item() == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_a_rest_that_rounding_has_taken_leaves_loss_and_gradient_finite() -> None:
    counts = LOSSES["lattice"][1]
    student, teacher = logits_for(counts), logits_for(counts)
    certain = student.detach().clone()
    certain[..., BLANK] = 40.0
    certain.requires_grad_()
    for pair in ((certain, teacher), (student, certain), (certain, certain.detach())):
        loss = of_lattice(*pair)
        (gradient,) = torch.autograd.grad(loss, pair[0])
        assert loss.isfinite()
        assert gradient.isfinite().all()


def scores_of_alignments(
    blanks: Tensor, labels: Tensor, frames: int, count: int
) -> dict[tuple[tuple[int, int], ...], float]:
    """Log-probability of every alignment of one clip, by its nodes."""
    found = {}
    for chosen in combinations(range(frames + count - 1), count):
        nodes, score, t, u = [], 0.0, 0, 0
        for transition in range(frames + count):
            nodes.append((t, u))
            emits = transition in chosen
            score += float((labels if emits else blanks)[t, u])
            t, u = (t, u + 1) if emits else (t + 1, u)
        found[tuple(nodes)] = score
    return found


@pytest.mark.parametrize("seed", range(10))
def test_the_best_path_is_the_best_of_all_alignments(seed: int) -> None:
    torch.manual_seed(seed)
    counts = LOSSES["lattice"][1]
    blanks, labels = (x.detach() for x in lattice_of(logits_for(counts)))
    padding = torch.nan if seed % 2 else 5.0  # more probable than any node
    blanks, labels = blanks.masked_fill(~counts, padding), labels.masked_fill(~counts, padding)
    path = best_path(blanks, labels, FRAMES, LABELS)
    assert path.frames.shape == path.columns.shape == path.valid.shape == (4, 8)
    assert torch.equal(path.valid, torch.arange(8) < NODES[:, None])
    for clip, (frames, count) in enumerate(zip(FRAMES.tolist(), LABELS.tolist(), strict=True)):
        scores = scores_of_alignments(blanks[clip], labels[clip], frames, count)
        got = tuple(zip(path.frames[clip].tolist(), path.columns[clip].tolist(), strict=True))
        assert got[: frames + count] == max(scores, key=scores.__getitem__)
        assert set(got[frames + count :]) == {(0, 0)}


def test_paths_of_very_low_probability_are_told_apart() -> None:
    blanks = torch.full((1, 3, 2), -1e5)
    labels = torch.tensor([-1.001, -1.0, -1.002])[None, :, None].expand(1, 3, 2)
    path = best_path(blanks, labels, torch.tensor([3]), torch.tensor([1]))
    assert path.frames.tolist() == [[0, 1, 1, 2]]


def test_log1mexp_cancels_nowhere() -> None:
    for x, expected in ((-1e-6, -13.815511057964), (-20.0, -2.0611536e-9), (-0.7, -0.68634100)):
        assert log1mexp(torch.tensor(x)).item() == pytest.approx(expected, rel=2e-6)


def test_a_path_goes_around_what_is_impossible() -> None:
    blanks, labels = torch.zeros(1, 3, 2), torch.full((1, 3, 2), -9.0)
    blanks[0, 1, 1] = labels[0, 0, 0] = labels[0, 1, 0] = -torch.inf
    path = best_path(blanks, labels, torch.tensor([3]), torch.tensor([1]))
    assert path.frames.tolist() == [[0, 1, 2, 2]]
    assert path.columns.tolist() == [[0, 0, 0, 1]]


def test_without_labels_the_best_path_is_all_blanks() -> None:
    path = best_path(torch.zeros(1, 3, 1), torch.zeros(1, 3, 1), torch.tensor([2]), torch.tensor([0]))
    assert path.frames.tolist() == [[0, 1, 0]]
    assert path.columns.tolist() == [[0, 0, 0]]
    assert path.valid.tolist() == [[True, True, False]]


def test_along_the_path_whole_distributions_are_compared_of_its_nodes_alone() -> None:
    counts = LOSSES["lattice"][1]
    encoded, predicted = (torch.randn(2, *shape) for shape in ((4, 5, 5), (4, 4, 5)))
    student, teacher = (encoded[i][:, :, None] + predicted[i][:, None] for i in range(2))
    path = best_path(*lattice_of(teacher), FRAMES, LABELS)
    joints = [along(logits, path) for logits in (student, teacher)]
    found = []
    for clip, node in path.valid.nonzero().tolist():
        at = (clip, path.frames[clip, node], path.columns[clip, node])
        assert counts[at]
        found.append(divergence(*((logits[at].double() / 3).softmax(-1) for logits in (teacher, student))))
    got = one_best_path(*joints, path.valid, temperature=3.0)
    assert got.item() == pytest.approx(9 * sum(found) / len(found), rel=1e-5)
