"""Students made by hand: their shapes, and what they have of their teacher."""

from typing import Any

import pytest
import torch

from conformance.test_removal import gated_and_removed
from diminuendo.errors import UserError
from diminuendo.families import build, encoder_config, family_of
from diminuendo.families.filter_bank_input import with_filter_banks
from diminuendo.modules.transducer import JOINT_AXIS
from diminuendo.structure.shape import shape_of
from diminuendo.students.candidates import candidates
from diminuendo.students.shape import NAMED, StudentShape, parse_shape, solved
from diminuendo.students.student import FRONT_ENDS, Student, make_student
from families.test_inputs import check_padding_is_not_heard
from tiny import VARIANTS, audio, inputs_of, tiny_model

ENCODERS = [(family, style) for family, style in VARIANTS if style not in ("ctc", "rnnt", "tdt")]
REST = 10**9  # parameters, of any number


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def student(teacher: Any, text: str, part: float = 0.6, seed: int = 0) -> Student:
    return make_student(teacher, parse_shape(text), part * size(teacher), seed=seed)


def states(model: Any, teacher: Any) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        return family_of(model).hidden_states(model, inputs_of(teacher))


@pytest.mark.parametrize(("family", "style"), ENCODERS)
def test_a_thin_one_is_the_widest_that_fits_behind_the_front_end_of_its_teacher(family: str, style: str) -> None:
    teacher = tiny_model(family, style)
    budget = 0.6 * size(teacher)
    made = make_student(teacher, NAMED["thin"], budget)
    config, its = encoder_config(made.model), encoder_config(teacher)
    step = 8 if getattr(its, "position_embeddings_type", None) == "rotary" else 4
    wider = StudentShape(width=config.hidden_size + step)
    with pytest.raises(UserError, match="allow more parameters"):
        solved(teacher, wider, budget)
    assert size(made.model) <= budget
    full = config.intermediate_size == its.intermediate_size
    matrices = 4 if hasattr(getattr(made.model, "layers", [None])[0], "feed_forward1") or "-" in family else 2
    assert full or budget - size(made.model) < config.num_hidden_layers * (matrices * config.hidden_size + 2)
    assert type(made.model) is type(teacher)
    assert (config.num_hidden_layers, config.num_attention_heads) == (its.num_hidden_layers, its.num_attention_heads)
    assert len(states(made.model, teacher)) == 4
    own, others = made.model.state_dict(), teacher.state_dict()
    front = [name for name in others if name.startswith(FRONT_ENDS) and "subsampling.linear" not in name]
    assert all(torch.equal(own[name], others[name]) for name in front)
    assert bool(front) == (family != "wav2vec2-bert")
    assert made.layers == ()


@pytest.mark.parametrize(("family", "style"), ENCODERS)
def test_a_shallow_and_wide_one_does_what_the_first_layers_of_its_teacher_do(family: str, style: str) -> None:
    teacher = tiny_model(family, style)
    made = student(teacher, "layers=2,copy=first", 0.9)
    assert (made.layers, made.copied) == ((0, 1), 1.0)
    for own, its in zip(states(made.model, teacher)[:-1], states(teacher, teacher), strict=False):
        assert torch.equal(own, its)  # what is last has a norm behind it in models with norms before their sublayers


def test_layers_are_spread_over_the_depth_of_the_teacher() -> None:
    teacher = tiny_model(num_hidden_layers=6)
    made = student(teacher, "layers=3,copy=spread", 1.0)
    assert made.layers == (0, 2, 4)
    own, its = made.model.encoder.layers, teacher.encoder.layers
    for number, layer in enumerate(made.layers):
        assert all(
            torch.equal(value, its[layer].state_dict()[name]) for name, value in own[number].state_dict().items()
        )


@pytest.mark.parametrize(("family", "style"), ENCODERS)
def test_a_narrower_one_has_the_heads_the_neurons_and_the_width_with_the_largest_weights(
    family: str, style: str
) -> None:
    teacher = tiny_model(family, style)
    axes = {axis.name: axis for axis in family_of(teacher).axes(teacher)}
    first = next(axis for axis in axes.values() if axis.kind == "neurons")
    weights = teacher.state_dict()
    with torch.no_grad():
        for piece in first.slices:  # neurons 3 and 7 shall be the largest, and so shall be members 1 to 16 of the width
            owner = piece.members(first.size, weights[piece.parameter].shape[piece.dim or 0])
            chosen = ((owner == 3) | (owner == 7)).nonzero().flatten()
            weights[piece.parameter].index_copy_(
                piece.dim or 0, chosen, 9 + weights[piece.parameter].index_select(piece.dim or 0, chosen).abs()
            )
    made = student(teacher, "layers=2,width=16,heads=2,ffn=2")
    assert made.layers == (0, 1)
    assert made.copied > 0.6
    bias = next(piece.parameter for piece in first.slices if piece.parameter.endswith("bias"))
    assert torch.equal(made.model.state_dict()[bias], weights[bias][[3, 7]])
    assert len(states(made.model, teacher)) == 3


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "unispeech-sat", "wavlm"])
def test_of_a_narrower_one_positions_are_drawn_whole(family: str) -> None:
    """Weight norm has a gain for every tap, which fits any width, and directions, which do not."""
    teacher, shape = tiny_model(family), "layers=2,width=16,heads=2,ffn=20"
    copied, drawn = (student(teacher, text).model for text in (shape, f"{shape},copy=none"))
    assert torch.equal(*(one.encoder.pos_conv_embed.conv.weight for one in (copied, drawn)))


