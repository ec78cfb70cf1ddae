"""What the relation-neuron study shows: tables, charts, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects

ALPHA = 0.05
STILL = 0.05  # a change of accuracy by less is "about unchanged"


@dataclass(frozen=True, eq=False)
class RelationNeurons:
    """Everything that was measured, as the report needs it.

    asked: prompts, what the model knows of them, and shared subjects. shares: of all units, ascending; the first is the
    paper's. accuracy, loss: share -> effects. elsewhere: effects of the largest sets on other wordings and languages.
    """

    finding: Finding
    asked: dict[str, Any]
    shares: list[float]
    accuracy: Mapping[float, Effects]
    loss: Mapping[float, Effects]
    drops: dict[str, list[dict[str, Any]]]
    cumulated: dict[str, Any]
    elsewhere: Effects | None
    last_overlap: dict[str, float]
    pool: str
    model: dict[str, Any]


def report(made: RelationNeurons) -> Report:
    """Tables from what was asked to what was masked, then the verdict."""
    top = made.shares[-1]
    matrix = Table(
        f"Drop of accuracy with {_count(made, top):,} units of a relation masked (share of the plain accuracy)",
        _matrix(made.drops[str(top)], "drop"),
        note="Row: masked; column: asked. Above 0: worse (versatility off the diagonal); below 0: better (interference).",
    )
    curve = Table(
        "Accuracy while ever more units are masked",
        made.cumulated["curve"],
        {
            "relation": "relation",
            "k": "units",
            "own": "own",
            "others": "others",
            "random": "random units",
            "n": "prompts",
        },
        note="0 units: nothing masked. Random units: as many per layer, own relation.",
    )
    steps = Table(
        "Do the units act only together? (cumulativity index)",
        made.cumulated["pairs"],
        {"k1": "first k1", "k2": "first k2", "macro": "index, mean of relations", "micro": "index, pooled"},
        note="Of the prompts lost between k1 and k2: the share that is kept when only the units k1+1 to k2 are masked.",
    )
    tables = [_asked(made), _found(made), *[_own(made, share) for share in made.shares], matrix, curve, steps]
    if made.elsewhere is not None:
        tables.append(_elsewhere(made.elsewhere))
    every = Table("Every drop of accuracy", [{"share": s, **row} for s, rows in made.drops.items() for row in rows])
    subjects = Table(
        "Subjects that relations share",
        [
            {"relation": name, **dict(zip(made.asked["subjects"]["labels"], row, strict=True))}
            for name, row in zip(made.asked["subjects"]["labels"], made.asked["subjects"]["matrix"], strict=True)
        ],
    )
    overlap = Table(
        "Units that the sets share",
        [{"relation": name, **dict(zip(made.finding.labels, row, strict=True))}
         for name, row in zip(made.finding.labels, made.finding.details["overlap"], strict=True)],
        note="Shared units are no evidence of shared damage, nor the reverse.",
    )  # fmt: skip
    return Report(
        tables=[*tables, overlap, subjects, every],
        charts=[(matrix.title, _matrix_chart(made.drops[str(top)])), (curve.title, _curve_chart(made))],
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[overlap.title, subjects.title, every.title],
    )


def _asked(made: RelationNeurons) -> Table:
    asked = made.asked
    rows = [
        {
            "relation": name,
            "known": None if name not in asked["known"] else asked["known"][name][0],
            "asked": None if name not in asked["known"] else asked["known"][name][1],
            "used": asked["detection"].get(name, 0),
            "accuracy": asked["plain"].get(name, {}).get("accuracy"),
            "n": asked["plain"].get(name, {}).get("n"),
            "skipped": asked["skipped"].get(name, ""),
        }
        for name in asked["subjects"]["labels"]
    ]
    heads = {"relation": "relation", "known": "completed", "asked": "of", "used": "used to detect",
             "accuracy": "accuracy on other subjects", "n": "prompts", "skipped": "skipped"}  # fmt: skip
    return Table("Prompts", rows, heads, note=f"All prompts are used: {asked['why_all']}" if asked["why_all"] else "")


def _found(made: RelationNeurons) -> Table:
    null = made.finding.null["labels"]
    rows = []
    for name in made.finding.labels:
        entry, kth = null[name], null[name].get("kth", {})
        rows.append(
            {
                "relation": name,
                "units": entry["observed"],
                "by_chance": entry["mean"],
                "best": entry["best"]["observed"],
                "best_shuffled": entry["best"]["max"],
                "kth": kth.get("observed"),
                "kth_shuffled": kth.get("max"),
                "last": made.last_overlap.get(name),
            }
        )
    heads = {"relation": "relation", "units": "units", "by_chance": "by chance", "best": "best AP",
             "best_shuffled": "shuffled, highest", "kth": "last AP of the set", "kth_shuffled": "shuffled, highest",
             "last": "same by last token"}  # fmt: skip
    note = (
        f"Sets: the highest average precision, at most the paper's share of {made.finding.total:,} units, all beyond a "
        f"false-discovery rate of {made.finding.parameters['fdr']:g}. Shuffled: labels dealt anew over the prompts."
    )
    return Table("Units that tell a relation's prompts", rows, heads, note=note)


def _own(made: RelationNeurons, share: float) -> Table:
    """Each relation's own facts under its own mask: accuracy and answer loss."""
    rows = []
    for name in made.finding.labels:
        right, loss = made.accuracy[share].row(name, name), made.loss[share].row(name, name)
        others = [made.loss[share].row(name, other)["effect"] for other in made.finding.labels if other != name]
        rows.append(
            {
                "relation": name, "plain": right["plain"], "masked": right["clamped"],
                "random": None if right["control_mean"] is None else right["plain"] + right["control_mean"],
                "p": right["p_holm"], "nats": loss["effect"], "nats_low": loss["low"], "nats_high": loss["high"],
                "nats_random": loss["control_mean"], "nats_others": float(np.mean(others)), "nats_p": loss["p_holm"],
            }
        )  # fmt: skip
    heads = {
        "relation": "relation", "plain": "accuracy", "masked": "masked", "random": "random units", "p": "p (Holm)",
        "nats": "answer loss +nats", "nats_low": "low", "nats_high": "high", "nats_random": "random units ",
        "nats_others": "other relations", "nats_p": "p (Holm) ",
    }  # fmt: skip
    title = f"A relation's own facts with its {_count(made, share):,} units masked ({share:.2%} of all)"
    return Table(title, rows, heads, note="Facts about subjects that detection did not see; p against random sets.")


