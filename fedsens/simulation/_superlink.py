"""A SuperLink of our own for the time of a simulation, isolated from the user's Flower set-up.

``flwr run`` submits an app to a SuperLink. The one it would start by itself stays for ever,
installs the app's dependencies anew on every run, and imports top-level packages from wherever it
was started. This one runs in an empty folder, with its own FLWR_HOME and port, and ends with the
``with`` block.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedsens.errors import SimulationError

LINK_NAME = "fedsens-simulation"
START_SECONDS = 60.0
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink.

    Attributes:
        environment: for every ``flwr`` command that talks to it.
        folder: an empty folder to run these commands in.
        name: its name in Flower's configuration.
    """

    environment: Mapping[str, str]
    folder: Path
    name: str = LINK_NAME


def program(name: str) -> str:
    """Path of a command that was installed beside this Python, such as ``flwr``."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise SimulationError(
            f"expected the command {name} beside {sys.executable}, found none; "
            "install fedsens[simulation] into this environment"
        )
    return str(path)


@contextmanager
def superlink(folder: Path, environment: Mapping[str, str]) -> Iterator[SuperLink]:
    """Start a SuperLink for simulations and end it, with all its processes.

    Args:
        folder: for its files and log.
        environment: additions to this process's environment, which simulated clients inherit.

    Yields:
        The SuperLink, ready to take runs.
    """
    home, neutral = folder / "home", folder / "empty"
    for each in (home, neutral):
        each.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "{LINK_NAME}"\n\n'
        f'[superlink.{LINK_NAME}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    merged = os.environ | flower_environment(home) | dict(environment)
    command = [program("flower-superlink"), "--insecure", "--simulation"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--disable-runtime-dependency-installation"]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=neutral,
            env=merged,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that the whole group can be ended
        )
        try:
            _wait_for(port, process, folder / "superlink.log")
            yield SuperLink(merged, neutral)
        finally:
            _end(process)


def flower_environment(home: Path) -> dict[str, str]:
    """Variables that keep Flower's processes to themselves: nothing installed, nothing sent."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SimulationError(
        f"expected a SuperLink on port {port} within {START_SECONDS:g} s, got none; see {log}"
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, signal_number)
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return
