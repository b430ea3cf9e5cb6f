"""The tables of students in a document are those of the results that are kept."""

from pathlib import Path

import pytest
from benchmarks.record import RESULTS
from benchmarks.students import document

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"


def test_the_tables_of_the_document_are_those_of_the_kept_results() -> None:
    """What else is done after a result is added: `python -m benchmarks.students.document`."""
    assert DOCUMENT.read_text() == document.rewritten(DOCUMENT.read_text(), RESULTS / "students")


def test_figures_that_are_out_of_date_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, line = DOCUMENT.read_text(), "| deep and thin, waveform | 20.5 | 15.7 | 14.9 |"
    assert text.count(line) == 1
    (copy := tmp_path / "results.md").write_text(text.replace(line, "| deep and thin, waveform | 1.0 | 15.7 | 14.9 |"))
    monkeypatch.setattr("sys.argv", ["document", str(copy)])
    document.main()
    assert copy.read_text() == text


def test_every_line_of_a_table_has_its_columns() -> None:
    for head, made in document.TABLES.items():
        lines = list(made(RESULTS / "students"))
        assert lines
        assert {len(line) for line in lines} == {head.count(" | ") + 1}


def test_of_one_seed_only_comparisons_with_the_teacher_and_of_sentences_are_shown() -> None:
    shown = [line[0] for line in document.pairs(RESULTS / "students")]
    assert len(shown) == len(set(shown))
    assert all(" seeds" in title or "whole" in title or title.startswith("sentences: ") for title in shown)
    assert any("whole" in title for title in shown)
    assert any(title.startswith("sentences: ") and "whole" not in title for title in shown)


@pytest.mark.parametrize("number", [0, 2])
def test_a_document_without_one_of_the_tables_is_left_alone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy := tmp_path / "results.md").write_text(text := number * f"{document.LOSS_HEAD}\n| --- |\n\n")
    monkeypatch.setattr("sys.argv", ["document", str(copy)])
    with pytest.raises(SystemExit) as stopped:
        document.main()
    assert stopped.value.code == 2
    assert "expected one table that begins with '| word errors, %, seed 0 " in capsys.readouterr().err
    assert copy.read_text() == text


def test_a_document_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["document", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit) as stopped:
        document.main()
    assert stopped.value.code == 2
    assert "No such file" in capsys.readouterr().err
