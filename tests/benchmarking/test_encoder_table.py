"""The tables of the encoder benchmark, and the results that are kept."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from benchmarks.encoder import paired, pretraining, table
from benchmarks.encoder.cells import STEPS

from diminuendo.families import load
from diminuendo.training.run import fingerprint


def test_a_paired_difference_is_of_clips_and_its_interval_of_speakers() -> None:
    speakers = [f"s{i}" for i in range(6)]

    def rows(*outcomes: str) -> list[dict[str, Any]]:
        """A row a seed; every speaker has the same outcomes, the last the opposite."""
        found: list[dict[str, Any]] = []
        for seed, outcome in enumerate(outcomes):
            flipped = outcome.translate(str.maketrans("01", "10"))
            probed = {"outcomes": dict.fromkeys(speakers[:-1], outcome) | {"s5": flipped}}
            found.append({"cell": {"seed": seed}, "keyword": probed, "speaker": probed})
        return found

    same = paired.difference(rows("1100"), rows("0110"), "keyword")
    assert same == (0, 0, 0)  # of every speaker as much right, though not the same clips
    mean, low, high = paired.difference(rows("1100", "1111"), rows("1100"), "keyword")
    assert mean == pytest.approx(100 * (5 - 1) * 0.25 / 6)
    assert low < mean < high == 25
    low, high = paired.difference(rows("1100"), rows("0110"), "speaker")[1:]
    assert low < 0 < high
    grouped: dict[tuple[Any, ...], Any] = {
        ("joint", 0.25, "", 1.0): rows("1111", "0000"),
        ("joint", 0.25, "less", 1.0): rows("1111"),
        ("fixed", 0.25, "", 1.0): rows("0011"),
        ("fixed", 0.5, "", 1.0): rows("0011"),
        ("fixed", 0.25, "", 0.1): rows("0011"),
    }
    lines = paired.table(grouped, lambda key: f"{key[0]} {key[2]}").splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| joint  | fixed  | 25.0% | 1 | +33.3 (")
    assert lines[3].startswith("| joint  | joint less | 25.0% | 1 | +0.0 (")
    shape = {("learned-shape-fresh", 0.25, "", 1.0): rows("1111"), ("fixed", 0.25, "", 1.0): rows("0011")}
    assert (
        paired.table(shape, lambda key: key[0])
        .splitlines()[2]
        .startswith("| learned-shape-fresh | fixed | 25.0% | 1 | +")
    )


def test_the_table_has_seeds_together_and_the_chosen_rate_alone() -> None:
    def row(rate: float, seed: int, accuracy: float) -> dict[str, Any]:
        probed = {"accuracy": accuracy, "dev_accuracy": accuracy, "low": accuracy - 0.1, "high": accuracy + 0.1}
        cell = {"method": "joint", "rate": rate, "keep": 0.25, "seed": seed, "audio": 1.0, "steps": STEPS}
        values = {"params": 1000, "cpu_seconds": 3600.0, "final_loss": 0.1, "keyword": probed, "speaker": probed}
        return values | {"cell": cell | {"ablation": ""}}

    found = {"a": row(1e-3, 0, 0.8), "b": row(1e-3, 1, 0.6), "c": row(2e-3, 0, 0.7)}
    lines = table.table(found, {"a": 10.0}).splitlines()
    assert len(lines) == 3
    assert "70.0 (60.0 to 80.0; 2 seeds, 60.0 to 80.0)" in lines[2]
    assert "| 10 | 1.00 |" in lines[2]
    shape = {"encoder.layers.0.attention.heads": 4, "encoder.layers.1.attention.heads": 2}
    found = {name: values | {"shape": shape, "full_shape": dict.fromkeys(shape, 4)} for name, values in found.items()}
    assert table.shapes(found).splitlines() == [
        "|  | Attention heads |",
        "| --- | --- |",
        "| a | 4 / 4; 2 / 4 |",
        "| b | 4 / 4; 2 / 4 |",
    ]


def test_the_results_that_are_kept_are_of_the_teacher_that_is_kept() -> None:
    kept = table.results(table.RESULTS / "encoder")
    assert {row["teacher"] for row in kept.values()} == {fingerprint(load(table.TEACHER))}
    made_with = json.loads((table.TEACHER / "run.json").read_text())["config"]
    assert {"objective": "clusters"} | made_with == json.loads(json.dumps(asdict(pretraining.PRETRAINING)))
