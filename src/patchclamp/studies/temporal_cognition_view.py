"""Tables and charts of the temporal-cognition study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchclamp.find.distances import LAWS
from patchclamp.studies.study import Report, Table
from patchclamp.studies.temporal_cognition_verdict import verdict

if TYPE_CHECKING:
    from patchclamp.studies.temporal_cognition_verdict import TemporalCognition

# Li et al. 2025: share of temporal units and best layers' R^2 are read from the paper's figures
PAPER = (
    {"model": "Llama-3.2-1B", "reference": None, "share": 0.01218, "past": 0.403, "future": 0.660},
    {"model": "Qwen2.5-1.5B", "reference": None, "share": 0.01263, "past": 0.324, "future": 0.445},
    {"model": "Llama-3.1-8B", "reference": None, "share": 0.01706, "past": 0.684, "future": 0.299},
    {"model": "Qwen2.5-14B", "reference": None, "share": 0.01278, "past": 0.893, "future": 0.349},
    {"model": "Llama-3.1-70B", "reference": 2010, "share": 0.01245, "past": 0.591, "future": 0.190},
    {"model": "Qwen2.5-72B", "reference": 2020, "share": 0.00671, "past": 0.756, "future": 0.398},
)
FIT_COLUMNS = {"law": "law", "r2": "R²", "low": "95% low", "high": "high", "p": "p (Mantel)", "unique": "adds"}


def report(found: TemporalCognition) -> Report:
    """The study's report."""
    geometry, units, probes = _geometry_table(found), _unit_table(found), _probe_table(found)
    tables = [geometry, _point_table(found), units, _fit_table(found), probes, _judgement_table(found)]
    charts = [(geometry.title, _law_chart(found)), (probes.title, _probe_chart(found))]
    if (curve := _tuning_chart(found)) is not None:
        charts.append((units.title, curve))
    tables.append(_effect_table(found))
    if found.text is not None:
        tables.append(Table("Years in the text", found.text["fits"], {"label": "text", **FIT_COLUMNS}))
    every = Table("Every fit to hidden states", found.geometry["fits"])
    differences = Table(
        "Years minus numbers: difference of R²",
        found.geometry["contrast"],
        note="Of the same law, with 95% bootstrap intervals over the stimuli that both conditions share.",
    )
    return Report(
        tables=[*tables, differences, every],
        charts=charts,
        verdict=verdict(found),
        beside=_beside(found),
        differs=_differs(found),
        findings={f"temporal-{site}": finding for site, finding in found.findings.items()},
        effects={"clamped": found.effects},
        folded=[every.title, differences.title],
    )


def _geometry_table(found: TemporalCognition) -> Table:
    rows = []
    for layer in range(found.n_layers):
        for condition in ("year", "number"):
            fits = [row for row in found.geometry["fits"] if (row["layer"], row["condition"]) == (layer, condition)]
            rows.append({"layer": layer, "cue": condition, **{row["law"]: rounded(row["r2"]) for row in fits}})
    headings = {"layer": "layer", "cue": "cue", "log": "log", "levenshtein": "edit", "reference": "ref.",
                "side": "side", "reference, same side": "same side"}  # fmt: skip
    note = (
        f"R² of 1 - cosine of {found.geometry['years']} years' centred residual stream (last token) on each law's distance: log, "
        "edit (Levenshtein), ref. (log around each matrix's own best year), the side of that year alone, and ref. within a side."
    )
    return Table("Which law of distance the hidden states follow", rows, headings, note)


def _point_table(found: TemporalCognition) -> Table:
    rows = [
        {**point, "interval": f"{point['grid_low']:.0f}-{point['grid_high']:.0f}" if point["grid_low"] else None,
         "stable": rounded(point["neighbours_stable"], 2), "held_out": rounded(point["cv"]), "of_log": rounded(point["cv_log"]),
         "perm": rounded(point["p"], 2), "answer": "yes" if point["found"] else "no"}
        for point in found.geometry["points"]
    ]  # fmt: skip
    headings = {"layer": "layer", "condition": "cue", "grid": "grid", "interval": "95%", "perm": "p", "neighbours": "near",
                "held_out": "R² new", "of_log": "log", "answer": "found"}  # fmt: skip
    note = (
        "grid: the year whose reference law fits best, with p against relabelled years; near: where neighbours differ most; R² "
        "new: on held-out years, beside that of the plain log law. `why` in "
        "report.json says what is missing."
    )
    return Table("Reference point of the hidden states", rows, headings, note, strong="found")


