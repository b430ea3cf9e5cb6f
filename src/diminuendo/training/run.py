"""The output directory of a run: what it is, what it has logged, whether it is finished."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from safetensors.torch import save as serialised
from torch import Tensor

from diminuendo.data.manifest import total_seconds
from diminuendo.errors import UserError
from diminuendo.export.huggingface import TOKENIZER_FILES, travelling_files
from diminuendo.families import FAMILIES, Model
from diminuendo.structure.latency import LatencyTable
from diminuendo.training.checkpoint import clear_on_full_disk, is_full

log = logging.getLogger(__name__)

# All that a run writes; --overwrite removes these and nothing else. run.json goes last: it says that the rest is ours.
_OURS = (
    "result.json",
    "log.jsonl",
    "checkpoint.pt",
    "checkpoint.tmp",
    "tensorboard",
    ".saving",
    "config.json",
    "model.safetensors",
    "clusters.safetensors",
    "best_rq.safetensors",
    "centres.safetensors",
    "preprocessor_config.json",
    "README.md",
    "report.html",
    "latency.json",
    *TOKENIZER_FILES,
    "generation_config.json",
    *sorted(
        {
            file.name
            for family in FAMILIES.values()
            for architecture in family.architectures
            for file in travelling_files(architecture)
        }
    ),
    "run.json",
)


def write_json(path: Path, value: Any) -> None:
    """Written beside, then renamed."""
    beside = path.with_name(path.name + ".tmp")
    with clear_on_full_disk(path):
        beside.write_text(json.dumps(value, indent=2) + "\n")
        os.replace(beside, path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str] | None = None) -> None:
    """As safetensors with `about` as metadata; written beside, then renamed. Whoever may read other files may read it,
    which is not so of safetensors' save_file."""
    beside = path.with_name(path.name + ".tmp")
    with clear_on_full_disk(path):
        beside.write_bytes(serialised({name: value.contiguous() for name, value in tensors.items()}, about))
        os.replace(beside, path)


