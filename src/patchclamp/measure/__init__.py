"""Floor 4: what changed and whether it is more than chance: perplexity, effects against controls, intervals, tests."""

from patchclamp.measure.effect_table import Effects
from patchclamp.measure.effects import effect
from patchclamp.measure.measurement import Difference, Measurement, Measurements
from patchclamp.measure.perplexity import perplexity

__all__ = ["Difference", "Effects", "Measurement", "Measurements", "effect", "perplexity"]
