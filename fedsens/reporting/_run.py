"""The part of a page that is about one run of ``fedsens simulate``."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from fedsens.errors import ConfigurationError
from fedsens.protocol import ProtectedModel, load_protected
from fedsens.reporting._page import cards, conclusion, picture
from fedsens.simulation import RunSummary, SimulationSummary, tables
from fedsens.tables import make_table, to_html


def run_section(folder: Path) -> tuple[str, str]:
    """Key figures, curves, rounds, comparison, and which layers are encrypted.

    Args:
        folder: of the run.

    Returns:
        Title and HTML.

    Raises:
        ConfigurationError: there is no summary of a run.
    """
    path = folder / "summary.json"
    try:
        summary = SimulationSummary.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigurationError(
            f"expected the summary of a run in {path}, got {type(error).__name__}; give a folder "
            "that fedsens simulate has written"
        ) from None
    parts = [cards(_figures(summary))]
    if (folder / "curves.png").exists():
        parts.append(picture(folder / "curves.png", "Accuracy, traffic and time of the run"))
    parts += map(to_html, tables(summary, summary.baseline))
    if (folder / "protected.safetensors").exists():
        parts.append(to_html(_layers(load_protected(folder / "protected.safetensors"))))
    parts.append(conclusion(_in_words(summary)))
    return f"Run {folder.resolve().name}", "".join(parts)


def _in_words(summary: SimulationSummary) -> str:
    """What encryption changed, and what it leaves open."""
    base, own = summary.baseline, summary.scores[-1]
    told = f"{summary.ratio:.1%} of the parameters were encrypted."
    if base is not None and own is not None and base.scores[-1] is not None:
        up, down = (
            one / two for one, two in zip(_per_round(summary), _per_round(base), strict=True)
        )
        told += (
            f" Beside ratio 0 the {summary.metric} differs by {abs(own - base.scores[-1]):.4f}, "
            f"with {up:.2f} times the bytes up and {down:.2f} times the bytes down."
        )
    if summary.encrypted_parameters < summary.parameters:
        told += " What the rest tells about the data: fedsens audit. In doubt choose ratio 1."
    return told


def _figures(summary: SimulationSummary) -> list[tuple[str, str]]:
    share = f"{summary.ratio:.3g}"
    figures = [
        (summary.status.removeprefix("finished:"), "status"),
        (share, f"ratio: {summary.encrypted_parameters:,} of {summary.parameters:,} parameters"),
    ]
    if summary.opens == "server":
        figures.append(("server", "opens the mean of each round, and nobody's update"))
    if summary.probed_maps:
        figures.append((f"{summary.probed_maps}", "maps estimated from random probes, unbiased"))
    if summary.central_epsilon is not None:
        text = "epsilon (delta 1e-5) of a client that was in every mean"
        figures.append((f"{summary.central_epsilon:.3g}", text))
    if summary.scores[-1] is not None:
        figures.append((f"{summary.scores[-1]:.4f}", f"{summary.metric} after the last round"))
    base = summary.baseline
    if base is not None:
        if base.scores[-1] is not None:
            figures.append((f"{base.scores[-1]:.4f}", "the same at ratio 0"))
        own, plain = (_per_round(run) for run in (summary, base))
        for name, one, other in zip(("up", "down"), own, plain, strict=True):
            text = f"bytes {name} per round, of those at ratio 0"
            figures.append((f"{one / other:.2f}x", text))
    if summary.model_sha256 is not None:
        clients = str(summary.clients_agreeing)
        figures.append((clients, "clients evaluated the final model; all have opened the same"))
    return figures


def _per_round(summary: RunSummary) -> tuple[float, float]:
    rows = summary.per_round
    up = sum(row.bytes_up.total for row in rows) / len(rows)
    return up, sum(row.bytes_down.total for row in rows) / len(rows)


def _layers(model: ProtectedModel) -> Table:
    counts = {entry.name: int(model.mask.of(entry).sum()) for entry in model.layout.entries}
    rows = [
        (
            entry.name,
            f"{entry.size:,}",
            f"{counts[entry.name]:,}",
            f"{counts[entry.name] / entry.size:.1%}" if entry.size else "-",
        )
        for entry in model.layout.entries
    ]
    return make_table(
        ("tensor", "parameters", "encrypted", "share"),
        rows,
        title="What is encrypted",
        caption=f"Mask {model.mask.digest[:16]}, CKKS {model.parameters.name}, "
        f"{model.parameters.security_bits}-bit security of what is encrypted; the plaintext "
        "remainder of a ratio below 1 is not protected.",
    )
