"""What the probes share: labelled clips, a linear head over a weighted sum of layers, an interval, the result."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from diminuendo.evaluation.bootstrap import FEWEST, interval, resampled, summed

log = logging.getLogger(__name__)

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class LabelledClip:
    """A clip, by its cut's id; where nobody is named, a clip is its own speaker."""

    id: str
    label: str
    split: Split
    speaker: str


@dataclass(frozen=True)
class HeadConfig:
    """How heads are trained, one for each learning rate (SUPERB tunes the rate per model; a fixed one misleads)."""

    learning_rates: tuple[float, ...] = tuple(10 ** (-4 + i / 2) for i in range(7))
    steps: int = 1000
    clips_per_step: int = 512
    steps_per_check: int = 50


@dataclass(frozen=True)
class Head:
    """The head with the best dev accuracy over learning rates and checks."""

    layer_logits: Float[Tensor, "layers"]
    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, "classes"]
    learning_rate: float
    dev_accuracy: float

    def predict(self, vectors: Float[Tensor, "clips layers dim"]) -> Int[Tensor, "clips"]:
        return _scores(vectors, self.layer_logits[None], self.weight[None], self.bias[None])[0].argmax(-1)


@dataclass(frozen=True)
class ProbeResult:
    """Test accuracy in [0, 1] with a 95 % bootstrap interval, and how it came about.

    `layer_weights` sum to 1, the feature projection's first; `outcomes` are of each speaker's test clips, in their
    order, 1 for right and 0 for wrong, so that two models can be compared clip by clip; `seconds` is the wall-clock
    time, features included.
    """

    task: str
    accuracy: float
    low: float
    high: float
    dev_accuracy: float
    learning_rate: float
    classes: int
    train_clips: int
    test_clips: int
    layer_weights: tuple[float, ...]
    outcomes: dict[str, str]
    seconds: float


def field_of(cut: Any, name: str) -> Any:
    """A field of the manifest's row, from the cut's first supervision or the cut itself; None where there is none."""
    customs = [*(s.custom for s in cut.supervisions[:1]), getattr(cut, "custom", None)]
    return next((custom[name] for custom in customs if custom and custom.get(name) is not None), None)


def speaker_of(cut: Any) -> str | None:
    return next((s.speaker for s in cut.supervisions[:1] if s.speaker), None)


def held_out_fifth(names: Sequence[str], seed: int) -> set[str]:
    """A seeded fifth of the distinct names, at least one."""
    distinct = sorted(set(names))
    return set(random.Random(seed).sample(distinct, max(1, round(len(distinct) / 5))))


def train_head(
    train: tuple[Float[Tensor, "clips layers dim"], Int[Tensor, "clips"]],
    dev: tuple[Float[Tensor, "clips layers dim"], Int[Tensor, "clips"]],
    classes: int,
    config: HeadConfig,
    seed: int,
) -> Head:
    """Train one head per learning rate by Adam, all at once, and keep the best on dev; equals go to the lower dev loss.

    `vectors` must be standardised. Heads start at zero, so the seed only orders the clips.
    """
    vectors, labels = train
    rates = config.learning_rates
    layers, dim = vectors.shape[1:]
    heads = [[torch.zeros(size, requires_grad=True) for size in [(layers,), (classes, dim), (classes,)]] for _ in rates]
    optimizer = torch.optim.Adam([{"params": head, "lr": rate} for head, rate in zip(heads, rates, strict=True)])
    generator = torch.Generator().manual_seed(seed)
    best_score, best = (-1.0, 0.0), None
    for step in range(1, config.steps + 1):
        chosen = torch.randperm(len(vectors), generator=generator)[: config.clips_per_step]
        stacked = [torch.stack(part) for part in zip(*heads, strict=True)]
        scores = _scores(vectors[chosen], *stacked)
        # Summed over heads: each head's gradient is its own.
        loss = _cross_entropy(scores, labels[chosen]).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % config.steps_per_check == 0 or step == config.steps:
            accuracies, losses = _dev_scores(dev, heads)
            for i, score in enumerate(zip(accuracies, [-loss for loss in losses], strict=True)):
                if score > best_score:
                    best_score = score
                    layer_logits, weight, bias = (part.detach().clone() for part in heads[i])
                    best = Head(layer_logits, weight, bias, rates[i], score[0])
    assert best is not None
    return best


def bootstrap_interval(
    scores: Bool[Tensor, "clips"] | Float[Tensor, "clips"], groups: Sequence[str], seed: int, resamples: int = 10_000
) -> tuple[float, float]:
    """95 % interval of the mean score, groups drawn with replacement, each with all of its clips.

    A score is 1 where right, or how much more one model has than another. Clips of one speaker are right or wrong
    together, and the question is about the next speaker: resampling clips would claim too much. With fewer than five
    groups there is nothing to resample and clips are drawn, which is logged.
    """
    if (count := len(set(groups))) < FEWEST:
        log.warning("the interval resamples clips: the test split has only %d groups (speakers)", count)
        groups = [str(i) for i in range(len(groups))]
    sums = summed(torch.stack([scores.double(), torch.ones(len(scores)).double()], dim=1), groups)
    total, clips = resampled(sums, seed, resamples).unbind(dim=1)
    return interval(total / clips, len(sums))


def _scores(
    vectors: Float[Tensor, "clips layers dim"],
    layer_logits: Float[Tensor, "heads layers"],
    weight: Float[Tensor, "heads classes dim"],
    bias: Float[Tensor, "heads classes"],
) -> Float[Tensor, "heads clips classes"]:
    mixed = torch.einsum("nld,hl->hnd", vectors, layer_logits.softmax(-1))
    return torch.baddbmm(bias[:, None], mixed, weight.transpose(1, 2))


def _cross_entropy(
    scores: Float[Tensor, "heads clips classes"], labels: Int[Tensor, "clips"]
) -> Float[Tensor, "heads"]:
    return torch.stack([F.cross_entropy(head_scores, labels) for head_scores in scores])


@torch.no_grad()
def _dev_scores(
    dev: tuple[Float[Tensor, "clips layers dim"], Int[Tensor, "clips"]], heads: list[list[Tensor]]
) -> tuple[list[float], list[float]]:
    """Accuracy and mean loss of every head."""
    vectors, labels = dev
    stacked = [torch.stack(part) for part in zip(*heads, strict=True)]
    scores = torch.cat([_scores(part, *stacked) for part in torch.split(vectors, 1024)], dim=1)
    right = (scores.argmax(-1) == labels).double().mean(-1)
    return right.tolist(), _cross_entropy(scores, labels).tolist()
