"""What the data-selection study shows: tables, a chart, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.holm import holm
from patchclamp.measure.permutation import sign_flip
from patchclamp.studies.study import Report, Table, judged

ALPHA = 0.05
RANDOM, FARTHEST, FEATURES = "random", "farthest", "features"
PAPER = {  # Llama-3.1-8B: averages over three tasks of the LESS pool; metrics over MMLU, GSM8K and BBH of OpenHermes
    "features": "67.20",
    "neurons": "65.95",
    "embedding": "65.19 (hidden states)",
    "bm25": "65.41",
    "random": "66.08",
}


@dataclass(frozen=True, eq=False)
class DataSelection:
    """Everything that was measured, as the report needs it.

    chosen: selection -> target, way, indices, classes, precision. losses: selection (and "base") -> per target the summed
    loss and tokens of every held-out document. variants: other metrics and poolings. classes: samples of each class of the
    pool. examples: samples of each target.
    """

    chosen: Mapping[str, Any]
    losses: Mapping[str, Any]
    variants: list[dict[str, Any]]
    why: list[dict[str, Any]]
    autoencoder: dict[str, Any]
    classes: Mapping[str, int]
    examples: Mapping[str, int]
    steps: int
    seed: int
    model: dict[str, Any]

    @property
    def ways(self) -> list[str]:
        """The ways that have a target, in order, farthest last."""
        return list(dict.fromkeys(entry["way"] for entry in self.chosen.values() if entry["target"] is not None))

    def randoms(self) -> list[str]:
        return [name for name, entry in self.chosen.items() if entry["way"] == RANDOM]


def report(made: DataSelection) -> Report:
    """Tables from what was chosen to what training on it did, then the verdict."""
    rows = effects(made)
    loss = Table(
        "Loss on held-out text of the target after training on the selection (nats per token)",
        rows,
        {"target": "target", "way": "by", "loss": "loss", "effect": "minus random", "low": "low", "high": "high",
         "p_holm": "p (Holm)", "beaten": "beats"},
        note="Minus random: below 0 is better than the mean of the random selections; 95% bootstrap interval and sign-flip "
             "test over held-out documents. Beats: of the random selections. All have as many samples, and as many steps.",
        strong="better",
    )  # fmt: skip
    tables = [_retrieved(made), loss, _without(rows), _variants(made), _classes(made)]
    if made.why:
        tables.append(
            Table(
                "Features that the chosen samples share with the target",
                made.why,
                {"target": "target", "unit": "feature", "share": "adds to the similarity", "chosen": "in the chosen",
                 "wanted": "in the target"},
                note="All features' shares add up to the mean similarity. `patchclamp read` says what a feature means.",
            )
        )  # fmt: skip
    return Report(
        tables=tables,
        charts=[(loss.title, _chart(rows))],
        verdict=_verdict(made, rows),
        beside=_beside(made, rows),
        differs=_differs(made),
        folded=[tables[4].title],
    )


def effects(made: DataSelection) -> list[dict[str, Any]]:
    """One row per target and way: loss per token, beside the mean of the random selections, with interval and p-value.

    p: two-sided sign-flip test over documents of (loss minus mean loss under random selections); p_holm: corrected over all
    rows. beaten: how many of the random selections have a higher loss.
    """
    rows: list[dict[str, Any]] = []
    for entry_name, entry in made.chosen.items():
        target = entry["target"]
        if target is None:
            continue
        totals, tokens = _arrays(made, entry_name, target)
        others = np.stack([_arrays(made, name, target)[0] for name in made.randoms()])
        each = others.sum(1) / tokens.sum()
        low, high = _interval(totals - others.mean(0), tokens, made.seed)
        mine = float(totals.sum() / tokens.sum())
        rows.append(
            {
                "target": target,
                "way": entry["way"],
                "loss": mine,
                "random": float(each.mean()),
                "random_sd": float(each.std(ddof=1)) if len(each) > 1 else None,
                "effect": mine - float(each.mean()),
                "low": low,
                "high": high,
                "p": sign_flip(totals - others.mean(0), seed=made.seed),
                "beaten": int((each > mine).sum()),
                "n_random": len(each),
                "base": float(_arrays(made, "base", target)[0].sum() / tokens.sum()),
                "n_documents": int((tokens > 0).sum()),
            }
        )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["better"] = bool(row["high"] < 0 and p is not None and p < ALPHA)
        row["worse"] = bool(row["low"] > 0 and p is not None and p < ALPHA)
    return rows


def _arrays(made: DataSelection, name: str, target: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = made.losses[name]["on"][target]
    return np.asarray(found["totals"], dtype=np.float64), np.asarray(found["tokens"], dtype=np.float64)


def _interval(difference: NDArray[np.float64], tokens: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Bootstrap over documents of the mean difference per token."""
    kept = tokens > 0
    if kept.sum() < 2:
        return float("nan"), float("nan")
    sums = resampled_sums(np.stack([difference[kept], tokens[kept]], 1), seed=seed)
    return percentile_interval(sums[:, 0] / sums[:, 1])


