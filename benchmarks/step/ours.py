"""One joint step of ours, as a run makes it, and how its time divides."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from benchmarks.step.clock import Clock
from diminuendo.api import compress_config
from diminuendo.distillation.hidden import HiddenDistillation, default_layers
from diminuendo.families import build_cost_model, family_of
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.pruning.budget import selected_cost
from diminuendo.pruning.gating import Gates, attach
from diminuendo.structure.axis import Axis, Selection
from diminuendo.structure.cost import CostModel
from diminuendo.training.kernels import choose_attention, choose_convolution
from diminuendo.training.loop import Group, Stage, make_optimizer
from diminuendo.training.objective import DistillationObjective, JointObjective
from diminuendo.training.removing import free_axes
from diminuendo.training.schedules import constant

SIZES: dict[str, dict[str, Any]] = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
        "conv_bias": True,
    },
}
PARTS = ("teacher", "front end", "encoder", "loss", "gates and cost", "optimiser")
STATES = ("start", "target reached")
KEPT = 0.25


def learned_shape(axes: Sequence[Axis], cost: CostModel, total: float) -> Selection:
    """A quarter of the parameters, kept as the published student keeps them.

    Published is: of the first and the last convolution about half, of those between nearly all, no attention in layers
    9 to 11 of 12. Ours: a third of the heads elsewhere, and as many neurons in each layer as the budget allows.
    """
    depth = sum(axis.kind == "heads" for axis in axes)
    convolutions = [axis.name for axis in axes if axis.kind == "channels"]

    def fraction(axis: Axis, neurons: float) -> float:
        if axis.kind == "neurons":
            return neurons
        if axis.name in (convolutions[0], convolutions[-1]):
            return 0.5
        if "attention" in axis.name:
            layer = int(axis.name.split(".")[2])
            gone = 2 / 3 <= layer / depth < 11 / 12
            return 0.0 if gone else 1 / 3 if axis.kind == "heads" else 1.0
        return 1.0

    def selection(neurons: float) -> Selection:
        return {axis.name: torch.arange(axis.size) < round(fraction(axis, neurons) * axis.size) for axis in axes}

    few, all_ = (selected_cost(cost, "params", selection(neurons)) for neurons in (0.1, 1.0))
    return selection(0.1 + 0.9 * (KEPT * total - few) / (all_ - few))


class Step:
    """HuBERT with random weights, gated, against a frozen copy; one step a call, of clips of `seconds`."""

    def __init__(self, size: str, precision: str, seconds: float, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.config = compress_config(precision=precision, max_seconds=seconds)
        torch.manual_seed(0)
        teacher: Any = HubertModel(HubertConfig(**SIZES[size])).eval()
        family = family_of(teacher)
        student: Any = family.plain(teacher)
        self.parameters = count_parameters(teacher)
        choose_attention(student, self.config, self.device)
        choose_convolution(student)
        gates = Gates(free_axes(student, {"width"}))
        attach(student, gates)
        self.gated = [
            (module, str(leaf))
            for module in student.modules()
            if parametrize.is_parametrized(module)
            for leaf in module.parametrizations
        ]
        cost = build_cost_model(family.plain(teacher), gates.axes)
        shape = learned_shape(gates.axes, cost, float(self.parameters))
        self.kept = {
            "params": selected_cost(cost, "params", shape) / self.parameters,
            "macs": selected_cost(cost, "macs", shape) / cost.total("macs"),
        }
        shut = ~torch.cat([shape[axis.name] for axis in gates.axes])
        at_start = gates.log_alpha.detach().clone()
        self.gates, self.log_alpha = gates, {"start": at_start, "target reached": at_start.masked_fill(shut, -8.0)}
        width = teacher.config.hidden_size
        distillation = HiddenDistillation(default_layers(teacher.config.num_hidden_layers), width, width)
        extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
        self.teacher, self.student, self.distillation = teacher.to(self.device), student, distillation
        self.objective = JointObjective(
            DistillationObjective(student, teacher, extractor, distillation),
            gates=gates,
            cost=cost,
            kind="params",
            total=float(self.parameters),
            removed=1.0 - KEPT,
            ramp_steps=1,
        )
        self.objective.to(self.device).train()
        weights = [p for part in (student, distillation) for p in part.parameters() if p.requires_grad]
        # Rates of 0: all the work of a step, and every step the same.
        groups = [
            Group(weights, 0.0, constant, weight_decay=self.config.weight_decay),
            Group([gates.log_alpha], 0.0, constant, clipped=False),
            Group(list(self.objective.multipliers.parameters()), 0.0, constant, maximize=True, clipped=False),
        ]
        self.weights = weights
        self.optimizer = make_optimizer(Stage("joint", 1, self.objective, groups))

    @torch.no_grad()
    def set(self, state: str) -> None:
        """Sets the gates as they are at the start, or once the target is reached: those of `learned_shape` open."""
        self.gates.log_alpha.copy_(self.log_alpha[state])

    def __call__(self, waveforms: Tensor) -> Clock:
        """Makes a step; its seconds by part sum to it.

        The gated weights are made before the student runs instead of one by one as it does, which is the same work. In
        the backward pass autograd takes the last node first: loss, encoder, front end, and the gates' products last.
        """
        objective, student, clock = self.objective, self.student, Clock(self.device)
        mark = clock.mark

        def mark_gradient(tensor: Tensor, part: str) -> None:
            hooks.append(tensor.register_hook(lambda gradient: mark(part)))  # type: ignore[no-untyped-call]

        def sample(draw: int) -> None:
            Gates.sample(objective.gates, draw)
            for module, leaf in self.gated:
                getattr(module, leaf)
            mark("gates and cost")

        def projected(module: Any, args: Any, output: Any) -> None:
            mark("front end")
            mark_gradient(output[0] if isinstance(output, tuple) else output, "encoder")

        def encoded(module: Any, args: Any, output: Any) -> None:
            mark("encoder")
            mark_gradient(output[0], "loss")

        first = student.feature_extractor.conv_layers[0].conv
        hooks = [
            self.teacher.register_forward_hook(lambda *_: mark("teacher")),
            student.feature_projection.register_forward_hook(projected),
            student.encoder.register_forward_hook(encoded),
            self.distillation.register_forward_hook(lambda *_: mark("loss")),
            first.register_forward_pre_hook(lambda *_: mark_gradient(first.weight, "front end")),
        ]
        objective.gates.sample = sample  # type: ignore[method-assign]
        try:
            with parametrize.cached():
                self._step(waveforms, clock)
        finally:
            for hook in hooks:
                hook.remove()
            del objective.gates.sample
        return clock

    def _step(self, waveforms: Tensor, clock: Clock) -> None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            loss = self.objective(waveforms, lengths, 0, 0)["loss"]
        clock.mark("gates and cost")
        loss.backward()
        clock.mark("gates and cost")
        torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.clamp()
        clock.mark("optimiser")

    def flops(self, waveforms: Tensor) -> dict[str, float]:
        """Of the teacher's forward pass and of the forward and backward pass of what is left of the student."""
        macs_per_second = count_macs_per_second(self.teacher, waveforms.shape[1] / 16_000)  # attention's grow
        forward = 2 * macs_per_second * waveforms.numel() / 16_000
        return {"start": 4 * forward, "target reached": (1 + 3 * self.kept["macs"]) * forward}
