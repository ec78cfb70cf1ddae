"""How the word-class study looks: its tables, charts, the paper's claims tested on its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchclamp.find import Finding
from patchclamp.measure import Effects
from patchclamp.studies.language_neurons_view import COLOURS, effect_rows, effects_chart
from patchclamp.studies.study import Report, Table, judged

ALPHA = 0.05
LAYERS, COPYING, MAP, TEXTS, CLAMPED, NEURONS = (
    "Separation of classes, layer by layer",
    "Predicting or copying?",
    "Words by the class of the word to come",
    "Each text by itself",
    "With the classes' neurons clamped to 0",
    "Predicting words of a class with its neurons clamped to 0",
)
Rows = Sequence[Mapping[str, Any]]


def report(
    found: Finding, neurons: Finding, by_text: Rows, clamped: Rows, effects: Effects, *, generated: bool
) -> Report:
    """The whole report. by_text, clamped: rows of the study's stages."""
    rows = found.details["layers"]
    clamp_rows = [_clamp_row(row) for row in clamped]
    tables = [*_layers(rows, found), _texts(by_text), _clamped(clamp_rows, clamped), _neurons(effects), _pairs(found)]
    charts = [(LAYERS, layer_chart(rows)), (CLAMPED, clamp_chart(clamp_rows)), (NEURONS, matrix_chart(effects))]
    if found.details["map"]:
        charts.insert(1, (MAP, map_chart(found.details["map"]["points"])))
    return Report(
        tables=tables,
        charts=charts,
        verdict=_verdict(found, by_text, clamp_rows, effects),
        beside=_beside(found),
        differs=_differs(found, generated),
        folded=[tables[-1].title],
        commands=[
            f"patchclamp study run word-class-emergence --model {found.model.get('source') or 'MODEL'} "
            "--text en=en_pud-ud-test.conllu --out en-classes/"
        ],
    )


def _best(found: Finding) -> Mapping[str, Any]:
    best = found.details["best"]
    return next(row for row in found.details["layers"] if (row["site"], row["layer"]) == (best["site"], best["layer"]))


def _layers(rows: Rows, found: Finding) -> list[Table]:
    """The value of every layer with its null, and what speaks for or against copying."""
    best = found.details["best"]
    shown = [{**row, "tap": _tap(row), "best": _tap(row) == _tap(best)} for row in rows]
    classes = ", ".join(f"{name} {count}" for name, count in found.details["classes"].items())
    value = {"tap": "layer", "gdv": "next class", "sd": "sd", "z": "z", "p_holm": "p (Holm)", "untrained": "untrained"}
    note = (
        f"GDV: 0 not separated, about -1 perfectly; {found.details['samples_per_class']} samples of each class ({classes} "
        f"in the pools). probe: balanced accuracy, chance {1 / len(found.labels):.2f}. " + " ".join(found.notes)
    )
    copying = {"tap": "layer", "gdv": "next class", "last": "last class", "within_last_class": "same last class",
               "p_within": "p", "within_last_word": "same last word", "p_word": "p"}  # fmt: skip
    inside = (
        "same last class, same last word: the next class among samples that share the last word's class, or the word."
    )
    return [
        Table(LAYERS, shown, value | {"probe": "probe"}, note=note, strong="best"),
        Table(COPYING, shown, copying, note=inside, strong="best"),
    ]


def _texts(by_text: Rows) -> Table:
    headings = {"text": "text", "classes": "classes", "gdv": "next class", "p": "p", "last": "last class"}
    headings |= {"within_last_class": "same last class", "within_last_word": "same last word", "probe": "probe"}
    return Table(
        TEXTS, by_text, headings, note=" ".join(f"{row['text']}: {row['why']}." for row in by_text if "why" in row)
    )


def _clamp_row(row: Mapping[str, Any]) -> dict[str, Any]:
    random = np.array(row["random"]) if row["random"] else None
    closer = None if random is None else int((np.abs(random) <= abs(row["clamped"])).sum())
    return {
        "layer": row["layer"],
        "plain": row["plain"],
        "clamped": row["clamped"],
        "random": None if random is None else float(random.mean()),
        "random_sd": None if random is None else float(random.std()),
        "closer": closer,
        "p": None if random is None or closer is None else (1 + closer) / (1 + len(random)),
    }


