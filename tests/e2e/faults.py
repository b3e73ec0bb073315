"""What the tests of faults share: the small app, its options, and how to read a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fedsens import FederationKey

from .federation_processes import Federation, Run

APP = Path(__file__).parent / "apps" / "faulty"
DEADLINE = 60.0  # seconds of a phase; an honest client needs a few, on a busy machine many


@dataclass
class Story:
    """A federation that went through faults, and what is left of it.

    Attributes:
        run: the run that was submitted last.
        key: of the clients, if provisioned.
        marks: the last complete round when something was done, by its name.
        texts: what else a test wants to look at.
    """

    run: Run
    key: FederationKey | None = None
    marks: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def log(self) -> str:
        """The server's log."""
        return (self.run.folder / "server.log").read_text()

    def trained(self) -> dict[int, tuple[int, int]]:
        """Round to clients in the mean and clients lost."""
        return {r.round: (r.clients, r.lost) for r in self.run.reports() if r.phase == "train"}

    def rounds(self) -> list[int]:
        """The rounds whose training ended, in the order of the reports."""
        return [r.round for r in self.run.reports() if r.phase == "train"]


def provision(folder: Path) -> tuple[FederationKey, dict[str, str | float]]:
    """A key in a file, and the node config that names it."""
    key = FederationKey.generate()
    key.save(folder / "federation.key")
    return key, {"fedsens-key-file": str(folder / "federation.key"), "fedsens-min-ratio": 0.1}


def options(rounds: int, **more: str) -> dict[str, str]:
    """Run-config overrides; a dash for every underscore, fedsens's own keys after ``fedsens_``."""
    given = {name.replace("fedsens_", "fedsens.").replace("_", "-"): v for name, v in more.items()}
    return {"num-server-rounds": str(rounds), "round-timeout": str(DEADLINE), **given}


def finish(federation: Federation, run: Run, timeout: float = 900) -> None:
    """Wait for the end of a run by its last file, because asking Flower starts a process."""
    exported = run.folder / "protected.safetensors"
    federation.wait_until(exported.exists, timeout)


def evaluated(federation: Federation, run: Run, number: int, timeout: float = 600) -> None:
    """Wait for the end of a round, so that the training of the next one is under way."""

    def ended() -> bool:
        return any((r.round, r.phase) == (number, "evaluate") for r in run.reports())

    federation.wait_until(ended, timeout)