def _unit_table(found: TemporalCognition) -> Table:
    rows = []
    for site, finding in found.findings.items():
        named, chance, largest = finding.null["mirror"], finding.null.get("named", {}), finding.details["largest"]
        rows.append(
            {"site": site, "units": named["observed"], "share": f"{finding.details['share']:.2%}", "mirror": named["mirrored"],
             "by_chance": chance.get("mean"), "p": chance.get("p"), "d": rounded(largest["d"], 2),
             "d_z": rounded(largest["d_z"], 2), "underflow": finding.details["p_underflow"],
             "layers": " ".join(map(str, finding.sets["year"].per_layer(site)))}
        )  # fmt: skip
    headings = {"site": "site", "units": "years", "share": "share", "mirror": "numbers", "by_chance": "chance",
                "d": "max d", "d_z": "max d_z", "layers": "per layer"}  # fmt: skip
    note = (
        "Units that prefer years, and numbers, by the paper's bars: corrected p < 1e-4, d > 2, consistency > 0.95. chance: both "
        "together where cue and control are exchanged at random."
    )
    return Table("Units that prefer years", rows, headings, note)


def _fit_table(found: TemporalCognition) -> Table:
    rows = []
    for site, finding in found.findings.items():
        for fit in (finding.details["tuning"] or {}).get("fits", []):
            numbers = {key: rounded(fit[key]) for key in ("slope", "r2", "r2_linear")}
            rows.append({"site": site, **{key: fit[key] for key in ("layer", "side", "n", "best")}, **numbers})
    headings = {"site": "site", "layer": "layer", "side": "side", "n": "years", "slope": "slope", "r2": "R² log",
                "r2_linear": "linear", "best": "best model"}  # fmt: skip
    note = (
        f"Mean activation of a layer's units on ln(|year - {found.reference:g}| + 1). best model: smallest AIC of flat, linear, "
        "log and power. Units that follow the last digit repeat every ten years, so small gaps in AIC mean little."
    )
    return Table("Log coding of the units", rows, headings, note)


def _probe_table(found: TemporalCognition) -> Table:
    rows = []
    for split in ("years", "pairs"):
        for layer in range(found.n_layers):
            mine = {row["target"]: row for row in found.probes if (row["split"], row["layer"]) == (split, layer)}
            if mine:
                row = {"split": split, "layer": layer, **{target: rounded(fit["r2"]) for target, fit in mine.items()}}
                row["near"] = rounded(mine["reference"]["r2_same_side"])
                known = [fit["null"] for fit in mine.values() if fit["null"] is not None]
                rows.append({**row, "null": rounded(max(known, default=None))})
    headings = {"split": "split by", "layer": "layer", "log": "log", "levenshtein": "edit", "reference": "ref.",
                "side": "side", "near": "same side", "null": "null"}  # fmt: skip
    note = (
        "Held-out R² of ridge probes on the last token of pair prompts; null: relabelled years, largest mean of any law. Split "
        "by pairs, as in the paper, every test year was trained on."
    )
    return Table("Probes of the laws, layer by layer", rows, headings, note)


def _judgement_table(found: TemporalCognition) -> Table:
    keys = ("r2", "low", "high", "p", "unique")
    rows = [
        {"cue": row["condition"], "law": row["law"], **{key: rounded(row[key]) for key in keys}}
        for row in found.judgements["fits"]
        if row["law"] in (*LAWS, "side")
    ]
    year = found.judgements["year"]
    note = (
        f"Expected rating of {len(found.judgements['years'])} years in pairs, both orders; a rating follows the prompt with "
        f"probability {year['rating_mass']:.2g}, order effect {year['order_effect']:.2g}."
    )
    return Table("What the model answers when asked", rows, {"cue": "cue", **FIT_COLUMNS}, note)


