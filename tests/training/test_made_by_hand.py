"""Runs that train a student made by hand: what comes out, that they can be stopped, what they refuse."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Wav2Vec2CTCTokenizer

import diminuendo
from diminuendo import api
from diminuendo.errors import Interrupted, UserError
from diminuendo.export.huggingface import save
from diminuendo.given import source_of
from diminuendo.training.compress_config import CompressConfig
from diminuendo.training.own_prediction import last_head
from diminuendo.training.two_stages import TwoStages
from spoken import spoken_corpus
from tiny import CLASSES, FAST_CONFORMERS, QUIET, STYLES, extractor_of, interrupt, micro_encoder, tiny_model, weights

SETTINGS: dict[str, Any] = {"loop": QUIET, "steps": 8, "seconds_per_batch": 6.0, "tokens": "words", "round_to": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), ["ba", "du", "ki", "ba du", "du ki", "ki ba"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_encoder("parakeet", tmp_path_factory.mktemp("encoder"))


def compress(model: Path, corpus: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return api.compress_to_result(model, corpus, out, **{"keep": "params=0.5", "task": "own", **SETTINGS, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": "wide"}, "'wide' is none of a shape's"),
        ({"student": "layers=1,width=15"}, "take a multiple of"),
        ({"student": "layers=2,width=16,ffn=9999"}, "width 16 has more than .* allow more parameters"),
        ({"student": "thin", "method": "l0"}, "--method l0 makes none"),
        ({"student": "thin", "method": "student", "matching": "free"}, "matching free: .* leave one of the two out"),
        ({"method": "l0", "maps": "last", "matching": "free"}, "matching free: maps last"),
        ({"maps": "each"}, "maps 'each': expected one of shared, layer, last"),
    ],
)
def test_students_that_cannot_be_are_refused(
    settings: dict[str, Any], message: str, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compress(encoder, corpus, tmp_path / "small", task="ctc", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("text", "maps"), [("layers=1,copy=first", "last"), pytest.param("deep-thin", "layer", marks=pytest.mark.slow)]
)
def test_a_student_made_by_hand_is_trained_saved_and_the_same_when_resumed(
    text: str, maps: str, encoder: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"student": text, "maps": maps, "keep": "params=0.7", "task": "ctc"}
    result = compress(encoder, corpus, tmp_path / "whole", **settings)
    model = diminuendo.load(tmp_path / "whole")
    assert type(model).__name__ == "ParakeetForCTC"
    shape, config = result["student"], model.config.encoder_config
    assert (shape["layers"], shape["width"]) == (config.num_hidden_layers, config.hidden_size)
    assert (shape["begun_as_layers"], shape["copied"] == 1.0) == (([0], True) if maps == "last" else ([], False))
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            compress(encoder, corpus, tmp_path / "parts", **settings)
    compress(encoder, corpus, tmp_path / "parts", resume=True, **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_student_of_a_transducer_that_transformers_has_not(corpus: Path, tmp_path: Path) -> None:
    encoder = micro_encoder("hubert", tmp_path / "encoder")
    compress(encoder, corpus, tmp_path / "asr", task="rnnt", student="thin", keep="params=0.9", steps=2)
    result = compress(tmp_path / "asr", corpus, tmp_path / "small", tokens=None, student="thin", keep="params=0.8")
    model = diminuendo.load(tmp_path / "small")
    assert type(model) is type(diminuendo.load(tmp_path / "asr"))
    assert model.config.hidden_size == result["student"]["width"] < diminuendo.load(tmp_path / "asr").config.hidden_size
    assert sum(p.numel() for p in model.parameters()) == result["params"]["student"]
    assert api.evaluate(tmp_path / "small", corpus)["words"] > 0


def test_a_thin_student_of_a_model_whose_blank_is_not_last_is_refused(corpus: Path, tmp_path: Path) -> None:
    model = tiny_model("hubert", "base", ctc=True)  # whose blank is 0
    save(model, extractor_of(model), tmp_path / "asr")
    labels = {"<pad>": 0, "|": 1, **{letter: i for i, letter in enumerate("badukizos"[:9], start=2)}}
    (tmp_path / "vocab.json").write_text(json.dumps(labels))
    Wav2Vec2CTCTokenizer(tmp_path / "vocab.json", pad_token="<pad>", unk_token=None).save_pretrained(tmp_path / "asr")
    with pytest.raises(UserError, match="MODEL's blank is 0, a new head has it last"):
        compress(tmp_path / "asr", corpus, tmp_path / "small", method="student", tokens=None, keep="params=0.9")


@pytest.mark.parametrize(("text", "by_batch"), [("thin", True), ("layers=1,copy=first", False)])
def test_batch_norms_learn_statistics_in_layers_that_are_drawn_anew_and_keep_those_that_are_copied(
    text: str, by_batch: bool, encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    compress(encoder, corpus, tmp_path / "small", student=text, task="ctc", keep="params=0.8")
    model = diminuendo.load(tmp_path / "small")
    means = [module.running_mean for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert means
    assert all(bool(mean.any()) == by_batch for mean in means)


def test_a_student_with_a_recipe_of_its_name_learns_by_that_unless_another_is_named(
    encoder: Path, corpus: Path, tmp_path: Path
) -> None:
    learned = []
    for given in ({}, {"recipe": "dphubert"}):
        out = tmp_path / str(len(learned))
        api.compress_to_result(encoder, corpus, out, student="shallow-wide", keep="params=0.9", **SETTINGS | given)
        learned.append(json.loads((out / "run.json").read_text())["config"])
    assert [(one["maps"], one["cosine"], one["distil_learning_rate"]) for one in learned] == [
        ("last", "log_sigmoid", 5e-4),
        ("shared", "one_minus", 1e-4),
    ]


@pytest.mark.parametrize(("student", "layers"), [("layers=1", [0, 3]), ("layers=2", [0, 1, 3]), ("thin", [0, 1, 2, 3])])
def test_a_student_of_few_layers_learns_as_many_of_its_teacher(
    student: str, layers: list[int], teacher_folder: Path, audio_folder: Path, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"student": student, "keep": "params=0.6", "steps": 1, "distil_steps": 0}
    api.compress_to_result(teacher_folder, audio_folder, tmp_path / "small", loop=QUIET, seconds_per_batch=3.0, **given)
    assert json.loads((tmp_path / "small" / "run.json").read_text())["config"]["layers"] == layers


def test_what_diverges_is_told_the_rate_that_it_learns_at(encoder: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--set distil_learning_rate=1e-4"):
        compress(encoder, corpus, tmp_path / "small", task="ctc", student="thin", distil_learning_rate=1e30)


def test_the_new_head_of_a_student_learns_at_the_rate_of_new_heads(corpus: Path, tmp_path: Path, encoder: Path) -> None:
    compress(encoder, corpus, tmp_path / "asr", task="ctc", student="thin")
    still = {"student": "thin", "tokens": None, "distil_learning_rate": 1e-30, "weight_decay": 0.0}
    heads = []
    for rate in (1e-30, 1e-1):
        compress(tmp_path / "asr", corpus, tmp_path / f"{rate}", head_learning_rate=rate, **still)
        heads.append(diminuendo.load(tmp_path / f"{rate}").ctc_head.weight)
    assert not torch.allclose(*heads, atol=1e-2)


def test_the_weights_that_are_said_make_the_loss_of_the_terms_that_are_logged(
    encoder: Path, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights_given = {
        "regression_weight": 0.5,
        "cosine_weight": 2.0,
        "cluster_weight": 3.0,
        "num_clusters": 4,
        "torn_between": 2.0,
    }
    given = {"student": "thin", "discriminative": "projected", "cluster_seconds": 6.0, **weights_given}
    for name, more, said in (
        ("hidden", {"task": None}, "0.5 x l1 + 1 x cosine + 3 x clusters"),
        ("task", {"task": "ctc", "hidden_weight": 2.0, "task_weight": 0.1}, "1 x l1 + 2 x cosine + 6 x clusters"),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            compress(encoder, corpus, tmp_path / name, **given, **more)
        config = CompressConfig(**given, **more, method="student")
        assert f"the loss is {said}" in caplog.text
        for line in (tmp_path / name / "log.jsonl").read_text().splitlines():
            values = json.loads(line)
            total = sum(weight * values[term] for term, weight in config.term_weights.items())
            assert total == pytest.approx(values["loss"], rel=1e-5)


@pytest.mark.parametrize("foreign", ["{}", "no json", "[1]", '{"config": 3}'])
def test_what_another_tool_left_beside_a_model_is_no_pretraining(foreign: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(foreign)
    assert last_head(str(tmp_path)) is None


@pytest.mark.parametrize("family", [*CLASSES, *FAST_CONFORMERS])
def test_a_student_of_every_family_is_an_ordinary_model_of_it(family: str, audio_folder: Path, tmp_path: Path) -> None:
    teacher = tiny_model(family, next(iter(STYLES[family])))
    save(teacher, extractor := extractor_of(teacher), tmp_path / "teacher")
    given = {"student": "deep-thin", "keep": "params=0.6", "steps": 2, "round_to": 1, "loop": QUIET}
    result = api.compress_to_result(
        tmp_path / "teacher", audio_folder, tmp_path / "small", seconds_per_batch=3, **given
    )
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert "auto_map" not in config
    assert not list((tmp_path / "small").glob("*.py"))
    assert (config["hidden_size"], config["num_hidden_layers"]) == (result["student"]["width"], 3)
    assert config["hidden_size"] < teacher.config.hidden_size
    heard = extractor(0.1 * torch.randn(16_000).numpy(), sampling_rate=16_000, return_tensors="pt")
    ours = diminuendo.load(tmp_path / "small")
    theirs, known = AutoModel.from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(known[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.inference_mode():
        found, same = (model.eval()(**heard).last_hidden_state for model in (ours, theirs))
    assert found.shape[2] == config["hidden_size"]
    assert torch.equal(found, same)


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({"student": "deep-thin", "learning_rate": 1e-3, "round_to": 4, "steps": 9}, ["learning_rate", "round_to"]),
        ({"method": "magnitude", "warm_up": 0.5, "two_sided": True, "round_to": 4}, ["warm_up", "two_sided"]),
        ({"num_clusters": 9, "torn_between": 3.0, "input_steps": 5}, ["num_clusters", "torn_between", "input_steps"]),
        ({"latency_threads": 2, "task_weight": 2.0}, ["latency_threads", "task_weight"]),
        ({"keep": "latency=40ms", "latency_threads": 2, "learning_rate": 1e-3, "drop_rate": 0.1, "ramp": 0.9}, []),
        ({"student": "thin", "input": "fbank", "warm_up": 0.5, "level": 3.0}, ["level"]),
        ({"student": "thin", "input": "fbank-plain", "level": 3.0}, []),
        ({"recipe": "dphubert-fbank", "input_steps": 5, "discriminative": "projected", "num_clusters": 99}, []),
        ({"student": "deep-thin", "learning_rate": 2e-4, "maps": None, "distil_learning_rate": 1e-2}, []),
    ],
    ids=str,
)
def test_a_setting_that_nothing_uses_is_said(
    given: dict[str, Any], unused: list[str], audio_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError):
        api.compress_to_result(tmp_path / "nothing", audio_folder, tmp_path / "small", **given)
    said = [text for text in caplog.messages if "has no effect here" in text]
    assert [text.split()[0] for text in said] == unused


def test_a_dry_run_times_a_step_of_the_student_itself(
    teacher_folder: Path, audio_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[Any] = []

    def a_second(stages: TwoStages, device: torch.device, student: Any = None) -> float:
        timed.append(student)
        return 1.0

    monkeypatch.setattr(TwoStages, "time_a_step", a_second)
    given: dict[str, Any] = {"loop": QUIET, "keep": "params=0.5", "steps": 8, "distil_steps": 4, "dry_run": True}
    for more, seconds in (({}, 12), ({"input": "fbank", "input_steps": 4}, 12 + 4 * 3 / (1 + 2 * 0.5) / 4)):
        found = api.compress_to_result(
            teacher_folder, audio_folder, tmp_path / "small", student="thin", seconds_per_batch=3.0, **given | more
        )
        assert found["estimated_seconds"] == pytest.approx(seconds)
        assert timed[-1].config.hidden_size == found["student"]["width"]
    api.compress_to_result(teacher_folder, audio_folder, tmp_path / "small", seconds_per_batch=3.0, **given)
    assert timed[-1] is None


def test_the_step_that_is_timed_is_on_the_device(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, objective = source_of(teacher_folder), torch.nn.Linear(1, 1)
    stages = TwoStages(source, source, Any, CompressConfig(method="student"), Any, 1.0)  # type: ignore[arg-type]
    monkeypatch.setattr(TwoStages, "_objective", lambda *_: objective)
    monkeypatch.setattr(TwoStages, "_labelled", lambda *_: interrupted())
    monkeypatch.setattr("diminuendo.training.two_stages.look_at_one", lambda *_: None)

    def interrupted() -> None:
        raise Interrupted("before there is audio")

    with pytest.raises(Interrupted):
        stages.time_a_step(torch.device("meta"), tiny_model())
    assert objective.weight.is_meta
