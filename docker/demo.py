"""Run a federation of containers from nothing to its result: what ``make deploy-demo`` calls.

Needs Docker with docker compose (or docker-compose), and Python; the certificates and keys are made
inside the image. Everything ends up in one folder, runs/deploy-demo by default. Environment:
the Dockerfile's build arguments, and what compose.yml lists.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

DOCKER = Path(__file__).resolve().parent
ROOT = DOCKER.parent
SITES = (1, 2, 3)
ATTEMPTS = 3  # to stop the containers
SERVERS = ("superlink", "superexec-serverapp")
RUNNING = (
    *SERVERS,
    *(f"{kind}-{n}" for n in SITES for kind in ("supernode", "superexec-clientapp")),
)
DEFAULT_BASE = "python:3.11-slim-bookworm"
DEBIAN_BASE = "fedsens-debian-base:bookworm"


class DemoError(Exception):
    """The demonstration cannot go on; the text says what to do."""


class Demo:
    """A federation of containers on this machine.

    Attributes:
        folder: of its secrets, its result and its logs.
        environment: of every docker command.
    """

    def __init__(self, folder: Path, project: str = "fedsens-demo") -> None:
        """Find Docker; nothing is started yet.

        Args:
            folder: for all files; what an earlier demonstration left there is removed.
            project: name of the compose project.
        """
        self.folder, self.secrets = folder.resolve(), folder.resolve() / "secrets"
        self._project = project
        self.environment = {
            **os.environ,
            "FEDERATION_IMAGE": os.environ.get("FEDERATION_IMAGE", "fedsens:demo"),
            "FEDERATION_SECRETS": str(self.secrets),
            "COMPOSE_HTTP_TIMEOUT": "300",  # docker-compose 1.29 gives a busy engine one minute
            "FEDERATION_PORT": os.environ.get("FEDERATION_PORT", "127.0.0.1:0"),
        }
        if not _has_buildkit():
            self.environment["DOCKER_BUILDKIT"] = "0"
        self._compose = _compose()
        self.user = self._choose_user()
        self.environment["FEDERATION_USER"] = str(self.user)

    def build(self) -> None:
        """Build the image."""
        self.environment.setdefault("BASE_IMAGE", self._base_image())
        self.environment |= _local_packages()
        names = ("BASE_IMAGE", "PIP_INDEX_URL", "TORCH_INDEX_URL", "CA_BUNDLE")
        arguments = [argument for name in names for argument in ("--build-arg", name)]
        files = ("-f", str(DOCKER / "Dockerfile"), "-t", self.environment["FEDERATION_IMAGE"])
        self._call(["docker", "build", *files, *arguments, str(ROOT)], None)

    def make_secrets(self) -> None:
        """Make certificates, the SuperNodes' keys and the clients' key."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.secrets.mkdir(parents=True, mode=0o700)
        self._hand_over()
        servers = ["superlink=superlink,localhost,127.0.0.1"]
        servers += [f"supernode-{n}=supernode" for n in SITES]
        nodes = [argument for n in SITES for argument in ("--supernode", f"node-{n}")]
        self.in_image("python3", "/opt/fedsens/certificates.py", "secrets", *servers, *nodes)
        self.in_image("fedsens", "keygen", "secrets/federation.key")

    def start(self) -> None:
        """Start the SuperLink, register the SuperNodes' public keys, start everything else."""
        self.compose("up", "-d", "--no-build", "superlink")
        self._wait_for_superlink()
        for n in SITES:
            key = self.secrets / f"node-{n}.pub"
            register = ("flwr", "supernode", "register", f"/keys/node-{n}.pub", "tls")
            self.compose("run", "--rm", "-v", f"{key}:/keys/node-{n}.pub:ro", "submit", *register)
        self.compose("up", "-d", "--no-build", *RUNNING)

    def run(self, *settings: str) -> None:
        """Run the app to its end and fetch what the server kept.

        Args:
            *settings: run-config overrides, KEY=VALUE.
        """
        command = ["fedsens", "submit", "/opt/fedsens/app", "tls", "--output-dir", "/app/output"]
        command += ["--json", "/app/output/summary.json"]
        for setting in settings:
            command += ["--set", setting]
        self.compose("run", "--rm", "submit", *command)
        server = self.container("superexec-serverapp")
        self.docker("cp", f"{server}:/app/output/.", str(self.folder))
        self._hand_over()

    def open(self) -> str:
        """Open the protected model with the clients' key and compare it with the clients' own.

        Returns:
            The digest of the opened model.

        Raises:
            DemoError: a client decrypted something else.
        """
        files = ("protected.safetensors", "--key", "secrets/federation.key")
        said = self.in_image("fedsens", "open", *files, "--out", "model.safetensors")
        digest = said.split("sha256")[1].split()[0]
        for n in SITES:
            read = ("sh", "-c", "cat /app/state/fedsens/run-*/node-*/model.json")
            record = json.loads(self.inside(f"superexec-clientapp-{n}", *read))
            if record["sha256"] != digest:
                raise DemoError(
                    f"expected client {n} to have decrypted the model {digest}, "
                    f"it noted {record['sha256']}"
                )
        return digest

    def stop(self) -> None:
        """Keep the logs, then stop and remove everything but the image.

        Raises:
            DemoError: something is left, because the engine does not do as it is told.
        """
        if self.folder.exists():
            with (self.folder / "containers.log").open("wb") as log:
                self._call([*self.compose_command(), "logs", "--no-color"], log, check=False)
        down = ("down", "--volumes", "--remove-orphans", "--timeout", "5")
        for _ in range(ATTEMPTS):
            if self.compose(*down, check=False) == 0:
                return
        raise DemoError(
            f"containers are left; remove them: docker compose -p {self._project} down -v"
        )

    def inside(self, service: str, *command: str) -> str:
        """Run a command inside a running container and return what it writes."""
        return self.docker("exec", "-i", self.container(service), *command)

    def container(self, service: str) -> str:
        """The id of a service's container."""
        command = [*self.compose_command(), "ps", "-q", service]
        return self._call(command, subprocess.PIPE).strip()

    def in_image(self, *command: str) -> str:
        """Run a command in a new container that sees the demonstration's folder, and no network."""
        mount = ("-v", f"{self.folder}:/mnt", "-w", "/mnt", "--network", "none")
        who = ("--user", f"{self.user}:0")
        image = self.environment["FEDERATION_IMAGE"]
        return self.docker("run", "--rm", *mount, *who, image, *command)

    def docker(self, *arguments: str) -> str:
        """Run docker and return what it writes."""
        return self._call(["docker", *arguments], subprocess.PIPE)

    def compose(self, *arguments: str, check: bool = True) -> int:
        """Run docker compose, whose output a person sees, and return its exit status."""
        return self._run([*self.compose_command(), *arguments], None, check).returncode

    def compose_command(self) -> list[str]:
        """The compose command with this federation's files and project."""
        files = ["-f", str(DOCKER / "compose.yml"), "-f", str(DOCKER / "with-tls.yml")]
        return [*self._compose, "-p", self._project, *files]

    def _call(
        self, command: Sequence[str], output: int | IO[bytes] | None, check: bool = True
    ) -> str:
        return self._run(command, output, check).stdout or ""

    def _run(
        self, command: Sequence[str], output: int | IO[bytes] | None, check: bool
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, env=self.environment, stdout=output, text=True, check=False)
        if check and done.returncode:
            shown = " ".join(command)
            raise DemoError(f"expected this to succeed, it ended with {done.returncode}: {shown}")
        return done

    def _hand_over(self) -> None:
        if os.geteuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self.user, 0)

    def _choose_user(self) -> int:
        # A private key must belong to the user who reads it inside a container.
        options = self.docker("info", "--format", "{{json .SecurityOptions}}")
        if "name=rootless" in options:
            return 0  # which is this user, outside
        return os.geteuid() or 49999

    def _base_image(self) -> str:
        for image in (DEFAULT_BASE, DEBIAN_BASE):
            if _succeeds("docker", "image", "inspect", image):
                return image
        if _succeeds("docker", "pull", DEFAULT_BASE):
            return DEFAULT_BASE
        if os.geteuid() or shutil.which("debootstrap") is None:
            raise DemoError(
                f"expected to pull {DEFAULT_BASE}, could not; set BASE_IMAGE to an image with "
                "Python 3.11, or install debootstrap and run this as root"
            )
        say(f"no registry has {DEFAULT_BASE}: making a Debian base image by debootstrap")
        self._call([str(DOCKER / "debian-base.sh"), DEBIAN_BASE], None)
        return DEBIAN_BASE

    def _wait_for_superlink(self) -> None:
        probe = "import socket; socket.create_connection(('superlink', 8000), 2)"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if _succeeds("docker", "exec", self.container("superlink"), "python3", "-c", probe):
                return
            time.sleep(0.5)
        raise DemoError("expected the SuperLink to listen within 60 s; read containers.log")


