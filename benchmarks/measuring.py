"""How the scripts here measure: time in turn, peak memory beyond what was there, one line about the machine."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from datetime import date
from typing import NamedTuple

import torch


class Time(NamedTuple):
    seconds: float  # best of the repeats
    cpu: float  # CPU seconds of this process, best of the repeats: what a busy machine disturbs less
    spread: float  # median of the repeats / best


def machine(device: str) -> str:
    """Where and when: for the head of every table."""
    if device == "cuda":
        what = torch.cuda.get_device_name()
    else:
        load = os.getloadavg()[0]
        what = f"{platform.machine()} CPU, {os.cpu_count()} cores, load {load:.1f} before the start"
    return f"{what}, torch {torch.__version__}, {date.today()}"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed_in_turn(forms: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, Time]:
    """Every form `repeats` times, in turn, so that a busy machine slows all; on a GPU after one call to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    warm_up = int(device == "cuda")
    for turn in range(repeats + warm_up):
        for name, form in forms.items():
            synchronize(device)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            form()
            synchronize(device)
            if turn >= warm_up:
                taken[name].append((time.perf_counter() - begun, time.process_time() - begun_cpu))
    return {name: summary(times) for name, times in taken.items()}


def summary(times: list[tuple[float, float]]) -> Time:
    seconds, cpu = zip(*times, strict=True)
    return Time(min(seconds), min(cpu), statistics.median(seconds) / min(seconds))


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """The largest size of this process between start and stop, in MB, sampled every 2 ms; on a GPU its allocations."""

    def __init__(self) -> None:
        self.peak, self.done = 0.0, threading.Event()
        self.watcher = threading.Thread(target=self.watch, daemon=True)

    def watch(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, resident() / 1e6)

    def start(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self.watcher.start()

    def stop(self) -> float:
        if torch.cuda.is_available():
            self.peak = torch.cuda.max_memory_allocated() / 1e6
        else:
            self.peak = max(self.peak, resident() / 1e6)
            self.done.set()
            self.watcher.join()
        return self.peak


def peak_extra(form: Callable[[], object]) -> float:
    """MB that `form` needs beyond what was there before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = resident() / 1e6
    watch = PeakMemory()
    watch.start()
    form()
    return watch.stop() - before


def table(columns: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown; the first column is text, the others numbers."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
