"""How much a member of an axis matters, without learning it."""

from diminuendo.importance.magnitude import magnitude

__all__ = ["magnitude"]