def _compose() -> list[str]:
    if not _succeeds("docker", "info"):
        raise DemoError(
            "expected a Docker engine, found none: start one, or set DOCKER_HOST to its socket"
        )
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and _succeeds(*command, "version"):
            return command
    raise DemoError("expected docker compose or docker-compose, found neither: install one")


def _has_buildkit() -> bool:
    return _succeeds("docker", "buildx", "version")


def _succeeds(*command: str) -> bool:
    return (
        subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


def _local_packages() -> dict[str, str]:
    """Hand on what this machine's pip knows: its certificates, and torch if it has a wheel."""
    local = DOCKER / "local"
    if not list(local.glob("torch-*.whl")):
        # Without an index pip finds only the wheels of its find-links, if there are any.
        pip = (
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-index",
            "--no-deps",
            "--dest",
            str(local),
        )
        _succeeds(*pip, "--constraint", str(ROOT / "constraints.txt"), "torch")
    bundle = os.environ.get("PIP_CERT")
    if bundle is None or "CA_BUNDLE" in os.environ:
        return {}
    shutil.copyfile(bundle, local / "ca-bundle.crt")
    return {"CA_BUNDLE": "ca-bundle.crt"}


def say(text: str) -> None:
    """Tell a person what happens."""
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def report(demo: Demo, digest: str) -> None:
    """Print the result of a demonstration."""
    summary = json.loads((demo.folder / "summary.json").read_text())
    share = f"{summary['encrypted_parameters']:,} of {summary['parameters']:,}"
    up, down = summary["bytes_up"], summary["bytes_down"]
    say("summary")
    lines = {
        "status": summary["status"],
        "rounds": summary["rounds"],
        "accuracy": ", ".join(f"{value:.4f}" for value in summary["accuracy"]),
        "encrypted": f"{share} parameters",
        "bytes up": f"{up['plain']:,} plain + {up['encrypted']:,} encrypted",
        "bytes down": f"{down['plain']:,} plain + {down['encrypted']:,} encrypted",
        "seconds": f"{summary['seconds']['total']:.0f}",
        "protected model": f"{demo.folder}/protected.safetensors (what the server has)",
        "opened model": f"{demo.folder}/model.safetensors (with secrets/federation.key)",
        "sha256": f"{digest[:16]}..., the same at all {len(SITES)} sites",
    }
    for name, value in lines.items():
        sys.stdout.write(f"{name:16} {value}\n")


def main() -> int:
    """Run the demonstration; 0 if the run completed.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "deploy-demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        demo = Demo(options.folder)
        say("building the image")
        demo.build()
        say("making certificates and keys")
        demo.make_secrets()
        try:
            say("starting SuperLink, SuperNodes and SuperExecs")
            demo.start()
            say("running the app")
            demo.run("num-server-rounds=3", *options.set)
            report(demo, demo.open())
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # an impatient second Ctrl-C leaves nothing
            say("stopping")
            demo.stop()
    except DemoError as error:
        sys.stderr.write(f"deploy-demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("deploy-demo: interrupted\n")
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
