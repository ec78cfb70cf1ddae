"""How the language-neuron study looks: the terminal's tables and bars, and the HTML page with its charts."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from patchclamp.core.page import Page, Section, Table

if TYPE_CHECKING:
    from patchclamp.atlas.page import UnitPage
    from patchclamp.find import Finding
    from patchclamp.measure import Effects
    from patchclamp.models import LanguageModel
    from patchclamp.record import Recording

BARS = " ▁▂▃▄▅▆▇█"
COLOURS = ("#0f766e", "#c2410c", "#1d4ed8", "#a21caf", "#4d7c0f", "#b91c1c", "#0369a1", "#7c3aed", "#a16207", "#57534e")


class Study(Protocol):
    """What the study made, as far as it is shown: `LanguageNeurons`."""

    @property
    def recording(self) -> Recording: ...
    @property
    def finding(self) -> Finding: ...
    @property
    def effects(self) -> Effects: ...
    @property
    def files(self) -> dict[str, Path]: ...
    @property
    def seconds(self) -> float: ...


def terminal(study: Study) -> Iterator[Any]:
    """Tables and bars for a terminal: the sets, where they sit, what clamping does, what to try next."""
    from rich.table import Table as RichTable
    from rich.text import Text

    sets = RichTable(title="Which neurons carry which label", title_justify="left", title_style="bold")
    for heading in ("label", "neurons", "specific", "related", "by chance", "per layer"):
        sets.add_column(heading, justify="left" if heading in ("label", "per layer") else "right")
    for row in set_rows(study):
        numbers = [f"{row[key]:,}" for key in ("units", "specific", "related")]
        sets.add_row(row["label"], *numbers, f"{row['by_chance']:.1f}", Text(row["layers"], style="cyan"))
    yield sets
    yield Text(null_sentence(study) + "\n")

    matrix = RichTable(
        title="Perplexity with a label's neurons clamped to 0, as a multiple of the plain one",
        title_justify="left",
        title_style="bold",
        caption="(plain): perplexity. Bold: the label's own text. In brackets: the mean of the matched-random sets.",
        caption_justify="left",
    )
    matrix.add_column("clamped")
    for text in study.effects.texts:
        matrix.add_column(text, justify="right")
    plain = [f"{study.effects.row(study.effects.sets[0], text)['plain']:.1f}" for text in study.effects.texts]
    matrix.add_row("(plain)", *plain, style="dim")
    for name in study.effects.sets:
        cells = []
        for text in study.effects.texts:
            row = study.effects.row(name, text)
            shown = f"x{row['clamped'] / row['plain']:.2f}"
            if row["control_mean"] is not None:
                shown += f" ({1 + row['control_mean'] / row['plain']:.2f})"
            cells.append(Text(shown, style="bold" if name == text else ""))
        matrix.add_row(name, *cells)
    yield matrix

    own = RichTable(title="Each label's neurons on its own text", title_justify="left", title_style="bold")
    for heading in ("label", "plain", "clamped", "effect [95% interval]", "random sets", "p (Holm)"):
        own.add_column(heading, justify="left" if heading == "label" else "right", no_wrap=True)
    for row in own_rows(study):
        effect = f"{short(row['effect'])} {row['interval']}"
        own.add_row(
            row["set"], f"{row['plain']:.1f}", f"{row['clamped']:.1f}", effect, row["random"], p_text(row["p_holm"])
        )
    yield own
    yield Text(
        f"\nDone in {study.seconds:.0f} s. Look at {study.files['page']}; then try:\n" + "\n".join(next_commands(study))
    )


def page(study: Study, model: LanguageModel) -> Page:
    """The HTML page: sets, places, effects, examples, how it was done."""
    finding, effects = study.finding, study.effects
    labels = ", ".join(finding.labels)
    lead = (
        f"{finding.layout.total:,} MLP neurons of {model.name} were recorded over text in {len(finding.labels)} languages "
        f"({labels}); some fire for one language or a few, and clamping those to zero hurts these languages."
    )
    matrix = Table(
        [
            {"set": name, **{text: _multiple(effects.row(name, text)) for text in effects.texts}}
            for name in effects.sets
        ],
        {"set": "clamped", **{text: text for text in effects.texts}},
        note="Perplexity as a multiple of the plain one. In brackets: the mean of the matched-random sets.",
    )
    own = Table(
        own_rows(study),
        {
            "set": "label",
            "n_units": "neurons",
            "plain": "plain",
            "clamped": "clamped",
            "effect": "effect",
            "interval": "95% interval",
            "random": "random sets (mean ± sd)",
            "p": "p",
            "p_holm": "p (Holm)",
            "p_controls": "rank p among random sets",
        },
        note=(
            "Effect: clamped minus plain perplexity, on documents that the finder did not see. p: sign-flip permutation over "
            "documents against the mean of the random sets; Holm-corrected over the whole table of sets and texts."
        ),
    )
    sets = Table(
        set_rows(study),
        {"label": "label", "units": "neurons", "specific": "specific", "related": "related", "by_chance": "by chance"},
        note="By chance: how many would be named, on average, if the documents' labels were shuffled.",
    )
    return Page(
        title=f"Language neurons of {model.name}",
        lead=lead,
        sections=[
            Section("Which neurons carry which language", [null_sentence(study)], tables=[sets]),
            Section("Where they sit", stage_sentences(study), charts=[layer_chart(study), finding.plot()]),
            Section("What clamping them does", charts=[matrix_chart(study)], tables=[matrix, own]),
            Section("Neurons to look at", EXAMPLES_TEXT, tables=example_tables(study)),
            Section("Next", commands=next_commands(study)),
            Section("Every effect", tables=[Table(effects.rows, {key: key for key in ALL_COLUMNS})], folded=True),
        ],
        facts=facts(study, model),
    )


EXAMPLES_TEXT = (
    "The highest-scoring neurons of each label, with the text where each fired most. ⟦ ⟧ marks the token that fired.",
)
ALL_COLUMNS = ("set", "text", "plain", "clamped", "effect", "low", "high", "control_mean", "control_sd", "p", "p_holm")


def set_rows(study: Study) -> list[dict[str, Any]]:
    """The finding's row of every label, with its units per layer as a string of bars."""
    rows = []
    for row in study.finding.summary()["sets"]:
        counts = study.finding.sets[row["label"]].per_layer(study.finding.site)
        rows.append({"specific": 0, "related": 0, **row, "by_chance": row["by_chance"] or 0.0, "layers": bars(counts)})
    return rows


