"""diminuendo makes speech models small: give it a pretrained speech model and audio, get back a smaller, faster one."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diminuendo.api import compress, evaluate, finetune, pretrain, profile, sensitivity, stream, transcribe
    from diminuendo.errors import UserError
    from diminuendo.families import load

__all__ = [
    "UserError",
    "compress",
    "evaluate",
    "finetune",
    "load",
    "pretrain",
    "profile",
    "sensitivity",
    "stream",
    "transcribe",
]


def __getattr__(name: str) -> Any:
    # On first use, so that the command line answers --help and bad options without loading torch.
    if name == "load":
        from diminuendo.families import load

        return load
    if name == "UserError":
        from diminuendo.errors import UserError

        return UserError
    if name in __all__:
        from diminuendo import api

        return getattr(api, name)
    raise AttributeError(f"module 'diminuendo' has no attribute {name!r}")
