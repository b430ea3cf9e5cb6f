"""A head on any encoder: its weights, its cost, its removal, and what transformers makes of it without us."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diminuendo
from conformance.test_removal import gated_and_removed
from diminuendo.errors import UserError
from diminuendo.export.huggingface import save
from diminuendo.families import build_cost_model, family_of
from diminuendo.families.recogniser import Predictor, head_like, with_head
from diminuendo.families.transducer import rates
from diminuendo.modules.transducer import StatelessDecoder, is_stateless
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.pruning import gating
from diminuendo.pruning.gating import Gates, attach
from diminuendo.training.removing import free_axes
from tiny import VARIANTS, extractor_of, inputs_of, output_of, tiny_model

ENCODERS = [(family, style) for family, style in VARIANTS if style not in ("ctc", "rnnt", "tdt")]
# One of each file that a transducer's encoder comes from.
COVERING = ["hubert", "wavlm", "data2vec-audio", "wav2vec2-conformer", "wav2vec2-bert", "parakeet", "nemotron"]
STYLE = dict(reversed(ENCODERS))

GENERATE = """
import sys
sys.modules["diminuendo"] = None  # importing it raises
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForRNNT
for directory in sys.argv[1:]:
    model = AutoModelForRNNT.from_pretrained(directory, trust_remote_code=True).eval()
    found = model.generate(**load_file(f"{directory}/in"))
    save_file({"sequences": found.sequences, "durations": found.durations}, f"{directory}/out")
