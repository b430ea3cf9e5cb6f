"""The benchmark of real models, on tiny ones: the record is whole, adds up, and the tables print."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from benchmarks import record
from benchmarks.families import __main__ as measuring
from benchmarks.families import measure, parts, removing, table
from benchmarks.families.models import MODELS, Known

from diminuendo.errors import UserError
from tiny import BASE, tiny_model

ENCODER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
FRONT_END = {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
TINY = {
    "hubert-base": Known("HuBERT, tiny", "HubertConfig", "HubertModel", {**ENCODER, **FRONT_END, **BASE}),
    "wavlm-large": Known("WavLM, tiny", "WavLMConfig", "WavLMModel", {**ENCODER, **FRONT_END, **BASE}),
    "parakeet-tdt": Known(
        "Parakeet, tiny",
        "ParakeetTDTConfig",
        "ParakeetForTDT",
        {
            "encoder_config": {**ENCODER, "subsampling_conv_channels": 16, "num_mel_bins": 32},
            "vocab_size": 11,
            "decoder_hidden_size": 8,
            "blank_token_id": 10,
        },
    ),
    "hubert-base-width": Known(
        "HuBERT, tiny, the width too", "HubertConfig", "HubertModel", {**ENCODER, **FRONT_END, **BASE}, width=True
    ),
}


@pytest.fixture(autouse=True)
def odd_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROUNDED", (1, 2))  # a tiny model has no quarter in widths of 32


@pytest.mark.parametrize("name", TINY)
def test_a_record_has_everything_and_adds_up(name: str) -> None:
    threads = torch.get_num_threads()
    try:
        found = measure.measure(TINY[name], runs=1, seconds=1.0)
    finally:
        torch.set_num_threads(threads)
    assert json.loads(json.dumps(found)) == found
    before, after = found["parameters"]["before"], found["parameters"]["after"]
    assert 0.2 < after / before <= 0.25
    assert found["removal_error"] < 1e-5
    assert found["removal_memory_bytes"] >= 0  # of a process that has had more before, nothing
    assert set(found["removal_seconds"]) >= {"plain copy", "axes and cost", "selection", "removal", "build"}
    assert set(found["median_ms"]) >= {"before", "after", "round to 1", "round to 2"}
    assert ("fast" in found["median_ms"]) == name.startswith("wavlm")
    speed_up = found["median_ms"]["before"] / found["median_ms"]["after"]
    assert found["of_promise_over_before"] == pytest.approx(speed_up * found["macs_ratio"], rel=1e-2, abs=1e-2)
    for when in ("before", "after"):
        spent = found["parts"][when]
        assert spent["seconds"].keys() == spent["gmacs"].keys() == set(parts.PARTS)
        beside = found["macs_per_second"][when] - sum(spent["gmacs"].values()) * 1e9
        # A transducer's predictor and joint network run for every label.
        assert beside > 0 if name.startswith("parakeet") else abs(beside) < 1e-3 * found["macs_per_second"][when]
        assert 0 < spent["share_without_macs"] < 1
        assert spent["gmacs"]["convolution"] > 0 or not name.startswith("parakeet")
    assert 0 < found["macs_ratio"] < 1


def test_every_part_is_found_in_models_of_every_kind() -> None:
    expected = {
        ("hubert", "base"): {"front end", "positional", "attention", "feed-forward"},
        ("data2vec-audio", "stacked"): {"front end", "positional", "attention", "feed-forward"},
        ("wav2vec2-bert", "base"): set(parts.PARTS) - {"positional", "rest"},
        ("nemotron", "encoder"): set(parts.PARTS) - {"positional", "rest"},
    }
    for (family, style), found in expected.items():
        paths = [path for path, _ in tiny_model(family, style).named_modules()]
        assert {part for path in paths if (part := parts.part_of(path))} == found
        met = [path for path in paths if parts.part_of(path)]
        assert not [path for path in met if any(path.startswith(f"{other}.") for other in met)]  # none inside another


def test_an_error_in_a_removed_model_is_seen() -> None:
    known = TINY["hubert-base"]
    gated, smaller, _ = removing.remove_a_quarter(known.make())
    assert removing.largest_error(smaller, gated.model) < 1e-5
    with torch.no_grad():
        smaller.encoder.layers[0].feed_forward.output_dense.weight *= 1.01
    assert removing.largest_error(smaller, gated.model) > 1e-5


def test_configurations_are_of_known_values() -> None:
    for known in MODELS.values():
        config: Any = getattr(transformers, known.config)
        assert set(known.changed) <= set(vars(config()))


def test_models_are_measured_once_each_in_a_process_and_the_tables_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    met: list[str] = []

    def here(name: str, runs: int) -> dict[str, Any]:
        met.append(name)
        return measure.measure(TINY[name], runs, seconds=1.0)

    monkeypatch.setattr(measuring, "in_a_process", here)
    monkeypatch.setattr(measuring, "FOLDER", tmp_path)
    monkeypatch.setattr(record, "commit", lambda checkout: "abc")
    monkeypatch.setattr(sys, "argv", ["families", *TINY, "--runs", "1"])
    for _ in range(2):
        measuring.main()
    assert met == list(TINY)
    found = table.results(tmp_path)
    assert [result["title"] for result in found] == [known.title for known in TINY.values()]
    assert all({"command", "commit", "date", "machine", "load_before"} <= result.keys() for result in found)
    assert len(table.removal(found).splitlines()) == 2 + 4
    assert len(table.speed(found).splitlines()) == 2 + 5  # WavLM beside our attention too
    assert len(table.parts(found).splitlines()) == 2 + 9
    slow = found[0] | {"of_promise_over_before": 0.5}
    assert "no MACs" in table.speed([slow])
    assert "no MACs" not in table.speed([slow | {"of_promise_over_before": 1.0}])
    other = tmp_path / "nemotron.json"
    other.write_text(json.dumps(found[0] | {"commit": "another"}))
    with pytest.raises(UserError, match="more than one commit"):
        table.results(tmp_path)
    monkeypatch.setattr(sys, "argv", ["families", "nobody"])
    with pytest.raises(SystemExit):
        measuring.main()
    assert "unknown: nobody" in capsys.readouterr().err


def test_parts_lose_time_by_their_rate_and_fast_ones_by_their_share() -> None:
    nothing = dict.fromkeys(parts.PARTS, 0.0)

    def spent(seconds: dict[str, float], gmacs: dict[str, float]) -> dict[str, dict[str, float]]:
        return {"seconds": nothing | seconds, "gmacs": nothing | gmacs}

    before = spent({"attention": 2.0, "front end": 1.0}, {"attention": 4.0, "front end": 8.0})
    half = {"attention": 2.0, "front end": 4.0}
    assert set(table.lost(before, spent({"attention": 1.0, "front end": 0.5}, half)).values()) == {0.0}
    slower = table.lost(before, spent({"attention": 1.0, "front end": 0.75}, half))
    assert {part: seconds for part, seconds in slower.items() if seconds} == {"front end": 0.25}
    # Half of the MACs at the rates of before, most of them gone where they were fast: 2.25 s where 1.5 were promised.
    gone = table.lost(before, spent({"attention": 2.0, "front end": 0.25}, {"attention": 4.0, "front end": 2.0}))
    assert {part: seconds for part, seconds in gone.items() if seconds} == {"attention": 0.5, "front end": 0.25}
