"""How the study of cultural neurons looks: its tables, charts and verdict, computed from what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from patchclamp.models.units import describe
from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects
    from patchclamp.models import LanguageModel

HELD_OUT = "culture, held out"
NAMES = "country names"
LEVEL = 0.05
# Yamamoto et al. 2025: accuracy in percent on BLEnD's test topics and on CommonsenseQA; units masked.
PAPER = (
    ("gemma-3-12b-it", 8087, 64.22, 37.93, 63.57, 79.71, 75.10, 79.18),
    ("Qwen3-14B", 7340, 65.96, 35.84, None, 81.76, 75.23, None),
    ("Llama-3.1-8B-Instruct", 4268, 60.18, 32.19, None, 76.74, 51.97, None),
)


@dataclass(frozen=True, eq=False)
class CulturalNeurons:
    """Everything that was measured, as the report needs it.

    tasks: name -> how many items were measured. accuracy, loss: effects of the general set on all tasks. parts: of its MLP
    and its attention units by themselves on held-out questions, None where it has only one kind.
    groups: effect of every group's set on every group's questions, None if all
    sets are empty. sweep: effects of general sets of other sizes.
    kin: group -> groups that share its region (empty where nothing is known).
    """

    finding: Finding
    tasks: dict[str, int]
    accuracy: Effects
    loss: Effects
    parts: Effects | None
    groups: Effects | None
    sweep: Effects
    kin: dict[str, tuple[str, ...]]
    own_items: bool


def report(study: CulturalNeurons, model: LanguageModel) -> Report:
    """Tables, charts, verdict and the paper's numbers beside ours."""
    ranks = own_ranks(study)
    tables = [
        effects_table("What clamping the general set to 0 does to accuracy", study.accuracy.rows),
        effects_table(
            "The same in nats of the right answer, and for its MLP and attention units by themselves",
            [*study.loss.rows, *(study.parts.rows if study.parts is not None else ())],
        ),
        sets_table(study),
        *([ranks_table(study, ranks)] if ranks else []),
        sweep_table(study),
        probabilities_table(study),
    ]
    charts = [
        ("Where the general set lies", layers_chart(study)),
        *([] if study.groups is None else [("Each group's set on each group's questions", groups_chart(study.groups))]),
        ("How much culture and other tasks lose as the general set grows", sweep_chart(study)),
    ]
    several = {"accuracy": study.accuracy, "loss": study.loss, "groups": study.groups, "sweep": study.sweep}
    named = {name: effects for name, effects in {**several, "parts": study.parts}.items() if effects is not None}
    return Report(
        tables=tables,
        charts=charts,
        verdict=verdict(study, ranks),
        beside=beside(study, model),
        differs=differences(study, model),
        findings={"culture": study.finding},
        effects=named,
        folded=(tables[-1].title,),
    )


def effects_table(title: str, rows: list[dict[str, Any]]) -> Table:
    """One row per set and task: plain, clamped, effect with interval, random sets, corrected p."""
    shown = [
        {
            "set": row["set"], "units": row["n_units"], "task": row["text"], "items": row["n_documents"],
            "plain": row["plain"], "clamped": row["clamped"], "effect": row["effect"], "low": row["low"],
            "high": row["high"], "random sets": row["control_mean"], "p (Holm)": row["p_holm"],
            "rank p": row["p_controls"], "strong": row["text"] == HELD_OUT,
        }
        for row in rows
    ]  # fmt: skip
    columns = [key for key in shown[0] if key != "strong"]
    note = "low, high: 95% bootstrap over items. random sets: mean effect of sets with as many units in every site and layer."
    return Table(title, shown, columns, note, strong="strong")


def sets_table(study: CulturalNeurons) -> Table:
    """How many units each set has, where, and how many chance names."""
    finding = study.finding
    chance = finding.null.get("labels", {})
    rows = []
    for label, units in finding.sets.items():
        counts = {site: len(units.positions.get(site, ())) for site in finding.sites}
        by_chance = chance.get(label)
        rows.append({"set": label, "units": len(units), **counts, "by chance": by_chance and by_chance["mean"]})
    note = str(finding.null.get("said") or f"no null: {finding.null.get('why', 'unknown')}")
    return Table("The sets", rows, note=note)


