"""The page of a side-effect report: the verdict, harm with its interval beside random changes, samples, what changed most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from patchclamp.core.page import Page, Section, Table
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.harm import harm, harm_unit
from patchclamp.measure.side_effect_verdict import SAME

NO_BREAK = "\N{NO-BREAK SPACE}"
TARGET, BESIDE, RANDOM = "#c2410c", "#0f766e", "#94a3b8"
COLUMNS = {
    "text": "measure", "plain": "plain", "changed": "changed", "change": "change", "interval": "95% interval",
    "random": "random", "p_change": "p", "p": "p random", "said": "verdict",
}  # fmt: skip
ALONE = {key: heading for key, heading in COLUMNS.items() if key not in ("random", "p")}  # without controls
NOTE = (
    "Change: changed minus plain value, with a 95% bootstrap interval over items. Random: mean change under the random "
    "changes. p: sign flips of the items' changes; p random: of their changes minus the mean under the random changes; both "
    "corrected over all measures of this page (Holm). In brackets: items. Bold: the target."
)


class Report(Protocol):
    """What the page is made of: a `SideEffects`."""

    @property
    def what(self) -> str: ...
    @property
    def verdict(self) -> list[str]: ...
    @property
    def rows(self) -> list[dict[str, Any]]: ...
    @property
    def samples(self) -> list[dict[str, Any]]: ...
    @property
    def affected(self) -> list[dict[str, Any]]: ...
    @property
    def effects(self) -> Effects: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def provenance(self) -> dict[str, Any]: ...


def page(report: Report) -> Page:
    """The whole page."""
    first, *others = report.verdict
    sections = [Section("What the numbers say", [f"Change: {report.what}.", *others])]
    units = list(dict.fromkeys(harm_unit(row["metric"]) for row in report.rows))
    sections += [_measured(report, unit, NOTE if unit == units[-1] else "") for unit in units]
    if report.samples:
        sections.append(_samples(report.samples))
    if report.affected:
        sections.append(_affected(report))
    if report.warnings:
        sections.append(Section("Warnings", list(report.warnings)))
    name = report.provenance.get("inputs", {}).get("model", {}).get("name", "a model")
    return Page(f"Side effects of a change to {name}", first, sections, _facts(report.provenance))


def _measured(report: Report, unit: str, note: str) -> Section:
    """What is counted in one unit: chart and table."""
    rows = [row for row in report.rows if harm_unit(row["metric"]) == unit]
    controlled = any(row["control_mean"] is not None for row in rows)
    ticks = (
        "; ticks: the random changes, one by one" if controlled else "; there were no random changes to compare with"
    )
    text = [f"Right of the line is worse. Dots: the change with its 95% interval{ticks}."]
    table = Table([_row(row) for row in rows], COLUMNS if controlled else ALONE, note, strong="target")
    heading = ", ".join(dict.fromkeys(row["metric"] for row in rows))
    return Section(heading[:1].upper() + heading[1:], text, [chart(report, unit)], [table])


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {"plain": row["plain"], "changed": row["clamped"], "random": row["control_mean"]}
    return {
        "text": f"{row['text']} ({row['n_documents']})",
        **numbers,
        "change": _change(row["effect"]),
        "interval": "–"
        if row["low"] is None
        else f"{_change(row['low'])} to {_change(row['high'])}".replace(" ", NO_BREAK),
        "p_change": row["p_change_holm"],
        "p": None if row["control_mean"] is None else row["p_holm"],
        "said": row["said"].replace(" ", NO_BREAK) if row["said"] == SAME else row["said"],
        "target": row["role"] == "target",
    }


def _change(value: float) -> str:
    return f"{value:+.3g}" if value else "0"


def chart(report: Report, unit: str) -> Any:
    """Harm of every row counted in one unit: dot and interval of the change, a tick for every control."""
    import altair as alt

    rows = [row for row in report.rows if harm_unit(row["metric"]) == unit]
    order = [row["text"] for row in rows]
    dots = [
        {
            "measure": row["text"],
            "harm": row["harm"],
            "low": row["harm_low"],
            "high": row["harm_high"],
            "role": row["role"],
        }
        for row in rows
    ]
    ticks = [
        {
            "measure": row["text"],
            "harm": harm(row["metric"], row["plain"], row["plain"] + change),
            "role": "random change",
        }
        for row in rows
        for change in _control_changes(report.effects, row["text"])
    ]
    scale = alt.Scale(domain=["target", "beside", "random change"], range=[TARGET, BESIDE, RANDOM])
    colour = alt.Color("role:N", title=None, scale=scale)
    y = alt.Y("measure:N", sort=order, title=None)
    x = alt.X("harm:Q", title=f"{unit} (above 0: worse)")
    layers = [alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color="#475569").encode(x="zero:Q")]
    if ticks:
        layers.append(
            alt.Chart(alt.Data(values=ticks)).mark_tick(thickness=1.5, height=12).encode(x=x, y=y, color=colour)
        )
    base = alt.Chart(alt.Data(values=dots))
    layers.append(base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour))
    layers.append(base.mark_point(filled=True, size=70, opacity=1).encode(x=x, y=y, color=colour))
    drawn = alt.layer(*layers).properties(width=600, height=max(60, 26 * len(rows)))
    return drawn.configure_axis(labelFontSize=12, titleFontSize=12).configure_legend(labelFontSize=12)


def _control_changes(effects: Effects, name: str) -> Sequence[float]:
    found: Sequence[float] = next(iter(effects.documents[name]["control_effects"].values()), ())
    return found


def _samples(samples: Sequence[Mapping[str, Any]]) -> Section:
    columns = {"differs": "", "prompt": "prompt", "plain": "plain", "changed": "changed"}
    if any(sample["control"] is not None for sample in samples):
        columns["control"] = "random change"
    rows = [
        {key: _text(sample[key]) for key in columns if key != "differs"}
        | {"differs": "≠" if sample["changed"] != sample["plain"] else ""}
        for sample in samples
    ]
    note = "The likeliest token is written each time. ≠: the change makes the model write something else."
    return Section("Samples", tables=[Table(rows, columns, note)])


def _text(written: str | None) -> str:
    """A sample without the space or line break that it may begin with; what begins on a line of its own keeps its place."""
    text = written or ""
    return text.strip("\n") if text.startswith("\n") else text.strip()


def _affected(report: Report) -> Section:
    metrics = {row["text"]: row["metric"] for row in report.rows}
    rows = [
        {
            "text": item["text"],
            "item": item["item"],
            "plain": item["plain"],
            "changed": item["changed"],
            "unit": "nats per token" if metrics[item["text"]] == "perplexity" else metrics[item["text"]],
        }
        for item in report.affected
    ]
    columns = {"text": "measure", "item": "item", "plain": "plain", "changed": "changed", "unit": "in"}
    return Section("What changed most", tables=[Table(rows, columns)], folded=len(rows) > 12)


def _facts(source: Mapping[str, Any]) -> dict[str, str]:
    """What identifies the run."""
    inputs, arguments = source.get("inputs", {}), source.get("arguments", {})
    model = inputs.get("model", {})
    named = {
        "model": f"{model.get('name')}, {model.get('type')}, fingerprint {str(model.get('fingerprint'))[:16]}",
        "random changes": arguments.get("controls"),
        "seed": source.get("seed"),
        "permutations": arguments.get("permutations"),
        "tasks": ", ".join(f"{name} ({one['items']} items)" for name, one in inputs.get("tasks", {}).items()),
        "text": ", ".join(
            f"{label} ({one['documents']} documents)"
            for key in ("target_text", "text")
            for label, one in inputs.get(key, {}).get("labels", {}).items()
        ),
        "versions": ", ".join(f"{name} {version}" for name, version in source.get("versions", {}).items()),
        "made": source.get("created"),
    }
    return {name: str(value) for name, value in named.items() if value not in (None, "")}
