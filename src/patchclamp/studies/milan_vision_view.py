"""What the study of image networks shows: tables, charts, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchclamp.studies.study import Report, Table, judged

ALPHA = 0.05
STILL = 0.02
TOLD = {"shortcut": "trained with words", "clean": "trained without words"}


@dataclass(frozen=True, eq=False)
class MilanVision:
    """Everything that was measured, as the report needs it.

    trained: network -> accuracies. described: network -> descriptions and their scores. layers: concepts by layer and curves: of
    the network that was trained with words, accuracy while units of a kind are 0. audit: units of the keywords in both networks.
    edit: what removing these did; None where there were none. tagger: how well learned concepts tell left-out cells.
    """

    trained: Mapping[str, dict[str, Any]]
    described: Mapping[str, dict[str, Any]]
    layers: Sequence[dict[str, Any]]
    curves: Sequence[dict[str, Any]]
    audit: Mapping[str, Any]
    edit: dict[str, Any] | None
    keywords: tuple[str, ...]
    tagger: Mapping[str, float]
    model: Mapping[str, Any]


def report(made: MilanVision) -> Report:
    """Tables from the networks to the edit, then the verdict."""
    curves = Table(
        "Accuracy while units of a kind are 0",
        made.curves,
        {"criterion": "words of the kind", "fraction": "share of units", "units": "units", "accuracy": "accuracy",
         "random": "random units", "random_low": "lowest", "random_high": "highest"},
        note="Units whose descriptions have most words of the kind first; random: as many in every layer.",
    )  # fmt: skip
    every = _every(made)
    tables = [_networks(made), _described(made), _layers(made), curves, _audit(made)]
    charts: list[tuple[str, Any]] = [(curves.title, _curves_chart(made))]
    if made.edit is not None:
        edit = _edit(made.edit)
        tables += [edit]
        charts.append((edit.title, _edit_chart(made.edit)))
    return Report(
        tables=[*tables, every],
        charts=charts,
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[every.title, curves.title],
    )


def _networks(made: MilanVision) -> Table:
    rows = [
        {"network": TOLD[name], **{key: found[key] for key in ("validation", "without", "adversarial", "units")},
         "loss": found["losses"][-1]}
        for name, found in made.trained.items()
    ]  # fmt: skip
    heads = {"network": "network", "validation": "half with their word", "without": "no words",
             "adversarial": "wrong words", "units": "units", "loss": "training loss"}  # fmt: skip
    return Table("Accuracy of the two networks", rows, heads, note="Six classes; by chance 0.17.")


def _described(made: MilanVision) -> Table:
    rows = []
    for name, found in made.described.items():
        scores = found["scores"]["part_auroc"]
        rows.append(
            {"network": TOLD[name], "units": len(found["descriptions"]), "dead": found["dead"],
             "explained": sum(bool(one["explains"]) for one in found["descriptions"]), "auroc": scores["mean"],
             "shuffled": scores["control"], "gain": scores["gain"], "low": scores["low"], "high": scores["high"],
             "p": scores["p"]}
        )  # fmt: skip
    heads = {"network": "network", "units": "units", "dead": "dead", "explained": "described", "auroc": "AUROC",
             "shuffled": "descriptions of others", "gain": "gain", "low": "low", "high": "high", "p": "p"}  # fmt: skip
    note = (
        "Described: the text tells more than nothing does. AUROC: which cells of held-out pictures a unit answers to. Learned "
        f"concepts name {made.tagger['accuracy']:.0%} of left-out cells right (always the same: {made.tagger['chance']:.0%})."
    )
    return Table("Descriptions on held-out pictures", rows, heads, note=note)


def _layers(made: MilanVision) -> Table:
    return Table(
        "What descriptions name, layer by layer",
        made.layers,
        note="Network trained with words; a unit may count for several kinds.",
    )


def _audit(made: MilanVision) -> Table:
    rows = [
        {**row, "network": TOLD[row["network"]], "layers": ", ".join(f"{n} in layer {key}" for key, n in row["layers"].items())}
        for row in made.audit["rows"]
    ]  # fmt: skip
    heads = {"network": "network", "units": "units named so", "described": "of", "share": "share", "layers": "where",
             "auroc": "AUROC for a word", "auroc_random": "random units", "p": "p"}  # fmt: skip
    return Table(
        f"Audit: units whose description has {' or '.join(made.keywords)}",
        rows,
        heads,
        note="AUROC: highest activation on pictures with their word against the same kind of pictures without; p against 200 "
        "random sets of the same layers.",
    )


def _edit(edit: Mapping[str, Any]) -> Table:
    told = {"keywords": "units of the keywords", "all units": "all units, sorted alike", "random": "random units"}
    rows: list[dict[str, Any]] = [{"what": "nothing", "units": 0, **edit["plain"], "gain": 0.0}]
    rows += [
        {"what": told[order], **{key: row[key] for key in ("units", "validation", "choosing", "test")},
         "gain": edit["gains"][order]}
        for order, row in edit["rows"].items()
    ]  # fmt: skip
    heads = {"what": "removed", "units": "units", "validation": "half with their word", "choosing": "wrong words, to choose",
             "test": "wrong words, test", "gain": "change"}  # fmt: skip
    tolerated = edit["tolerated"]
    note = (
        "The number of units is the best on pictures with wrong words that are no part of the test; random: as many as of the "
        f"keywords. If validation alone decides (1 point at most): {tolerated['units']} units, {tolerated['gain']:+.3f}. "
        f"Pictures without words: {edit['without']['plain']:.3f} before, {edit['without']['edited']:.3f} after."
    )
    return Table("Edit: units removed", rows, heads, note=note)


def _every(made: MilanVision) -> Table:
    rows = [
        {"network": TOLD[name], **{key: one[key] for key in ("unit", "description", "score", "margin", "explains")}}
        for name, found in made.described.items()
        for one in found["descriptions"]
    ]
    return Table("Every description", rows)


def _verdict(made: MilanVision) -> list[str]:
    shortcut, clean = made.trained["shortcut"], made.trained["clean"]
    scores = made.described["shortcut"]["scores"]["part_auroc"]
    named = {row["network"]: row for row in made.audit["rows"]}
    lines = [
        judged(
            "the network trained with words leans on them",
            shortcut["adversarial"] < min(shortcut["without"], clean["adversarial"]),
            f"accuracy {shortcut['adversarial']:.2f} with wrong words, {shortcut['without']:.2f} without words; "
            f"trained without them {clean['adversarial']:.2f} with wrong words",
        ),
        judged(
            "descriptions tell better than those of other units what units answer to on held-out pictures",
            None if scores["p"] is None else scores["gain"] > 0 and scores["p"] < ALPHA,
            "" if scores["p"] is None else f"AUROC {scores['mean']:.2f}, of others {scores['control']:.2f}, p {scores['p']:.3g}",
        ),
        *_analysed(made),
        judged(
            "audit: the network trained with words has more units that are described by them",
            named["shortcut"]["units"] > named["clean"]["units"],
            f"{named['shortcut']['units']} and {named['clean']['units']}",
        ),
        judged(
            "audit: units described by words answer to them more than random units of the same layers",
            None if named["shortcut"]["p"] is None else named["shortcut"]["p"] < ALPHA,
            "" if named["shortcut"]["p"] is None else f"AUROC {named['shortcut']['auroc']:.2f}, random "
            f"{named['shortcut']['auroc_random']:.2f}, p {named['shortcut']['p']:.3g}",
        ),
    ]  # fmt: skip
    if made.edit is None:
        return [*lines, "edit: no description has the keywords, so that nothing could be removed"]
    gains, count = made.edit["gains"], made.edit["chosen"]["keywords"]
    lost = clean["adversarial"] - shortcut["adversarial"]
    mended = f"; {gains['keywords'] / lost:.0%} of what training with words lost" if lost > 0 else ""
    p, without = made.edit["p"], made.edit["without"]
    return [
        *lines,
        judged(
            f"edit: removing {count} of {len(made.edit['candidates'])} units described by words raises accuracy with wrong words",
            gains["keywords"] > 0 and p is not None and p < ALPHA and gains["keywords"] > gains["random"],
            f"{gains['keywords']:+.3f}, random units {gains['random']:+.3f}, p {1.0 if p is None else p:.3g}{mended}",
        ),
        judged(
            "edit: the descriptions are needed (sorting all units the same way gains less)",
            gains["all units"] < gains["keywords"],
            f"{gains['all units']:+.3f}",
        ),
        judged(
            f"edit: pictures without words are told as well as before (within {STILL:.2f})",
            without["edited"] > without["plain"] - STILL,
            f"{without['plain']:.3f} before, {without['edited']:.3f} after",
        ),
    ]


def _analysed(made: MilanVision) -> list[str]:
    """For every kind the largest removal: worse or better than all random ones, or neither."""
    last = {row["criterion"]: row for row in made.curves if row["units"]}
    if not last:
        return ["analysis: no unit has a description, so that none could be removed by it"]
    more = [name for name, row in last.items() if row["accuracy"] < row["random_low"]]
    less = [name for name, row in last.items() if row["accuracy"] > row["random_high"]]
    numbers = "; ".join(
        f"{name} {row['accuracy']:.2f}, random {row['random']:.2f}, {row['units']} units" for name, row in last.items()
    )
    return [
        judged("analysis: units of some kinds matter more than random ones", bool(more), ", ".join(more) or "none"),
        judged("analysis: units of some kinds matter less than random ones", bool(less), ", ".join(less) or "none"),
        f"analysis: accuracy without the units of each kind: {numbers}",
    ]


def _beside(made: MilanVision) -> Table:
    named = {row["network"]: row for row in made.audit["rows"]}
    edit = made.edit or {}
    gains, chosen = edit.get("gains", {}), edit.get("chosen", {})
    count, total = len(edit.get("candidates", ())), made.trained["shortcut"]["units"]
    rows: list[dict[str, Any]] = [
        {"what": "accuracy on the adversarial test, trained with words", "paper": "58.8 %",
         "ours": f"{made.trained['shortcut']['adversarial']:.1%}"},
        {"what": "the same, trained without words", "paper": "80.8 %", "ours": f"{made.trained['clean']['adversarial']:.1%}"},
        {"what": "units described by words", "paper": "300 of 1,024 (29 %)", "ours": f"{count} of {total} ({count / total:.0%})"},
        {"what": "units removed", "paper": "13", "ours": str(chosen.get("keywords", 0))},
        {"what": "points gained on the adversarial test", "paper": "+4.9", "ours": _points(gains.get("keywords"))},
        {"what": "the same, all units sorted alike", "paper": "less than 1", "ours": _points(gains.get("all units"))},
        {"what": "audit: units of the concept, in a network that saw it and one that didn't", "paper": "213 and 142 (faces)",
         "ours": f"{named['shortcut']['units']} and {named['clean']['units']} (words)"},
    ]  # fmt: skip
    return Table("Beside the paper (ResNet18, ImageNet)", rows, {"what": "", "paper": "paper", "ours": "ours"})


def _differs(made: MilanVision) -> list[str]:
    return [
        "networks: three convolutions trained here on drawn shapes, the paper's are ResNets and AlexNets on photographs; the "
        f"model {made.model['name']} is not used",
        "descriptions are made of attributes and learned concepts, the paper's are sentences of a trained captioner, so that "
        "its BERTScores have no counterpart here",
        "kinds of words stand for the paper's parts of speech, and random units come from the same layers",
        "the number of units removed is chosen on shifted pictures apart from the test; what validation alone would choose is in "
        "the table's note",
        "p-values are ours",
    ]


def _points(gain: float | None) -> str:
    return "none removed" if gain is None else f"{100 * gain:+.1f}"


def _curves_chart(made: MilanVision) -> Any:
    import altair as alt

    values = [
        {"kind": row["criterion"], "share": row["fraction"], "accuracy": row[key], "units": told}
        for row in made.curves
        for key, told in (("accuracy", "of the kind"), ("random", "random"))
    ]
    return (
        alt.Chart(alt.Data(values=values), width=150, height=120)
        .mark_line(point=True)
        .encode(
            x=alt.X("share:Q", title="share of units removed", axis=alt.Axis(format="%")),
            y=alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("units:N", title="units"),
            facet=alt.Facet("kind:N", columns=3, title=None),
        )
    )


def _edit_chart(edit: Mapping[str, Any]) -> Any:
    import altair as alt

    values = [{key: row[key] for key in ("order", "units", "test", "low", "high")} for row in edit["curve"]]
    base = alt.Chart(alt.Data(values=values), width=420, height=220).encode(
        x=alt.X("units:Q", title="units removed"), color=alt.Color("order:N", title="removed")
    )
    band = base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="accuracy with wrong words"), y2="high:Q")
    return band + base.mark_line(point=True).encode(y=alt.Y("test:Q", title="accuracy with wrong words"))
