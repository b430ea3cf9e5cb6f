"""A head on any encoder: its weights, its cost, its removal, and what transformers makes of it without us."""

import subprocess
import sys
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
from diminuendo.families.recogniser import with_head
from diminuendo.profiling.count import count_macs_per_second, count_parameters
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


def transducer(family: str, style: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = with_head(tiny_model(family, style, **changes), "rnnt", 10, width=24)
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


@pytest.mark.parametrize("family", COVERING)
def test_what_a_transducer_costs_is_counted_and_removal_equals_gating(family: str) -> None:
    model = transducer(family, STYLE[family])
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
