"""Who says which neurons a text needs: its own prompt, the cluster it belongs to, a fixed set, chance, or every token anew.

"prompt" is the paper's stability-guided way, `Clusters` its similarity-guided way (`clusters.py`). The others are what both are
compared with: a fixed set ("hot" neurons), random neurons of equal number, the strongest neurons of every token ("oracle", which
computes all of them first), every token's own core ("token core"), and a predictor of the strongest (`predictor.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.generate.counting import Counts
from patchclamp.models.units import UnitSet, layouts_of
from patchclamp.record.statistics.core import core_size, strongest, token_core

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

SITE = "mlp"


class Guide:
    """What `core_sparse` asks. A guide chooses either a core per text, or a mask per token (`per_token`)."""

    name = "guide"
    per_token = False
    looks_ahead = False  # it must have read all of the prompt before it can say anything of the first layer

    def check(self, model: LanguageModel, layers: Sequence[int], *, token_share: float, by: str) -> None:
        """Raise InputError where the guide can't serve these layers of this model, counted in this way."""

    def counted(self, layers: Sequence[int]) -> Sequence[int]:
        """Layers whose token cores must be counted while the prompt is read."""
        return ()

    def cores(self, layer: int, size: int, width: int, texts: int, counts: Mapping[int, Counts]) -> list[Tensor]:
        """The neurons of each text to keep in a layer, rising int64."""
        raise InputError(f"the guide {self.name!r} chooses for every token, so it has no core of a text")

    def mask(self, layer: int, x: Tensor, h: Tensor, size: int) -> Tensor:
        """Which neurons to keep for every token: bool like h (..., width); x (..., d_model) is what enters the MLP."""
        raise InputError(f"the guide {self.name!r} chooses for a whole text, not for every token")


class PromptGuide(Guide):
    """The sentence core of the prompt itself (stability-guided)."""

    name = "prompt"

    def counted(self, layers: Sequence[int]) -> Sequence[int]:
        return layers

    def cores(self, layer: int, size: int, width: int, texts: int, counts: Mapping[int, Counts]) -> list[Tensor]:
        found = counts[layer].cores(size)
        for text, core in enumerate(found):
            if not len(core):
                raise ModelError(
                    f"no neuron of layer {layer} is active on any token of prompt {text}, so it has no core; leave the layer out "
                    "(layers=) or rank by size (by='abs')"
                )
        return found


class FixedGuide(Guide):
    """The neurons of a unit set, whatever the text."""

    name = "fixed"

    def __init__(self, units: UnitSet) -> None:
        self.units = units
        self._of: dict[int, Tensor] = {}

    def check(self, model: LanguageModel, layers: Sequence[int], *, token_share: float, by: str) -> None:
        self.units.check_model(model)
        layout = layouts_of(self.units.model)[SITE]
        positions = np.sort(self.units.positions.get(SITE, np.zeros(0, dtype=np.int64)))
        for layer in layers:
            span = layout.slice(layer)
            mine = positions[(positions >= span.start) & (positions < span.stop)] - span.start
            if not len(mine):
                raise InputError(
                    f"the unit set holds no neuron (site {SITE!r}) of layer {layer}; add some or leave it out"
                )
            self._of[layer] = torch.from_numpy(mine.astype(np.int64))

    def cores(self, layer: int, size: int, width: int, texts: int, counts: Mapping[int, Counts]) -> list[Tensor]:
        return [self._of[layer]] * texts


class RandomGuide(Guide):
    """As many neurons as a core would have, drawn at random for every layer and text of a batch."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def cores(self, layer: int, size: int, width: int, texts: int, counts: Mapping[int, Counts]) -> list[Tensor]:
        drawn = [np.random.default_rng([self.seed, layer, text]).permutation(width)[:size] for text in range(texts)]
        return [torch.from_numpy(np.sort(one).astype(np.int64)) for one in drawn]


class OracleGuide(Guide):
    """The strongest neurons of each token, by the size of their activation: what a perfect choice per token could reach."""

    name = "oracle"
    per_token = True

    def mask(self, layer: int, x: Tensor, h: Tensor, size: int) -> Tensor:
        flat = h.abs().reshape(-1, h.shape[-1])
        sizes = torch.full((len(flat),), size, dtype=torch.int64, device=h.device)
        return strongest(flat, sizes).view(h.shape)


class TokenCoreGuide(Guide):
    """Every token's own core (Eq. 1), whatever the share: the strongest of its positive neurons, computed after all of them."""

    name = "token core"
    per_token = True

    def __init__(self, token_share: float, by: str, shared_k: bool) -> None:
        self.token_share, self.by, self.shared_k = token_share, by, shared_k

    def mask(self, layer: int, x: Tensor, h: Tensor, size: int) -> Tensor:
        flat = h.reshape(-1, h.shape[-1])
        ranked = flat.abs() if self.by == "abs" else flat
        return token_core(ranked, self.token_share, shared_k=self.shared_k).view(h.shape)


def guide_of(
    guide: Any, *, seed: int = 0, token_share: float = 0.4, by: str = "positive", shared_k: bool = False
) -> Guide:
    """The guide that a name, a unit set, clusters or a predictor stands for."""
    if isinstance(guide, Guide):
        return guide
    if isinstance(guide, UnitSet):
        return FixedGuide(guide)
    made: dict[str, Callable[[], Guide]] = {
        "prompt": PromptGuide,
        "random": lambda: RandomGuide(seed),
        "oracle": OracleGuide,
        "token core": lambda: TokenCoreGuide(token_share, by, shared_k),
    }
    if not isinstance(guide, str) or guide not in made:
        raise InputError(
            f"guide={guide!r} given; it is {', '.join(map(repr, made))}, a UnitSet, or what fit_clusters, hot_neurons or "
            "fit_predictor made"
        )
    return made[guide]()


def size_of(share: float, width: int, layer: int) -> int:
    """How many neurons of a layer are kept; InputError where that is none."""
    size = core_size(share, width)
    if size < 1:
        raise InputError(f"share={share} keeps none of the {width} neurons of layer {layer}; give a larger share")
    return size
