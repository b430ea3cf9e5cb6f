"""The loss of a recogniser's task: per label of the batch, and what a flat start makes of it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.loss.loss_tdt import tdt_loss

from diminuendo.families.recogniser import with_head
from diminuendo.tasks.ctc import flat_alignment
from diminuendo.tasks.recognition import RecognitionLoss, frame_logits, output_logits, padded
from diminuendo.training.hearing import Hearing
from tiny import tiny_model

COUNTS = torch.tensor([9, 6])
TEXTS = [[1, 2, 2], [3]]


def parts(task: Any) -> tuple[Any, torch.Tensor, Any]:
    torch.manual_seed(0)
    model = with_head(tiny_model("parakeet", "encoder"), task, 10, width=24)
    return model, torch.randn(2, 9, 32), padded(TEXTS, 10)


def test_ctc_and_rnnt_are_summed_over_clips_and_divided_by_their_labels() -> None:
    for task in ("ctc", "rnnt"):
        model, states, labels = parts(task)
        whole = RecognitionLoss(model)(model, states, COUNTS, labels)["loss"]
        alone = [
            RecognitionLoss(model)(model, states[i : i + 1], COUNTS[i : i + 1], padded([text], 10))["loss"] * len(text)
            for i, text in enumerate(TEXTS)
        ]
        torch.testing.assert_close(whole, sum(alone) / 4)


def test_ctc_beside_a_transducer_counts_its_weight() -> None:
    model, states, labels = parts("rnnt")
    loss = RecognitionLoss(model, ctc_weight=0.3)
    found = loss(model, states, COUNTS, labels)
    torch.testing.assert_close(found["loss"], found["rnnt"] + 0.3 * found["ctc"])
    assert found["ctc"] > 0
    torch.testing.assert_close(found["rnnt"], RecognitionLoss(model)(model, states, COUNTS, labels)["loss"])


def test_tdt_is_transformers_own_loss() -> None:
    model, states, labels = parts("tdt")
    logits = output_logits(model, states, labels)
    lengths = (COUNTS.int(), labels.lengths.int())
    wanted = tdt_loss(
        logits[..., :11], logits[..., 11:], labels.ids.int(), *lengths, 10, model.config.durations, reduction="sum"
    )
    torch.testing.assert_close(RecognitionLoss(model)(model, states, COUNTS, labels)["loss"], wanted / 4)


def test_a_flat_start_is_cross_entropy_of_frames_and_fades_into_the_task() -> None:
    model, states, labels = parts("ctc")
    loss = RecognitionLoss(model)
    wanted = flat_alignment(labels.ids, labels.lengths, COUNTS, 10)
    logits = frame_logits(model, states)
    entropy = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=-100)
    task = loss(model, states, COUNTS, labels)["loss"]
    torch.testing.assert_close(loss(model, states, COUNTS, labels, 1.0)["loss"], entropy)
    torch.testing.assert_close(loss(model, states, COUNTS, labels, 0.25)["loss"], 0.25 * entropy + 0.75 * task)


def test_a_flat_start_is_whole_for_two_thirds_of_its_steps_and_then_fades() -> None:
    hearing = Hearing(flat_start=90)
    assert [hearing.flat(step) for step in (0, 60, 90, 500)] == [1.0, 1.0, 0.0, 0.0]
    assert hearing.flat(75) == pytest.approx(0.5)
    assert Hearing().flat(0) == 0.0
