"""Circuit reuse end to end: circuits of two tasks by path patching, what they share, and a repair by forced attention.

Method: Merullo, Eickhoff & Pavlick 2024 (arXiv 2310.08744); all of it lives in the floors below, this file only puts the
parts in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import spearmanr

from patchclamp.core.errors import InputError
from patchclamp.intervene.attention_override import ForcedAttention, force_attention
from patchclamp.intervene.attention_rows import attention_rows, block_attention
from patchclamp.intervene.circuits import Circuit, overlap, overlap_sweep
from patchclamp.intervene.path_patching import path_patch
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.pair_answers import PairAnswers, candidate_tokens, pair_answers
from patchclamp.models.units import UnitSet
from patchclamp.read.head_attribution import head_attribution
from patchclamp.studies import circuit_reuse_view as view
from patchclamp.studies.circuit_reuse_tasks import Side, both_tasks
from patchclamp.studies.study import Report, Run, studies

if TYPE_CHECKING:
    from patchclamp.data.paired import Pairs
    from patchclamp.intervene.patching_result import Patching

NAME = "circuit-reuse"
OWN = "own steering heads"
NONE: dict[str, Any] = {"rows": []}
FLOOR = 1.0  # percent of the flip below which a head is no part of a circuit


@studies.add(NAME)
def circuit_reuse(
    run: Run,
    *,
    n: int = 100,
    language: str = "en",
    templates: str = "auto",
    shots: int | None = None,
    n_objects: int = 3,
    share: float = 0.02,
    least: int = 3,
    shares: Sequence[float] = (0.02, 0.05, 0.1, 0.2),
    freeze_mlps: bool = False,
    controls: int = 10,
    permutations: int = 1000,
) -> Report:
    """Circuit reuse: heads that two tasks share by path patching, and a repair by forced attention (arXiv 2310.08744).

    n: pairs of each task (the paper has 1,000). language: en, de, fr, ru, zh or ja. templates: "paper" frames, "demo" (what the
    bundled model was taught), or "auto": the paper's wherever the tokenizer has their words. shots: solved examples before a
    question about colours; by default 1 with the paper's frames. n_objects: in a scene. share: of all heads, taken at every
    stage. least: heads that are taken in any case. shares: further shares at which the overlap is told. freeze_mlps: hold
    MLPs between sender and receiver too. controls: sets of random heads beside every forced or blocked one. permutations: of
    the null.

    Stages, as in the paper: heads -> final residual; -> queries of those at the last token; -> values that those read at the
    second mention or the asked object; -> keys of those one token after the first mention. Values that the first stage's heads
    read are added: models may carry the answer there.
    """
    if n < 2 or controls < 1 or least < 1 or not 0 < share <= 1:
        raise InputError(
            f"n={n}, controls={controls}, least={least}, share={share}; 2, 1, 1 at least and a share in (0, 1]"
        )
    model = run.model
    how: dict[str, Any] = {"language": language, "templates": templates, "shots": shots, "n_objects": n_objects}
    sides = both_tasks(model, n, seed=run.seed, **how)
    total = model.layouts["head"].total if "head" in model.layouts else 0
    k = min(total, max(math.ceil(round(share * total, 9)), least))
    plain: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for side in sides:
        plain[side.name] = run.stage(f"answers-{side.name}", partial(_plain, run, side))
    for side in sides:
        found[side.name] = run.stage(f"circuit-{side.name}", partial(_circuit, run, side, k, freeze_mlps))
    first, second = (found[side.name] for side in sides)
    shared = run.stage("overlap", lambda: _overlaps(run, first, second, k / total, shares, permutations))
    # the paper repairs the task that the model is worse at with heads of the one that it is better at
    weak, strong = sorted((sides[1], sides[0]), key=lambda side: float(plain[side.name]["among"]))
    repair = run.stage("repair", lambda: _repair(run, weak, found[weak.name], found[strong.name], k, controls))
    blocked = run.stage("gatherers", lambda: _blocked(run, sides[1], second, k, controls))
    return view.report(
        view.CircuitReuse(
            sides=[_described(side) for side in sides], plain=plain, found=found, shared=shared, repair=repair,
            blocked=blocked, k=k, total=total, share=share, model=dict(model.identity),
        )
    )  # fmt: skip


def _described(side: Side) -> dict[str, Any]:
    item = side.task[0]
    return {
        "name": side.name, "n": len(side.task), "clean": item.clean, "corrupt": item.corrupt, "answer": item.answer,
        "wrong": item.wrong, "frames": side.frames, "chance": side.chance,
    }  # fmt: skip


def _plain(run: Run, side: Side) -> dict[str, float]:
    pairs = side.task.encode(run.model.tokenizer, run.model.device)
    candidates = candidate_tokens(side.task, pairs, side.candidates, run.model.tokenizer)
    clean, corrupt = (pair_answers(run.model, pairs, candidates, side=which) for which in ("clean", "corrupt"))
    return {
        "among": float(clean.among.mean()), "first": float(clean.first.mean()),
        "difference": float(clean.difference.mean()), "corrupt": float(corrupt.difference.mean()),
        "corrupt_first": float(corrupt.first.mean()),
    }  # fmt: skip


def _circuit(run: Run, side: Side, k: int, freeze_mlps: bool) -> dict[str, Any]:
    """The stages of one task: stage -> receivers, component, position and the scores of all heads."""
    stages: dict[str, Any] = {}

    def stage(name: str, task: Any, receivers: Any, component: str, position: str) -> list[str]:
        if not receivers:
            return []
        run.say(f"  {side.name}: {name}")
        made = path_patch(
            run.model, task, receivers, component=component, position=position, freeze_mlps=freeze_mlps, quiet=run.quiet
        )
        stages[name] = _kept(made, run.seed)
        return [row["part"] for row in stages[name]["rows"][:k] if row["score"]]

    movers = stage("final", side.task, "final", "", "END")
    steering = stage("queries", side.task, movers, "q", "END")
    stage("mover values", side.task, movers, "v", side.values)
    induction = stage("values", side.task, steering, "v", side.values)
    stage("keys", side.earlier, induction, "k", side.keys)
    return stages


def _kept(made: Patching, seed: int) -> dict[str, Any]:
    rows = [] if not made.flips else made.rows(seed=seed)
    settings = {key: made.settings[key] for key in ("receivers", "component")}
    return {**settings, "position": made.positions[0], "rows": rows, "gap": made.gap}


def _overlaps(
    run: Run, first: dict[str, Any], second: dict[str, Any], share: float, shares: Sequence[float], permutations: int
) -> dict[str, Any]:
    """What the two circuits share: stage by stage, over all stages, at several shares, and of clear heads only."""
    used = [name for name in first if name in second and all(_scored(side[name]) for side in (first, second))]
    how: dict[str, Any] = {"model": run.model, "permutations": permutations, "seed": run.seed}
    sides = [
        {name: {row["part"]: row["score"] for row in side[name]["rows"]} for name in used} for side in (first, second)
    ]
    one, other = ({name: scores for name, scores in side.items() if name != "mover values"} for side in sides)
    rows = []
    for name in used:
        [row] = overlap_sweep({name: sides[0][name]}, {name: sides[1][name]}, [share], **how)
        rows.append({"of": name, **row})
    sweep = overlap_sweep(one, other, sorted({share, *shares}), **how) if one else []
    clear = [
        Circuit.of_heads(
            {name: [row["part"] for row in side[name]["rows"] if _clear(row)] for name in used}, model=run.model
        )
        for side in (first, second)
    ]
    found = overlap(*clear, permutations=permutations, seed=run.seed)
    own = {
        "of": "clear heads of all stages", "n_first": found.n_first, "n_second": found.n_second,
        "shared": len(found.shared), "share": found.share, "jaccard": found.jaccard, "weighted": found.weighted,
        "expected": found.expected, "p": found.p, "p_permuted": found.p_permuted,
    }  # fmt: skip
    return {
        "stages": rows, "sweep": [{"of": "all stages of the paper", **row} for row in sweep], "clear": own,
        "heads": list(found.shared), "left_out": [name for name in first if name not in used],
    }  # fmt: skip


def _scored(stage: dict[str, Any]) -> bool:
    """Whether any head does anything in a stage; ranks of zeros would overlap by order alone."""
    return any(row["score"] for row in stage["rows"])


def _clear(row: dict[str, Any]) -> bool:
    low, high = row["low"], row["high"]
    return low is not None and (low > 0 or high < 0) and abs(row["score"]) >= FLOOR


def _repair(run: Run, weak: Side, own: dict[str, Any], other: dict[str, Any], k: int, controls: int) -> dict[str, Any]:
    """The worse task with attention of single heads forced onto the wrong candidates, beside random heads."""
    model = run.model
    pairs = weak.task.encode(model.tokenizer, model.device)
    candidates = candidate_tokens(weak.task, pairs, weak.candidates, model.tokenizer)
    sets = _to_force(own, other, k)
    theirs = next((name for name in sets if name != OWN), None)  # the largest of the other task comes first
    shown = [name for name in (theirs, OWN) if name in sets]
    taken = sets[shown[0]] if shown else []
    used = {head for heads in sets.values() for head in heads}  # heads that are forced have no attention of their own
    movers = [row["part"] for row in own["final"]["rows"] if row["score"] > 0 and row["part"] not in used]
    places = {"wrong": weak.wrong(pairs), "right": weak.right(pairs)}

    def forced(heads: list[str], where: str) -> ForcedAttention:
        return force_attention(model, heads, pairs.end, places[where], length=pairs.clean.shape[1])

    before = _state(run, pairs, candidates, places, movers[:k], None)
    after: dict[str, Any] = before
    rows: list[dict[str, Any]] = []
    for name, where in [*((name, "wrong") for name in sets), *((name, "right") for name in shown)]:
        state = _state(run, pairs, candidates, places, movers[:k], forced(sets[name], where))
        rows.append({"forced": name, "to": where, "heads": sets[name], **_change(before, state, run.seed)})
        after = state if shown and (name, where) == (shown[0], "wrong") else after
    random: dict[str, list[dict[str, float]]] = {name: [] for name in shown}
    for name in shown:
        for number in range(controls):
            with forced(sets[name], "wrong").matched_random(run.seed + number).applied(model):
                random[name].append(_summary(pair_answers(model, pairs, candidates)))
    return {
        "task": weak.name, "plain": _summary(before["answers"]), "attention": before["attention"], "movers": movers[:k],
        "rows": rows, "random": random, "shown": shown,
        "rank": _ranked(run, own, taken, movers[:k], before, after),
    }  # fmt: skip


def _to_force(own: dict[str, Any], other: dict[str, Any], k: int) -> dict[str, list[str]]:
    """Sets of heads to force, largest first: what steers the final heads' queries in the other task and its strongest
    negative mover (the paper's recipe), and what steers them in the repaired task itself. Clear heads only: in a stage where
    no head does anything, ranks are noise.
    """
    steering, mine = (
        [row["part"] for row in side.get("queries", NONE)["rows"][:k] if _clear(row)] for side in (other, own)
    )
    worst = sorted(other["final"]["rows"], key=lambda row: float(row["score"]))[:1]
    negative = [row["part"] for row in worst if row["score"] < 0 and _clear(row)]
    sets = {"steering heads": steering, "negative mover": negative, OWN: mine}
    if steering and negative:
        sets = {"both": list(dict.fromkeys(steering + negative)), **sets}
    return {name: heads for name, heads in sets.items() if heads}


def _ranked(
    run: Run, own: dict[str, Any], taken: list[str], movers: list[str], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """Whether heads add the more to the answer, the more important they were; what the movers add, before and after."""
    layers = enumerate(run.model.anatomy.heads)
    names = [f"head.{layer}.{head}" for layer, heads in layers for head in range(heads)]
    importance = {row["part"]: abs(row["score"]) for row in own["final"]["rows"]}
    moved = np.abs(after["attribution"]) - np.abs(before["attribution"])
    left = [number for number, name in enumerate(names) if name not in taken]
    found = spearmanr(moved[left], [importance.get(names[number], 0.0) for number in left]) if taken else None
    at = [names.index(name) for name in movers]
    return {
        "spearman": None if found is None else float(found.statistic), "p": None if found is None else float(found.pvalue),
        "before": float(np.mean(before["attribution"][at])) if at else None,
        "after": float(np.mean(after["attribution"][at])) if at and taken else None,
    }  # fmt: skip


def _state(
    run: Run, pairs: Pairs, candidates: Any, places: dict[str, Any], movers: list[str], item: ForcedAttention | None
) -> dict[str, Any]:
    """Answers, the movers' attention to right and wrong candidates, and what every head adds, under a change or none."""
    with item.applied(run.model) if item is not None else nullcontext():
        answers = pair_answers(run.model, pairs, candidates)
        attribution = head_attribution(run.model, pairs).mean(1).numpy()
        attention: dict[str, float | None] = {"right": None, "wrong": None}
        if movers:
            units = UnitSet.of(run.model, movers)
            rows = attention_rows(run.model, units, pairs.clean, pairs.mask, pairs.end)  # (heads, n, seq)
            for name, where in places.items():
                at = where.cpu().clamp(min=0)[None].expand(len(rows), -1, -1)
                attention[name] = float((rows.gather(2, at) * (where.cpu() >= 0)[None]).sum(2).mean())
    return {"answers": answers, "attribution": attribution, "attention": attention}


def _summary(answers: PairAnswers) -> dict[str, float]:
    return {
        "among": float(answers.among.mean()), "first": float(answers.first.mean()),
        "difference": float(answers.difference.mean()),
    }  # fmt: skip


def _change(before: dict[str, Any], after: dict[str, Any], seed: int) -> dict[str, Any]:
    """Answers after a change, gained and lost ones, and the gain's paired bootstrap interval."""
    return {**_gain(before["answers"], after["answers"], seed), "attention": after["attention"]}


def _gain(plain: PairAnswers, changed: PairAnswers, seed: int) -> dict[str, Any]:
    gain = changed.among.astype(float) - plain.among.astype(float)
    low, high = percentile_interval(resampled_sums(gain[:, None], resamples=1000, seed=seed)[:, 0] / len(gain))
    return {
        **_summary(changed), "gain": float(gain.mean()), "low": low, "high": high, "repaired": int((gain > 0).sum()),
        "broken": int((gain < 0).sum()), "moved": float((changed.difference - plain.difference).mean()),
    }  # fmt: skip


def _blocked(run: Run, side: Side, stages: dict[str, Any], k: int, controls: int) -> dict[str, Any]:
    """Coloured objects while heads can't look from the last token at the question, beside as many random heads."""
    model = run.model
    pairs = side.task.encode(model.tokenizer, model.device)
    candidates = candidate_tokens(side.task, pairs, side.candidates, run.model.tokenizer)
    hidden = side.question(pairs)
    if not bool(hidden.any(1).all()):
        return {"rows": [], "plain": None}
    plain = pair_answers(model, pairs, candidates)
    rows = []
    for name in ("queries", "final"):
        heads = [row["part"] for row in stages.get(name, NONE)["rows"][:k] if _clear(row)]
        if not heads:
            continue
        units = UnitSet.of(model, heads)
        made = []
        for chosen in (units, *(units.matched_random(run.seed + number) for number in range(controls))):
            item = block_attention(model, chosen, pairs.clean, pairs.mask, pairs.end, hidden)
            with item.applied(model):
                made.append(_gain(plain, pair_answers(model, pairs, candidates), run.seed))
        own, *random = made
        rows.append(
            {
                "stage": name, "heads": heads, **own, "random": [row["among"] for row in random],
                "random_moved": [row["moved"] for row in random],
            }
        )  # fmt: skip
    return {"rows": rows, "plain": _summary(plain)}
