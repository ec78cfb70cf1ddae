"""What changed between two checkpoints: language neurons before and after, trained and untrained languages, overlap.

Both findings must come from the same tokenizer and the same texts (Zhang et al. 2025, section on alignment).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.find.finding import Finding
from patchclamp.models.units import UnitSet, describe

KINDS = ("specific", "related")
LAYER_KINDS = ("specific", "related", "general")


@dataclass(frozen=True)
class Overlap:
    """How much of one set another one repeats. share: |A and B| / |A|, None for an empty A. jaccard: over |A or B|."""

    before: int
    after: int
    shared: int
    share: float | None
    jaccard: float | None


@dataclass(frozen=True)
class Comparison:
    """Changes from `before` to `after`, as lists of plain rows.

    layers: layer, and for specific, related and general the counts before, after and their change. served: n (labels
    above tau), and the number of units with that n before, after and the change, among selected and among all units.
    languages: label, trained, and specific and related counts before, after, change. averages: "trained" and
    "untrained" -> mean change of specific and related over those labels, None without such labels. overlaps: label,
    kind, and an `Overlap`. spontaneous: kind -> whether the untrained labels changed, on average, in the direction
    of the trained ones; None unless both groups exist. notes: what was forced.
    """

    before: str
    after: str
    layers: tuple[dict[str, int], ...]
    served: tuple[dict[str, int], ...]
    languages: tuple[dict[str, Any], ...]
    averages: dict[str, dict[str, float] | None]
    spontaneous: dict[str, bool | None]
    overlaps: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        drawn = Table(title=f"{self.before} -> {self.after}", title_justify="left", header_style="bold")
        for heading in ("label", "trained", "specific", "change", "kept", "related", "change", "kept"):
            drawn.add_column(heading, justify="left" if heading in ("label", "trained") else "right")
        shares = {(row["label"], row["kind"]): row["share"] for row in self.overlaps}
        for row in self.languages:
            cells = [row["label"], "yes" if row["trained"] else "no"]
            for kind in KINDS:
                share = shares[row["label"], kind]
                kept = "-" if share is None else f"{share:.1%}"
                cells += [str(row[f"{kind}_after"]), f"{row[f'{kind}_change']:+d}", kept]
            drawn.add_row(*[Text(cell) for cell in cells])
        means = [
            f"{group}: " + ", ".join(f"{kind} {value:+.1f}" for kind, value in mean.items())
            for group, mean in self.averages.items()
            if mean is not None
        ]
        return Group(drawn, *[Text(text) for text in (*means, *self.notes)])


def compare(before: Finding, after: Finding, *, trained: Sequence[str] = (), force: bool = False) -> Comparison:
    """What a change of the model did to its language neurons (steps 17 and 18).

    trained: the labels that the change was trained on; the others count as untrained. force: compare although
    tokenizer, text or parameters differ; the differences are then listed in `notes`.
    Raises InputError for unknown labels, MismatchError for models of other shape, other labels, and, unless forced,
    other tokenizers, texts or parameters.
    """
    for label in trained:
        if label not in before.labels:
            raise InputError(f"trained label {label!r} is in neither finding; labels are {', '.join(before.labels)}")
    order = _matched(before, after)
    differences = _differences(before, after)
    if differences and not force:
        raise MismatchError(
            f"these findings can't be compared: {'; '.join(differences)}; force=True compares them all the same"
        )
    serving = {kind: (before.serving([kind]), after.serving([kind])[order]) for kind in KINDS}
    languages = tuple(_language(at, label, label in trained, serving) for at, label in enumerate(before.labels))
    averages = {"trained": _average(languages, True), "untrained": _average(languages, False)}
    return Comparison(
        before=describe(before.model),
        after=describe(after.model),
        layers=_layers(before, after),
        served=_served(before, after),
        languages=languages,
        averages=averages,
        spontaneous={kind: _same_direction(averages, kind) for kind in KINDS},
        overlaps=tuple(
            {"label": label, "kind": kind, **asdict(_overlap(old[at], new[at]))}
            for at, label in enumerate(before.labels)
            for kind, (old, new) in serving.items()
        ),
        notes=tuple(differences),
    )


def overlap(before: UnitSet, after: UnitSet) -> Overlap:
    """|A and B| / |A| and Jaccard of two unit sets, A first; they may belong to two checkpoints of the same shape."""
    for site in {*before.sites, *after.sites}:
        if before.layouts.get(site) != after.layouts.get(site):
            raise MismatchError(f"the sets belong to models with other {site} units, so none of them is the same unit")
    shared = len({*before.names()} & {*after.names()})
    return _measured(len(before), len(after), shared)


def _overlap(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Overlap:
    return _measured(int(before.sum()), int(after.sum()), int((before & after).sum()))


def _measured(before: int, after: int, shared: int) -> Overlap:
    union = before + after - shared
    return Overlap(before, after, shared, shared / before if before else None, shared / union if union else None)


def _matched(before: Finding, after: Finding) -> list[int]:
    """Position in `after` of each label of `before`; MismatchError where nothing can be matched."""
    if before.layout != after.layout:
        raise MismatchError(
            f"{describe(before.model)} and {describe(after.model)} have other {before.site} and {after.site} units; "
            "only checkpoints of one architecture and one site can be compared"
        )
    if set(before.labels) != set(after.labels):
        raise MismatchError(f"the labels differ: {', '.join(before.labels)} and {', '.join(after.labels)}")
    return [after.labels.index(label) for label in before.labels]


def _differences(before: Finding, after: Finding) -> list[str]:
    """What should be the same in both and isn't."""
    found = []
    tokenizers = before.model.get("tokenizer"), after.model.get("tokenizer")
    tokens = before.details.get("tokens"), after.details.get("tokens")
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        found.append("the tokenizers differ")
    elif tokens[0] != tokens[1]:
        found.append(f"the token totals differ ({tokens[0]} and {tokens[1]}): another tokenizer or other limits")
    texts = [_corpus(finding).get("fingerprint") for finding in (before, after)]
    if texts[0] != texts[1]:
        found.append(f"the texts differ (corpus {str(texts[0])[:12]} and {str(texts[1])[:12]})")
    if before.method != after.method:
        found.append(f"the methods differ ({before.method} and {after.method})")
    for name in ("rate", "bar"):
        if before.parameters.get(name) != after.parameters.get(name):
            found.append(f"{name} differs ({before.parameters.get(name)} and {after.parameters.get(name)})")
    return found


