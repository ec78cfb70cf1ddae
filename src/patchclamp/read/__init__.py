"""Floor 5: what units and features mean. Every reading is a file of this room, registered under the name that
`patchclamp read NAME` uses.

found = patchclamp.read.tokens(model)       # the tokens that every unit promotes and suppresses
found.strings("mlp.3.17")
patchclamp.read.readings                    # all readings by name

Names are looked up when they are first used: some readings need more than others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from patchclamp.read.registry import readings

if TYPE_CHECKING:
    from patchclamp.read.agreement import Agreement, agreement
    from patchclamp.read.communities import communities
    from patchclamp.read.communities_result import Communities
    from patchclamp.read.concept import Concept
    from patchclamp.read.concepts import concept_detection, concept_scores, steering_score
    from patchclamp.read.describe import describe
    from patchclamp.read.description_scores import score_descriptions
    from patchclamp.read.description_uses import answering, audit, edit_effect
    from patchclamp.read.descriptions import Descriptions, describers
    from patchclamp.read.exemplar import Exemplar
    from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
    from patchclamp.read.exemplar_view import render
    from patchclamp.read.exemplars import exemplars
    from patchclamp.read.lm_head import TokenMap, tokens, tokens_of
    from patchclamp.read.sae import load_sae
    from patchclamp.read.sae_absorption import absorption
    from patchclamp.read.sae_evaluation import SAEEvaluation, evaluate_sae
    from patchclamp.read.sae_kinds import SAE
    from patchclamp.read.sae_lens import save_sae_lens
    from patchclamp.read.sae_training import train_sae
    from patchclamp.read.snmf import factorise, snmf
    from patchclamp.read.snmf_factors import Factors
    from patchclamp.read.snmf_hierarchy import hierarchy
    from patchclamp.read.vision import VisionModel, image_exemplars, record_images
    from patchclamp.read.word_check import WordChecks, check_words
    from patchclamp.read.words import WordUnits, word_units

_HOME = {
    "Agreement": "agreement",
    "Communities": "communities_result",
    "Concept": "concept",
    "Descriptions": "descriptions",
    "Exemplar": "exemplar",
    "ExemplarStore": "exemplar_store",
    "Exemplars": "exemplar_store",
    "Factors": "snmf_factors",
    "SAE": "sae_kinds",
    "SAEEvaluation": "sae_evaluation",
    "TokenMap": "lm_head",
    "VisionModel": "vision",
    "WordChecks": "word_check",
    "WordUnits": "words",
    "absorption": "sae_absorption",
    "agreement": "agreement",
    "answering": "description_uses",
    "audit": "description_uses",
    "check_words": "word_check",
    "communities": "communities",
    "concept_detection": "concepts",
    "concept_scores": "concepts",
    "describe": "describe",
    "describers": "descriptions",
    "edit_effect": "description_uses",
    "evaluate_sae": "sae_evaluation",
    "exemplars": "exemplars",
    "factorise": "snmf",
    "hierarchy": "snmf_hierarchy",
    "image_exemplars": "vision",
    "load_sae": "sae",
    "record_images": "vision",
    "render": "exemplar_view",
    "save_sae_lens": "sae_lens",
    "score_descriptions": "description_scores",
    "snmf": "snmf",
    "steering_score": "concepts",
    "tokens": "lm_head",
    "tokens_of": "lm_head",
    "train_sae": "sae_training",
    "word_units": "words",
}

__all__ = [
    "SAE",
    "Agreement",
    "Communities",
    "Concept",
    "Descriptions",
    "Exemplar",
    "ExemplarStore",
    "Exemplars",
    "Factors",
    "SAEEvaluation",
    "TokenMap",
    "VisionModel",
    "WordChecks",
    "WordUnits",
    "absorption",
    "agreement",
    "answering",
    "audit",
    "check_words",
    "communities",
    "concept_detection",
    "concept_scores",
    "describe",
    "describers",
    "edit_effect",
    "evaluate_sae",
    "exemplars",
    "factorise",
    "hierarchy",
    "image_exemplars",
    "load_sae",
    "readings",
    "record_images",
    "render",
    "save_sae_lens",
    "score_descriptions",
    "snmf",
    "steering_score",
    "tokens",
    "tokens_of",
    "train_sae",
    "word_units",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module 'patchclamp.read' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
