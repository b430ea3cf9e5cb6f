"""Which layers learn from which."""

from itertools import combinations

import pytest
import torch

from diminuendo.distillation.hidden import HiddenDistillation
from diminuendo.distillation.layer_match import near_at_random, nearest_in_order


@pytest.mark.parametrize("rows", [1, 2, 4, 6])
def test_the_nearest_in_order_are_what_trying_all_orders_finds(rows: int) -> None:
    distances = torch.rand(rows, 6, generator=torch.Generator().manual_seed(rows)).tolist()
    found = nearest_in_order(distances)
    totals = {
        chosen: sum(row[i] for row, i in zip(distances, chosen, strict=True)) for chosen in combinations(range(6), rows)
    }
    assert tuple(found) == min(totals, key=lambda chosen: totals[chosen])


def test_layers_at_random_come_from_windows_side_by_side_and_all_of_them() -> None:
    torch.manual_seed(0)
    drawn = [near_at_random((2, 5, 6), 6) for _ in range(300)]
    assert [set(column) for column in zip(*drawn, strict=True)] == [{1, 2}, {3, 4, 5}, {6}]


def states(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 30, 8, generator=generator) for _ in range(7)]


def test_free_matching_finds_a_teacher_whose_layers_are_others() -> None:
    student, teacher = states(0), states(1)
    teacher[2], teacher[4], teacher[6] = student[1], student[5], student[6]
    teacher[0] = student[0]
    lengths = torch.tensor([30, 20])
    free = HiddenDistillation((0, 2, 4, 6), 8, 8, matching="free")
    assert free(student, teacher, lengths)["loss"].item() == pytest.approx(0, abs=1e-6)
    assert HiddenDistillation((0, 2, 4, 6), 8, 8)(student, teacher, lengths)["loss"].item() > 0.5


def test_free_matching_never_turns_layers_around() -> None:
    student, teacher = states(0), states(1)
    teacher[2], teacher[4] = student[5], student[1]  # nearest if order did not count
    loss = HiddenDistillation((2, 4), 8, 8, matching="free")(student, teacher, torch.tensor([30, 30]))["l1"]
    one = HiddenDistillation((2,), 8, 8, matching="free")(student, teacher, torch.tensor([30, 30]))["l1"]
    assert one.item() == pytest.approx(0, abs=1e-6)
    assert loss.item() > 0.3


def test_random_matching_is_drawn_anew_and_the_same_from_the_same_seed() -> None:
    student, teacher = states(0), states(1)
    random = HiddenDistillation((0, 3, 6), 8, 8, matching="random")
    torch.manual_seed(3)
    losses = [random(student, teacher, torch.tensor([30, 30]))["loss"].item() for _ in range(8)]
    torch.manual_seed(3)
    again = [random(student, teacher, torch.tensor([30, 30]))["loss"].item() for _ in range(8)]
    assert losses == again
    assert len(set(losses)) > 3
