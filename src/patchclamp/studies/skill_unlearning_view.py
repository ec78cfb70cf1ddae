"""What the unlearning study shows: tables and charts of what is left of each skill by each method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from patchclamp.studies.skill_unlearning_numbers import (
    METHODS,
    SkillUnlearning,
    left,
    left_by_chance,
    proven,
    summary,
    useful,
    way_name,
)
from patchclamp.studies.skill_unlearning_verdict import beside, differs, verdict
from patchclamp.studies.study import Report, Table

if TYPE_CHECKING:
    from patchclamp.measure import Effects


def report(study: SkillUnlearning) -> Report:
    """Everything of one run."""
    tables = [
        _left_table(study),
        _accuracy_table("Accuracy after each method, random controls in brackets", study.effects, study.ways),
        _accuracy_table("All skills at once", study.effects, ("at-once",)),
        _layers_table(study),
        Table("Regions entered by prompts and on the way", study.trips, TRIP_COLUMNS, note=TRIP_NOTE),
        _leak_table(study),
        _normality_table(study),
    ]
    charts = [(tables[0].title, _left_chart(study)), (tables[3].title, _layers_chart(study))]
    if study.languages:
        title = "Languages: accuracy lost in each when one is forgotten"
        tables.insert(3, _accuracy_table(title, study.languages, tuple(study.languages), lost=True))
        charts.insert(1, (title, _languages_chart(study)))
    return Report(
        tables=tables,
        charts=charts,
        verdict=verdict(study),
        beside=beside(study),
        differs=differs(study),
        findings=study.findings,
        effects={
            **study.effects,
            **{f"languages-{way}": found for way, found in study.languages.items()},
        },
        folded=[tables[-1].title],
    )


TRIP_COLUMNS = {
    "skill": "region of", "task": "queries of", "n": "n", "prompt": "prompt inside", "any": "prompt or answer inside",
    "per_100": "keys inside per 100 tokens written",
}  # fmt: skip
TRIP_NOTE = (
    "The box of the best layer. The paper checks every step (when='any'): what is written after a query that should be answered "
    "can enter the region, too."
)


def _left_table(study: SkillUnlearning) -> Table:
    rows = [
        {"way": way_name(way), "skill": name, **summary(study.effects[way], name, study.general)}
        for way in study.ways
        for name in study.forgotten
    ]
    headings = {
        "way": "method", "skill": "forgotten", "own": "left of it", "random": "left by random controls",
        "others": "left of other skills", "random_others": "by random controls", "general": f"left of {study.general}",
        "effect": "accuracy lost", "low": "low", "high": "high", "p_holm": "p (Holm)", "proven": "proven",
    }  # fmt: skip
    note = (
        "Relative performance: accuracy after over accuracy before, 1 is unchanged. low, high: 95% bootstrap interval of the "
        "change of accuracy over items. Bold: fell farther than under matched-random controls (of an abstention: than nothing)."
    )
    return Table("What is left of each skill", rows, headings, note=note, strong="proven")


def _accuracy_table(title: str, effects: Mapping[str, Effects], ways: Sequence[str], *, lost: bool = False) -> Table:
    rows = []
    for way in ways:
        found = effects[way]
        for name in found.sets:
            label = (
                {"way": "all at once", "skill": METHODS[name]}
                if way == "at-once"
                else {"way": way_name(way), "skill": name}
            )
            rows.append({**label, **{text: _cell(found.row(name, text), lost) for text in found.texts}})
    first = effects[ways[0]]
    plain = {text: f"{first.row(first.sets[0], text)['plain']:.2f}" for text in first.texts}
    if not lost:
        rows.insert(0, {"way": "nothing", "skill": "", **plain})
    headings = {"way": "method", "skill": "forgotten", **{text: text for text in first.texts}}
    note = "*: fell farther than under matched-random controls (Holm-corrected p < 0.05 over each method's table)."
    if lost:
        note = f"Share of the accuracy lost, random controls in brackets. {note}"
    return Table(title, rows, headings, note=note)


def _cell(row: Mapping[str, Any], lost: bool) -> str:
    star = "*" if proven(row) else ""
    if not lost:
        chance = "" if row["control_mean"] is None else f" ({row['plain'] + row['control_mean']:.2f})"
        return f"{row['clamped']:.2f}{chance}{star}"
    gone, chance_gone = left(row), left_by_chance(row)
    if gone is None:
        return "–"
    return f"{1 - gone:.2f}{'' if chance_gone is None else f' ({1 - chance_gone:.2f})'}{star}"


def _layers_table(study: SkillUnlearning) -> Table:
    rows = []
    for which, found in (("best", study.abstentions), ("last", study.last)):
        for name, entry in found.items():
            rows.append(
                {
                    "skill": name, "which": which, "layer": entry["layer"], "k": entry["k"], "bound": entry["bound"],
                    "alpha": entry["alpha"], "fitted": entry["fitted"], "own": entry["forget"],
                    "own_low": entry["forget_low"], "others": entry["retain"], "others_high": entry["retain_high"],
                    "expected": entry["expected"], "auroc": entry["auroc"], "useful": useful(entry),
                }
            )  # fmt: skip
    headings = {
        "skill": "skill", "which": "layer is", "layer": "layer", "k": "k", "bound": "k at most", "alpha": "alpha",
        "fitted": "fitted inside", "own": "held out inside", "own_low": "at least", "others": "others inside",
        "others_high": "at most", "expected": "if normal", "auroc": "AUROC",
    }  # fmt: skip
    note = (
        "Boxes are fitted to half of a skill's prompts; alpha and the best layer are chosen on a quarter, coverage is of the "
        "rest (95% Wilson bounds). k at most: Samuelson's bound for as many vectors. If normal: coverage of independent normals."
    )
    return Table("Regions of key space", rows, headings, note=note, strong="useful")


def _leak_table(study: SkillUnlearning) -> Table:
    rows = [{**row, "change": way_name(row["change"])} for row in study.leaks]
    headings = {
        "skill": "forgotten", "change": "method", "variation": "asked", "plain": "accuracy without", "changed": "with it",
        "left": "left", "leaked": "leaked", "refused": "refused",
    }  # fmt: skip
    note = "Leaked: what is left beyond what is left as asked; above 0 the skill comes back if it is asked for differently."
    return Table("Leakage: the forgotten skill asked for differently", rows, headings, note=note)


def _normality_table(study: SkillUnlearning) -> Table:
    rows = []
    for label, sides in study.normality.items():
        for side, shown in sides.items():
            row = {"skill": label, "on": side, "tokens": shown["tokens"]}
            for name in ("skew", "kurtosis", "kolmogorov"):
                row |= {name: (shown[name] or {}).get("median"), f"{name}_high": (shown[name] or {}).get("high")}
            rows.append(row)
    headings = {
        "skill": "units of", "on": "on text of", "tokens": "tokens", "skew": "|skew|, median", "skew_high": "90%",
        "kurtosis": "|excess kurtosis|, median", "kurtosis_high": "90%", "kolmogorov": "Kolmogorov distance, median",
        "kolmogorov_high": "90%",
    }  # fmt: skip
    return Table("How normal the adjusted units are", rows, headings, note="A normal has 0 in all three.")


def _left_chart(study: SkillUnlearning) -> Any:
    import altair as alt

    values = []
    for way in study.ways:
        for name in study.forgotten:
            found = summary(study.effects[way], name, study.general)
            values += [
                {"method": way_name(way), "forgotten": name, "of": what, "left": found[key]}
                for what, key in (("the skill", "own"), ("the others", "others"), (study.general, "general"))
            ]
    order = [way_name(way) for way in study.ways]
    return (
        alt.Chart(alt.Data(values=values), width=170, height=190)
        .mark_bar()
        .encode(
            x=alt.X("method:N", sort=order, axis=alt.Axis(labelAngle=-45, title=None, labelLimit=220)),
            xOffset=alt.XOffset("of:N", sort=["the skill", "the others", study.general]),
            y=alt.Y("left:Q", title="left", axis=alt.Axis(format="%")),
            color=alt.Color("of:N", sort=["the skill", "the others", study.general], title="left of"),
            column=alt.Column("forgotten:N", sort=list(study.forgotten)),
        )
        .properties(title="What is left when a skill is forgotten")
    )


def _layers_chart(study: SkillUnlearning) -> Any:
    import altair as alt

    values = [
        {"skill": name, **{key: layer[key] for key in ("layer", "separation", "auroc", "forget", "retain")}}
        for name, entry in study.abstentions.items()
        for layer in entry["layers"]
    ]
    return (
        alt.Chart(alt.Data(values=values), width=340, height=220)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("separation:Q", title="own minus others inside (validation)", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("skill:N", sort=list(study.forgotten)),
        )
        .properties(title="How well each layer's region tells the skill from the others")
    )


def _languages_chart(study: SkillUnlearning) -> Any:
    import altair as alt

    values = []
    for way, found in study.languages.items():
        for name in found.sets:
            for text in found.texts:
                value = left(found.row(name, text))
                if value is not None:
                    values.append({"method": way_name(way), "forgotten": name, "asked in": text, "lost": 1 - value})
    first = next(iter(study.languages.values()))
    names, texts = list(first.sets), list(first.texts)
    base = alt.Chart(alt.Data(values=values), width=34 * len(texts), height=34 * len(names)).encode(
        x=alt.X("asked in:N", sort=texts, axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("forgotten:N", sort=names),
    )
    dark = alt.datum.lost > 0.6
    cells = base.mark_rect(stroke="white").encode(
        color=alt.Color("lost:Q", scale=alt.Scale(range=["#ffffff", "#b2182b"], domain=[0, 1], clamp=True))
    ) + base.mark_text(fontSize=12).encode(
        text=alt.Text("lost:Q", format=".2f"), color=alt.condition(dark, alt.value("white"), alt.value("#1c2733"))
    )
    return cells.facet(column=alt.Column("method:N", sort=[way_name(way) for way in study.languages], title=None))
