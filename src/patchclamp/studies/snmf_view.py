"""Tables, verdict and charts of the study of neuron groups, all computed from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.permutation import sign_flip
from patchclamp.read.snmf import Convergence
from patchclamp.studies.study_report import Report, Table, judged

ALPHA = 0.05
ROUNDING = 1e-9  # of the sum of squares: by how much a sum in floating point may seem to rise
SAID = {
    "snmf": "SNMF", "sae": "SAE, same size", "diffmeans": "difference of means", "pca": "principal components",
    "neurons": "single neurons", "random": "random groups",
}  # fmt: skip


@dataclass(frozen=True)
class SNMF:
    """What the study made. rows: one per concept and method; sizes: features of each method; words: contexts per feature."""

    rows: Sequence[Mapping[str, Any]]
    sizes: Mapping[str, int]
    words: Sequence[Mapping[str, Any]]
    record: Convergence
    parameters: Mapping[str, Any]
    neurons: Sequence[Sequence[tuple[int, float]]]
    levels: Mapping[str, Any]
    place: tuple[str, int]
    tokens: int
    samples: int
    model: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        return list(self.sizes)

    @property
    def concepts(self) -> list[str]:
        return list(dict.fromkeys(str(row["concept"]) for row in self.rows))

    def values(self, method: str, key: str) -> np.ndarray:
        """A column for a method, concept after concept, float64; NaN where there is none."""
        found = {row["concept"]: row[key] for row in self.rows if row["dictionary"] == method}
        return np.array(
            [math.nan if found.get(name) is None else found[name] for name in self.concepts], dtype=np.float64
        )


def report(made: SNMF) -> Report:
    """Tables from what each method achieves to what single features are, then the verdict."""
    methods, steering, detection = _methods(made), _matrix(made, "score"), _matrix(made, "auroc")
    convergence = Table(
        "How the factorisations went",
        list(made.record.trials),
        {"init": "start", "seed": "seed", "loss": "objective", "iterations": "iterations"},
        note=f"The start {made.record.init!r} was taken; {made.record.explained:.1%} of the sum of squares are reproduced.",
    )
    every = Table(
        "Every concept and method",
        [{key: value for key, value in row.items() if key != "strengths"} for row in made.rows],
    )
    tables = [methods, steering, detection, _features(made), convergence, *_levels(made), _written(made), every]
    return Report(
        tables=tables,
        charts=[(methods.title, _steering_chart(made)), (convergence.title, _loss_chart(made))],
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[every.title],
    )


def _methods(made: SNMF) -> Table:
    rows = []
    for method in made.methods:
        score, plain = made.values(method, "score"), made.values(method, "plain")
        low, high = _interval(score - plain)
        found = made.values(method, "detection")
        rows.append(
            {"method": SAID[method], "features": made.sizes[method], "auroc": _mean(made.values(method, "auroc")),
             "detection": _mean(found), "positive": float((found > 0).mean()),
             "undefined": _mean(made.values(method, "undefined")), "score": _mean(score),
             "best": _mean(made.values(method, "best")), "gain": _mean(score - plain),
             "low": low, "high": high, "p": None if method == "random" else _p(made, method, "random")}
        )  # fmt: skip
    heads = {"method": "method", "features": "features", "auroc": "detection AUROC", "detection": "log-ratio",
             "positive": "above 0", "undefined": "without ratio", "score": "steering (0-2)", "best": "best strength",
             "gain": "over plain", "low": "low", "high": "high", "p": "p, against random"}  # fmt: skip
    return Table(
        "Methods over all concepts",
        rows,
        heads,
        note=f"Means over {len(made.concepts)} concepts. Each method's feature for a concept is chosen on one half of the "
        "texts; detection is measured on the other half. Difference of means is told the concept, the others are not. "
        f"Steering without a feature: {_mean(made.values(made.methods[0], 'plain')):.2f}. Interval: 95 %, over concepts.",
    )


def _matrix(made: SNMF, key: str) -> Table:
    title = {
        "score": "Steering score of every concept (0 to 2)",
        "auroc": "Detection of every concept (AUROC on unseen texts)",
    }
    rows: list[dict[str, Any]] = []
    for number, concept in enumerate(made.concepts):
        row: dict[str, Any] = {"concept": concept}
        if key == "score":
            row["plain"] = float(made.values(made.methods[0], "plain")[number])
        rows.append(row | {method: _plain(made.values(method, key)[number]) for method in made.methods})
    heads = {"concept": "concept", **({"plain": "not steered"} if key == "score" else {}),
             **{method: SAID[method] for method in made.methods}}  # fmt: skip
    return Table(title[key], rows, heads)


def _features(made: SNMF) -> Table:
    """The feature of each concept: the words it is strongest on, and its neurons."""
    rows = []
    for row in made.rows:
        if row["dictionary"] != "snmf" or row["feature"] >= len(made.words):
            continue
        words, neurons = made.words[row["feature"]], made.neurons[row["feature"]]
        rows.append(
            {"concept": row["concept"], "feature": f"snmf.{made.place[1]}.{row['feature']}", "strongest": words["label"],
             "words": " ".join(dict.fromkeys(one["token"].strip() for one in words["tokens"])),
             "neurons": " ".join(f"{number}:{weight:+.2f}" for number, weight in neurons)}
        )  # fmt: skip
    heads = {
        "concept": "concept",
        "feature": "feature",
        "strongest": "strongest on",
        "words": "words",
        "neurons": "neurons",
    }
    return Table("Features of the factorisation that detect the concepts", rows, heads)


def _levels(made: SNMF) -> list[Table]:
    if not made.levels["rows"]:
        return []
    heads = {"level": "level", "features": "features", "explained": "reproduced", "neurons": "neurons per feature",
             "shared": "shared by two", "dead": "dead"}  # fmt: skip
    trees = [
        {"feature": tree["feature"], "parts": " ".join(str(part["feature"]) for part in tree["children"]),
         "strongest": ", ".join(dict.fromkeys(_leaves(tree, made.words)))}
        for tree in made.levels["trees"]
    ]  # fmt: skip
    return [
        Table("Features of features", made.levels["rows"], heads, note="Reproduced: of the level below."),
        Table("What the features of the highest level are made of", trees,
              {"feature": "feature", "parts": "parts one level down", "strongest": "strongest on"}),
    ]  # fmt: skip


def _leaves(node: Mapping[str, Any], words: Sequence[Mapping[str, Any]]) -> list[str]:
    if node["level"] == 0:
        return [words[node["feature"]]["label"]] if node["feature"] < len(words) else []
    return [label for child in node["children"] for label in _leaves(child, words)]


def _written(made: SNMF) -> Table:
    rows = [
        {"concept": row["concept"], "method": SAID[row["dictionary"]], "score": row["score"], "target": row["target"],
         "text": row["written"]}
        for row in made.rows if row["dictionary"] in ("snmf", "random")
    ]  # fmt: skip
    heads = {
        "concept": "concept",
        "method": "method",
        "score": "score",
        "target": "KL",
        "text": "first sample at the best strength",
    }
    return Table("What was written", rows, heads)


def _verdict(made: SNMF) -> list[str]:
    losses = np.array(made.record.losses)
    worst = float(np.diff(losses).max()) if len(losses) > 1 else 0.0
    found = made.values("snmf", "detection")
    lines = [
        judged("the objective of the factorisation never rises", worst <= ROUNDING * max(made.record.total, 1e-300),
               f"{len(losses)} values, from {losses[0]:.4g} to {losses[-1]:.4g}"),
        judged("most concepts have a feature of the factorisation that detects them on unseen texts (log-ratio above 0)",
               float((found > 0).mean()) > 0.5, f"{int((found > 0).sum())} of {len(found)}"),
    ]  # fmt: skip
    for method in made.methods:
        if method != "snmf":
            lines.append(_against(made, method))
    order = sorted(made.methods, key=lambda name: -_mean(made.values(name, "score")))
    lines.append(
        "order on steering: " + ", ".join(f"{SAID[name]} {_mean(made.values(name, 'score')):.2f}" for name in order)
    )
    return lines


def _against(made: SNMF, method: str) -> str:
    gap = _mean(made.values("snmf", "score") - made.values(method, "score"))
    p = _p(made, "snmf", method)
    return judged(
        f"the factorisation steers better than {SAID[method]}", gap > 0 and p < ALPHA,
        f"{gap:+.2f} of 2, p = {p:.2g} over {len(made.concepts)} concepts",
    )  # fmt: skip


def _beside(made: SNMF) -> Table:
    def ours(method: str, key: str = "best") -> float:
        return round(_mean(made.values(method, key)), 2)

    found = made.values("snmf", "detection")
    rows = [
        {"what": "neurons of the layer", "paper": "14,336", "ours": made.parameters["keep"] / made.parameters["sparsity"]},
        {"what": "features", "paper": 100, "ours": made.parameters["k"]},
        {"what": "steering, SNMF (layer 23; 31)", "paper": "0.45; 0.31", "ours": ours("snmf")},
        {"what": "steering, SAE (on outputs; same size on activations)", "paper": "about 0.35; 0.37", "ours": ours("sae")},
        {"what": "steering, difference of means", "paper": "about 0.40", "ours": ours("diffmeans")},
        {"what": "detection log-ratio, SNMF (layers 0 to 31)", "paper": "0.48 to 2.99", "ours": round(_mean(found), 2)},
        {"what": "features with a log-ratio above 0", "paper": "more than 75 %", "ours": f"{float((found > 0).mean()):.0%}"},
    ]  # fmt: skip
    return Table("Beside the paper (Llama-3.1-8B)", rows, {"what": "", "paper": "paper", "ours": "ours"})


def _differs(made: SNMF) -> list[str]:
    site, layer = made.place
    return [
        f"model: {made.model['name']}, {site} of layer {layer}, {made.tokens:,} tokens; the paper has Llama-3.1-8B, "
        "Gemma-2-2B and GPT-2",
        "concepts are given and each method's best detector is taken; in the paper a language model names every feature, "
        "writes texts from the name, and all features are scored",
        "the judge is offline: a classifier of the concept's tokens and the plain model's likelihood, not gpt-4o-mini; so the "
        "levels of steering scores don't compare with the paper's, their order does",
        f"strengths are matched to other effects, with {made.samples} samples each; the sign is the feature's own (components "
        "come with both); the score of the table is that of the strength chosen on the other half of the samples, the "
        "paper's is that of the best strength",
        "descent follows the published alternation, so the objective never rises; the paper's numbers of the published "
        "account come from a third party's notes, some rounded",
    ]


def _p(made: SNMF, method: str, other: str) -> float:
    return sign_flip(made.values(method, "score") - made.values(other, "score"))


def _interval(values: np.ndarray) -> tuple[float, float]:
    return percentile_interval(resampled_sums(values[:, None])[:, 0] / len(values))


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _steering_chart(made: SNMF) -> Any:
    import altair as alt

    values = [
        {"method": SAID[method], "concept": concept, "score": float(score)}
        for method in made.methods
        for concept, score in zip(made.concepts, made.values(method, "score"), strict=True)
    ]
    plain = _mean(made.values(made.methods[0], "plain"))
    base = alt.Chart(alt.Data(values=values), width=380, height=28 * len(made.methods)).encode(
        y=alt.Y("method:N", sort=[SAID[name] for name in made.methods], title=None)
    )
    points = base.mark_circle(opacity=0.5).encode(
        x=alt.X("score:Q", title="steering score (0 to 2), a dot per concept", scale=alt.Scale(domain=[0, 2])),
        tooltip=["concept:N", "score:Q"],
    )
    means = base.mark_tick(thickness=3, size=20, color="black").encode(x="mean(score):Q")
    rule = alt.Chart(alt.Data(values=[{"plain": plain}])).mark_rule(strokeDash=[4, 3]).encode(x="plain:Q")
    return points + means + rule


def _loss_chart(made: SNMF) -> Any:
    import altair as alt

    total = max(made.record.total, 1e-300)
    start = len(made.record.searched)
    values = [{"iteration": n, "left": loss / total, "step": "search"} for n, loss in enumerate(made.record.searched)]
    descent = made.record.losses[-max(1, len(made.record.losses) - start) :]
    values += [{"iteration": start + n, "left": loss / total, "step": "descent"} for n, loss in enumerate(descent)]
    return (
        alt.Chart(alt.Data(values=values), width=380, height=160)
        .mark_line()
        .encode(
            x=alt.X("iteration:Q"),
            y=alt.Y("left:Q", title="share of the sum of squares left", scale=alt.Scale(zero=False)),
            color=alt.Color("step:N", title=None),
        )
    )
