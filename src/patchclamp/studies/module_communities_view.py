"""What the study of module communities shows: tables, charts, the verdict, and the paper's claims beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.studies.study import Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.read.communities_result import Communities

ALPHA = 0.05
OTHERS = ("random", "overlapping", "nearest")
SAID = {
    "paper": "as in the paper",
    "sharpened": "needed more than by the average dataset",
    "random": "random pruning (control)",
}


@dataclass(frozen=True, eq=False)
class ModuleCommunities:
    """Everything that was made. networks: "paper", "sharpened", "random". trained: one entry per fine-tuned community."""

    networks: Mapping[str, Communities]
    trained: Sequence[Mapping[str, Any]]
    room: float
    model: Mapping[str, Any]


def report(made: ModuleCommunities) -> Report:
    """Networks, communities, then fine-tuning; then the verdict."""
    found = made.networks["sharpened"]
    rows = [_network(name, one) for name, one in made.networks.items()]
    networks = Table(
        "Networks beside random ones",
        rows,
        {
            "network": "network", "communities": "communities", "modularity": "modularity", "null": "random", "p": "p",
            "skills": "skill communities", "skills_modularity": "modularity", "skills_null": "random", "skills_p": "p",
        },
        note="Random: networks with the same number of links at every dataset and module, projected and searched alike.",
    )  # fmt: skip
    agreement = Table(
        "What the communities agree with",
        rows,
        {
            "network": "network", "ami": "skills with categories", "p_ami": "p", "kinds": "modules with kinds of map",
            "p_kinds": "p", "layers": "modules with layers", "contrast_p": "p: they differ in skills",
            "stability": "stability",
        },
        note="Adjusted mutual information: 0 by chance, 1 for equal groupings; p over shuffled labels. Differing in skills is "
        "compared with communities found in random networks.",
    )  # fmt: skip
    members = Table(
        "Communities of modules",
        [
            {**row, "layers": _listed(row["layers"]), "skills": _listed(row["skills"]),
             "datasets": _listed(row["datasets"]), "members": " ".join(names)}
            for row, names in zip(found.community_rows(), found.members, strict=True)
        ],
        {"community": "community", "modules": "modules", "layers": "layers", "skills": "main skills",
         "datasets": "best-matched datasets", "members": "members"},
        note="Of the network of what a dataset needs more than the average one.",
    )  # fmt: skip
    skills = Table(
        "Communities of skills",
        [
            {"community": number, "skills": _listed(names),
             "categories": _listed(sorted({found.categories[name] for name in names}))}
            for number, names in enumerate(found.skill_members)
        ],
        {"community": "community", "skills": "skills", "categories": "their categories"},
    )  # fmt: skip
    tables = [networks, agreement, members, skills]
    charts = [(members.title, found.chart("network")), (skills.title, found.chart("skills"))]
    if made.trained:
        trained = _trained(made)
        tables += [trained, _compared(made)]
        charts.append((trained.title, _losses_chart(made)))
    nodes = Table("Modules", found.rows(), note="Roles in the network: participation 0: all links in one community.")
    resolutions = Table("How many communities, by resolution", [dict(row) for row in found.resolutions])
    return Report(
        tables=[*tables, resolutions, nodes],
        charts=charts,
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[nodes.title, resolutions.title],
    )


def _network(name: str, one: Communities) -> dict[str, Any]:
    modules, skills, agree = one.tests["modules"], one.tests["skills"], one.alignment["skills"]
    return {
        "network": SAID[name],
        "communities": one.partition.n_communities,
        "modularity": modules["modularity"],
        "null": modules["null_mean"],
        "p": modules["p"],
        "skills": one.skill_partition.n_communities,
        "skills_modularity": skills["modularity"],
        "skills_null": skills["null_mean"],
        "skills_p": skills["p"],
        "ami": agree["ami"],
        "p_ami": agree["p_ami"],
        "contrast_p": one.contrast["p"],
        "kinds": one.alignment["kinds"]["ami"],
        "p_kinds": one.alignment["kinds"]["p_ami"],
        "layers": one.alignment["layers"]["ami"],
        "stability": one.partition.stability,
    }


def _trained(made: ModuleCommunities) -> Table:
    rows = []
    for entry in made.trained:
        for condition in dict.fromkeys(row["condition"] for row in entry["rows"]):
            mine = [row for row in entry["rows"] if row["condition"] == condition]
            losses = [row["loss"] for row in mine]
            rows.append(
                {
                    "community": entry["community"],
                    "dataset": entry["dataset"],
                    "rank": entry["rank"],
                    "condition": condition,
                    "modules": mine[0]["modules"],
                    "weights": round(np.mean([row["weights"] for row in mine])),
                    "loss": float(np.mean(losses)),
                    "sd": float(np.std(losses, ddof=1)) if len(losses) > 1 else None,
                    "accuracy": _mean([row["accuracy"] for row in mine]),
                    "change": _mean([_per_weight(row) for row in mine]),
                    "strong": condition == "community",
                }
            )
    heads = {"community": "community", "dataset": "dataset", "rank": "rank", "condition": "trained", "modules": "modules",
             "weights": "weights", "loss": "test loss (nats)", "sd": "sd over seeds", "accuracy": "test accuracy",
             "change": "change per weight"}  # fmt: skip
    note = "random: as many modules outside the community; overlapping: from all; nearest: the same kinds in the next layers. "
    note += (
        "Rank: how many datasets match the community at least as well; the better ones can't be learned further, or have no "
        "unseen items."
    )
    return Table("Fine-tuning a community, all modules, or as many others", rows, heads, note=note, strong="strong")


def _compared(made: ModuleCommunities) -> Table:
    rows = [
        {
            "community": entry["community"],
            "dataset": entry["dataset"],
            **one,
            "interval": f"{one['low']:+.3f} to {one['high']:+.3f}",
        }
        for entry in made.trained
        for one in entry["compared"]
    ]
    heads = {"community": "community", "dataset": "dataset", "condition": "instead", "difference": "extra loss (nats)",
             "interval": "95% over items", "p": "p", "spread": "sd over seeds",
             "better": "runs that beat the community"}  # fmt: skip
    return Table("What training other modules costs, compared with the community", rows, heads)


def _verdict(made: ModuleCommunities) -> list[str]:
    paper, sharp, chance = (made.networks[name] for name in ("paper", "sharpened", "random"))
    agree = sharp.alignment["skills"]
    lines = [
        judged("the paper's network of modules is more modular than random ones", _below(paper.tests["modules"]["p"]),
               _against(paper.tests["modules"])),
        judged("what each dataset needs more than the average one makes modules more modular than random ones",
               _below(sharp.tests["modules"]["p"]), _against(sharp.tests["modules"])),
        judged("skills form communities beyond random networks", _below(sharp.tests["skills"]["p"]),
               _against(sharp.tests["skills"])),
        judged("communities of modules differ in their skills more than those of random networks",
               _below(sharp.contrast["p"]), f"p = {_number(sharp.contrast['p'])}"),
        judged("communities of skills follow the human categories", _below(agree["p_ami"]),
               f"adjusted mutual information {_number(agree['ami'])}, adjusted Rand index {_number(agree['ari'])}, "
               f"p = {_number(agree['p_ami'])}; the paper finds about 0"),
        judged("random pruning shows none of this", _none_below(chance),
               f"modularity p = {_number(chance.tests['modules']['p'])} (modules), "
               f"{_number(chance.tests['skills']['p'])} (skills), categories p = {_number(chance.alignment['skills']['p_ami'])}"),
    ]  # fmt: skip
    return lines + _tuning_verdict(made)


def _tuning_verdict(made: ModuleCommunities) -> list[str]:
    if not made.trained:
        return [
            "no community was fine-tuned: none of two or more modules has a dataset on which the model's answer loss is "
            f"{made.room:g} nats or more"
        ]
    random = [one for entry in made.trained for one in entry["compared"] if one["condition"] in OTHERS]
    clear = [one for one in random if one["low"] > 0 and one["difference"] > (one["spread"] or 0)]
    whole = [one for entry in made.trained for one in entry["compared"] if one["condition"] == "all"]
    best = [one for one in whole if one["difference"] < 0]
    moved = [_moved_more(entry) for entry in made.trained]
    known = [one for one in moved if one is not None]
    return [
        judged("a community learns its skill better than as many other modules", len(clear) == len(random) if random else None,
               f"clearly in {len(clear)} of {len(random)} comparisons; mean extra loss of others "
               f"{_number(_mean([one['difference'] for one in random]), '+.3f')} nats; the paper: no better"),
        judged("all modules learn best", len(best) == len(whole) if whole else None,
               f"{len(best)} of {len(whole)}; the paper: yes"),
        judged("training moves the weights of a community more than those of other modules",
               all(known) if known else None, f"{sum(known)} of {len(known)}; the paper: yes"),
    ]  # fmt: skip


def _moved_more(entry: Mapping[str, Any]) -> bool | None:
    change = {
        name: _mean([_per_weight(row) for row in entry["rows"] if row["condition"] in kinds])
        for name, kinds in (("own", ("community",)), ("others", OTHERS))
    }
    own, others = change["own"], change["others"]
    return None if own is None or others is None else own > others


def _beside(made: ModuleCommunities) -> Table:
    found = made.networks["paper"]
    agree = made.networks["sharpened"].alignment["skills"]
    rows: list[dict[str, Any]] = [
        {"what": "modules", "paper": "196", "ours": str(len(found.modules))},
        {"what": "datasets", "paper": "174", "ours": str(len(found.datasets))},
        {"what": "skills", "paper": "53", "ours": str(len(found.skills))},
        {"what": "categories of skills", "paper": "4", "ours": str(len(set(found.categories.values())))},
        {"what": "adjusted Rand index of skill communities and categories", "paper": "about 0",
         "ours": _number(agree["ari"])},
        {"what": "training a community rather than as many others", "paper": "no significant gain",
         "ours": _gain(made)},
        {"what": "training all modules", "paper": "highest accuracy", "ours": _gain(made, ("all",))},
    ]  # fmt: skip
    return Table("Beside the paper (Llama-2-7B and its kin)", rows, {"what": "", "paper": "paper", "ours": "ours"})


def _gain(made: ModuleCommunities, kinds: Sequence[str] = OTHERS) -> str:
    found = [one["difference"] for entry in made.trained for one in entry["compared"] if one["condition"] in kinds]
    return "not trained" if not found else f"{np.mean(found):+.3f} nats of test loss against the community"


def _differs(made: ModuleCommunities) -> list[str]:
    found = made.networks["paper"]
    return [
        f"model: {made.model['name']} with {len(found.modules)} modules; the paper prunes layers 3 to 30 of 32-layer models",
        "skills are labels of the items, in the paper a language model names five of 53 for every question",
        "projections are pruned line by line: coupled heads and channels would leave q, k, v and o of a layer alike",
        "no sparsifying; modularity is compared with projections of random bipartite networks, in the paper with random graphs",
        "the sharpened network and the control of random pruning are ours; so are test loss, intervals and p-values",
        "fine-tuning takes a few steps of AdamW at a higher rate; a community is trained on the first best-matched dataset "
        f"on which the model's answer loss is {made.room:g} nats or more",
    ]


def _losses_chart(made: ModuleCommunities) -> Any:
    import altair as alt

    values = [
        {"condition": row["condition"], "loss": row["loss"],
         "trained": f"community {entry['community']} on {entry['dataset']}"}
        for entry in made.trained
        for row in entry["rows"]
    ]  # fmt: skip
    order = list(dict.fromkeys(value["condition"] for value in values))
    return (
        alt.Chart(alt.Data(values=values), width=220, height=140)
        .mark_point(filled=True, size=60, opacity=0.7)
        .encode(
            x=alt.X("loss:Q", title="test loss (nats)", scale=alt.Scale(zero=False)),
            y=alt.Y("condition:N", sort=order, title="trained"),
            color=alt.Color("condition:N", sort=order, legend=None),
            facet=alt.Facet("trained:N", columns=2, title=None),
        )
        .resolve_scale(x="independent")
    )


def _per_weight(row: Mapping[str, Any]) -> float | None:
    """Root mean square change of a trained weight."""
    return row["change"] / row["weights"] ** 0.5 if row["weights"] else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _below(p: float | None) -> bool | None:
    return None if p is None else p < ALPHA


def _none_below(one: Communities) -> bool | None:
    values = [one.tests["modules"]["p"], one.tests["skills"]["p"], one.alignment["skills"]["p_ami"]]
    return None if any(p is None for p in values) else all(p >= ALPHA for p in values)


def _against(test: Mapping[str, Any]) -> str:
    return f"modularity {test['modularity']:.3f}, random {_number(test['null_mean'], '.3f')}, p = {_number(test['p'])}"


def _number(value: float | None, shape: str = ".2g") -> str:
    return "-" if value is None else format(value, shape)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))
