"""What the skill study shows: tables, charts, verdicts computed from the numbers, the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects

ALPHA = 0.05
# Li et al. 2025, Llama-3-8B, read from the figures (+-0.02): relative performance of the forgotten and the other skill
PAPER = {
    ("to mean", 0.005): ("Neuron Adjust 0.5%", 0.78, 1.00, 0.37, 0.80),
    ("to mean", 0.015): ("Neuron Adjust 1.5%", 0.57, 0.93, 0.04, 0.78),
    ("to mean", 0.03): ("Neuron Adjust 3%", 0.39, 0.76, 0.01, 0.68),
    ("pruned", 0.015): ("selective pruning 1.5% (MBPP: 0.01%)", 0.17, 0.93, 0.00, 0.06),
    ("region", None): ("Key Space Detection", 0.16, 1.00, 0.005, 0.96),
}
KEPT_AS = {"difference": "skills-difference", "importance": "skills-importance", "languages": "languages-difference"}
REFUSED, TRIPPED = 0.8, 0.1  # of a skill's own and of other held-out queries: what a useful region must reach
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class SkillDetection:
    """Everything that was measured, as the report needs it.

    findings: "difference" (the paper's), "importance" (selective pruning), "languages". to_mean, languages_to_mean: rows of
    effects with a set held at its mean over the other labels; to_zero, pruned, languages_to_zero: with sets held at 0. accuracy:
    one row per way, share, clamped skill and task. regions: skill -> its regions as plain data. bundled: whether the tasks are
    the demo's own.
    """

    skills: tuple[str, ...]
    languages: tuple[str, ...]
    share: float
    findings: Mapping[str, Finding]
    to_mean: Sequence[Mapping[str, Any]]
    to_zero: Effects
    pruned: Effects
    languages_to_mean: Sequence[Mapping[str, Any]]
    languages_to_zero: Effects
    accuracy: Sequence[Mapping[str, Any]]
    regions: Mapping[str, Mapping[str, Any]]
    n_layers: int
    model: Mapping[str, Any]
    bundled: bool


def report(study: SkillDetection) -> Report:
    """Everything of one run."""
    tables = [
        _sets_table(study),
        _matrix_table("Each skill's units held at their mean over the other skills", study.to_mean, LOSS_NOTE),
        _matrix_table("The same units held at 0", study.to_zero.rows, LOSS_NOTE),
        _matrix_table("Units chosen by selective pruning's importance, held at 0", study.pruned.rows, LOSS_NOTE),
        _own_table(study),
        _regions_table(study),
        _matrix_table(
            "Languages as skills: each language's units held at their mean over the others",
            study.languages_to_mean,
            TEXT_NOTE,
        ),
        _matrix_table("Languages as skills: the same units held at 0", study.languages_to_zero.rows, TEXT_NOTE),
        _normality_table(study),
        Table("Choice accuracy", study.accuracy, ("way", "share", "set", "text", "plain", "clamped")),
    ]
    return Report(
        tables=tables,
        charts=[
            (tables[0].title, _layers_chart(study)),
            *((tables[at].title, _heat_chart(rows)) for at, rows in ((1, study.to_mean), (3, study.pruned.rows))),
            (tables[5].title, _coverage_chart(study)),
        ],
        verdict=_verdict(study),
        beside=_beside(study),
        differs=_differs(study),
        findings={KEPT_AS[name]: found for name, found in study.findings.items()},
        effects={
            "skills-to-zero": study.to_zero,
            "skills-pruned": study.pruned,
            "languages-to-zero": study.languages_to_zero,
        },
        folded=[tables[-1].title],
    )


LOSS_NOTE = (
    "Change of the answers' log-loss, nats per token, on items that the finder did not see (rows: clamped set; columns: task). "
    "In brackets: the mean of the matched-random sets. *: Holm-corrected p < 0.05 against them, over the whole table."
)
TEXT_NOTE = (
    LOSS_NOTE.replace("the answers' log-loss", "log-loss").replace("items", "documents").replace("task)", "text)")
)


def harm(row: Mapping[str, Any]) -> float:
    """How much worse the clamped model does: nats per token, of a loss or of a perplexity."""
    if row["metric"] == "perplexity":
        return float(np.log(row["clamped"] / row["plain"]))
    return float(row["effect"])


def random_harm(row: Mapping[str, Any]) -> float | None:
    """The same of the matched-random sets, on average; None without any."""
    if row["control_mean"] is None:
        return None
    if row["metric"] == "perplexity":
        return float(np.log(max(row["plain"] + row["control_mean"], 1e-9) / row["plain"]))
    return float(row["control_mean"])


def names_of(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["set"] for row in rows))


def own_rows(rows: Rows) -> list[Mapping[str, Any]]:
    """The rows of every set on its own task or text."""
    return [row for row in rows if row["set"] == row["text"]]


def proven(row: Mapping[str, Any]) -> bool:
    """Whether a set hurts, more than random sets do, by more than chance."""
    chance = random_harm(row)
    return (
        harm(row) > 0 and (chance is None or harm(row) > chance) and row["p_holm"] is not None and row["p_holm"] < ALPHA
    )


def ahead(rows: Rows) -> list[str]:
    """Sets that hurt their own task more than any other task."""
    found = []
    for name in names_of(rows):
        mine = {row["text"]: harm(row) for row in rows if row["set"] == name}
        if mine[name] > max(value for text, value in mine.items() if text != name):
            found.append(name)
    return found


def _matrix_table(title: str, rows: Rows, note: str) -> Table:
    drawn = []
    for name in names_of(rows):
        cells: dict[str, Any] = {"clamped": name}
        for row in rows:
            if row["set"] == name:
                chance = random_harm(row)
                beside = "" if chance is None else f" ({chance:+.2f})"
                cells[row["text"]] = f"{harm(row):+.2f}{beside}{'*' if proven(row) else ''}"
        drawn.append(cells)
    return Table(title, drawn, note=note)


def _sets_table(study: SkillDetection) -> Table:
    rows = []
    for name, finding in study.findings.items():
        for label in finding.labels:
            chance = finding.null.get("labels", {}).get(label, {})
            alike = finding.details["shared_with_importance"].get(label)
            rows.append(
                {
                    "finding": name, "skill": label, "units": len(finding.sets[label]), "by_chance": chance.get("mean"),
                    "p": chance.get("p"), "bar": finding.null.get("bars", {}).get(label),
                    "significant": len(finding.select(fdr=ALPHA)[label]) if finding.p_values is not None else None,
                    "pruning_too": alike if name == "difference" else None,
                }
            )  # fmt: skip
    headings = {
        "finding": "found by", "skill": "skill", "units": "units", "by_chance": "by chance", "p": "p", "bar": "lowest score",
        "significant": "units at FDR 5%", "pruning_too": "also by importance there",
    }  # fmt: skip
    note = "By chance: units that reach the set's lowest score when documents' labels are shuffled, on average."
    return Table("Units of each skill", rows, headings, note=note)


def _own_table(study: SkillDetection) -> Table:
    ways = {"to mean": study.to_mean, "to 0": study.to_zero.rows, "pruned": study.pruned.rows}
    ways |= {"language to mean": study.languages_to_mean, "language to 0": study.languages_to_zero.rows}
    rows = [
        {
            "way": way, "set": row["set"], "units": row["n_units"], "metric": row["metric"], "plain": row["plain"],
            "clamped": row["clamped"], "effect": row["effect"], "low": row["low"], "high": row["high"],
            "random": row["control_mean"], "p_holm": row["p_holm"], "p_controls": row["p_controls"], "proven": proven(row),
        }
        for way, each in ways.items()
        for row in own_rows(each)
    ]  # fmt: skip
    headings = {
        "way": "how", "set": "skill", "units": "units", "metric": "metric", "plain": "plain", "clamped": "clamped",
        "effect": "effect", "low": "low", "high": "high", "random": "random sets", "p_holm": "p (Holm)",
        "p_controls": "rank p",
    }  # fmt: skip
    note = "low, high: 95% bootstrap interval over items. Bold: hurt, and more than the matched-random sets (Holm-corrected)."
    return Table("Each skill's units on its own task", rows, headings, note=note, strong="proven")


def _regions_table(study: SkillDetection) -> Table:
    rows = []
    for name, found in study.regions.items():
        for which, layer in (("best", found["best"]), ("last", max(entry["layer"] for entry in found["layers"]))):
            entry = next(each for each in found["layers"] if each["layer"] == layer)
            rows.append(
                {
                    "skill": name, "which": which, "layer": layer, "k": entry["k"], "alpha": entry["alpha"],
                    "fitted": entry["fitted"], "own": entry["forget"], "own_low": entry["forget_low"],
                    "others": entry["retain"], "others_high": entry["retain_high"], "auroc": entry["auroc"],
                    "p_holm": entry["p_holm"], "useful": useful(entry),
                }
            )  # fmt: skip
    headings = {
        "skill": "skill", "which": "layer is", "layer": "layer", "k": "k", "alpha": "alpha", "fitted": "fitted inside",
        "own": "held out inside", "own_low": "at least", "others": "others inside", "others_high": "at most",
        "auroc": "AUROC", "p_holm": "p (Holm)",
    }  # fmt: skip
    note = (
        "Regions are fitted to the last tokens of prompts; layer and alpha are chosen on one half of the held-out prompts, "
        "coverage is of the other half (at least, at most: 95% Wilson bounds). The paper uses the last layer."
    )
    return Table("Regions of key space", rows, headings, note=note, strong="useful")


def useful(entry: Mapping[str, Any]) -> bool:
    """Whether a region holds most of its skill's held-out queries and few others."""
    return bool(entry["forget"] > REFUSED and entry["retain"] < TRIPPED)


def _normality_table(study: SkillDetection) -> Table:
    rows = []
    for label, sides in study.findings["difference"].details["normality"].items():
        for side, shown in sides.items():
            row = {"skill": label, "on": side, "tokens": shown["tokens"]}
            for name in ("skew", "kurtosis"):
                row |= {name: (shown[name] or {}).get("median"), f"{name}_high": (shown[name] or {}).get("high")}
            rows.append(row)
    headings = {
        "skill": "units of", "on": "on text of", "tokens": "tokens", "skew": "|skew|, median", "skew_high": "90%",
        "kurtosis": "|excess kurtosis|, median", "kurtosis_high": "90%",
    }  # fmt: skip
    note = "Neuron Adjust fits normals to these units' pre-activations: a normal has 0 in both."
    return Table("How normal pre-activations are", rows, headings, note=note)


def relative(study: SkillDetection, way: str, share: float) -> tuple[float, float] | None:
    """Accuracy clamped over plain, mean over skills: on the own task, and on the others; None where nothing was measured."""
    rows = [row for row in study.accuracy if row["way"] == way and np.isclose(row["share"], share) and row["plain"] > 0]
    own = [row["clamped"] / row["plain"] for row in rows if row["set"] == row["text"]]
    others = [row["clamped"] / row["plain"] for row in rows if row["set"] != row["text"]]
    return (float(np.mean(own)), float(np.mean(others))) if own and others else None


def held_out(study: SkillDetection) -> tuple[float, float]:
    """Held-out queries outside the best layer's regions, mean over skills: of the own skill, and of the others."""
    best = [next(e for e in found["layers"] if e["layer"] == found["best"]) for found in study.regions.values()]
    return float(np.mean([1 - entry["forget"] for entry in best])), float(
        np.mean([1 - entry["retain"] for entry in best])
    )


def _beside(study: SkillDetection) -> Table:
    rows = []
    for (way, share), (what, gsm, gsm_other, mbpp, mbpp_other) in PAPER.items():
        ours = held_out(study) if share is None else relative(study, way, share)
        rows.append(
            {
                "what": what, "gsm": gsm, "gsm_other": gsm_other, "mbpp": mbpp, "mbpp_other": mbpp_other,
                "own": None if ours is None else ours[0], "others": None if ours is None else ours[1],
            }
        )  # fmt: skip
    headings = {
        "what": "what is done", "gsm": "paper: GSM8K forgotten", "gsm_other": "MBPP then", "mbpp": "paper: MBPP forgotten",
        "mbpp_other": "GSM8K then", "own": "ours: own skill", "others": "ours: others",
    }  # fmt: skip
    note = (
        "Relative performance, 1 is unchanged. Paper: Llama-3-8B, its interventions. Ours: the same units held at their mean "
        "over the other skills, choice accuracy; for regions the share of held-out queries that would still be answered."
    )
    return Table("Beside the paper", rows, headings, note=note)


def _verdict(study: SkillDetection) -> list[str]:
    found = study.findings["difference"]
    chance = [found.null["labels"][label] for label in found.labels] if found.null.get("available") else []
    few = [entry for entry in chance if entry["share"] is not None and entry["share"] < ALPHA]
    lines = [
        judged(
            f"fewer than {ALPHA:.0%} of a skill's units reach their bar when labels are shuffled",
            len(few) == len(chance) if chance else None, f"{len(few)} of {len(chance)} skills",
        )
    ]  # fmt: skip
    ways = {
        "units of the mean difference, held at the mean of the rest,": study.to_mean,
        "the same units at 0": study.to_zero.rows,
        "units of selective pruning at 0": study.pruned.rows,
        "units of a language, held at the mean of the others,": study.languages_to_mean,
        "units of a language at 0": study.languages_to_zero.rows,
    }
    for way, rows in ways.items():
        own, first = own_rows(rows), ahead(rows)
        hurt = [row["set"] for row in own if proven(row)]
        left = [row["set"] for row in own if row["set"] not in hurt]
        lines.append(
            judged(
                f"{way} hurt their own more than matched random sets do (Holm-corrected p < {ALPHA})",
                len(hurt) == len(own), f"{len(hurt)} of {len(own)}" + (f"; not {', '.join(left)}" if left else ""),
            )
        )  # fmt: skip
        behind = [name for name in names_of(rows) if name not in first]
        numbers = f"{len(first)} of {len(own)}" + (f"; not {', '.join(behind)}" if behind else "")
        lines.append(judged(f"{way} hurt their own most", len(first) == len(own), numbers))
    curve = [relative(study, "to mean", share) for share in (0.005, 0.015, 0.03)]
    known = [pair[0] for pair in curve if pair is not None]
    lines.append(
        judged(
            "the more units are held, the lower the own skill's accuracy",
            known == sorted(known, reverse=True) if known else None,
            ", ".join(f"{value:.2f}" for value in known) + " at 0.5%, 1.5%, 3%" if known else "",
        )
    )  # fmt: skip
    good = [
        name
        for name, each in study.regions.items()
        if useful(next(e for e in each["layers"] if e["layer"] == each["best"]))
    ]
    numbers = f"{len(good)} of {len(study.regions)}" + (
        f": {', '.join(good)}" if 0 < len(good) < len(study.regions) else ""
    )
    claim = (
        f"a region holds more than {REFUSED:.0%} of its skill's held-out queries and less than {TRIPPED:.0%} of others"
    )
    return [*lines, judged(claim, len(good) == len(study.regions), numbers)]


def _differs(study: SkillDetection) -> list[str]:
    data = "skills the demo model was taught" if study.bundled else "the tasks given"
    return [
        f"model: {study.model['name']}, the paper's are gemma-2B, Llama-2-7B, Llama-3-8B and 70B",
        f"data: {data}, held-out items (facts: taught items that the finder did not see); the paper's are GSM8K, MBPP and MLQA",
        "units are held at a value; the paper's Neuron Adjust moves each value with a probability, which acts less on tokens "
        "that look like the rest",
        "effects are changes of the answers' log-loss, with accuracies beside them; the paper samples generations",
        "layer and size of a region are chosen on held-out queries; the paper takes the last layer and sizes by hand",
    ]


def _layers_chart(study: SkillDetection) -> Any:
    import altair as alt

    values = [
        {"found by": name, "skill": label, "layer": layer, "units": int(count)}
        for name, finding in study.findings.items()
        if name != "languages"
        for label, units in finding.sets.items()
        for layer, count in enumerate(units.per_layer(finding.site))
    ]
    return (
        alt.Chart(alt.Data(values=values), width=280, height=200)
        .mark_bar()
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("units:Q", title="units"),
            color=alt.Color("skill:N", sort=list(study.skills)),
            column=alt.Column("found by:N", sort=["difference", "importance"]),
        )
        .properties(title="Where the units of each skill lie")
    )