"""


def transducer(family: str, style: str, predictor: Predictor = "lstm") -> Any:
    torch.manual_seed(0)
    model = with_head(tiny_model(family, style), "rnnt", 10, width=24, predictor=predictor)
    with torch.no_grad():  # else every frame says the same
        model.joint.head.weight *= 20
        model.decoder.embedding.weight *= 20
        model.decoder.decoder_projector.weight *= 20
    return model


def states(model: Any) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        found: tuple[torch.Tensor, ...] = family_of(model).hidden_states(model, inputs_of(model))
    return found


@pytest.mark.parametrize("task", ["ctc", "rnnt"])
@pytest.mark.parametrize(("family", "style"), ENCODERS)
def test_a_recogniser_has_the_states_of_the_encoder_it_was_made_around(family: str, style: str, task: Any) -> None:
    encoder = tiny_model(family, style)
    model = with_head(encoder, task, 10, width=24)
    assert family_of(model).task_of(model) == task
    assert output_of(model).shape[-1] == 11
    for mine, its in zip(states(model), states(encoder), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_a_head_goes_around_the_encoder_of_another_recogniser_and_of_a_compressed_model() -> None:
    small = gated_and_removed(tiny_model("hubert", "base", ctc=True), "neurons", "some").removed
    for task in ("ctc", "rnnt"):
        model = with_head(small, task, 10)
        assert all(map(torch.equal, states(model), states(small)))
        assert output_of(model).shape[-1] == 11


def test_a_task_that_a_family_has_no_recogniser_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"--task tdt: hubert has no such recogniser; known: \['ctc', 'rnnt'\]"):
        with_head(tiny_model("hubert", "base"), "tdt", 10)


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
@pytest.mark.parametrize("family", COVERING)
def test_what_a_transducer_costs_is_counted_and_removal_equals_gating(family: str, predictor: Any) -> None:
    model = transducer(family, STYLE[family], predictor)
    plain = family_of(model).plain(model)
    cost = build_cost_model(plain)
    assert cost.total("params") == count_parameters(plain)
    assert cost.total("macs") == pytest.approx(count_macs_per_second(model), rel=1e-6)
    pair = gated_and_removed(model, "channels", "some")
    pair.check()
    with torch.inference_mode():
        labels = torch.tensor([[10, 1, 2], [10, 4, 5]])
        frames = [one.get_audio_features(**inputs_of(one)).pooler_output for one in (pair.removed, pair.gated)]
        logits = [
            one.joint(encoder_hidden_states=seen[:, :, None], decoder_hidden_states=one.decoder(labels)[:, None])
            for one, seen in zip((pair.removed, pair.gated), frames, strict=True)
        ]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)


def test_saved_transducers_load_again_and_generate_without_this_package(tmp_path: Path) -> None:
    models = {family: transducer(family, STYLE[family]) for family in COVERING}
    for family in ("wavlm", "parakeet", "nemotron"):
        whole = transducer(family, STYLE[family], "stateless")
        models |= {f"{family}-stateless": gated_and_removed(whole, "channels", "some").removed}
    for family, model in models.items():
        save(model, extractor_of(model), tmp_path / family)
        assert torch.equal(output_of(diminuendo.load(tmp_path / family)), output_of(model))
        save_file({name: value.contiguous() for name, value in inputs_of(model).items()}, tmp_path / family / "in")
    del models["nemotron"]  # transformers' own class, in full size: nothing of ours
    command = [sys.executable, "-c", GENERATE, *(str(tmp_path / family) for family in models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said: set[int] = set()
    for family, model in models.items():
        there, here = load_file(tmp_path / family / "out"), model.generate(**inputs_of(model))
        assert torch.equal(there["sequences"], here.sequences)
        assert torch.equal(there["durations"], here.durations)
        said |= set(here.sequences.flatten().tolist())
    assert len(said) > 3


def test_a_stateless_predictor_reads_two_labels_and_costs_what_multiplies_them() -> None:
    model = transducer("hubert", "base", "stateless")
    decoder, labels = model.decoder, torch.tensor([[10, 1, 2, 3], [10, 5, 2, 3]])
    embedded, (first, second) = decoder.embedding.weight, decoder.conv.weight[:, 0].T
    with torch.inference_mode():
        found = decoder(labels)
        for row, clip in enumerate(labels.tolist()):
            for i, (before, label) in enumerate(pairwise([10, *clip])):
                read = (embedded[before] * first + embedded[label] * second).clamp(min=0)
                torch.testing.assert_close(found[row, i], decoder.decoder_projector(read))
    assert torch.equal(found[0, 3], found[1, 3])
    assert not torch.equal(found[0, 2], found[1, 2])
    of_labels = {"decoder.conv.weight": 4.0, "decoder.decoder_projector.weight": 4.0}
    assert rates(model, 50.0) == {**of_labels, "joint.head.weight": 54.0}


@pytest.mark.parametrize("family", ["hubert", "nemotron"])
def test_a_predictor_does_not_outlive_its_head(family: str) -> None:
    stateless = transducer(family, STYLE[family], "stateless")
    assert head_like(stateless) == {"width": 24, "predictor": "stateless"}
    for model in (with_head(stateless, "rnnt", 10, width=16, layers=2), with_head(stateless, "ctc", 10)):
        assert not is_stateless(model)
        assert "predictor" not in model.config.to_dict()
    again = with_head(with_head(stateless, "ctc", 10), "rnnt", 10, **head_like(stateless))
    assert isinstance(again.decoder, StatelessDecoder)
    assert head_like(with_head(stateless, "rnnt", 10, width=16, layers=2)) == {"width": 16, "layers": 2}


def test_a_fresh_stateless_predictor_tells_labels_apart() -> None:
    torch.manual_seed(0)
    fresh = with_head(tiny_model("hubert", "base"), "rnnt", 255, width=256, predictor="stateless")
    with torch.inference_mode():
        found = fresh.decoder(torch.arange(256)[:, None])
    assert 0.1 < found.std(0).mean() < 1


@pytest.mark.parametrize("predictor", ["lstm", "stateless"])
def test_members_of_a_head_that_are_drawn_shut_may_be_left_out(predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "PRESENT_MULTIPLE", 1)
    model = family_of(one := transducer("parakeet", "encoder", predictor)).plain(one)
    gates = Gates(free_axes(model, ("width",), head=True))
    attach(model, gates)
    with torch.no_grad():
        gates.log_alpha.uniform_(-1.5, 1.0, generator=torch.Generator().manual_seed(0))
    gates.sample(0)
    sizes, found = set(), []
    for left_out in (False, True):
        gates.set(gates.values.detach(), leave_out=left_out)
        sizes.add(tuple(model.decoder.decoder_projector.weight.shape))
        with torch.inference_mode():
            found.append(
                model.joint(model.decoder(torch.tensor([[10, 1, 2]])), model.encoder_projector(torch.ones(32)))
            )
    torch.testing.assert_close(*found)
    assert len(sizes) == 2
