"""What the EigenShift study shows: the trade-off of every method, its curve, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchclamp.find.output_directions import RANDOM, SHIFT, SMALLEST
from patchclamp.measure.tradeoff import PLAIN, Tradeoff
from patchclamp.studies.study import Report, Table, judged

ALPHA = 0.05
BROKEN = 5.0  # perplexity this many times the plain model's is no fluency
WEIGHED = "EigenShift by logit"
AURA, DAMP, DET0, UNITS = "AurA", "Damp", "Det-0", "random units"
CLUSTERS, LABELS = "layers by clusters", "layers by labels"
FEWER = "EigenShift makes the concept rarer"
PAPER = {  # Llama-2-7B: flagged %, perplexity, TPH
    PLAIN: (11.13, 6.23, None),
    f"{DET0}/all": (0.0, 43517.0, 0.03),
    f"{DAMP}/all": (0.13, 741.65, 1.67),
    f"{AURA}/all": (3.59, 19.3, 43.73),
    SHIFT: (4.71, 9.84, 60.37),
}


@dataclass(frozen=True, eq=False)
class Eigenshift:
    """Everything that was measured, as the report needs it.

    best: family -> name of its run of highest TPH. states, directions, detection: plain data of the study's stages. kept:
    run -> layer -> AUROC of the concept along the layer's direction. losses: run -> answer loss of replies with the
    concept and of the others, None if unknown. shares: numbers of directions that were damped.
    """

    curve: Tradeoff
    best: dict[str, str]
    states: dict[str, Any]
    directions: list[dict[str, Any]]
    detection: dict[str, Any]
    kept: dict[str, dict[str, float]]
    losses: dict[str, dict[str, float]] | None
    shares: Sequence[int]
    taught: bool
    model: dict[str, Any]


def report(made: Eigenshift) -> Report:
    """The best run of every family first, then all of them, what they write, and what is left of detection."""
    every = _every(made)
    return Report(
        tables=[_best(made), every, _directions(made), _detection(made), _kept(made), _written(made)],
        charts=[(every.title, made.curve.chart())],
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[every.title],
    )


_HEADS = {"name": "intervention", "units": "units", "rate": "rate", "low": "low", "high": "high", "once": "at least once",
          "perplexity": "perplexity", "percent": "change %", "tph": "TPH", "tph_low": "low ", "tph_high": "high "}  # fmt: skip


def _best(made: Eigenshift) -> Table:
    rows = [_shown(made, PLAIN), *(_shown(made, name) for name in made.best.values())]
    heads = dict(_HEADS)
    if made.losses is not None:
        for row in rows:
            loss, plain = made.losses[row["name"]], made.losses[PLAIN]
            row |= {"concept": loss["concept"] - plain["concept"], "others": loss["others"] - plain["others"]}
        heads |= {"concept": "+nats concept", "others": "+nats others"}
    note = (
        "Each method at its setting of highest TPH (harmonic mean of the relative fall of the rate and 1 / (1 + |relative "
        "change of perplexity|)). Units: directions, units, or layers. +nats: answer loss of replies that show the concept, and "
        "of the others: a method aimed at the concept raises the first only."
    )
    return Table("Each method at its best", rows, heads, note=note)


def _every(made: Eigenshift) -> Table:
    rows = [_shown(made, row["name"]) for row in made.curve.rows]
    return Table("Every setting and control", rows, {**_HEADS, "p": "p"}, note="p: paired sign-flip test over prompts.")


def _shown(made: Eigenshift, name: str) -> dict[str, Any]:
    row = made.curve[name]
    return {**row, "percent": None if name == PLAIN else 100 * row["change"]}


def _directions(made: Eigenshift) -> Table:
    heads = {"direction": "direction", "sigma": "sigma", "delta": "delta", "p": "p", "auroc": "AUROC", "toward": "writes",
             "away": "writes against"}  # fmt: skip
    steps = ", ".join(f"{n} at token {int(at) + 1}" for at, n in made.states["steps"].items())
    note = (
        f"From {made.states['phi']} states that wrote the first flagged token ({steps}) and {made.states['psi']} states of "
        "other continuations at the same steps. p: shuffled labels, corrected over all directions; AUROC on these states."
    )
    return Table("Directions that write the concept", made.directions, heads, note=note)


def _detection(made: Eigenshift) -> Table:
    found = made.detection
    rows: list[dict[str, Any]] = [
        {"what": f"units ({found['units']:,}), mean", "auroc": found["mean"]},
        {"what": "best unit", "auroc": found["best"]},
        {"what": "layers by two clusters, mean", "auroc": float(np.mean([row["auroc"] for row in found["layers"]]))},
        {"what": "layers by labels (along the difference of means), mean",
         "auroc": float(np.mean(list(found["labels"].values())))},
        {"what": "best output direction, on the states that write", "auroc": max(row["auroc"] for row in made.directions)},
    ]  # fmt: skip
    note = f"{100 * found['above']:.0f}% of the units lie above 0.5; in noise half of them do."
    return Table(
        "Detecting what was written, and being about to write it", rows, {"what": "", "auroc": "AUROC"}, note=note
    )


def _kept(made: Eigenshift) -> Table:
    layers = sorted(made.kept[PLAIN], key=int)
    rows = [{"name": name, **made.kept[name]} for name in made.kept]
    note = "AUROC of held-out continuations along each layer's direction, found on the plain model, read under the intervention."
    return Table(
        "Is the concept still told?", rows, {"name": "intervention", **{at: f"layer {at}" for at in layers}}, note=note
    )


def _written(made: Eigenshift) -> Table:
    names = [PLAIN, *(made.best[family] for family in (SHIFT, RANDOM, AURA, DET0, LABELS) if family in made.best)]
    rows = [
        {"prompt": one["prompt"], **{name: made.curve.written[name][at]["text"] for name in names}}
        for at, one in enumerate(made.curve.written[PLAIN])
    ]
    return Table(
        "What is written", rows, {"prompt": "prompt", **{name: name for name in names}},
        note="The first sample of every prompt; the same random numbers everywhere.",
    )  # fmt: skip


def _verdict(made: Eigenshift) -> list[str]:
    curve, best = made.curve, made.best
    plain, shift = curve[PLAIN], curve[best[SHIFT]]
    lines = [
        judged(FEWER, shift["reduction"] > 0 and shift["p"] < ALPHA,
               f"{_percent(plain['rate'])} to {_percent(shift['rate'])} of samples at {shift['name']}, perplexity "
               f"{plain['perplexity']:.1f} to {shift['perplexity']:.1f} ({100 * shift['change']:+.0f}%), p = {shift['p']:.2g}"),
    ]  # fmt: skip
    for family in (SHIFT, WEIGHED):
        controls = [row for row in curve.rows if row["family"] in (RANDOM, SMALLEST)]
        lines.append(_compared(f"{family}'s directions matter: random and least active ones do worse", curve[best[family]],
                               max(controls, key=lambda row: row["tph"])))  # fmt: skip
    for k in made.shares:
        rival = max(_controls(made, k), key=lambda row: row["tph"])
        lines.append(_compared(f"with {k} directions, the best of as many random or least active ones does worse",
                               curve[f"{SHIFT}/{k}"], rival))  # fmt: skip
    lines += [
        _compared(f"{family} does worse", shift, curve[best[family]])
        for family in (AURA, DAMP, DET0, CLUSTERS, LABELS)
        if family in best
    ]
    for family in (DAMP, DET0):
        name = f"{family}/all"
        if any(row["name"] == name for row in curve.rows):
            ratio, least = 1 + curve[name]["change"], 1 + curve[best[family]]["change"]
            lines.append(judged(f"{family} on all units above 0.5, as published, breaks fluency", ratio > BROKEN,
                                f"perplexity x{ratio:.3g}; at its best setting x{least:.2f}"))  # fmt: skip
    if made.losses is not None:
        own, off = made.losses[best[SHIFT]], made.losses[PLAIN]
        rise, side = own["concept"] - off["concept"], own["others"] - off["others"]
        lines.append(judged("it is aimed at the concept: other replies suffer less than half as much", side < rise / 2,
                            f"{rise:+.2f} nats for replies with it, {side:+.2f} for others"))  # fmt: skip
    lost = max(abs(made.kept[best[SHIFT]][at] - made.kept[PLAIN][at]) for at in made.kept[PLAIN])
    lines.append(judged("detection is kept: every layer tells the concept as before", lost < 0.01,
                        f"AUROC moves by at most {lost:.3f}"))  # fmt: skip
    return lines


def _compared(claim: str, row: dict[str, Any], other: dict[str, Any]) -> str:
    """A claim that one trade-off is better than another: told only if the interval of the first leaves out the second."""
    low, high = row["tph_low"], row["tph_high"]
    better = None if low is None or low <= other["tph"] <= high else row["tph"] > other["tph"]
    return judged(claim, better, f"TPH {_of(row)} of {row['name']} against {_of(other)} of {other['name']}")


def _controls(made: Eigenshift, k: int) -> list[dict[str, Any]]:
    names = (f"{RANDOM}/{k}#", f"{SMALLEST}/{k}")
    return [row for row in made.curve.rows if row["name"].startswith(names[0]) or row["name"] == names[1]]


def _beside(made: Eigenshift) -> Table:
    rows = []
    known = {row["name"] for row in made.curve.rows}
    for family, (rate, perplexity, score) in PAPER.items():
        name = made.best.get(family, family)
        if name not in known:  # no unit lies above 0.5
            continue
        own = made.curve[name]
        rows.append(
            {
                "what": own["name"], "paper": f"{rate:g} / {perplexity:,.4g} / {'-' if score is None else f'{score:g}'}",
                "ours": f"{100 * own['rate']:.1f} / {own['perplexity']:,.4g} / "
                + ("-" if own["tph"] is None else f"{100 * own['tph']:.1f}"),
            }
        )  # fmt: skip
    note = "Flagged % / perplexity / TPH. AurA, Damp and Det-0 on all units above 0.5; EigenShift at its best setting."
    return Table(
        "Beside the paper (Llama-2-7B, toxicity)", rows, {"what": "", "paper": "paper", "ours": "ours"}, note=note
    )


def _differs(made: Eigenshift) -> list[str]:
    data = "rude and polite replies that the demo model was taught" if made.taught else "the given prompts"
    return [
        f"model: {made.model['name']}; the paper's are Llama-2, Mistral, GPT-2-XL, MPT and Falcon",
        f"concept: {data}, judged by words; the paper's is toxicity of RealToxicityPrompts, judged by a classifier. Prompts "
        "that announce rudeness call for it nearly always, toxic prompts in one case of ten",
        "directions by |delta|, for the sign of a singular vector is arbitrary; the authors' code multiplies by V where V^T is "
        "meant",
        "states of the concept and other states are taken at the same steps of continuations; in the paper the others come from "
        "the end of the prompt",
        "controls: as many random directions and those of least |delta|; Damp and Det-0 also with fewer units (the paper hits "
        "all above 0.5); layers as interventions are ours",
        "fluency: mean over documents of the given text of exp(mean loss), cut at 128 tokens, as in the paper (there Wikipedia)",
    ]


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


def _of(row: dict[str, Any]) -> str:
    if row["tph_low"] is None:
        return f"{100 * row['tph']:.1f}"
    return f"{100 * row['tph']:.1f} [{100 * row['tph_low']:.1f}, {100 * row['tph_high']:.1f}]"