def _corpus(finding: Finding) -> Mapping[str, Any]:
    inputs: Mapping[str, Any] = finding.provenance.get("inputs", {})
    corpus: Mapping[str, Any] = inputs.get("recording", {}).get("corpus", {})
    return corpus


def _layers(before: Finding, after: Finding) -> tuple[dict[str, int], ...]:
    old, new = before.per_layer(), after.per_layer()
    rows = []
    for layer in range(before.layout.n_layers):
        row = {"layer": layer}
        for kind in LAYER_KINDS:
            row |= _change(kind, int(old[kind][layer]), int(new[kind][layer]))
        rows.append(row)
    return tuple(rows)


def _served(before: Finding, after: Finding) -> tuple[dict[str, int], ...]:
    rows = []
    for n in range(1, len(before.labels) + 1):
        row = {"n": n}
        for which in ("selected", "all"):
            row |= _change(which, before.details["served"][which][n], after.details["served"][which][n])
        rows.append(row)
    return tuple(rows)


def _language(
    at: int, label: str, trained: bool, serving: Mapping[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"label": label, "trained": trained}
    for kind, (old, new) in serving.items():
        row |= _change(kind, int(old[at].sum()), int(new[at].sum()))
    return row


def _change(kind: str, before: int, after: int) -> dict[str, int]:
    return {f"{kind}_before": before, f"{kind}_after": after, f"{kind}_change": after - before}


def _average(languages: Sequence[Mapping[str, Any]], trained: bool) -> dict[str, float] | None:
    rows = [row for row in languages if row["trained"] == trained]
    if not rows:
        return None
    return {kind: sum(row[f"{kind}_change"] for row in rows) / len(rows) for kind in KINDS}


def _same_direction(averages: Mapping[str, dict[str, float] | None], kind: str) -> bool | None:
    trained, untrained = averages["trained"], averages["untrained"]
    if trained is None or untrained is None:
        return None
    return bool(np.sign(trained[kind]) == np.sign(untrained[kind]) != 0)
