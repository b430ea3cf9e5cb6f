"""The discriminative loss: which of its teacher's clusters a student takes a frame for (Wang et al., arXiv 2210.15631).

The teacher's distribution is that over the clusters that it was pretrained to tell apart, by the cosine to their
embeddings (HuBERT), where these are at hand. Of any other its states are clustered, and the distribution is a softmax
over negative squared distances to the centres: [ours] divided by a temperature at which the teacher is, in the mean,
torn between some chosen number of clusters, since distances have no scale of their own.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diminuendo.distillation.hidden import HiddenDistillation, valid_frames
from diminuendo.tasks.selfsupervised import ClusterHead, Clusters, clusters_of, fit_clusters

ClusterForm = Literal["projected", "free", "hard"]

FRAMES_TO_CALIBRATE = 5_000
HALVINGS = 40  # of the interval in which the temperature is looked for


class Centres(nn.Module):
    """Logits of k-means centres: negative squared distances of scaled frames to them, over a temperature."""

    def __init__(self, clusters: Clusters, temperature: float) -> None:
        super().__init__()
        for name, value in clusters.tensors().items():
            self.register_buffer(name, value)
        self.register_buffer("temperature", torch.tensor(temperature))

    @property
    def num_clusters(self) -> int:
        return len(self.get_buffer("centres"))

    @property
    def width(self) -> int:
        """Of what is compared."""
        return self.get_buffer("centres").shape[1]

    def project(self, states: Float[Tensor, "frames dim"]) -> Float[Tensor, "frames dim"]:
        return (states.float() - self.get_buffer("mean")) / self.get_buffer("deviation")

    def compare(self, projected: Float[Tensor, "frames dim"]) -> Float[Tensor, "frames clusters"]:
        centres = self.get_buffer("centres")
        with torch.autocast(projected.device.type, enabled=False):
            products = projected.float() @ centres.T
            # Less the frame's own square, of which a softmax makes nothing.
            return (2 * products - centres.square().sum(1)) / self.get_buffer("temperature")


class OwnClusters(nn.Module):
    """Logits of the clusters that a model was pretrained to predict: its head."""

    def __init__(self, head: ClusterHead) -> None:
        super().__init__()
        self.head = head

    @property
    def num_clusters(self) -> int:
        return len(self.head.embeddings)

    @property
    def width(self) -> int:
        return self.head.embeddings.shape[1]

    def project(self, states: Float[Tensor, "frames dim"]) -> Float[Tensor, "frames width"]:
        projected: Tensor = self.head.projection(states)
        return projected

    def compare(self, projected: Float[Tensor, "frames width"]) -> Float[Tensor, "frames clusters"]:
        return self.head.compare(projected)


TeacherClusters = Centres | OwnClusters


def fit_centres(
    stream: Iterable[Float[Tensor, "frames dim"]], num_clusters: int, *, torn_between: float, seed: int
) -> Centres:
    """Centres of all frames of a stream, at the temperature of a mean perplexity of `torn_between` clusters.

    UserError if the stream has fewer frames than there are to be clusters.
    """
    frames = list(stream)
    centres = Centres(fit_clusters(frames, num_clusters, seed), 1.0)
    some = torch.cat(frames)
    some = some[:: max(1, len(some) // FRAMES_TO_CALIBRATE)]
    distances = centres.compare(centres.project(some))
    low, high = 1e-6, 1e6
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if perplexity(distances / middle) < torn_between else (low, middle)
    centres.get_buffer("temperature").fill_(math.sqrt(low * high))
    return centres


def perplexity(logits: Float[Tensor, "frames clusters"]) -> float:
    """Between how many clusters a distribution is torn, in the mean over frames of its entropy."""
    log = F.log_softmax(logits, dim=-1)
    return float((-(log.exp() * log).sum(-1)).mean().exp())


def centres_of(tensors: Mapping[str, Tensor]) -> Centres:
    """The inverse of `Centres.state_dict`."""
    return Centres(clusters_of(tensors), float(tensors["temperature"]))


class ClusterDistillation(nn.Module):
    """The loss between a student's last states and one layer of its teacher's, over frames.

    form: "projected": a linear map takes the student's states to where the teacher's are compared with its frozen
    clusters; the divergence of the two distributions. "free": a linear layer over the clusters; the divergence. "hard":
    the cross-entropy of the teacher's most probable cluster by the cosine to embeddings of the student's own.
    """

    def __init__(self, teacher: TeacherClusters, student_dim: int, *, layer: int, form: ClusterForm) -> None:
        super().__init__()
        self.layer, self.form = layer, form
        self.teacher = teacher.requires_grad_(False)
        if form == "hard":
            self.student: nn.Module = ClusterHead(student_dim, teacher.num_clusters)
        else:
            self.student = nn.Linear(student_dim, teacher.width if form == "projected" else teacher.num_clusters)

    @property
    def reader(self) -> str:
        """The matrix that reads the student's states."""
        return "student.projection.weight" if self.form == "hard" else "student.weight"

    def forward(
        self, student: Float[Tensor, "frames student_dim"], teacher: Float[Tensor, "frames teacher_dim"]
    ) -> dict[str, Float[Tensor, ""]]:
        """`clusters`, the loss, and `agreement`, the share of frames that both take for the same cluster."""
        with torch.no_grad():
            target = F.log_softmax(self.teacher.compare(self.teacher.project(teacher)).float(), dim=-1)
        own = self.student(student)
        logits = (self.teacher.compare(own) if self.form == "projected" else own).float()
        agreement = (logits.detach().argmax(-1) == target.argmax(-1)).float().mean()
        if self.form == "hard":
            loss = F.cross_entropy(logits, target.argmax(-1))
        else:
            loss = F.kl_div(F.log_softmax(logits, dim=-1), target, log_target=True, reduction="batchmean")
        return {"clusters": loss, "agreement": agreement}


class DiscriminativeDistillation(HiddenDistillation):
    """Both: `weight` times the loss between layers, which 0 leaves out, and `cluster_weight` times that of clusters.

    hidden: settings of `HiddenDistillation`.
    """

    def __init__(
        self,
        layers: Sequence[int],
        student_dim: int,
        teacher_dim: int,
        clusters: ClusterDistillation,
        *,
        weight: float = 1.0,
        cluster_weight: float = 1.0,
        **hidden: Any,
    ) -> None:
        super().__init__(layers if weight else (), student_dim, teacher_dim, **hidden)
        self.clusters, self.weight, self.cluster_weight = clusters, weight, cluster_weight

    @property
    def wanted(self) -> frozenset[int]:
        return super().wanted | {self.clusters.layer}

    @property
    def readers(self) -> tuple[str, ...]:
        return (*super().readers, f"clusters.{self.clusters.reader}")

    def forward(
        self,
        student: Sequence[Float[Tensor, "batch frames student_dim"]],
        teacher: Sequence[Float[Tensor, "batch frames teacher_dim"]],
        frame_lengths: Int[Tensor, " batch"],
    ) -> dict[str, Float[Tensor, ""]]:
        """`loss` and its parts without their weights: `l1`, `cosine`, `clusters`; and the `agreement` on clusters."""
        frames = valid_frames(frame_lengths, student[-1].shape[1]).flatten().nonzero().flatten()
        own, its = (state.flatten(0, 1)[frames] for state in (student[-1], teacher[self.clusters.layer]))
        found = self.clusters(own, its)
        loss = self.cluster_weight * found["clusters"]
        if self.weight:
            between = super().forward(student, teacher, frame_lengths)
            found, loss = between | found, loss + self.weight * between["loss"]
        return {**found, "loss": loss}
