"""The tables of students in a document are those of the results that are kept."""

import json
from pathlib import Path

import pytest
from benchmarks.record import RESULTS
from benchmarks.students import document
from benchmarks.students.cells import Cell, Encoder, first

Tables = dict[str, list[document.Line]]
DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


@pytest.fixture(scope="module")
def kept() -> Tables:
    return document.tables(RESULTS / "students")


def test_the_tables_of_the_document_are_those_of_the_kept_results(kept: Tables) -> None:
    """What else is to be done when results are added: `python -m benchmarks.students.document`."""
    assert DOCUMENT.read_text() == document.rewritten(DOCUMENT.read_text(), kept)


def test_figures_that_are_out_of_date_are_made_anew(
    kept: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, line = DOCUMENT.read_text(), "| deep and thin, waveform | 20.5 | 15.7 | 14.9 |"
    assert text.count(line) == 1
    (tmp_path / "docs").mkdir()
    copy = tmp_path / "docs" / "results.md"
    copy.write_text(text.replace(line, "| deep and thin, waveform | 1.0 | 15.7 | 14.9 |"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["document"])
    monkeypatch.setattr(document, "tables", lambda folder: kept)
    document.main()
    assert copy.read_text() == text


def test_every_line_of_a_table_has_its_columns(kept: Tables) -> None:
    for head, lines in kept.items():
        assert lines
        assert {len(line) for line in lines} == {head.count(" | ") + 1}


def test_a_pair_is_shown_once_and_of_one_seed_only_beside_the_teacher_and_of_sentences(kept: Tables) -> None:
    shown = [line[0] for line in kept[document.PAIRS_HEAD]]
    assert all(" seeds" in title or "whole" in title or title.startswith("sentences: ") for title in shown)
    assert any("whole" in title for title in shown)
    assert any(title.startswith("sentences: ") and "whole" not in title for title in shown)
    best = "pruned jointly, regression, waveform, than shallow and wide, regression, waveform, 3 seeds"
    assert [best in shown, f"longer: {best}" in shown] == [True, True]
    assert "regression, waveform: shallow and wide than pruned jointly, 3 seeds" not in shown


def test_tables_of_made_up_results(tmp_path: Path) -> None:
    errors = {"deep-thin": 1, "shallow-wide": 2, "pruned": 3}
    cells = [*first(), Cell(Encoder("pruned", "regression", "waveform", 1)), Cell(Encoder("pruned", "both"), "tenth")]
    cells += [Cell(Encoder("pruned", "regression"), "tenth"), Cell(Encoder("deep-thin", "regression"), "sentences")]
    cells += [Cell(Encoder("pruned", "regression"), "sentences")]
    for cell in cells:
        encoder = cell.encoder
        wrong = errors.get(encoder.student, 0) + (encoder.loss == "both") + 2 * encoder.seed
        wer = {"wer": wrong / 10, "wer_low": 0.0, "wer_high": 0.5, "errors": [wrong, 0, 0, 0, 0, 0]}
        row = {"cell": cell.as_dict(), "params": 1000 + encoder.seed, "macs_per_second": 2e6, "cpu_seconds": 60.0}
        dev = {"deep-thin": 0.3, "shallow-wide": 0.2, "pruned": 0.1}.get(encoder.student, 0.0)
        row |= {"wer": wer, "dev_wer": dev + 0.01 * (encoder.loss != "regression")}
        (tmp_path / f"{cell.name}.json").write_text(json.dumps(row))
    said = {"words": [10, 0, 0, 0, 0, 0], "speakers": [*"aabbcc"]}
    for name in ("task", "task-sentences"):
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    times = {"deep-thin_waveform": 4.0, "pruned_regression_waveform_seed-0": 2.0, "whole_waveform": 8.0}
    times |= {
        "pruned_both_waveform_seed-0": 2.0,
        "pruned_discriminative_waveform_seed-0": 1.0,
        "pruned_regression_waveform_seed-1": 3.0,
    }
    latency = {f"{name}@{threads}": time / threads for name, time in times.items() for threads in (1, 2)}
    (tmp_path / "latency.json").write_text(json.dumps({"p50_ms": latency}))

    made = document.tables(tmp_path)
    by_loss, by_best, pairs, tenth = (made[head] for head in document.TABLES)
    assert [list(line) for line in by_loss[:3]] == [
        ["deep and thin, waveform", "10.0", "10.0", "20.0", "4.0"],
        ["shallow and wide, waveform", "20.0", "20.0", "30.0", ""],
        ["pruned jointly, waveform", "30.0", "30.0", "40.0", "2.0, 1.0, 2.0"],  # of seed 0, as the errors
    ]
    assert list(by_best[0]) == ["the teacher, whole", "1,000", "2", "8.0 / 4.0", "0.0 (0.0 to 50.0)", "", "", ""]
    assert list(by_best[1]) == [
        "pruned jointly, regression, waveform",
        "1,000",  # the mean of 1,000 and 1,001, rounded to even
        "2",
        "2.5 / 1.2",
        "40.0 (0.0 to 50.0; 2 seeds, 30.0 to 50.0)",
        "",
        "",
        "30.0 (0.0 to 50.0)",
    ]
    (beside,) = [line for line in pairs if line[0].startswith("sentences: ")]
    assert beside[0] == "sentences: pruned jointly, regression, waveform, than deep and thin, regression, waveform"
    assert beside[1].startswith("+20.0 (")
    assert beside[3] == "38%"
    assert [line[:2] for line in tenth] == [
        ("pruned jointly, regression, waveform", "30.0 (0.0 to 50.0)"),
        ("pruned jointly, both, waveform", "40.0 (0.0 to 50.0)"),
    ]
    assert tenth[0][2] == ""
    assert tenth[1][2].startswith("+10.0 (")


@pytest.mark.parametrize("number", [0, 2])
def test_a_document_without_one_of_the_tables_is_left_alone(
    number: int, kept: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy := tmp_path / "results.md").write_text(text := number * f"{document.LOSS_HEAD}\n| --- |\n\n")
    monkeypatch.setattr("sys.argv", ["document", str(copy)])
    monkeypatch.setattr(document, "tables", lambda folder: kept)
    with pytest.raises(SystemExit) as stopped:
        document.main()
    assert stopped.value.code == 2
    expected = f"expected one table that begins with {document.LOSS_HEAD!r}; found {number}\n"
    assert capsys.readouterr().err.endswith(expected)
    assert copy.read_text() == text


def test_a_table_may_be_the_last_thing_in_a_document() -> None:
    before, after = (f"a\n\n| b |\n| --- |\n| {value} |\n" for value in ("old", "new"))
    assert document.rewritten(before, {"| b |": [["new"]]}) == after


def test_a_document_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["document", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit) as stopped:
        document.main()
    assert stopped.value.code == 2
    assert "No such file" in capsys.readouterr().err
