"""Distillation with L0 or low rank, joint with recognition or not (Kumar et al., ICASSP 2025, arXiv 2502.05837).

The paper's dimensions, data, fractions and rates are not published where we could read them; all numbers are ours.
Every recipe keeps a quarter of the parameters and takes an encoder or a finished recogniser:

    diminuendo compress ENCODER DATA --recipe joint-l0 --out small/        # DATA with texts: a small RNN-T in one run
    diminuendo compress ENCODER DATA --recipe agnostic-l0 --out small/     # a small encoder; then
    diminuendo finetune small/ DATA --task ctc+rnnt --out asr/             # a recogniser on it
"""

from dataclasses import replace

from diminuendo.training.compress_config import CompressConfig, Method


def joint(method: Method) -> CompressConfig:
    """Removal, distillation of hidden states (and of posteriors, where the teacher has them) and the task, in one."""
    return replace(agnostic(method), task="own", max_seconds=20.0)


def agnostic(method: Method) -> CompressConfig:
    """Removal and distillation of hidden states: no texts are needed.

    The learning rate falls through both stages: a second rise, after removal, undoes what was learned before
    (docs/LOG.md). It is for small models and short runs; for large pretrained ones a fifth of it.
    """
    return CompressConfig(method=method, learning_rate=5e-4, warm_up=0.1, one_schedule=True, distil_warm_up=0.025)


def prune_only(method: Method) -> CompressConfig:
    """Removal and the task, without a teacher: what distillation adds is what `joint` is better by.

    The budget comes slowly, over all of the stage: else members are gone before a new head has learned what it needs
    (docs/LOG.md).
    """
    return replace(joint(method), hidden_weight=0.0, posterior_weight=0.0, ramp=1.0)


def distil_only() -> CompressConfig:
    """Distillation and the task into a thin student: what removal adds is what `joint` is better by at equal size."""
    return CompressConfig(method="student", task="own", max_seconds=20.0, distil_learning_rate=1e-3, distil_warm_up=0.1)
