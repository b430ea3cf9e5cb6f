"""The students that a budget allows, and what they cost, before anyone trains one."""

import logging
from typing import Any

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.profiling.latency import measure_interleaved
from diminuendo.students.shape import NAMED, StudentShape
from diminuendo.students.student import Student, make_student

log = logging.getLogger(__name__)


def shapes_for(layers: int) -> dict[str, StudentShape]:
    """The named shapes, and in the teacher's proportions three quarters, half and a quarter of its layers."""
    fewer = dict.fromkeys(max(1, round(layers * part)) for part in (0.75, 0.5, 0.25))
    return NAMED | {str(shape): shape for shape in (StudentShape(layers=depth) for depth in fewer if depth < layers)}


def candidates(model: Model, params: float, *, seconds: float, threads: int, runs: int) -> list[dict[str, Any]]:
    """A row for the encoder of `model`, whose `student` is None, and for every student of at most `params` parameters.

    A row has the shape (`layers`, `width`, `heads`, `ffn`), `params`, `macs_per_second`, `latency_ms` (the median of
    `runs` passes over `seconds` of audio on `threads` threads, all models in turn), which of the teacher's layers it
    begins as and what share of it is `copied`. One that cannot be so small has nothing but its `error`.
    """
    encoder = family_of(model).encoder(model)
    made: dict[str, Student] = {}
    errors: list[dict[str, Any]] = []
    for name, shape in shapes_for(encoder_config(encoder).num_hidden_layers).items():
        try:
            made[name] = make_student(model, shape, params)
        except UserError as error:
            errors.append({"student": name, "error": str(error)})
    if not made:
        raise UserError(errors[0]["error"])
    models: dict[str, Model] = {"": encoder} | {name: student.model for name, student in made.items()}
    log.info("timing %d models in turn, %d passes over %g s each", len(models), runs, seconds)
    times = measure_interleaved(models, seconds, threads, runs)
    rows = []
    for name, one in models.items():
        config = encoder_config(one)
        student = made.get(name)
        rows.append(
            {
                "student": name or None,
                "layers": config.num_hidden_layers,
                "width": config.hidden_size,
                "heads": config.num_attention_heads,
                "ffn": config.intermediate_size,
                "params": count_parameters(one),
                "macs_per_second": count_macs_per_second(one),
                "latency_ms": times[name].p50_ms,
                "begun_as_layers": list(student.layers) if student else [],
                "copied": student.copied if student else None,
            }
        )
    return [*rows, *errors]
