"""What the unlearning study measured, as numbers: what is left of a skill, of the others, and by chance; the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects

ALPHA = 0.05
REFUSED, TRIPPED = 0.8, 0.1  # of a skill's own and of other queries: what an abstention must reach
HARMLESS = 0.1  # share of the other skills that may be lost
Rows = Sequence[Mapping[str, Any]]
Left = tuple[float, float, float]  # of the forgotten skill, of the others, of general knowledge
# Li et al. 2025, Llama-3-8B, read from the figures (+-0.02), relative performance: GSM8K forgotten (GSM8K, MBPP, MMLU), then MBPP
# forgotten (MBPP, GSM8K, MMLU)
PAPER: dict[str, tuple[Left, Left]] = {
    "adjust-0.005": ((0.78, 1.00, 0.99), (0.37, 0.80, 1.00)),
    "adjust-0.015": ((0.57, 0.93, 0.97), (0.04, 0.78, 0.94)),
    "adjust-0.03": ((0.39, 0.76, 0.96), (0.01, 0.68, 0.94)),
    "pruning-0.015": ((0.17, 0.93, 0.93), (0.00, 0.06, 0.40)),  # MBPP: at 0.01%
    "abstain-last": ((0.16, 1.00, 1.00), (0.005, 0.96, 1.00)),
}
# the same model, MLQA in seven languages: performance lost, mean over forgotten languages: in their own, in the others, at most
PAPER_LANGUAGES = {"adjust": (0.48, 0.13, 0.61), "abstain": (0.79, 0.06, 0.49)}
METHODS = {"adjust": "Neuron Adjust", "pruning": "selective pruning", "abstain": "Key Space Detection"}


@dataclass(frozen=True, eq=False)
class SkillUnlearning:
    """Everything that was measured, as the report needs it.

    effects: way -> effects of the changes that take each forgotten skill away, on all tasks; "at-once" has those that take all of
    them away. shares: of Neuron Adjust, rising. abstentions, last: skill -> what its box in the best and in the last layer
    holds. leaks: rows of `measure.leakage`, with the skill. trips: rows of prompts and texts that enter each skill's box.
    languages: way -> effects, empty without languages. bundled: whether the tasks are the demo's own.
    """

    forgotten: tuple[str, ...]
    general: str
    shares: tuple[float, ...]
    effects: Mapping[str, Effects]
    abstentions: Mapping[str, Mapping[str, Any]]
    last: Mapping[str, Mapping[str, Any]]
    normality: Mapping[str, Any]
    leaks: Rows
    trips: Rows
    languages: Mapping[str, Effects]
    findings: Mapping[str, Finding]
    model: Mapping[str, Any]
    bundled: bool

    @property
    def ways(self) -> tuple[str, ...]:
        """What was tried, one skill at a time: adjust-SHARE, pruning-SHARE, abstain-LAYER."""
        return tuple(way for way in self.effects if way != "at-once")


def way_name(way: str) -> str:
    """A way in words."""
    method, _, rest = way.partition("-")
    if not rest:
        return METHODS[method]
    return f"{METHODS[method]}, {rest} layer" if method == "abstain" else f"{METHODS[method]} {100 * float(rest):g}%"


def left(row: Mapping[str, Any]) -> float | None:
    """Accuracy after over accuracy before; None where there was none."""
    return row["clamped"] / row["plain"] if row["plain"] else None


def left_by_chance(row: Mapping[str, Any]) -> float | None:
    """The same under the random controls, on average; None without any."""
    if row["control_mean"] is None or not row["plain"]:
        return None
    return float((row["plain"] + row["control_mean"]) / row["plain"])


def summary(found: Effects, name: str, general: str | None) -> dict[str, Any]:
    """What one change leaves: of its own skill, of the others on average, of general knowledge; and under random controls."""
    own = found.row(name, name)
    others = [found.row(name, text) for text in found.texts if text not in (name, general)]
    return {
        "own": left(own), "others": mean([left(row) for row in others]),
        "general": None if general is None else left(found.row(name, general)),
        "random": left_by_chance(own), "random_others": mean([left_by_chance(row) for row in others]),
        "effect": own["effect"], "low": own["low"], "high": own["high"], "p_holm": own["p_holm"],
        "p_controls": own["p_controls"], "n_units": own["n_units"], "proven": proven(own),
    }  # fmt: skip


def proven(row: Mapping[str, Any]) -> bool:
    """Whether accuracy fell, farther than under the random controls, by more than chance."""
    beyond = row["effect"] < min(0.0, row["control_mean"] or 0.0)
    return bool(beyond and row["p_holm"] is not None and row["p_holm"] < ALPHA)


def ahead(found: Effects, name: str) -> bool:
    """Whether a change takes more of its own skill than of any other."""
    own = left(found.row(name, name))
    others = [value for text in found.texts if text != name and (value := left(found.row(name, text))) is not None]
    return own is not None and bool(others) and own < min(others)


def lost(found: Effects) -> tuple[float, float, float] | None:
    """Accuracy lost, mean over changes: of their own, of the others, and the largest of another; None where there was none."""
    own: list[float] = []
    others: list[float] = []
    for name in found.sets:
        for text in found.texts:
            value = left(found.row(name, text))
            if value is not None:
                (own if name == text else others).append(1 - value)
    return (float(np.mean(own)), float(np.mean(others)), max(others)) if own and others else None


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def useful(entry: Mapping[str, Any]) -> bool:
    """Whether a box holds most of its skill's held-out queries and few others."""
    return bool(entry["forget"] > REFUSED and entry["retain"] < TRIPPED)


def ours(study: SkillUnlearning, way: str, name: str) -> Left | None:
    """What is left by a method when a skill is forgotten: of it, of the others, of general knowledge; None if not measured."""
    if name not in study.forgotten or way not in study.effects:
        return None
    found = summary(study.effects[way], name, study.general)
    own, others, general = found["own"], found["others"], found["general"]
    return None if own is None or others is None or general is None else (own, others, general)
