"""How much a member of an axis matters, without learning it."""

from diminuendo.importance.magnitude import magnitude
from diminuendo.importance.order import at_random, whole_layers
from diminuendo.importance.ranks import Scores
from diminuendo.importance.taylor import taylor

__all__ = ["Scores", "at_random", "magnitude", "taylor", "whole_layers"]
