"""Weight edits: what a clamp does, written for good into an ordinary checkpoint: `edit(model, units, "ablate").save(dir)`.

Ablating (or scaling) a unit scales the column that reads it; holding it at its recorded mean zeroes the column and adds
mean * column to the projection's bias. Every edit is compared with the clamp that it stands for before it is returned.
"""

from __future__ import annotations

import copy
import datetime
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import CheckError, InputError, ModelError
from patchclamp.core.files import atomic_folder, write_json
from patchclamp.core.provenance import provenance, versions
from patchclamp.intervene.biases import add_biases, bias_switch
from patchclamp.intervene.clamp import Target, intervention
from patchclamp.intervene.columns import check_sites, fold_into_bias, projections, scale_columns
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.targets import Coordinates, coordinates
from patchclamp.models.load import LanguageModel, load, quiet_on_small_screens
from patchclamp.models.units import UnitSet, describe

if TYPE_CHECKING:
    from patchclamp.record.recording import Recording

FORMAT = "patchclamp.edit/1"
MODES = ("ablate", "mean", "scale")
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}  # of the largest logit
PROBE = (2, 16)  # sequences and tokens of the comparison with the clamp


def edit(
    model: LanguageModel,
    units: Target,
    mode: str = "ablate",
    *,
    scale: float | None = None,
    recording: Recording | None = None,
    label: str | None = None,
    why: str = "",
) -> Edited:
    """A copy of the model whose weights do what clamping the units would do; the model itself is not touched.

    mode: "ablate" (as clamp to=0), "mean" (as clamp to="mean"; needs recording=, perhaps label=), "scale" (as clamp
    scale=; needs scale=). units: of the sites mlp, attn and head. why: kept in the checkpoint's card.
    Where a mean needs a bias that the projection lacks, the biases are added by the architecture's own config switch
    (Llama: mlp_bias, attention_bias). Raises ModelError where weights can't hold the edit (no such switch, tied, shared,
    quantised or offloaded weights), CheckError if the edited model's logits are not the clamp's.
    """
    item = _intervention(model, units, mode, scale, recording, label, why)
    target = item.target
    if not isinstance(target, UnitSet):
        raise InputError("a direction can't be edited into weights; use clamp")
    check_sites(target.sites)
    _check_copyable(model)
    edited = load(copy.deepcopy(model.hf), tokenizer=model.tokenizer, check=False)
    edited.name = f"{model.name} (edited)"
    changes = _write(edited, target, item)
    arguments = {"mode": mode, "scale": scale, "label": label, "why": why}
    inputs: dict[str, Any] = {"model": dict(model.identity), "units": {"units": target.names()}}
    if recording is not None:
        inputs["recording"] = {"fingerprint": recording.fingerprint, "labels": list(recording.labels)}
    found = Edited(edited, model, target, item, mode, changes, provenance("edit", arguments=arguments, inputs=inputs))
    found.verify()
    return found


