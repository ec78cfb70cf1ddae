"""Weight edits: what interventions do, written for good into an ordinary checkpoint: `edit(model, units, "ablate").save(dir)`.

Units, directions and lists of any kinds of change (`Interventions`) are written where weights can hold them (`writers.py`
says where). Every edit is compared with the intervention that it stands for before it is returned, and again, as plain
transformers loads it, when it is saved.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import CheckError, InputError
from patchclamp.core.files import atomic_folder, write_json
from patchclamp.core.provenance import provenance, versions
from patchclamp.intervene.clamp import Target, intervention
from patchclamp.intervene.copies import copied
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.intervene.weights import check_writable, write_changes
from patchclamp.models.load import LanguageModel, load, quiet_on_small_screens
from patchclamp.models.units import UnitSet, describe

if TYPE_CHECKING:
    from patchclamp.record.recording import Recording

FORMAT = "patchclamp.edit/2"
MODES = ("ablate", "mean", "scale")
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 6e-2,
    torch.float16: 1e-2,
}  # of the largest logit
PROBE = (2, 16)  # sequences and tokens of the comparison with the intervention
SHOWN = 5  # changes and effects that a README lists


def edit(
    model: LanguageModel,
    what: Target | Change | Interventions,
    mode: str | None = None,
    *,
    scale: float | None = None,
    recording: Recording | None = None,
    label: str | None = None,
    why: str = "",
) -> Edited:
    """A copy of the model whose weights do what an intervention would do; the model itself is not touched.

    what: units or a direction, changed as mode says; or a change or `Interventions`, written as they are, one after the
    other. mode: "ablate" (as clamp to=0; the default), "mean" (as clamp to="mean"; needs recording=, perhaps label=),
    "scale" (as clamp scale=; needs scale=). why: kept in the checkpoint's card.
    Where a constant needs a bias that the projection lacks, biases are added by the architecture's own config switch
    (Llama: mlp_bias, attention_bias); an embedding that is changed is untied from the output layer.
    Raises ModelError, with the number of the change and the reason, where weights can't hold the edit (masks, scopes,
    shuffles, features of dictionaries; no such switch; tied, shared, quantised or offloaded weights), CheckError if the
    edited model's logits are not those of the intervention.
    """
    items, mode = _interventions(model, what, mode, scale, recording, label, why)
    items.check_model(model)
    check_writable(items, model)
    edited = load(copied(model, "edit"), tokenizer=model.tokenizer, check=False)
    edited.name = f"{model.name} (edited)"
    config_changes = write_changes(items, edited)
    arguments = {"mode": mode, "scale": scale, "label": label, "why": why}
    inputs: dict[str, Any] = {"model": dict(model.identity)}
    if recording is not None:
        inputs["recording"] = {"fingerprint": recording.fingerprint, "labels": list(recording.labels)}
    source = provenance("edit", arguments=arguments, inputs=inputs)
    found = Edited(edited, model, items, mode, config_changes, source)
    found.verify()
    return found


@dataclass(eq=False)
class Edited:
    """An edited model. model: live copy with the new weights. original: what it was made from. interventions: what it
    equals. config_changes: config attributes that had to change. folder: where it was saved, if it was."""

    model: LanguageModel
    original: LanguageModel
    interventions: Interventions
    mode: str
    config_changes: dict[str, Any]
    provenance: dict[str, Any]
    folder: Path | None = field(default=None)

    def verify(self, folder: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Compare logits with those of the original under the interventions: of the saved checkpoint as plain
        transformers loads it (folder, or where it was saved), else of the live copy.

        Returns {"max_difference", "largest_logit", "tolerance", "source"}; CheckError if the difference is larger than
        tolerance * largest_logit.
        """
        where = Path(folder) if folder is not None else self.folder
        ids = _probe(self.original)
        with self.interventions.applied(self.original):
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

    def units_per_layer(self) -> list[int]:
        """How many units were changed in each layer; directions and other kinds count no units."""
        counts = np.zeros(self.original.anatomy.n_layers, dtype=np.int64)
        for item in self.interventions:
            if isinstance(item, Intervention) and isinstance(item.target, UnitSet):
                counts += item.target.per_layer()
        return [int(count) for count in counts]

    def card(self, effects: Any = None) -> dict[str, Any]:
        """What was done to which model, why, and with which effects, as plain data (`edit.json`).

        effects: what was measured of it, such as the result of `patchclamp.effect`: anything with `to_dict()` or `rows`,
        or plain data.
        """
        return {
            "format": FORMAT,
            "what": self.interventions.describe(),
            "why": self.provenance["arguments"]["why"],
            "mode": self.mode,
            "model": dict(self.original.identity),
            "edited": {"fingerprint": self.model.fingerprint},
            "interventions": self.interventions.to_dict()["interventions"],
            "units_per_layer": self.units_per_layer(),
            "config_changes": self.config_changes,
            "check": self.verify(),
            "effects": _effect_rows(effects),
            "provenance": self.provenance,
        }

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        effects: Any = None,
        report: str | os.PathLike[str] | None = None,
        reload: bool = True,
    ) -> Path:
        """Write an ordinary checkpoint: weights (safetensors), config, tokenizer, edit.json, a section in README.md.

        effects: kept in the card, see `card`. report: an HTML page, copied beside it as report.html. reload: load the
        checkpoint in plain transformers before it gets its name, and compare it with the intervention (CheckError); False
        saves the memory. Written beside, then renamed; an existing path is refused. Returns the folder.
        """
        target = Path(folder)
        if report is not None and not Path(report).is_file():
            raise InputError(f"no report lies at {report}; give the page that `patchclamp effect --report` wrote")
        with atomic_folder(target) as part:
            self._write(part, effects, report, reload)
        self.folder = target
        return target

    def _write(self, folder: Path, effects: Any, report: str | os.PathLike[str] | None, reload: bool) -> None:
        self.folder = None  # the card's check is of the live copy, not of an earlier save
        with quiet_on_small_screens():
            self.model.hf.save_pretrained(folder)
        if self.model.tokenizer is not None:
            self.model.tokenizer.save_pretrained(folder)
        card = self.card(effects)
        if reload:
            card["check"] = self.verify(folder) | {"source": "this checkpoint in plain transformers"}
        if report is not None:
            shutil.copyfile(report, folder / "report.html")
        write_json(folder / "edit.json", card)
        (folder / "README.md").write_text(_readme(self.original, card, report is not None), encoding="utf-8")

    def __repr__(self) -> str:
        return f"Edited({self.interventions.describe()}; of {describe(self.original.identity)})"


