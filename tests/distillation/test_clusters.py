"""The discriminative loss, and the clusters that it is of."""

import math

import pytest
import torch

from diminuendo.distillation.clusters import (
    Centres,
    ClusterDistillation,
    ClusterForm,
    DiscriminativeDistillation,
    OwnClusters,
    centres_of,
    fit_centres,
    perplexity,
)
from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.tasks.selfsupervised import ClusterHead, Clusters, Scale

CENTRES = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])


def centres(temperature: float = 2.0) -> Centres:
    return Centres(Clusters(Scale(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])), CENTRES), temperature)


def states(num: int = 4, dim: int = 6, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 5, dim, generator=generator) for _ in range(num)]


def test_the_distribution_over_centres_is_the_softmax_of_negative_squared_distances() -> None:
    frames, clusters = torch.tensor([[1.0, 2.0], [2.5, 9.0]]), centres()
    scaled = torch.tensor([[0.0, 0.0], [1.5, 3.5]])
    expected = [[-((frame - centre) ** 2).sum().item() / 2.0 for centre in CENTRES] for frame in scaled]
    found = clusters.compare(clusters.project(frames)).softmax(-1)
    assert torch.allclose(found, torch.tensor(expected).softmax(-1), atol=1e-6)


def test_the_temperature_is_one_at_which_a_frame_is_torn_between_as_many_as_asked() -> None:
    frames = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    found = fit_centres([frames[:100], frames[100:]], 20, torn_between=4.0, seed=0)
    assert found.num_clusters == 20
    assert perplexity(found.compare(found.project(frames))) == pytest.approx(4.0, rel=1e-3)
    again = centres_of(found.state_dict())
    assert torch.equal(again.compare(again.project(frames)), found.compare(found.project(frames)))


def test_what_a_distribution_is_torn_between() -> None:
    assert perplexity(torch.zeros(3, 8)) == pytest.approx(8.0)
    assert perplexity(torch.tensor([[50.0, 0.0, 0.0]])) == pytest.approx(1.0)


@pytest.mark.parametrize("form", ["projected", "free"])
@pytest.mark.parametrize("own", [True, False])
def test_the_loss_is_the_divergence_of_the_two_distributions(form: ClusterForm, own: bool) -> None:
    torch.manual_seed(0)
    teacher = OwnClusters(ClusterHead(2, 3)) if own else centres()
    loss = ClusterDistillation(teacher, 4, layer=2, form=form)
    student, taught = torch.randn(7, 4), torch.randn(7, 2)
    p = teacher.compare(teacher.project(taught)).softmax(-1).detach()
    given = loss.student(student)
    q = (teacher.compare(given) if form == "projected" else given).softmax(-1).detach()
    expected = sum(float(a * math.log(a / b)) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / 7
    found = loss(student, taught)
    assert found["clusters"].item() == pytest.approx(expected, rel=1e-4)
    assert found["agreement"].item() == pytest.approx((p.argmax(-1) == q.argmax(-1)).float().mean().item())
    found["clusters"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in loss.student.parameters())


def test_the_hard_form_is_the_cross_entropy_of_the_most_probable_cluster() -> None:
    torch.manual_seed(0)
    teacher = centres()
    loss = ClusterDistillation(teacher, 4, layer=2, form="hard")
    student, taught = torch.randn(7, 4), 3 * torch.randn(7, 2)
    label = teacher.compare(teacher.project(taught)).argmax(-1)
    assert len(set(label.tolist())) > 1
    log = loss.student(student).log_softmax(-1)
    assert loss(student, taught)["clusters"].item() == pytest.approx(-log[range(7), label].mean().item(), rel=1e-5)


def test_both_losses_are_summed_by_their_weights_and_padding_counts_in_neither() -> None:
    torch.manual_seed(0)
    clusters = ClusterDistillation(
        Centres(Clusters(Scale(torch.zeros(9), torch.ones(9)), torch.randn(5, 9)), 3.0), 6, layer=2, form="free"
    )
    both = DiscriminativeDistillation((0, 2), 6, 9, clusters, weight=0.5, cluster_weight=2.0, maps="last")
    hidden = HiddenDistillation((0, 2), 6, 9, maps="last")
    hidden.load_state_dict({name: value for name, value in both.state_dict().items() if name.startswith("maps")})
    student, teacher, lengths = states(3), states(3, dim=9, seed=1), torch.tensor([3, 5])
    before = both(student, teacher, lengths)
    alone = clusters(
        student[2].flatten(0, 1)[[0, 1, 2, 5, 6, 7, 8, 9]], teacher[2].flatten(0, 1)[[0, 1, 2, 5, 6, 7, 8, 9]]
    )
    expected = 0.5 * hidden(student, teacher, lengths)["loss"] + 2.0 * alone["clusters"]
    assert before["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    for state in (*student, *teacher):
        state[0, 3:] = torch.nan
    assert torch.equal(both(student, teacher, lengths)["loss"], before["loss"])
    assert (both.wanted, hidden.wanted) == ({0, 2}, {0, 2})
    assert both.readers == ("maps.first.weight", "maps.layer_2.weight", "clusters.student.weight")


def test_without_regression_there_are_no_maps() -> None:
    clusters = ClusterDistillation(
        Centres(Clusters(Scale(torch.zeros(9), torch.ones(9)), torch.randn(5, 9)), 3.0), 6, layer=1, form="hard"
    )
    alone = DiscriminativeDistillation((0, 2), 6, 9, clusters, weight=0.0)
    assert (len(alone.maps), alone.wanted, alone.readers) == (0, {1}, ("clusters.student.projection.weight",))
    assert alone(states(3), states(3, dim=9, seed=1), torch.tensor([3, 5])).keys() == {"loss", "clusters", "agreement"}