def _clamped(shown: Rows, clamped: Rows) -> Table:
    headings = {
        "layer": "layer",
        "plain": "plain",
        "clamped": "clamped",
        "random": "random sets",
        "random_sd": "sd",
        "p": "p",
    }
    many = clamped[0]["n_units"] if clamped else 0
    note = f"GDV of the next class on other text, {many} neurons of all classes clamped. p: rank among the random sets."
    return Table(CLAMPED, shown, headings, note=note)


def _neurons(effects: Effects) -> Table:
    headings = {"set": "class", "plain": "plain", "clamped": "clamped", "effect": "effect", "interval": "95% interval",
                "random": "random sets", "p_holm": "p (Holm)"}  # fmt: skip
    return Table(
        NEURONS,
        effect_rows(effects),
        headings,
        note="Perplexity of the words of the class, on text that the finder did not see.",
    )


def _pairs(found: Finding) -> Table:
    """Which classes lie far apart at the best layer."""
    best = _best(found)
    rows = [{"class": name, "other": "(itself)", "distance": value} for name, value in best["intra"].items()]
    note = "Mean distance of half z-scored states; within a class smaller than between classes where they separate."
    return Table(f"Distances between classes at {_tap(best)}", [*rows, *best["inter"]], note=note)


def _verdict(found: Finding, by_text: Rows, clamped: Rows, effects: Effects) -> list[str]:
    """The paper's claim and its controls, tested on the numbers of this run."""
    best, rows = _best(found), found.details["layers"]
    hidden = [row for row in rows if row["site"] != "embed"]
    embed = next((row["gdv"] for row in rows if row["site"] == "embed"), None)
    tested = [row for row in by_text if "why" not in row]
    apart = [row for row in tested if row["p"] < ALPHA]
    grown = hidden[0]["gdv"] - hidden[-1]["gdv"] > 2 * float(np.hypot(hidden[0]["sd"], hidden[-1]["sd"]))
    last = [(_tap(row), row["last"]) for row in rows if row["last"] is not None]
    lowest = min(last, key=lambda pair: pair[1])[0] if last else ""
    own = effect_rows(effects)
    hurt = [row for row in own if row["effect"] > 0 and row["p_holm"] < ALPHA]
    beyond = [row for row in own if row["control_mean"] is None or row["effect"] > row["control_mean"]]
    return [
        judged("states before a word separate by its class", best["p_holm"] < ALPHA, f"GDV {best['gdv']:.3f} at {_tap(best)}"),
        _less("more than with random weights", best["gdv"], best["untrained"]),
        _less("more than in the embedding of the last word", best["gdv"], embed),
        _inside("also after last words of the same class (not copying the class)", best["within_last_class"], best["p_within"]),
        _inside("also after the same last word (not copying the word)", best["within_last_word"], best["p_word"]),
        judged("it grows with depth", grown, f"{hidden[0]['gdv']:.3f} to {hidden[-1]['gdv']:.3f}"),
        judged(
            "the last word's class separates best in the first half of the layers",
            None if len(last) < 2 else [tap for tap, _ in last].index(lowest) < len(last) / 2,
            f"best at {lowest}",
        ),
        judged(
            "it holds in every text by itself",
            len(apart) == len(tested) if tested else None,
            f"{len(apart)} of {len(tested)}",
        ),
        _moved(clamped),
        judged(
            f"and hurts the prediction of words of each class (Holm-corrected p < {ALPHA})",
            len(hurt) == len(own), f"{len(hurt)} of {len(own)} classes; more than random sets on average: {len(beyond)}",
        ),
    ]  # fmt: skip


def _less(claim: str, value: float, control: float | None) -> str:
    return judged(claim, None if control is None else value < control, f"{value:.3f} against {_shown(control)}")


def _inside(claim: str, value: float | None, p: float | None) -> str:
    if value is None or p is None:
        return judged(claim, None, "no two classes follow often enough")
    return judged(claim, p < ALPHA, f"GDV {value:.3f}, p {p:.3f}")


