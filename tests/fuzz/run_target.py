"""Tries many inputs on one target, in this process.

To run it: ``python -m tests.fuzz.run_target TARGET RUNS WORK``.

With atheris the inputs are guided by coverage of fedsens; without it (or with ``--blind``) they
are mutations of the seeds, the same ones for the same number of inputs tried before.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import importlib
import json
import logging
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

FLUSH = 5000  # inputs between two writes of the result
MENDED = 0.8  # share of the inputs whose checksums are made right


class Drive:
    """One run of one target, which goes on where the last one ended."""

    def __init__(self, name: str, runs: int, work: Path) -> None:
        targets, guard = (
            importlib.import_module(f"tests.fuzz.{each}") for each in ("targets", "guard")
        )
        self.target = targets.BY_NAME[name]
        self.guard = guard.Guard(self.target)
        self._resident, self._before = guard.resident, guard.resident()
        self._path, self._work = work / f"{name}.json", work
        self._old: dict[str, Any] = (
            json.loads(self._path.read_text()) if self._path.exists() else {}
        )
        self._version = importlib.import_module("tests.fuzz.version").version()
        if self._old.get("version", self._version) != self._version:
            raise SystemExit(f"expected results of this version in {work}, got another's")
        self.left = max(runs - self._old.get("inputs", 0), 0)
        self._seeds = self.target.seeds()
        self._random = random.Random(self._old.get("inputs", 0))
        self._started = time.process_time()

    def mutate(self, data: bytes, most: int) -> bytes:
        """A new input from an old one."""
        changed = self.target.mutate(data, self._random, self._seeds)[:most]
        if self._random.random() < MENDED:
            return bytes(self.target.mend(changed))[:most]
        return changed

    def try_input(self, data: bytes) -> None:
        """Try an input; one that finds something is kept, and ends the run."""
        try:
            self.guard.try_input(data)
        except BaseException as error:
            name = f"{self.target.name}-{hashlib.sha256(data).hexdigest()[:12]}"
            (self._work / f"finding-{name}").write_bytes(data)
            logging.getLogger(__name__).critical("%s: %s: %s", name, type(error).__name__, error)
            self._flush()
            raise
        if self.guard.inputs % FLUSH == 0 or self.guard.inputs == self.left:
            self._flush()

    def blind(self) -> None:
        """Try mutations of the seeds, each within the time limit."""
        faulthandler.register(signal.SIGALRM, chain=True)
        seconds = importlib.import_module("tests.fuzz.guard").SECONDS
        for _ in range(self.left):
            data = self.mutate(self._random.choice(self._seeds), self.target.most)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            self.try_input(data)
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _flush(self) -> None:
        old, guard = self._old, self.guard
        seconds = time.process_time() - self._started
        result = {
            "version": self._version,
            "inputs": old.get("inputs", 0) + guard.inputs,
            "outcomes": dict(Counter(old.get("outcomes", {})) + guard.outcomes),
            "cpu_seconds": old.get("cpu_seconds", 0.0) + seconds,
            "peak_bytes": max(old.get("peak_bytes", 0), guard.peak),
            "multiple": max(old.get("multiple", 0.0), guard.multiple),
            "grown_bytes": max(old.get("grown_bytes", 0), self._resident() - self._before),
        }
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps(result))
        draft.replace(self._path)


def guided(drive: Drive, atheris: Any, work: Path) -> None:
    """Let atheris choose the inputs; it ends the process."""
    corpus = work / f"{drive.target.name}-corpus"
    corpus.mkdir(exist_ok=True)
    own = Path(__file__).with_name("corpus") / (drive.target.corpus or drive.target.name)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        # The library's own mutations know which comparisons failed; ours know the formats.
        return drive.mutate(atheris.Mutate(data, len(data)) if seed % 4 == 0 else data, most)

    options = {
        "runs": drive.left,
        "max_len": drive.target.most,
        "len_control": 0,
        "timeout": importlib.import_module("tests.fuzz.guard").SECONDS,
        "rss_limit_mb": 0,  # the address space is limited
        "artifact_prefix": f"{work}/{drive.target.name}-",
        "seed": 1 + drive.left,
        "reload": 0,
    }
    command = [sys.argv[0], *(f"-{name}={value}" for name, value in options.items())]
    atheris.Setup([*command, str(corpus), str(own)], drive.try_input, custom_mutator=mutated)
    atheris.Fuzz()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("runs", type=int, help="inputs in all, those of earlier runs included")
    parser.add_argument("work", type=Path, help="folder for results, findings and new inputs")
    parser.add_argument("--blind", action="store_true", help="without coverage")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    atheris = None if given.blind else importlib.import_module("atheris")
    if atheris is None:
        drive = Drive(given.target, given.runs, given.work)
    else:
        with atheris.instrument_imports(include=["fedsens"]):
            drive = Drive(given.target, given.runs, given.work)
    logging.getLogger("fedsens").setLevel(logging.CRITICAL)
    importlib.import_module("tests.fuzz.guard").limit_memory()
    if drive.left:
        drive.blind() if atheris is None else guided(drive, atheris, given.work)


if __name__ == "__main__":
    main()
