"""The benchmark of latency budgets, on a tiny model: the record is whole."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.families.models import Known
from benchmarks.latency import __main__ as bench
from benchmarks.latency import table

from diminuendo.structure.latency import LatencyTable
from made_up import made_up

ENCODER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
FRONT_END = {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
TINY = Known("HuBERT, tiny", "HubertConfig", "HubertModel", {**ENCODER, **FRONT_END})


@pytest.mark.parametrize("case", ["hubert-base", "hubert-base-l0+lowrank"])
def test_a_record_has_promised_and_measured_fractions(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One hiccup of a tiny model's measurement, and no budget can be met.
    monkeypatch.setattr(bench, "measure_table", lambda model, cost, **options: replace(made_up(cost), seconds=1.0))
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setitem(bench.CASES, case, replace(bench.CASES[case], model=TINY, kept=(0.8,)))
    monkeypatch.setattr("sys.argv", ["latency", case, "--runs", "1"])
    threads = torch.get_num_threads()
    try:
        bench.main()
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / f"{case}.json").read_text())
    LatencyTable.from_json(found["table"])
    assert {name.split()[0] for name in found["results"]} == set(bench.CASES[case].orders)
    for one in found["results"].values():
        assert 0 < one["promised"] <= 0.8 + 1e-4
        promised, taken = map(sum, zip(*one["parts"].values(), strict=True))
        assert promised == pytest.approx(one["promised"], abs=1e-3)
        assert taken > 0
        assert one["measured_over_promised"] == pytest.approx(one["measured"] / one["promised"], rel=1e-2)
    assert "promised 0." in capsys.readouterr().out
    rows = table.rows(tmp_path)
    assert [row[:2] for row in rows] == [[case, name] for name in found["results"]]
