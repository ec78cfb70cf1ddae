"""What a reader of a language finding should know before trusting its numbers, in words."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from patchclamp.find.language_counts import Counts
from patchclamp.find.language_selection import CLASSES, Split
from patchclamp.find.recordings import RecordingLike


def notes(recording: RecordingLike, counts: Counts, split: Split, details: dict[str, Any]) -> tuple[str, ...]:
    """All remarks that apply to this finding, one sentence each; empty if there is nothing to say."""
    remarks = [
        _gated_note(recording, counts),
        _layers_note(counts),
        _bar_note(split),
        _search_note(split),
        _idle_note(split),
        _close_note(details),
        *_twin_notes(counts),
    ]
    return tuple(remark for remark in remarks if remark is not None)


def _twin_notes(counts: Counts) -> list[str]:
    total, tokens = counts.total, counts.tokens.sum(axis=1)
    return [
        f"{counts.labels[a]} and {counts.labels[b]} have identical counts (the same text?): no unit can be specific to either"
        for a, b in itertools.combinations(range(len(counts.labels)), 2)
        if tokens[a] == tokens[b] and np.array_equal(total[a], total[b])
    ]


def _layers_note(counts: Counts) -> str | None:
    if counts.recorded.all():
        return None
    left_out = int((~counts.recorded).sum())
    return f"{left_out} units lie in layers that were not recorded: rate and bar refer to the others, and no stages are drawn"


def _gated_note(recording: RecordingLike, counts: Counts) -> str | None:
    gated = "gated" in recording.model.get("forms", ())
    if counts.layout.site != "mlp" or counts.signal != "value" or not gated:
        return None
    return (
        "the MLP is gated and firing was counted on the product that enters the down projection; the papers count the "
        "gate's activation: record firing with signal gate, the default, for that"
    )


def _bar_note(split: Split) -> str | None:
    if not (split.classes != CLASSES.index("dead")).any():
        return "no unit fired for any label: all are dead"
    if not split.member.any():
        return f"no probability lies above the activity bar ({split.tau:.3g}), so no unit serves any label; lower bar"
    return None


def _search_note(split: Split) -> str | None:
    search = split.search
    if search is None:
        return None
    if not search.works:
        return (
            "even at lambda 0 units that serve all labels are among the selected ones (they count as general, not as "
            "related); lower rate to keep them out"
        )
    if not search.monotone and search.first_failure is not None:
        return (
            f"lambda {search.lam:.6g} works, but a general unit is already selected from {search.first_failure:.6g} on: "
            "the search is not monotone here; give lam= to decide"
        )
    if search.rule == "smallest":
        return (
            f"no unit that serves all labels is ever selected, so the paper's rule leaves lambda open; {search.lam:.6g} is "
            "the smallest one at which the selected units serve a label"
        )
    if not search.failure_above:
        return f"no lambda was seen to fail, so {search.lam:.6g}, the upper end of the search, is used"
    return None


def _idle_note(split: Split) -> str | None:
    idle = int((split.n_served[split.selected] == 0).sum())
    if not idle:
        return None
    return f"{idle} of {split.selected.sum()} selected units are above the activity bar for no label: unassigned"


def _close_note(details: dict[str, Any]) -> str | None:
    close = details["near_bar"]["units"]
    if not close:
        return None
    return (
        f"{close} of {details['selected']} selected units lie within 2 standard errors of the activity bar for some "
        "label: more text would settle them"
    )
