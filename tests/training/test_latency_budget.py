"""A budget in latency, end to end, with a made-up table; and the measurement, whatever it gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diminuendo import api, cli_text
from diminuendo.errors import Interrupted, UserError
from diminuendo.families import build_cost_model, family_of, load
from diminuendo.profiling.latency import Latency
from diminuendo.report import write_report
from diminuendo.structure.latency import LatencyTable
from diminuendo.training import compress as compression
from diminuendo.training import latency
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.latency import measure_table
from diminuendo.training.removing import free_axes, gateable
from diminuendo.training.two_stages import TwoStages
from made_up import made_up
from tiny import compress, interrupt, tiny_model, weights


@pytest.fixture
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables that nobody measured, and at the end twice the time that the student's MACs promise."""

    def timed(models: dict[str, Any], seconds: float, threads: int) -> dict[str, Latency]:
        costs = {name: build_cost_model(family_of(model).plain(model)) for name, model in models.items()}
        ms = {name: made_up(cost).total_ms * (2 if name == "student" else 1) for name, cost in costs.items()}
        return {name: Latency(one, one, one, seconds, threads, 20, 0.0) for name, one in ms.items()}

    monkeypatch.setattr(compression, "measure_table", lambda model, cost, **options: made_up(cost))
    monkeypatch.setattr(latency, "measure_interleaved", timed)


@pytest.mark.usefixtures("_made_up")
@pytest.mark.parametrize(
    ("method", "options"),
    [("l0", {}), ("random", {}), ("magnitude", {"rounds": 2}), ("layerdrop", {}), ("lowrank", {"round_to": 8})],
)
def test_a_latency_budget_is_met(
    method: str, options: dict[str, Any], teacher_folder: Path, audio_folder: Path, tmp_path: Path, caplog: Any
) -> None:
    asked = {"lowrank": 0.96, "layerdrop": 0.8}.get(method, 0.6)  # ranks leave the front end whole
    keep = f"latency={asked}"
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep=keep, method=method, **options)
    found = result["latency_ms"]
    assert asked - (0.11 if method == "layerdrop" else 0.02) <= found["promised_kept"] <= asked
    table = LatencyTable.from_json(json.loads((tmp_path / "small" / "latency.json").read_text()))
    assert found["promised"] == pytest.approx(found["promised_kept"] * table.total_ms)
    assert found["teacher"] == pytest.approx(table.total_ms)
    if method != "lowrank":  # the made-up table is that of dense matrices
        assert found["student"] == pytest.approx(2 * found["promised"], rel=1e-6)
    assert result["removal_error"] < 1e-4
    assert "was the machine busy?" in caplog.text


