"""Sparse autoencoders: train them on a site of a model, load published ones, and measure what they explain.

`train_sae` (sae_training.py) learns from streamed activations, `evaluate_sae` (sae_evaluation.py) measures on a text,
`absorption` (sae_absorption.py) checks a known concept, `load_sae` reads our folders and those of SAELens. An autoencoder
is a dictionary: `model.with_features(sae)` makes its features units of the model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.models.features import load_dictionary
from patchclamp.read.registry import readings
from patchclamp.read.sae_absorption import Absorption, absorption, absorption_of
from patchclamp.read.sae_evaluation import SAEEvaluation, evaluate_sae
from patchclamp.read.sae_kinds import SAE
from patchclamp.read.sae_lens import CONFIG, load_sae_lens, save_sae_lens
from patchclamp.read.sae_training import train_sae
from patchclamp.record.activations import Activations

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

__all__ = [
    "SAE",
    "Absorption",
    "SAEEvaluation",
    "absorption",
    "absorption_of",
    "evaluate_sae",
    "load_sae",
    "load_sae_lens",
    "sae",
    "save_sae_lens",
    "train_sae",
]


def load_sae(folder: str | os.PathLike[str], **arguments: Any) -> SAE:
    """The autoencoder in a folder that `SAE.save`, `save_sae_lens` or SAELens wrote.

    arguments: of `load_sae_lens` (name, site, layer, scaling), for SAELens folders. Raises InputError for a folder with
    neither, or with features that no autoencoder found.
    """
    path = Path(folder)
    if (path / CONFIG).is_file() and not (path / "features.json").is_file():
        return load_sae_lens(path, **arguments)
    if arguments:
        raise InputError(f"{path} says itself what it decomposes; leave out {', '.join(arguments)}")
    found = load_dictionary(path)
    if not isinstance(found, SAE):
        raise InputError(f"{path} holds a {found.kind} dictionary, which is no sparse autoencoder; use load_dictionary")
    return found


@dataclass
class SAEReading:
    """An autoencoder and its evaluation, as `patchclamp read sae` shows them."""

    sae: SAE
    evaluation: SAEEvaluation
    concept: Absorption | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The evaluation, one dict per label."""
        return self.evaluation.rows()

    def to_dict(self) -> dict[str, Any]:
        """The evaluation, how training went, and absorption of the concept that was asked for."""
        return {
            **self.evaluation.to_dict(),
            "history": self.sae.provenance.get("history"),
            "absorption": None if self.concept is None else self.concept.to_dict(),
        }

    def __rich__(self) -> Any:
        """The evaluation as a table that fits a terminal, with the concept below it."""
        table = self.evaluation.__rich__()
        if self.concept is not None:
            told = ", ".join(f"{self.sae.name}.{self.sae.layer}.{at}" for at in self.concept.main)
            table.caption = (
                f"the concept's features: {told}; other features stand in at {self.concept.rate:.1%} of its tokens"
            )
        return table

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the evaluation (`SAEEvaluation.save`); the autoencoder itself lies in its own folder."""
        return self.evaluation.save(path)


@readings.add("sae")
def sae(
    model: LanguageModel,
    text: Corpus,
    *,
    to: str | None = None,
    load: str | None = None,
    export: str | None = None,
    site: str = "resid",
    layer: int | None = None,
    kind: str = "topk",
    n_features: int | None = None,
    k: int = 32,
    steps: int = 2000,
    batch: int = 1024,
    lr: float | None = None,
    sparsity: float | None = None,
    dead: str = "aux",
    seed: int = 0,
    name: str = "sae",
    checkpoint: str | None = None,
    held_out: Corpus | None = None,
    concept: str | None = None,
    quiet: bool = False,
) -> SAEReading:
    """Train a sparse autoencoder on a site of the model, or load one, and print what it explains.

    text: what it is trained on (and measured on, without held_out). to: new folder to write it to; `--features` of
    other commands takes that folder. load: evaluate the autoencoder in this folder, ours or SAELens's; nothing is
    trained (with `to` it is written there in our format). export: also write a folder that SAELens loads. site: what
    is decomposed. layer: of which layer, by default the middle one. kind: topk, batchtopk, jumprelu or relu.
    n_features: by default 8 per coordinate. k: active features per token. steps: of training. batch: tokens per step.
    lr: learning rate. sparsity: coefficient of the penalty of jumprelu and relu. dead: aux, resample or none. seed:
    of weights and order. name: the site that the features form. checkpoint: file that an interrupted training goes on
    from. held_out: text to measure on. concept: also check absorption of starts=s, upos=NOUN and the like. quiet: no
    progress bars.

    Example: `patchclamp read sae demo --text demo:find --held-out demo:measure --layer 2 --to sae/`.
    """
    if to is None and load is None:
        raise InputError("give to= (a new folder for a newly trained autoencoder) or load= (the folder of one)")
    if to is not None and Path(to).exists():
        raise InputError(f"{to} exists already; choose another folder or remove it first")
    if export is not None and (Path(export) / CONFIG).exists():
        raise InputError(f"{export} holds an autoencoder already; choose another folder or remove it first")
    if load is not None:
        found = load_sae(load)
    else:
        rows = Activations.live(model, text, site, model.anatomy.n_layers // 2 if layer is None else layer)
        found = train_sae(
            rows, kind, n_features=n_features, k=k, steps=steps, batch=batch, lr=lr, sparsity=sparsity, dead=dead,
            seed=seed, name=name, checkpoint=checkpoint, quiet=quiet,
        )  # fmt: skip
    if to is not None:
        found.save(to)
    if export is not None:
        save_sae_lens(found, export)
    measured = text if held_out is None else held_out
    evaluation = evaluate_sae(found, model, measured, quiet=quiet)
    return SAEReading(found, evaluation, absorption_of(found, model, measured, concept) if concept else None)


make_callable(__name__)