def bars(counts: Any) -> str:
    """One block character per layer, as high as its share of the fullest layer; a space for none."""
    highest = max(int(np.max(counts, initial=0)), 1)
    return "".join(BARS[-(-int(count) * (len(BARS) - 1) // highest)] for count in counts)


def own_rows(study: Study) -> list[dict[str, Any]]:
    """The effects of every set on the text of its own label, intervals and controls as text."""
    return effect_rows(study.effects)


def effect_rows(effects: Effects) -> list[dict[str, Any]]:
    """The effect of every set on the text of the same name, where there is one."""
    rows = []
    for name in (name for name in effects.sets if name in effects.texts):
        row = dict(effects.row(name, name))
        row["interval"] = "–" if row["low"] is None else f"[{short(row['low'])}, {short(row['high'])}]"
        row["random"] = "–"
        if row["control_mean"] is not None:
            row["random"] = short(row["control_mean"])
            row["random"] += "" if row["control_sd"] is None else f" ± {short(row['control_sd']).lstrip('+')}"
        rows.append(row)
    return rows


def short(value: float) -> str:
    """A signed difference of perplexities with about three digits."""
    return f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.1f}"


def p_text(p: float | None) -> str:
    """A p-value as people write it."""
    return "–" if p is None else f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def null_sentence(study: Study) -> str:
    """What the shuffled labels named, in a sentence."""
    classes, null = study.finding.class_counts(), study.finding.null.get("classes", {})
    parts = []
    for name in ("specific", "related"):
        chance = null.get(name, {}).get("mean")
        parts.append(f"{classes.get(name, 0):,} {name}" + ("" if chance is None else f" (by chance {chance:.1f})"))
    return (
        f"Of {study.finding.layout.total:,} neurons: " + ", ".join(parts) + f", {classes.get('general', 0):,} general."
    )


def stage_sentences(study: Study) -> list[str]:
    """The layers of each stage that the finder saw."""
    stages = study.finding.details.get("stages") or {}
    named = [f"{name}: {_span(span)}" for name, span in stages.get("layers", {}).items()]
    lead = "Units per layer, and the four stages of Zhang et al. 2025 as our rule draws them"
    return [f"{lead}: {'; '.join(named)}." if named else f"{lead} (not drawn: some layers were not recorded)."]


def _span(span: Any) -> str:
    if span is None:
        return "none here"
    first, last = span
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def next_commands(study: Study) -> list[str]:
    """Commands that go on from here, with this run's own files."""
    atlas, sets = study.files["atlas"], study.files["sets"]
    top = next((units.top(1).names()[0] for units in study.finding.sets.values() if len(units)), "mlp.0.0")
    label = next((name for name, units in reversed(study.finding.sets.items()) if len(units)), study.finding.labels[-1])
    model = study.recording.model["source"] or "MODEL"
    commands = [
        ["atlas", "query", atlas, "--unit", top],
        ["atlas", "query", atlas, "SELECT * FROM labels"],
        ["edit", model, sets, "--set", label, "--mode", "ablate", "--out", f"without-{label}"],
        ["replay", study.files["effects"]],
    ]
    return ["  patchclamp " + shlex.join(map(str, command)) for command in commands]


def _multiple(row: dict[str, Any]) -> str:
    shown = f"{row['clamped'] / row['plain']:.2f}"
    return shown if row["control_mean"] is None else f"{shown} ({1 + row['control_mean'] / row['plain']:.2f})"


def layer_chart(study: Study) -> Any:
    """Altair: units of each label's set per layer."""
    import altair as alt

    values = [
        {"label": label, "layer": layer, "neurons": int(count)}
        for label, units in study.finding.sets.items()
        for layer, count in enumerate(units.per_layer(study.finding.site))
    ]
    colours = alt.Scale(domain=list(study.finding.labels), range=list(COLOURS[: len(study.finding.labels)]))
    return (
        alt.Chart(alt.Data(values=values), title="Neurons of each language, per layer", width=620, height=220)
        .mark_bar()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("label:N", sort=list(study.finding.labels)),
            y=alt.Y("neurons:Q", title="neurons"),
            color=alt.Color("label:N", title="language", scale=colours, sort=list(study.finding.labels)),
        )
    )


def matrix_chart(study: Study) -> Any:
    """Altair: change of log-loss per token for every clamped set and text, nats."""
    return effects_chart(study.effects, "Change of log-loss when a language's neurons are clamped to 0")


def effects_chart(effects: Effects, title: str) -> Any:
    """Altair: sets by texts, coloured by the change of log-loss per token."""
    import altair as alt

    matrix = effects.matrix("log_ratio")
    values = [
        {"set": name, "text": text, "change": float(matrix[i, j]), "shown": f"{matrix[i, j]:+.2f}"}
        for i, name in enumerate(effects.sets)
        for j, text in enumerate(effects.texts)
    ]
    limit = max(float(np.nanmax(np.abs(matrix), initial=0.0)), 1e-6)
    base = alt.Chart(alt.Data(values=values), width=62 * len(effects.texts), height=44 * len(effects.sets)).encode(
        x=alt.X("text:N", sort=list(effects.texts), title="text", axis=alt.Axis(labelAngle=0, orient="top")),
        y=alt.Y("set:N", sort=list(effects.sets), title="clamped to 0"),
    )
    colour = alt.Color(
        "change:Q", title="nats per token", scale=alt.Scale(scheme="redblue", domain=[-limit, limit], reverse=True)
    )
    dark = alt.expr.abs(alt.datum.change) > 0.6 * limit
    words = base.mark_text(fontSize=13).encode(
        text="shown:N", color=alt.condition(dark, alt.value("white"), alt.value("#1c2733"))
    )
    return (base.mark_rect(stroke="white").encode(color=colour) + words).properties(title=title)


def example_tables(study: Study, per_label: int = 3) -> list[Table]:
    """The best units of each label with the passage where each fired most, from the atlas."""
    from patchclamp.atlas import Atlas

    rows = []
    with Atlas.open(study.files["atlas"]) as atlas:
        for label, units in study.finding.sets.items():
            for unit in units.top(per_label):
                row = {"label": label, "unit": str(unit), "class": study.finding.class_of(unit)}
                rows.append({**row, "text": _passage(atlas.unit(unit), label)})
    return [Table(rows, {"label": "label", "unit": "unit", "class": "class", "text": "fired most at"})]


def _passage(unit: UnitPage, label: str) -> str:
    """Where a unit fired most in a label's text, the token in brackets."""
    for exemplar in unit["exemplars"]:
        cut = unit.token(exemplar) if exemplar["label"] == label else None
        if cut is not None:
            return f"{cut[0]}⟦{cut[1]}⟧{cut[2]}"
    return ""


def facts(study: Study, model: LanguageModel) -> dict[str, str]:
    """What identifies this run."""
    source = study.effects.provenance
    shown = {key: value for key, value in study.finding.parameters.items() if not isinstance(value, dict | list)}
    return {
        "model": f"{model.name}, {model.identity['type']}, fingerprint {model.fingerprint[:16]}",
        "text to find": f"{sum(study.recording.documents(label) for label in study.recording.labels):,} documents, "
        f"{sum(study.recording.tokens(label) for label in study.recording.labels):,} tokens",
        "text to measure": ", ".join(
            f"{text} {study.effects.row(study.effects.sets[0], text)['n_tokens']:,} tokens"
            for text in study.effects.texts
        ),
        "method": f"{study.finding.method}: " + ", ".join(f"{key} {value}" for key, value in shown.items()),
        "seed": str(source.get("seed")),
        "versions": ", ".join(f"{name} {version}" for name, version in source.get("versions", {}).items()),
        "made": str(source.get("created")),
    }
