"""The loss of a transducer, beside all alignments one by one and beside another implementation."""

from itertools import combinations

import pytest
import torch
from benchmarks.transducer import naive_loss, numba_loss, peak_bytes
from torch import Tensor

from diminuendo.tasks import transducer_loss as module
from diminuendo.tasks.transducer_loss import lattice, transducer_loss

BLANK = 2
FRAMES, LABELS = torch.tensor([4, 2, 1, 3]), torch.tensor([3, 2, 3, 0])
Given = tuple[Tensor, Tensor, Tensor, Tensor]


def given(
    frames: Tensor = FRAMES, labels: Tensor = LABELS, vocabulary: int = 5, dtype: torch.dtype = torch.float64
) -> Given:
    """Logits and targets at random, with one frame and one label more than any clip has."""
    batch, most_frames, most_labels = len(frames), int(frames.max()) + 1, int(labels.max()) + 1
    logits = 2 * torch.randn(batch, most_frames, most_labels + 1, vocabulary, dtype=torch.float64)
    targets = torch.randint(0, vocabulary - 1, (batch, most_labels))
    targets += targets >= BLANK
    return logits.to(dtype).requires_grad_(), targets, frames, labels


def by_enumeration(logits: Tensor, targets: Tensor, frame_lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """Losses of clips: each alignment is a choice of which transitions but the last are labels."""
    found = []
    log_probs = logits.log_softmax(-1)
    for clip, (frames, labels) in enumerate(zip(frame_lengths.tolist(), target_lengths.tolist(), strict=True)):
        alignments = []
        for chosen in combinations(range(frames + labels - 1), labels):
            terms, t, u = [], 0, 0
            for transition in range(frames + labels):
                emits = transition in chosen
                terms.append(log_probs[clip, t, u, targets[clip, u] if emits else BLANK])
                t, u = (t, u + 1) if emits else (t + 1, u)
            alignments.append(torch.stack(terms).sum())
        found.append(-torch.stack(alignments).logsumexp(0))
    return torch.stack(found)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("pieces", [1, 2**17])
def test_the_loss_and_its_gradient_are_those_of_all_alignments_one_by_one(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CACHED", pieces)
    clips = given()
    expected, got = by_enumeration(*clips), transducer_loss(*clips, BLANK, "none")
    torch.testing.assert_close(got, expected)
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(gradient(got @ weights, clips[0]), gradient(expected @ weights, clips[0]))


def test_without_gradients_the_loss_is_the_same() -> None:
    clips = given()
    with torch.no_grad():
        torch.testing.assert_close(transducer_loss(*clips, BLANK), transducer_loss(*clips, BLANK).detach())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_is_that_of_warprnnt_numba(reduction: str) -> None:
    frames, labels = torch.tensor([20, 33, 7]), torch.tensor([9, 4, 8])
    clips = given(frames, labels, vocabulary=30, dtype=torch.float32)
    # It reads clips at strides of the padded lengths, which one of them must have.
    logits = clips[0].detach()[:, :33, :10].contiguous().requires_grad_()
    clips = (logits, clips[1][:, :9], frames, labels)
    expected = numba_loss(*clips, blank=BLANK, reduction=reduction)
    got = transducer_loss(*clips, BLANK, reduction)  # type: ignore[arg-type]
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient(got, logits), gradient(expected, logits), rtol=1e-4, atol=1e-6)


def test_the_plain_loss_that_the_benchmark_compares_with_is_the_same() -> None:
    logits, targets, *lengths = given(dtype=torch.float32)
    swapped = logits.detach()[..., [2, 1, 0, 3, 4]].requires_grad_()
    targets = torch.where(targets == 0, 2, targets)
    got, expected = naive_loss(swapped, targets, *lengths), transducer_loss(swapped, targets, *lengths, 0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradient(got, swapped), gradient(expected, swapped))


def test_gradients_are_those_of_finite_differences() -> None:
    logits, *rest = given()

    def finite(x: Tensor) -> list[Tensor]:
        return [part[part > -torch.inf] for part in lattice(x, rest[0], BLANK, *rest[1:])]

    assert torch.autograd.gradcheck(lambda x: transducer_loss(x, *rest, BLANK, "none"), logits, fast_mode=True)
    assert torch.autograd.gradcheck(finite, logits, fast_mode=True)


def test_padding_changes_nothing_and_has_a_gradient_of_zero() -> None:
    logits, targets, frames, labels = given(dtype=torch.float32)
    loss = transducer_loss(logits, targets, frames, labels, BLANK)
    inside = torch.zeros(logits.shape[:3], dtype=torch.bool)
    for clip, (t, u) in enumerate(zip(frames, labels, strict=True)):
        inside[clip, :t, : u + 1] = True
    found = gradient(loss, logits)
    assert torch.equal(found.abs().sum(-1) > 0, inside)
    other = logits.detach().masked_fill(~inside[..., None], torch.nan).requires_grad_()
    others = targets.masked_fill(torch.arange(targets.shape[1]) >= labels[:, None], -100)
    assert torch.equal(transducer_loss(other, others, frames, labels, BLANK), loss)
    assert torch.equal(gradient(transducer_loss(other, others, frames, labels, BLANK), other), found)


def test_a_batch_is_the_clips_it_is_made_of() -> None:
    logits, targets, frames, labels = given()
    whole = transducer_loss(logits, targets, frames, labels, BLANK, "none")
    for clip, (t, u) in enumerate(zip(frames, labels, strict=True)):
        alone = (logits[clip, :t, : u + 1][None], targets[clip, :u][None], t[None], u[None])
        torch.testing.assert_close(transducer_loss(*alone, BLANK, "none")[0], whole[clip])
    torch.testing.assert_close(transducer_loss(logits, targets, frames, labels, BLANK), whole.mean())
    torch.testing.assert_close(transducer_loss(logits, targets, frames, labels, BLANK, "sum"), whole.sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_half_precision_have_the_loss_of_the_same_logits_in_fp32(dtype: torch.dtype) -> None:
    logits, *rest = given(dtype=dtype)
    full = logits.detach().float().requires_grad_()
    got, expected = transducer_loss(logits, *rest, BLANK), transducer_loss(full, *rest, BLANK)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)
    assert torch.equal(gradient(got, logits), gradient(expected, full).to(dtype))


def test_long_and_certain_alignments_are_summed_exactly() -> None:
    frames, labels = torch.tensor([300]), torch.tensor([40])
    logits, *rest = given(frames, labels, vocabulary=20)
    logits = (10 * logits.detach()).float().requires_grad_()
    exact = logits.detach().double().requires_grad_()
    got, expected = transducer_loss(logits, *rest, BLANK), transducer_loss(exact, *rest, BLANK)
    assert expected > 3000
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(gradient(got, logits), gradient(expected, exact).float(), rtol=1e-3, atol=1e-5)


def test_a_lattice_has_log_probabilities_and_no_label_after_the_last() -> None:
    logits, targets, frames, labels = given(dtype=torch.float32)
    blanks, following = lattice(logits, targets, BLANK)
    log_probs = logits.log_softmax(-1)
    torch.testing.assert_close(blanks, log_probs[..., BLANK])
    assert torch.equal(following[..., -1], torch.full_like(following[..., -1], -torch.inf))
    for u in range(targets.shape[1]):
        expected = torch.stack([log_probs[clip, :, u, targets[clip, u]] for clip in range(len(targets))])
        torch.testing.assert_close(following[..., u], expected)
    some_blanks, some_following = lattice(logits, targets, BLANK, frames, labels)
    for clip, (t, u) in enumerate(zip(frames, labels, strict=True)):
        torch.testing.assert_close(some_blanks[clip, :t, : u + 1], blanks[clip, :t, : u + 1])
        torch.testing.assert_close(some_following[clip, :t, :u], following[clip, :t, :u])
        assert some_following[clip, :, u:].max() == some_following[clip, t:].max() == -torch.inf
        assert some_blanks[clip, t:].max() == some_blanks[clip, :, u + 1 :].max() == -torch.inf


def test_beyond_the_logits_the_gradient_is_most_of_the_memory() -> None:
    clips = given(torch.full((6,), 79), torch.full((6,), 14), vocabulary=400, dtype=torch.bfloat16)
    size = 2 * clips[0].numel()
    # 2% for the lattice and what is summed on it, and a piece in single precision with its product.
    assert size < peak_bytes(lambda: gradient(transducer_loss(*clips, BLANK), clips[0])) < 1.05 * size + 8 * 2**17
    assert peak_bytes(lambda: transducer_loss(*clips, BLANK)) < 0.1 * size + 8 * 2**17


def test_memory_is_counted_while_it_is_held() -> None:
    def step() -> None:
        gone = torch.zeros(60)
        del gone
        held = torch.zeros(70)
        held.view(7, 10).mul_(2)
        assert held.add(torch.zeros(20)[:1]).shape == (70,)

    assert peak_bytes(step) == 4 * (70 + 20 + 70)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, 3, 4)}, "logits: expected floats, batch x frames x labels"),
        ({"logits": torch.zeros(2, 3, 3, 5, dtype=torch.int64)}, "got torch.int64"),
        (
            {"targets": torch.ones(2, 3, dtype=torch.int64)},
            r"targets: expected \(2, 2\) for these logits, got \(2, 3\)",
        ),
        ({"targets": torch.tensor([[1, 5], [1, 1]])}, "targets: expected labels from 0 to 4.*, got 5 in clip 0"),
        ({"targets": torch.tensor([[1, 1], [1, 0]])}, r"none of them blank \(0\), got 0 in clip 1"),
        ({"frame_lengths": torch.tensor([3, 4])}, r"frame_lengths: expected from 1 to 3, got \[3, 4\]"),
        ({"frame_lengths": torch.tensor([0, 3])}, r"frame_lengths: expected from 1 to 3, got \[0, 3\]"),
        ({"target_lengths": torch.tensor([2, 3])}, r"target_lengths: expected from 0 to 2, got \[2, 3\]"),
        ({"target_lengths": torch.tensor([2])}, "target_lengths: expected one for each of 2 clips"),
        ({"blank": 5}, "blank: expected a number from 0 to 4, got 5"),
        ({"blank": -1}, "blank: expected a number from 0 to 4, got -1"),
        ({"reduction": "batch"}, "reduction: expected mean, sum or none, got 'batch'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    fitting: dict[str, object] = {
        "logits": torch.zeros(2, 3, 3, 5),
        "targets": torch.ones(2, 2, dtype=torch.int64),
        "frame_lengths": torch.tensor([3, 2]),
        "target_lengths": torch.tensor([2, 2]),
        "blank": 0,
    }
    assert transducer_loss(**fitting) > 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        transducer_loss(**fitting | change)  # type: ignore[arg-type]
