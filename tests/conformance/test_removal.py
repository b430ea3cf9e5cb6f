"""Removing members equals gating them: every family times every axis times the edges."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from diminuendo.families import build, build_cost_model, family_of, model_inputs
from diminuendo.pruning.budget import selected_cost
from diminuendo.pruning.factorize import multiply_back
from diminuendo.pruning.gating import Gates, attach, plain_state
from diminuendo.pruning.removal import remove
from diminuendo.structure.shape import shape_of
from diminuendo.training.removing import gateable
from tiny import VARIANTS, audio, extractor_of, tiny_model

LENGTHS = torch.tensor([8000, 5000])
KINDS = ["channels", "heads", "neurons", "groups", "sublayer", "width"]
EDGES = ["some", "minimum", "one", "first", "every sublayer of a layer", "everything that may"]


def selection_for(axes: Any, kind: str, edge: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    selection = {axis.name: torch.ones(axis.size, dtype=torch.bool) for axis in axes}
    if edge == "every sublayer of a layer":
        for axis in axes:
            if "layers.1." in axis.name and not axis.name.startswith("feature_extractor"):
                selection[axis.name][:] = False
        return selection
    chosen = [axis for axis in axes if axis.kind == kind or edge == "everything that may"]
    if edge == "first attention":
        chosen, edge = [next(axis for axis in chosen if "att" in axis.name)], "minimum"
    for axis in chosen[:1] if edge == "first" else chosen:
        keep = {"some": (axis.size + 1) // 2, "one": 1}.get(edge, axis.minimum)
        if edge == "some" and axis.kind == "sublayer":
            keep = int(torch.randint(2, (1,), generator=generator))
        members = torch.randperm(axis.size, generator=generator)[:keep]
        selection[axis.name] = torch.zeros(axis.size, dtype=torch.bool).index_fill(0, members, True)
    for axis in axes:
        if axis.parent and not selection[axis.parent].any():
            selection[axis.name][:] = False
    return selection


@dataclass(frozen=True)
class Pair:
    """A gated model and what is left of it. params: expected; width: which members of the residual stream stay."""

    gated: Any
    removed: Any
    params: float
    width: torch.Tensor | None

    def check(self, largest: float = 1e-5) -> None:
        assert max(relative_errors(self.removed, self.gated, LENGTHS, self.width)) < largest
        assert self.params == sum(p.numel() for p in self.removed.parameters())


def gated_and_removed(model: Any, kind: str, edge: str, *, low_rank: bool = False, choose: Any = None) -> Pair:
    """choose: gives the selection of axes."""
    family = family_of(model)
    gated = gateable(model, factored=low_rank)
    axes = family.axes(gated)
    cost = build_cost_model(gated)
    gates = Gates(axes, seed=3)
    with torch.no_grad():  # soft gates: what stays is scaled, and the scale must be folded in
        gates.log_alpha.uniform_(-1.0, 1.5, generator=torch.Generator().manual_seed(2))
    attach(gated, gates)
    selection = selection_for(axes, kind, edge) if choose is None else choose(axes)
    gates.evaluate(selection)
    shape = {**getattr(model.config, "diminuendo", {}).get("shape", {}), **shape_of(axes, selection)}
    state, shape = multiply_back(axes, remove(axes, plain_state(gated), selection), shape)
    removed = build(model, shape, state)
    return Pair(gated, removed, selected_cost(cost, "params", selection), selection.get("width"))


def relative_errors(one: Any, other: Any, lengths: torch.Tensor, width: torch.Tensor | None = None) -> list[float]:
    """Of every hidden state. width: which of the members that `other` has are there in `one`."""
    family = family_of(one)
    waveforms = audio(len(lengths), int(lengths.max()))
    valid_samples = torch.arange(waveforms.shape[1]) < lengths[:, None]
    inputs = model_inputs(extractor_of(one), waveforms * valid_samples, lengths)
    inputs = {key: value.to(one.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    frames = family.frame_lengths(one, lengths)
    errors = []
    with torch.inference_mode():
        for a, b in zip(family.hidden_states(one, inputs), family.hidden_states(other, inputs), strict=True):
            valid = torch.arange(a.shape[1]) < frames[:, None]
            b = b if width is None else b[..., width]
            errors.append(float((a - b)[valid].norm() / b[valid].norm()))
    return errors


def check(family_name: str, style: str, kind: str, edge: str, *, low_rank: bool = False, **changes: Any) -> None:
    gated_and_removed(tiny_model(family_name, style, **changes), kind, edge, low_rank=low_rank).check()


COVERING = [
    ("hubert", "base", "channels", "some"),
    ("hubert", "large", "channels", "some"),
    ("hubert", "large", "channels", "minimum"),
    ("wav2vec2", "base", "heads", "some"),
    ("wav2vec2", "large", "heads", "minimum"),
    ("unispeech-sat", "base", "neurons", "minimum"),
    ("unispeech-sat", "large", "neurons", "some"),
    ("hubert", "base", "groups", "one"),
    ("wav2vec2", "large", "groups", "minimum"),
    ("hubert", "base", "sublayer", "first"),
    ("hubert", "large", "sublayer", "some"),
    ("wav2vec2", "base", "sublayer", "every sublayer of a layer"),
    ("unispeech-sat", "large", "sublayer", "every sublayer of a layer"),
    ("hubert", "base", "channels", "everything that may"),
    ("hubert", "large", "channels", "everything that may"),
    ("data2vec-audio", "stacked", "channels", "some"),
    ("data2vec-audio", "stacked", "groups", "some"),
    ("data2vec-audio", "stacked", "groups", "minimum"),
    ("data2vec-audio", "stacked", "sublayer", "every sublayer of a layer"),
    ("data2vec-audio", "stacked", "channels", "everything that may"),
    ("parakeet", "encoder", "channels", "some"),
    ("parakeet", "ctc", "heads", "minimum"),
    ("parakeet", "rnnt", "sublayer", "some"),
    ("parakeet", "tdt", "neurons", "one"),
    ("parakeet", "rnnt", "channels", "everything that may"),
    ("nemotron", "encoder", "channels", "minimum"),
    ("nemotron", "rnnt", "channels", "some"),
    ("nemotron", "rnnt", "heads", "some"),
    ("nemotron", "rnnt", "sublayer", "every sublayer of a layer"),
    ("wav2vec2-conformer", "base", "channels", "some"),
    ("wav2vec2-conformer", "large", "channels", "minimum"),
    ("wav2vec2-conformer", "base", "heads", "some"),
    ("wav2vec2-conformer", "large", "heads", "some"),
    ("wav2vec2-conformer", "large", "heads", "minimum"),
    ("wav2vec2-conformer", "large", "sublayer", "some"),
    ("wav2vec2-conformer", "base", "channels", "everything that may"),
    ("wav2vec2-bert", "base", "channels", "some"),
    ("wav2vec2-bert", "large", "channels", "minimum"),
    ("wav2vec2-bert", "base", "heads", "minimum"),
    ("wav2vec2-bert", "large", "heads", "some"),
    ("wav2vec2-bert", "base", "neurons", "minimum"),
    ("wav2vec2-bert", "base", "sublayer", "some"),
    ("wav2vec2-bert", "base", "channels", "everything that may"),
    *((family, style, "width", "some") for family, style in VARIANTS),
    ("hubert", "base", "width", "minimum"),
    ("wavlm", "large", "width", "one"),
    ("parakeet", "rnnt", "width", "minimum"),
]


@pytest.mark.parametrize(("family", "style", "kind", "edge"), COVERING)
def test_removing_members_equals_gating_them(family: str, style: str, kind: str, edge: str) -> None:
    check(family, style, kind, edge)


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_removing_members_equals_gating_them_everywhere(family: str, style: str, kind: str, edge: str) -> None:
    check(family, style, kind, edge)


# A quarter of each family's matrices ends up factored; the others' ranks are so many that they are multiplied back.
COVERING_LOW_RANK = [(family, style, "ranks", "some") for family, style in VARIANTS] + [
    ("hubert", "base", "ranks", "minimum"),
    ("hubert", "large", "neurons", "minimum"),
    ("wavlm", "base", "heads", "some"),
    ("wavlm", "large", "ranks", "everything that may"),
    ("wav2vec2-conformer", "base", "channels", "minimum"),
    ("wav2vec2-bert", "base", "heads", "some"),
    ("parakeet", "ctc", "heads", "minimum"),
    ("parakeet", "encoder", "sublayer", "some"),
    ("nemotron", "rnnt", "ranks", "every sublayer of a layer"),
]


@pytest.mark.parametrize(("family", "style", "kind", "edge"), COVERING_LOW_RANK)
def test_removing_ranks_and_members_equals_gating_them(family: str, style: str, kind: str, edge: str) -> None:
    check(family, style, kind, edge, low_rank=True)


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("kind", [*KINDS, "ranks"])
@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_removing_ranks_and_members_equals_gating_them_everywhere(
    family: str, style: str, kind: str, edge: str
) -> None:
    check(family, style, kind, edge, low_rank=True)


@pytest.mark.parametrize(("family", "style"), VARIANTS)
def test_full_rank_factorisation_changes_nothing(family: str, style: str) -> None:
    model = tiny_model(family, style)
    whole, cost = gateable(model, factored=True), build_cost_model(gateable(model, factored=True, meta=True))
    assert max(relative_errors(whole, model, LENGTHS)) < 1e-5
    assert cost.total("params") == sum(p.numel() for p in family_of(model).plain(model).parameters())
    everything = torch.ones(sum(axis.size for axis in cost.axes))
    assert float(cost.expected("params", everything)) == sum(p.numel() for p in whole.parameters())


# Mixed styles exist: mHuBERT-147 has the batch norm, wav2vec2-large-960h the group norm at the large width.
MIXED: list[tuple[str, str, dict[str, Any]]] = [
    ("hubert", "base", {"conv_pos_batch_norm": True}),
    ("hubert", "base", {"feat_proj_layer_norm": False}),
    ("hubert", "base", {"num_conv_pos_embeddings": 7}),
    ("hubert", "base", {"layer_norm_eps": 0.1}),
    ("wav2vec2", "base", {"do_stable_layer_norm": True}),
    ("wav2vec2", "large", {"do_stable_layer_norm": False}),
    ("wav2vec2", "large", {"adapter_attn_dim": 6}),
    ("wav2vec2", "large", {"add_adapter": True, "output_hidden_size": 24}),
    ("unispeech-sat", "base", {"conv_bias": True, "num_hidden_layers": 1}),
    ("data2vec-audio", "stacked", {"num_conv_pos_embeddings": 1, "conv_pos_kernel_size": 7, "conv_bias": False}),
    ("data2vec-audio", "stacked", {"do_stable_layer_norm": True}),  # nothing reads it
    ("wav2vec2-conformer", "base", {"position_embeddings_type": None, "add_adapter": True, "output_hidden_size": 24}),
    ("wav2vec2-bert", "base", {"position_embeddings_type": "rotary"}),
    ("wav2vec2-bert", "base", {"position_embeddings_type": None, "hidden_act": "gelu"}),
    ("wav2vec2-bert", "base", {"add_adapter": True, "use_intermediate_ffn_before_adapter": True}),
    ("wav2vec2-conformer", "base", {"position_embeddings_type": "rotary"}),
]


@pytest.mark.parametrize(("family", "style", "changes"), MIXED, ids=str)
def test_removing_equals_gating_in_mixed_styles(family: str, style: str, changes: dict[str, Any]) -> None:
    for kind, edge in [
        ("groups", "some"),
        ("width", "some"),
        ("channels", "some"),
        ("channels", "everything that may"),
    ]:
        check(family, style, kind, edge, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "style", "changes"), MIXED, ids=str)
def test_removing_equals_gating_in_mixed_styles_everywhere(
    family: str, style: str, changes: dict[str, Any], kind: str, edge: str
) -> None:
    check(family, style, kind, edge, **changes)


@pytest.mark.parametrize(("family", "style"), [("hubert", "base"), ("hubert", "large"), ("data2vec-audio", "stacked")])
@pytest.mark.parametrize(("first", "second"), [("some", "some"), ("everything that may", "one"), ("minimum", "some")])
def test_removing_again_from_a_removed_model_equals_gating_it(family: str, style: str, first: str, second: str) -> None:
    model = tiny_model(family, style)
    once = gated_and_removed(model, "groups" if first == "some" else "heads", first).removed
    gated_and_removed(once, "groups" if second == "some" else "neurons", second).check()


def test_a_recogniser_keeps_its_head() -> None:
    model = tiny_model("wav2vec2", "large", ctc=True)
    pair = gated_and_removed(model, "channels", "some")
    gated, removed = pair.gated, pair.removed
    with torch.inference_mode():
        torch.testing.assert_close(removed(audio()).logits, gated(audio()).logits, rtol=1e-4, atol=1e-5)
    assert pair.params == sum(p.numel() for p in removed.parameters())
    assert torch.equal(removed.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(("name", "style"), [("hubert", "base"), ("data2vec-audio", "stacked")])
def test_a_plain_copy_leaves_the_original_as_it_was(name: str, style: str) -> None:
    model = tiny_model(name, style)
    family = family_of(model)
    with torch.inference_mode():
        before = model(audio()).last_hidden_state
        first, second = family.plain(model), family.plain(model)
        torch.testing.assert_close(first(audio()).last_hidden_state, before, rtol=1e-5, atol=1e-6)
        assert torch.equal(second(audio()).last_hidden_state, first(audio()).last_hidden_state)
        assert torch.equal(model(audio()).last_hidden_state, before)
