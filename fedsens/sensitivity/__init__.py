"""Parameter-label sensitivity maps (FedML-HE, arXiv 2303.10837), exact or by random probes."""

from fedsens.sensitivity._batching import next_token_batches
from fedsens.sensitivity._compute import sensitivity_map
from fedsens.sensitivity._jacobians import (
    gradient_jacobian,
    gradient_jvp,
    gradient_vjp,
    loss_gradients,
    output_jacobian,
    sample_norms,
)
from fedsens.sensitivity._layerwise import layer_sensitivity
from fedsens.sensitivity._losses import LabelLoss, register_loss
from fedsens.sensitivity._map import (
    MAP_TYPE,
    SensitivityMap,
    load_map,
    map_overlap,
    save_map,
    staleness,
    top_coordinates,
)
from fedsens.sensitivity._progress import MapProgress, StoppingRule
from fedsens.sensitivity._reference import reference_map
from fedsens.sensitivity._rows import LabelRows
from fedsens.sensitivity._standard_losses import smoothed_cross_entropy

__all__ = [
    "MAP_TYPE",
    "LabelLoss",
    "LabelRows",
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
    "top_coordinates",
]
