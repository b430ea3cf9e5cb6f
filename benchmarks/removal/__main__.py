"""Removal by diminuendo beside the general pruner Torch-Pruning: time, equality, latency, saving.

    python -m benchmarks.removal [--keep 0.5 0.3]

Of a HuBERT Base with random weights both remove heads, neurons and channels by their L1 norm. The general pruner goes
first: the least ratio of all layers that leaves no more than the asked MACs. Ours then gets what that left as budget.
Every kept fraction is a JSON in results/removal; python -m benchmarks.removal.table prints them.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, HubertConfig, HubertModel, Wav2Vec2FeatureExtractor

from benchmarks.record import RESULTS, record
from benchmarks.removal.ours import Removed, Remover, difference, gated, remove_members
from diminuendo.export.huggingface import save
from diminuendo.families import Model
from diminuendo.profiling.count import count_macs_per_second, count_parameters
from diminuendo.profiling.latency import measure_interleaved

REMOVALS = 3  # of each, in turn; the median counts


def base_model(seed: int = 0) -> Model:
    """transformers' defaults are HuBERT Base."""
    torch.manual_seed(seed)
    return HubertModel(HubertConfig()).eval()


def attempt(what: Callable[[], Any]) -> Any:
    """What it gives; where it fails, the first line of the error."""
    try:
        return what()
    except Exception as error:  # of any type: another's code
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def measure(model: Model, keep: float, general: Remover, seconds: float = 10.0, runs: int = 20) -> dict[str, Any]:
    """Both removals of `model` at about `keep` of its MACs, and what came of them.

    general: the general pruner's; if it fails, ours is measured alone at `keep`. seconds: of the clip that is timed.
    """
    total = count_macs_per_second(model)
    macs = keep * total
    made: dict[str, Removed] = {}
    turns: dict[str, list[dict[str, float]]] = {"general": [], "ours": []}
    found: dict[str, Any] = {"keep": keep, "clip_seconds": seconds, "runs": runs, "failed": {}}
    for _ in range(REMOVALS):
        if "general" not in found["failed"]:
            removed = attempt(lambda: _checked(general(model, keep * total)))
            if isinstance(removed, str):
                found["failed"]["general"] = removed
            else:
                made["general"], macs = removed, count_macs_per_second(removed.model)
                turns["general"].append(removed.seconds)
        made["ours"] = remove_members(model, macs)
        turns["ours"].append(made["ours"].seconds)
    models = {"original": model} | {who: removed.model for who, removed in made.items()}
    latency = measure_interleaved(models, seconds, threads=1, runs=runs)
    found["original"] = {"parameters": count_parameters(model), "p50_ms": round(latency["original"].p50_ms, 2)}
    for who, removed in made.items():
        found[who] = {
            "seconds": {part: round(statistics.median(turn[part] for turn in turns[who]), 4) for part in turns[who][0]},
            "parameters_kept": round(count_parameters(removed.model) / count_parameters(model), 4),
            "macs_kept": round(count_macs_per_second(removed.model) / total, 4),
            "p50_ms": round(latency[who].p50_ms, 2),
            "over_original": round(latency[who].p50_ms / latency["original"].p50_ms, 4),
            "difference_from_gated": attempt(partial(_difference, model, removed)),
            "transformers": attempt(partial(_through_transformers, removed.model)),
            "pickled": attempt(partial(_pickled, removed.model)),
            "kept": {name: int(members.sum()) for name, members in removed.selection.items()},
        }
    if "general" in made:
        found["ours_over_general"] = round(latency["ours"].p50_ms / latency["general"].p50_ms, 4)
        found["same_members"] = round(same_members(made["ours"], made["general"]), 4)
    return found


def same_members(a: Removed, b: Removed) -> float:
    """Of the members that both could have kept by their sizes: how many both kept. 1 where both rank alike."""
    pairs = [(a.selection[name], b.selection[name]) for name in a.selection]
    return sum(int((x & y).sum()) for x, y in pairs) / sum(min(int(x.sum()), int(y.sum())) for x, y in pairs)


def _noise() -> Tensor:
    return torch.randn(2, 32_000, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def _output(model: Model) -> Tensor:
    states: Tensor = model(_noise()).last_hidden_state
    return states


def _checked(removed: Removed) -> Removed:
    _output(removed.model)  # it runs
    return removed


def _difference(model: Model, removed: Removed) -> float:
    return difference(removed.model, gated(model, removed.selection), _noise())


def _through_transformers(model: Model) -> str:
    """Saves and loads again: "same output", or that it is another."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, Wav2Vec2FeatureExtractor(), Path(folder) / "small")
        return _compared(model, AutoModel.from_pretrained(Path(folder) / "small", trust_remote_code=True).eval())


def _pickled(model: Model) -> str:
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model, Path(folder) / "model.pt")
        return _compared(model, torch.load(Path(folder) / "model.pt", weights_only=False))


def _compared(model: Model, loaded: Model) -> str:
    return "same output" if torch.equal(_output(model), _output(loaded)) else "another output"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.removal", description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=float, nargs="+", default=[0.5, 0.3], help="fractions of the MACs")
    parser.add_argument("--runs", type=int, default=20, help="of each model, in turn")
    given = parser.parse_args()
    if importlib.util.find_spec("torch_pruning") is None:
        print("error: no general pruner to compare with: pip install --no-deps torch-pruning", file=sys.stderr)
        raise SystemExit(2)
    from benchmarks.removal import general

    torch.set_num_threads(1)
    model = base_model()
    for keep in given.keep:
        found = measure(model, keep, general.remove_ratio, runs=given.runs)
        found |= {"general_version": general.VERSION, "manual_steps": general.MANUAL_STEPS}
        print(record(RESULTS / "removal" / f"base_macs-{keep:g}.json", found), flush=True)


if __name__ == "__main__":
    main()
