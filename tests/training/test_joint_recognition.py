"""Compression and recognition in one run: the budget, the loss and its parts, teachers, recipes."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import diminuendo
from diminuendo import api
from diminuendo.errors import Interrupted, UserError
from diminuendo.families import family_of
from diminuendo.importance import taylor
from diminuendo.recipes import RECIPES
from diminuendo.training import hearing, recognition, unlearned
from diminuendo.training.hearing import Hearing
from diminuendo.training.recognition import TaughtRecognition
from spoken import spoken_corpus
from tiny import QUIET, interrupt, micro_encoder, weights

TEXTS = ["ba", "du", "ki", "ba du", "du ki", "ki ba", "ba ki du", "ki du ba"]
SETTINGS: dict[str, Any] = {
    "loop": QUIET,
    "steps": 8,
    "seconds_per_batch": 6.0,
    "tokens": "words",
    "predictor_width": 16,
    "round_to": 1,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoken_corpus(tmp_path_factory.mktemp("spoken"), TEXTS)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> dict[str, Path]:
    """Encoders, and recognisers on them."""
    folder = tmp_path_factory.mktemp("models")
    micro_encoder("hubert", folder)
    for name in ("parakeet", "nemotron"):
        micro_encoder(name, folder)
        for task in ("ctc", "rnnt"):
            settings = {key: value for key, value in SETTINGS.items() if key != "round_to"}
            api.finetune(folder / name, corpus, folder / f"{name}-{task}", task=task, **settings)
    return {path.name: path for path in folder.iterdir()}


def compress(model: Path, corpus: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return api.compress_to_result(model, corpus, out, **{"keep": "params=0.5", "task": "own", **SETTINGS, **settings})


@pytest.mark.parametrize(
    "method", ["l0", pytest.param("lowrank", marks=pytest.mark.slow), "l0+lowrank", "magnitude", "student"]
)
def test_an_encoder_becomes_a_small_recogniser_of_the_size_that_was_asked(
    method: str, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    result = compress(models["parakeet"], corpus, tmp_path / "small", method=method, keep="params=0.6")
    assert 0.5 < result["params"]["kept"] <= 0.6
    assert result["removal_error"] is None if method == "student" else result["removal_error"] < 1e-4
    model = diminuendo.load(tmp_path / "small")
    assert family_of(model).task_of(model) == "rnnt"
    assert sum(p.numel() for p in model.parameters()) == result["params"]["student"]
    assert api.evaluate(tmp_path / "small", corpus)["words"] == 15
    # What a learned loss sees may go, the predictor's width too; removal without learning leaves the head alone.
    learned = method in ("l0", "l0+lowrank")
    assert (model.decoder.lstm.hidden_size + model.joint.head.in_features < 32) or not learned
    assert model.joint.head.in_features == 16 or learned


@pytest.mark.parametrize("known", [True, False])
def test_members_matter_by_the_loss_of_a_task_that_is_known_and_by_states_where_it_is_new(
    known: bool, models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def spy(axes: Any, model: Any, values: Any, seed: int) -> Any:
        values = list(values)
        seen.extend(values[0]())
        return taylor(axes, model, values, seed)

    monkeypatch.setattr(unlearned, "taylor", spy)
    model = models["parakeet-rnnt"] if known else models["parakeet"]
    options = {"tokens": None} if known else {}
    result = compress(model, corpus, tmp_path / "small", method="taylor", keep="params=0.6", **options)
    assert 0.5 < result["params"]["kept"] <= 0.6
    assert [value.dim() for value in seen] == ([0] if known else [2] * len(seen))


@pytest.mark.parametrize("method", ["l0", pytest.param("student", marks=pytest.mark.slow)])
def test_a_stateless_predictor_is_compressed_with_its_encoder_and_by_its_posteriors(
    method: str, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    settings = {"keep": "params=0.6", "task": "rnnt", "predictor": "stateless", "method": method}
    result = compress(models["nemotron"], corpus, tmp_path / "small", **settings)
    assert 0.5 < result["params"]["kept"] <= 0.6
    model = diminuendo.load(tmp_path / "small")
    decoder = model.decoder
    widths = {decoder.embedding.embedding_dim, decoder.conv.groups, decoder.decoder_projector.in_features}
    assert len(widths) == 1
    assert (sum(widths) + model.joint.head.in_features < 32) == (method == "l0")
    assert sum(p.numel() for p in model.parameters()) == result["params"]["student"]
    assert (result["removal_error"] or 0.0) < 1e-4
    for beam in (1, 2):
        assert api.evaluate(tmp_path / "small", corpus, beam=beam)["words"] == 15
    settings = {"tokens": None, "method": method, "keep": "params=0.7"}
    compress(tmp_path / "small", corpus, tmp_path / "smaller", **settings)
    assert '"posteriors"' in (tmp_path / "smaller" / "log.jsonl").read_text()
    assert hasattr(diminuendo.load(tmp_path / "smaller").decoder, "conv")


@pytest.mark.parametrize("task", [pytest.param("ctc", marks=pytest.mark.slow), "rnnt"])
def test_a_recogniser_is_compressed_with_its_posteriors_and_the_same_again_when_resumed(
    task: str, models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"tokens": None, "width": True}
    compress(models[f"parakeet-{task}"], corpus, tmp_path / "whole", **settings)
    for at in (5, 6):  # in the joint stage, and in the second: the steps of a run are counted anew
        with monkeypatch.context() as patch:
            interrupt(patch, at)
            with pytest.raises(Interrupted):
                compress(models[f"parakeet-{task}"], corpus, tmp_path / "parts", resume=True, **settings)
    compress(models[f"parakeet-{task}"], corpus, tmp_path / "parts", resume=True, **settings)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    lines = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert all('"posteriors"' in line and '"hidden"' in line and '"task"' in line for line in lines)


def test_a_student_that_streams_learns_from_a_teacher_that_hears_whole_clips(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    settings = {"tokens": None, "teacher": models["parakeet-rnnt"], "lookaheads": (0, 1)}
    result = compress(models["nemotron-rnnt"], corpus, tmp_path / "small", **settings)
    assert result["params"]["kept"] <= 0.5
    assert '"posteriors"' in (tmp_path / "small" / "log.jsonl").read_text()
    assert api.evaluate(tmp_path / "small", corpus, lookahead=80)["clips"] == len(TEXTS)


@pytest.mark.parametrize("task", [None, "own"])
def test_a_streaming_encoder_is_distilled_from_one_that_hears_whole_clips_at_several_lookaheads(
    task: str | None, models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = set()
    original = Hearing.inputs

    def inputs(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        drawn.add(found.get("num_lookahead_tokens"))
        return found

    monkeypatch.setattr(Hearing, "inputs", inputs)
    settings = {"task": task, "tokens": None if task is None else "words", "teacher": models["parakeet"], "steps": 16}
    compress(models["nemotron"], corpus, tmp_path / "small", **settings)
    assert drawn == {0, 1, 6, 13}


def test_posteriors_of_a_head_that_is_new_or_has_other_labels_are_refused(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="MODEL's head is new and teaches nothing"):
        compress(models["parakeet"], corpus, tmp_path / "small", posterior_weight=1.0)
    with pytest.raises(UserError, match="recognises by rnnt with 4 tokens, the teacher by ctc with 4"):
        compress(models["parakeet"], corpus, tmp_path / "small", posterior_weight=1.0, teacher=models["parakeet-ctc"])
    with pytest.raises(UserError, match="no streaming model"):
        compress(models["parakeet"], corpus, tmp_path / "small", lookaheads=(0,))
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(("method", "by_batch"), [("student", True), ("l0", False)])
@pytest.mark.parametrize("task", ["rnnt", None])
def test_batch_norms_learn_statistics_where_weights_are_fresh_and_keep_them_where_they_shrink(
    models: dict[str, Path], corpus: Path, tmp_path: Path, method: str, by_batch: bool, task: str | None
) -> None:
    few = {"steps": 4, "distil_steps": 0, "seconds_per_batch": 6.0, "loop": QUIET}
    settings = few if task is None else SETTINGS | few | {"task": task, "distil_steps": 0}
    model = api.compress(
        models["parakeet"], corpus, tmp_path / "small", keep={"params": 0.9}, method=method, **settings
    )
    means = [module.running_mean for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert means
    assert all(bool(mean.any()) == by_batch for mean in means)


def test_a_recogniser_is_compressed_along_its_teachers_path(
    models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    found = {}
    for way in ("lattice", "path"):
        compress(models["parakeet-rnnt"], corpus, tmp_path / way, tokens=None, posteriors=way, steps=2)
        found[way] = [json.loads(line)["posteriors"] for line in (tmp_path / way / "log.jsonl").open()]
    assert all(min(values) > 0 for values in found.values())
    assert found["lattice"][0] != found["path"][0]


@pytest.mark.parametrize(
    ("method", "rounds", "before"), [("l0", 1, [0]), ("magnitude", 2, []), ("student", 1, [])]
)  # before: gates are tried
def test_a_flat_start_and_masks_begin_once_whatever_the_stages(
    method: str,
    rounds: int,
    before: list[int],
    models: dict[str, Path],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[int, float, bool]] = []
    logits: list[int] = []
    forward, output, inputs = TaughtRecognition.forward, recognition.output_logits, hearing.augmented
    masked: list[int] = []

    def told(self: TaughtRecognition, waveforms: Any, lengths: Any, step: int, *rest: Any) -> Any:
        masked.clear()
        scalars = forward(self, waveforms, lengths, step, *rest)
        heard.append((step, self.hearing.flat(step), bool(masked)))
        return scalars

    monkeypatch.setattr(TaughtRecognition, "forward", told)
    monkeypatch.setattr(recognition, "output_logits", lambda *given: (logits.append(1), output(*given))[1])
    monkeypatch.setattr(hearing, "augmented", lambda *given: (masked.append(1), inputs(*given))[1])
    settings = {"task": "ctc+rnnt", "flat_start": 0.5, "augment_from": 0.75, "keep": "params=0.6"}
    compress(models["parakeet"], corpus, tmp_path / "small", method=method, rounds=rounds, **settings)
    flat = [1.0, 1.0, 1.0, 0.75] + 8 * [0.0]  # of 4 steps
    assert heard == [(step, flat[step], step >= 6) for step in [*before, *range(12)]]
    assert len(logits) == 9
    stages = [json.loads(line)["stage"] for line in (tmp_path / "small" / "log.jsonl").open()]
    wanted = {"l0": 8 * ["joint"] + 4 * ["distil"], "magnitude": 4 * ["round 1"] + 8 * ["distil"]}
    assert stages == wanted.get(method, 12 * ["distil"])


def test_labels_of_another_tokenizer_teach_nothing(
    models: dict[str, Path], corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = spoken_corpus(tmp_path / "other", ["ab", "du", "zo"])
    settings = {key: value for key, value in SETTINGS.items() if key != "round_to"}
    api.finetune(models["parakeet"], other, tmp_path / "teacher", task="rnnt", **settings)
    with pytest.raises(UserError, match="4 tokens, the teacher by rnnt with 4 other"):
        compress(models["parakeet"], corpus, tmp_path / "o", posterior_weight=1.0, teacher=tmp_path / "teacher")
    with caplog.at_level(logging.INFO):
        compress(models["parakeet"], corpus, tmp_path / "small", teacher=tmp_path / "teacher")
    assert "no posteriors are learned: the student recognises by rnnt with 4 tokens, the teacher by " in caplog.text
    assert '"posteriors"' not in (tmp_path / "small" / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_weight": 0.0, "hidden_weight": 0.0, "posterior_weight": 0.0}, "there is nothing to learn"),
        ({"flat_start": 0.1, "task": None, "tokens": None}, "flat_start: there is no task"),
        ({"flat_start": 0.1, "task_weight": 0.0}, "flat_start: task_weight is 0"),
        ({"flat_start": 0.1, "task": "rnnt"}, "--task rnnt has no CTC to start with"),
        ({"flat_start": 0.1, "task": "ctc+rnnt", "ctc_weight": 0.0}, "which ctc_weight 0 leaves out"),
        (
            {"task": None, "tokens": None, "objective": "masked_prediction", "lookaheads": (0,)},
            "lookaheads: masked_prediction has those of the pretraining",
        ),
        ({"task": None, "tokens": None, "method": "student"}, "give --task own"),
        ({"method": "student", "keep": "macs=0.5"}, "--method student"),
        ({"task": None, "tokens": None, "predictor": "stateless"}, "predictor stateless: there is no task"),
        ({"predictor": "stateless"}, "predictor stateless: --task ctc has no predictor"),
        ({"task": "rnnt", "predictor": "stateless", "predictor_layers": 2}, "it has 1 layer, got predictor_layers 2"),
        ({"matching": "nearest"}, "matching 'nearest'"),
        ({"posteriors": "all"}, "posteriors 'all': expected one of lattice, path"),
        ({"posteriors": "path", "task": None}, "posteriors path: a recogniser's are learned"),
        ({"posteriors": "path", "tokens": None}, "posteriors path: MODEL recognises by ctc; expected an RNN-T"),
        ({"posteriors": "path"}, r"posteriors path: none are learned \(posterior_weight\)"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: dict[str, Any], message: str, models: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        compress(models["parakeet-ctc"], corpus, tmp_path / "small", **settings)


# Of recipes that differ by their method alone one of each method is quick.
QUICK = ("joint-l0-lowrank", "agnostic-l0", "prune-only-lowrank", "shallow-wide", "conformer-l0")


@pytest.mark.parametrize(
    "recipe", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_runs_end_to_end(
    recipe: str, models: dict[str, Path], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RECIPES[recipe]()
    own = {name: None if config.task is None else value for name, value in SETTINGS.items() if name != "loop"}
    own |= {"steps": 4, "seconds_per_batch": 6.0, "round_to": 1}
    model = models[{"conformer-l0": "parakeet-rnnt", "dphubert-fbank": "hubert"}.get(recipe, "parakeet")]
    keep = "params=0.6" if replace(config).budget.amount(1.0) == 0.25 else None
    if recipe == "conformer-l0":
        own["tokens"] = None
    result = api.compress_to_result(model, corpus, tmp_path / "small", recipe=recipe, keep=keep, loop=QUIET, **own)
    assert result["params"]["kept"] <= 0.6
    if config.task is None:
        asr = {"loop": QUIET, "steps": 4, "seconds_per_batch": 6.0, "tokens": "words", "predictor_width": 16}
        api.finetune(tmp_path / "small", corpus, tmp_path / "asr", **asr)
        assert api.evaluate(tmp_path / "asr", corpus)["words"] == 15
