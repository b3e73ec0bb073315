"""Running statistics of normalisation layers, which noise or withholding would spoil."""

from __future__ import annotations

from fedsens.config import FedSensConfig
from fedsens.errors import ConfigurationError
from fedsens.layout import ParameterLayout
from fedsens.mask import mask_count
from fedsens.mask.forced import forced_names
from fedsens.mask.kinds import STATISTICS


def check_statistics(config: FedSensConfig, layout: ParameterLayout) -> None:
    """Refuse a remainder with running statistics that is noised or withheld.

    A variance with noise can be negative, which makes every output NaN; withheld statistics stay
    at their initial values on the server, so that evaluation normalises by them.

    Args:
        config: the configuration.
        layout: the model's layout.

    Raises:
        ConfigurationError: names the tensors that must be encrypted.
    """
    whole = mask_count(config.effective_ratio, layout.size) == layout.size
    if config.remainder == "plain" or whole:
        return
    forced = forced_names(layout, config.force)
    visible = [
        entry.name
        for entry in layout.entries
        if entry.name.endswith(STATISTICS) and entry.name not in forced
    ]
    if visible:
        raise ConfigurationError(
            f"expected running statistics to be encrypted, because the remainder is "
            f"{config.remainder}, got {', '.join(visible)} visible; add '*running_*' to "
            "fedsens.force"
        )
