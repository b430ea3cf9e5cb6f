"""Where a result says that it comes from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import record


def test_a_result_has_its_command_without_the_machines_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tmp_path)
    program = tmp_path / "benchmarks" / "encoder" / "__main__.py"
    monkeypatch.setattr(sys, "argv", [str(program), "/data/speech", "--work", "../bench", "--workers", "2"])
    found = json.loads(record.record(tmp_path / "results" / "teacher.json", {"value": 1}).read_text())
    assert found["command"] == "python -m benchmarks.encoder speech --work bench --workers 2"
    assert found["value"] == 1
    assert found["commit"] is None


def test_a_result_has_its_commit_and_says_where_files_differ_from_it(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "--quiet"], ["add", "file"], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = record.commit(tmp_path)
    (tmp_path / "inside").mkdir()
    assert record.commit(tmp_path / "inside") is None  # a copy of something else without its .git
    assert clean is not None
    assert len(clean) == 12
    (tmp_path / "file").write_text("2")
    assert record.commit(tmp_path) == f"{clean}-dirty"
    kept = tmp_path / "benchmarks" / "results" / "step.json"
    kept.parent.mkdir(parents=True)
    for text in ("1", "2"):  # a result that is measured again changes none of the code
        kept.write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        if text == "1":
            subprocess.run([*git, "commit", "--quiet", "--message", "second"], check=True)
    assert "-dirty" not in str(record.commit(tmp_path))
