"""Floor 6: ways to produce text: decoding with the core neurons of a prompt, what guides it, and what it costs in quality."""

from patchclamp.generate.clusters import Clusters, fit_clusters, hot_neurons
from patchclamp.generate.core_sparse import CoreSparse, core_sparse
from patchclamp.generate.offload import mlp_offloaded
from patchclamp.generate.predictor import Predictor, fit_predictor
from patchclamp.generate.quality import CoreQuality, core_quality

__all__ = [
    "Clusters",
    "CoreQuality",
    "CoreSparse",
    "Predictor",
    "core_quality",
    "core_sparse",
    "fit_clusters",
    "fit_predictor",
    "hot_neurons",
    "mlp_offloaded",
]
