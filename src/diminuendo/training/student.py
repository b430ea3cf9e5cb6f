"""A student made by hand in the place of what is left of a model: what removal has to be better than."""

from collections.abc import Sequence
from typing import Any

from diminuendo.errors import UserError
from diminuendo.families import Model, encoder_config, family_of
from diminuendo.families.filter_bank_input import FRONT_END, with_filter_banks
from diminuendo.families.recogniser import head_like, with_head
from diminuendo.profiling.count import count_parameters
from diminuendo.students.shape import StudentShape
from diminuendo.students.student import make_student, plan
from diminuendo.tasks.recognition import blank_of
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.loop import Loop
from diminuendo.training.two_stages import TwoStages


def check_student(model: Model, source: Model, config: CompressConfig, total: float) -> dict[str, Any]:
    """What it will be; UserError if none has the shape that is asked for, or is so small.

    source: the model, or the same with filter banks. total: the model's parameters.
    """
    made, layers = plan(model, *_asked(model, source, config, total))
    if family_of(model).is_recogniser(model) and blank_of(model) != model.config.vocab_size - 1:
        raise UserError(
            f"--method student: MODEL's blank is {blank_of(model)}, a new head has it last; take another method, or "
            "new --tokens"
        )
    return _described(made, layers)


def _described(config: Any, layers: Sequence[int]) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "heads": config.num_attention_heads,
        "ffn": config.intermediate_size,
        "begun_as_layers": list(layers),
    }


def student_of(stages: TwoStages, trainer: Loop) -> Model:
    """A student of the whole budget: of a recogniser its encoder has the shape, its head is of full width."""
    model, described = made_by_hand(stages)
    stages.norms_by_batch = not described["begun_as_layers"]
    trainer.carried = {
        "skipped": "",
        **trainer.carried,
        "heads": {},
        "shape": None,
        "student": described,
        "expected_before_selection": count_parameters(model) / count_parameters(stages.before.model),
        "removal_error": None,
    }
    return model


def made_by_hand(stages: TwoStages) -> tuple[Model, dict[str, Any]]:
    """The student, with the front end that learned first where it hears filter banks, and what it is like."""
    source, config, family = stages.before.model, stages.config, stages.family
    student = make_student(source, *_asked(source, stages.source.model, config, stages.total), seed=config.seed)
    made, model, task = encoder_config(student.model), student.model, family.task_of(source)
    if task is not None:
        model = with_head(model, task, source.config.vocab_size - 1, **head_like(source))
    replaced: str | tuple[str, ...] = ()
    if config.hears_filter_banks:
        replaced = FRONT_END
        model = with_filter_banks(model, plain=config.input == "fbank-plain", seed=config.seed)
        learned = family.encoder(stages.source.model).feature_extractor
        family.encoder(model).feature_extractor.load_state_dict(learned.state_dict())
    copied = student.copied_in(family.encoder(model), replaced)
    return model, _described(made, student.layers) | {"copied": copied}


def _asked(model: Model, source: Model, config: CompressConfig, total: float) -> tuple[StudentShape, float]:
    """The shape, and how many parameters the encoder may have, with the front end that the model has."""
    beside = count_parameters(source) - count_parameters(family_of(model).encoder(model))
    return config.shape, config.budget.amount(total) - beside
