"""Tables and charts of the frequency-tagging study, from its finding, effects and stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchclamp.find import Finding
from patchclamp.find.syntax_select import KINDS
from patchclamp.measure import Effects
from patchclamp.studies.study import Table

COLOURS = {"sentence": "#1d4ed8", "phrase": "#c2410c", "shared": "#7c3aed"}
WORDS, ORDERS = "fdr over words", "fdr over groups"
PAPER = (
    ("sentence and phrase neurons lie in similar layers in six models", "yes", "one model: can't be told"),
    ("similarity with the left hemisphere exceeds that with the right", "yes", "no recordings come with the package"),
    ("Gemma 2 is more brain-like than Gemma", "yes", "no recordings come with the package"),
    ("Llama 3.1 is less brain-like than Llama 2", "yes", "no recordings come with the package"),
)


def count_rows(finding: Finding, fresh: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per label: units named by the paper's rule and by the absolute tests; untrained; in a second control."""
    floors = finding.null.get("named_by", {})
    rows = []
    for name, entry in finding.details.items():
        named, floor, other = entry["named_by"], floors.get(name, {}), fresh[name]
        rows.append(
            {
                "label": name,
                **named["reference"],
                "reference": sum(named["reference"].values()),
                "reference_floor": sum(floor.get("reference", {}).values()),
                "absolute": sum(named[WORDS].values()),
                "absolute_floor": sum(floor.get(WORDS, {}).values()),
                "untrained": sum(other[WORDS].values()),
                "by_orders": sum(named[ORDERS].values()),
                "untrained_by_orders": sum(other[ORDERS].values()),
            }
        )
    return rows


def paper_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = {"label": "language", **{kind: kind for kind in KINDS}, "reference_floor": "all three, second control"}
    note = (
        "z > 2 after a permutation test over time, as in the paper; z is relative, so some units pass whatever is read. "
        "Second control: read as if it were the experiment."
    )
    return Table("Units that follow sentences and phrases, by the paper's rule", rows, columns, note)


def absolute_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = {
        "label": "language", "absolute": "over words", "absolute_floor": "second control", "untrained": "untrained",
        "by_orders": "over orders", "untrained_by_orders": "untrained ",
    }  # fmt: skip
    note = (
        "False-discovery rate 0.05. Over orders: amplitudes above the control's in a paired test over orders of the same "
        "sentences. Over words: also above what shuffling the word forms over the places gives. Untrained: the same "
        "architecture with fresh weights."
    )
    return Table("The same by absolute tests", rows, columns, note)


def rate_table(finding: Finding) -> Table:
    """How many units beat shuffled time, and what the shared ones look like."""
    rows = []
    for name, entry in finding.details.items():
        rows.append(
            {
                "label": name,
                "sentences": entry["sentences"],
                "words": entry["word_forms"],
                "time_sentence": entry["passed_over_time"]["sentence"],
                "time_phrase": entry["passed_over_time"]["phrase"],
                "two_periodic": entry["sets"]["shared"]["two_periodic"],
                "split_tokens": entry["tokens_in_several_units"],
            }
        )
    columns = {
        "label": "language", "sentences": "sentences", "words": "word forms", "time_sentence": "sentence",
        "time_phrase": "phrase", "two_periodic": "2-periodic", "split_tokens": "split tokens",
    }  # fmt: skip
    note = (
        "sentence, phrase: share of all units whose amplitude beats shuffled time. 2-periodic: share of the shared units' "
        "profile that repeats every two units (1/3 for a burst per sentence, 1 for a unit that follows phrases). split tokens: "
        "share of tokens that lie in two units."
    )
    return Table("What was read, and what shared units look like", rows, columns, note)


def effect_table(effects: Effects) -> Table:
    rows = [
        {
            **effects.row(name, name),
            "others": _others(effects, name),
        }
        for name in effects.sets
    ]
    columns = {
        "set": "language", "n_units": "units", "plain": "plain", "clamped": "clamped", "effect": "effect",
        "control_mean": "random", "p_holm": "p (Holm)", "others": "others",
    }  # fmt: skip
    note = (
        "Pair accuracy: held-out sentences against the same units in broken order. Effect: clamped to 0 minus plain; random: the "
        "same of matched-random sets; others: the same on the other languages. Intervals are in the last table."
    )
    return Table("Word order with a language's tagged units clamped to 0", rows, columns, note)


def loss_table(losses: Effects) -> Table:
    """The same in nats, which also moves where all pairs are ordered rightly."""
    rows = [{**losses.row(name, name), "others": _others(losses, name)} for name in losses.sets]
    columns = {
        "set": "language", "plain": "plain", "clamped": "clamped", "effect": "effect", "control_mean": "random",
        "p_holm": "p (Holm)", "others": "others",
    }  # fmt: skip
    note = "Log-loss of the held-out sentences as written, in nats, with the same units clamped to 0."
    return Table("Held-out sentences with the same units clamped to 0", rows, columns, note)