def test_shapes_are_read() -> None:
    assert parse_shape("layers=6, width=384,heads=6,ffn=1536,copy=first") == StudentShape(
        layers=6, width=384, heads=6, ffn=1536, copy="first"
    )
    assert parse_shape("ffn=4x").ffn == 4.0
    assert str(parse_shape("layers=6,ffn=1.5x")) == "layers=6,ffn=1.5x"
    assert parse_shape("deep-thin") == NAMED["deep-thin"]


def test_a_deep_and_thin_one_is_as_published() -> None:
    teacher = tiny_model(hidden_size=64, intermediate_size=256)
    config = student(teacher, "deep-thin", 0.5).model.config
    thin = student(teacher, "thin", 0.5).model.config
    assert config.hidden_size > thin.hidden_size
    assert config.hidden_size <= config.intermediate_size < 2 * config.hidden_size
    assert thin.intermediate_size >= 4 * thin.hidden_size


def test_of_a_shallow_and_wide_one_the_width_goes_before_neurons() -> None:
    teacher = tiny_model(hidden_size=64, intermediate_size=256, num_hidden_layers=6)
    made = student(teacher, "shallow-wide", 0.25)
    assert (made.model.config.hidden_size, made.layers) == (64, (0, 1))
    assert 64 <= made.model.config.intermediate_size < 256
    assert made.copied == 1.0
    narrow = student(teacher, "shallow-wide", 0.15).model.config  # whole heads of the teacher's, and groups, stay
    assert (narrow.hidden_size, narrow.num_attention_heads) == (48, 3)


def test_heads_and_groups_of_the_positional_convolution_both_divide_the_width() -> None:
    teacher = tiny_model(hidden_size=48, num_attention_heads=6)
    assert student(teacher, "thin").model.config.hidden_size % 12 == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wide", "'wide' is none of a shape's; expected thin, deep-thin, shallow-wide, or some of layers="),
        ("layers=two", "layers is a whole number, got 'two'"),
        ("layers=2,layers=3", "'layers=3' is none of a shape's"),
        ("depth=2", "'depth=2' is none"),
        ("layers=0", "layers must be above 0, got 0"),
        ("ffn=-1x", "ffn must be above 0, got -1x"),
        ("ffn=nanx", "ffn must be above 0, got nanx"),
        ("copy=last", "copy is one of first, spread, none, got last"),
        ("width=30", "--student width=30: heads, and what else divides the width, take a multiple of 4"),
        ("heads=5,width=32", "take a multiple of 20"),
        ("width=40,copy=first", "nothing can be copied, as width 40 is above the teacher's 32"),
        ("layers=4,copy=spread", "nothing can be copied, as layers 4 is above the teacher's 3"),
        ("width=16,heads=4,copy=first", "nothing can be copied, as heads are 4 wide, the teacher's 8"),
        ("layers=3,width=64", "width 64 has more than the 28,000 parameters that its encoder may have"),
        ("heads=1000", "take a multiple of 1000"),
        ("width=4000000000000", "width 4000000000000 has more than the"),
        ("ffn=99999999999999999999", "has more than the"),
        ("ffn=1.5", "ffn is a whole number, or like 1.5x, got '1.5'"),
        ("layers=2,heads=5,copy=first", "as width 40 is above the teacher's 32"),
    ],
)
def test_shapes_that_cannot_be_are_refused_in_one_line(text: str, says: str) -> None:
    teacher = tiny_model()
    with pytest.raises(UserError, match=says) as caught:
        make_student(teacher, parse_shape(text), size(teacher))
    assert "\n" not in str(caught.value)


def test_what_is_too_large_is_told_what_to_do_about_it() -> None:
    teacher, larger = tiny_model(), parse_shape("layers=9,width=64")
    with pytest.raises(UserError, match="as many as its teacher has; ask for fewer layers"):
        make_student(teacher, larger, size(teacher))
    with pytest.raises(UserError, match="may have; allow more parameters, or ask for fewer layers"):
        make_student(teacher, larger, size(teacher) - 1)
    with pytest.raises(UserError, match="beside its encoder a model has as much as it may; allow more parameters"):
        make_student(teacher, NAMED["thin"], -4)


