"""One joint step of the published DPHuBERT code, from a checkout of it.

What the step does is theirs: model, masks, loss, optimiser. Lightning only calls it, so a bare module takes its place,
and the data set, which reads audio through torchaudio, is left out.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.step.clock import Clock

# As convert_hubert_from_hf.py, convert_hubert_large_from_fairseq.py and run.sh there have it.
_CONVOLUTIONS = [(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2
_COMMON: dict[str, Any] = {
    "extractor_conv_layer_config": _CONVOLUTIONS,
    "encoder_pos_conv_kernel": 128,
    "encoder_pos_conv_groups": 16,
    "encoder_head_dim": 64,
    "encoder_ff_interm_dropout": 0.0,
    "aux_num_out": None,
    "extractor_prune_conv_channels": False,
    "encoder_prune_attention_heads": False,
    "encoder_prune_attention_layer": False,
    "encoder_prune_feed_forward_intermediate": False,
    "encoder_prune_feed_forward_layer": False,
}


def _size(mode: str, width: int, depth: int, heads: int, neurons: int, *, pre_norm: bool) -> dict[str, Any]:
    return {
        "extractor_mode": mode,
        "extractor_conv_bias": False,
        "encoder_embed_dim": width,
        "encoder_projection_dropout": 0.1,
        "encoder_num_layers": depth,
        "encoder_use_attention": [True] * depth,
        "encoder_use_feed_forward": [True] * depth,
        "encoder_num_heads": [heads] * depth,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": [neurons] * depth,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": pre_norm,
        "encoder_layer_drop": 0.05,
        "normalize_waveform": pre_norm,
    }


_SIZES = {
    "base": _size("group_norm", 768, 12, 12, 3072, pre_norm=False),
    "large": _size("layer_norm", 1024, 24, 16, 4096, pre_norm=True),
}


class _Lightning(nn.Module):
    global_step = 10_000  # behind the ramp of the target

    def log_dict(self, values: dict[str, Any]) -> None:
        pass


def _import(checkout: Path) -> tuple[Any, Any]:
    lightning = ModuleType("pytorch_lightning")
    lightning.LightningModule = _Lightning  # type: ignore[attr-defined]
    data = ModuleType("dataset.audio_dataset")
    for name in ("BucketizeBatchSampler", "DistributedBatchSampler", "CollateFnAudio", "AudioDataset"):
        setattr(data, name, None)
    sys.modules |= {"pytorch_lightning": lightning, "dataset": ModuleType("dataset"), "dataset.audio_dataset": data}
    sys.path.insert(0, str(checkout))
    return import_module("lightning"), import_module("wav2vec2.model").wav2vec2_model


class Step:
    """One step a call. Gates of convolution channels, heads and neurons, as run.sh has them."""

    def __init__(self, checkout: Path, size: str, precision: str, device: str = "cpu") -> None:
        published, wav2vec2_model = _import(checkout)
        torch.manual_seed(0)
        self.precision, self.device = precision, torch.device(device)
        settings = {**_COMMON, **_SIZES[size]}
        teacher = wav2vec2_model(**settings)
        units = {
            "extractor_prune_conv_channels": True,
            "encoder_prune_attention_heads": True,
            "encoder_prune_feed_forward_intermediate": True,
        }
        student = wav2vec2_model(**{**settings, **units})
        student.load_state_dict(teacher.state_dict(), strict=False)
        self.parameters = sum(p.numel() for p in teacher.parameters())
        first, shared = (nn.Linear(width := settings["encoder_embed_dim"], width) for _ in range(2))
        depth = settings["encoder_num_layers"]
        self.module = published.DistillModule(
            teacher_model=teacher.requires_grad_(False).eval(),
            student_model=student,
            distill_mode="layer2layer",
            distill_layers=[0, depth // 3, 2 * depth // 3, depth],
            distill_linear_projs=nn.ModuleList([first, shared, shared, shared]),
            distill_loss=published.DistillLoss(0, 1, 1, "raw"),
            learning_rate=0.0,
            weight_decay=0.0,
            warmup_updates=15_000,
            max_updates=50_000,
            use_reg=True,
            reg_learning_rate=0.0,
            target_sparsity=0.75,
            sparsity_warmup_updates=5_000,
            tsv_dir="",
            train_subset="",
            seconds_per_batch=0.0,
            num_workers=0,
        )
        self.module.to(self.device).train()
        # Their schedule asks for an argument that torch has since dropped; a step does not need it.
        published.LinearDecayLRScheduler = lambda optimizer, **_: None
        self.optimizer = self.module.configure_optimizers()["optimizer"]

    def __call__(self, waveforms: Tensor) -> Clock:
        clock = Clock(self.device)
        lengths = torch.full((len(waveforms),), waveforms.shape[1], device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            loss = self.module.training_step((waveforms, lengths), 0)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        clock.mark("whole")
        return clock
