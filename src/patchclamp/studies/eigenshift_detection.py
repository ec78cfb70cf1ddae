"""Which units and layers detect a concept, and which output directions are about to produce it, end to end.

Method: the detection part of Shaik, Mazhar, Srivastava, Akhtar 2025 (arXiv 2509.16660) with the AUROC experts of Suau et
al. 2024; all of it lives in the floors below, this file only puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus
from patchclamp.data.batches import Selection
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find.experts import experts
from patchclamp.find.layer_experts import layer_experts
from patchclamp.find.output_directions import last_states, output_directions, output_matrix, promoted
from patchclamp.find.separation import separate
from patchclamp.measure import effect
from patchclamp.record import record
from patchclamp.studies import eigenshift_detection_view as view
from patchclamp.studies.study import Report, Run, studies

NAME = "eigenshift-detection"
SITES = ("gate", "up", "mlp_out")  # outputs of every linear map of a gated MLP, where AurA puts its multipliers
PLAIN_SITES = ("pre", "mlp_out")
CONCEPT, KEY = "rude", "tone"  # of the taught replies
DIRECTIONS = 5


@studies.add(NAME)
def eigenshift_detection(
    run: Run,
    *,
    text: Corpus | None = None,
    positive: str | None = None,
    prompts: Task | None = None,
    held_out: Task | None = None,
    label: str = KEY,
    languages: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    pool: str = "max",
    share: float = 0.01,
    documents: int = 150,
    controls: int = 5,
) -> Report:
    """Detection against generation: units and layers that detect a concept, directions about to write it (arXiv 2509.16660).

    text: labelled text, one label of which is the concept; by default the rude and polite replies that the demo model was
    taught (only the replies count, in the scenes they belong to). positive: the label that is the concept; by default
    rude, or the first label of text. prompts: items whose label (label=) says what the model is about to write; by
    default the taught scenes, without text. held_out: further such prompts, to test directions and units on. label: key of
    that label. languages: of the taught scenes, by default all six. sites: whose units are ranked; by default gate, up and
    mlp_out, the linear maps of a gated MLP. pool: a unit's response to a text is its max, mean or last activation. share:
    of all units that are clamped to 0, those of highest AUROC. documents: at most so many of each label. controls:
    matched-random sets.

    The paper calls a layer an expert if two clusters of its states match the label at all, and averages single neurons; both
    are reported, each beside what shuffled labels give. Editing the output matrix is not part of this study.
    """
    taught = text is None
    concept = positive or (CONCEPT if text is None else text.labels[0])
    read, select = _text(text, languages, documents)
    if concept not in read.labels:
        raise InputError(f"positive={concept!r}; the text has the labels {', '.join(read.labels)}")
    have = run.model.layouts
    chosen = tuple(sites) if sites else tuple(s for s in (SITES if "gate" in have else PLAIN_SITES) if s in have)
    recording = record(
        run.model, read, sites=dict.fromkeys([*chosen, "resid"]), statistics=("pooled",), select=select,
        out=run.folder("text.recording"), resume=True, quiet=run.quiet,
    )  # fmt: skip
    how: dict[str, Any] = {"positive": concept, "pool": pool, "sites": chosen, "seed": run.seed}
    found = run.finding("experts", partial(experts, recording, **how))
    layers = run.stage("layers", lambda: layer_experts(recording, positive=concept, seed=run.seed))
    asked = prompts if prompts is not None else _scenes(languages, "train") if taught else None
    tested = held_out if held_out is not None else _scenes(languages, "heldout") if taught and prompts is None else None
    directions, effects = None, None
    if asked is not None:
        directions = run.stage("directions", lambda: _directions(run, asked, tested, label, concept))
        effects = run.effects(
            "effects",
            lambda: effect(
                run.model,
                {"detecting": found.select(share=share)[concept]},
                on=(tested or asked).by(label),
                how="loss",
                controls=controls,
                seed=run.seed,
                quiet=run.quiet,
            ),
        )
    return view.report(
        view.EigenshiftDetection(
            concept=concept,
            finding=found,
            layers=layers,
            directions=directions,
            effects=effects,
            share=share,
            pool=pool,
            taught=taught,
            model=dict(run.model.identity),
        )
    )


def _text(text: Corpus | None, languages: Sequence[str] | None, documents: int) -> tuple[Corpus, Selection]:
    """The labelled text, and which of its tokens count."""
    if text is not None:
        return text.limited(max_documents=documents), Selection()
    scenes = generated("manners", languages=languages)
    return scenes.corpus(by=KEY, prompts_only=False).limited(max_documents=documents), Selection(inside="response")


def _scenes(languages: Sequence[str] | None, split: str) -> Task:
    """Each scene once: what matters is the state before the reply, and the tone that was announced."""
    return generated("manners", languages=languages, split=split)


def _directions(run: Run, asked: Task, tested: Task | None, label: str, concept: str) -> dict[str, Any]:
    """Output directions by |delta|, what they promote, and how they tell prompts that were held out."""
    states, truth = last_states(run.model, asked), _truth(asked, label, concept)
    found = output_directions(output_matrix(run.model), states[truth], states[~truth], seed=run.seed)
    best = found.top(DIRECTIONS)
    areas: list[float | None] = [None] * len(best)
    if tested is not None:
        active = last_states(run.model, tested) @ found.vectors[best].T
        areas = np.asarray(separate(active, _truth(tested, label, concept), what=("auroc",)).auroc)[0].tolist()
    signed = set(found.top(DIRECTIONS, signed=True).tolist())
    rows = []
    for at, area in zip(best.tolist(), areas, strict=True):
        words = promoted(run.model, found, at)
        side = ("up", "down") if found.delta[at] >= 0 else ("down", "up")
        rows.append(
            {
                "direction": at, "sigma": float(found.sigma[at]), "delta": float(found.delta[at]), "p": float(found.p[at]),
                "auroc": None if area is None else max(area, 1 - area), "signed": at in signed,
                "toward": " ".join(repr(word["token"]) for word in words[side[0]]),
                "away": " ".join(repr(word["token"]) for word in words[side[1]]),
            }
        )  # fmt: skip
    return {
        "rows": rows, "n_phi": found.n_phi, "n_psi": found.n_psi, "d": len(found.delta),
        "significant": int((found.p < 0.05).sum()), "held_out": None if tested is None else len(tested),
        "unreliable": int((~found.reliable).sum()),
    }  # fmt: skip


def _truth(task: Task, label: str, concept: str) -> Any:
    values = task.values(label)
    if concept not in values or len(values) < 2:
        raise InputError(f"prompts need {label}={concept} and another {label}; they have {', '.join(values)}")
    return np.array([item.labels.get(label) == concept for item in task])
