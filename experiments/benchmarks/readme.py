"""The measured tables of the README and of docs/benchmarks/summary.md, from docs/benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fedsens.bench._tables import three_digits

ROOT = Path(__file__).parents[2]
BENCHMARKS, README = ROOT / "docs" / "benchmarks", ROOT / "README.md"
SUMMARY = BENCHMARKS / "summary.md"
BEGIN, END = "<!-- written by make bench -->\n", "<!-- end of what make bench writes -->\n"
CODECS = {"FedML": "FedML's", "Paper": "the paper's", "precise": "precise (default)"}
STEPS = {
    "sensitivity_map true_label": "rule `true_label`",
    "sensitivity_map vector, 1 probe": "rule `vector`, one random probe",
    "sensitivity_map vector, exact": "rule `vector`, exact",
    "torch.func vmap(grad)": "= `true_label`: `torch.func` vmap(grad)",
    "torch.func vmap(grad) x C": "= exact: `torch.func` vmap(grad) for each class",
    "BackPACK BatchGrad x C": "= exact: BackPACK BatchGrad for each class",
    "Opacus x C": "= exact: Opacus for each class",
    "literal double backward": "= exact: the literal double backward (extrapolated)",
    "BackPACK BatchDiagGGNExact": "BackPACK BatchDiagGGNExact, a Fisher diagonal",
}


def update_readme() -> None:
    """Replace the tables between the two comments of the README and of the summary."""
    for page, names in pages().items():
        page.write_text(with_tables(page.read_text(), BENCHMARKS, names))


def pages() -> dict[Path, Sequence[str]]:
    """Every page with the benchmarks whose tables it shows."""
    return {README: ("round",), SUMMARY: tuple(MAKERS)}


def with_tables(page: str, benchmarks: Path, names: Sequence[str]) -> str:
    """A page with the tables of a folder of figures.

    Args:
        page: its text.
        benchmarks: the folder that ``python -m experiments.benchmarks`` wrote.
        names: of the benchmarks to show.

    Returns:
        The new text.
    """
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    figures = (json.loads((benchmarks / f"{name}.json").read_text()) for name in names)
    body = "\n".join(MAKERS[name](each) for name, each in zip(names, figures, strict=True))
    return f"{before}{BEGIN}\n{body}\n{END}{after}"


def codec(rows: Sequence[dict[str, Any]]) -> str:
    """Millions of values per second, bytes, error and security of every codec."""
    short = [row["name"].split()[0] for row in rows]
    lines = [
        [label, *(_speed(row, step) for row in rows)]
        for label, step in (
            ("client: encrypt and serialise", "encrypt"),
            ("server: load and add a client", "add"),
            ("client: load and decrypt", "decrypt"),
            ("all three, for 8 clients", "path"),
        )
    ]
    sizes = [f"{row['bytes_up']:.3g} / {row['bytes_down']:.3g}" for row in rows]
    lines.append(["bytes per value, up / down", *sizes])
    for label, name in (("rms", "rms"), ("largest", "largest")):
        errors = (f"{max(row[name].values()):.0e}" for row in rows)
        lines.append([f"{label} error of a 10-client mean", *errors])
    lines.append([
        "security by the HE standard, bits",
        *(str(row["security_bits"]) for row in rows),
    ])
    return (
        "The codec in millions of values per second, beside TenSEAL's `CKKSVector` with the "
        "parameters\nof FedML, of NVFlare and of the FedML-HE paper; in brackets, times "
        "FedML's. Errors are the worst of\nweights, a constant, a spike and values at the full "
        "range:\n\n" + _table(["", *(CODECS.get(name, name) for name in short)], lines)
    )


def maps(content: dict[str, Any]) -> str:
    """Training steps per sample of every method and case."""
    cases = content["cases"]
    lines = []
    for method, label in STEPS.items():
        found = [{row["method"]: row for row in case["rows"]}.get(method) for case in cases]
        lines.append([label, *("-" if row is None else _number(row["steps"]) for row in found)])
    return (
        "A sensitivity map in training steps per sample (lower is better). Lines with =\n"
        "compute the same numbers as one of ours, which is checked:\n\n"
        + _table(["", *(_case(case) for case in cases)], lines)
    )


def round_(content: dict[str, Any]) -> str:
    """Bytes and CPU time of a round relative to plain Flower FedAvg."""
    rows = content["rows"][1:]
    lines = [
        [label, *(f"{row['relative'][name]:.2f}x" for row in rows)]
        for label, name in (("bytes up", "up"), ("bytes down", "down"), ("CPU time", "time"))
    ]
    return (
        f"A round of ResNet-18 ({content['parameters'] / 1e6:.1f} million parameters, "
        f"{content['clients']} clients, an\nepoch of {content['images']} images each) "
        "relative to plain Flower FedAvg; CPU time is that of server, clients\nand training:\n\n"
        + _table(["", *(row["name"] for row in rows)], lines)
    )


def scale(content: dict[str, Any]) -> str:
    """Memory of the server by number of clients."""
    ours, plain = content["clients"], content["clients, plain"]
    lines = [
        [label, *(f"{row['server_peak'] / 2**20:.0f} MiB" for row in rows)]
        for label, rows in (("fedsens, ratio 1", ours), ("plain Flower FedAvg", plain))
    ]
    return (
        "Memory of the server's process, all libraries included, for "
        f"{ours[0]['parameters']:,}\nparameters. Ciphertexts are added as they arrive:\n\n"
        + _table(["clients", *(str(row["clients"]) for row in ours)], lines)
    )


MAKERS: dict[str, Callable[[Any], str]] = {
    "codec": codec,
    "map": maps,
    "round": round_,
    "scale": scale,
}


def _speed(row: dict[str, Any], step: str) -> str:
    times = row["times FedML"][step]
    return three_digits(row[step]) + ("" if times == 1 else f" ({three_digits(times)}x)")


def _case(case: dict[str, Any]) -> str:
    name = case["case"].split("-")[0]
    known = {"lenet28": "LeNet-28", "lenet": "LeNet", "resnet18": "ResNet-18"}
    return f"{known.get(name, name)}, {case['classes']} classes"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rules = ["---"] * len(header)
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rules, *lines))
