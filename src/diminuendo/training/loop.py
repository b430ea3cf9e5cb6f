"""The training loop that every long command shares: one stage, resumable to the bit, on one process or many."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from lhotse import CutSet
from torch import nn

from diminuendo.data.audio import Skipped
from diminuendo.data.batching import Batch, TrainingBatches
from diminuendo.errors import Interrupted, UserError
from diminuendo.training.checkpoint import clear_on_full_disk, load_checkpoint, save_checkpoint
from diminuendo.training.config import LoopConfig, TrainingConfig
from diminuendo.training.device import make_accelerator
from diminuendo.training.kernels import convolution_chosen
from diminuendo.training.progress import Meter, StageProgress
from diminuendo.training.run import Run
from diminuendo.training.schedules import Schedule

Texts = Sequence[Sequence[int]]
"""Of every clip the ids of its labels."""

LOG_SECONDS = 60.0
CHECKPOINT_SECONDS = 600.0


@dataclass(frozen=True)
class Group:
    """Parameters with a learning rate and a schedule (a factor for every step) of their own.

    `clipped` groups share one gradient norm; `maximize` ascends.
    """

    parameters: Sequence[nn.Parameter]
    learning_rate: float
    schedule: Schedule
    weight_decay: float = 0.0
    maximize: bool = False
    clipped: bool = True


@dataclass(frozen=True)
class Stage:
    """`module(waveforms, lengths, step, draw)` gives scalars, the one to minimise under `loss`; `step` is the run's.

    offset: steps of the stages before. after_step: called after every optimiser step.
    texts: of a batch, the clips that can be used, and what they say, which the module is given too. rate: the setting
    that says how fast it learns.
    """

    name: str
    steps: int
    module: nn.Module
    groups: Sequence[Group]
    offset: int = 0
    after_step: Callable[[], None] = lambda: None
    texts: Callable[[Batch], tuple[Batch, Texts]] | None = None
    rate: str = "learning_rate"

    def take(self, batches: Iterator[Batch]) -> tuple[Batch, tuple[Texts, ...]]:
        """The next batch of which a clip can be used."""
        for batch in batches:
            if self.texts is None:
                return batch, ()
            batch, texts = self.texts(batch)
            if texts:
                return batch, (texts,)
        raise AssertionError("training batches do not end")


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of tearing a step apart; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    old = signal.signal(signal.SIGINT, handler)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, old)


class Loop:
    """Runs the stages of one run, from its last checkpoint on. `carried` is what later stages need of earlier ones."""

    def __init__(self, run: Run, training: TrainingConfig, config: LoopConfig, accelerator: Accelerator) -> None:
        self.run, self.training, self.config, self.accelerator = run, training, config, accelerator
        saved = load_checkpoint(run.checkpoint)
        self.saved: dict[str, Any] = saved if saved is not None else {}
        if accelerator.is_main_process:
            run.truncate_log(self.saved.get("total_step", -math.inf))
        self.carried: dict[str, Any] = self.saved.get("carried", {})
        self.skipped = Skipped()  # of all stages, so that a clip is named once
        self._before: dict[str, float] = self.saved.get("spent", {"seconds": 0.0, "cpu_seconds": 0.0})
        self._started = _clocks()

    @property
    def spent(self) -> dict[str, float]:
        """Wall-clock and processor seconds of this process so far, those before a resumption included."""
        now = _clocks()
        return {name: round(self._before[name] + now[name] - self._started[name], 1) for name in now}

    @property
    def resumed_stage(self) -> str | None:
        """The stage that the checkpoint is in; stages before it are done."""
        return self.saved.get("stage")

    def run_stage(self, stage: Stage, cuts: CutSet, *, crop_to_shortest: bool = True, order: int = 0) -> str:
        """Trains `stage.module` in place, and says which clips were skipped.

        order: sets the batches apart from those of other stages. Raises Interrupted after a Ctrl-C, with the checkpoint
        written.
        """
        settings = self.training.batch_settings(
            crop_to_shortest=crop_to_shortest,
            offset=order,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )
        batches = TrainingBatches(cuts, settings, self.skipped)
        try:
            self._train(stage, batches)
        finally:
            batches.close()
        return batches.skipped.summary()

    def _train(self, stage: Stage, batches: TrainingBatches) -> None:
        module = self.accelerator.prepare_model(stage.module)
        stage.module.train()
        optimizer = make_optimizer(stage)
        start = self._restore(stage, optimizer, batches)
        clipped, unclipped = ([p for g in stage.groups if g.clipped == c for p in g.parameters] for c in (True, False))
        accumulate = self.training.accumulate
        log_every = self.config.log_every or max(1, stage.steps // 200)
        checkpoint_every = self.config.checkpoint_every or max(1, stage.steps // 20)
        meter = Meter(self.accelerator.num_processes, accumulate, stage.rate)
        next_log, next_checkpoint = time.monotonic() + LOG_SECONDS, time.monotonic() + CHECKPOINT_SECONDS
        with ExitStack() as stack:
            asked = stack.enter_context(_deferred_interrupt())
            progress = stack.enter_context(self._progress(stage, start))
            stack.enter_context(convolution_chosen(stage.module))
            for step in range(start, stage.steps):
                for settings, group in zip(optimizer.param_groups, stage.groups, strict=True):
                    settings["lr"] = group.learning_rate * group.schedule(step)
                for micro in range(accumulate):
                    batch, texts = stage.take(batches)
                    last = micro == accumulate - 1
                    with nullcontext() if last else self.accelerator.no_sync(module):
                        waveforms = batch.waveforms.to(self.accelerator.device)
                        lengths = batch.lengths.to(self.accelerator.device)
                        scalars = module(waveforms, lengths, stage.offset + step, step * accumulate + micro, *texts)
                        self.accelerator.backward(scalars["loss"] / accumulate)
                    meter.add(scalars, batch.seconds)
                norm = nn.utils.clip_grad_norm_(clipped, self.training.clip)
                meter.watch(norm, *(p.grad for p in unclipped if p.grad is not None))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                stage.after_step()
                progress.advance()
                done = step + 1
                if done % log_every == 0 or done == stage.steps or time.monotonic() > next_log:
                    next_log = time.monotonic() + LOG_SECONDS
                    self._log(stage, done, meter.take(), progress)
                stop, due = self._anyone(asked.is_set(), time.monotonic() > next_checkpoint)
                if done % checkpoint_every == 0 or done == stage.steps or stop or due:
                    meter.check()
                    self._checkpoint(stage, done, optimizer, batches)
                    next_checkpoint = time.monotonic() + CHECKPOINT_SECONDS
                if stop:
                    raise Interrupted(
                        f"interrupted after step {done} of {stage.steps} ({stage.name}); checkpoint written: "
                        "continue with the same command and --resume"
                    )
        self.saved = {}
        self.accelerator.free_memory()  # it would hold on to the module

    def _progress(self, stage: Stage, start: int) -> StageProgress:
        main = self.accelerator.is_main_process
        tensorboard = self.run.directory / "tensorboard" if main else None
        quiet = self.config.quiet or not main
        return StageProgress(stage.name, stage.steps, start, offset=stage.offset, quiet=quiet, tensorboard=tensorboard)

    def _log(self, stage: Stage, step: int, values: dict[str, float], progress: StageProgress) -> None:
        progress.report(step, stage.offset + step, values)
        if self.accelerator.is_main_process:
            self.run.append({"stage": stage.name, "step": step, "total_step": stage.offset + step, **values})

    def _anyone(self, *here: bool) -> list[bool]:
        """Which of these holds in any process: they have to stop, and to write checkpoints, together."""
        if self.accelerator.num_processes == 1:
            return list(here)
        flags = torch.tensor(here, dtype=torch.float32, device=self.accelerator.device)
        found: list[bool] = (self.accelerator.reduce(flags, "sum") > 0).tolist()
        return found

    def _checkpoint(self, stage: Stage, step: int, optimizer: torch.optim.Optimizer, batches: TrainingBatches) -> None:
        several = self.accelerator.num_processes > 1
        here = [{"batches": batches.state_dict(), "random": _generators(self.accelerator.device)}]
        processes = gather_object(here) if several else here
        if self.accelerator.is_main_process:
            state = {
                "stage": stage.name,
                "step": step,
                "total_step": stage.offset + step,
                "module": stage.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "processes": processes,
                "carried": self.carried,
                "spent": self.spent,
            }
            save_checkpoint(self.run.checkpoint, state)
        self.accelerator.wait_for_everyone()

    def _restore(self, stage: Stage, optimizer: torch.optim.Optimizer, batches: TrainingBatches) -> int:
        """Puts back what the checkpoint holds of this stage; the number of steps done."""
        if self.resumed_stage != stage.name:
            return 0
        processes = self.saved.get("processes") or [  # as checkpoints were before
            {"batches": batches, "random": {"cpu": self.saved["random"]}} for batches in self.saved["batches"]
        ]
        if len(processes) != self.accelerator.num_processes:
            raise UserError(
                f"--resume: the run was made by {len(processes)} processes, not {self.accelerator.num_processes}; "
                "launch as many"
            )
        stage.module.load_state_dict(self.saved["module"])
        optimizer.load_state_dict(self.saved["optimizer"])
        own = processes[self.accelerator.process_index]
        batches.load_state_dict(own["batches"])
        torch.set_rng_state(own["random"]["cpu"])
        if "cuda" in own["random"]:
            torch.cuda.set_rng_state(own["random"]["cuda"], self.accelerator.device)
        step: int = self.saved["step"]
        self.saved = {}
        return step


def carry_out(
    run: Run,
    training: TrainingConfig,
    loop: LoopConfig | None,
    train: Callable[[Loop], tuple[dict[str, Any], Callable[[], None]]],
    *,
    resume: bool,
    overwrite: bool,
) -> dict[str, Any]:
    """A run from its directory's opening to its result; a finished one's result, as it is there.

    train: gives the result, and a function that writes the model.
    """
    loop = loop or LoopConfig()
    accelerator = make_accelerator(training.precision, loop.device)
    run.open_on(accelerator, resume=resume, overwrite=overwrite)
    if run.result is not None:
        return run.result
    trainer = Loop(run, training, loop, accelerator)
    result, write = train(trainer)
    if accelerator.is_main_process:
        with clear_on_full_disk(run.checkpoint):
            write()
        run.finish(result | trainer.spent)
    accelerator.wait_for_everyone()
    run.read_result()
    return run.result or result  # where a disk is not shared, the other processes have not the whole of it


def _generators(device: torch.device) -> dict[str, torch.Tensor]:
    """The states that dropout and all else that is random go on from."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _clocks() -> dict[str, float]:
    return {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}


def make_optimizer(stage: Stage) -> torch.optim.Optimizer:
    groups = [
        {
            "params": list(group.parameters),
            "lr": group.learning_rate,
            "weight_decay": group.weight_decay,
            "maximize": group.maximize,
        }
        for group in stage.groups
    ]
    return torch.optim.AdamW(groups, fused=True)