def _without(rows: list[dict[str, Any]]) -> Table:
    first = {row["target"]: row for row in reversed(rows)}
    heads = {"target": "target", "base": "untrained", "random": "random samples", "random_sd": "sd", "n_random": "selections",
             "n_documents": "held-out documents"}  # fmt: skip
    return Table(
        "Loss without a selection", [first[target] for target in dict.fromkeys(row["target"] for row in rows)], heads
    )


def _retrieved(made: DataSelection) -> Table:
    total = sum(made.classes.values())
    rows = [
        {
            "target": entry["target"],
            "way": entry["way"],
            "n": len(entry["indices"]),
            "precision": entry["precision"],
            "chance": made.classes[entry["target"]] / total if entry["target"] in made.classes else None,
            "r_precision": None if entry["way"] == FARTHEST else entry["r_precision"],
            "tokens": entry["tokens"],
            "best": entry["scores"][0],
            "last": entry["scores"][1],
            "median": entry["median"],
        }
        for entry in made.chosen.values()
        if entry["target"] is not None
    ]
    heads = {"target": "target", "way": "by", "n": "samples", "precision": "right class", "chance": "by chance",
             "r_precision": "R-precision", "tokens": "tokens"}  # fmt: skip
    return Table(
        "What was selected", rows, heads, note="R-precision: with as many samples as the pool has of the class."
    )


def _variants(made: DataSelection) -> Table:
    rows = []
    for metric, pooling in dict.fromkeys((row["metric"], row["pooling"]) for row in made.variants):
        same = [row for row in made.variants if (row["metric"], row["pooling"]) == (metric, pooling)]
        known = [row["r_precision"] for row in same if row["r_precision"] is not None]
        rows.append(
            {"metric": metric, "pooling": pooling, "r_precision": float(np.mean(known)) if known else None,
             "length": float(np.mean([row["length"] for row in same]))}
        )  # fmt: skip
    heads = {
        "metric": "metric",
        "pooling": "over tokens",
        "r_precision": "R-precision",
        "length": "tokens of a chosen sample",
    }
    return Table("Other metrics and sums over tokens (mean of the targets)", rows, heads)


def _classes(made: DataSelection) -> Table:
    rows = [
        {"selection": name, "class": label, "samples": count}
        for name, entry in made.chosen.items()
        for label, count in sorted(entry["classes"].items(), key=lambda item: -item[1])
    ]
    return Table("Classes of the chosen samples", rows)


def _mean(rows: list[dict[str, Any]], way: str, key: str = "effect") -> float:
    return float(np.mean([row[key] for row in rows if row["way"] == way]))


