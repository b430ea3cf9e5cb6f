"""The benchmark of removal beside a general pruner, which need not be installed."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.removal import __main__ as measuring
from benchmarks.removal import ours, table

from diminuendo.profiling.count import count_macs_per_second
from tiny import audio, tiny_model


def measure(general: ours.Remover) -> dict[str, Any]:
    found = measuring.measure(tiny_model(), 0.6, general, seconds=0.3, runs=2)
    return json.loads(json.dumps(found | {"manual_steps": ["a step"]}))  # type: ignore[no-any-return]


def test_ours_is_within_the_budget_and_equals_the_gated_model_of_its_members_alone() -> None:
    model = tiny_model()
    budget = 0.6 * count_macs_per_second(model)
    removed = ours.remove_members(model, budget)
    assert 0.9 * budget < count_macs_per_second(removed.model) <= budget
    assert ours.difference(removed.model, ours.gated(model, removed.selection), audio()) < 1e-5
    name = "encoder.layers.1.feed_forward.neurons"
    other = removed.selection | {name: removed.selection[name].flip(0)}
    assert ours.difference(removed.model, ours.gated(model, other), audio()) > 1e-3


def test_both_are_measured_and_compared() -> None:
    found = measure(ours.remove_members)  # in the place of a general pruner
    assert (found["failed"], found["same_members"]) == ({}, 1.0)
    for who in table.NAMES:
        made = found[who]
        assert 0.4 < made["macs_kept"] <= 0.6
        assert 0 < made["parameters_kept"] < 1
        assert made["difference_from_gated"] < 1e-5
        assert made["transformers"] == made["pickled"] == "same output"
        assert made["over_original"] == pytest.approx(made["p50_ms"] / found["original"]["p50_ms"], rel=0.05)
    lines = table.table([found]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == list(table.NAMES.values())
    assert "100.0% are the same" in table.notes([found])
    assert table.notes([found]).endswith("  - a step")


def test_a_general_pruner_that_fails_is_said_in_the_table() -> None:
    def fails(model: Any, macs: float) -> ours.Removed:
        raise RuntimeError("sizes differ\nand more")

    found = measure(fails)
    assert found["failed"] == {"general": "RuntimeError: sizes differ"}
    assert 0.5 < found["ours"]["macs_kept"] <= 0.6
    assert "general" not in found
    rows = [line.count(" | ") for line in table.table([found]).splitlines()]
    assert len(rows) == 4
    assert len(set(rows)) == 1


def test_members_are_the_same_as_far_as_sizes_allow() -> None:
    def kept(*members: int) -> ours.Removed:
        return ours.Removed(
            None, {"axis": torch.zeros(8, dtype=torch.bool).index_fill(0, torch.tensor(members), 1)}, {}
        )

    assert measuring.same_members(kept(0, 1), kept(0, 1, 2, 3)) == 1.0
    assert measuring.same_members(kept(0, 4), kept(0, 1, 2, 3)) == 0.5


def test_without_a_general_pruner_the_command_says_how_to_install_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["removal"])
    with pytest.raises(SystemExit) as raised:
        measuring.main()
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: no general pruner to compare with: pip install --no-deps torch-pruning"
    ]


def test_the_command_writes_what_the_table_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    monkeypatch.setattr(measuring, "base_model", tiny_model)
    monkeypatch.setattr(sys, "argv", ["removal", "--keep", "0.5", "0.6", "--runs", "2"])
    threads = torch.get_num_threads()
    measuring.main()
    torch.set_num_threads(threads)
    found = table.results(tmp_path / "removal")
    assert [result["keep"] for result in found] == [0.6, 0.5]
    for result in found:
        # Both rank the same members by the same norm, so that sizes alone could differ.
        assert (result["failed"], result["same_members"]) == ({}, 1.0)
        assert result["general"]["difference_from_gated"] < 1e-5
        assert result["general"]["pickled"] == "same output"
        assert result["general"]["transformers"].startswith("RuntimeError")
        assert result["general"]["kept"]["feature_extractor.conv_layers.0.channels"] == 8
        assert result["general"]["macs_kept"] == pytest.approx(result["ours"]["macs_kept"], abs=0.02)
    assert table.notes(found).count("\n  - ") == len(result["manual_steps"])