def _effect_table(found: TemporalCognition) -> Table:
    rows = [
        {**row, "change": f"{row['effect']:+.3f}", "interval": f"{row['low']:+.3f}, {row['high']:+.3f}",
         "random": None if row["control_mean"] is None else f"{row['control_mean']:+.3f}", "before": rounded(row["plain"]),
         "holm": rounded(row["p_holm"]), "rank": rounded(row["p_controls"])}
        for row in found.effects.rows
    ]  # fmt: skip
    headings = {"set": "clamped", "text": "items", "n_units": "units", "before": "plain", "change": "effect",
                "interval": "95%", "random": "random", "holm": "p"}  # fmt: skip
    note = (
        "Loss of the right answer, nats per item; random: sets with as many units in every layer; p: Holm-corrected "
        "sign-flip test against their mean."
    )
    return Table("Clamping the units", rows, headings, note)


def rounded(value: float | None, digits: int = 3) -> float | None:
    """A number as a table shows it."""
    return None if value is None else round(value, digits)


def _beside(found: TemporalCognition) -> Table:
    finding = found.findings["mlp_out"]
    best = (finding.details["tuning"] or {}).get("best", {})
    r2 = {side: best[side]["r2"] if side in best else None for side in ("past", "future")}
    points = [point["grid"] for point in found.geometry["points"] if point["condition"] == "year" and point["found"]]
    ours = {"model": found.model["name"], "reference": found.reference if points else None,
            "share": finding.details["share"], "past": r2["past"], "future": r2["future"], "ours": True}  # fmt: skip
    headings = {"model": "model", "reference": "reference point", "share": "share of units", "past": "R² past",
                "future": "R² future"}  # fmt: skip
    note = "The paper's shares and R² (best layer) are read from its figures; its reference points from what the models answer."
    return Table("Beside the paper", [*PAPER, ours], headings, note, strong="ours")


def _differs(found: TemporalCognition) -> list[str]:
    first, last = min(found.values), max(found.values)
    return [
        f"model: {found.model['name']}; the paper's have 1 to 72 billion parameters and were trained on web text",
        f"stimuli: {len(found.values)} years {first}-{last}; the paper's are 1525-2524",
        f"reference: {found.reference:g} ({found.reference_from}); the paper fits around 2025",
        "similarity: cosines of hidden states and expected ratings; the paper parses generated ratings",
        "log law with |y - R| + 1, p-values in logarithms, probes by ridge regression on held-out years; the paper's forms are "
        "options of the functions",
        "clamping the units is ours; the paper does not intervene",
    ]


def _law_chart(found: TemporalCognition) -> Any:
    rows = [row for row in found.geometry["fits"] if row["law"] in (*LAWS, "side") and row["r2"] is not None]
    values = [{key: row[key] for key in ("layer", "condition", "law", "r2")} for row in rows]
    return _lines(values, "law", "condition", "R²")


def _probe_chart(found: TemporalCognition) -> Any:
    values = [
        {"layer": row["layer"], "law": row["target"], "split": f"split by {row['split']}", "r2": max(row["r2"], -0.5)}
        for row in found.probes
        if row["r2"] is not None
    ]
    return _lines(values, "law", "split", "held-out R² (cut at -0.5)")


def _lines(values: list[dict[str, Any]], colour: str, panel: str, title: str) -> Any:
    import altair as alt

    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("r2:Q", title=title),
            color=alt.Color(f"{colour}:N", title=None),
            column=alt.Column(f"{panel}:N", title=None),
            tooltip=[f"{colour}:N", "layer:O", alt.Tooltip("r2:Q", format=".3f")],
        )
        .properties(width=260, height=180)
    )


def _tuning_chart(found: TemporalCognition) -> Any:
    """Population activation over the years, with the reference; None if no unit was found."""
    import altair as alt

    values = []
    for site, finding in found.findings.items():
        tuning = finding.details["tuning"] or {}
        for year, value in zip(tuning.get("years", []), tuning.get("population") or [], strict=False):
            values.append({"year": year, "activation": value, "site": site})
    if not values:
        return None
    line = alt.Chart().mark_line(strokeWidth=1).encode(x=alt.X("year:Q", scale=alt.Scale(zero=False), axis=alt.Axis(format="d")),
                                                       y=alt.Y("activation:Q", scale=alt.Scale(zero=False)))  # fmt: skip
    rule = alt.Chart().mark_rule(strokeDash=[4, 3], color="#888").encode(x=alt.datum(found.reference))
    layered = alt.layer(line, rule, data=alt.Data(values=values)).properties(width=300, height=180)
    return layered.facet(column=alt.Column("site:N", title=None)).resolve_scale(y="independent")
