"""``fedsens audit recommend``: the cheapest protection that holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedsens.cli.common import console, named_errors

if TYPE_CHECKING:
    from fedsens.audit.recommend import Choice
    from fedsens.planning.plan import Plan


def recommend(
    folder: Annotated[Path, typer.Argument(help="Folder of a study.")] = Path("audit"),
    confidence: Annotated[float, typer.Option(min=0.5, max=0.999, help="Of the intervals.")] = 0.95,
    margin: Annotated[
        float, typer.Option(min=0, max=1, help="SSIM above a guess that is still noise.")
    ] = 0.02,
    preset: Annotated[str, typer.Option(help="tiny, compact, precise or exact.")] = "precise",
    clients: Annotated[int, typer.Option(min=2, help="Clients in a round.")] = 10,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine for CPU seconds, too.")
    ] = False,
) -> None:
    """The cheapest policy, ratio and remainder of a study that no attack tried gets through.

    The strongest attack must be within noise of a guess without any update at the stated
    confidence. Nothing is recommended where no attack works with nothing encrypted.
    """
    from fedsens.audit.recommend import choices
    from fedsens.audit.recommending import choice_table, recommendation
    from fedsens.audit.record import read_record
    from fedsens.audit.summary import read_facts
    from fedsens.audit.verdict import verdict
    from fedsens.crypto import CkksParameters
    from fedsens.extras import require

    with named_errors():
        require("skimage", "audit")
        codec = CkksParameters.preset(preset)
        record = read_record(folder)
        size, prior = read_facts(folder)
        lines = verdict((outcome for outcome, _ in record.known.values()), prior, confidence)
        found = choices(lines, size, codec, confidence, margin)
        console.print(choice_table(found, size, confidence, margin))
        console.print(recommendation(found, confidence))
        best = next((each for each in found if each.answer == "holds"), None)
        if calibrate and best is not None:
            plan = _planned(best, size, clients, preset)
            console.print(
                f"CPU of server and {clients} clients in a round: {plan.cpu_seconds:.3g} s, "
                "without training."
            )


def _planned(choice: Choice, size: int, clients: int, preset: str) -> Plan:
    from fedsens.audit.remainder import WITHHELD
    from fedsens.crypto import CkksParameters
    from fedsens.planning.calibrate import calibrate
    from fedsens.planning.plan import Federation, make_plan

    with console.status("calibrating on this machine"):
        speed = calibrate(preset)
    codec, withheld = CkksParameters.preset(preset), choice.line.remainder == WITHHELD
    federation = Federation(size, clients, 1, codec, speed, link=1e8, withheld=withheld)
    return make_plan(federation, choice.line.ratio)
