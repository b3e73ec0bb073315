"""``fedsens plan``: what a federation will cost, before anything runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedsens.cli._common import JsonFile, console, named_errors, write_json
from fedsens.errors import ConfigurationError

if TYPE_CHECKING:
    from fedsens.planning import ModelSize


def plan(
    model: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Function or class that makes the model."),
    ] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arg", metavar="KEY=VALUE", help="Argument of the function; repeatable."),
    ] = None,
    state_dict: Annotated[Path | None, typer.Option(help="Or its weights (safetensors).")] = None,
    parameters: Annotated[int | None, typer.Option(min=1, help="Or its size, float32.")] = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option("--ratio", min=0, max=1, help="Repeatable; default 0, 0.1, 0.3, 0.5, 1."),
    ] = None,
    max_mb: Annotated[
        float | None,
        typer.Option(min=0, help="Find the largest ratio: MB of a client and round, both ways."),
    ] = None,
    max_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="Likewise: seconds of a round, one client's link and share of CPU."
        ),
    ] = None,
    clients: Annotated[int, typer.Option(min=2, help="Clients in a round.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds.")] = 10,
    preset: Annotated[str, typer.Option(help="tiny, compact, precise or exact.")] = "precise",
    link: Annotated[float, typer.Option(min=0.001, help="A client's link, Mbit/s.")] = 100.0,
    withheld: Annotated[
        bool,
        typer.Option(
            "--withheld", help="With fedsens.remainder=withheld; CPU and memory as without."
        ),
    ] = False,
    opens: Annotated[
        Literal["clients", "server"],
        typer.Option(help="As fedsens.opens; memory as for clients, who then decrypt."),
    ] = "clients",
    json_file: JsonFile = None,
) -> None:
    """Bytes, seconds, error and security of a round at several ratios, before anything runs.

    Bytes follow from the model's size and types; CPU seconds from a calibration of some seconds on
    this machine. With --max-mb or --max-seconds the last line is the largest ratio within the
    budget, marked so.
    """
    from fedsens.bench import RATIOS
    from fedsens.crypto import CkksParameters
    from fedsens.planning import Budget, Federation, calibrate, largest_plan, make_plan, plan_table

    with named_errors():
        size = _size(model, arguments or [], state_dict, parameters)
        codec = CkksParameters.preset(preset)
        with console.status("calibrating on this machine"):
            speed = calibrate(preset, opens=opens)
        federation = Federation(
            size.parameters,
            clients,
            rounds,
            codec,
            speed,
            link * 1e6,
            withheld,
            size.width,
            size.buffers,
            opens,
        )
        plans, largest = [make_plan(federation, ratio) for ratio in ratios or RATIOS], None
        if max_mb is not None or max_seconds is not None:
            largest = largest_plan(federation, Budget(max_mb, max_seconds))
            plans = [each for each in plans if each.encrypted != largest.encrypted] + [largest]
    console.print(plan_table(federation, plans, largest))
    if largest is not None:
        nothing = "" if largest.encrypted else ": nothing can be encrypted within it"
        console.print(f"the largest ratio within the budget is {largest.ratio:.3g}{nothing}")
    console.print(f"{codec.security_bits}-bit security of what is encrypted (HE standard)")
    content = asdict(federation) | {"codec": preset}
    write_json(json_file, {"federation": content, "plans": [asdict(each) for each in plans]})


def _size(
    model: str | None, arguments: list[str], state_dict: Path | None, parameters: int | None
) -> ModelSize:
    from fedsens.planning import ModelSize

    given = [value for value in (model, state_dict, parameters) if value is not None]
    if len(given) != 1:
        raise ConfigurationError(
            f"expected one of --model, --state-dict and --parameters, got {len(given)} of them"
        )
    if parameters is not None:
        return ModelSize(parameters)
    if state_dict is not None:
        return ModelSize.of_file(state_dict)
    from fedsens.mapping import build_model

    assert model is not None
    return ModelSize.of_state(build_model(model, arguments).state_dict())
