"""Neuron Adjust: a skill's units are moved, while the model runs, from where they lie on the skill to where they lie elsewhere.

Li, Sun & Weng 2025, "Effective Skill Unlearning through Intervention and Abstention" (arXiv 2503.21730). A unit's pre-activation
x on the skill ("forget") and on other text ("retain") is taken for normal. Where x looks more like the skill, it is replaced with
probability p_f / (p_f + p_r) by its mirror image in the retain distribution, mu_r - sigma_r (x - mu_f) / sigma_f; at the point
where both densities agree (equal spreads) this is x itself, so nothing jumps.

`NeuronAdjust` is the change as data, `skill_fit.py` fits it to a recording or to text. No training, and no change of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import DamagedError, InputError
from patchclamp.intervene.adjustment import Adjust
from patchclamp.intervene.fits import units_described, units_of
from patchclamp.intervene.kinds import Change, kinds
from patchclamp.intervene.noise import TextKeys, TokenNoise
from patchclamp.intervene.targets import Coordinates, coordinates, lowest_block
from patchclamp.models.hooks import SCOPES, Seen, Tap
from patchclamp.models.units import UnitSet, joint_identity

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Floats = NDArray[np.float64]
MODES = ("sampled", "expected")


@dataclass(frozen=True, eq=False)
class Component:
    """One skill: its units and both distributions of each.

    numbers: (4, len(units)) float64 in the set's canonical order: mean and standard deviation on the skill, mean and standard
    deviation on the rest; deviations are above 0. others: units of the same layers that are not the skill's, with their own
    distributions, which random controls are drawn from; None if there are none.
    """

    name: str
    units: UnitSet
    numbers: Floats
    others: Component | None = None

    def __post_init__(self) -> None:
        if "head" in self.units.sites:
            raise InputError(
                "heads are blocks of coordinates without a value of their own; give units of pre, mlp or attn"
            )
        numbers = np.asarray(self.numbers, dtype=np.float64)
        if numbers.shape != (4, len(self.units)):
            raise InputError(f"numbers of shape {numbers.shape} given; (4, {len(self.units)}) is needed, see Component")
        if not np.isfinite(numbers).all():
            raise InputError(f"the numbers of {self.name!r} hold NaN or infinity")
        if not (numbers[1::2] > 0).all():
            raise InputError(f"a standard deviation of {self.name!r} is {numbers[1::2].min():g}; it must be above 0")
        object.__setattr__(self, "numbers", numbers)

    def matched_random(self, seed: int) -> Component:
        """As many random others of every layer, each with its own numbers; without `others`, with the units' numbers."""
        if self.others is None:
            return Component(self.name, self.units.matched_random(seed), self.numbers)
        rng, pool = np.random.default_rng(seed), self.others
        wanted = {part.tap: len(part.inner) for part in coordinates(self.units)}
        drawn = [rng.permutation(part.unit)[: wanted.get(part.tap, 0)] for part in coordinates(pool.units)]
        chosen = np.sort(np.concatenate(drawn))
        names = pool.units.names()
        units = UnitSet.of(pool.units.model, [names[at] for at in chosen.tolist()])
        return Component(self.name, units, pool.numbers[:, chosen])

    def to_dict(self) -> dict[str, Any]:
        others = None if self.others is None else self.others.to_dict()
        return {
            "name": self.name,
            "units": units_described(self.units),
            "numbers": packed(self.numbers),
            "others": others,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Component:
        others = None if data["others"] is None else cls.from_dict(data["others"], model)
        return cls(str(data["name"]), units_of(data["units"], model), unpacked(data["numbers"]), others)


@kinds.add("neuron-adjust")
@dataclass(frozen=True, eq=False, repr=False)
class NeuronAdjust(Change):
    """Units of one or several skills, adjusted where their value looks like the skill.

    components: one per skill. A unit of several skills follows the one under which its value is likeliest (the nearest forget
    component). mode: "sampled" replaces a value with the paper's probability, "expected" always where that is at least one
    half (p_f >= p_r), which needs no random numbers. scope: "prompt", "generated" or "all" positions.
    seed: of the sampled mode. Its numbers are a function of seed, layer, unit, position counted from the text's first token
    and the token there (see `noise`), so that a row's result does not depend on its batch, on padding or on the KV cache;
    different texts get independent numbers at every position where their tokens differ, the same prompt always the same.
    fitted: how it was fitted, as plain data.

    Differs from the reference code: spreads are standard deviations and each belongs to its own distribution (the code keeps
    variances under that name, and a mean in place of one of them); every unit of every token has a random number of its own
    (the code draws one per row of a batch); densities are compared in log space.
    """

    components: tuple[Component, ...]
    mode: str = "sampled"
    scope: str = "all"
    seed: int = 0
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", tuple(self.components))
        if not self.components:
            raise InputError("no skill was given; Neuron Adjust needs at least one component")
        check_how(self.mode, self.scope, self.seed)
        names = [component.name for component in self.components]
        if len(set(names)) < len(names):
            raise InputError(f"skills {', '.join(names)} given; each has a name of its own")
        _ = self.units  # components of different models don't go together

    @property
    def units(self) -> UnitSet:
        """The units of all skills together."""
        found = self.components[0].units
        for component in self.components[1:]:
            found = found | component.units
        return found

    @property
    def model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.components[0].units.model
        for component in self.components[1:]:
            found = joint_identity(found, component.units.model)
        return found

    @property
    def n_units(self) -> int:
        return len(self.units)

    def check_model(self, model: Any) -> None:
        for component in self.components:
            component.units.check_model(model)

    def compiled(self, model: LanguageModel) -> list[tuple[Tap, Callable[[Seen], Tensor]]]:
        noise = TokenNoise(TextKeys(self.seed)) if self.mode == "sampled" else None
        taps: dict[Tap, list[tuple[Coordinates, Floats]]] = {}
        for component in self.components:
            for part in coordinates(component.units):
                taps.setdefault(part.tap, []).append((part, component.numbers[:, part.unit]))
        functions: list[tuple[Tap, Callable[[Seen], Tensor]]] = []
        if noise is not None and taps and self._reads_tokens:
            functions.append((noise.text.tap, noise.text.read))
        for tap, parts in taps.items():
            functions.append((tap, Adjust(tap[1], parts, scope=self.scope, seed=self.seed, noise=noise)))
        return functions

    @property
    def _reads_tokens(self) -> bool:
        """Whether random numbers depend on tokens: everywhere but in models whose embedding is nowhere to be seen."""
        return "embed" in self.model.get("sites", {})

    def lowest_block(self) -> int | None:
        lowest = lowest_block(self.units)
        return 0 if lowest is not None and self.mode == "sampled" and self._reads_tokens else lowest

    def describe(self) -> str:
        how = f"sampled, seed {self.seed}" if self.mode == "sampled" else "expected"
        skills = "; ".join(f"{len(component.units)} units of {component.name}" for component in self.components)
        return f"Neuron Adjust ({how}) of {skills}, scope {self.scope}"

    def matched_random(self, seed: int) -> NeuronAdjust:
        """The same adjustment of random other units, as many in every layer, each by its own two distributions."""
        drawn = tuple(component.matched_random(seed) for component in self.components)
        return NeuronAdjust(drawn, self.mode, self.scope, self.seed, {**self.fitted, "random": seed})

    def to_dict(self) -> dict[str, Any]:
        return {
            "components": [component.to_dict() for component in self.components],
            "mode": self.mode,
            "scope": self.scope,
            "seed": self.seed,
            "fitted": dict(self.fitted),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> NeuronAdjust:
        try:
            parts = tuple(Component.from_dict(entry, model) for entry in data["components"])
            return cls(parts, data["mode"], data["scope"], data["seed"], data["fitted"])
        except InputError as problem:
            raise DamagedError(f"no Neuron Adjust as it was written: {problem}") from problem


def check_how(mode: str, scope: str, seed: int) -> None:
    """InputError for a mode, scope or seed that there isn't."""
    if mode not in MODES:
        raise InputError(f"mode={mode!r} given; it is {' or '.join(MODES)}")
    if scope not in SCOPES:
        raise InputError(f"scope={scope!r}; it is one of {', '.join(SCOPES)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r}; give a whole number from 0")
