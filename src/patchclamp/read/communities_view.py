"""How communities look: one line, a table, charts (nodes and links, matrices), and HTML that needs no network."""

from __future__ import annotations

import html as markup
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.models.units import describe

if TYPE_CHECKING:
    from patchclamp.read.communities_fields import CommunitiesFields

CHARTS = ("network", "skills", "importance")
DRAWN = 4  # links drawn per node, strongest first: a projection is nearly complete
LAYOUT_SEED = 0


def line(found: CommunitiesFields) -> str:
    """One line: how many modules, datasets and skills, how many communities, how modular."""
    test = found.tests["modules"]
    return (
        f"Communities({found.partition.n_communities} of {len(found.modules)} modules of {describe(found.response.model)}, "
        f"{len(found.datasets)} datasets, {len(found.skills)} skills; modularity {found.partition.modularity:.3f}"
        f"{_against(test)})"
    )


def table(found: CommunitiesFields) -> Any:
    """A rich table of the communities, the tests and the notes below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    drawn = Table(header_style="bold")
    for heading in ("community", "modules", "layers", "skills", "best-matched datasets", "members"):
        drawn.add_column(heading, justify="right" if heading in ("community", "modules") else "left")
    for row, members in zip(found.community_rows(), found.members, strict=True):
        drawn.add_row(*[Text(text) for text in _cells(row, members)])
    remarks = [Text(text) for text in _remarks(found)]
    return Group(Text(line(found).removeprefix("Communities(").removesuffix(")"), style="bold"), drawn, *remarks)


def html(found: CommunitiesFields) -> str:
    """Table and charts as HTML with inline SVG; names are escaped, nothing is fetched."""
    import vl_convert

    heads = "".join(
        f"<th>{head}</th>" for head in ("community", "modules", "layers", "skills", "best-matched datasets", "members")
    )
    body = "".join(
        "<tr>" + "".join(f"<td>{markup.escape(text)}</td>" for text in _cells(row, members)) + "</tr>"
        for row, members in zip(found.community_rows(), found.members, strict=True)
    )
    svg = "".join(vl_convert.vegalite_to_svg(chart(found, kind).to_dict()) for kind in ("network", "skills"))
    remarks = "".join(f"<p>{markup.escape(text)}</p>" for text in _remarks(found))
    return (
        f'<div class="patchclamp-communities"><p>{markup.escape(line(found))}</p>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{svg}{remarks}</div>"
    )


def chart(found: CommunitiesFields, kind: str = "network") -> Any:
    """An altair chart of a kind; InputError for an unknown one."""
    if kind not in CHARTS:
        raise InputError(f"chart {kind!r} asked for; there are {', '.join(CHARTS)}")
    if kind == "network":
        return _network(found)
    if kind == "skills":
        order = np.argsort(found.skill_partition.labels, kind="stable")
        return matrix_chart(found.projections.skills_modules[order], [found.skills[at] for at in order], found, "skill")
    return matrix_chart(found.datasets_modules, found.datasets, found, "dataset")


def matrix_chart(matrix: Any, names: Sequence[str], found: CommunitiesFields, what: str) -> Any:
    """Cells of a matrix of names x modules, modules by community; a row's weights relative to its largest."""
    import altair as alt

    columns = np.argsort(found.partition.labels, kind="stable")
    modules = [found.modules[at] for at in columns]
    top = matrix.max(1, keepdims=True) if matrix.size else matrix
    shares = np.divide(matrix, top, out=np.zeros_like(matrix), where=top > 0)
    values = [
        {what: name, "module": found.modules[at], "weight": float(matrix[row, at]), "share": float(shares[row, at]),
         "community": str(int(found.partition.labels[at]))}
        for row, name in enumerate(names)
        for at in columns
    ]  # fmt: skip
    return (
        alt.Chart(alt.Data(values=values), width=max(120, 14 * len(modules)), height=max(60, 14 * len(names)))
        .mark_rect()
        .encode(
            x=alt.X("module:N", sort=modules, title="module, by community", axis=alt.Axis(labelAngle=-90)),
            y=alt.Y(f"{what}:N", sort=list(names), title=None),
            color=alt.Color("share:Q", title="of the row's largest", scale=alt.Scale(scheme="blues", domain=[0, 1])),
            tooltip=[f"{what}:N", "module:N", "community:N", alt.Tooltip("weight:Q", format=".3g")],
        )
    )