def _heat_chart(rows: Rows) -> Any:
    import altair as alt

    values = [{"set": row["set"], "task": row["text"], "harm": harm(row), "shown": f"{harm(row):+.2f}"} for row in rows]
    limit = max(max(abs(value["harm"]) for value in values), 1e-6)
    names, tasks = names_of(rows), list(dict.fromkeys(row["text"] for row in rows))
    base = alt.Chart(alt.Data(values=values), width=78 * len(tasks), height=44 * len(names)).encode(
        x=alt.X("task:N", sort=tasks, axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("set:N", sort=names, title="clamped"),
    )
    scale = alt.Scale(scheme="redblue", domain=[-limit, limit], reverse=True)
    dark = alt.expr.abs(alt.datum.harm) > 0.6 * limit
    return base.mark_rect(stroke="white").encode(
        color=alt.Color("harm:Q", title="nats per token", scale=scale)
    ) + base.mark_text(fontSize=13).encode(
        text="shown:N", color=alt.condition(dark, alt.value("white"), alt.value("#1c2733"))
    )


def _coverage_chart(study: SkillDetection) -> Any:
    import altair as alt

    values = []
    for name, found in study.regions.items():
        entry = next(each for each in found["layers"] if each["layer"] == found["best"])
        for alpha, own, others in entry["curve"]:
            values += [
                {"skill": name, "alpha": alpha, "queries": "its own", "inside": own},
                {"skill": name, "alpha": alpha, "queries": "others", "inside": others},
            ]
    return (
        alt.Chart(alt.Data(values=values), width=150, height=150)
        .mark_line()
        .encode(
            x=alt.X("alpha:Q", scale=alt.Scale(type="log"), title="size of the box"),
            y=alt.Y("inside:Q", title="held-out queries inside", axis=alt.Axis(format="%")),
            color=alt.Color("queries:N", sort=["its own", "others"]),
            column=alt.Column("skill:N", sort=list(study.skills)),
        )
        .properties(title="Held-out coverage at each skill's best layer")
    )