def test_the_student_of_a_recogniser_is_that_of_its_encoder() -> None:
    teacher = tiny_model(ctc=True)
    students = [make_student(model, NAMED["thin"], 15_000).model for model in (teacher, teacher.hubert)]
    assert torch.equal(*(one(audio()).last_hidden_state for one in students))


def test_the_seed_decides_its_weights() -> None:
    teacher = tiny_model()
    drawn = [student(teacher, "thin", seed=seed).model.encoder.layers[0].attention.q_proj.weight for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("kind", ["heads", "neurons", "width", "sublayer"])
@pytest.mark.parametrize("ctc", [False, True])
def test_a_teacher_that_was_compressed_is_refused(ctc: bool, kind: Any) -> None:
    small = gated_and_removed(tiny_model(ctc=ctc), kind, "some").removed
    for make in (lambda: student(small, "thin"), lambda: candidates(small, REST, seconds=1.0, threads=1, runs=1)):
        with pytest.raises(UserError, match="give the original"):
            make()


def test_a_teacher_that_hears_filter_banks_is_refused() -> None:
    for ctc in (False, True):
        with pytest.raises(UserError, match="give the original"):
            student(with_filter_banks(tiny_model(ctc=ctc)), "thin")


def test_a_transducer_whose_head_alone_was_compressed_is_refused() -> None:
    def half_the_joint_network(axes: Any) -> dict[str, torch.Tensor]:
        return {axis.name: torch.arange(axis.size) < axis.size // (1 + (axis.name == JOINT_AXIS)) for axis in axes}

    teacher = tiny_model("parakeet", "rnnt")
    small = gated_and_removed(teacher, "channels", "some", choose=half_the_joint_network).removed
    assert size(small) < size(teacher)
    assert student(teacher, "thin").model
    with pytest.raises(UserError, match="give the original"):
        student(small, "thin")


@pytest.mark.parametrize(("family", "style"), ENCODERS)
def test_a_teacher_that_is_whole_though_its_class_is_ours_is_none_that_was_compressed(family: str, style: str) -> None:
    teacher = tiny_model(family, style)
    plain = family_of(teacher).plain(teacher)
    ours = build(teacher, shape_of(family_of(teacher).axes(plain)), plain.state_dict())
    assert student(ours, "thin").model.config.to_dict() == student(teacher, "thin").model.config.to_dict()
    # By another seed than the teacher's, whose weights would be drawn again.
    made, same = (student(one, "layers=1,width=32,copy=first", part=0.9, seed=7) for one in (ours, teacher))
    assert same.copied == 1.0
    for found, expected in zip(states(made.model, teacher), states(same.model, teacher), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("text", ["thin", "layers=2,width=16,heads=2,ffn=20"])
@pytest.mark.parametrize("family", ["wav2vec2-conformer", "data2vec-audio"])
def test_a_student_hears_no_padding(family: str, text: str) -> None:
    teacher = tiny_model(family, "large" if family == "wav2vec2-conformer" else "stacked")
    check_padding_is_not_heard(student(teacher, text).model)


@pytest.mark.parametrize(("text", "neurons"), [("ffn=1x", None), ("width=16", None), ("width=16,ffn=1.5x", 24)])
def test_neurons_take_what_room_is_left_unless_width_and_proportion_are_given(text: str, neurons: int | None) -> None:
    made = student(tiny_model(), text, 0.8).model.config
    proportion = parse_shape(text).ffn
    if neurons is None:
        assert made.intermediate_size > made.hidden_size * (proportion or 1)
    else:
        assert made.intermediate_size == neurons


def test_candidates_are_small_enough_and_say_what_they_cost() -> None:
    teacher = tiny_model(num_hidden_layers=6)
    rows = candidates(teacher, 0.5 * size(teacher), seconds=1.0, threads=1, runs=1)
    assert [row["student"] for row in rows] == [None, *NAMED, "layers=4", "layers=3", "layers=2"]
    assert (rows[0]["params"], rows[0]["layers"]) == (size(teacher), 6)
    for row in rows[1:]:
        made = make_student(teacher, parse_shape(row["student"]), 0.5 * size(teacher))
        assert row["params"] == size(made.model) <= 0.5 * size(teacher)
        assert (row["layers"], row["width"]) == (made.model.config.num_hidden_layers, made.model.config.hidden_size)
        assert min(row["latency_ms"], row["macs_per_second"]) > 0
    least = size(make_student(teacher, StudentShape(width=4, ffn=5), REST).model)
    few = candidates(teacher, least - 1, seconds=1.0, threads=1, runs=1)
    assert [row["student"] for row in few if "error" in row] == ["thin", "shallow-wide"]
    with pytest.raises(UserError, match="allow more parameters"):
        candidates(teacher, 100, seconds=1.0, threads=1, runs=1)
