"""Reading image networks: what channels answer to, and MILAN's three uses of it, on any `nn.Module` that takes pictures.

pictures = Pictures.of(pixels, labels, classes=names)             # data.pictures
model = VisionModel(net, pictures, layers=("layer3", "layer4"))   # channels are the units channel.LAYER.INDEX
recording = record_images(model, pictures)                        # thresholds and strongest pictures, one pass
store = image_exemplars(model, pictures, recording, tags=ConceptTagger.of(labelled))
descriptions = describe(store)                                    # the same describers and scores as for text

ablation_curves(model, pictures, criteria(descriptions))          # analysis: which kinds of units matter
audit({"mine": descriptions}, ["face", "eyes"])                   # audit: what should not be there
edit_by_keywords(model, descriptions, ["text"], validate=clean, test=shifted)   # edit: remove it

Hernandez, Schwettmann, Bau, Bagashvili, Torralba and Andreas (ICLR 2022, arXiv 2201.11114). The original describes with a
captioner that was trained on 60,000 sentences of people; here descriptions are made of attributes and labelled concepts, or
come from a model of yours (`describer="captions"`). No torchvision is needed.
"""

from __future__ import annotations

from patchclamp.data.pictures import Pictures
from patchclamp.read.vision_analysis import KINDS, ablation_curves, concepts_by_layer, correct, criteria
from patchclamp.read.vision_audit import Audit, audit, named_units, sensitivity
from patchclamp.read.vision_editing import EditResult, edit_by_keywords
from patchclamp.read.vision_exemplars import Segmentation, image_exemplars, segmentation
from patchclamp.read.vision_model import VisionModel, accuracy, predictions
from patchclamp.read.vision_record import ImageRecording, record_images
from patchclamp.read.vision_tags import ConceptTagger, picture_tags

__all__ = [
    "KINDS",
    "Audit",
    "ConceptTagger",
    "EditResult",
    "ImageRecording",
    "Pictures",
    "Segmentation",
    "VisionModel",
    "ablation_curves",
    "accuracy",
    "audit",
    "concepts_by_layer",
    "correct",
    "criteria",
    "edit_by_keywords",
    "image_exemplars",
    "named_units",
    "picture_tags",
    "predictions",
    "record_images",
    "segmentation",
    "sensitivity",
]
