"""EigenShift end to end: damp output directions, beside AurA, Damp, Det-0 and layer experts, concept against fluency.

Method: Shaik, Mazhar, Srivastava, Akhtar 2025 (arXiv 2509.16660); baselines: Suau et al. 2024 (AurA). All of it lives in
the floors below; this file only puts the parts in order. What detects a concept is the study eigenshift-detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import corpus
from patchclamp.data.demo import demo_text
from patchclamp.data.documents import Document
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find.concept_states import ConceptStates, concept_states
from patchclamp.find.experts import experts
from patchclamp.find.finding import Finding
from patchclamp.find.layer_directions import LayerDirections, layer_directions
from patchclamp.find.layer_experts import layer_experts
from patchclamp.find.output_directions import OutputDirections, output_directions, output_matrix, promoted
from patchclamp.find.separation import auroc
from patchclamp.intervene.damping import SITES, damping
from patchclamp.intervene.eigenshift import how_many
from patchclamp.intervene.kinds import Interventions
from patchclamp.measure import answer_loss
from patchclamp.measure.concepts import Words
from patchclamp.measure.tradeoff import Tradeoff, tradeoff
from patchclamp.models.units import UnitSet
from patchclamp.record import Recording, record
from patchclamp.studies import eigenshift_view as view
from patchclamp.studies.eigenshift_words import INSULTS
from patchclamp.studies.study import Report, Run, studies

NAME = "eigenshift"
KEY, CONCEPT = "tone", "rude"  # of the taught scenes
FLAGGED, OTHER = "flagged", "other"
LISTED = 5  # directions whose tokens are shown


@studies.add(NAME)
def eigenshift(
    run: Run,
    *,
    prompts: Task | None = None,
    held_out: Task | None = None,
    label: str = KEY,
    positive: str | None = None,
    words: Sequence[str] = (),
    fluency: Corpus | None = None,
    languages: Sequence[str] | None = None,
    shares: Sequence[float] = (0.05, 0.1, 0.25),
    alphas: Sequence[float] = (0.9, 0.5, -0.5),
    experts_shares: Sequence[float] = (0.005, 0.02, 0.1),
    layers: int = 3,
    samples: int = 10,
    new_tokens: int = 20,
    documents: int = 10,
    seeds: int = 2,
) -> Report:
    """EigenShift: damp the output directions of a concept; AurA, Damp, Det-0, layers and controls beside it (arXiv 2509.16660).

    prompts: what is continued to find states and units with; by default the taught scenes of rude and polite speakers.
    held_out: prompts to measure on; by default such scenes with other requests. label: key of the items' label that says
    which prompts call for the concept. positive: its value; only these are measured, the others show what else suffers.
    words: that make a continuation count as showing the concept; by default insults in six languages. fluency: text whose
    perplexity says what fluency is left; by default the demo's text. languages: of the taught scenes and that text. shares:
    of all directions that are damped, the paper's 1 - percentile. alphas: further damping of the largest share, beside 0.
    experts_shares: of all units that Damp and Det-0 hit, beside all with AUROC above 0.5. layers: how many of the layer
    baselines. samples: per prompt (paper: 25). new_tokens: of a continuation. documents: of every label of the fluency text.
    seeds: random controls of every share.

    Texts are judged by words so that the study runs without a classifier; `measure.tradeoff` takes any. Units are ranked on
    the model's own continuations, flagged against not flagged.
    """
    taught = prompts is None
    if taught and not words:
        words = INSULTS
    if not words:
        raise InputError("give words=, what makes a continuation of your prompts count as showing the concept")
    if not shares or seeds < 1 or layers < 1:
        raise InputError(
            f"shares={list(shares)}, seeds={seeds}, layers={layers}; at least one of each is needed to compare"
        )
    asked, tested, calm = _prompts(prompts, held_out, label, positive, languages, run.seed)
    text = demo_text(languages, split="measure") if fluency is None else fluency
    parts = _Parts(run, asked, Words(words), new_tokens)
    sweep: dict[str, Any] = {
        "shares": shares, "alphas": alphas, "experts_shares": experts_shares, "layers": layers, "seeds": seeds,
    }  # fmt: skip
    curve = Tradeoff.from_dict(
        run.stage(
            "tradeoff",
            lambda: tradeoff(
                run.model, parts.runs(**sweep), tested, parts.judge, text.limited(max_documents=documents),
                samples=samples, max_new_tokens=new_tokens, stop=("\n",), seed=run.seed, quiet=run.quiet,
            ).to_dict(),
        )
    )  # fmt: skip
    best = {family: curve.best(family)["name"] for family in curve.families}
    return view.report(
        view.Eigenshift(
            curve=curve,
            best=best,
            states=run.stage("states", parts.counted),
            directions=run.stage("directions", parts.directions_table),
            detection=run.stage("detection", parts.detection_table),
            kept=run.stage("kept", lambda: parts.kept(tested, calm, best, sweep)),
            losses=None
            if calm is None
            else run.stage("losses", lambda: _losses(run, parts, tested, calm, best, sweep)),
            shares=tuple(how_many(run.model.anatomy.d_model, None, share) for share in shares),
            taught=taught,
            model=dict(run.model.identity),
        )
    )


class _Parts:
    """What the interventions are made from; each part is worked out when it is first needed."""

    def __init__(self, run: Run, asked: Task, judge: Words, new_tokens: int) -> None:
        self.run, self.model, self.asked, self.judge, self.new_tokens = run, run.model, asked, judge, new_tokens

    @cached_property
    def states(self) -> ConceptStates:
        """What the model writes on its own, judged, with the states before."""
        self.run.say("states ...")
        return concept_states(
            self.model, self.asked, self.judge, max_new_tokens=self.new_tokens, stop=("\n",), seed=self.run.seed
        )

    @cached_property
    def directions(self) -> OutputDirections:
        return output_directions(output_matrix(self.model), self.states.phi, self.states.psi, seed=self.run.seed)

    @cached_property
    def recording(self) -> Recording:
        return self.recorded(self.states.texts, self.sites)

    @property
    def sites(self) -> tuple[str, ...]:
        """Outputs of all linear maps of an MLP; where they can't be seen, what enters the down projection."""
        have = self.model.layouts
        return tuple(site for site in SITES if site in have) or ("mlp",)

    @cached_property
    def finding(self) -> Finding:
        return experts(self.recording, positive=FLAGGED, sites=self.sites, fdr=1.0, shuffles=5, seed=self.run.seed)

    @cached_property
    def units(self) -> UnitSet:
        """All units above 0.5, with their AUROC."""
        return self.finding.sets[FLAGGED]

    @cached_property
    def layers(self) -> dict[str, LayerDirections]:
        """The direction of every layer by its two clusters, and by the labels."""
        how: dict[str, Any] = {"positive": FLAGGED, "seed": self.run.seed}
        return {by: layer_directions(self.recording, by=by, **how) for by in ("clusters", "labels")}

    def recorded(self, texts: Sequence[dict[str, Any]], sites: Sequence[str] = ()) -> Recording:
        """Pooled values over continuations, flagged and other."""
        return record(
            self.model, _texts(texts), sites=(*sites, "resid"), statistics=("pooled",),
            select=Selection(inside="response"), quiet=True,
        )  # fmt: skip

    def runs(
        self,
        *,
        shares: Sequence[float],
        alphas: Sequence[float],
        experts_shares: Sequence[float],
        layers: int,
        seeds: int,
    ) -> dict[str, Interventions]:
        """All interventions and controls by name, FAMILY/SETTING."""
        ks = [how_many(self.model.anatomy.d_model, None, share) for share in sorted(shares)]
        found: dict[str, Any] = dict(self.directions.sweep(self.model, ks=ks, controls=seeds, seed=self.run.seed))
        found |= self.directions.sweep(self.model, ks=ks[-1:], alphas=sorted(alphas), controls=0)
        found |= {f"{view.WEIGHED}/{k}": self.directions.shift(self.model, k=k, rank="logit") for k in ks}
        found[f"{view.AURA}/all"] = damping(self.units)
        found[f"{view.DAMP}/all"] = damping(self.units, method="damp")
        found[f"{view.DET0}/all"] = damping(self.units, method="det0")
        for share in sorted(experts_shares) if len(self.units) else ():
            n = min(max(1, round(share * self.finding.total)), len(self.units))
            found[f"{view.DAMP}/{n}"] = damping(self.units, method="damp", n_experts=n)
            found[f"{view.DET0}/{n}"] = zeroed = damping(self.units, method="det0", n_experts=n)
            found[f"{view.UNITS}/{n}"] = zeroed.matched_random(self.run.seed)
        top = min(layers, *(len(one.layers) for one in self.layers.values()))
        found[f"{view.CLUSTERS}/{top}"] = self.layers["clusters"].damped(top=top)
        found[f"{view.LABELS}/{top} removed"] = self.layers["labels"].damped(top=top)
        found[f"{view.LABELS}/{top} as without"] = self.layers["labels"].moved(top=top)
        return {name: Interventions.of(one) for name, one in found.items() if Interventions.of(one).n_units}

    def counted(self) -> dict[str, Any]:
        """How many states, at which steps."""
        steps = np.bincount(self.states.phi_steps).tolist()
        return {
            "phi": len(self.states.phi), "psi": len(self.states.psi), "flagged": self.states.flagged,
            "texts": len(self.states.texts), "steps": {str(at): n for at, n in enumerate(steps) if n},
        }  # fmt: skip

    def directions_table(self) -> list[dict[str, Any]]:
        """The first directions, what they write, and how far they tell the states apart."""
        found, rows = self.directions, []
        truth = np.arange(len(self.states.phi) + len(self.states.psi)) < len(self.states.phi)
        for at in found.top(min(LISTED, len(found.delta))).tolist():
            words = promoted(self.model, found, at)
            sides = ("up", "down") if found.delta[at] >= 0 else ("down", "up")
            active = np.concatenate([self.states.phi, self.states.psi]) @ found.vectors[at]
            area = float(auroc(active[:, None], truth)[0])
            row = {"direction": at, "sigma": found.sigma[at], "delta": found.delta[at], "p": found.p[at]}
            row |= {"auroc": max(area, 1 - area)}
            row |= {
                name: " ".join(repr(word["token"]) for word in words[side])
                for name, side in zip(("toward", "away"), sides, strict=True)
            }
            rows.append(row)
        return rows

    def detection_table(self) -> dict[str, Any]:
        """Units and layers as detectors of what the model wrote."""
        table = self.finding.details["units"][FLAGGED]
        rows = layer_experts(self.recording, positive=FLAGGED, seed=self.run.seed)
        return {
            "units": self.finding.total, "mean": table["mean_auroc"], "above": table["above_0.50"],
            "best": self.finding.details["listed"][FLAGGED][0]["auroc"], "layers": rows,
            "labels": dict(zip(map(str, self.layers["labels"].layers), self.layers["labels"].auroc, strict=True)),
        }  # fmt: skip

    def kept(
        self, tested: Task, calm: Task | None, best: dict[str, str], sweep: dict[str, Any]
    ) -> dict[str, dict[str, float]]:
        """Intervention -> layer -> AUROC of held-out continuations along the layer's direction: is the concept still told?"""
        items = (*tested.items, *(() if calm is None else calm.items))
        new = concept_states(
            self.model, [item.prompt for item in items], self.judge, max_new_tokens=self.new_tokens, stop=("\n",),
            samples=2, matched=False, seed=self.run.seed + 1,
        )  # fmt: skip
        runs, found = self.runs(**sweep), {}
        probe = self.layers["labels"]
        for name in ("", *best.values()):
            with runs[name].applied(self.model) if name else Interventions().applied(self.model):
                areas = probe.tested(self.recorded(new.texts), positive=FLAGGED)
            found[name or "none"] = {str(layer): areas[layer] for layer in sorted(areas)}
        return found


