"""Frequency tagging end to end: tagged units per language, an untrained model beside, overlap, and what clamping them does.

Method: An et al. 2025 (arXiv 2510.13255); all of it lives in `find/syntax*`, this file only puts the parts in order.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, Task
from patchclamp.data.generate import LANGUAGES
from patchclamp.data.generate.items import Item
from patchclamp.data.generate.sentences import sentences as generated
from patchclamp.find import Finding
from patchclamp.find.syntax import chosen_by, dice, dice_by_chance, syntax
from patchclamp.find.syntax_pairs import order_pairs
from patchclamp.find.syntax_select import KINDS
from patchclamp.find.syntax_streams import FEWEST, Sentences
from patchclamp.find.untrained import untrained
from patchclamp.measure import Effects, effect
from patchclamp.models.units import UnitSet
from patchclamp.studies import hftp_view as view
from patchclamp.studies.study import Report, Run, judged, studies

ALPHA = 0.05
HELD_OUT = 4  # of a user's sentences every fourth is kept for the pairs


@studies.add("hftp")
def hftp(
    run: Run,
    *,
    text: Corpus | None = None,
    languages: Sequence[str] = LANGUAGES,
    sentences: int = 40,
    per_stream: int | None = None,
    n_streams: int = 40,
    groups: int = 10,
    pairs: int = 40,
    controls: int = 10,
) -> Report:
    """Frequency tagging (HFTP): units that follow sentences and phrases, and what clamping them does (arXiv 2510.13255).

    text: sentences of equally many units by label; by default our own generated four-unit ones. languages: of the
    generated ones. sentences: of each language in the streams. per_stream: sentences in a stream; all by default.
    n_streams: streams per condition (the paper has 100). groups: groups of streams. pairs: held-out sentences of each language,
    each against a broken order of its units. controls: matched-random sets to compare with.

    The sets are the paper's (z > 2 after a permutation test). Beside them stand the numbers of an absolute test, of the same
    architecture untrained, and of a second control in place of the experiment. No brain recordings come with the package:
    `patchclamp.find.similarity` compares units with yours.
    """
    if text is None:
        tagged, held = _generated(languages, sentences, pairs, run.seed)
    else:
        tagged, held = _split(text, sentences, pairs)
    keywords: dict[str, Any] = {
        "method": "reference", "n_streams": n_streams, "groups": groups, "per_stream": per_stream, "seed": run.seed,
        "quiet": run.quiet,
    }  # fmt: skip
    finding = run.finding("tagged", lambda: syntax(run.model, tagged, **keywords))
    fresh = run.stage("untrained", lambda: _untrained(run, tagged, keywords))
    sets = unions(finding, "reference")
    overlap = run.stage("overlap", lambda: _overlap(sets, finding.site))
    tasks = {name: order_pairs(held[name], name=name, seed=run.seed) for name in sets}
    effects = run.effects("clamped", lambda: _clamped(run, sets, tasks, controls, "pairs"))
    losses = run.effects("losses", lambda: _clamped(run, sets, tasks, controls, "loss"))
    counts = view.count_rows(finding, fresh)
    tables = [
        view.paper_table(counts),
        view.absolute_table(counts),
        view.effect_table(effects),
        view.loss_table(losses),
        view.overlap_table(overlap),
        view.rate_table(finding),
        view.every_effect(effects),
    ]
    return Report(
        tables=tables,
        charts=[
            (tables[0].title, view.layer_chart(finding)),
            (tables[0].title, view.spectrum_chart(finding)),
            (tables[2].title, view.effect_chart(effects)),
        ],
        verdict=[*verdict(counts, overlap, effects), *loss_verdict(losses)],
        beside=view.beside(),
        differs=view.differs(finding, run.model.name, generated=text is None),
        folded=[tables[-1].title],
        commands=[f"patchclamp find syntax {run.model.source or 'MODEL'} --text en=sentences.txt --out tagged.json"],
    )


def unions(finding: Finding, method: str) -> dict[str, UnitSet]:
    """Label of the text -> all its sentence, phrase and shared units by a method."""
    sets = chosen_by(finding, method)
    names = dict.fromkeys(label.rpartition(":")[0] for label in finding.labels)
    found = {}
    for name in names:
        first, *others = (sets[f"{name}:{kind}"] for kind in KINDS)
        for other in others:
            first = first | other
        found[name] = first
    return found


def verdict(counts: Sequence[Mapping[str, Any]], overlap: Sequence[Mapping[str, Any]], effects: Effects) -> list[str]:
    """What can be said of this model, computed from the numbers."""
    trained, fresh = (sum(row[key] for row in counts) for key in ("absolute", "untrained"))
    by_orders, fresh_orders = (sum(row[key] for row in counts) for key in ("by_orders", "untrained_by_orders"))
    floor = sum(row["absolute_floor"] for row in counts)
    named, chance = (sum(row[key] for row in counts) for key in ("reference", "reference_floor"))
    own = [effects.row(name, name) for name in effects.sets]
    hurt = [row for row in own if _hurt(row)]
    beyond = [row for row in own if row["control_mean"] is None or row["effect"] < row["control_mean"]]
    others = [effects.row(a, b)["effect"] for a in effects.sets for b in effects.texts if a != b]
    mean_own, mean_others = float(np.mean([row["effect"] for row in own])), float(np.mean(others)) if others else None
    more = [row for row in overlap if row["dice"] > row["by_chance"]]
    return [
        judged(
            "more units are tagged than in the same architecture untrained (absolute test over words)",
            trained > 2 * fresh and trained > 0, f"{trained} against {fresh}",
        ),
        judged(
            "the test over orders of the same sentences, which the paper's data allow, tells trained from untrained",
            by_orders > 2 * fresh_orders, f"{by_orders} against {fresh_orders}",
        ),
        judged(
            "a second control in place of the experiment is tagged by next to nothing (absolute test)",
            floor <= 0.05 * max(trained, 1), f"{floor} units",
        ),
        judged(
            "the paper's rule names more than it names in that control", named > chance, f"{named} against {chance}"
        ),
        judged(
            "languages share tagged units of a layer more than random sets do",
            len(more) == len(overlap) if overlap else None, f"{len(more)} of {len(overlap)} pairs of languages",
        ),
        judged(
            f"clamping a language's tagged units breaks its word order (pair accuracy falls, Holm-corrected p < {ALPHA})",
            len(hurt) == len(own), f"{len(hurt)} of {len(own)} languages",
        ),
        judged(
            "it does so more than matched random sets", len(beyond) == len(own), f"{len(beyond)} of {len(own)} languages"
        ),
        judged(
            "it hurts the own language more than others on average",
            None if mean_others is None else mean_own < mean_others,
            "" if mean_others is None else f"{mean_own:+.3f} against {mean_others:+.3f}",
        ),
    ]  # fmt: skip


def loss_verdict(losses: Effects) -> list[str]:
    """The same question in nats, for a model that orders every pair rightly has no accuracy to lose visibly."""
    own = [losses.row(name, name) for name in losses.sets]
    harder = [row for row in own if row["effect"] > max(row["control_mean"] or 0.0, 0.0) and row["p_holm"] < ALPHA]
    return [
        judged(
            f"clamping them makes held-out sentences less likely than random sets do (Holm-corrected p < {ALPHA})",
            len(harder) == len(own), f"{len(harder)} of {len(own)} languages",
        )
    ]  # fmt: skip


def _hurt(row: Mapping[str, Any]) -> bool:
    return bool(row["effect"] < (row["control_mean"] or 0.0) and row["effect"] < 0 and row["p_holm"] < ALPHA)


def _clamped(run: Run, sets: Mapping[str, UnitSet], tasks: Mapping[str, Task], controls: int, how: str) -> Effects:
    return effect(
        run.model, sets, on=tasks, how=how, to=0.0, controls=controls, permutations=19_999, seed=run.seed,
        quiet=run.quiet,
    )  # fmt: skip


def _untrained(run: Run, tagged: Mapping[str, Sentences], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> rule -> kind -> units named in a model of the same configuration with fresh weights."""
    found = syntax(untrained(run.model, seed=run.seed), tagged, **{**keywords, "floor": False})
    return {name: entry["named_by"] for name, entry in found.details.items()}


