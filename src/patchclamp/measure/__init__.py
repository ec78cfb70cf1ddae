"""Floor 4: what changed and whether it is more than chance: perplexity, tasks, effects against controls, intervals, tests."""

from patchclamp.measure import lm_eval
from patchclamp.measure.answer_loss import answer_loss
from patchclamp.measure.choice import choice
from patchclamp.measure.completion import completion
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.effects import effect
from patchclamp.measure.generation import generation
from patchclamp.measure.measurement import Difference, Measurement, Measurements
from patchclamp.measure.pairs import pairs
from patchclamp.measure.perplexity import perplexity
from patchclamp.measure.task_measurement import score, score_all
from patchclamp.measure.task_scores import metrics

__all__ = [
    "Difference",
    "Effects",
    "Measurement",
    "Measurements",
    "answer_loss",
    "choice",
    "completion",
    "effect",
    "generation",
    "lm_eval",
    "metrics",
    "pairs",
    "perplexity",
    "score",
    "score_all",
]
