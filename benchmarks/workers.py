"""Processes that share a list of jobs: each does what no other is doing, until all is done."""

import argparse
import fcntl
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

WAIT_SECONDS = 10.0
Job = Callable[[], dict[str, Any]]


def number_of_workers(text: str) -> int:
    """Of a command line; argparse names the flag and exits with 2."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number, at least 1; got {text}")
    return int(text)


def run_workers(worker: Callable[..., None], workers: int, *given: Any) -> None:
    """`worker(*given, number)` in so many processes. Raises SystemExit as soon as one fails, which ends the others."""
    processes = [
        multiprocessing.get_context("spawn").Process(target=worker, args=(*given, number), daemon=True)
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    while processes:
        wait([process.sentinel for process in processes])
        if any(process.exitcode for process in processes):
            raise SystemExit(1)
        processes = [process for process in processes if process.exitcode != 0]


@contextmanager
def claimed(lock: Path) -> Iterator[bool]:
    """Whether this process has the lock file; it is free again when the process ends, however it does."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def work_off(
    jobs: Callable[[], tuple[Mapping[str, Job], bool]],
    done: Callable[[str], bool],
    save: Callable[[str, dict[str, Any]], None],
    locks: Path,
) -> None:
    """Does what is to do and what no other worker is doing, until all is done.

    jobs: those that can be done by now, and whether these are all; each gives values to be saved under its name.
    """
    while True:
        ready, complete = jobs()
        open_jobs = [name for name in ready if not done(name)]
        if complete and not open_jobs:
            return
        for name in open_jobs:
            with claimed(locks / name) as mine:
                if mine and not done(name):
                    started = time.monotonic()
                    save(name, ready[name]())
                    logging.info("%s: %.1f minutes, %d to do", name, (time.monotonic() - started) / 60, len(open_jobs))
                    break
        else:
            time.sleep(WAIT_SECONDS)


def quiet_worker(number: int) -> None:
    """How a worker is set up: one thread, and in its log what it has done."""
    logging.basicConfig(level=logging.WARNING, format=f"%(asctime)s worker {number}: %(message)s")
    logging.getLogger().setLevel(logging.INFO)
    logging.getLogger("diminuendo").setLevel(logging.ERROR)
    torch.set_num_threads(1)
