"""Regions of key space that a skill's queries fill: one box per layer, held-out coverage curves, the layer that separates best.

Li, Sun & Weng 2025 (arXiv 2503.21730), Key Space Detection. The paper uses the last layer's vectors that enter the down
projection and tunes alpha by hand; here every layer gets a region, alpha and layer are chosen on documents that the regions
were not fitted to, and coverage is reported on documents that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.skill import pairs
from patchclamp.intervene.key_coverage import ALPHAS, Coverage, fitted_regions
from patchclamp.intervene.key_space import Region
from patchclamp.measure.holm import holm


@dataclass(frozen=True)
class LayerCoverage(Coverage):
    """How well one layer's region tells the skill's held-out queries from others. p_holm: p corrected over the layers."""

    p_holm: float


@dataclass(frozen=True, eq=False)
class Regions:
    """A skill's region in every layer and how far it holds. best: the layer of the largest separation in validation.

    counts: documents in each part. `regions[layer]` is what an abstaining model would use, with `coverage(layer).alpha`.
    """

    label: str
    retain: tuple[str, ...]
    site: str
    regions: Mapping[int, Region]
    layers: tuple[LayerCoverage, ...]
    best: int
    counts: Mapping[str, int]
    provenance: Mapping[str, Any]

    def coverage(self, layer: int) -> LayerCoverage:
        """The entry of a layer; InputError for one without a region."""
        for entry in self.layers:
            if entry.layer == layer:
                return entry
        raise InputError(f"no region in layer {layer}; there are some in {', '.join(map(str, self.regions))}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: everything but the boxes themselves."""
        return {
            "label": self.label, "retain": list(self.retain), "site": self.site, "best": self.best,
            "counts": dict(self.counts), "layers": [entry.to_dict() for entry in self.layers],
            "provenance": dict(self.provenance),
        }  # fmt: skip

    def __iter__(self) -> Iterator[LayerCoverage]:
        return iter(self.layers)

    def __repr__(self) -> str:
        found = self.coverage(self.best)
        return (
            f"Regions({self.label} at {self.site}: best layer {self.best}, alpha {found.alpha:g}, "
            f"held out inside: {found.forget:.0%} of {self.label}, {found.retain:.0%} of the rest)"
        )


def skill_regions(
    recording: RecordingLike,
    *,
    forget: str,
    retain: Sequence[str] | None = None,
    site: str = "mlp",
    fit: str = "last",
    held_out: RecordingLike | None = None,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
) -> Regions:
    """Fit a region per layer to a skill's key vectors and measure how many held-out queries of it, and of others, lie inside.

    forget: the skill's label. retain: other labels (None: all). site: mlp, what enters the down projection. fit: "last" fits to
    the vector at each document's last token (the statistic `pooled`), "all" to every token (the statistic `moments`: its minimum
    and maximum give k exactly). held_out: a recording of other documents with `pooled`; None splits the documents of `recording`
    at random: half of the skill's to fit, a quarter to choose layer and alpha (with half of the others'), the rest to report.
    fit="all" needs held_out, because moments hold all documents. With held_out its documents are split in halves to choose and to
    report. alphas: sizes of the box to try, of the one that holds every fitted vector.

    InputError for unknown labels, statistics that were not recorded, and fewer than 2 documents in any part.
    """
    _, retained = pairs(recording.labels, forget, retain)
    others = tuple(label for label, kept in zip(recording.labels, retained[0], strict=True) if kept)
    found = fitted_regions(
        recording, forget=forget, others=others, site=site, fit=fit, held_out=held_out, alphas=alphas, seed=seed
    )
    corrected = holm([entry.p for entry in found.layers])
    layers = tuple(
        LayerCoverage(**vars(entry), p_holm=float(p if p is not None else 1.0))
        for entry, p in zip(found.layers, corrected, strict=True)
    )
    arguments = {
        "forget": forget, "retain": None if retain is None else list(retain), "site": site, "fit": fit,
        "alphas": [float(alpha) for alpha in alphas], "seed": seed,
    }  # fmt: skip
    inputs = {
        name: {"fingerprint": given.fingerprint, "path": None if given.folder is None else str(given.folder.absolute())}
        for name, given in (("recording", recording), ("held_out", held_out))
        if given is not None
    }
    made = provenance("find.skill_regions", arguments=arguments, inputs=inputs, seed=seed)
    return Regions(forget, others, site, found.regions, layers, found.best, found.counts, made)
