"""Which units answer to something, by their descriptions and by what they do: MILAN's audit (arXiv 2201.11114, section 6).

audit({"plain": descriptions, "blurred": others}, ["face", "eyes"])   # units per network that are described by such words
named_units(model, descriptions, ["text"])                              # these units as a set, to clamp or remove
sensitivity(model, with_words, without_words)                         # do they really answer to it? AUROC of every unit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from patchclamp.core.errors import MismatchError
from patchclamp.data.pictures import Pictures
from patchclamp.models.units import UnitSet
from patchclamp.read import description_uses
from patchclamp.read.descriptions import Descriptions
from patchclamp.read.vision_exemplars import parse_unit
from patchclamp.read.vision_model import VisionModel


@dataclass(frozen=True)
class Audit:
    """Units whose descriptions name something. found: network -> unit names. described: network -> units with a description."""

    keywords: tuple[str, ...]
    found: Mapping[str, tuple[str, ...]]
    described: Mapping[str, int]

    def rows(self) -> list[dict[str, Any]]:
        """One row per network: how many units, of how many, and in which layers (layer: number)."""
        rows = []
        for network, units in self.found.items():
            layers = [parse_unit(unit).layer for unit in units]
            per_layer = {layer: layers.count(layer) for layer in sorted(set(layers))}
            described = self.described[network]
            rows.append(
                {"network": network, "units": len(units), "described": described,
                 "share": len(units) / described if described else None, "layers": per_layer}
            )  # fmt: skip
        return rows


def audit(
    descriptions: Descriptions | Mapping[str, Descriptions],
    keywords: Sequence[str],
    *,
    whole_words: bool = True,
    explained: bool = True,
) -> Audit:
    """Units of every network whose description holds one of the keywords, whatever the case.

    descriptions: of one network, or network -> descriptions. whole_words: "text" is not found in "texture". explained: only
    units whose description tells more than saying nothing does.
    """
    networks = {"network": descriptions} if isinstance(descriptions, Descriptions) else dict(descriptions)
    words = (keywords,) if isinstance(keywords, str) else tuple(keywords)
    how: dict[str, Any] = {"whole_words": whole_words, "only_explained": explained}
    found = {
        network: tuple(description_uses.audit(made, {"keywords": words}, **how)["keywords"])
        for network, made in networks.items()
    }
    return Audit(words, found, {network: len(made) for network, made in networks.items()})


def named_units(
    model: VisionModel,
    descriptions: Descriptions,
    keywords: Sequence[str],
    *,
    whole_words: bool = True,
    explained: bool = True,
) -> UnitSet:
    """The units whose description holds a keyword, as a set of the network; MismatchError for descriptions of another."""
    check_described(model, descriptions)
    made = audit(descriptions, keywords, whole_words=whole_words, explained=explained)
    return model.units([model.layout.position(parse_unit(unit)) for unit in made.found["network"]])


def sensitivity(model: VisionModel, present: Pictures, absent: Pictures, *, batch: int = 128) -> NDArray[np.float64]:
    """(total,) float64: probability that a unit's highest activation is higher on a picture with the thing than without.

    present, absent: pictures that differ in it, best in nothing else. 0.5 is blind to it; ties count half, so that a dead unit
    has 0.5.
    """
    values = [_pooled(model, pictures, batch) for pictures in (present, absent)]
    n, m = len(values[0]), len(values[1])
    ranks = rankdata(np.concatenate(values), axis=0)
    return np.asarray((ranks[:n].sum(0) - n * (n + 1) / 2) / (n * m))


def check_described(model: VisionModel, descriptions: Descriptions) -> None:
    """MismatchError unless the descriptions are of this network and these layers."""
    theirs = descriptions.model.get("fingerprint")
    if theirs != model.fingerprint:
        raise MismatchError(
            f"the descriptions are of another network than {model.name}, or of other layers; describe it"
        )


def _pooled(model: VisionModel, pictures: Pictures, batch: int) -> NDArray[np.float64]:
    """(pictures, total): highest activation over positions."""
    found = [
        torch.cat([values.amax((2, 3)) for values in model.maps(pixels)], 1).cpu()
        for _, pixels in pictures.batches(batch)
    ]
    return torch.cat(found).double().numpy()