def ranks_table(study: CulturalNeurons, ranks: dict[str, dict[str, Any]]) -> Table:
    """Where a group's own questions, and those of its kin, stand among all groups when its set is clamped."""
    n = len(study.groups.texts) if study.groups is not None else 0
    rows = [{"group": name, **row} for name, row in ranks.items()]
    note = (
        f"rank 1: hit hardest of {n} groups; {(n + 1) / 2:g} is what chance gives. effect: change of the answer's loss in nats; "
        "random: mean of matched-random sets on the same questions. kin: groups of the same continent."
    )
    return Table("Does a group's set hit its own questions first?", rows, note=note)


def sweep_table(study: CulturalNeurons) -> Table:
    """Effects of general sets of other sizes, in nats."""
    rows = []
    for name in study.sweep.sets:
        mine = {text: study.sweep.row(name, text) for text in study.sweep.texts}
        first = next(iter(mine.values()))
        losses = {text: row["effect"] for text, row in mine.items()}
        rows.append({"MLP share": name, "units": first["n_units"], **losses})
    return Table(
        "Threshold sweep: change of the answer's loss in nats", rows, note="Attention units: a fifth of the MLP share."
    )


def probabilities_table(study: CulturalNeurons) -> Table:
    """How probable the right answers were in the tasks that attribution ran on."""
    rows = []
    for name, told in study.finding.details.items():
        known = [value for value in told["mean_probability"].values() if value is not None]
        rows.append(
            {
                "task": name,
                "prompts": sum(told["prompts"].values()),
                "mean P of the answer": float(np.mean(known)) if known else None,
                "P below 1e-6": told["tiny"],
                "positive for a general unit": told["positive_share_of_general"],
            }
        )
    note = "Prompts whose answer the model finds all but impossible say little about its units. positive: share of prompts."
    return Table("What the attribution was based on", rows, note=note)


def own_ranks(study: CulturalNeurons) -> dict[str, dict[str, Any]]:
    """Group -> rank of its own questions among all groups' when its set is clamped, and the mean rank of its kin."""
    effects, found = study.groups, {}
    if effects is None:
        return {}
    labels = effects.texts
    for name in effects.sets:
        at = labels.index(name)
        hits = np.array([effects.row(name, text)["effect"] for text in labels])
        ranks = rankdata(-hits, method="average")
        kin = [labels.index(other) for other in study.kin.get(name, ()) if other in labels]
        row = effects.row(name, name)
        found[name] = {
            "units": row["n_units"],
            "own rank": float(ranks[at]),
            "kin": len(kin),
            "kin's mean rank": float(ranks[kin].mean()) if kin else None,
            "effect on own": row["effect"],
            "random on own": row["control_mean"],
            "effect on others": float(np.delete(hits, at).mean()) if len(labels) > 1 else None,
        }
    return found


def verdict(study: CulturalNeurons, ranks: dict[str, dict[str, Any]]) -> list[str]:
    """What the numbers say, claim by claim."""
    held = study.accuracy.row("general", HELD_OUT)
    loss = study.loss.row("general", HELD_OUT)
    others = [row for row in study.loss.rows if not row["text"].startswith("culture")]
    random = loss["control_mean"] or 0.0
    hurts = bool(loss["effect"] > random and loss["p_holm"] < LEVEL)
    lines = [
        judged(
            "Clamping the general set costs accuracy on held-out culture questions, more than random sets do",
            bool(
                -held["effect"] > -(held["control_mean"] or 0.0)
                and (held["p_holm"] or 0) < LEVEL
                and held["effect"] < 0
            ),
            f"{held['plain']:.1%} to {held['clamped']:.1%}; random sets {held['control_mean'] or 0:+.1%}; "
            f"p = {held['p_holm']:.2g}",
        ),
        judged(
            "So in the loss of the right answer",
            hurts,
            f"{loss['effect']:+.3f} nats, random sets {random:+.3f}, p = {loss['p_holm']:.2g}",
        ),
    ]
    if others:
        worst = max(others, key=lambda row: row["effect"])
        lines.append(
            judged(
                "Other tasks lose less than half of what culture loses",
                bool(worst["effect"] < loss["effect"] / 2) if hurts else None,
                f"culture {loss['effect']:+.3f} nats; most of the others: {worst['text']} {worst['effect']:+.3f}",
            )
        )
    return [
        *lines,
        *_parts_verdict(study, hurts),
        *_groups_verdict(study, ranks),
        _layers_verdict(study),
        _names_verdict(study),
    ]


