"""Interleaved timing: variants run in turn, the order rotates from round to round, ratios are paired within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of each variant per round, after one warm-up; the order rotates."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    names = list(variants)
    for name in names:
        variants[name]()
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            wall, cpu = time.perf_counter(), time.process_time()
            variants[name]()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def ratios(times: dict[str, list[tuple[float, float]]], base: str) -> dict[str, dict[str, float]]:
    """Median, smallest and largest paired ratio of wall time to the base variant, and the median of CPU time."""
    found = {}
    for name, seconds in times.items():
        wall, cpu = ([own[i] / other[i] for own, other in zip(seconds, times[base], strict=True)] for i in (0, 1))
        found[name] = {
            "wall": statistics.median(wall),
            "low": min(wall),
            "high": max(wall),
            "cpu": statistics.median(cpu),
        }
    return {name: {key: round(value, 4) for key, value in entry.items()} for name, entry in found.items()}
