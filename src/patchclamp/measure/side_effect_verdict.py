"""What the numbers of a side-effect report say, in sentences: each computed from the rows, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchclamp.measure.harm import harm_unit
from patchclamp.measure.tables import aligned, p_value, signed

ALPHA = 0.05  # of the p-values corrected over the whole report
WORSE, BETTER, SAME, FEW = "worse", "better", "no change shown", "too few items"

Row = Mapping[str, Any]


def said(row: Row, *, enough: bool) -> str:
    """What a row shows: worse, better or no change, and whether random changes of the same size do as much.

    enough: whether there are items enough for the test to come out at all. Changed: the sign-flip p of the change itself,
    Holm-corrected over the report, is below ALPHA. Beyond random: so is the p of the change minus its mean under the
    controls, and the change is the larger of the two.
    """
    if not changed(row):
        return SAME if enough else FEW
    found = WORSE if row["harm"] > 0 else BETTER
    return found if beyond_random(row) in (True, None) else f"{found}, as random changes do"


def changed(row: Row) -> bool:
    """Whether the change itself is more than chance."""
    return bool(row["p_change_holm"] < ALPHA and row["effect"] != 0)


def beyond_random(row: Row) -> bool | None:
    """Whether the change is larger than under matched random changes; None without controls."""
    if row["control_mean"] is None:
        return None
    return bool(row["p_holm"] < ALPHA and abs(row["effect"]) > abs(row["control_mean"]))


def verdict(rows: Sequence[Row], samples: Sequence[Row]) -> list[str]:
    """The short verdict, then a sentence on every target, on what lies beside it, on what could be hidden, on the samples."""
    targets = [row for row in rows if row["role"] == "target"]
    others = [row for row in rows if row["role"] != "target"]
    lines = [_short(targets, others), *(_of_target(row) for row in targets)]
    lines += [_of_others(others, beside=bool(targets))] if others else []
    lines += [*_hidden(others), *_untouched(others)]
    return [*lines, *_of_samples(samples)]


def _short(targets: Sequence[Row], others: Sequence[Row]) -> str:
    harmed = [row for row in others if changed(row) and row["harm"] > 0]
    names = _names(harmed)
    if not targets:
        moved = [row for row in others if changed(row)]
        if not moved and all(row["said"] == FEW for row in others):
            return "There are too few items to tell whether anything changed."
        return f"Changed beyond chance: {_names(moved)}." if moved else "No change beyond chance is shown anywhere."
    missed = [row for row in targets if not changed(row)]
    if missed:
        few = all(row["said"] == FEW for row in missed)
        begin = "There are too few items to tell whether" if few else "No effect on"
        end = "changed" if few else "is shown"
        return f"{begin} the target {_names(missed)} {end}" + (f"; side effects on {names}." if harmed else ".")
    if any(beyond_random(row) is False for row in targets):
        alike = _names([row for row in targets if beyond_random(row) is False])
        return f"The target {alike} changes no more than under random changes of the same size" + (
            f"; side effects on {names}." if harmed else "."
        )
    if harmed:
        return f"Acts on the target, with side effects on {names}."
    if unsure := [row for row in others if row["said"] == FEW]:
        return f"The target changes; there are too few items to tell whether {_names(unsure)} changed."
    return "Selective: the target changes, harm beside it is not shown." if others else "The target changes."


def _of_target(row: Row) -> str:
    numbers = f"{row['metric']} {aligned(row['plain'])} to {aligned(row['clamped'])} ({_change(row)})"
    chance = "beyond chance" if changed(row) else "too few items to tell" if row["said"] == FEW else "not beyond chance"
    against = {
        None: "no random changes to compare with",
        True: f"beyond random changes of the same size (mean {signed(row['control_mean'])}, p {p_value(row['p_holm'])})",
        False: f"not beyond random changes of the same size (mean {signed(row['control_mean'])}, p {p_value(row['p_holm'])})",
    }[beyond_random(row)]
    return f"Target {row['text']}: {numbers}, {chance} (p {p_value(row['p_change_holm'])}), {against}."


def _of_others(others: Sequence[Row], *, beside: bool) -> str:
    moved = [row for row in others if changed(row)]
    where = "Beside it" if beside else "In all"
    few = [row for row in others if row["said"] == FEW]
    unknown = f" Too few items to tell of {_names(few)}." if few else ""
    if not moved:
        return f"{where}, none of {len(others)} measures changed beyond chance.{unknown}"
    parts = []
    for word, sign in ((WORSE, 1), (BETTER, -1)):
        some = sorted((row for row in moved if row["harm"] * sign > 0), key=lambda row: -abs(row["harm"]))
        if some:
            parts.append(f"{word}: {', '.join(_with_harm(row) for row in some)}")
    alike = sum(beyond_random(row) is False for row in moved)
    random = f"; {alike} of these no more than under random changes of the same size" if alike else ""
    return (
        f"{where}, {len(moved)} of {len(others)} measures changed beyond chance ({'; '.join(parts)}){random}.{unknown}"
    )


def _hidden(others: Sequence[Row]) -> list[str]:
    """The largest harm, per kind of metric, that the intervals of unchanged measures leave room for."""
    worst: dict[str, Row] = {}
    for row in others:
        if changed(row) or row["harm_high"] is None or _still(row):
            continue
        unit = harm_unit(row["metric"])
        if unit not in worst or row["harm_high"] > worst[unit]["harm_high"]:
            worst[unit] = row
    if not worst:
        return []
    parts = [f"{max(0.0, row['harm_high']):.2g} {unit} ({row['text']})" for unit, row in worst.items()]
    return [f"Where no change is shown, the 95% intervals still leave room for a harm of up to {', '.join(parts)}."]


def _untouched(others: Sequence[Row]) -> list[str]:
    """What not one changed item among n leaves open: shares up to 3 / n, at 95% (the rule of three)."""
    still = [row for row in others if _still(row)]
    if not still:
        return []
    n = min(row["n_documents"] for row in still)
    return [
        f"No item of {_names(still)} changed at all; with {n} items, a change in up to {min(1.0, 3 / n):.0%} can go unseen."
    ]


def _still(row: Row) -> bool:
    """Whether no resample of the items changed, so that the interval has no width."""
    return bool(row["low"] == row["high"] == 0)


def _of_samples(samples: Sequence[Row]) -> list[str]:
    if not samples:
        return []
    n = len(samples)
    other = sum(sample["changed"] != sample["plain"] for sample in samples)
    line = f"Of {n} generated samples {other} differ from the plain model's"
    known = [sample for sample in samples if sample["control"] is not None]
    if known:
        line += (
            f", {sum(sample['control'] != sample['plain'] for sample in known)} under a random change of the same size"
        )
    return [line + "."]


def _with_harm(row: Row) -> str:
    return f"{row['text']} by {abs(row['harm']):.2g} {harm_unit(row['metric'])}"


def _change(row: Row) -> str:
    interval = "" if row["low"] is None else f" [{signed(row['low'])}, {signed(row['high'])}]"
    return signed(row["effect"]) + interval


def _names(rows: Sequence[Row]) -> str:
    return ", ".join(row["text"] for row in rows)
