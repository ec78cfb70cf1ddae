"""Removing units that answer to something, to mend a network: MILAN's editing experiment (arXiv 2201.11114, section 7).

made = edit_by_keywords(model, descriptions, ["text"], validate=validation, test=adversarial)
made.gain("keywords"), made.gain("random")    # points of test accuracy, with the chosen number of units removed
model.removed(made.units)                     # the network with these weights at 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.pictures import Pictures
from patchclamp.measure.permutation import sign_flip
from patchclamp.models.units import UnitSet
from patchclamp.read.descriptions import Descriptions
from patchclamp.read.vision_analysis import correct
from patchclamp.read.vision_audit import named_units
from patchclamp.read.vision_model import VisionModel

ORDERS = ("keywords", "all units", "random")
MARKS = 8  # numbers of units at which random ones are drawn, besides the chosen one


@dataclass(frozen=True, eq=False)
class EditResult:
    """What removing units did.

    candidates: all units of the keywords. units: those removed. curve: a row per order ("keywords", "all units", "random") and
    number of units: validation, choosing (None without such pictures), test: accuracies, for random means over the trials; low,
    high: of the trials. chosen: order -> number of units. plain: accuracies of the whole network. p: two-sided sign-flip
    p-value, over test pictures, of the chosen units against the mean of the random ones; None if no unit was removed.
    """

    candidates: UnitSet
    units: UnitSet
    curve: list[dict[str, Any]]
    chosen: dict[str, int]
    plain: dict[str, float | None]
    p: float | None

    def row(self, order: str) -> dict[str, Any]:
        """The row of an order at its chosen number of units; InputError for an unknown order."""
        for row in self.curve:
            if row["order"] == order and row["units"] == self.chosen.get(order):
                return row
        raise InputError(f"no order is called {order!r}; there are {', '.join(self.chosen)}")

    def gain(self, order: str = "keywords") -> float:
        """Rise of the test accuracy at the chosen number of units."""
        row = self.row(order)
        return float(row["test"] - self.plain["test"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "candidates": self.candidates.names(), "units": self.units.names(), "curve": self.curve,
            "chosen": self.chosen, "plain": self.plain, "p": self.p,
        }  # fmt: skip


def edit_by_keywords(
    model: VisionModel,
    descriptions: Descriptions,
    keywords: Sequence[str],
    *,
    validate: Pictures,
    test: Pictures,
    choose: Pictures | None = None,
    max_units: int = 50,
    tolerance: float = 0.01,
    trials: int = 5,
    all_units: bool = True,
    whole_words: bool = True,
    seed: int = 0,
    batch: int = 256,
) -> EditResult:
    """Set units whose description holds a keyword to 0, the least useful first, and ask the shifted test.

    The least useful unit is the one without which alone the validation accuracy is highest; units are removed one after
    another, 0 to max_units. How many are taken is decided without the test: the number best on `choose`, some pictures shifted
    like the test but none of it; without such pictures the largest up to which no step has cost more than `tolerance` of the
    validation accuracy. Controls: random units, as many in every layer, none of the candidates while others are left (`trials`
    draws); all units of the network sorted the same way (all_units; one more evaluation per unit).
    InputError where no description holds a keyword.
    """
    if max_units < 1 or trials < 1 or not 0 <= tolerance < 1:
        raise InputError(
            f"max_units={max_units}, trials={trials}, tolerance={tolerance} given; at least 1, at least 1, in [0, 1)"
        )
    candidates = named_units(model, descriptions, keywords, whole_words=whole_words)
    if not len(candidates):
        raise InputError(f"no unit's description holds {', '.join(keywords)}; there is nothing to remove")
    on = {"validation": validate, "choosing": choose, "test": test}
    asked = _Asked(model, {name: pictures for name, pictures in on.items() if pictures is not None}, batch)
    plain = asked.accuracies(model.units([]))
    curve: list[dict[str, Any]] = []
    chosen: dict[str, int] = {}
    orders = {"keywords": next(iter(candidates.positions.values()))}
    if all_units:
        orders["all units"] = np.arange(model.layout.total)
    ranked = {}
    for order, positions in orders.items():
        ranked[order] = asked.least_useful_first(positions)[:max_units]
        rows = [_row(order, 0, [plain])]
        for count in range(1, len(ranked[order]) + 1):
            rows.append(_row(order, count, [asked.accuracies(model.units(ranked[order][:count]))]))
        chosen[order] = _number(rows, tolerance)
        curve += rows
    count = chosen["random"] = chosen["keywords"]
    marks = np.linspace(0, len(ranked["keywords"]), MARKS).round().astype(int).tolist()
    for number in sorted({*marks, count}):
        drawn = _drawn(model, ranked["keywords"][:number], candidates, trials, seed)
        curve.append(_row("random", number, [asked.accuracies(units) for units in drawn]))
    units = model.units(ranked["keywords"][:count])
    p = None
    if count:
        random = [
            correct(model, test, other, batch=batch)
            for other in _drawn(model, ranked["keywords"][:count], candidates, trials, seed)
        ]
        p = sign_flip(correct(model, test, units, batch=batch).astype(float) - np.mean(random, axis=0), seed=seed)
    return EditResult(candidates, units, curve, chosen, plain, p)


@dataclass(frozen=True, eq=False)
class _Asked:
    """A network and the pictures it is asked about."""

    model: VisionModel
    pictures: dict[str, Pictures]
    batch: int

    def accuracies(self, units: UnitSet) -> dict[str, float | None]:
        found: dict[str, float | None] = {"validation": None, "choosing": None, "test": None}
        for name, pictures in self.pictures.items():
            found[name] = float(correct(self.model, pictures, units, batch=self.batch).mean())
        return found

    def least_useful_first(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Units by the validation accuracy without them, highest first; equal ones by position."""
        on = self.pictures["validation"]
        left = [
            correct(self.model, on, self.model.units([position]), batch=self.batch).mean()
            for position in positions.tolist()
        ]
        return positions[np.argsort(-np.array(left), kind="stable")]


def _row(order: str, units: int, trials: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    test = [float(found["test"]) for found in trials if found["test"] is not None]
    means = {
        name: None if trials[0][name] is None else float(np.mean([found[name] for found in trials]))
        for name in trials[0]
    }
    return {"order": order, "units": int(units), **means, "low": min(test), "high": max(test)}


def _drawn(
    model: VisionModel, positions: NDArray[np.int64], candidates: UnitSet, trials: int, seed: int
) -> list[UnitSet]:
    like = model.units(positions)
    return [like.matched_random(seed + trial, exclude=candidates) for trial in range(trials)]


def _number(curve: Sequence[dict[str, Any]], tolerance: float) -> int:
    """The number of units that is best on the pictures to choose with (the smallest of equal ones), or that is tolerated."""
    if curve[0]["choosing"] is not None:
        return int(max(curve, key=lambda row: (row["choosing"], -row["units"]))["units"])
    best = 0
    for row in curve:
        if row["validation"] < curve[0]["validation"] - tolerance - 1e-12:
            break
        best = row["units"]
    return int(best)
