"""diminuendo makes speech models small."""

from diminuendo.families import load

__all__ = ["load"]