def _overlap(sets: Mapping[str, UnitSet], site: str) -> list[dict[str, Any]]:
    """Mean Dice over layers of every pair of languages, and what random sets of the same sizes would have."""
    rows = []
    for a, b in itertools.combinations(sets, 2):
        found, chance = np.diag(dice(sets[a], sets[b], site)), dice_by_chance(sets[a], sets[b], site)
        layers = {"layers": [round(float(value), 4) for value in found]}
        rows.append(
            {"languages": f"{a}, {b}", "dice": float(found.mean()), "by_chance": float(chance.mean()), **layers}
        )
    return rows


def _generated(
    languages: Sequence[str], count: int, pairs: int, seed: int
) -> tuple[dict[str, Sentences], dict[str, Sentences]]:
    """Different sentences of each language for the streams, and held-out ones for the pairs."""
    found: list[dict[str, Sentences]] = []
    for split, number in (("train", count), ("heldout", pairs)):
        found.append({name: Sentences.of(_different(name, split, number, seed), name=name) for name in languages})
    return found[0], found[1]


def _different(language: str, split: str, count: int, seed: int) -> list[Item]:
    if count < FEWEST:
        raise InputError(f"{count} sentences asked for; at least {FEWEST} are needed")
    made: dict[str, Item] = {}
    for item in itertools.islice(generated(seed, split, [language], count=None), 100 * count):
        made.setdefault(item.labels["units"], item)
        if len(made) == count:
            return list(made.values())
    raise InputError(f"{language} has only {len(made)} different {split} sentences; {count} were asked for")


def _split(text: Corpus, count: int, pairs: int) -> tuple[dict[str, Sentences], dict[str, Sentences]]:
    """A user's sentences: every fourth for the pairs, the others, at most `count`, for the streams."""
    tagged, held = {}, {}
    for name in text.labels:
        whole = Sentences.of(text.documents(name), name=name, fewest=2 * FEWEST)
        kept = [row for at, row in enumerate(whole.units) if at % HELD_OUT != HELD_OUT - 1]
        tagged[name] = Sentences(tuple(kept[:count]), whole.gap)
        held[name] = Sentences(whole.units[HELD_OUT - 1 :: HELD_OUT][:pairs], whole.gap)
    return tagged, held
