"""Our loss of transducers beside others: time and peak memory of forward and backward pass, in turn, on one core.

The others are a plain one under autograd (`naive_loss`), warprnnt-numba's for CPUs, which is Python there and measured
on the smallest lattice only, and torchaudio's where it is installed. Time is the processor's, which other work on the
machine moves less than the clock; once with memory that the process has had before, and once as the C library does it
by default, where the kernel clears the pages of large tensors each time. Memory is what tensors hold beyond the logits,
counted exactly.

The floor is the longer of two. Gradients depend on all logits, so these are read twice, which takes the exponentials
twice, and the gradient is written once; or in units of time: 3 times the logits' bytes over the rate of a copy, and 2
exponentials a logit over the rate of exponentials in cache.

python -m benchmarks.transducer
"""

import importlib
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from warprnnt_numba.rnnt_loss.rnnt_pytorch import rnnt_loss

from benchmarks.record import RESULTS, record
from diminuendo.profiling.allocator import freed_memory_kept
from diminuendo.tasks.transducer_loss import transducer_loss

RUNS = 5
# Nodes up to which warprnnt-numba's loop over single elements is waited for.
FEW_NODES = 10_000

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    clips: int
    frames: int
    labels: int
    vocabulary: int
    dtype: torch.dtype

    @property
    def nodes(self) -> int:
        return self.clips * self.frames * (self.labels + 1)


CASES = (
    Case(4, 125, 10, 50, torch.float32),
    Case(4, 125, 10, 1000, torch.float32),
    Case(16, 125, 30, 250, torch.float32),
    Case(16, 400, 60, 50, torch.float32),
    Case(4, 400, 60, 1000, torch.float32),
    Case(16, 400, 60, 50, torch.bfloat16),
    Case(4, 400, 60, 1000, torch.bfloat16),
)


def naive_loss(
    logits: Float[Tensor, "batch frames columns vocabulary"],
    targets: Int[Tensor, "batch labels"],
    frame_lengths: Int[Tensor, " batch"],
    target_lengths: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """What one writes first: autograd through log_softmax of all logits, and a loop over frames. Blank is 0."""
    log_probs = logits.float().log_softmax(-1)
    blanks = log_probs[..., 0]
    index = targets.long()[:, None, :, None].expand(-1, logits.shape[1], -1, 1)
    labels = F.pad(log_probs[:, :, :-1].gather(3, index)[..., 0].cumsum(2), (1, 0))
    reached = [labels[:, 0]]
    for t in range(1, logits.shape[1]):
        reached.append(labels[:, t] + (reached[-1] + blanks[:, t - 1] - labels[:, t]).logcumsumexp(1))
    ends = (torch.arange(len(logits)), frame_lengths - 1, target_lengths)
    return -(torch.stack(reached, 1)[ends] + blanks[ends]).mean()


def numba_loss(
    logits: Float[Tensor, "batch frames columns vocabulary"],
    targets: Int[Tensor, "batch labels"],
    frame_lengths: Int[Tensor, " batch"],
    target_lengths: Int[Tensor, " batch"],
    blank: int = 0,
    reduction: str = "mean",
) -> Float[Tensor, ""]:
    """warprnnt-numba's, whose first call would leave torch with as many threads as the machine has cores."""
    threads = torch.get_num_threads()
    whole = (x.int().contiguous() for x in (targets, frame_lengths, target_lengths))
    found: Tensor = rnnt_loss(logits, *whole, blank=blank, reduction=reduction)
    torch.set_num_threads(threads)
    return found[0]


def losses(case: Case) -> dict[str, Loss]:
    """Means over clips, with 0 for blank."""
    found: dict[str, Loss] = {"ours": partial(transducer_loss, blank=0), "naive": naive_loss}
    if case.nodes <= FEW_NODES and case.dtype == torch.float32:
        found["warprnnt_numba"] = numba_loss
    try:
        audio = importlib.import_module("torchaudio.functional")
    except ImportError:
        return found
    found["torchaudio"] = lambda logits, *rest: audio.rnnt_loss(logits.float(), *(x.int() for x in rest), blank=0)
    return found


class Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of tensors made inside and still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known | given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, address: int, size: int) -> None:
        self.known.discard(address)
        self.bytes -= size