@pytest.mark.usefixtures("_made_up")
@pytest.mark.parametrize(("method", "at"), [("l0", 0), ("l0", 5), ("l0", 15), ("random", 9)])
def test_a_killed_run_goes_by_the_table_that_it_had(
    method: str, at: int, teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"keep": "latency=0.6", "method": method}
    compress(teacher_folder, audio_folder, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt(patch, at)
        if at == 0:  # before there is a checkpoint
            patch.setattr(TwoStages, "first", _die)
        with pytest.raises((Interrupted, KeyboardInterrupt)):
            compress(teacher_folder, audio_folder, tmp_path / "parts", **options)
    monkeypatch.setattr(compression, "measure_table", lambda *_, **__: pytest.fail("measured again"))
    compress(teacher_folder, audio_folder, tmp_path / "parts", **options, resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    compress(teacher_folder, audio_folder, tmp_path / "parts", **options, resume=True)  # finished
    with pytest.raises(UserError, match="not empty"):
        compress(teacher_folder, audio_folder, tmp_path / "parts", **options)


def _die(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("_made_up")
def test_promised_and_measured_latency_are_on_the_card_and_in_the_report(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep="latency=0.6", method="random")
    promised, student = (result["latency_ms"][key] for key in ("promised", "student"))
    card = (tmp_path / "small" / "README.md").read_text()
    assert f"{promised:.1f} ms" in card
    assert f"| {student:.1f} |" in card
    report = write_report([tmp_path / "small"], tmp_path / "report.html").read_text()
    assert f"Promised: {promised:.4g} ms" in report
    assert f"{student:.4g}" in report
    assert f"promised {result['latency_ms']['promised_kept']:.1%}" in cli_text.compress_text(result)


@pytest.mark.usefixtures("_made_up")
def test_with_filter_banks_what_is_kept_is_of_the_model_as_it_came(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    model = load(teacher_folder)
    whole = made_up(build_cost_model(family_of(model).plain(model))).total_ms
    options = {"keep": f"latency={whole / 4}ms", "input": "fbank", "input_steps": 1}
    result = compress(teacher_folder, audio_folder, tmp_path / "small", **options)
    found = result["latency_ms"]
    table = LatencyTable.from_json(json.loads((tmp_path / "small" / "latency.json").read_text()))
    assert table.total_ms < found["teacher"] == pytest.approx(whole)
    assert 0.2 < found["promised_kept"] <= 0.25
    assert found["promised_kept"] == pytest.approx(found["promised"] / whole)
    assert found["kept"] == pytest.approx(found["student"] / whole)


@pytest.mark.usefixtures("_made_up")
def test_a_dry_run_says_the_smallest_latency(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    result = compress(teacher_folder, audio_folder, tmp_path / "small", keep="latency=0.6", dry_run=True)
    assert not (tmp_path / "small").exists()
    assert result["smallest_possible"] < result["asked"] == pytest.approx(0.6 * result["total"])
    assert f"the smallest possible is {result['smallest_possible']:.1f} ms" in cli_text.dry_run_text(result)


@pytest.mark.usefixtures("_made_up")
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"keep": "latency=0.0001"}, "the smallest possible is latency=0."),
        ({"keep": "latency=0.001ms"}, r"the smallest possible is latency=0\.\d+ms"),
        ({"keep": "latency=90s"}, "latency=90000ms: the model takes only"),
        ({"keep": "latency=0.5", "latency_device": "tpu"}, "expected cpu or cuda"),
        ({"keep": "latency=0.5", "latency_threads": -1}, "latency_threads must be at least 1"),
    ],
    ids=str,
)
def test_a_latency_that_cannot_be_leaves_no_directory(
    options: dict[str, Any], says: str, teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        compress(teacher_folder, audio_folder, tmp_path / "small", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("family", "style", "factored"),
    [("hubert", "base", False), ("wavlm", "large", False), ("parakeet", "rnnt", False), ("hubert", "large", True)],
)
def test_what_is_measured_is_every_timed_module_at_the_sizes_of_the_cost_model(
    family: str, style: str, factored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.5)
    monkeypatch.setattr(latency, "ROUNDS", (1, 1))
    model = tiny_model(family, style)
    form = gateable(model, factored=factored, meta=True)
    cost = build_cost_model(form, free_axes(form, {"ranks"} if not factored else {"heads", "neurons", "channels"}))
    table = measure_table(model, cost, factored=factored, round_to=1, threads=1, device="cpu", quiet=True)
    assert sorted(module for curve in table.curves for module in curve.modules) == sorted(cost.modules)
    assert all(ms > 0 for curve in table.curves for ms in curve.ms)
    assert all(0 < a < b for curve in table.curves for a, b in zip(curve.macs, curve.macs[1:], strict=False))
    whole = dict(zip(cost.modules, cost.macs_by_module(cost.full_sizes).tolist(), strict=True))
    for curve in table.curves:
        assert [whole[module] for module in curve.modules] == pytest.approx([curve.macs[-1]] * len(curve.modules))
    assert min(table.rest.ms) >= 0
    assert replace(cost, table=table).total("latency") > 0


def test_a_transducer_is_timed_without_what_runs_for_labels() -> None:
    cost = build_cost_model(family_of(teacher := tiny_model("parakeet", "rnnt")).plain(teacher))
    assert not any(name.startswith(("decoder", "joint")) for name in cost.modules)


def test_latency_in_python_is_a_budget_like_any_other() -> None:
    assert api.keep_text({"latency": "40ms"}) == "latency=40ms"
    assert CompressConfig(keep="latency=40ms").budget.kept == 40.0


@pytest.mark.usefixtures("_made_up")
def test_a_damaged_table_is_said_in_one_line(teacher_folder: Path, audio_folder: Path, tmp_path: Path) -> None:
    compress(teacher_folder, audio_folder, tmp_path / "small", keep="latency=0.6")
    (tmp_path / "small" / "result.json").unlink()
    (tmp_path / "small" / "latency.json").write_text('{"total_ms": 3}')
    with pytest.raises(UserError, match=r"latency\.json is no table of latencies; start again with --overwrite"):
        compress(teacher_folder, audio_folder, tmp_path / "small", keep="latency=0.6", resume=True)