def _verdict(made: DataSelection, rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for way in made.ways:
        if way == FARTHEST:
            continue
        mine = [row for row in rows if row["way"] == way]
        better = [row for row in mine if row["better"]]
        lines.append(
            judged(f"training on what {way} select lowers the target's loss more than training on random samples",
                   len(better) == len(mine),
                   f"{len(better)} of {len(mine)} targets; {_mean(rows, way):+.3f} nats per token on average")
        )  # fmt: skip
    rivals = [way for way in made.ways if way not in (FARTHEST, FEATURES)]
    if FEATURES in made.ways and rivals:
        best = min(rivals, key=lambda way: _mean(rows, way))
        gap = _paired(made, FEATURES, best)
        clear = gap["high"] < 0 and gap["p"] < ALPHA
        lines.append(
            judged(f"features select better than the best of the others ({best})", bool(clear),
                   f"{gap['value']:+.3f} nats per token, 95% interval {gap['low']:+.3f} to {gap['high']:+.3f}, "
                   f"p = {gap['p']:.2g}, all targets together")
        )  # fmt: skip
    if FARTHEST in made.ways:
        far = [row for row in rows if row["way"] == FARTHEST]
        worse = [row for row in far if row["worse"]]
        lines.append(
            judged("training on the samples farthest from the target does less good than random ones",
                   len(worse) == len(far), f"{len(worse)} of {len(far)} targets; {_mean(rows, FARTHEST):+.3f} nats per token")
        )  # fmt: skip
    lines.append(_metric_verdict(made))
    return lines


def _metric_verdict(made: DataSelection) -> str:
    shares = {
        (row["metric"], row["pooling"]): row["r_precision"]
        for row in _variants(made).rows
        if row["r_precision"] is not None
    }
    if not shares:
        return judged("the Jaccard similarity finds more of the target's class than cosine and distance", None,
                      "the pool's labels don't name the targets")  # fmt: skip
    mine = shares["jaccard", "mean"]
    others = {metric: shares[metric, "mean"] for metric in ("cosine", "euclidean")}
    numbers = ", ".join(f"{name} {share:.2f}" for name, share in {"jaccard": mine, **others}.items())
    return judged(
        "the Jaccard similarity finds more of the target's class than cosine and distance",
        all(mine > share for share in others.values()),
        f"R-precision {numbers}; Jaccard of sums {shares['jaccard', 'sum']:.2f}",
    )


def _paired(made: DataSelection, way: str, other: str) -> dict[str, float]:
    """Loss under one way minus loss under another, over the documents of all targets."""
    difference, tokens = [], []
    for target in made.examples:
        names = {entry["way"]: name for name, entry in made.chosen.items() if entry["target"] == target}
        mine, size = _arrays(made, names[way], target)
        difference.append(mine - _arrays(made, names[other], target)[0])
        tokens.append(size)
    d, n = np.concatenate(difference), np.concatenate(tokens)
    low, high = _interval(d, n, made.seed)
    return {"value": float(d.sum() / n.sum()), "low": low, "high": high, "p": sign_flip(d, seed=made.seed)}


def _beside(made: DataSelection, rows: list[dict[str, Any]]) -> Table:
    table: list[dict[str, Any]] = [
        {"what": f"selected by {way}", "paper": PAPER.get(way, "–"), "ours": _mean(rows, way, "loss")}
        for way in made.ways
        if way != FARTHEST
    ]
    table.append({"what": "random", "paper": PAPER["random"], "ours": float(np.mean([row["random"] for row in rows]))})
    if FARTHEST in made.ways:
        table.append({"what": "farthest (closest: 66.29)", "paper": "52.54", "ours": _mean(rows, FARTHEST, "loss")})
    variants = {(row["metric"], row["pooling"]): row["r_precision"] for row in _variants(made).rows}
    for metric, paper in (("jaccard", "66.29"), ("cosine", "63.78"), ("euclidean", "63.46")):
        table.append({"what": f"metric {metric} (ours: R-precision)", "paper": paper, "ours": variants[metric, "mean"]})
    table += [
        {"what": "features of the autoencoder", "paper": 131_072, "ours": made.autoencoder["n_features"]},
        {"what": "active per token", "paper": 192, "ours": made.autoencoder["k"]},
    ]
    return Table("Beside the paper (Llama-3.1-8B: accuracy, higher is better; ours: loss in nats, lower is better)", table,
                 {"what": "", "paper": "paper", "ours": "ours"})  # fmt: skip


def _differs(made: DataSelection) -> list[str]:
    return [
        f"model: {made.model['name']} selects and is trained itself; in the paper Llama-3-8B selects and others are trained",
        "measured: loss on held-out text of the target; the paper measures accuracy on benchmarks",
        f"pool: {sum(made.classes.values()):,} samples in {len(made.classes)} classes; the paper's have 270,000 and a million",
        f"autoencoder: {made.autoencoder['n_features']:,} features"
        + (" trained on the pool itself in this run" if made.autoencoder["own"] else ""),
        f"training: {made.steps} steps of AdamW at a constant rate; the paper has 2 epochs on a cosine schedule",
        "intervals and p-values are ours; the random baseline is the mean of several selections, as in the paper",
    ]


def _chart(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    values = [
        {key: row[key] for key in ("target", "way", "effect", "low", "high")} for row in rows if np.isfinite(row["low"])
    ]
    ways = list(dict.fromkeys(row["way"] for row in values))
    base = alt.Chart(alt.Data(values=values)).encode(y=alt.Y("way:N", sort=ways, title=None))
    points = base.mark_point(filled=True, size=60).encode(
        x=alt.X("effect:Q", title="loss minus random, nats per token")
    )
    bars = base.mark_rule().encode(x="low:Q", x2="high:Q")
    zero = alt.Chart(alt.Data(values=[{"x": 0}])).mark_rule(strokeDash=[4, 3], color="gray").encode(x="x:Q")
    return (
        alt.layer(zero, bars, points, data=alt.Data(values=values))
        .properties(width=220, height=26 * max(1, len(ways)))
        .facet(column=alt.Column("target:N", title=None))
    )