def _network(found: CommunitiesFields) -> Any:
    """Modules as dots coloured by community, placed by a spring layout; the strongest links of every node."""
    import altair as alt

    network, names = found.projections.modules, found.modules
    kept = _strongest(network)
    places = nx.spring_layout(nx.from_numpy_array(kept), weight="weight", seed=LAYOUT_SEED) if len(names) else {}
    largest = float(network.max()) if network.size and network.max() > 0 else 1.0
    first, second = np.triu(kept, 1).nonzero()
    links = [
        {"x": float(places[a][0]), "y": float(places[a][1]), "x2": float(places[b][0]), "y2": float(places[b][1]),
         "weight": float(network[a, b]) / largest}
        for a, b in zip(first.tolist(), second.tolist(), strict=True)
    ]  # fmt: skip
    rows = found.rows()
    nodes = [
        {"x": float(places[at][0]), "y": float(places[at][1]), "module": row["module"], "layer": row["layer"],
         "community": str(row["community"]), "strength": row["strength"], "participation": row["participation"]}
        for at, row in enumerate(rows)
    ]  # fmt: skip
    hidden = alt.Axis(labels=False, ticks=False, grid=False, domain=False, title=None)
    x, y = alt.X("x:Q", axis=hidden), alt.Y("y:Q", axis=hidden)
    lines = (
        alt.Chart(alt.Data(values=links))
        .mark_rule(color="#94a3b8")
        .encode(
            x=x, y=y, x2="x2:Q", y2="y2:Q",
            opacity=alt.Opacity("weight:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.15, 0.8])),
        )
    )  # fmt: skip
    base = alt.Chart(alt.Data(values=nodes)).encode(x=x, y=y)
    dots = base.mark_circle().encode(
        size=alt.Size("strength:Q", legend=None, scale=alt.Scale(range=[60, 400])),
        color=alt.Color("community:N", title="community"),
        tooltip=["module:N", "layer:Q", "community:N", alt.Tooltip("strength:Q", format=".3g"),
                 alt.Tooltip("participation:Q", format=".2f")],
    )  # fmt: skip
    text = base.mark_text(dy=-11, fontSize=9).encode(text="module:N")
    return alt.layer(lines, dots, text).properties(
        width=520, height=420, title="modules, joined by the skills they serve"
    )


def _strongest(network: Any) -> Any:
    """The network with each node's DRAWN strongest links."""
    kept = np.zeros_like(network)
    for at, row in enumerate(network):
        best = np.argsort(-row, kind="stable")[:DRAWN]
        best = best[row[best] > 0]
        kept[at, best] = kept[best, at] = row[best]
    return kept


def _cells(row: Mapping[str, Any], members: Sequence[str]) -> list[str]:
    layers = row["layers"]
    return [
        str(row["community"]), str(row["modules"]), ", ".join(map(str, layers)), ", ".join(row["skills"]),
        ", ".join(row["datasets"]), " ".join(members),
    ]  # fmt: skip


def _remarks(found: CommunitiesFields) -> list[str]:
    said = [
        f"{what}: modularity {test['modularity']:.3f}{_against(test)}, {test['nulls']} nulls"
        for what, test in found.tests.items()
    ]
    agree = found.alignment["skills"]
    if agree["ami"] is not None:
        p = "" if agree["p_ami"] is None else f", p = {agree['p_ami']:.3g}"
        said.append(
            f"communities of skills and categories: adjusted mutual information {agree['ami']:.2f}{p}, adjusted Rand index "
            f"{agree['ari']:.2f}"
        )
    said.append(f"stability over runs (mean adjusted Rand index): {found.partition.stability:.2f}")
    return said + [f"note: {text}" for text in found.notes]


def _against(test: Mapping[str, Any]) -> str:
    if test["p"] is None:
        return ""
    z = "" if test["z"] is None else f", z = {test['z']:.1f}"
    return f" (random networks {test['null_mean']:.3f}{z}, p = {test['p']:.3g})"