def _parts_verdict(study: CulturalNeurons, hurts: bool) -> list[str]:
    if study.parts is None:
        return []
    mlp, attention = (study.parts.row(name, HELD_OUT)["effect"] for name in ("general, MLP", "general, attention"))
    return [
        judged(
            "The MLP units of the set do most of it, the attention units little",
            bool(mlp > 2 * attention) if hurts else None,
            f"{mlp:+.3f} and {attention:+.3f} nats",
        )
    ]


def _groups_verdict(study: CulturalNeurons, ranks: dict[str, dict[str, Any]]) -> list[str]:
    null = study.finding.null.get("specific")
    lines = []
    if null is not None:
        lines.append(
            judged(
                "The groups' sets hold more units than chance names",
                bool(null["p"] < LEVEL),
                f"{null['observed']}, by chance {null['mean']:.1f}; p = {null['p']:.2g}",
            )
        )
    own = np.array([row["own rank"] for row in ranks.values()])
    if len(own) < 2:
        return [*lines, judged("A group's set hits its own questions first", None, "fewer than two groups have units")]
    n = len(study.groups.texts) if study.groups is not None else 0
    p = rank_sum_p(own, n)
    lines.append(
        judged(
            "A group's set hits its own questions harder than those of others",
            bool(p < LEVEL and own.mean() < (n + 1) / 2),
            f"mean rank {own.mean():.1f} of {n}, chance {(n + 1) / 2:g}; first in {int((own == 1).sum())} of {len(own)}; "
            f"p = {p:.2g}",
        )
    )
    kin = [row["kin's mean rank"] for row in ranks.values() if row["kin's mean rank"] is not None]
    rest = (n + 2) / 2  # the mean of ranks 2 to n
    if kin:
        lines.append(
            judged(
                "Its kin come before strangers",
                None if len(kin) < 3 else bool(np.mean(kin) < rest - 2 * np.std(kin, ddof=1) / math.sqrt(len(kin))),
                f"mean rank of kin {np.mean(kin):.1f}; {rest:g} if the own group is first and kinship means nothing",
            )
        )
    return lines


def _layers_verdict(study: CulturalNeurons) -> str:
    counts = mlp_per_layer(study)
    half = len(counts) // 2
    if not counts.sum() or not half:
        return judged("The general MLP units lie in shallow to middle layers", None, "there are none")
    share = counts[: len(counts) - half].sum() / counts.sum()
    text = f"{share:.0%} in the lower half, layers 0-{len(counts) - half - 1}"
    return judged("The general MLP units lie in shallow to middle layers", bool(share > 2 / 3), text)


def _names_verdict(study: CulturalNeurons) -> str:
    claim = "The name filter had something to go by: the model can say which country a passage mentions"
    if NAMES not in study.accuracy.texts:
        return judged(claim, None, "no passages were given")
    plain = study.accuracy.row("general", NAMES)["plain"]
    known = [v for v in study.finding.details["names"]["mean_probability"].values() if v is not None]
    return judged(claim, bool(plain > 0.5), f"{plain:.1%} right among four; mean P of the name {np.mean(known):.2g}")


