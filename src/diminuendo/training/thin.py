"""A student of a fixed shape in the place of what is left of a model: what removal has to be better than."""

from diminuendo.errors import UserError
from diminuendo.families import Model
from diminuendo.families.recogniser import head_like, with_head
from diminuendo.profiling.count import count_parameters
from diminuendo.students.deep_thin import deep_thin
from diminuendo.tasks.recognition import blank_of
from diminuendo.training.loop import Loop
from diminuendo.training.two_stages import TwoStages


def thin_student(stages: TwoStages, trainer: Loop) -> Model:
    """A student with fresh weights of the whole budget: of a recogniser its encoder is thin, its head of full width.

    Raises UserError if none is so small.
    """
    source, config, family = stages.source.model, stages.config, stages.family
    encoder, task = family.encoder(source), family.task_of(source)
    if task is not None and blank_of(source) != source.config.vocab_size - 1:
        raise UserError(
            f"--method thin: MODEL's blank is {blank_of(source)}, a new head has it last; take another method, or new "
            "--tokens"
        )
    beside = count_parameters(source) - count_parameters(encoder)
    student = deep_thin(encoder, config.budget.amount(stages.total) - beside, seed=config.seed)
    if task is not None:
        student = with_head(student, task, source.config.vocab_size - 1, **head_like(source))
    kept = count_parameters(student) / count_parameters(source)
    trainer.carried = {
        "skipped": "",
        **trainer.carried,
        "heads": {},
        "shape": None,
        "expected_before_selection": kept,
        "removal_error": None,
    }
    return student