def _moved(clamped: Rows) -> str:
    """Whether the last layer's value comes closer to 0 with the classes' neurons clamped than with any random set."""
    claim = "clamping the classes' neurons moves the last layer's value closer to 0 than any random set does"
    if not clamped or clamped[-1]["random"] is None:
        return judged(claim, None)
    end = clamped[-1]
    holds = end["closer"] == 0 and abs(end["clamped"]) < abs(end["plain"])
    return judged(claim, holds, f"{end['plain']:.3f} to {end['clamped']:.3f}, random {end['random']:.3f}")


def _beside(found: Finding) -> Table:
    """What is known of the paper (its abstract gives no numbers) beside ours."""
    best = _best(found)
    ours = {
        "states cluster by the class of the next word": ("yes", f"GDV {best['gdv']:.3f}, p {best['p_holm']:.3g}"),
        "labels of classes used in training": ("none", "none"),
        "words read before the target": ("9", "all before in the document"),
        "value with random weights": ("not known", _shown(best["untrained"])),
        "value among words that share the last word's class": ("not known", _shown(best["within_last_class"])),
    }
    rows = [{"what": what, "paper": paper, "ours": mine} for what, (paper, mine) in ours.items()]
    return Table("Beside the paper", rows)


def _differs(found: Finding, generated: bool) -> list[str]:
    text = (
        "generated sentences of four units, whose classes follow a fixed order in each language"
        if generated
        else "yours"
    )
    return [
        f"model: {found.model.get('name')}, a causal language model; the paper trains a small network on nine-word windows",
        f"text: {text}; the paper's corpus, tagger and numbers are not in its abstract, which is all we could read",
        "balanced samples, controls and permutation tests are ours",
    ]


def layer_chart(rows: Rows) -> Any:
    """Altair: GDV by layer for the next class and every control."""
    import altair as alt

    series = {"gdv": "next class", "last": "last class", "untrained": "untrained", "null_mean": "shuffled labels",
              "within_last_class": "within last class"}  # fmt: skip
    values = [
        {"layer": _tap(row), "series": name, "gdv": row[key]}
        for row in rows
        for key, name in series.items()
        if row[key] is not None
    ]
    order = [_tap(row) for row in rows]
    colours = alt.Scale(domain=list(series.values()), range=list(COLOURS[: len(series)]))
    return (
        alt.Chart(alt.Data(values=values), width=620, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:N", sort=order, title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("gdv:Q", title="GDV (lower separates better)"),
            color=alt.Color("series:N", title="", scale=colours, sort=list(series.values())),
        )
    )


def map_chart(points: Rows) -> Any:
    """Altair: words on the plane that keeps their distances best, coloured by the class of the word to come."""
    import altair as alt

    names = sorted({point["class"] for point in points})
    colours = alt.Scale(domain=names, range=[COLOURS[at % len(COLOURS)] for at in range(len(names))])
    return (
        alt.Chart(alt.Data(values=list(points)), width=560, height=420)
        .mark_point(size=45, opacity=0.75, filled=True)
        .encode(
            x=alt.X("x:Q", title=None, axis=alt.Axis(labels=False, ticks=False)),
            y=alt.Y("y:Q", title=None, axis=alt.Axis(labels=False, ticks=False)),
            color=alt.Color("class:N", title="next word", scale=colours),
            shape=alt.Shape("other:N", title="last word"),
        )
    )


def clamp_chart(rows: Rows) -> Any:
    """Altair: GDV by layer as it is, with the classes' neurons clamped, and with random ones clamped."""
    import altair as alt

    names = {"plain": "plain", "clamped": "classes' neurons clamped", "random": "random sets clamped"}
    values = [
        {"layer": row["layer"], "what": name, "gdv": row[key]}
        for row in rows
        for key, name in names.items()
        if row[key] is not None
    ]
    colours = alt.Scale(domain=list(names.values()), range=list(COLOURS[:3]))
    return (
        alt.Chart(alt.Data(values=values), width=520, height=240)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("gdv:Q", title="GDV of the next class"),
            color=alt.Color("what:N", title="", scale=colours, sort=list(names.values())),
        )
    )


def matrix_chart(effects: Effects) -> Any:
    """Altair: what clamping each class's neurons does to words of every class."""
    return effects_chart(effects, "Change of log-loss of words of a class when a class's neurons are clamped to 0")


def _tap(row: Mapping[str, Any]) -> str:
    return f"{row['site']}.{row['layer']}"


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
