"""What the study of descriptions shows: tables, charts, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.read.description_scores import sign_flip
from patchclamp.read.exemplar import marked
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.read.exemplar_view import visible
from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.measure import Effects

ALPHA = 0.05
FLIPS = 9999
SHOWN = 24  # units in the table of examples
TOLD = {"words": "words, combined", "dissect": "one concept of a list", "labels": "the text's label"}
METRICS = {"part_auroc": "token AUROC", "part_balanced_accuracy": "token balanced accuracy", "auroc": "passage AUROC",
           "balanced_accuracy": "passage balanced accuracy", "pearson": "Pearson", "spearman": "Spearman"}  # fmt: skip
# MILAN's table 1, BERTScore on the held-out network ResNet152-ImageNet -> AlexNet-ImageNet
PAPER = {"a class label (compositional explanations)": 0.01, "one concept of a list (network dissection)": 0.24,
         "descriptions, likelihood only": 0.34, "descriptions, mutual information": 0.38}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Milan:
    """Everything that was measured, as the report needs it.

    described: describer -> descriptions and scores. sweep: one row per weight of the prior. about: label -> units whose
    description is about it. effects: of clamping these; None where there were none.
    """

    store: ExemplarStore
    described: Mapping[str, dict[str, Any]]
    sweep: Sequence[dict[str, Any]]
    about: Mapping[str, dict[str, Any]]
    effects: Effects | None
    lam: float
    share: float
    seed: int
    tokens: int
    model: Mapping[str, Any]


def report(made: Milan) -> Report:
    """Tables from examples to the edit, then the verdict."""
    scores, sweep, every = _scores(made), _sweep(made), _every(made)
    tables = [_examples(made), scores, sweep, _audit(made)]
    charts = [(scores.title, _units_chart(made)), (sweep.title, _sweep_chart(made))]
    effects = {}
    if made.effects is not None:
        tables.append(_edit(made.effects))
        effects["edit"] = made.effects
    return Report(
        tables=[*tables, every],
        charts=charts,
        verdict=_verdict(made),
        beside=_beside(made),
        differs=[
            f"model: {made.model['name']}, {len(made.store)} units on {made.tokens:,} tokens; the paper's are vision networks",
            "exemplars are passages around the highest token, masks the tokens above the bar; the paper's are images",
            "describers are transparent; the paper's is a captioner trained on 60,000 human descriptions",
            "scores are predictions on held-out passages; the paper's is similarity to human descriptions (BERTScore)",
        ],
        effects=effects,
        folded=[every.title],
        commands=["patchclamp study run milan-vision --out milan-vision/   # the same on an image network"],
    )


def _examples(made: Milan) -> Table:
    """The units that are described best, layer by layer the same number."""
    texts = {row["unit"]: row for row in made.described["words"]["descriptions"]}
    scored = sorted(
        (row for row in made.described["words"]["scores"]["rows"] if row["pearson"] is not None),
        key=lambda row: -float(row["pearson"]),
    )
    rows = []
    for row in scored[:SHOWN]:
        shown = made.store[row["unit"]]
        passage = visible(marked(shown.top[0], shown.bar))
        rows.append(
            {
                "unit": row["unit"],
                "description": row["description"],
                "explains": "yes" if texts[row["unit"]]["explains"] else "no",
                "pearson": row["pearson"],
                "part_auroc": row["part_auroc"],
                "passage": passage if len(passage) <= 160 else f"{passage[:157]}...",
            }
        )
    heads = {"unit": "unit", "description": "description", "pearson": "Pearson", "part_auroc": "token AUROC",
             "passage": "highest passage, what fires in brackets"}  # fmt: skip
    note = "The best described of the units; all are in the last table. Scores on held-out passages."
    return Table("Units and their descriptions", rows, heads, note=note)


def _scores(made: Milan) -> Table:
    rows = []
    for name, told in TOLD.items():
        for metric, said in METRICS.items():
            entry = made.described[name]["scores"]["overall"][metric]
            rows.append(
                {"describer": told, "metric": said, "own": entry["mean"], "shuffled": entry["control"],
                 "gain": entry["gain"], "low": entry["low"], "high": entry["high"], "p": entry["p"], "units": entry["n"]}
            )  # fmt: skip
    note = (
        "On passages of documents that no description was made from. Shuffled: descriptions of other units on the same "
        "passages. 95% interval over units; p by sign flips over units."
    )
    return Table("Do descriptions tell what fires a unit?", rows, note=note)


def _sweep(made: Milan) -> Table:
    heads = {"lam": "lambda", "pearson": "Pearson", "part_auroc": "token AUROC", "auroc": "passage AUROC",
             "specificity": "specificity", "distinct": "distinct", "log_prior": "mean log prior"}  # fmt: skip
    note = (
        "Specificity: share of other units for which a description is less likely than for its own. Describer: words."
    )
    return Table("The weight of the prior", made.sweep, heads, note=note)


def _audit(made: Milan) -> Table:
    rows = [
        {"label": label, "units": len(entry["units"]), "right": entry["right"],
         "share": entry["right"] / len(entry["units"]) if entry["units"] else None, "base": entry["base"]}
        for label, entry in made.about.items()
    ]  # fmt: skip
    heads = {
        "label": "text",
        "units": "units described so",
        "right": "fire most there",
        "share": "share",
        "base": "of all",
    }
    note = (
        f"Units whose description fits, among random passages, at least {made.share:.0%} of the time in one text; and how many "
        "of them have their highest mean value there on held-out passages."
    )
    return Table("Audit: which units answer to a text, by their descriptions alone", rows, heads, note=note)


def _edit(effects: Effects) -> Table:
    rows = [
        {"set": row["set"], "text": row["text"], "units": row["n_units"], "plain": row["plain"], "clamped": row["clamped"],
         "effect": row["effect"], "random": row["control_mean"], "p_holm": row["p_holm"], "own": row["set"] == row["text"]}
        for row in effects.rows
    ]  # fmt: skip
    heads = {"set": "clamped: described as", "text": "text", "units": "units", "plain": "plain", "clamped": "clamped",
             "effect": "effect", "random": "random units", "p_holm": "p (Holm)"}  # fmt: skip
    note = "Perplexity with the units of the audit at 0, on text that nothing was described on."
    return Table("Edit: the units of a description clamped to 0", rows, heads, note=note, strong="own")


def _every(made: Milan) -> Table:
    scores = {name: {row["unit"]: row for row in made.described[name]["scores"]["rows"]} for name in made.described}
    rows = [
        {
            "unit": row["unit"], "description": row["description"], "score": row["score"], "margin": row["margin"],
            "explains": row["explains"], "pearson": scores["words"][row["unit"]]["pearson"],
            "p": scores["words"][row["unit"]]["p_pearson"],
            "concept": scores["dissect"][row["unit"]]["description"],
            "concept_pearson": scores["dissect"][row["unit"]]["pearson"],
        }
        for row in made.described["words"]["descriptions"]
    ]  # fmt: skip
    return Table("Every unit", rows)


def _verdict(made: Milan) -> list[str]:
    words = made.described["words"]["scores"]["overall"]
    explained = [row["explains"] for row in made.described["words"]["descriptions"]]
    said = [f"{sum(explained)} of {len(explained)} units have a description that tells more than nothing does"]
    for metric in ("part_auroc", "auroc", "pearson"):
        entry = words[metric]
        known = entry["p"] is not None
        said.append(
            judged(
                f"descriptions beat shuffled ones on held-out passages ({METRICS[metric]}, p < {ALPHA})",
                entry["gain"] > 0 and entry["p"] < ALPHA if known else None,
                f"{entry['mean']:.2f} against {entry['control']:.2f}, p = {entry['p']:.2g}" if known else "",
            )
        )
    for other in ("dissect", "labels"):
        for metric in ("pearson", "part_auroc"):
            claim = f"combined words do better than {TOLD[other]}"
            said.append(_compared(made, claim, _by_unit(made, other, metric), metric))
    plain = next((row for row in made.sweep if row["lam"] == 0), None)
    if plain is not None and made.lam != 0:
        said.append(
            _compared(
                made, f"mutual information (lambda {made.lam:g}) does better than likelihood only", plain["by_unit"]
            )
        )
    said.append(_audited(made))
    if made.effects is not None:
        said += _edited(made.effects)
    else:
        said.append(
            judged("clamping the units of a description hurts that text most", None, "no description is about one")
        )
    return said


def _by_unit(made: Milan, describer: str, metric: str = "pearson") -> dict[str, Any]:
    return {row["unit"]: row[metric] for row in made.described[describer]["scores"]["rows"]}


def _compared(made: Milan, claim: str, other: Mapping[str, Any], metric: str = "pearson") -> str:
    """Own scores of combined words against others of the same units, by sign flips."""
    own = _by_unit(made, "words", metric)
    pairs = [(own[unit], value) for unit, value in other.items() if value is not None and own.get(unit) is not None]
    if not pairs:
        return judged(claim, None)
    mine, theirs = np.array(pairs, dtype=np.float64).T
    p = sign_flip(mine - theirs, FLIPS, np.random.default_rng(made.seed))
    better = float(mine.mean() - theirs.mean())
    numbers = f"{METRICS[metric]} {mine.mean():.3f} against {theirs.mean():.3f}, p = {p:.2g}"
    return judged(f"{claim} (p < {ALPHA})", better > 0 and p < ALPHA, numbers)


def _audited(made: Milan) -> str:
    units = sum(len(entry["units"]) for entry in made.about.values())
    right = sum(entry["right"] for entry in made.about.values())
    chance = sum(len(entry["units"]) * entry["base"] for entry in made.about.values())
    claim = "units described by words of one text fire most in that text"
    if not units:
        return judged(claim, None, "no description is about one text")
    return judged(
        f"{claim} (more often than units do by chance)", right > chance, f"{right} of {units}, by chance {chance:.1f}"
    )


def _edited(effects: Effects) -> list[str]:
    own = [effects.row(name, name) for name in effects.sets]
    hurt = [row for row in own if row["effect"] > 0 and row["p_holm"] < ALPHA]
    said = [
        judged(
            f"clamping the units described so hurts that text more than random units do (Holm-corrected p < {ALPHA})",
            len(hurt) == len(own),
            f"{len(hurt)} of {len(own)} texts",
        )
    ]
    if len(effects.sets) > 1:
        found = effects.dominance()
        numbers = f"{sum(found['by_set'].values())} of {len(found['labels'])}"
        said.append(judged("and it hurts that text more than any other", all(found["by_set"].values()), numbers))
    return said


def _beside(made: Milan) -> Table:
    means = {name: made.described[name]["scores"]["overall"]["pearson"]["mean"] for name in TOLD}
    plain = next((row["pearson"] for row in made.sweep if row["lam"] == 0), None)
    ours = [means["labels"], means["dissect"], plain, means["words"]]
    rows = [{"what": what, "paper": paper, "ours": our} for (what, paper), our in zip(PAPER.items(), ours, strict=True)]
    heads = {"what": "description", "paper": "paper, BERTScore", "ours": "ours, Pearson on held-out passages"}
    note = "Other measures: compare the order, not the numbers."
    return Table("Beside the paper", rows, heads, note=note)


def _units_chart(made: Milan) -> Any:
    import altair as alt

    values = [
        {"unit": row["unit"], "own": row["pearson"], "shuffled": row["control_pearson"], "describer": TOLD[name],
         "description": row["description"]}
        for name in TOLD
        for row in made.described[name]["scores"]["rows"]
        if row["pearson"] is not None and row["control_pearson"] is not None
    ]  # fmt: skip
    points = (
        alt.Chart(alt.Data(values=values), width=220, height=220)
        .mark_circle(opacity=0.5)
        .encode(
            x=alt.X("shuffled:Q", title="shuffled descriptions, Pearson"),
            y=alt.Y("own:Q", title="own description, Pearson"),
            tooltip=["unit:N", "description:N"],
        )
    )
    return points.facet(column=alt.Column("describer:N", title=None))


def _sweep_chart(made: Milan) -> Any:
    import altair as alt

    values = [
        {"lambda": row["lam"], "value": row[key], "what": said}
        for row in made.sweep
        for key, said in (("pearson", "Pearson"), ("part_auroc", "token AUROC"), ("specificity", "specificity"))
        if row[key] is not None
    ]
    return (
        alt.Chart(alt.Data(values=values), width=260, height=180)
        .mark_line(point=True)
        .encode(x="lambda:Q", y=alt.Y("value:Q", title=None), color=alt.Color("what:N", title=None))
    )