def _elsewhere(effects: Effects) -> Table:
    """The same facts in other words: change of answer loss under the own and the other masks."""
    rows = []
    for text in effects.texts:
        name, _, where = text.partition(" (")
        own = effects.row(name, text)
        others = [effects.row(other, text)["effect"] for other in effects.sets if other != name]
        rows.append(
            {"relation": name, "asked": where.rstrip(")"), "plain": own["plain"], "own": own["effect"],
             "low": own["low"], "high": own["high"], "random": own["control_mean"], "others": float(np.mean(others)),
             "p_holm": own["p_holm"], "n": own["n_documents"]}
        )  # fmt: skip
    heads = {"relation": "relation", "asked": "asked in", "plain": "plain loss", "own": "own mask +nats", "low": "low",
             "high": "high", "random": "random units", "others": "other masks", "p_holm": "p (Holm)", "n": "prompts"}  # fmt: skip
    return Table("The same facts in other words", rows, heads)


def _verdict(made: RelationNeurons) -> list[str]:
    names, null = made.finding.labels, made.finding.null["labels"]
    beyond = [name for name in names if null[name]["best"]["observed"] > null[name]["best"]["max"]]
    lines = []
    if made.asked["why_all"]:
        lines.append(f"the model does not know these facts, so nothing can be lost: {made.asked['why_all']}")
    lines += [
        f"{name} is left out: {why}"
        for name, why in made.asked["skipped"].items()
        if name not in made.asked["relations"]
    ]
    lines.append(
        judged("units tell each relation's prompts better than any unit tells shuffled ones",
               len(beyond) == len(names), f"{len(beyond)} of {len(names)} relations")
    )  # fmt: skip
    for share in made.shares:
        lines += _masked(made, share)
    if made.elsewhere is not None:
        rows = [made.elsewhere.row(text.partition(" (")[0], text) for text in made.elsewhere.texts]
        hurt = [row for row in rows if _hurt(row)]
        lines.append(
            judged("the largest sets also hurt the same facts in other wordings and languages more than random units",
                   len(hurt) > len(rows) / 2, f"{len(hurt)} of {len(rows)} relations and wordings")
        )  # fmt: skip
    kinds = [row["kind"] for row in made.drops[str(made.shares[-1])]]
    lines.append(
        f"of {kinds.count('own') * (len(names) - 1)} pairs of different relations, {kinds.count('versatility')} lose accuracy "
        f"under the other's mask (versatility) and {kinds.count('interference')} gain (interference)"
    )
    known = [(row["k2"], row["micro"]) for row in made.cumulated["pairs"] if row["micro"] is not None]
    lines.append(
        judged("the units act only together (most prompts that a longer mask loses survive its added part alone)",
               None if not known else all(index > 0.5 for _, index in known),
               ", ".join(f"index {index:.2f} at {k} units" for k, index in known) or "no prompt was lost")
    )  # fmt: skip
    return lines


