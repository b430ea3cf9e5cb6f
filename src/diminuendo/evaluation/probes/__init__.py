"""What a frozen model knows: keyword and speaker accuracy of a linear head, beside floors that need no model."""

from diminuendo.evaluation.probes.features import Features, encoder_features, log_mel_features, mfcc_features
from diminuendo.evaluation.probes.probe import HeadConfig, ProbeResult
from diminuendo.evaluation.probes.run import labelled_clips, run_probe

__all__ = [
    "Features",
    "HeadConfig",
    "ProbeResult",
    "encoder_features",
    "labelled_clips",
    "log_mel_features",
    "mfcc_features",
    "run_probe",
]