@dataclass
class Run:
    """One run in its directory. `identity` says what the run is: a checkpoint of another one is refused.

    defaults: of settings; a run that was begun before there was a setting has its default. table: the latencies that it
    goes by, kept with it: nothing that a resumed run does may depend on the clock.
    """

    directory: Path
    identity: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    table: LatencyTable | None = None
    result: dict[str, Any] | None = field(default=None, init=False)

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoint.pt"

    @property
    def log(self) -> Path:
        return self.directory / "log.jsonl"

    @property
    def latency(self) -> Path:
        return self.directory / "latency.json"

    def check(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Whether `open` would be possible, as far as that can be known without writing. UserError as it has them."""
        if resume and overwrite:
            raise UserError("--resume and --overwrite contradict each other: give one of them")
        if self.directory.is_file():
            raise UserError(f"--out {self.directory} is a file; expected a directory")
        if overwrite:
            if (found := self._ours()) and "run.json" not in found:
                raise UserError(
                    f"--overwrite: {self.directory} holds {found[0]}, which no run of ours wrote (no run.json); "
                    "give another --out, or remove it yourself"
                )
        elif self.directory.is_dir() and any(path.suffix != ".tmp" for path in self.directory.iterdir()):
            if not resume:
                raise UserError(
                    f"--out {self.directory} exists and is not empty: give another directory, "
                    "--resume to continue the run in it, or --overwrite to replace it"
                )
            self._check_identity()
        there = next(path for path in (self.directory, *self.directory.absolute().parents) if path.exists())
        if not os.access(there, os.W_OK):
            raise UserError(f"--out {self.directory}: {there} cannot be written; give a directory that you may write")

    def open(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Makes the directory ready.

        UserError if it is not empty (without `resume` or `overwrite`), holds another run or, to be overwritten, such
        files as no run wrote, or cannot be written.
        """
        self.check(resume=resume, overwrite=overwrite)
        for name in self._ours() if overwrite else ():
            path = self.directory / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with clear_on_full_disk(self.directory / "run.json"):
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
                if not (self.directory / "run.json").is_file():
                    write_json(self.directory / "run.json", {**self.identity, "versions": versions()})
                if self.table is not None and not self.latency.is_file():
                    write_json(self.latency, self.table.to_json())
            except OSError as error:
                if is_full(error):
                    raise
                raise UserError(
                    f"--out {self.directory} cannot be written ({error.strerror}); give a directory that you may write"
                ) from error

    def _ours(self) -> list[str]:
        return [name for name in _OURS if (self.directory / name).exists()]

    def kept_table(self) -> LatencyTable | None:
        """The latencies that the run in the directory goes by, if they have been measured."""
        if not self.latency.is_file():
            return None
        try:
            return LatencyTable.from_json(_read_json(self.latency))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.latency} is no table of latencies; start again with --overwrite") from error

    def open_on(self, accelerator: Any, *, resume: bool = False, overwrite: bool = False) -> None:
        """`open`, by the first of several processes; with `resume`, `result` is set if the run is finished already."""
        if accelerator.is_main_process:
            self.open(resume=resume, overwrite=overwrite)
        accelerator.wait_for_everyone()
        self.read_result()
        if self.result is not None:
            self.checkpoint.unlink(missing_ok=True)  # left by a kill after the result was written

    def read_result(self) -> None:
        finished = self.directory / "result.json"
        if finished.is_file():
            self.result = _read_json(finished)

    def _check_identity(self) -> None:
        path = self.directory / "run.json"
        if not path.is_file():
            raise UserError(
                f"--resume: {self.directory} holds no run (no run.json); give the --out of the run to continue"
            )
        found = _read_json(path)
        if (made_with := found.pop("versions", {})) != versions():
            log.warning(
                "--resume: the run was begun with %s, this is %s: it may go on otherwise", made_with, versions()
            )
        found["config"] = json.loads(json.dumps(self.defaults)) | found.get("config", {})
        there, here = _flat(found), _flat(json.loads(json.dumps(self.identity)))
        for key in {**there, **here}:
            # One model may be named in two ways; its fingerprint counts.
            if key != "source" and there.get(key) != here.get(key):
                raise UserError(
                    f"--resume: {self.directory} holds another run: its {key} is {there.get(key)!r}, "
                    f"this one's {here.get(key)!r}; give the same, or another --out"
                )

    def truncate_log(self, total_step: float) -> None:
        """Forgets what was logged after the checkpoint, which will be logged again."""
        if not self.log.is_file():
            return
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["total_step"] <= total_step]
        beside = self.log.with_name(self.log.name + ".tmp")
        with clear_on_full_disk(self.log):
            beside.write_text("".join(line + "\n" for line in kept))
            os.replace(beside, self.log)

    def last_logged(self, name: str) -> float | None:
        """A figure as the log has it last; None where it has none."""
        lines = map(json.loads, self.log.read_text().splitlines() if self.log.is_file() else ())
        return next((line[name] for line in reversed([*lines]) if name in line), None)

    def append(self, line: Mapping[str, Any]) -> None:
        with clear_on_full_disk(self.log), self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Keeps the result and drops the checkpoint: the run is done."""
        write_json(self.directory / "result.json", result)
        self.checkpoint.unlink(missing_ok=True)
        self.result = result


def versions() -> dict[str, str]:
    """Of what a run's results depend on beside its identity."""
    return {name: version(name) for name in ("diminuendo", "torch", "transformers")}


def defaults_of(config: Any) -> dict[str, Any]:
    """The defaults of a configuration's settings, where they have one."""
    return {setting.name: setting.default for setting in fields(config) if setting.default is not MISSING}


def clips_of(cuts: CutSet) -> dict[str, Any]:
    """What an identity says of the audio; nothing of a lazy set, which would have to be read through."""
    seconds = total_seconds(cuts)
    return {
        "clips": None if cuts.is_lazy else len(cuts),
        "clip_seconds": None if seconds is None else round(seconds, 3),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); start again with --overwrite") from error
    return found


def _flat(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity with its settings as entries of their own, so that one that differs can be named."""
    settings = {f"config.{name}": value for name, value in identity.get("config", {}).items()}
    return {key: value for key, value in identity.items() if key != "config"} | settings


def fingerprint(model: Model) -> str:
    """A checksum of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
