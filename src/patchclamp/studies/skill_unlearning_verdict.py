"""Verdicts of the unlearning study, computed from its numbers, and the paper's figures beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from patchclamp.studies.skill_unlearning_numbers import (
    HARMLESS,
    PAPER,
    PAPER_LANGUAGES,
    REFUSED,
    TRIPPED,
    Left,
    SkillUnlearning,
    ahead,
    left,
    lost,
    mean,
    ours,
    proven,
    useful,
    way_name,
)
from patchclamp.studies.study import Table, judged


def verdict(study: SkillUnlearning) -> list[str]:
    lines = []
    for way in study.ways:
        found = study.effects[way]
        good = [name for name in study.forgotten if proven(found.row(name, name)) and ahead(found, name)]
        beside = "" if way.startswith("abstain") else "than random controls do and "
        lines.append(_counted(f"{way_name(way)} takes more of the skill {beside}than of any other skill", good, study))
    curve = [value for share in study.shares if (value := _own(study, f"adjust-{share:g}")) is not None]
    lines.append(
        judged(
            "the more units Neuron Adjust moves, the less of the skill is left",
            curve == sorted(curve, reverse=True) if curve else None,
            ", ".join(f"{value:.2f}" for value in curve) + f" at {', '.join(f'{100 * share:g}%' for share in study.shares)}",
        )
    )  # fmt: skip
    for way in study.ways:
        adjusted = f"adjust-{way.partition('-')[2]}"
        if not way.startswith("pruning") or adjusted not in study.effects:
            continue
        kept, pruned = _others(study, adjusted), _others(study, way)
        claim = f"{way_name(way)} harms the other skills more than {way_name(adjusted)}"
        if kept is None or pruned is None:
            lines.append(judged(claim, None))
        else:
            lines.append(judged(claim, pruned < kept, f"{pruned:.2f} and {kept:.2f} of them left"))
    for which, boxes in (("last", study.last), ("best", study.abstentions)):
        claim = f"the {which} layer's box holds over {REFUSED:.0%} of the skill's held-out queries, under {TRIPPED:.0%} of others"
        lines.append(_counted(claim, [name for name in study.forgotten if useful(boxes[name])], study))
    others = [row for row in study.trips if row["task"] != row["skill"]]
    lines.append(
        judged(
            "checking every step refuses no more of the other queries than checking prompts",
            all(row["any"] <= row["prompt"] for row in others),
            f"{np.mean([row['any'] for row in others]):.0%} and {np.mean([row['prompt'] for row in others]):.0%} of them",
        )
    )  # fmt: skip
    for change in dict.fromkeys(row["change"] for row in study.leaks):
        mine = [row for row in study.leaks if row["change"] == change and row["leaked"] is not None]
        worst = max(mine, key=lambda row: float(row["leaked"])) if mine else None
        lines.append(
            judged(
                f"{way_name(change)}: asked for differently, at most {HARMLESS:.0%} more of a skill comes back",
                None if worst is None else worst["leaked"] <= HARMLESS,
                "" if worst is None else f"at most {worst['leaked']:+.2f}: {worst['skill']} {worst['variation']}",
            )
        )
    for way, found in study.languages.items():
        first = [name for name in found.sets if ahead(found, name)]
        behind = [name for name in found.sets if name not in first]
        lines.append(
            judged(
                f"{way_name(way)} takes more of the forgotten language than of any other", not behind,
                f"{len(first)} of {len(found.sets)}" + (f"; not {', '.join(behind)}" if behind else ""),
            )
        )  # fmt: skip
    return lines


def _counted(claim: str, names: Sequence[str], study: SkillUnlearning) -> str:
    missing = [name for name in study.forgotten if name not in names]
    return judged(
        claim,
        not missing,
        f"{len(names)} of {len(study.forgotten)}" + (f"; not {', '.join(missing)}" if missing else ""),
    )


def _own(study: SkillUnlearning, way: str) -> float | None:
    """What a method leaves of the forgotten skills, on average."""
    found = study.effects[way]
    return mean([left(found.row(name, name)) for name in study.forgotten])


def _others(study: SkillUnlearning, way: str) -> float | None:
    """What a method leaves of everything else, on average."""
    found = study.effects[way]
    return mean([left(found.row(name, text)) for name in study.forgotten for text in found.texts if text != name])


def differs(study: SkillUnlearning) -> list[str]:
    data = "skills the demo model was taught" if study.bundled else "the tasks given"
    return [
        f"model: {study.model['name']}, the paper's are gemma-2B, Llama-2-7B, Llama-3-8B and 70B",
        f"data: {data}; items measured were not fitted on; the paper's are GSM8K, MBPP, MLQA and MMLU",
        "an answer counts if greedy decoding writes it; the paper samples sums at temperature 0.8",
        "spreads are standard deviations, every unit of every token has its own random number (the reference's code has neither)",
        "a box's size is chosen on held-out queries, here alpha differs between skills; the paper sets it by hand",
        "abstention judges prompts (when='prompt'); the paper checks every step, which is shown beside it",
        "selective pruning sets units at the input of the down projection to 0",
    ]


def beside(study: SkillUnlearning) -> Table:
    """The paper's two skills beside ours: sums for GSM8K, programs for MBPP; of other tasks the first two forgotten."""
    first, second = [*study.forgotten, *study.forgotten][:2]
    rows: list[dict[str, Any]] = []
    for way in dict.fromkeys([*PAPER, *study.ways]):
        gsm, mbpp = PAPER.get(way, (None, None))
        pairs = {
            "gsm": gsm,
            "ours_first": ours(study, way, first),
            "mbpp": mbpp,
            "ours_second": ours(study, way, second),
        }
        rows.append({"what": way_name(way), **{key: _triple(value) for key, value in pairs.items()}})
    for way, (own, others, most) in PAPER_LANGUAGES.items():
        found = lost(study.languages[way]) if way in study.languages else None
        shown = None if found is None else f"{found[0]:.2f} / {found[1]:.2f} / {found[2]:.2f}"
        rows.append(
            {
                "what": f"{way_name(way)}, languages: lost",
                "gsm": f"{own:.2f} / {others:.2f} / {most:.2f}",
                "ours_first": shown,
            }
        )
    headings = {
        "what": "method", "gsm": "paper: GSM8K forgotten", "ours_first": f"ours: {first}",
        "mbpp": "paper: MBPP forgotten", "ours_second": f"ours: {second}",
    }  # fmt: skip
    note = (
        "Left of the forgotten skill / of the other skills (paper: of the other one) / of general knowledge (MMLU; here "
        f"{study.general}). Languages: share lost of the forgotten one / of the others / most of any other. Paper: Llama-3-8B; "
        "its pruning of MBPP is at 0.01%."
    )
    return Table("Beside the paper", rows, headings, note=note)


def _triple(value: Left | None) -> str | None:
    return None if value is None else " / ".join(f"{part:.2f}" for part in value)
