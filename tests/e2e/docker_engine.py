"""A Docker engine for tests: the one that is reachable, else a private one, else a reason."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

START_SECONDS = 60.0


class NoEngineError(Exception):
    """There is no Docker engine here; the text is the reason to skip."""


@contextmanager
def docker_engine() -> Iterator[str | None]:
    """Find or start an engine.

    Yields:
        What ``DOCKER_HOST`` must be, None to leave it as it is.

    Raises:
        NoEngineError: none is reachable and none can be started.
    """
    if shutil.which("docker") is None:
        raise NoEngineError("no docker command is installed")
    if not (_answers("docker-compose", "version") or _answers("docker", "compose", "version")):
        raise NoEngineError("neither docker compose nor docker-compose is installed")
    if _answers("docker", "info"):
        yield None
    elif os.geteuid() or shutil.which("dockerd") is None:
        raise NoEngineError("no Docker engine answers, and to start one takes root and dockerd")
    else:
        # Not pytest's folder, which is kept, and whose long name is no place for a socket.
        with TemporaryDirectory(prefix="fedsens-docker-") as folder, _started(Path(folder)) as host:
            yield host


@contextmanager
def _started(folder: Path) -> Iterator[str]:
    host, log = f"unix://{folder}/docker.sock", folder / "dockerd.log"
    # A machine without CAP_SYS_RESOURCE may not lower its OOM score, which dockerd does unasked.
    command = ["dockerd", "--host", host, "--oom-score-adjust=0"]
    command += ["--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
    command += ["--pidfile", f"{folder}/dockerd.pid"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers("docker", "--host", host, "info"):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise NoEngineError(f"dockerd does not start here: {' '.join(last)}")
            time.sleep(0.5)
        yield host
    finally:
        process.terminate()
        process.wait(60)


def _answers(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
