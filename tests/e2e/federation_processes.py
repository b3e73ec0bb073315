"""Real Flower processes on loopback, to start, kill and restart: a deployed federation in small.

::

    with Federation(tmp_path, tls=True) as federation:
        run = federation.submit({"num-server-rounds": "3"})
        federation.wait_for_round(run, 1)
        federation.kill("supernode-1")
        federation.start("supernode-1")
        assert federation.wait(run) == COMPLETED
        assert len(run.reports()) == ...

The processes are named ``superlink``, ``serverapp`` (the SuperExec that runs ServerApps),
``supernode-0``... and ``clientapp-0``... (the SuperExecs that run ClientApps). With
``isolation="subprocess"`` Flower starts the SuperExecs by itself, and they are not in the list.
A process keeps its port and its files over restarts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from fedsens.protocol import PhaseReport, ProtectedModel, load_protected, read_reports
from fedsens.simulation._runner import COMPLETED
from fedsens.simulation._superlink import flower_environment, free_port, program

ROOT = Path(__file__).parents[2]
FAILED, STOPPED = "finished:failed", "finished:stopped"
CONNECTION = "test"
MARKER = "FLOWER_TEST_PROCESS"  # in the environment of a process and of all that it starts
LOG_LINES = 30


@dataclass(frozen=True)
class Run:
    """A submitted run.

    Attributes:
        id: Flower's number.
        folder: the ServerApp's output folder.
    """

    id: str
    folder: Path

    def reports(self) -> list[PhaseReport]:
        """What the server reported so far."""
        return read_reports(self.folder / "reports.jsonl")

    def completed_rounds(self) -> int:
        """The last round whose training ended."""
        return max((r.round for r in self.reports() if r.phase == "train"), default=0)

    def model(self) -> ProtectedModel:
        """The exported model, once the run has completed."""
        return load_protected(self.folder / "protected.safetensors")


class Federation:
    """SuperLink, SuperNodes and SuperExecs of one deployment.

    Attributes:
        folder: of all files; ``state-<n>`` is the state folder of client n.
        node_config: one dict per SuperNode; a change counts from the next start of its SuperNode.
        environment: of every process; a change counts from the next start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        isolation: Literal["process", "subprocess"] = "process",
        tls: bool = False,
        node_config: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Choose ports and write the configuration; nothing is started yet.

        Args:
            folder: an empty folder.
            nodes: number of SuperNodes.
            isolation: ``process`` for SuperExecs that can be killed one by one.
            tls: certificates everywhere, and SuperNode authentication.
            node_config: settings of every node, beside the partition and the state folder.
            environment: additions to the environment of every process.
        """
        self.folder, self.isolation, self.tls = folder, isolation, tls
        self._home, self._empty = folder / "flwr", folder / "empty"
        for each in (self._home, self._empty):
            each.mkdir(parents=True)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FEDSENS_")}
        self.environment = inherited | flower_environment(self._home)
        self.environment |= {"FEDSENS_MIN_CONTRIBUTORS": "2"}  # some are lost on purpose
        self.environment |= {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3", **(environment or {})}
        self.node_config: list[dict[str, Any]] = [
            {
                "partition-id": n,
                "num-partitions": nodes,
                "fedsens-state-dir": str(folder / f"state-{n}"),
                **(node_config or {}),
            }
            for n in range(nodes)
        ]
        self._ports = {name: free_port() for name in self._servers()}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._registered: set[int] = set()
        self._runs = 0
        if tls:
            self._make_certificates()
        self._write_connection()

    @property
    def names(self) -> list[str]:
        """Names of all processes in the order of their start."""
        separate = self.isolation == "process"
        names = ["superlink", *(["serverapp"] if separate else [])]
        for n in range(len(self.node_config)):
            names += [f"supernode-{n}", *([f"clientapp-{n}"] if separate else [])]
        return names

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if error is not None:
            error.add_note(self.logs())

    def start(self, *names: str) -> None:
        """Start processes; without names all of them."""
        for name in names or self.names:
            assert not self.pids(name), f"{name} is running"
            if name.startswith("supernode-") and self.tls:
                self._register(int(name.rpartition("-")[2]))
            with self._log_path(name).open("ab") as log:
                self._started[name] = subprocess.Popen(
                    self._command(name),
                    cwd=self._empty,
                    env=self.environment | {MARKER: self._marker(name)},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            if name in self._ports:
                self._wait_for_port(name)

    def kill(self, *names: str) -> None:
        """``kill -9`` processes and all that they started: the machine is gone."""
        self._signal(names, signal.SIGKILL)

    def kill_app(self, name: str) -> int:
        """``kill -9`` the apps that a SuperExec runs now, but not the SuperExec; how many."""
        apps = [pid for pid in self.pids(name) if pid != self._started[name].pid]
        for pid in apps:
            _kill(pid, signal.SIGKILL)
        return len(apps)

    def stop(self, *names: str) -> None:
        """End processes; without names all of them."""
        names = names or tuple(reversed(self.names))
        self._signal(names, signal.SIGTERM, patience=5)
        self._signal(names, signal.SIGKILL)

    def pids(self, name: str) -> list[int]:
        """Running processes of this name, with everything that they started."""
        marker = f"{MARKER}={self._marker(name)}".encode()
        return [pid for pid in _all_pids() if marker in _environment(pid)]

    def log(self, name: str) -> str:
        """All that a process has written, over restarts."""
        path = self._log_path(name)
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self) -> str:
        """The end of every log, for the report of a failed test."""
        tails = []
        for name in self.names:
            lines = self.log(name).splitlines()[-LOG_LINES:]
            tails.append("\n".join([f"----- {name}", *lines]))
        return "\n".join(tails)

    def submit(self, config: Mapping[str, str], app: Path = ROOT) -> Run:
        """Submit a run.

        Args:
            config: run-config overrides, each value in TOML.
            app: folder of the Flower app.

        Returns:
            The run, which has just begun.
        """
        self._runs += 1
        folder = self.folder / f"output-{self._runs}"
        folder.mkdir()
        overrides = folder / "overrides.toml"
        settings = {"output-dir": json.dumps(str(folder)), **config}
        overrides.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()))
        arguments = (str(app), CONNECTION, "-c", str(overrides), "--format", "json")
        return Run(str(self.flwr("run", *arguments)["run-id"]), folder)

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Run a ``flwr`` command that prints JSON, and read it."""
        done = subprocess.run(
            [program("flwr"), *arguments],
            cwd=self._empty,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        try:
            start = done.stdout.index("{")
            return dict(json.loads(done.stdout[start : done.stdout.rindex("}") + 1]))
        except ValueError:
            raise AssertionError(
                f"flwr {' '.join(arguments)}: no JSON in {done.stdout}\n{done.stderr}"
            ) from None

    def status(self, run: Run) -> str:
        """The status that Flower gives a run; the SuperLink must be up."""
        listed = self.flwr("list", CONNECTION, "--run-id", run.id, "--format", "json")
        return str(listed["runs"][0]["status"])

    def wait(self, run: Run, timeout: float = 300) -> str:
        """Wait for the final status of a run and return it."""
        found = [""]

        def finished() -> bool:
            found[0] = self.status(run)
            return found[0].startswith("finished")

        self.wait_until(finished, timeout, every=1.0)
        return found[0]

    def wait_for_round(self, run: Run, number: int, timeout: float = 180) -> None:
        """Wait until the training of a round has ended; fail if the run ends before."""

        def reached() -> bool:
            return run.completed_rounds() >= number

        self.wait_until(reached, timeout)

    def wait_for_log(self, name: str, text: str, timeout: float = 120) -> None:
        """Wait until a process has written some text."""
        self.wait_until(lambda: text in self.log(name), timeout)

    def wait_until(
        self, condition: Callable[[], bool], timeout: float, *, every: float = 0.2
    ) -> None:
        """Wait for a condition.

        Args:
            condition: asked again and again.
            timeout: seconds.
            every: seconds between two questions.

        Raises:
            AssertionError: it did not come true in time.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout:g} s: {condition}")
            time.sleep(every)

    def _servers(self) -> list[str]:
        return ["superlink", *(f"supernode-{n}" for n in range(len(self.node_config)))]

    def _command(self, name: str) -> list[str]:
        kind, _, number = name.partition("-")
        if kind == "superlink":
            return [*self._superlink(), *self._runtime_api(name)]
        if kind == "supernode":
            return [*self._supernode(int(number)), *self._runtime_api(name)]
        port = self._ports["superlink" if kind == "serverapp" else f"supernode-{number}"]
        command = [program("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{port}"]
        return [*command, *self._to_server()]

    def _superlink(self) -> list[str]:
        command = [program("flower-superlink"), "--isolation", self.isolation]
        command += ["--database", str(self.folder / "superlink.db")]
        command += ["--disable-runtime-dependency-installation"]
        return [*command, *(["--enable-supernode-auth"] if self.tls else ["--insecure"])]

    def _supernode(self, number: int) -> list[str]:
        config = self.node_config[number]
        command = [program("flower-supernode"), "--isolation", self.isolation]
        command += ["--superlink", f"127.0.0.1:{self._ports['superlink']}", *self._to_server()]
        command += ["--node-config", " ".join(f"{k}={json.dumps(v)}" for k, v in config.items())]
        if self.tls:
            command += ["--auth-supernode-private-key", str(self._secret(f"node-{number}"))]
        return command

    def _runtime_api(self, name: str) -> list[str]:
        arguments = ["--host", "127.0.0.1", "--port", str(self._ports[name])]
        if self.tls:
            arguments += ["--ssl-ca-certfile", str(self._secret("ca.crt"))]
            arguments += ["--ssl-certfile", str(self._secret("loopback.crt"))]
            arguments += ["--ssl-keyfile", str(self._secret("loopback.key"))]
        return arguments

    def _to_server(self) -> list[str]:
        certificate = ["--root-certificates", str(self._secret("ca.crt"))]
        return certificate if self.tls else ["--insecure"]

    def _make_certificates(self) -> None:
        command = [sys.executable, str(ROOT / "docker" / "certificates.py")]
        command += [str(self.folder / "secrets"), "loopback=localhost,127.0.0.1"]
        for n in range(len(self.node_config)):
            command += ["--supernode", f"node-{n}"]
        subprocess.run(command, check=True)

    def _write_connection(self) -> None:
        security = (
            f"root-certificates = {json.dumps(str(self._secret('ca.crt')))}"
            if self.tls
            else "insecure = true"
        )
        (self._home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{self._ports["superlink"]}"\n{security}\n'
        )

    def _register(self, number: int) -> None:
        if number not in self._registered:
            public = str(self._secret(f"node-{number}.pub"))
            self.flwr("supernode", "register", public, CONNECTION, "--format", "json")
            self._registered.add(number)

    def _secret(self, name: str) -> Path:
        return self.folder / "secrets" / name

    def _log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _marker(self, name: str) -> str:
        return f"{self.folder}:{name}"

    def _wait_for_port(self, name: str) -> None:
        def reachable() -> bool:
            process = self._started[name]
            assert process.poll() is None, f"{name} ended with {process.returncode}"
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self._ports[name])) == 0

        self.wait_until(reachable, 180)

    def _signal(self, names: Sequence[str], number: signal.Signals, patience: float = 10) -> None:
        for name in names:
            for pid in self.pids(name):
                _kill(pid, number)
        deadline = time.monotonic() + patience
        for name in names:
            while self.pids(name) and time.monotonic() < deadline:
                time.sleep(0.05)
            if name in self._started:
                if number == signal.SIGKILL:  # its memory is gone before it can be waited for
                    self._started[name].wait(patience)
                self._started[name].poll()


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has just ended, or is another user's
        return []


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


__all__ = ["COMPLETED", "FAILED", "STOPPED", "Federation", "Run"]
