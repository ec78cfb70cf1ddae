"""What the circuit-reuse study shows: tables, charts, the verdict, and the paper's numbers beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from patchclamp.studies.study import Report, Table, judged

ALPHA = 0.05
OWN = "own steering heads"
ROUTE = 10.0  # percent of the flip that a stage's heads carry, together, for the stage to be a route
NAMES = {"ioi": "indirect objects", "colors": "coloured objects"}
STAGES = {
    "final": "heads -> final residual",
    "queries": "heads -> queries of those",
    "mover values": "heads -> values that the first stage's heads read",
    "values": "heads -> values that the second stage's heads read",
    "keys": "heads -> keys of those",
}
OVERLAP = {
    "of": "circuit", "share_of": "share of heads", "n_first": "indirect objects", "n_second": "coloured objects",
    "shared": "shared", "share": "shared / first", "jaccard": "Jaccard", "weighted": "weighted", "expected": "by chance",
    "p": "p (hypergeometric)", "p_permuted": "p (within layers)",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class CircuitReuse:
    """Everything that was measured, as the report needs it.

    sides: the two tasks. plain: task -> answers. found: task -> stage -> scores. shared: overlaps. repair, blocked: forced and
    blocked attention. k: heads taken at every stage, of `total`.
    """

    sides: list[dict[str, Any]]
    plain: dict[str, dict[str, float]]
    found: dict[str, dict[str, Any]]
    shared: dict[str, Any]
    repair: dict[str, Any]
    blocked: dict[str, Any]
    k: int
    total: int
    share: float
    model: dict[str, Any]


def report(made: CircuitReuse) -> Report:
    """Tables from the tasks to the repair, then the verdict."""
    stages = [_stage(made, side["name"]) for side in made.sides]
    everything = Table(
        "Every head at every stage",
        [
            {"task": NAMES[task], "stage": STAGES[stage], **row}
            for task, stages in made.found.items()
            for stage, kept in stages.items()
            for row in kept["rows"]
        ],
        {"task": "task", "stage": "stage", "part": "head", "score": "% of the flip", "low": "low", "high": "high",
         "effect": "logits", "n": "pairs"},
    )  # fmt: skip
    return Report(
        tables=[_tasks(made), *stages, *_overlaps(made), *_repair(made), *_blocked(made), everything],
        charts=[(table.title, chart) for table, side in zip(stages, made.sides, strict=True)
                if (chart := _chart(made, side["name"])) is not None],
        verdict=_verdict(made),
        beside=_beside(made),
        differs=_differs(made),
        folded=[everything.title],
    )  # fmt: skip


def _tasks(made: CircuitReuse) -> Table:
    rows = [
        {"task": NAMES[side["name"]], "prompt": side["clean"], "corrupted": side["corrupt"], "answer": side["answer"].strip(),
         "wrong": side["wrong"].strip(), "n": side["n"], "frames": side["frames"], **made.plain[side["name"]],
         "chance": side["chance"]}
        for side in made.sides
    ]  # fmt: skip
    heads = {"task": "task", "frames": "frames", "n": "pairs", "among": "right among candidates", "chance": "chance",
             "first": "first of all tokens", "difference": "logit difference", "corrupt": "corrupted",
             "prompt": "clean prompt", "corrupted": "corrupted prompt", "answer": "answer", "wrong": "wrong"}  # fmt: skip
    return Table("The two tasks", rows, heads)


def _stage(made: CircuitReuse, task: str) -> Table:
    rows = []
    for stage, kept in made.found[task].items():
        read = kept["receivers"]
        who = "final residual" if read == "final" else ", ".join(name.removeprefix("head.") for name in read)
        where = kept["position"] if read == "final" else f"{kept['component']} at {kept['position']}"
        top = kept["rows"][: made.k]
        rows.append(
            {
                "stage": STAGES[stage], "receivers": who, "read": where, "gap": kept["gap"],
                "heads": ", ".join(f"{row['part'].removeprefix('head.')} {row['score']:+.1f}%" for row in top if row["score"]),
                "together": sum(row["score"] for row in kept["rows"]) if kept["rows"] else None,
            }
        )  # fmt: skip
    heads = {"stage": "stage", "receivers": "receivers", "read": "at", "heads": f"top {made.k} by |score|",
             "together": "all heads, % of the flip", "gap": "flip (logits)"}  # fmt: skip
    note = (
        "Percent of the flip (LD_clean - LD_patched) / (LD_clean - LD_corrupt); heads are held, MLPs on the way are not "
        "unless asked for. Senders need not add up to 100. Keys are tested with prompts that differ before them."
    )
    return Table(f"The circuit of {NAMES[task]}", rows, heads, note=note)


def _overlaps(made: CircuitReuse) -> list[Table]:
    shown = [{**row, "share_of": row.get("fraction")} for row in (*made.shared["stages"], *made.shared["sweep"])]
    for row in shown:
        row["of"] = STAGES.get(row["of"], row["of"])
    shown.append({**made.shared["clear"], "share_of": None})
    left = made.shared["left_out"]
    note = (
        "Weighted: sum of the smaller normalised |scores|. Chance: two random sets of these sizes; within layers: heads moved to "
        "random places of their own layers. Clear: interval excludes 0, |score| at least 1%."
        + (f" Left out because no head does anything there: {', '.join(left)}." if left else "")
    )
    return [Table("What the circuits share", shown, OVERLAP, note=note)]


def _repair(made: CircuitReuse) -> list[Table]:
    repair = made.repair
    if not repair["rows"]:
        return []
    rows: list[dict[str, Any]] = [{"forced": "nothing", **repair["plain"], **_looks(repair["attention"])}]
    for row in repair["rows"]:
        rows.append({**row, "forced": f"{row['forced']} -> {row['to']} candidates", "heads": ", ".join(row["heads"]),
                     **_looks(row["attention"])})  # fmt: skip
    for name, drawn in repair["random"].items():
        rows.append(
            {"forced": f"random heads like {name} -> wrong candidates ({len(drawn)} sets)",
             **{key: float(np.mean([row[key] for row in drawn])) for key in ("among", "first", "difference")}}
        )  # fmt: skip
    heads = {"forced": "attention of", "among": "right among candidates", "gain": "change", "low": "low", "high": "high",
             "repaired": "repaired", "broken": "broken", "first": "first of all tokens", "difference": "logit difference",
             "wrong": "movers' attention to wrong", "right": "to right", "heads": "heads"}  # fmt: skip
    note = (
        f"Heads forced to look from the last token at the wrong candidates of {NAMES[repair['task']]}, the task that the model "
        'is worse at. Steering heads: clear ones of the stage "queries" of the other task, own ones of the repaired task; '
        f"negative mover: the other task's. Movers: {', '.join(repair['movers']) or 'none'}."
    )
    return [Table(f"Repairing {NAMES[repair['task']]} by forced attention", rows, heads, note=note)]


def _looks(attention: dict[str, float | None]) -> dict[str, float | None]:
    return {"wrong": attention["wrong"], "right": attention["right"]}


def _blocked(made: CircuitReuse) -> list[Table]:
    if not made.blocked["rows"]:
        return []
    rows = [{"stage": "nothing blocked", **made.blocked["plain"]}]
    for row in made.blocked["rows"]:
        rows.append({**row, "stage": STAGES[row["stage"]], "heads": ", ".join(row["heads"]),
                     "random": float(np.mean(row["random"])), "random_moved": float(np.mean(row["random_moved"]))})  # fmt: skip
    heads = {"stage": "heads of", "among": "right among candidates", "gain": "change", "low": "low", "high": "high",
             "random": "random heads", "moved": "logit difference moved", "random_moved": "random heads ",
             "first": "first of all tokens", "heads": "heads"}  # fmt: skip
    note = "Heads that can't look from the last token at the question; what is left of their attention is scaled up."
    return [Table("Coloured objects with the question hidden from single heads", rows, heads, note=note)]


def _verdict(made: CircuitReuse) -> list[str]:
    lines = []
    for side in made.sides:
        plain, task = made.plain[side["name"]], side["name"]
        lines.append(
            judged(f"the model solves {NAMES[task]} better than by guessing among the candidates",
                   plain["among"] > side["chance"] + 2 * (side["chance"] * (1 - side["chance"]) / side["n"]) ** 0.5,
                   f"{plain['among']:.0%}, chance {side['chance']:.0%}")
        )  # fmt: skip
        for stage in ("queries", "mover values"):
            kept = made.found[task].get(stage)
            total = None if kept is None else sum(row["score"] for row in kept["rows"])
            how = "queries" if stage == "queries" else "values that they read at the second mention or the asked object"
            lines.append(
                judged(f"{NAMES[task]}: heads carry at least {ROUTE:g}% of the flip to the final heads' {how}",
                       None if total is None else total >= ROUTE,
                       "no receivers" if total is None else f"{total:+.1f}% over all heads")
            )  # fmt: skip
    lines += _shared_verdict(made)
    lines += _repair_verdict(made)
    for row in made.blocked["rows"]:
        random, moved = np.array(row["random"]), np.array(row["random_moved"])
        lines.append(
            judged(f"hiding the question from heads of the stage \"{STAGES[row['stage']]}\" hurts coloured objects more than "
                   "from random heads", bool(row["among"] < random.min()),
                   f"{row['among']:.0%} right, random {random.mean():.0%}; logit difference {row['moved']:+.2f}, random "
                   f"{moved.mean():+.2f}")
        )  # fmt: skip
    return lines


def _shared_verdict(made: CircuitReuse) -> list[str]:
    lines = []
    chosen = next((row for row in made.shared["sweep"] if row["fraction"] >= made.k / made.total - 1e-9), None)
    for said, row in (("the circuits share more heads than chance", chosen),
                      ("so do their clear heads alone", made.shared["clear"])):  # fmt: skip
        ok = None if row is None or not row["n_first"] or not row["n_second"] else (
            row["p"] < ALPHA and (row["p_permuted"] is None or row["p_permuted"] < ALPHA)
        )  # fmt: skip
        numbers = "" if row is None else (
            f"{row['shared']} of {row['n_first']} and {row['n_second']}, {row['expected']:.1f} by chance, p {row['p']:.2g}; "
            f"within layers p {'-' if row['p_permuted'] is None else format(row['p_permuted'], '.2g')}"
        )  # fmt: skip
        lines.append(judged(said, ok, numbers))
    return lines


def _repair_verdict(made: CircuitReuse) -> list[str]:
    repair = made.repair
    task = NAMES[repair["task"]]
    lines = []
    if not [name for name in repair["shown"] if name != OWN]:
        lines.append(judged(f"heads of the other task repair {task}", None,
                            "no head clearly steers the other task's final heads by their queries, and none is a clear "
                            "negative mover"))  # fmt: skip
    for name in repair["shown"]:
        row, turned = (
            next(r for r in repair["rows"] if (r["forced"], r["to"]) == (name, to)) for to in ("wrong", "right")
        )
        random = [one["among"] for one in repair["random"][name]]
        pushed = [one["difference"] - repair["plain"]["difference"] for one in repair["random"][name]]
        whose = "its own steering heads" if name == OWN else f"the other task's {'heads' if name == 'both' else name}"
        fewer = repair["plain"]["among"] < 1
        lines += [
            judged(f"forcing {whose} onto the wrong candidates repairs {task}",
                   bool(row["low"] > 0 and row["among"] > max(random)) if fewer else None,
                   f"{', '.join(row['heads'])}: {repair['plain']['among']:.0%} -> {row['among']:.0%} right, {row['repaired']} "
                   f"repaired, {row['broken']} broken; random heads {np.mean(random):.0%}"
                   + ("" if fewer else "; nothing to repair")),
            judged(f"what {whose} look at is pushed down: onto wrong candidates the logit difference rises, "
                "onto the right one it falls",
                   bool(row["moved"] > max(pushed) and turned["moved"] < min(pushed)),
                   f"{row['moved']:+.2f} and {turned['moved']:+.2f} (then {turned['among']:.0%} right); random heads onto wrong "
                   f"ones {np.mean(pushed):+.2f}"),
        ]  # fmt: skip
    if not repair["shown"]:
        return lines
    first = next(r for r in repair["rows"] if (r["forced"], r["to"]) == (repair["shown"][0], "wrong"))
    plain, now, rank = repair["attention"], first["attention"], repair["rank"]
    known = plain["wrong"] is not None and now["wrong"] is not None
    return [
        *lines,
        judged("the movers then look less at wrong and more at right candidates",
               bool(now["wrong"] < plain["wrong"] and now["right"] > plain["right"]) if known else None,
               f"wrong {now['wrong'] - plain['wrong']:+.3f}, right {now['right'] - plain['right']:+.3f}" if known else ""),
        judged("heads add more to the answer, the more important they were",
               None if rank["spearman"] is None else bool(rank["spearman"] > 0 and rank["p"] < ALPHA),
               "" if rank["spearman"] is None else f"Spearman {rank['spearman']:+.2f}, p {rank['p']:.2g}"),
    ]  # fmt: skip


def _beside(made: CircuitReuse) -> Table:
    repair = made.repair
    rows = {row["forced"]: row for row in repair["rows"] if row["to"] == "wrong"}
    chosen = next((row for row in made.shared["sweep"] if row["fraction"] >= made.k / made.total - 1e-9), None)
    both = rows.get(repair["shown"][0], {}) if repair["shown"] else {}
    attention, now = repair["attention"], both.get("attention", {"wrong": None, "right": None})
    blocked = {row["stage"]: row for row in made.blocked["rows"]}
    rank = repair["rank"]

    def accuracy(name: str) -> float | None:
        return rows[name]["among"] if name in rows else None

    def gap(key: str) -> float | None:
        return None if now[key] is None or attention[key] is None else now[key] - attention[key]

    grown = None if not rank["before"] or rank["after"] is None else rank["after"] / rank["before"]
    mine: list[dict[str, Any]] = [
        {"what": "heads", "paper": 384, "ours": made.total},
        {"what": "shared heads", "paper": "25 of 32",
         "ours": "none" if chosen is None else f"{chosen['shared']} of {chosen['n_first']}"},
        {"what": "P of as many by chance", "paper": 8e-27, "ours": None if chosen is None else chosen["p"]},
        {"what": f"accuracy before the repair ({NAMES['colors']}; ours: {NAMES[repair['task']]})", "paper": 0.496,
         "ours": repair["plain"]["among"]},
        {"what": "inhibition heads forced", "paper": 0.815, "ours": accuracy("steering heads")},
        {"what": "negative mover forced", "paper": 0.781, "ours": accuracy("negative mover")},
        {"what": "all forced", "paper": 0.937, "ours": accuracy("both")},
        {"what": "the repaired task's own steering heads forced", "paper": None, "ours": accuracy(OWN)},
        {"what": "broken by the repair", "paper": 0, "ours": both.get("broken")},
        {"what": "movers' attention to wrong candidates", "paper": -0.087, "ours": gap("wrong")},
        {"what": "movers' attention to the right one", "paper": 0.027, "ours": gap("right")},
        {"what": "movers' logit attribution, times", "paper": 3, "ours": grown},
        {"what": "Spearman of the change with importance", "paper": 0.69, "ours": rank["spearman"]},
        {"what": "accuracy with the question hidden from gatherers", "paper": 0.35,
         "ours": blocked["queries"]["among"] if "queries" in blocked else None},
        {"what": "with it hidden from random heads", "paper": 0.499,
         "ours": float(np.mean(blocked["queries"]["random"])) if "queries" in blocked else None},
        {"what": "with it hidden from the first stage's heads", "paper": None,
         "ours": blocked["final"]["among"] if "final" in blocked else None},
    ]  # fmt: skip
    return Table("Beside the paper (GPT-2 Medium)", mine, {"what": "", "paper": "paper", "ours": "ours"})


def _differs(made: CircuitReuse) -> list[str]:
    return [
        f"model: {made.model['name']} with {made.total} heads; {made.k} of them are taken at every stage, in the paper 2% of 384",
        f"pairs: {made.sides[0]['n']} of each task, the paper has 1,000; {made.sides[0]['frames']} frames of indirect objects, "
        f"{made.sides[1]['frames']} frames of coloured objects",
        "heads are held at all positions, in the reference only at the patched one",
        "keys of the last stage are tested with prompts that differ before them (ABC names, swapped objects): the paper's "
        "corruption changes a later word, which can't change them",
        f"the repaired task is the one that the model is worse at, here {NAMES[made.repair['task']]}; its own steering heads are "
        "forced as well, and only heads whose interval excludes 0 with at least 1% of the flip",
        "null, intervals, random heads and the values that the first stage's heads read are ours",
    ]


def _chart(made: CircuitReuse, task: str) -> Any:
    """Heads by layers, one panel per stage: percent of the flip."""
    import altair as alt

    values = [
        {"stage": stage, "layer": int(row["part"].split(".")[1]), "head": int(row["part"].split(".")[2]),
         "score": row["score"], "name": row["part"]}
        for stage, kept in made.found[task].items()
        for row in kept["rows"]
        if row["score"] is not None
    ]  # fmt: skip
    if not values:
        return None
    most = max(abs(value["score"]) for value in values) or 1.0
    scale = alt.Scale(type="symlog", constant=1, domain=[-most, 0, most], range=["#1d4ed8", "#ffffff", "#c2410c"])
    return (
        alt.Chart(alt.Data(values=values), width={"step": 16}, height={"step": 14})
        .mark_rect(stroke="#eee")
        .encode(
            x=alt.X("head:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("layer:O", sort="descending"),
            color=alt.Color("score:Q", scale=scale, title="% of the flip"),
            facet=alt.Facet("stage:N", sort=list(STAGES), title=None, columns=5),
            tooltip=["name:N", "score:Q"],
        )
    )
