"""Floor 3: changing what a model computes: clamps while it runs (interventions as data), edits of its weights for good."""

from patchclamp.intervene.clamp import clamp, intervention
from patchclamp.intervene.edits import Edited, edit
from patchclamp.intervene.interventions import Intervention, Interventions
from patchclamp.intervene.means import recorded_means
from patchclamp.intervene.targets import Direction

__all__ = [
    "Direction",
    "Edited",
    "Intervention",
    "Interventions",
    "clamp",
    "edit",
    "intervention",
    "recorded_means",
]