def _prompts(
    prompts: Task | None,
    held_out: Task | None,
    label: str,
    positive: str | None,
    languages: Sequence[str] | None,
    seed: int,
) -> tuple[Task, Task, Task | None]:
    """Prompts to find with, prompts to measure on, and prompts that don't call for the concept (None: not known)."""
    if prompts is None:
        asked = generated("manners", languages=languages)
        every = held_out or generated("manners", split="heldout", languages=languages)
        positive = positive or CONCEPT
    elif held_out is None:
        order = np.random.default_rng([seed, 4]).permutation(len(prompts)).tolist()
        half = len(order) // 2
        if half < 1:
            raise InputError("one prompt given; at least two are needed, one to find and one to measure with")
        asked = Task.of([prompts[at] for at in order[:half]], name=prompts.name)
        every = Task.of([prompts[at] for at in order[half:]], name=prompts.name)
    else:
        asked, every = prompts, held_out
    if positive is None:
        return asked, every, None
    tested = every.where(**{label: positive})
    others = [item for item in every if item.labels.get(label) not in (None, positive)]
    return asked, tested, Task.of(others, name="others") if others else None


def _texts(texts: Sequence[dict[str, Any]]) -> Corpus:
    """Continuations as labelled documents in which the continuation counts."""
    groups: dict[str, list[Document]] = {FLAGGED: [], OTHER: []}
    for row in texts:
        start, whole = len(row["prompt"]), row["prompt"] + row["text"]
        if len(whole) > start:
            groups[FLAGGED if row["flagged"] else OTHER].append(Document(whole, {"response": ((start, len(whole)),)}))
    return corpus(groups)


def _losses(
    run: Run, parts: _Parts, tested: Task, calm: Task, best: dict[str, str], sweep: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Intervention -> answer loss of the taught replies with and without the concept, nats."""
    runs, found = parts.runs(**sweep), {}
    for name in ("", *best.values()):
        with runs[name].applied(run.model) if name else Interventions().applied(run.model):
            found[name or "none"] = {
                kind: answer_loss(run.model, task, quiet=True).value
                for kind, task in (("concept", tested), ("others", calm))
            }
    return found
