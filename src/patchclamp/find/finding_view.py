"""How a finding looks: one line, plain data, a rich table, a chart per layer, and HTML that needs no network."""

from __future__ import annotations

import html as markup
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from patchclamp.models.units import describe

if TYPE_CHECKING:
    from patchclamp.find.finding_fields import FindingFields

DRAWN = ("specific", "related", "general")
COLOURS = {"specific": "#c2410c", "related": "#f59e0b", "general": "#1d4ed8"}
STAGE_COLOURS = ("#fef3c7", "#e0f2fe", "#fce7f3", "#e7e5e4")


def line(finding: FindingFields) -> str:
    """One line: method, how many units of what, how many for each label."""
    sizes = ", ".join(f"{label} {count}" for label, count in _sizes(finding).items())
    return (
        f"Finding({finding.method}: {finding.chosen.any(axis=0).sum()} of {finding.total} {finding.site} units "
        f"of {describe(finding.model)}; {sizes})"
    )


def summary(finding: FindingFields) -> dict[str, Any]:
    """The result in plain data, without the units."""
    return {
        "method": finding.method,
        "model": {key: finding.model.get(key) for key in ("name", "fingerprint")},
        "site": finding.site,
        "sites": list(finding.sites),
        "units": finding.total,
        "parameters": dict(finding.parameters),
        "classes": finding.class_counts(),
        "sets": rows(finding),
        "per_layer": _plain(finding.per_layer()),
        "per_site": {site: _plain(counts) for site, counts in finding.per_site().items()},
        "null": dict(finding.null),
        "details": dict(finding.details),
        "notes": list(finding.notes),
    }


def rows(finding: FindingFields) -> list[dict[str, Any]]:
    """One row per label: units in its set, of which class, and how many chance names."""
    listed = []
    for at, label in enumerate(finding.labels):
        row: dict[str, Any] = {"label": label, "units": int(finding.chosen[at].sum())}
        if finding.classes is not None:
            mine = finding.classes[finding.chosen[at]]
            row |= {name: int((mine == finding.class_names.index(name)).sum()) for name in finding.set_classes}
        chance = finding.null.get("labels", {}).get(label)
        row["by_chance"] = None if chance is None else chance["mean"]
        listed.append(row)
    return listed


def table(finding: FindingFields) -> Any:
    """A rich table of `rows`, the class counts and the notes below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = line(finding).partition(";")[0].removeprefix("Finding(")
    drawn = Table(header_style="bold")
    body = rows(finding)
    for key in body[0]:
        drawn.add_column(key.replace("_", " "), justify="left" if key == "label" else "right")
    for row in body:
        drawn.add_row(*[Text(_cell(value)) for value in row.values()])
    return Group(Text(title, style="bold"), drawn, *[Text(text) for text in _remarks(finding)])


def chart(finding: FindingFields) -> Any:
    """Altair chart, layers across: one panel of specific and related units, one of general ones; stages behind."""
    import altair as alt

    per_layer = finding.per_layer()
    names = [name for name in DRAWN if name in per_layer] or list(per_layer)
    panels = [[name for name in names if name != "general"], [name for name in names if name == "general"]]
    drawn = [_panel(finding, per_layer, names, panel) for panel in panels if panel]
    return alt.vconcat(*drawn).properties(title=f"{finding.site} units per layer ({finding.method})")


def html(finding: FindingFields) -> str:
    """Table and chart as HTML with inline SVG; labels and names are escaped, nothing is fetched."""
    import vl_convert

    body = rows(finding)
    head = "".join(f"<th>{markup.escape(key.replace('_', ' '))}</th>" for key in body[0])
    lines = "".join(
        "<tr>" + "".join(f"<td>{markup.escape(_cell(v))}</td>" for v in row.values()) + "</tr>" for row in body
    )
    remarks = "".join(f"<p>{markup.escape(text)}</p>" for text in _remarks(finding))
    svg = vl_convert.vegalite_to_svg(chart(finding).to_dict())
    return (
        f'<div class="patchclamp-finding"><p>{markup.escape(line(finding))}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>{svg}{remarks}</div>"
    )


def _panel(finding: FindingFields, per_layer: Mapping[str, NDArray[Any]], names: list[str], panel: list[str]) -> Any:
    """Stacked bars of some of the `names` per layer; the first panel carries the legend of all."""
    import altair as alt

    first, n_layers = panel[0] == names[0], len(per_layer[panel[0]])
    values = [
        {"layer": layer, "units": int(per_layer[name][layer]), "kind": name, "order": names.index(name)}
        for name in panel
        for layer in range(n_layers)
    ]
    known = all(name in COLOURS for name in names)
    scale = alt.Scale(domain=names, range=[COLOURS[name] for name in names]) if known else alt.Scale(domain=names)
    bars = (
        alt.Chart(alt.Data(values=values))
        .mark_bar(width={"band": 0.8})
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("units:Q", title=" + ".join(panel) if len(panel) < 4 else "units"),
            color=alt.Color("kind:N", scale=scale, title=None, legend=alt.Legend() if first else None),
            order=alt.Order("order:Q"),
            tooltip=["layer:O", "kind:N", "units:Q"],
        )
    )
    width = max(240, 16 * n_layers)
    layered = alt.layer(*_stage_bands(finding, legend=first), bars).properties(width=width, height=120)
    return layered.resolve_scale(color="independent")


def _stage_bands(finding: FindingFields, *, legend: bool) -> list[Any]:
    """One coloured band behind the layers of each stage, named in its tooltip; none where layers were not divided."""
    import altair as alt

    spans = (finding.details.get("stages") or {}).get("layers", {})
    colours = {stage: colour for (stage, span), colour in zip(spans.items(), STAGE_COLOURS, strict=False) if span}
    if not colours:
        return []
    values = [
        {"layer": layer, "stage": stage} for stage in colours for layer in range(spans[stage][0], spans[stage][1] + 1)
    ]
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    shown = alt.Color("stage:N", scale=scale, title="stage", legend=alt.Legend() if legend else None)
    bands = alt.Chart(alt.Data(values=values)).mark_rect()
    return [bands.encode(x="layer:O", color=shown, tooltip=["layer:O", "stage:N"])]


def _remarks(finding: FindingFields) -> list[str]:
    remarks = []
    counts = finding.class_counts()
    if counts:
        remarks.append(f"all {finding.total} units: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
    chance = finding.null.get("named")
    if chance is not None:
        remarks.append(
            f"{chance['observed']} units named; on shuffled labels {chance['mean']:.1f} on average, "
            f"{chance['max']} at most ({finding.null['shuffles']} shuffles, p = {chance['p']:.3g})"
        )
    elif "said" in finding.null:
        remarks.append(str(finding.null["said"]))
    elif "why" in finding.null:
        remarks.append(f"no null: {finding.null['why']}")
    return remarks + [f"note: {text}" for text in finding.notes]


def _plain(counts: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
    return {name: values.tolist() for name, values in counts.items()}


def _sizes(finding: FindingFields) -> dict[str, int]:
    return dict(zip(finding.labels, finding.chosen.sum(axis=1).tolist(), strict=True))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
