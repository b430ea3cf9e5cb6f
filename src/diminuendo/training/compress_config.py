"""The configuration of a compression."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from diminuendo.distillation.clusters import ClusterForm
from diminuendo.distillation.hidden import CosineForm, Maps
from diminuendo.distillation.layer_match import Matching
from diminuendo.distillation.posteriors import Posteriors
from diminuendo.errors import UserError
from diminuendo.pruning.budget import Budget, parse_budget
from diminuendo.structure.axis import AxisKind
from diminuendo.students.shape import StudentShape, parse_shape
from diminuendo.training.recognition_config import RecognitionConfig, RecognitionTask

Objective = Literal["distillation", "masked_prediction"]
Input = Literal["own", "fbank", "fbank-plain"]
Method = Literal["l0", "lowrank", "l0+lowrank", "random", "magnitude", "taylor", "layerdrop", "student"]
LEARNED: tuple[Method, ...] = ("l0", "lowrank", "l0+lowrank")
FRONT_END_STEPS = 3000  # of filter banks' stage, in runs that are not much shorter than that


@dataclass(frozen=True, kw_only=True)
class CompressConfig(RecognitionConfig):
    """A complete configuration of a compression.

    keep: the budget, like params=0.25. latency_device, latency_threads: where a budget in latency is measured, "cpu" or
    "cuda", and on how many threads, 0 for the run's.
    steps: of the joint stage; distil_steps: of the second, None for half of them.
    method: "l0" learns which members go, "lowrank" which ranks of the matrices, "l0+lowrank" both. The others remove
    without learning, by chance, by the size of weights, by how far hidden states would move, or whole layers; the steps
    of both stages then follow in one. So they do with "student": one made by hand, of a shape like "thin", "deep-thin",
    "shallow-wide" or "layers=6,width=384" (`student`, None: thin; see students/shape.py). rounds: but for it, in how
    many steps the budget is reached; before all but the last a share of `steps` is spent on distilling.
    round_to: kept widths are multiples of it, and of 32 too for channels where there are 128 or more, unless it is 1.
    crop_to_shortest: crop a batch's clips to its shortest instead of padding them.
    objective: of both stages: "distillation", or the model's own "masked_prediction" (pruning without distillation) for
    a model that `pretrain` has made, by clusters or by BEST-RQ.
    augment_from, flat_start: fractions of `steps`, counted from the first step that learns, of whichever stage it is.
    task: None, or what the model learns to recognise at the same time ("own": what MODEL recognises by): then clips are
    used whole, need texts, and the loss is the sum of task_weight times the task's, hidden_weight times the hidden
    states' and posterior_weight times the posteriors' distillation, whose teacher must have MODEL's labels; None for 1
    where it has them, else 0. Where no clip has a text such a teacher's own transcripts are learned.
    posteriors: of a transducer, those of the whole "lattice", collapsed to blank, next label and the rest, or all of
    the vocabulary's along the teacher's best "path" alone.
    layers: the teacher's distilled ones; None for 1/3, 2/3 and all of the depth, with shared maps 0 too (and of a
    student of fewer layers as many), or for all that have maps of their own.
    matching: which of the student's layers learn from those: "fixed", the same; "free", the nearest in every batch, in
    order; "random", one drawn from between them in every batch.
    maps: what a student's states go through to be compared: one that all layers "shared", one for every "layer", or one
    for every layer from the "last" state.
    discriminative: the form of a loss beside that of hidden states (regression_weight), of the teacher's clusters
    (cluster_weight; distillation/clusters.py): those that it was pretrained to predict, if `pretrain` made it and
    cluster_layer is None; those of a cluster_file of an earlier run; or num_clusters of the states of cluster_layer
    (None: the last) in cluster_seconds of audio, where the teacher is torn_between so many in the mean.
    input: "fbank" for filter banks in the place of convolutions on the waveform, which they learn from first, in
    input_steps at input_learning_rate (None: three quarters of `steps`, in short runs up to four times as many, until
    there are 3,000); "fbank-plain" for those with the published front end, and each clip's level in them. A kept
    fraction is of MODEL as it came.
    fixed: kinds of axes that are left as they are, like ("channels",). width: whether the residual stream may become
    narrower, which it may not by default.
    gate_learning_rate: None for 0.02, more in runs so short that gates could not close; multiplier_learning_rate: None
    for 10 / steps, or with a task 160 / steps.
    warm_up, distil_warm_up, ramp: fractions of the stage's steps. one_schedule: warm_up is of both stages, and the
    learning rate goes on falling after removal from where it was, to which it rises again over distil_warm_up, instead
    of beginning anew up to distil_learning_rate; where gates learn what goes.
    drop_rate: of the gates at the start; those of feed-forward neurons may have a neuron_drop_rate (DPHuBERT's code has
    0.5). two_sided: the published penalty, which also opens gates where too many are shut.
    """

    keep: str = "params=0.25"
    latency_device: str = "cpu"
    latency_threads: int = 0
    method: Method = "l0"
    student: str | None = None
    input: Input = "own"
    input_steps: int | None = None
    input_learning_rate: float = 1e-2
    rounds: int = 1
    steps: int = 5000
    distil_steps: int | None = None
    crop_to_shortest: bool = True
    round_to: int = 8
    objective: Objective = "distillation"
    fixed: tuple[str, ...] = ()
    width: bool = False
    task: RecognitionTask | None = None
    task_weight: float = 1.0
    hidden_weight: float = 1.0
    posterior_weight: float | None = None
    posteriors: Posteriors = "lattice"
    layers: tuple[int, ...] | None = None
    matching: Matching = "fixed"
    maps: Maps = "shared"
    discriminative: ClusterForm | None = None
    cluster_weight: float = 1.0
    regression_weight: float = 1.0
    num_clusters: int = 500
    torn_between: float = 10.0
    cluster_layer: int | None = None
    cluster_seconds: float = 1800.0
    cluster_file: str | None = None
    cosine: CosineForm = "one_minus"
    cosine_weight: float = 1.0
    learning_rate: float = 2e-4
    distil_learning_rate: float = 1e-4
    gate_learning_rate: float | None = None
    multiplier_learning_rate: float | None = None
    warm_up: float = 0.3
    distil_warm_up: float = 0.2
    one_schedule: bool = False
    ramp: float = 0.5
    two_sided: bool = False
    drop_rate: float = 0.01
    neuron_drop_rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_budget(self.keep)
        if self.latency_device not in ("cpu", "cuda"):
            raise UserError(f"latency_device {self.latency_device!r}: expected cpu or cuda")
        if self.latency_threads < 0:
            raise UserError(f"latency_threads must be at least 1, or 0 for the run's, got {self.latency_threads}")
        if self.method not in get_args(Method):
            raise UserError(f"--method {self.method}: expected one of {', '.join(get_args(Method))}")
        if self.student is not None:
            parse_shape(self.student)
            if self.method != "student":
                raise UserError(
                    f"--student {self.student}: --method {self.method} makes none; leave one of the two out"
                )
        if self.rounds < 1 or (self.rounds > 1 and (self.learned or self.method == "student")):
            raise UserError(f"rounds {self.rounds}: expected 1, or more with a method that removes without learning")
        if self.rounds > self.steps:
            raise UserError(f"rounds {self.rounds}: more than steps, {self.steps}; expected at most one a step")
        if self.round_to < 1:
            raise UserError(f"--round-to must be at least 1, got {self.round_to}")
        for name in ("warm_up", "distil_warm_up", "ramp"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is a fraction of a stage's steps, from 0 to 1; got {getattr(self, name)}")
        if self.goes_on and self.distil_learning_rate != CompressConfig.distil_learning_rate:
            raise UserError(
                f"distil_learning_rate {self.distil_learning_rate:g}: with one_schedule, as this recipe may have it, "
                "learning_rate goes on after removal; give that alone, or one_schedule=false too"
            )
        for name, rate in (("drop_rate", self.drop_rate), ("neuron_drop_rate", self.neuron_drop_rate)):
            if rate is not None and not 0 < rate < 1:
                raise UserError(f"{name} must lie in (0, 1), got {rate}")
        if self.objective not in get_args(Objective):
            raise UserError(f"objective {self.objective!r}: expected one of {', '.join(get_args(Objective))}")
        if unknown := set(self.fixed) - set(get_args(AxisKind)):
            raise UserError(f"fixed {min(unknown)!r}: expected some of {', '.join(get_args(AxisKind))}")
        if self.width and "width" in self.fixed:
            raise UserError("--width: fixed has the width too; leave one of the two out")
        if self.width and (self.method == "layerdrop" or self.objective == "masked_prediction"):
            other = f"--method {self.method}" if self.method == "layerdrop" else f"objective {self.objective}"
            raise UserError(f"--width: {other} leaves the residual stream as it is; leave one of the two out")
        if min(self.task_weight, self.hidden_weight, self.posterior_weight or 0.0) < 0:
            raise UserError("task_weight, hidden_weight and posterior_weight must not be negative")
        if self.method == "student" and (
            self.budget.kind != "params" or self.width or self.objective != "distillation"
        ):
            raise UserError("--method student: one of some number of parameters; give --keep params=... alone")
        if self.task is not None and not self.task_weight + self.hidden_weight + (self.posterior_weight or 0.0):
            raise UserError("task_weight, hidden_weight and posterior_weight are 0: there is nothing to learn")
        if self.flat_start and (self.task is None or not self.task_weight):
            given = "there is no task" if self.task is None else "task_weight is 0"
            raise UserError(f"flat_start: {given}, and so no CTC to start with; give --task ctc+rnnt, or leave it out")
        if self.lookaheads is not None and self.objective == "masked_prediction":
            raise UserError("lookaheads: masked_prediction has those of the pretraining; leave one of the two out")
        if self.task is not None and self.objective == "masked_prediction":
            raise UserError("--task: the objective masked_prediction has no texts; leave one of the two out")
        if self.posteriors not in get_args(Posteriors):
            raise UserError(f"posteriors {self.posteriors!r}: expected one of {', '.join(get_args(Posteriors))}")
        if self.posteriors == "path" and self.task is None:
            raise UserError("posteriors path: a recogniser's are learned; give --task own, or leave it out")
        if self.matching not in get_args(Matching):
            raise UserError(f"matching {self.matching!r}: expected one of {', '.join(get_args(Matching))}")
        if self.maps not in get_args(Maps):
            raise UserError(f"maps {self.maps!r}: expected one of {', '.join(get_args(Maps))}")
        if self.matching != "fixed" and (self.maps != "shared" or self.method == "student"):
            other = (
                "method student has another shape" if self.maps == "shared" else f"maps {self.maps} say which layers"
            )
            raise UserError(f"matching {self.matching}: {other}; leave one of the two out")
        asked = f"--input {self.input}"
        if self.input not in get_args(Input):
            raise UserError(f"{asked}: expected one of {', '.join(get_args(Input))}")
        if self.input_steps is not None and self.input_steps < 1:
            raise UserError(f"input_steps must be at least 1, got {self.input_steps}")
        if self.hears_filter_banks and self.objective == "masked_prediction":
            raise UserError(f"{asked}: masked_prediction is of the waveform's frames; leave one of the two out")
        if self.hears_filter_banks and self.budget.kind == "latency" and not self.budget.absolute:
            raise UserError(f"{asked}: a fraction of whose latency? give it in ms, like --keep latency=40ms")
        if self.discriminative is not None and self.discriminative not in get_args(ClusterForm):
            known = ", ".join(get_args(ClusterForm))
            raise UserError(f"discriminative {self.discriminative!r}: expected one of {known}")
        if min(self.cluster_weight, self.regression_weight) < 0:
            raise UserError("cluster_weight and regression_weight must not be negative")
        if self.discriminative is not None and self.objective == "masked_prediction":
            raise UserError("discriminative: masked_prediction has no teacher; leave one of the two out")
        if self.discriminative is not None and not (self.cluster_weight and self.hidden_weight):
            raise UserError("discriminative: cluster_weight or hidden_weight is 0, so that nothing is learned of it")
        if self.discriminative is None and (self.regression_weight != 1.0 or self.cluster_file is not None):
            raise UserError(
                "regression_weight and cluster_file go with a discriminative loss; give --set discriminative"
            )
        if not (self.num_clusters > 1 and 1 < self.torn_between < self.num_clusters and self.cluster_seconds > 0):
            raise UserError(
                f"num_clusters {self.num_clusters}, torn_between {self.torn_between:g}, cluster_seconds "
                f"{self.cluster_seconds:g}: expected some clusters, fewer but more than 1 to be torn between, and audio"
            )
        if self.cosine not in get_args(CosineForm):
            raise UserError(f"cosine {self.cosine!r}: expected one of {', '.join(get_args(CosineForm))}")
        if self.distil_steps is not None and self.distil_steps < 0:
            raise UserError(f"distil_steps must not be negative, got {self.distil_steps}")

    def resolved(self, layers: tuple[int, ...]) -> "CompressConfig":
        """The same with every value in the place of its None, `layers` being the default ones of the model's depth."""
        return replace(
            self,
            layers=layers if self.layers is None else self.layers,
            distil_steps=self.second_stage_steps,
            input_steps=self.front_end_steps or None,
            gate_learning_rate=self.gate_rate,
            multiplier_learning_rate=self.multiplier_rate,
        )

    @property
    def budget(self) -> Budget:
        return parse_budget(self.keep)

    @property
    def shape(self) -> StudentShape:
        """Of a student made by hand."""
        return parse_shape(self.student or "thin")

    @property
    def learned(self) -> bool:
        """Whether gates learn what goes."""
        return self.method in LEARNED

    @property
    def head_free(self) -> bool:
        """Whether a transducer's predictor and joint network may shrink: where a learned loss sees them."""
        return self.learned and self.task is not None and self.task_weight > 0

    @property
    def factored(self) -> bool:
        """Whether ranks of matrices can go."""
        return self.method in ("lowrank", "l0+lowrank")

    @property
    def goes_on(self) -> bool:
        """Whether the learning rate after removal goes on from where it was."""
        return self.one_schedule and self.learned

    @property
    def term_weights(self) -> dict[str, float]:
        """What every term of the log is multiplied by in the loss; nothing where no teacher is listened to."""
        if self.objective != "distillation":
            return {}
        hidden = 1.0 if self.task is None else self.hidden_weight
        regression = hidden * (1.0 if self.discriminative is None else self.regression_weight)
        found = {"l1": regression, "cosine": regression * self.cosine_weight}
        if self.discriminative is not None:
            found["clusters"] = hidden * self.cluster_weight
        if self.task is not None:
            found |= {"task": self.task_weight, "posteriors": self.posterior_weight or 0.0}
        return {name: weight for name, weight in found.items() if weight}

    @property
    def fixed_kinds(self) -> frozenset[str]:
        """Kinds of axes that the method leaves as they are."""
        free = {"layerdrop": {"sublayer"}, "lowrank": {"ranks"}}.get(self.method, set(get_args(AxisKind)))
        free = free | {"width"} if self.width else free - {"width"}
        return frozenset(self.fixed) | (set(get_args(AxisKind)) - free)

    @property
    def round_steps(self) -> int:
        """Steps after every round of removal but the last."""
        return 0 if self.learned else self.steps // self.rounds

    @property
    def stage_steps(self) -> tuple[int, int]:
        """Steps until the last removal, and after it."""
        before = self.steps if self.learned else self.round_steps * (self.rounds - 1)
        return before, self.steps + self.second_stage_steps - before

    @property
    def second_stage_steps(self) -> int:
        return self.steps // 2 if self.distil_steps is None else self.distil_steps

    @property
    def hears_filter_banks(self) -> bool:
        return self.input != "own"

    @property
    def front_end_steps(self) -> int:
        """Of the stage before all others."""
        if not self.hears_filter_banks:
            return 0
        if self.input_steps is not None:
            return self.input_steps
        # A step takes a quarter of the time of one that prunes. Students of runs of 800 had 17 % more errors after 600
        # than after 3,000 (docs/LOG.md).
        return max(3 * self.steps // 4, min(FRONT_END_STEPS, 4 * self.steps))

    @property
    def gate_rate(self) -> float:
        # From the start to a shut gate log_alpha has some 6 to go, and Adam moves by at most the learning rate a step:
        # at 100 / steps that takes a sixteenth of them, so gates can follow the target's ramp.
        return max(0.02, 100.0 / self.steps) if self.gate_learning_rate is None else self.gate_learning_rate

    @property
    def multiplier_rate(self) -> float:
        # Over the target's ramp a multiplier can rise to 5. Faster ones wind up while gates still travel, shut too
        # many, and bring them back all together. A task's loss, of texts and posteriors, holds gates open at prices up
        # to 30, where slow ones leave half too much to be cut at removal (docs/LOG.md).
        if self.multiplier_learning_rate is not None:
            return self.multiplier_learning_rate
        return (10.0 if self.task is None else 160.0) / self.steps
