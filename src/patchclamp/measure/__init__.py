"""Floor 4: what changed and whether it is more than chance: perplexity, tasks, effects against controls, intervals, tests."""

from patchclamp.measure import lm_eval
from patchclamp.measure.answer_loss import answer_loss
from patchclamp.measure.choice import choice
from patchclamp.measure.completion import completion
from patchclamp.measure.concept_rate import concept_rate
from patchclamp.measure.concepts import Classifier, Verdict, Words
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.effects import effect
from patchclamp.measure.generation import generation
from patchclamp.measure.measurement import Difference, Measurement, Measurements
from patchclamp.measure.pairs import pairs
from patchclamp.measure.perplexity import perplexity
from patchclamp.measure.side_effect_report import SideEffects
from patchclamp.measure.side_effects import side_effects
from patchclamp.measure.steering import SteeringSweep, steering_sweep
from patchclamp.measure.task_measurement import score, score_all
from patchclamp.measure.task_scores import metrics
from patchclamp.measure.tradeoff import Tradeoff, tph, tradeoff
from patchclamp.measure.written import written

__all__ = [
    "Classifier",
    "Difference",
    "Effects",
    "Measurement",
    "Measurements",
    "SideEffects",
    "SteeringSweep",
    "Tradeoff",
    "Verdict",
    "Words",
    "answer_loss",
    "choice",
    "completion",
    "concept_rate",
    "effect",
    "generation",
    "lm_eval",
    "metrics",
    "pairs",
    "perplexity",
    "score",
    "score_all",
    "side_effects",
    "steering_sweep",
    "tph",
    "tradeoff",
    "written",
]