def rank_sum_p(ranks: NDArray[np.float64], n: int) -> float:
    """How probable a mean of so many ranks drawn evenly from 1 .. n is that is at most as large; normal beyond 20,000 draws."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(1, n + 1, size=(20_000, len(ranks))).mean(axis=1)
    return float((1 + (drawn <= ranks.mean() + 1e-12).sum()) / (1 + len(drawn)))


def mlp_per_layer(study: CulturalNeurons) -> NDArray[np.int64]:
    """General units of the MLP in each layer."""
    from patchclamp.find.culture_selection import MLP_SITES

    units = study.finding.sets["general"]
    return np.sum([units.per_layer(site) for site in study.finding.sites if site in MLP_SITES], axis=0)


def beside(study: CulturalNeurons, model: LanguageModel) -> Table:
    """The paper's accuracies in percent, and ours."""
    keys = ("culture", "culture, masked", "culture, random", "other", "other, masked", "other, random")
    rows: list[dict[str, Any]] = [
        {"model": name, "masked": units, **dict(zip(keys, values, strict=True))} for name, units, *values in PAPER
    ]
    held = study.accuracy.row("general", HELD_OUT)
    control = [text for text in study.accuracy.texts if not text.startswith("culture") and text != NAMES]
    mine: dict[str, Any] = {"model": f"{describe(model.identity)} (this run)", "masked": held["n_units"]}
    for prefix, row in (("culture", held), ("other", study.accuracy.row("general", control[0]) if control else None)):
        if row is not None:
            random = None if row["control_mean"] is None else 100 * (row["plain"] + row["control_mean"])
            mine |= {prefix: 100 * row["plain"], f"{prefix}, masked": 100 * row["clamped"], f"{prefix}, random": random}
    total = study.finding.total
    note = (
        f"Accuracy in percent. Paper: BLEnD test topics and CommonsenseQA, less than 1% of the units masked. This run: "
        f"{HELD_OUT} and {control[0] if control else 'nothing else'}, {held['n_units'] / total:.2%} of {total:,} units."
    )
    return Table("Beside the paper", [*rows, {**dict.fromkeys(keys), **mine}], ["model", "masked", *keys], note)


def differences(study: CulturalNeurons, model: LanguageModel) -> list[str]:
    """What is not as in the paper."""
    found = [
        f"model: {model.name}, {model.anatomy.n_layers} layers; the paper's are instruction-tuned, with 8 to 27 billion weights",
        "padding never counts in the maximum, and groups of unequal size are averaged by themselves (the paper's code: see "
        "patchclamp.find.culture)",
        "random sets have as many units in every site and layer; the paper draws from all layers at once",
        "p-values, nulls and intervals are ours; the paper tests accuracy against one random run by bootstrap",
    ]
    if study.own_items:
        taught = (
            "questions: those that the demo model was taught, in English, German, Russian and Chinese, three kinds of custom to "
            "find on and three to measure; options and answers are written out, there are no letters"
        )
        found.insert(1, taught)
    return found


def layers_chart(study: CulturalNeurons) -> Any:
    """Stacked bars: units of the general set per layer, by site."""
    import altair as alt

    units = study.finding.sets["general"]
    values = [
        {"layer": layer, "site": site, "units": int(count)}
        for site in study.finding.sites
        for layer, count in enumerate(units.per_layer(site))
    ]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_bar()
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("units:Q"),
            color=alt.Color("site:N"),
            tooltip=["layer:O", "site:N", "units:Q"],
        )
        .properties(width=360, height=180)
    )


def groups_chart(effects: Effects) -> Any:
    """Heat map: change of loss of every group's questions under every group's set."""
    import altair as alt

    values = [
        {"set": row["set"], "questions": row["text"], "nats": row["effect"], "random": row["control_mean"]}
        for row in effects.rows
    ]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_rect()
        .encode(
            x=alt.X("questions:N", title="questions about", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("set:N", title="set clamped"),
            color=alt.Color("nats:Q", title="nats", scale=alt.Scale(scheme="redblue", domainMid=0, reverse=True)),
            tooltip=["set:N", "questions:N", "nats:Q", "random:Q"],
        )
        .properties(width=360, height=360)
    )


def sweep_chart(study: CulturalNeurons) -> Any:
    """Lines: change of loss by size of the general set, culture and other tasks."""
    import altair as alt

    values = [{"units": row["n_units"], "task": row["text"], "nats": row["effect"]} for row in study.sweep.rows]
    return (
        alt.Chart(alt.Data(values=values))
        .mark_line(point=True)
        .encode(
            x=alt.X("units:Q", title="units clamped"), y=alt.Y("nats:Q", title="change of loss (nats)"), color="task:N"
        )
        .properties(width=360, height=200)
    )