def overlap_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = {
        "languages": "languages",
        "dice": "Dice, mean over layers",
        "by_chance": "random sets",
        "layers": "per layer",
    }
    shown = [{**row, "layers": " ".join(f"{value:.2f}" for value in row["layers"])} for row in rows]
    return Table("Overlap of tagged units between languages", shown, columns)


def every_effect(effects: Effects) -> Table:
    columns = (
        "set",
        "text",
        "plain",
        "clamped",
        "effect",
        "low",
        "high",
        "control_mean",
        "control_sd",
        "p",
        "p_holm",
        "p_controls",
    )
    return Table("Every effect", effects.rows, columns)


def beside() -> Table:
    rows = [{"claim": claim, "paper": paper, "here": here} for claim, paper, here in PAPER]
    note = "Only the claims of the paper's abstract could be read; it prints no number that could stand here."
    return Table("Beside the paper", rows, ("claim", "paper", "here"), note)


def differs(finding: Finding, model: str, *, generated: bool) -> list[str]:
    """What is not as in the paper."""
    chosen = finding.parameters
    few = {name: entry["word_forms"] for name, entry in finding.details.items()}
    lines = [
        f"model: {model}; the paper's are GPT-2, Gemma, Gemma 2, Llama 2, Llama 3.1 and GLM-4",
        f"{chosen['n_streams']} streams per condition in {chosen['groups']} groups, the paper has 100 in 10",
        "the first sentence of a stream doesn't count, and the control takes the experiment's orders of sentences",
    ]
    if generated:
        words = ", ".join(f"{name} {n}" for name, n in few.items())
        lines.append(f"sentences: generated from few word forms ({words}); the paper's 50 have a word form each place")
    return [*lines, "clamping, the untrained model and the tests over words are ours"]


def layer_chart(finding: Finding) -> Any:
    """Altair: share of each layer's units in each set, stacked, one panel per language."""
    import altair as alt

    values = [
        {"language": name, "layer": layer, "kind": kind, "share": share, "order": order}
        for name, entry in finding.details.items()
        for order, kind in enumerate(KINDS)
        for layer, share in enumerate(entry["sets"][kind]["share_of_layer"])
    ]
    colour = alt.Scale(domain=list(KINDS), range=[COLOURS[kind] for kind in KINDS])
    return (
        alt.Chart(alt.Data(values=values), title="Share of each layer's units", width=150, height=120)
        .mark_bar()
        .encode(
            x=alt.X("layer:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("share:Q", title=None, axis=alt.Axis(format="%")),
            color=alt.Color("kind:N", scale=colour, title=None),
            order="order:Q",
            facet=alt.Facet("language:N", columns=3, title=None, sort=list(finding.details)),
        )
    )


def spectrum_chart(finding: Finding) -> Any:
    """Altair: mean spectrum of the shared (else largest) set's units in both conditions; 1 is white noise."""
    import altair as alt

    values = []
    for name, entry in finding.details.items():
        kind = max(KINDS, key=lambda one: (entry["sets"][one]["units"] > 0, one == "shared"))
        spectrum = entry["sets"][kind]["spectrum"]
        if spectrum is not None:
            for condition in ("experiment", "control"):
                values += [
                    {"language": name, "condition": condition, "hz": hz, "amplitude": amplitude}
                    for hz, amplitude in zip(spectrum["hz"], spectrum[condition], strict=True)
                ]
    return (
        alt.Chart(
            alt.Data(values=values), title="Mean spectrum of tagged units (1: white noise)", width=150, height=100
        )
        .mark_line(strokeWidth=1)
        .encode(
            x=alt.X("hz:Q", title="Hz (nominal, 4 units a second)"),
            y=alt.Y("amplitude:Q", title=None),
            color=alt.Color("condition:N", sort=["experiment", "control"], title=None),
            facet=alt.Facet("language:N", columns=3, title=None, sort=list(finding.details)),
        )
    )


def effect_chart(effects: Effects) -> Any:
    """Altair: change of pair accuracy for every clamped set and every language."""
    import altair as alt

    values = [
        {"set": row["set"], "language": row["text"], "effect": row["effect"], "shown": f"{row['effect']:+.2f}"}
        for row in effects.rows
    ]
    limit = max(0.01, *(abs(value["effect"]) for value in values)) if values else 0.01
    base = alt.Chart(alt.Data(values=values), width=44 * len(effects.texts), height=34 * len(effects.sets)).encode(
        x=alt.X("language:N", sort=list(effects.texts), title="pairs", axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("set:N", sort=list(effects.sets), title="clamped to 0"),
    )
    scale = alt.Scale(scheme="redblue", domain=[-limit, limit])
    return (
        base.mark_rect().encode(color=alt.Color("effect:Q", scale=scale)) + base.mark_text().encode(text="shown:N")
    ).properties(title="Change of pair accuracy")


def _others(effects: Effects, name: str) -> float | None:
    found = [effects.row(name, text)["effect"] for text in effects.texts if text != name]
    return float(np.mean(found)) if found else None