def peak_bytes(step: Callable[[], object]) -> int:
    """The most bytes that tensors held which a step has made."""
    held = Held()
    with held:
        step()
    return held.peak


def example(case: Case) -> tuple[Tensor, ...]:
    """Logits and targets at random, all clips of full length."""
    made = torch.Generator().manual_seed(0)
    logits = torch.randn(case.clips, case.frames, case.labels + 1, case.vocabulary, generator=made).to(case.dtype)
    targets = torch.randint(1, case.vocabulary, (case.clips, case.labels), generator=made)
    lengths = (torch.full((case.clips,), size) for size in (case.frames, case.labels))
    return (logits.requires_grad_(), targets, *lengths)


def step(loss: Loss, given: tuple[Tensor, ...]) -> None:
    given[0].grad = None
    torch.autograd.backward(loss(*given))


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def milliseconds(competing: dict[str, Loss], given: tuple[Tensor, ...]) -> dict[str, float]:
    """Medians of turns, after one that does not count."""
    turns = [{name: seconds(partial(step, loss, given)) for name, loss in competing.items()} for _ in range(RUNS + 1)]
    return {name: 1e3 * median(turn[name] for turn in turns[1:]) for name in competing}


def floor(logits: Tensor) -> dict[str, float]:
    """Milliseconds for what must be read and written, and for exponentials."""
    source, target = logits.detach(), torch.zeros_like(logits)
    copy = median(seconds(lambda: target.copy_(source)) for _ in range(RUNS))
    cached = torch.randn(2**15)
    many = 200
    exponentials = median(
        seconds(lambda: [torch.exp(cached, out=cached).neg_() for _ in range(many)]) for _ in range(RUNS)
    )
    return {"bytes": 1e3 * copy * 3 / 2, "exponentials": 1e3 * exponentials * 2 * logits.numel() / (many * len(cached))}


def rows() -> Iterator[dict[str, Any]]:
    for case in CASES:
        given, competing = example(case), losses(case)
        size = given[0].numel() * given[0].element_size()
        memory = {name: peak_bytes(partial(step, loss, given)) for name, loss in competing.items()}
        fresh = milliseconds(competing, given)
        with freed_memory_kept():
            taken, least = milliseconds(competing, given), floor(given[0])
        yield {
            **case._asdict(),
            "dtype": str(case.dtype).removeprefix("torch."),
            "logits_mb": round(size / 1e6, 1),
            "milliseconds": {name: round(value, 2) for name, value in taken.items()},
            "milliseconds_with_new_memory": {name: round(value, 2) for name, value in fresh.items()},
            "floor_milliseconds": {name: round(value, 2) for name, value in least.items()},
            "over_floor": round(taken["ours"] / max(least.values()), 2),
            "peak_over_logits": {name: round(value / size, 2) for name, value in memory.items()},
        }


def main() -> None:
    torch.set_num_threads(1)
    titles = ["clips x frames x labels x vocabulary", "logits", "floor, ms", "ms", "ms, new memory", "memory / logits"]
    print("| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles))
    found = []
    for row in rows():
        sizes = " x ".join(str(row[name]) for name in ("clips", "frames", "labels", "vocabulary"))
        cells = [sizes, f"{row['logits_mb']} MB, {row['dtype']}", str(max(row["floor_milliseconds"].values()))]
        for values in (row["milliseconds"], row["milliseconds_with_new_memory"], row["peak_over_logits"]):
            cells.append(", ".join(f"{name} {value}" for name, value in values.items()))
        print("| " + " | ".join(cells) + " |", flush=True)
        found.append(row)
    record(RESULTS / "transducer.json", {"runs": RUNS, "threads": 1, "rows": found})


if __name__ == "__main__":
    main()
