"""Parameter-label sensitivity maps (FedML-HE, arXiv 2303.10837), exact or by random probes."""

from fedsens.sensitivity.agreement import StoppingRule, map_overlap, staleness
from fedsens.sensitivity.batching import next_token_batches
from fedsens.sensitivity.facade import sensitivity_map
from fedsens.sensitivity.jacobians import (
    gradient_jacobian,
    gradient_jvp,
    gradient_vjp,
    loss_gradients,
    output_jacobian,
    sample_norms,
)
from fedsens.sensitivity.label_jacobian import LabelRows
from fedsens.sensitivity.layerwise import LayerRow, LayerSensitivity, layer_sensitivity
from fedsens.sensitivity.losses import LabelLoss, register_loss
from fedsens.sensitivity.map import SensitivityMap
from fedsens.sensitivity.mapfile import load_map, save_map
from fedsens.sensitivity.meter import MapProgress
from fedsens.sensitivity.reference import reference_map
from fedsens.sensitivity.standard_losses import smoothed_cross_entropy

__all__ = [
    "LabelLoss",
    "LabelRows",
    "LayerRow",
    "LayerSensitivity",
    "MapProgress",
    "SensitivityMap",
    "StoppingRule",
    "gradient_jacobian",
    "gradient_jvp",
    "gradient_vjp",
    "layer_sensitivity",
    "load_map",
    "loss_gradients",
    "map_overlap",
    "next_token_batches",
    "output_jacobian",
    "reference_map",
    "register_loss",
    "sample_norms",
    "save_map",
    "sensitivity_map",
    "smoothed_cross_entropy",
    "staleness",
]
