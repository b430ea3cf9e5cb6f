"""How benchmarks train recognisers, and what they measure and keep of them."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from kaldialign import edit_distance

from benchmarks.workers import Job
from diminuendo.api import finetune, source_of
from diminuendo.data.manifest import read_cuts
from diminuendo.data.text import normalise
from diminuendo.data.tokens import load_tokens
from diminuendo.errors import UserError
from diminuendo.evaluation.recognition import recognition_errors
from diminuendo.evaluation.transcripts import Decoding, Recogniser
from diminuendo.export.huggingface import save
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.training.config import LoopConfig
from diminuendo.training.progress import Diverged
from diminuendo.training.run import fingerprint

QUIET = LoopConfig(device="cpu", quiet=True)


def best_of_runs(start: Path, runs: Mapping[Path, dict[str, Any]], words: Path, out: Path) -> dict[str, Any]:
    """Trains by each settings in turn, from the model of those before, the first from `start`; the best goes to `out`.

    Of what the runs give, and of the average of all (Wortsman et al. 2022, arXiv 2203.05482), it is the one with the
    fewest word errors on dev.
    """
    results, before = [], start
    for path, settings in runs.items():
        results.append(finetune(str(before), words, path, resume=True, loop=QUIET, **settings))
        before = path
    average = out.with_name(f"{out.name}-average")
    save_average(list(runs), average)
    dev = {path.name: errors_of(path, words, "dev")[0]["wer"] for path in (*runs, average)}
    chosen = min(dev, key=lambda name: dev[name])
    beside = out.with_name(f"{out.name}-chosen")  # what is in `out` is whole, whenever this is killed
    for path in (beside, out):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(out.with_name(chosen), beside)
    beside.rename(out)
    choice = {"settings": {path.name: settings for path, settings in runs.items()}, "dev_wer": dev, "chosen": chosen}
    return {**choice, **spent(*results)}


def save_average(models: Sequence[Path], out: Path) -> None:
    """The mean of the weights of several models, as one of their kind."""
    first, states = source_of(models[0]), [source_of(path).model.state_dict() for path in models]
    mean = {
        key: torch.stack([state[key] for state in states]).mean(0) if value.is_floating_point() else value
        for key, value in states[0].items()
    }
    first.model.load_state_dict(mean)
    out.mkdir(exist_ok=True)
    save(first.model, first.extractor, out, tokenizer=load_tokens(str(models[0]), first.model.config).tokenizer)


def told(result: dict[str, Any]) -> dict[str, Any]:
    """Of a run's result what is kept."""
    keys = ("seconds", "cpu_seconds", "accuracy", "shape", "full_shape", "expected_before_selection", "removal_error")
    return {key: result[key] for key in keys if key in result}


def spent(*results: dict[str, Any]) -> dict[str, float]:
    """Of runs that follow each other."""
    return {key: round(sum(result[key] for result in results), 1) for key in ("seconds", "cpu_seconds")}


def sizes(model: Path) -> dict[str, Any]:
    whole = source_of(model).model
    return {"params": count_parameters(whole), "macs_per_second": count_macs_per_second(whole)}


def errors_of(model: Path, words: Path, split: str, lookahead: int | None = None) -> tuple[dict[str, Any], list[int]]:
    """Word errors of a split, and how many words of each clip are wrong, in the order of their ids."""
    source = source_of(model)
    recogniser = Recogniser(source.model.eval(), source.extractor, load_tokens(str(model), source.model.config))
    cuts = read_cuts(words, split)
    result, transcripts = recognition_errors(recogniser, cuts, Decoding(lookahead=lookahead))
    del result["second"]
    texts = {cut.id: _words(cut) for cut in cuts}
    return result, [edit_distance(texts[one.id], one.text.split())["total"] for one in transcripts]


def task(data: Path) -> dict[str, Any]:
    """Who says how many words in each test clip, in the order of their ids; of a corpus made here how it was."""
    cuts = sorted(read_cuts(data, "test"), key=lambda cut: str(cut.id))
    corpus = data / "corpus.json"
    return {
        **({"corpus": json.loads(corpus.read_text())} if corpus.is_file() else {}),
        "words": [len(_words(cut)) for cut in cuts],
        "speakers": [cut.supervisions[0].speaker for cut in cuts],
    }


def _words(cut: Any) -> list[str]:
    return normalise(cut.supervisions[0].text).split()


def unless_diverged(name: str, made: Job, otherwise: dict[str, Any]) -> dict[str, Any]:
    """That a training diverges is an answer, too: then it is `otherwise` and why. Other errors are none."""
    try:
        return made()
    except Diverged as error:
        logging.exception("%s failed", name)
        return {**otherwise, "failed": str(error)}


def model_fingerprint(model: Path) -> str:
    """What tells one teacher from another."""
    return fingerprint(source_of(model).model)


def check_result(path: Path, settings: dict[str, Any], teacher: Path, known: str | None) -> None:
    """UserError if a result is of other settings, or of another teacher where its fingerprint is known."""
    found = json.loads(path.read_text())
    if found["settings"] != json.loads(json.dumps(settings)):
        raise UserError(f"{path} was made with other settings: remove it and its model")
    if known is not None and found["teacher"] != known:
        raise UserError(f"{path} has another teacher than {teacher}: remove it and its model")
