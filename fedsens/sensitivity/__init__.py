"""Parameter-label sensitivity maps (FedML-HE, arXiv 2303.10837), exact or by random probes."""

from fedsens.sensitivity.agreement import StoppingRule, map_overlap, staleness
from fedsens.sensitivity.batching import next_token_batches
from fedsens.sensitivity.facade import sensitivity_map
from fedsens.sensitivity.losses import LabelLoss, register_loss
from fedsens.sensitivity.map import SensitivityMap
from fedsens.sensitivity.mapfile import load_map, save_map
from fedsens.sensitivity.reference import reference_map
from fedsens.sensitivity.standard_losses import smoothed_cross_entropy

__all__ = [
    "LabelLoss",
    "SensitivityMap",
    "StoppingRule",
    "load_map",
    "map_overlap",
    "next_token_batches",
    "reference_map",
    "register_loss",
    "save_map",
    "sensitivity_map",
    "smoothed_cross_entropy",
    "staleness",
]
