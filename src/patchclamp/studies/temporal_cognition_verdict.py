"""What the temporal-cognition study concludes: the paper's claims, each tested on the numbers of the run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from patchclamp.find.distances import LAWS
from patchclamp.studies.study import judged

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class TemporalCognition:
    """Everything that was measured, as the report needs it. reference: the year used for fits, and where it comes from."""

    values: list[int]
    reference: float
    reference_from: str
    geometry: dict[str, Any]
    judgements: dict[str, Any]
    findings: dict[str, Finding]
    probes: list[dict[str, Any]]
    effects: Effects
    text: dict[str, Any] | None
    n_layers: int
    model: dict[str, Any]


def verdict(found: TemporalCognition) -> list[str]:
    """The paper's claims, tested on the numbers of this run."""
    return [*_scale_verdict(found), *_unit_verdict(found), *_causal_verdict(found)]


def _scale_verdict(found: TemporalCognition) -> list[str]:
    fits = [
        row
        for row in found.geometry["fits"]
        if row["condition"] == "year" and row["law"] in LAWS and row["r2"] is not None
    ]
    best = max(fits, key=lambda row: row["r2"], default=None)
    points = [point for point in found.geometry["points"] if point["condition"] == "year" and point["found"]]
    numbers = [point for point in found.geometry["points"] if point["condition"] == "number" and point["found"]]
    mass = found.judgements["year"]["rating_mass"]
    probes = [row for row in found.probes if row["split"] == "years" and row["r2"] is not None]
    top = {
        law: max((row for row in probes if row["target"] == law), key=lambda row: row["r2"], default=None)
        for law in LAWS
    }
    log, ref = top["log"], top["reference"]
    where = f"best: {best['law']} in layer {best['layer']}, R² {best['r2']:.2f}" if best else "no R² is defined"
    return [
        judged("the model answers the judgement prompt with a rating", mass > 0.5, f"probability {mass:.2g}"),
        judged(
            "distances of the hidden states follow one of the laws (Mantel p < 0.05)",
            None if best is None else best["p"] is not None and best["p"] < ALPHA, where,
        ),
        judged(
            "years have a subjective reference point that numbers lack",
            bool(points) and len(points) > len(numbers),
            f"found in {len(points)} of {found.n_layers} layers for years, in {len(numbers)} for numbers",
        ),
        judged(
            "the reference law can be read by a linear probe on years that it was not trained on, deeper than the log law",
            None if log is None or ref is None else ref["r2"] > 0 and ref["p"] <= ALPHA and ref["layer"] > log["layer"],
            "" if log is None or ref is None else
            f"reference R² {ref['r2']:.2f} in layer {ref['layer']}, log {log['r2']:.2f} in layer {log['layer']}",
        ),
    ]  # fmt: skip


def _unit_verdict(found: TemporalCognition) -> list[str]:
    finding = found.findings["mlp_out"]
    named, chance = finding.null["mirror"], finding.null.get("labels", {}).get("year", {})
    mine, mirror = named["observed"], named["mirrored"]
    tuning = finding.details["tuning"] or {}
    best = tuning.get("best", {})
    growing = {side: fit["best"] == "log" and fit["slope"] > 0 for side, fit in best.items()}
    trough = tuning.get("trough")
    said = ", ".join(f"{side}: {fit['best']}, slope {fit['slope']:.2g}" for side, fit in best.items())
    return [
        judged(
            "some units prefer years beyond chance", mine > chance.get("max", 0), f"{mine} against {chance.get('mean', 0):.1f}"
        ),
        judged("more units prefer years than prefer numbers", mine > mirror, f"{mine} and {mirror}"),
        judged(
            "their activation has its trough at the reference",
            None if trough is None else not trough["border"] and abs(trough["smoothed"] - found.reference) <= 25,
            "" if trough is None else f"least at {trough['smoothed']:.0f}, reference {found.reference:.0f}",
        ),
        judged(
            "they code the logarithm of the distance from the reference (best layers, both sides)",
            all(growing.values()) and len(growing) == 2 if growing else None, said,
        ),
    ]  # fmt: skip


def _causal_verdict(found: TemporalCognition) -> list[str]:
    """Of every clamped set: whether questions on years suffer more than under matched random units, and than other items."""
    lines = []
    for name in found.effects.sets:
        own, rest = found.effects.row(name, "years"), found.effects.row(name, "other")
        control = own["control_mean"] or 0.0
        hurts = own["effect"] > max(0.0, control) and own["p_holm"] < ALPHA
        numbers = f"{own['effect']:+.3f} nats, random {control:+.3f}, Holm-corrected p {own['p_holm']:.2g}"
        lines.append(
            judged(f"clamping the {name} units hurts questions on years more than random units", hurts, numbers)
        )
        if hurts:
            other = f"years {own['effect']:+.3f}, other {rest['effect']:+.3f}"
            lines.append(judged("  and more than other questions", own["effect"] > rest["effect"], other))
    return lines
