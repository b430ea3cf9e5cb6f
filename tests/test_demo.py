"""The demo's story, on a small corpus with a micro model; and recipes that need no texts, end to end."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import diminuendo
from diminuendo import api, demo
from diminuendo.data.synthetic import make_corpus
from diminuendo.errors import UserError
from diminuendo.recipes import RECIPES
from diminuendo.training.config import LoopConfig
from diminuendo.training.pretrain_config import PretrainConfig
from tiny import audio

QUIET = LoopConfig(device="cpu", quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("synthetic") / "corpus", num_clips=120)


def test_a_demo_that_could_not_end_is_refused_at_once(corpus: Path, tmp_path: Path) -> None:
    settings = {"pretraining": PretrainConfig(steps=9), "loop": QUIET}
    with pytest.raises(UserError, match="give at least 2"):
        demo.demo(tmp_path / "demo", corpus, compression=api.compress_config(steps=1), **settings)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        demo.demo(tmp_path / "file", compression=api.compress_config(), **settings)


def test_the_demo_tells_its_whole_story_and_goes_on_where_it_was(corpus: Path, tmp_path: Path) -> None:
    short = {"steps": 6, "seconds_per_batch": 6.0, "round_to": 1, "keep": "params=0.7"}
    settings = {
        "pretraining": PretrainConfig(steps=9, seconds_per_batch=6.0, num_clusters=5),
        "compression": api.compress_config(**short),
        "encoder": "micro-hubert",
        "loop": QUIET,
    }
    told = demo.demo(tmp_path / "demo", corpus, **settings)
    rows = {row["model"]: row for row in told["table"]}
    assert list(rows) == [
        "teacher",
        "compressed (joint)",
        "fixed student, distilled",
        "random weights",
        "log-mel mean and deviation",
    ]
    assert rows["compressed (joint)"]["params"] <= 0.7 * rows["teacher"]["params"]
    assert rows["fixed student, distilled"]["params"] <= rows["compressed (joint)"]["params"]
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows.values())
    assert json.loads((tmp_path / "demo" / "table.json").read_text()) == told["table"]
    assert "fixed student, distilled" in Path(told["report"]).read_text()
    with torch.inference_mode():
        diminuendo.load(told["model"])(audio())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")}
    again = demo.demo(tmp_path / "demo", corpus, **settings)
    assert [row["accuracy"] for row in again["table"]] == [row["accuracy"] for row in told["table"]]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("*.safetensors")} == before


def test_a_corpus_that_the_probe_cannot_use_is_refused_before_training(audio_folder: Path, tmp_path: Path) -> None:
    pretraining, compression = demo.demo_configs(0)
    with pytest.raises(UserError, match="keyword"):
        demo.demo(tmp_path / "demo", audio_folder, pretraining=pretraining, compression=compression, loop=QUIET)
    assert not (tmp_path / "demo").exists()


def test_the_fixed_student_is_trained_as_the_compressed_one_was() -> None:
    compression = api.compress_config(
        steps=7, accumulate=3, seed=5, seconds_per_batch=2.0, precision="bf16", crop_to_shortest=False
    )
    alone = asdict(demo.distil_alone(compression))
    shared = alone.keys() & asdict(compression).keys() - {"steps", "warm_up"}
    assert {key: alone[key] for key in shared} == {key: getattr(compression, key) for key in shared}
    assert alone["steps"] == 10


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name == "dphubert" or name.startswith("agnostic")])
def test_a_tiny_recipe_runs_end_to_end(recipe: str, teacher_folder: Path, corpus: Path, tmp_path: Path) -> None:
    small = diminuendo.compress(
        teacher_folder,
        corpus,
        tmp_path / "small",
        recipe=recipe,
        keep={"params": 0.5},
        steps=4,
        seconds_per_batch=5.0,
        round_to=1,
        loop=QUIET,
    )
    teacher = diminuendo.load(teacher_folder)
    assert 0.49 <= sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in teacher.parameters()) <= 0.5
