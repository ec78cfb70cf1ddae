"""What chance gives a culture finding: blocks of questions handed to other groups, and questions swapped with controls.

For a group's set: within each block (relation, topic) the groups' sums are exchanged at random, everything after is redone;
this keeps what is common to all groups and to a kind of question, and breaks only which country it was about.
For the general set: question and control are exchanged in each cell, that is, the sign of their difference is flipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.find.culture_selection import group_scores, z_scores
from patchclamp.find.culture_sums import Contributions

BINS = 1 << 14
WHAT = (
    "specific sets: within every block of questions the groups' sums are exchanged at random and the selection is redone, "
    "without the removal of name units; "
    "p of a unit and group: how often a shuffled z of any unit and group reaches its z. general set: the sign of every "
    "cell's difference (question - control) is flipped at random; p: how often the flipped sum of any unit, in units of its "
    "root sum of squares, reaches the observed one"
)
Choose = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


def chance(
    main: Contributions,
    control: Contributions | None,
    choose: Choose,
    *,
    own_means: bool,
    shuffles: int,
    seed: int,
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """The null record, and p-values (1 + groups, total), the general set's first (1 without a control).

    choose: group scores (groups, total) -> specific sets (groups, total) bool, before name units are removed:
    a group's name can't be exchanged with its questions, so observed and shuffled sets are compared without that step.
    The counts' p is (1 + shuffles that name at least as many) / (1 + shuffles).
    """
    if shuffles < 0:
        raise InputError(f"shuffles={shuffles} given; it is at least 0 (0: no null)")
    record: dict[str, Any] = {"shuffles": shuffles, "seed": seed, "blocks": list(main.blocks), "what": WHAT}
    if shuffles == 0:
        return record | {"available": False, "why": "shuffles=0 was asked for"}, None
    shared = (main.rows > 0).sum(axis=0) > 1
    if shared.sum() < 2:
        why = "fewer than two blocks of questions hold several groups; give block= a label that groups share"
        return record | {"available": False, "why": why}, None
    rng = np.random.default_rng(seed)
    tally, named = _Pooled(z_scores(group_scores(main, control, own_means=own_means))), []
    with progress("shuffling groups", shuffles, quiet=True) as advance:
        for _ in range(shuffles):
            order = _exchanged(main.rows, rng)
            parts = [None if one is None else _reordered(one, order) for one in (main, control)]
            scores = group_scores(parts[0] or main, parts[1], own_means=own_means)
            tally.add(z_scores(scores))
            named.append(choose(scores).sum(axis=1))
            advance(1)
    observed, counts = choose(group_scores(main, control, own_means=own_means)), np.array(named)
    labels = {group: _against(int(observed[at].sum()), counts[:, at]) for at, group in enumerate(main.groups)}
    p_values = np.ones((1 + len(main.groups), main.sums.shape[2]), dtype=np.float32)
    p_values[1:] = tally.p_values()
    if control is not None:
        p_values[0] = _flipped(main, control, shuffles, rng)
    said = _against(int(observed.sum()), counts.sum(axis=1))
    record |= {"available": True, "labels": labels, "specific": said, "general": control is not None}
    sentence = (
        f"{said['observed']} units in the groups' sets before name units are removed; with groups exchanged within blocks "
        f"{said['mean']:.1f} on average, {said['max']} at most ({shuffles} shuffles, p = {said['p']:.3g})"
    )
    return record | {"said": sentence}, p_values


def _exchanged(rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """(groups, blocks): whose sums a group gets in each block; groups without prompts in a block keep nothing."""
    order = np.tile(np.arange(len(rows))[:, None], (1, rows.shape[1]))
    for block in range(rows.shape[1]):
        filled = np.flatnonzero(rows[:, block])
        order[filled, block] = rng.permutation(filled)
    return order


def _reordered(sums: Contributions, order: NDArray[np.int64]) -> Contributions:
    across = np.arange(order.shape[1])
    return replace(sums, sums=sums.sums[order, across], rows=sums.rows[order, across])


def _flipped(
    main: Contributions, control: Contributions, shuffles: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """p of every unit's mean difference between question and control, (total,), sign flips over cells."""
    both = (main.rows > 0) & (control.rows > 0)
    gap = main.sums[both] / main.rows[both][:, None] - control.sums[both] / control.rows[both][:, None]
    size = np.sqrt((gap**2).sum(axis=0))
    gap = np.divide(gap, size, out=np.zeros_like(gap), where=size > 0)
    tally = _Pooled(gap.sum(axis=0)[None])
    for _ in range(shuffles):
        tally.add((rng.choice((-1.0, 1.0), size=len(gap)) @ gap)[None])
    return tally.p_values()[0]


class _Pooled:
    """p-values against one null pooled over labels, units and shuffles, by a histogram (rounded against discovery)."""

    def __init__(self, observed: NDArray[np.float64]) -> None:
        self._limit = float(np.abs(observed).max(initial=0.0)) or 1.0
        self._bins = self._binned(observed)
        self._hits = np.zeros(BINS, dtype=np.int64)

    def add(self, drawn: NDArray[np.float64]) -> None:
        self._hits += np.bincount(self._binned(drawn).ravel(), minlength=BINS)

    def p_values(self) -> NDArray[np.float32]:
        at_least = np.cumsum(self._hits[::-1])[::-1]
        return ((1 + at_least[self._bins]) / (1 + self._hits.sum())).astype(np.float32)

    def _binned(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        scaled = (values + self._limit) * (BINS / (2 * self._limit))
        return np.clip(np.floor(scaled), 0, BINS - 1).astype(np.int64)


def _against(observed: int, null: NDArray[Any]) -> dict[str, Any]:
    return {
        "observed": observed,
        "mean": float(null.mean()),
        "max": int(null.max()),
        "p": float((1 + (null >= observed).sum()) / (1 + len(null))),
    }