def _interventions(
    model: LanguageModel,
    what: Any,
    mode: str | None,
    scale: float | None,
    recording: Recording | None,
    label: str | None,
    why: str,
) -> tuple[Interventions, str]:
    """What is to be written, and its mode in words."""
    if isinstance(what, Change | Interventions):
        given = {"mode": mode, "scale": scale, "recording": recording, "label": label}
        if extra := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{', '.join(extra)} given; an intervention says itself what is done")
        items = Interventions.of(what)
        if not len(items):
            raise InputError("an empty list of interventions was given; there is nothing to write")
        return items, "interventions"
    mode = mode or "ablate"
    if mode not in MODES:
        raise InputError(f"mode {mode!r} given; it is one of {', '.join(MODES)}")
    if (scale is None) == (mode == "scale"):
        raise InputError("mode 'scale' needs scale= and the other modes take none")
    to: dict[str, Any] = {"ablate": 0.0, "mean": "mean", "scale": None}
    item = intervention(model, what, to[mode], scale=scale, recording=recording, label=label, note=why)
    return Interventions([item]), mode


def _probe(model: LanguageModel) -> Tensor:
    vocabulary = int(model.hf.config.get_text_config().vocab_size)
    return torch.randint(0, vocabulary, PROBE, generator=torch.Generator().manual_seed(0))


def _reloaded_logits(original: LanguageModel, folder: Path, ids: Tensor) -> Tensor:
    """Logits of a checkpoint as plain transformers loads it."""
    from transformers import AutoModelForCausalLM

    hf: Any
    with quiet_on_small_screens():
        try:
            hf = AutoModelForCausalLM.from_pretrained(folder, dtype=original.dtype)
        except ValueError:  # a class that no Auto class knows, or one with code of its own
            hf = type(original.hf).from_pretrained(folder, dtype=original.dtype)
    hf.to(original.device).eval()
    with torch.inference_mode():
        logits: Tensor = hf(input_ids=ids.to(original.device), use_cache=False).logits
    return logits


def _effect_rows(effects: Any) -> Any:
    """Measured effects as plain data: the rows of a table of ours, or what was given."""
    if effects is None:
        return None
    found = effects.rows if hasattr(effects, "rows") else effects.to_dict() if hasattr(effects, "to_dict") else effects
    found = found() if callable(found) else found
    if not isinstance(found, Mapping | Sequence) or isinstance(found, str):
        raise InputError(
            f"effects are a {type(effects).__name__}; give the result of patchclamp.effect, or rows of plain data"
        )
    return found


def _readme(original: LanguageModel, card: dict[str, Any], report: bool) -> str:
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
        f"- Logits differ from those of the clamped original by at most {card['check']['max_difference']:.2g} on a probe "
        f"({card['check']['source']})",
        f"- Measured effects: {_effect_words(card['effects'])}",
        *(["- Report: `report.html`"] if report else []),
        f"- Versions: {', '.join(f'{name} {version}' for name, version in versions().items())}",
        f"- Date: {datetime.datetime.now(datetime.UTC).date().isoformat()}",
        "",
        "All units and values are in `edit.json`. The weights are ordinary: no code of patchclamp is needed to run them.",
    ]
    return "\n".join(lines) + "\n"


def _effect_words(effects: Any) -> str:
    """The first few rows of effects in words."""
    if not effects:
        return "none were given"
    rows = effects if isinstance(effects, Sequence) else effects.get("rows", [effects])
    found = []
    for row in rows[:SHOWN]:
        plain = {name: value for name, value in row.items() if isinstance(value, str | int | float)}
        chosen = {
            name: plain[name] for name in ("set", "text", "plain", "clamped", "effect", "p_holm") if name in plain
        }
        shown = chosen or dict(list(plain.items())[:SHOWN])
        found.append(
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in shown.items()
            )
        )
    return "; ".join(found) + ("; more in `edit.json`" if len(rows) > SHOWN else "")
