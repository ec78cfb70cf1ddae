"""What the study of detecting units shows: tables, charts, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.find.experts import SHARES
from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects

ALPHA = 0.05
PAPER_NEURON, PAPER_LAYER = 0.5466, 0.6332  # mean AUROC on Jigsaw over four models
PAPER_ABOVE = {"0.50": "0.11-0.23", "0.55": "0.04-0.09"}  # lowest and highest of four models


@dataclass(frozen=True, eq=False)
class EigenshiftDetection:
    """Everything that was measured, as the report needs it.

    finding: units by AUROC. layers: rows of expert layers. directions: of the output matrix, None without prompts.
    effects: answer loss with the detecting units clamped, None without prompts.
    """

    concept: str
    finding: Finding
    layers: list[dict[str, Any]]
    directions: dict[str, Any] | None
    effects: Effects | None
    share: float
    pool: str
    taught: bool
    model: dict[str, Any]


def report(made: EigenshiftDetection) -> Report:
    """Units, layers, directions, what clamping does, then the verdict."""
    units = Table(
        f"Units with the highest AUROC for {made.concept}",
        made.finding.details["listed"][made.concept],
        {"unit": "unit", "auroc": "AUROC", "low": "low", "high": "high", "ap": "AP", "p": "p"},
        note="low, high: 95% DeLong interval of a unit taken by itself, not of the best of many.",
    )
    layers = Table(
        f"Layers: two clusters of their states against {made.concept}",
        made.layers,
        {"layer": "layer", "auroc": "AUROC", "ap": "AP", "f1": "F1", "silhouette": "silhouette", "p_holm": "p (Holm)"},
        note="AUROC of the better assignment, so never below 0.5; p: exact, clusters of these sizes, over all layers.",
    )
    tables = [_summary(made), layers]
    if made.directions is not None:
        tables.append(_directions(made.directions))
    if made.effects is not None:
        tables.append(_effects(made.effects))
    return Report(
        tables=[*tables, units],
        charts=[(layers.title, _layer_chart(made))],
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[units.title],
    )


def _summary(made: EigenshiftDetection) -> Table:
    table, null = made.finding.details["units"][made.concept], made.finding.null["labels"][made.concept]
    counts = made.finding.details["documents"][made.concept]
    length = made.finding.details["length"][made.concept]
    rows: list[dict[str, Any]] = [
        {"what": "documents of the concept, and others", "value": f"{counts['positive']} and {counts['negative']}"},
        {"what": "units", "value": made.finding.total},
        {"what": "mean AUROC of single units", "value": table["mean_auroc"]},
        *[{"what": f"share of units above {bar:.2f}", "value": table[f"above_{bar:.2f}"]} for bar in SHARES],
        {"what": "best unit", "value": null["best"]["observed"]},
        {"what": "best unit on shuffled labels (mean, highest)",
         "value": f"{null['best']['mean']:.3f}, {null['best']['max']:.3f}"},
        {"what": "units beyond a false-discovery rate of 5%", "value": null["observed"]},
        {"what": "mean AUROC of layers", "value": float(np.mean([row["auroc"] for row in made.layers]))},
        {"what": "best layer", "value": _best(made)["auroc"]},
        {"what": "document length alone", "value": length["auroc"]},
    ]  # fmt: skip
    return Table(f"How well {made.concept} text is detected", rows, {"what": "", "value": ""})


def _directions(found: dict[str, Any]) -> Table:
    heads = {"direction": "direction", "sigma": "sigma", "delta": "delta", "p": "p", "auroc": "held-out AUROC",
             "signed": "by sign too", "toward": "writes", "away": "writes against"}  # fmt: skip
    note = (
        f"Of {found['d']} right singular vectors of the output matrix, by |delta| between {found['n_phi']} states before the "
        f"concept and {found['n_psi']} others; p: shuffled labels, corrected over all directions. By sign too: also among "
        "the largest signed delta, which depends on an arbitrary sign."
    )
    return Table("Output directions that are about to write the concept", found["rows"], heads, note=note)


def _effects(effects: Effects) -> Table:
    rows = [{**row, "of": row["text"]} for row in effects.rows]
    heads = {"of": "replies", "plain": "answer loss", "effect": "+nats", "low": "low", "high": "high",
             "control_mean": "random units", "p_holm": "p (Holm)", "n_documents": "prompts"}  # fmt: skip
    units = effects.rows[0]["n_units"]
    return Table(f"Writing replies with the {units:,} best detecting units clamped to 0", rows, heads)


def _verdict(made: EigenshiftDetection) -> list[str]:
    null, length = made.finding.null["labels"][made.concept], made.finding.details["length"][made.concept]
    table = made.finding.details["units"][made.concept]
    layer = float(np.mean([row["auroc"] for row in made.layers]))
    sure = [row for row in made.layers if row["p_holm"] < ALPHA]
    lines = [
        judged(f"single units detect {made.concept} text beyond shuffled labels",
               null["best"]["observed"] > null["best"]["max"],
               f"best {null['best']['observed']:.3f} against {null['best']['max']:.3f}; {null['observed']} of "
               f"{made.finding.total:,} units pass"),
        judged("layers detect it better than single units do on average", layer > table["mean_auroc"],
               f"{layer:.3f} against {table['mean_auroc']:.3f}; the best unit reaches {null['best']['observed']:.3f}"),
        judged("every layer is an expert in the exact test", len(sure) == len(made.layers),
               f"{len(sure)} of {len(made.layers)}; all lie above 0.5 by construction"),
        judged("document length is no confounder", not (length["p"] < 0.01 and abs(length["auroc"] - 0.5) > 0.1),
               f"length alone: AUROC {length['auroc']:.2f} [{length['low']:.2f}, {length['high']:.2f}]"),
    ]  # fmt: skip
    if made.directions is None:
        return [*lines, "generation was not looked at: give prompts= labelled by what the model is about to write"]
    best = made.directions["rows"][0]
    lines.append(
        judged("some output directions tell that the concept is about to be written", made.directions["significant"] > 0,
               f"{made.directions['significant']} of {made.directions['d']} at corrected p < {ALPHA}; the first has "
               + (f"AUROC {best['auroc']:.2f} on prompts held out" if best["auroc"] is not None else "not been tested"))
    )  # fmt: skip
    if made.effects is not None:
        rows = {row["text"]: row for row in made.effects.rows}
        own = rows[made.concept]
        others = [row for name, row in rows.items() if name != made.concept]
        more = own["effect"] > max((own["control_mean"] or 0.0), 0) and (own["p_holm"] or 1) < ALPHA
        rest = max((row["effect"] for row in others), default=0.0)
        said = f"{own['effect']:+.3f} nats, random units {own['control_mean'] or 0:+.3f}, others {rest:+.3f}"
        lines.append(judged("the units that detect it are also needed to write it", bool(more), said))
        lines.append(judged("and more for it than for other replies", bool(more) and own["effect"] > rest, said))
    return lines


def _beside(made: EigenshiftDetection) -> Table:
    table = made.finding.details["units"][made.concept]
    rows: list[dict[str, Any]] = [
        {"what": "mean AUROC of single units", "paper": PAPER_NEURON, "ours": table["mean_auroc"]},
        {"what": "mean AUROC of layers", "paper": PAPER_LAYER,
         "ours": float(np.mean([row["auroc"] for row in made.layers]))},
        *[{"what": f"share of units above {bar}", "paper": paper, "ours": table[f"above_{bar}"]}
          for bar, paper in PAPER_ABOVE.items()],
        {"what": "normalised depth of the best layers", "paper": "0.6-0.9",
         "ours": (_best(made)["layer"] + 1) / len(made.layers)},
    ]  # fmt: skip
    return Table("Beside the paper (toxicity, Jigsaw)", rows, {"what": "", "paper": "paper", "ours": "ours"})


def _differs(made: EigenshiftDetection) -> list[str]:
    data = "taught rude and polite replies" if made.taught else f"the given text, {made.concept} against the rest"
    return [
        f"model: {made.model['name']}; the paper's are BERT, BART, Llama-3.1 and Ministral for detection",
        f"data: {data}; the paper's are toxic comments (Jigsaw) and Chinese ones",
        "the share of units above 0.5 is of the AUROC as it is; half of all units lie above it in noise",
        "directions are ranked by |delta|, for the sign of a singular vector is arbitrary; both kinds of states are taken at "
        "the end of prompts, in the paper those of the concept come from inside a continuation",
        "nothing is edited and no text is sampled: toxicity rate, perplexity and their trade-off are not part of this study",
    ]


def _best(made: EigenshiftDetection) -> dict[str, Any]:
    return max(made.layers, key=lambda row: row["auroc"])


def _layer_chart(made: EigenshiftDetection) -> Any:
    import altair as alt

    values = [
        {"layer": row["layer"], "auroc": row["auroc"], "what": "two clusters of the layer"} for row in made.layers
    ]
    scores = made.finding.scores
    if scores is not None:
        for row in made.layers:
            mine = [
                flat[0, layout.slice(row["layer"])]
                for layout, flat in zip(made.finding.layouts, made.finding.by_site(scores).values(), strict=True)
                if row["layer"] < layout.n_layers
            ]
            joined = np.concatenate(mine) if mine else np.zeros(0)
            if joined.size:
                values.append({"layer": row["layer"], "auroc": float(joined.mean()), "what": "units, mean"})
                values.append({"layer": row["layer"], "auroc": float(joined.max()), "what": "best unit"})
    return (
        alt.Chart(alt.Data(values=values), width=420, height=200)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("auroc:Q", title="AUROC", scale=alt.Scale(zero=False)),
            color=alt.Color("what:N", title=None),
        )
    )