@dataclass(eq=False)
class Edited:
    """An edited model. model: live copy with the new weights. original: what it was made from. intervention: the clamp
    that it equals. config_changes: config attributes that had to change. folder: where it was saved, if it was."""

    model: LanguageModel
    original: LanguageModel
    units: UnitSet
    intervention: Intervention
    mode: str
    config_changes: dict[str, Any]
    provenance: dict[str, Any]
    folder: Path | None = field(default=None)

    def verify(self, folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Compare logits with those of the original under the clamp: of the saved checkpoint as plain transformers loads
        it (folder, or where it was saved), else of the live copy.

        Returns {"max_difference", "largest_logit", "tolerance", "source"}; CheckError if the difference is larger than
        tolerance * largest_logit.
        """
        where = Path(folder) if folder is not None else self.folder
        ids = _probe(self.original)
        with self.intervention.applied(self.original):
            wanted = self.original.logits(ids).double()
        found = self.model.logits(ids) if where is None else _reloaded_logits(self.original, where, ids)
        largest, tolerance = float(wanted.abs().max()), TOLERANCE[self.original.dtype]
        difference = float((found.double().to(wanted.device) - wanted).abs().max())
        source = "live copy" if where is None else str(where)
        if not difference <= tolerance * max(largest, 1e-6):  # NaN fails too
            raise CheckError(
                f"the edited model ({source}) differs from the clamp by {difference:.3g} in logits of up to {largest:.3g}; "
                f"{type(self.original.hf).__name__} can't hold this edit: use clamp instead"
            )
        return {"max_difference": difference, "largest_logit": largest, "tolerance": tolerance, "source": source}

    def card(self) -> dict[str, Any]:
        """What was done to which model and why, as plain data (`edit.json`)."""
        return {
            "format": FORMAT,
            "what": self.intervention.describe(),
            "why": self.provenance["arguments"]["why"],
            "mode": self.mode,
            "model": dict(self.original.identity),
            "edited": {"fingerprint": self.model.fingerprint},
            "intervention": self.intervention.to_dict(),
            "units_per_layer": self.units.per_layer().tolist(),
            "config_changes": self.config_changes,
            "check": self.verify(),
            "provenance": self.provenance,
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write an ordinary checkpoint: weights (safetensors), config, tokenizer, edit.json, a section in README.md.

        Written beside, then renamed; an existing path is refused. Returns the folder.
        """
        target = Path(folder)
        with atomic_folder(target) as part:
            self._write(part)
        self.folder = target
        return target

    def _write(self, folder: Path) -> None:
        self.folder = None  # the card's check is of the live copy, not of an earlier save
        with quiet_on_small_screens():
            self.model.hf.save_pretrained(folder)
        if self.model.tokenizer is not None:
            self.model.tokenizer.save_pretrained(folder)
        card = self.card()
        write_json(folder / "edit.json", card)
        (folder / "README.md").write_text(_readme(self.original, card), encoding="utf-8")

    def __repr__(self) -> str:
        return f"Edited({self.intervention.describe()}; of {describe(self.original.identity)})"


def _intervention(
    model: LanguageModel,
    units: Target,
    mode: str,
    scale: float | None,
    recording: Recording | None,
    label: str | None,
    why: str,
) -> Intervention:
    if mode not in MODES:
        raise InputError(f"mode {mode!r} given; it is one of {', '.join(MODES)}")
    if (scale is None) == (mode == "scale"):
        raise InputError("mode 'scale' needs scale= and the other modes take none")
    to: dict[str, Any] = {"ablate": 0.0, "mean": "mean", "scale": None}
    return intervention(model, units, to[mode], scale=scale, recording=recording, label=label, note=why)


def _write(edited: LanguageModel, units: UnitSet, item: Intervention) -> dict[str, Any]:
    """Write the edit into the copy's weights; returns the config attributes that had to change."""
    parts = coordinates(units)
    changes: dict[str, Any] = {}
    if item.operation == "mean":
        changes = _with_biases(edited, parts)
    with torch.no_grad():
        for part in parts:
            for projection in projections(edited, part):
                if item.operation == "mean":
                    fold_into_bias(projection, _values(item, units, part))
                    scale_columns(projection, 0.0)
                elif item.operation == "scale":
                    scale_columns(projection, _values(item, units, part)[projection.number])
                else:
                    scale_columns(projection, 0.0)
    return changes


def _with_biases(edited: LanguageModel, parts: list[Coordinates]) -> dict[str, Any]:
    """Add the biases that the chosen projections lack, by config switches (one for mlp, one for attn)."""
    changes = {}
    for site in sorted({part.tap[0] for part in parts}):
        found = [projection for part in parts if part.tap[0] == site for projection in projections(edited, part)]
        missing = sorted({projection.names[1] for projection in found if projection.bias is None})
        if missing:
            switch, names = bias_switch(edited.hf, missing)
            add_biases(edited.hf, switch, names)
            changes[switch] = True
    return changes


def _values(item: Intervention, units: UnitSet, part: Coordinates) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The intervention's value for every coordinate of one tap."""
    if not isinstance(item.value, np.ndarray):
        return np.full(len(part.inner), float(item.value or 0.0))
    if len(item.value) == len(units):
        return item.value[part.unit]
    return item.value[part.first : part.first + len(part.inner)]


def _check_copyable(model: LanguageModel) -> None:
    spread = getattr(model.hf, "hf_device_map", None)
    if spread and len(set(spread.values())) > 1:
        raise ModelError("a model spread by device_map can't be edited; load it on one device (the CPU will do)")
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules()):
        raise InputError("the model has active hooks; leave every clamp, change and observe block before editing it")


def _probe(model: LanguageModel) -> Tensor:
    vocabulary = int(model.hf.config.get_text_config().vocab_size)
    return torch.randint(0, vocabulary, PROBE, generator=torch.Generator().manual_seed(0))


def _reloaded_logits(original: LanguageModel, folder: Path, ids: Tensor) -> Tensor:
    """Logits of a checkpoint as plain transformers loads it."""
    from transformers import AutoModelForCausalLM

    with quiet_on_small_screens():
        hf: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=original.dtype)
    hf.to(original.device).eval()
    with torch.inference_mode():
        logits: Tensor = hf(input_ids=ids.to(original.device), use_cache=False).logits
    return logits


def _readme(original: LanguageModel, card: dict[str, Any]) -> str:
    """The original's README where there is one, with a section on the edit."""
    source = Path(original.source) / "README.md" if original.source else None
    before = source.read_text(encoding="utf-8", errors="replace") if source is not None and source.is_file() else ""
    layers = ", ".join(f"layer {number}: {count}" for number, count in enumerate(card["units_per_layer"]) if count)
    lines = [
        before.rstrip() or f"# {original.name}, edited",
        "",
        "## Edited with patchclamp",
        "",
        f"- What: {card['what']}",
        f"- Why: {card['why'] or 'not said'}",
        f"- Mode: {card['mode']}; units per {layers or 'layer: none'}",
        f"- Made from: {original.name} (`{original.source or 'a live model'}`), fingerprint `{card['model']['fingerprint']}`",
        f"- Fingerprint now: `{card['edited']['fingerprint']}`",
        f"- Config changed: {', '.join(f'{k}={v}' for k, v in card['config_changes'].items()) or 'nothing'}",
        f"- Logits differ from those of the clamped original by at most {card['check']['max_difference']:.2g} on a probe",
        f"- Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- Date: {datetime.datetime.now(datetime.UTC).date().isoformat()}",
        "",
        "All units and values are in `edit.json`. The weights are ordinary: no code of patchclamp is needed to run them.",
    ]
    return "\n".join(lines) + "\n"
