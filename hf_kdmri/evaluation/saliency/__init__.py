"""Where models look: maps of evidence, scored against tumour masks."""

from hf_kdmri.evaluation.saliency.maps import saliency_layer, saliency_maps
from hf_kdmri.evaluation.saliency.scores import saliency_scores, summarize_saliency

__all__ = [
    "saliency_layer",
    "saliency_maps",
    "saliency_scores",
    "summarize_saliency",
]
