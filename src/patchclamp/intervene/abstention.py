"""Abstention: a query whose key vector lies inside a skill's region is answered with a refusal (Key Space Detection).

Li, Sun & Weng 2025 (arXiv 2503.21730). The key of a token is the vector that enters one layer's down projection. `Abstention` is
the change as data; `key_fit.py` fits its regions and chooses their size; `key_space.py` says what a region is. This is no
unlearning: the skill stays in the weights, and a query that leaves the box gets it (`measure.leakage`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from patchclamp.core.arrays import packed, unpacked
from patchclamp.core.errors import DamagedError, InputError
from patchclamp.intervene.key_space import Region
from patchclamp.intervene.kinds import Change, kinds
from patchclamp.intervene.refusing import Refusing
from patchclamp.models.hooks import Seen, Tap
from patchclamp.models.units import joint_identity

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

REFUSAL = "Sorry, your query is not valid"  # the paper's words
WHEN = ("prompt", "any", "all")


@dataclass(frozen=True, eq=False)
class Box:
    """One skill's region and the size at which it counts. alpha: of the box that holds all vectors it was fitted to.

    fitted: how it was fitted and how many held-out queries it holds, as plain data.
    """

    name: str
    region: Region
    alpha: float
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise InputError(f"alpha={self.alpha} given; it is a number of at least 0, and 1 holds every fitted vector")

    def describe(self) -> str:
        held = {side: self.fitted.get(side) for side in ("forget", "retain")}
        shares = [
            f"{share:.0%} of {what}"
            for what, share in ((f"held-out {self.name}", held["forget"]), ("other queries", held["retain"]))
            if share is not None
        ]
        inside = f" ({', '.join(shares)} inside)" if shares else ""
        return f"{self.alpha:g} times the box of {self.name} in {self.region.site} of layer {self.region.layer}{inside}"

    def to_dict(self) -> dict[str, Any]:
        one = self.region
        return {
            "name": self.name, "alpha": self.alpha, "fitted": dict(self.fitted), "site": one.site, "layer": one.layer,
            "mean": packed(one.mean), "std": packed(one.std), "k": one.k, "n": one.n, "floored": one.floored,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], identity: Mapping[str, Any]) -> Box:
        region = Region(
            str(data["site"]), int(data["layer"]), unpacked(data["mean"]), unpacked(data["std"]), float(data["k"]),
            int(data["n"]), int(data["floored"]), dict(identity),
        )  # fmt: skip
        return cls(str(data["name"]), region, float(data["alpha"]), data["fitted"])


@kinds.add("abstain")
@dataclass(frozen=True, eq=False, repr=False)
class Abstention(Change):
    """Refuse to answer where a key lies inside a skill's box; every sequence of a batch is judged by itself.

    boxes: one per skill (or several); a key inside any of them is enough. refusal: what is said instead, from the first token
    after the key that tripped it; then the text ends. when: which keys are looked at: "prompt" the one at the prompt's last
    token; "any" that one and every later one, so that an answer may be cut short by a refusal; "all" those of all of the
    prompt's tokens, which must all lie inside (for boxes that were fitted to all tokens).

    The prompt is what `generate()` was given, or what `prompt_scope` says when answers are scored; without either, the whole
    input. A refusing row's logits are 30 for the next token of the refusal and 0 for all others. With a KV cache and when="any",
    rows that began with the same prompt (beams, several samples of it) refuse together as soon as one trips, because beams trade
    places; all else is the same with and without a cache, alone and in a batch, padded on either side.

    Differs from the reference code, whose check looks at the first row of a batch only and keeps its verdict in a global, and
    which replaces the text after it was written; the paper's rule is when="any".
    """

    boxes: tuple[Box, ...]
    refusal: str = REFUSAL
    when: str = "prompt"
    scope: str = "generated"  # what scores answers has to say where they begin

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", tuple(self.boxes))
        if not self.boxes:
            raise InputError("no region was given; an abstention needs at least one")
        if self.when not in WHEN:
            raise InputError(f"when={self.when!r} given; it is one of {', '.join(WHEN)}")
        if self.scope != "generated":
            raise InputError(
                f"scope={self.scope!r} given; an abstention acts on what is generated, and on nothing else"
            )
        if not self.refusal.strip():
            raise InputError("the refusal is empty; give the text that is said instead of an answer")
        _ = self.model  # regions of different models don't go together

    @property
    def model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.boxes[0].region.model
        for box in self.boxes[1:]:
            found = joint_identity(found, box.region.model)
        return found

    def check_model(self, model: Any) -> None:
        for box in self.boxes:
            box.region.check_model(model)

    def compiled(self, model: LanguageModel) -> list[tuple[Tap, Callable[[Seen], Tensor]]]:
        spoken = spoken_ids(model, self.refusal)
        running = Refusing([(box.region, box.alpha) for box in self.boxes], self.when, spoken, end_id(model))
        taps = dict.fromkeys((box.region.site, box.region.layer) for box in self.boxes)
        first = [(running.text.tap, running.text.read)] if self._reads_tokens else []
        return [*first, *((tap, running.look) for tap in taps), (("logits", model.anatomy.n_layers - 1), running.force)]

    @property
    def _reads_tokens(self) -> bool:
        """Whether rows of the same prompt must be told from others."""
        return self.when == "any" and "embed" in self.model.get("sites", {})

    def lowest_block(self) -> int | None:
        return 0 if self._reads_tokens else min(box.region.layer for box in self.boxes)

    @property
    def n_units(self) -> int:
        return 0  # it reads keys, and changes none

    def describe(self) -> str:
        when = {"prompt": "the prompt's last key lies", "any": "any key from the prompt's last on lies"}
        where = when.get(self.when, "all keys of the prompt lie")
        return f"{self.refusal!r} if {where} inside {' or '.join(box.describe() for box in self.boxes)}"

    def to_dict(self) -> dict[str, Any]:
        return {"boxes": [box.to_dict() for box in self.boxes], "refusal": self.refusal, "when": self.when}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Abstention:
        identity = model if isinstance(model, Mapping) else model.identity
        try:
            return cls(tuple(Box.from_dict(entry, identity) for entry in data["boxes"]), data["refusal"], data["when"])
        except (InputError, ValueError) as problem:
            raise DamagedError(f"no abstention as it was written: {problem}") from problem


def spoken_ids(model: Any, text: str) -> list[int]:
    """Token ids of a refusal, without special tokens; InputError where there is no tokenizer to make them."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} came without a tokenizer, so the refusal {text!r} can't be said")
    ids = list(model.tokenizer(text, add_special_tokens=False)["input_ids"])
    if not ids:
        raise InputError(f"the refusal {text!r} has no tokens in this model's vocabulary")
    return ids


def end_id(model: Any) -> int | None:
    """The token that ends a text; None for a model that has none."""
    config = model.hf.config.get_text_config(decoder=True)
    for holder in (getattr(model.hf, "generation_config", None), config, model.tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if isinstance(found, list | tuple):
            found = found[0] if found else None
        if found is not None:
            return int(found)
    return None
