"""Culture neurons: which units the right answers to culture questions hang on, for all groups and for single ones (CULNIG).

Yamamoto, Kumon, Bollegala, Yanaka 2025, "Neuron-Level Analysis of Cultural Understanding in Large Language Models", arXiv
2510.08284. Gradient x activation (attribution.py) on questions, minus the same on controls that leave the question out, without
the units that recognise a name. Groups need not be countries: any labelled questions can be compared.

The steps lie in files of their own: culture_sums (what is summed), culture_selection (scores and sets), culture_null.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.tasks import Task
from patchclamp.find.culture_null import chance
from patchclamp.find.culture_selection import (
    general_score,
    general_units,
    group_scores,
    pools,
    specific_units,
    z_scores,
)
from patchclamp.find.culture_sums import Contributions, contributions
from patchclamp.find.finding import Finding, finders, unit_set
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

__all__ = ["culture", "general", "z_of"]

GENERAL = "general"
MEANS = ("auto", "group", "total")
UNEVEN = 0.05  # groups whose numbers of prompts differ by more than this are averaged by their own


@finders.add("culture")
def culture(
    model: LanguageModel,
    task: Task,
    *,
    control: Task | None = None,
    names: Task | None = None,
    group: str = "country",
    sites: Sequence[str] = ("pre", "q", "k", "v"),
    share_mlp: float = 0.01,
    share_attention: float = 0.002,
    remove: float = 0.01,
    share_specific: float = 0.003,
    z: float = 0.5,
    means: str = "auto",
    block: str | None = None,
    tokens: int | None = 1,
    pad_zero: bool = False,
    shuffles: int = 100,
    batch_tokens: int = 2048,
    seed: int = 0,
    quiet: bool = False,
) -> Finding:
    """Find the units that answers about cultures depend on: a general set, and a specific one for every group.

    task: questions; group: the label that says whose (at least two groups). control: the same without the question ("same
    options, no question"), subtracted. names: passages that only mention a group's name; what they use is removed. sites:
    of the MLP (pre, gate, up, mlp) and of attention (q, k, v, attn, head). share_mlp, share_attention: how many of the
    MLP and of the attention units the general set begins with. remove: how many of the units that `names` ranks first are
    taken out again. share_specific: how many of all units a group's set begins with; z: how far a unit's score for the
    group must lie above its mean over groups, in standard deviations over groups (never reached if more than G / (1 +
    z^2) of G groups share a unit equally). means: "auto", "group" or "total", see below. block: label within which groups
    are exchanged for the null. tokens: how many tokens of an answer count (the paper's answers have one; None: all).
    pad_zero: padding counts as 0, as in the reference code. shuffles: of the null. batch_tokens: positions in a batch.
    seed: of the null. quiet: no progress bar.

    Per prompt: P * max over its tokens of n * dP/dn (steps 2 to 4; of controls only what is positive). scores of a group:
    the mean over its prompts minus that over its controls; of `general`: their mean. `sets`: "general" and the groups.
    unit_score: the summed score on `names` (absent without them). member: for groups z >= z; for `general`: no name unit.
    null: see culture_null; p_values of groups are for z, of `general` for question against control.

    Differs from the paper's code: padding never counts (pad_zero=True: as 0, as there, which lifts every negative maximum of a
    padded prompt to 0); groups are averaged over their own prompts where their numbers differ by more than 5% (means="total":
    divide by all prompts, as there; "group": always by their own); counts are prompts, not ids; weights get no
    gradient and the model stays in eval mode; float32 logits. A unit with a score of 0 or less is never chosen.
    Ties go to the earlier site in `sites`, then layer, then index. The null is ours.

    Cost: a forward and a backward pass per batch of batch_tokens positions (1.5 to 2 plain forward passes), memory for
    their graph, and groups * blocks * units * 8 bytes for each of the tasks (blocks: at most 16; relation or topic of an item,
    or another label, block=). Raises InputError for fewer than two groups, tasks without items, groups of `control` or `names`
    that `task` lacks or groups without controls, shares outside [0, 1), sites that the model lacks, answers without a token.
    Example: `patchclamp find culture demo --task generate:culture,language=en --out culture.json`.
    """
    _check(share_mlp=share_mlp, share_attention=share_attention, remove=remove, share_specific=share_specific)
    if means not in MEANS:
        raise InputError(f"means={means!r} given; it is one of {', '.join(MEANS)}")

    how: dict[str, Any] = {"group": group, "sites": sites, "tokens": tokens, "pad_zero": pad_zero, "quiet": quiet}
    how |= {"block": block, "batch_tokens": batch_tokens}
    main = contributions(model, task, **how)
    _check_groups(main)
    pools(main.layouts)
    against = None if control is None else _same_axes(contributions(model, control, clip=True, **how), main, "control")
    if against is not None and (absent := np.flatnonzero(against.group_rows == 0)).size:
        raise InputError(f"the control has no items of the {group} {main.groups[absent[0]]!r}; every group needs some")
    named = None
    if names is not None:
        named = _same_axes(contributions(model, names, **(how | {"block": group})), main, "names")
    return _finding(
        model, main, against, named, {"task": task, "control": control, "names": names},
        {
            "group": group, "sites": list(sites), "share_mlp": share_mlp, "share_attention": share_attention,
            "remove": remove, "share_specific": share_specific, "z": z, "means": means, "block": block, "tokens": tokens,
            "pad_zero": pad_zero, "shuffles": shuffles, "batch_tokens": batch_tokens, "seed": seed,
        },
    )  # fmt: skip


def general(finding: Finding, *, share_mlp: float, share_attention: float, remove: float | None = None) -> UnitSet:
    """The general set at other shares, from the scores of a finding: for a sweep of thresholds.

    remove: as in the finding by default. InputError for a finding without its scores.
    """
    if finding.scores is None or finding.method != "culture":
        raise InputError("a culture finding with its scores file is needed; find again, or put the file beside it")
    least = finding.parameters["remove"] if remove is None else remove
    _check(share_mlp=share_mlp, share_attention=share_attention, remove=least)
    score = finding.scores[finding.labels.index(GENERAL)]
    taken = general_units(
        score, finding.unit_score, finding.layouts, mlp=share_mlp, attention=share_attention, remove=least
    )
    where = np.flatnonzero(taken)
    return unit_set(finding.model, finding.layouts, where, score[where])


def z_of(finding: Finding) -> NDArray[np.float64]:
    """z over groups of every unit, (groups, total), groups in the order of `finding.labels` without "general"."""
    if finding.scores is None:
        raise InputError("this finding was loaded without the scores of all units")
    return z_scores(finding.scores[1:])


def _finding(
    model: LanguageModel,
    main: Contributions,
    control: Contributions | None,
    names: Contributions | None,
    tasks: dict[str, Any],
    given: dict[str, Any],
) -> Finding:
    """Steps 6 to 10 on the sums of the three tasks."""
    counts = [one.group_rows for one in (main, control) if one is not None]
    uneven = any(rows.max() - rows.min() > UNEVEN * rows.mean() for rows in counts)
    own = given["means"] == "group" or (given["means"] == "auto" and uneven)
    groups = group_scores(main, control, own_means=own)
    score = general_score(groups, own_means=own)
    name_score = None if names is None else names.totals.sum(axis=0)
    shares = {"mlp": given["share_mlp"], "attention": given["share_attention"], "remove": given["remove"]}
    whole = general_units(score, name_score, main.layouts, **shares)

    def choose(scores: NDArray[np.float64], name_sums: NDArray[np.float64] | None = None) -> NDArray[np.bool_]:
        standing = z_scores(scores)
        sets = [
            specific_units(
                scores[at], None if name_sums is None else name_sums[at], standing[at],
                share=given["share_specific"], remove=given["remove"], least=given["z"],
            )
            for at in range(len(main.groups))
        ]  # fmt: skip
        return np.stack(sets)

    specific = choose(groups, None if names is None else names.totals)
    null, p_values = chance(main, control, choose, own_means=own, shuffles=given["shuffles"], seed=given["seed"])
    everything = general_units(
        np.ones(len(score)), name_score, main.layouts, mlp=1.0, attention=1.0, remove=given["remove"]
    )
    sums = {"task": main, "control": control, "names": names}
    return Finding(
        method="culture",
        labels=(GENERAL, *main.groups),
        layouts=main.layouts,
        model=dict(model.identity),
        chosen=np.vstack([whole[None], specific]),
        scores=np.vstack([score[None], groups]),
        unit_score=name_score,
        member=np.vstack([everything[None], z_scores(groups) >= given["z"]]),
        p_values=p_values,
        null=null,
        parameters={**given, "means_used": "group" if own else "total"},
        details={key: _described(one, whole) for key, one in sums.items() if one is not None},
        notes=_notes(sums, given, own),
        provenance=provenance(
            "find.culture",
            arguments=given,
            inputs={
                "model": dict(model.identity),
                "tasks": {key: _identity(one) for key, one in tasks.items() if one is not None},
            },
            seed=given["seed"],
        ),
    )


def _described(sums: Contributions, chosen: NDArray[np.bool_]) -> dict[str, Any]:
    """Prompts and mean P of each group; how often a unit of the general set is positive."""
    rows = sums.group_rows
    return {
        "prompts": dict(zip(sums.groups, rows.tolist(), strict=True)),
        "mean_probability": {
            name: float(sums.probability[at] / rows[at]) if rows[at] else None for at, name in enumerate(sums.groups)
        },
        "tiny": sums.tiny,
        "ambiguous": sums.ambiguous,
        "positive_share_of_general": float(sums.positive[chosen].mean() / sums.n) if chosen.any() else None,
    }


def _notes(sums: dict[str, Contributions | None], given: dict[str, Any], own: bool) -> tuple[str, ...]:
    """What a reader should know before trusting the sets."""
    found = []
    if own and given["means"] == "auto":
        found.append(
            "the groups have unequal numbers of prompts, so each was averaged over its own (the paper's code does not)"
        )
    for key, one in sums.items():
        if one is None:
            continue
        if one.tiny:
            found.append(
                f"{one.tiny} of {one.n} prompts of the {key} say nothing: the answer's probability is below 1e-6"
            )
        if one.tiny > one.n / 2:
            found.append(
                f"the model hardly ever gives the answers of the {key}; do they begin with the space they need?"
            )
        if one.ambiguous:
            found.append(
                f"{one.ambiguous} of {one.n} answers of the {key} begin like another of their choices; tokens=None scores all"
            )
    if sums["control"] is None:
        found.append(
            "without a control, units that serve the form of the task are in the sets; the general set has no p-values"
        )
    names = sums["names"]
    if names is None:
        found.append("without a task of names, units that only recognise a group's name are in the sets")
    elif bare := [group for group, rows in zip(names.groups, names.group_rows.tolist(), strict=True) if not rows]:
        found.append(f"no passage of names is about {', '.join(bare)}: nothing was removed from these groups' sets")
    return tuple(found)


def _check(**shares: float) -> None:
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise InputError(f"{name}={value} given; it is a share of units, at least 0 and below 1")


def _check_groups(main: Contributions) -> None:
    if len(main.groups) < 2:
        raise InputError(
            f"only the group {main.groups[0]!r} is in the task; scores are compared between at least two groups"
        )
    if GENERAL in main.groups:
        raise InputError(f"a group may not be called {GENERAL!r}: that is the name of the set for all groups")
    if main.tiny == main.n:
        raise InputError(
            "every answer has a probability below 1e-6, so nothing can be attributed; do the answers begin with the space "
            "that they need after the prompt (' A', not 'A')?"
        )


def _same_axes(other: Contributions, main: Contributions, what: str) -> Contributions:
    """Sums on the groups and blocks of the main task; InputError for a group that the main task lacks."""
    unknown = [name for name in other.groups if name not in main.groups]
    if unknown:
        raise InputError(
            f"{what} has items of {', '.join(unknown)}, but the task has none; its groups are {', '.join(main.groups)}"
        )
    if what == "names":
        return other.spread(main.groups)
    if strange := sorted({*other.blocks} - {*main.blocks}):
        blocks = ", ".join(main.blocks)
        raise InputError(f"{what} has items about {strange[0]!r}, the task about {blocks}; give block= a label of both")
    return other.spread(main.groups, main.blocks)


def _identity(task: Iterable[Any] | None) -> Any:
    return getattr(task, "identity", None)


make_callable(__name__)