def _masked(made: RelationNeurons, share: float) -> list[str]:
    """What masking so many units does, in two sentences: on accuracy, on answer loss."""
    names, k = made.finding.labels, _count(made, share)
    right = [made.accuracy[share].row(name, name) for name in names]
    fell = [row for row in right if row["effect"] < 0 and row["p_holm"] is not None and row["p_holm"] < ALPHA]
    still = [row for row in right if row["control_mean"] is not None and abs(row["control_mean"]) < STILL]
    loss = [made.loss[share].row(name, name) for name in names]
    hurt = [row for row in loss if _hurt(row)]
    table = made.loss[share].dominance("excess") if len(names) > 1 else None
    said = f"{k:,} units ({share:.2%})"
    return [
        judged(f"masking {said} lowers the accuracy on the relation's own facts",
               len(fell) == len(names) if any(row["plain"] > 0 for row in right) else None,
               f"{len(fell)} of {len(names)} at Holm-corrected p < {ALPHA}; random units leave {len(still)} about unchanged"),
        judged(f"masking {said} raises their answer loss more than random units do", len(hurt) == len(names),
               f"{len(hurt)} of {len(names)}; median {np.median([row['effect'] for row in loss]):+.3f} nats"),
        judged(f"with {said} masked each relation is hurt most by its own units", None if table is None else
               table["dominant"], "" if table is None else f"{table['share']:.0%} of the comparisons"),
    ]  # fmt: skip


def _hurt(row: dict[str, Any]) -> bool:
    random = row["control_mean"] or 0.0
    return bool(row["effect"] > max(random, 0) and row["p_holm"] is not None and row["p_holm"] < ALPHA)


def _beside(made: RelationNeurons) -> Table:
    total, names = made.finding.total, made.finding.labels
    first = [made.accuracy[made.shares[0]].row(name, name) for name in names]
    shared = np.array(made.finding.details["overlap"])
    off = shared[~np.eye(len(shared), dtype=bool)]
    rows: list[dict[str, Any]] = [
        {"what": "units ranked", "paper": 835_584, "ours": total},
        {"what": "units of a set", "paper": 3000, "ours": _count(made, made.shares[0])},
        {"what": "relations", "paper": 12, "ours": len(names)},
        {"what": "relations whose accuracy falls clearly under their own mask", "paper": "most",
         "ours": f"{sum(row['effect'] < -STILL for row in first)} of {len(names)}"},
        {"what": "accuracy under random units", "paper": "about the original",
         "ours": f"{np.mean([row['control_mean'] or 0.0 for row in first]):+.3f}"},
        {"what": "most units that two relations share (father and mother in the paper)", "paper": 2053,
         "ours": int(off.max()) if off.size else 0},
    ]  # fmt: skip
    return Table("Beside the paper (Llama-2-7B)", rows, {"what": "", "paper": "paper", "ours": "ours"})


def _differs(made: RelationNeurons) -> list[str]:
    return [
        f"model: {made.model['name']} with {made.finding.total:,} units of {made.finding.site}, the paper's have 835,584 "
        "and more",
        "facts: those of the task, the paper's are 12 relations of LRE with more than 300 facts each",
        "subjects are kept apart over all relations, in the paper within each",
        "a set must also pass a false-discovery rate against shuffled labels; tables by share take the top units as the "
        "paper does",
        "answer loss is ours, and so are the p-values",
    ]


def _count(made: RelationNeurons, share: float) -> int:
    return max(1, round(share * made.finding.total))


def _matrix(rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    masked = dict.fromkeys(row["masked"] for row in rows)
    return [{"masked": name} | {row["relation"]: row[key] for row in rows if row["masked"] == name} for name in masked]


def _matrix_chart(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    names = list(dict.fromkeys(row["masked"] for row in rows))
    values = [
        {"masked": row["masked"], "asked": row["relation"], "drop": row["drop"],
         "shown": "–" if row["drop"] is None else f"{row['drop']:+.2f}"}
        for row in rows
    ]  # fmt: skip
    base = alt.Chart(alt.Data(values=values), width=70 * len(names), height=40 * len(names)).encode(
        x=alt.X("asked:N", sort=names, title="asked", axis=alt.Axis(labelAngle=-30, orient="top")),
        y=alt.Y("masked:N", sort=names, title="masked"),
    )
    colour = alt.Color("drop:Q", title="drop", scale=alt.Scale(scheme="redblue", domain=[-1, 1], reverse=True))
    return base.mark_rect(stroke="white").encode(color=colour) + base.mark_text(fontSize=12).encode(text="shown:N")


def _curve_chart(made: RelationNeurons) -> Any:
    import altair as alt

    values = [
        {"relation": row["relation"], "units": row["k"], "accuracy": row[key], "asked": said}
        for row in made.cumulated["curve"]
        for key, said in (("own", "own facts"), ("others", "other relations"), ("random", "own, random units"))
        if row[key] is not None
    ]
    return (
        alt.Chart(alt.Data(values=values), width=150, height=130)
        .mark_line(point=True)
        .encode(
            x=alt.X("units:Q", title="units masked", scale=alt.Scale(type="symlog")),
            y=alt.Y("accuracy:Q", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("asked:N", title=None),
            facet=alt.Facet("relation:N", columns=4, title=None),
        )
    )
