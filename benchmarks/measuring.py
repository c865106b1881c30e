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
    """Every form `repeats` times, in turn, so that a busy machine slows all; after one call each to warm up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for turn in range(repeats + 1):
        for name, form in forms.items():
            synchronize(device)
            begun, begun_cpu = time.perf_counter(), time.process_time()
            form()
            synchronize(device)
            if turn:
                taken[name].append((time.perf_counter() - begun, time.process_time() - begun_cpu))
    return {name: summary(times) for name, times in taken.items()}


def summary(times: list[tuple[float, float]]) -> Time:
    seconds, cpu = zip(*times, strict=True)
    return Time(min(seconds), min(cpu), statistics.median(seconds) / min(seconds))


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as status:
        return int(status.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_extra(form: Callable[[], object], device: str) -> float:
    """MB that `form` needs beyond what was there before it; on a CPU the process's size, sampled every 2 ms."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        form()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    base, highest, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    form()
    highest = max(highest, resident())
    done.set()
    watcher.join()
    return (highest - base) / 1e6


def table(columns: list[str], rows: Iterable[Iterable[object]]) -> str:
    """Markdown; the first column is text, the others numbers."""
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
