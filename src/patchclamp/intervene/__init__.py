"""Floor 3: changing what a model computes: clamps while it runs (interventions as data), edits of its weights for good."""

from patchclamp.intervene.ablation import ablation, component_left
from patchclamp.intervene.abstention import Abstention
from patchclamp.intervene.attention_override import ForcedAttention, force_attention
from patchclamp.intervene.circuit_curves import completeness, faithfulness, minimality
from patchclamp.intervene.circuits import Circuit, overlap
from patchclamp.intervene.clamp import clamp, intervention
from patchclamp.intervene.directions import feature_direction, mean_difference, token_direction, unit_directions
from patchclamp.intervene.edge_attribution import attribute_edges, attribute_parts
from patchclamp.intervene.edits import Edited, edit
from patchclamp.intervene.eigenshift import EigenShift
from patchclamp.intervene.fits import Fitted, fit
from patchclamp.intervene.interventions import Intervention
from patchclamp.intervene.key_fit import abstain, abstain_from_text
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.intervene.means import recorded_means
from patchclamp.intervene.patching import patch
from patchclamp.intervene.path_patching import path_patch
from patchclamp.intervene.skill_fit import neuron_adjust, neuron_adjust_from_text
from patchclamp.intervene.skills import NeuronAdjust
from patchclamp.intervene.steer import steer, steering, typical_lengths
from patchclamp.intervene.targets import Direction

__all__ = [
    "Abstention",
    "Change",
    "Circuit",
    "Direction",
    "Edited",
    "EigenShift",
    "Fitted",
    "ForcedAttention",
    "Intervention",
    "Interventions",
    "NeuronAdjust",
    "ablation",
    "abstain",
    "abstain_from_text",
    "attribute_edges",
    "attribute_parts",
    "clamp",
    "completeness",
    "component_left",
    "edit",
    "faithfulness",
    "feature_direction",
    "fit",
    "force_attention",
    "intervention",
    "mean_difference",
    "minimality",
    "neuron_adjust",
    "neuron_adjust_from_text",
    "overlap",
    "patch",
    "path_patch",
    "recorded_means",
    "steer",
    "steering",
    "token_direction",
    "typical_lengths",
    "unit_directions",
]
