"""What the LM-head study shows: tables, charts, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom, spearmanr

from patchclamp.studies.study_report import Report, Table, judged

ALPHA = 0.05
PAPER_AGREEMENT = 0.754  # Llama 3.1 8B against its instruct model, up rows, same top token


@dataclass(frozen=True, eq=False)
class LmHeadDecoding:
    """Everything that was measured, as the report needs it. The last of `maps` is of the clamped site.

    checks: strength -> rows of `check_words`. agreement: one entry per site.
    """

    maps: list[dict[str, Any]]
    words: list[dict[str, Any]]
    dropped: list[str]
    strengths: list[float]
    checks: Mapping[str, list[dict[str, Any]]]
    agreement: list[dict[str, Any]]
    tuned: str
    top: int
    model: dict[str, Any]


def report(made: LmHeadDecoding) -> Report:
    """Tables from labels to words to clamps to the tuned model, then the verdict."""
    tables = [_words(made), _clamps(made)]
    tables += [_map(each) for each in made.maps]
    tables += [_clearest(each) for each in made.maps]
    tables += [_strengths(made), _agreement(made)]
    if made.dropped:
        tables[0] = Table(
            tables[0].title,
            tables[0].rows,
            tables[0].columns,
            f"Left out, the tokenizer can't write them: {', '.join(made.dropped)}.",
        )
    return Report(
        tables=tables,
        charts=[("How far the top token stands out, by layer", _chart(made))],
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
    )


def _first(made: LmHeadDecoding) -> list[dict[str, Any]]:
    return made.checks[str(made.strengths[0])]


def _words(made: LmHeadDecoding) -> Table:
    rows = [row for row in made.words if row is next(one for one in made.words if one["word"] == row["word"])]
    heads = {
        "word": "word",
        "unit": "its first unit",
        "score": "z",
        "text": "token",
        "value": "logit per activation",
        "rank": "rank in the unit",
    }
    return Table("Units that point at words", rows, heads)


def _clamps(made: LmHeadDecoding) -> Table:
    heads = {"word": "word", "units": "units", "plain": "log p, plain", "clamped": "clamped", "change": "change",
             "control_mean": "random units", "control_high": "their largest", "p": "p"}  # fmt: skip
    rows = _first(made)
    if rows and "said_clamped" in rows[0]:
        heads |= {"said_plain": "texts with the word", "said_clamped": "clamped ", "said_control": "random units "}
    note = "Nats, mean over the prompts; every unit set to the largest activation of its layer there" + _times(
        made.strengths[0]
    )
    return Table(f"Clamping each word's {made.top} units", rows, heads, note=f"{note}.")


def _times(strength: float) -> str:
    return "" if strength == 1 else f", times {strength:g}"


def _map(one: dict[str, Any]) -> Table:
    heads = {"layer": "layer", "units": "units", "undefined": "undefined", "z": "median z", "random": "random directions",
             "z99": "99th percentile", "random99": "random, 99th", "beyond": "share beyond it"}  # fmt: skip
    note = "z: (top logit - mean) / deviation over all tokens. Random directions have the lengths of the layer's own."
    return Table(f"How clear the labels are: {one['site']}", one["layers"], heads, note=note)


def _clearest(one: dict[str, Any]) -> Table:
    rows = [
        {
            "unit": row["unit"],
            "z": row["z"],
            "promotes": " ".join(row["promotes"]),
            "suppresses": " ".join(row["suppresses"]),
        }
        for row in one["clearest"]
    ]
    heads = {"unit": "unit", "z": "z", "promotes": "top tokens", "suppresses": "bottom tokens"}
    return Table(f"The clearest units: {one['site']}", rows, heads)


def _strengths(made: LmHeadDecoding) -> Table:
    rows = []
    for strength in made.strengths:
        mine = made.checks[str(strength)]
        rows.append(
            {
                "strength": strength,
                "change": float(np.median([row["change"] for row in mine])),
                "random": float(np.median([row["control_mean"] for row in mine])),
                "raised": sum(row["p"] <= ALPHA for row in mine),
                "words": len(mine),
            }
        )
    heads = {
        "strength": "strength",
        "change": "median change (nats)",
        "random": "random units",
        "raised": "words with p <= 0.05",
        "words": "of",
    }
    return Table("Stronger, weaker, the other way", rows, heads)


def _agreement(made: LmHeadDecoding) -> Table:
    rows = [row for each in made.agreement for row in each["rows"]]
    heads = {"site": "site", "layer": "layer", "units": "units", "same": "same top token", "chance": "chance",
             "jaccard": "overlap of 10",
             "cosine": "cosine of directions"}  # fmt: skip
    return Table(f"Labels of {made.tuned}", rows, heads)


def _verdict(made: LmHeadDecoding) -> list[str]:
    rows, own = _first(made), made.maps[-1]
    raised = [row["word"] for row in rows if row["p"] <= ALPHA and row["change"] > row["control_mean"]]
    chance = int(binom.isf(0.01, len(rows), ALPHA)) + 1
    late = own["layers"][-max(1, len(own["layers"]) // 3) :]
    beyond = float(np.mean([row["beyond"] for row in late]))
    lines = [
        judged("clamping units that point at a word makes it likelier than clamping random units does",
               len(raised) > len(rows) / 2 and len(raised) >= chance,
               f"{len(raised)} of {len(rows)} words at p <= {ALPHA}; {chance} would be more than chance at 1%"),
        judged(f"late {own['site']} units point at tokens more clearly than random directions do", beyond > 0.03,
               f"{beyond:.0%} of the last {len(late)} layers' units lie beyond the 99th percentile of random ones; 3% asked for"),
    ]  # fmt: skip
    lines += _told(made, rows)
    for each in made.agreement:
        lines.append(
            judged(f"{each['site']} units keep their labels under tuning", each["overall"] > max(0.5, 2 * each["chance"]),
                   f"{each['overall']:.1%} the same top token (chance {each['chance']:.1%}), "
                   f"{each['one_head']:.1%} under one head")
        )  # fmt: skip
    return lines


def _told(made: LmHeadDecoding, rows: list[dict[str, Any]]) -> list[str]:
    """Verdicts that need several words, negative strengths or written text."""
    lines = []
    values = {
        word: float(np.mean([one["value"] for one in made.words if one["word"] == word]))
        for word in {one["word"] for one in made.words}
    }
    if len(rows) >= 8:
        rho, p = spearmanr([values[row["word"]] for row in rows], [row["change"] for row in rows])
        lines.append(
            judged("the more a word's units promise, the more clamping them gives", bool(rho > 0 and p < ALPHA),
                   f"rank correlation {rho:.2f} over {len(rows)} words, p = {p:.2g}")
        )  # fmt: skip
    for strength in (one for one in made.strengths if one < 0):
        down = made.checks[str(strength)]
        lower = sum(row["change"] < row["control_mean"] for row in down)
        lines.append(
            judged("clamping the other way makes the word less likely than random units do", lower > 0.75 * len(down),
                   f"{lower} of {len(down)} words at strength {strength:g}")
        )  # fmt: skip
    if rows and "said_clamped" in rows[0]:
        said = {
            key: float(np.mean([row[key] for row in rows])) for key in ("said_plain", "said_clamped", "said_control")
        }
        lines.append(
            judged("the clamped model writes the word", said["said_clamped"] > max(0.5, said["said_control"]),
                   f"in {said['said_clamped']:.0%} of texts, plain {said['said_plain']:.0%}, "
                   f"random units {said['said_control']:.0%}")
        )  # fmt: skip
    return lines


def _beside(made: LmHeadDecoding) -> Table:
    first = made.agreement[0]
    rows: list[dict[str, Any]] = [
        {"what": "neurons decoded", "paper": 458_752, "ours": made.maps[0]["units"]},
        {"what": f"same top token after tuning, {first['site']} rows", "paper": PAPER_AGREEMENT, "ours": first["overall"]},
        {"what": "clamped neurons change the word's probability", "paper": "dog, California",
         "ours": f"{sum(row['p'] <= ALPHA for row in _first(made))} of {len(_first(made))} words"},
    ]  # fmt: skip
    return Table("Beside the paper (Llama 3.1 8B)", rows, {"what": "", "paper": "paper", "ours": "ours"})


def _differs(made: LmHeadDecoding) -> list[str]:
    return [
        f"model: {made.model['name']}; the paper's are Llama 3.1 8B and its instruct model",
        "units are found by what they write (down projection, final norm folded in), for that is what a clamp adds; the "
        "paper decodes the up projection, which says what a neuron listens for",
        "rows of the up projection carry the gain of the norm in front of them",
        f"tuned: {made.tuned}; the paper's went through full instruction tuning",
        "every clamp stands beside random units of the same layers at the same values; the paper shows examples",
    ]


def _chart(made: LmHeadDecoding) -> Any:
    import altair as alt

    values = []
    for one in made.maps:
        for row in one["layers"]:
            for key, what in (
                ("z", "median"),
                ("z99", "99th percentile"),
                ("random", "random, median"),
                ("random99", "random, 99th"),
            ):
                values.append({"site": one["site"], "layer": row["layer"], "z": row[key], "what": what})
    return (
        alt.Chart(alt.Data(values=values), width=220, height=180)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:O"),
            y=alt.Y("z:Q", scale=alt.Scale(zero=False)),
            color=alt.Color("what:N", title=None),
            column="site:N",
        )
    )
