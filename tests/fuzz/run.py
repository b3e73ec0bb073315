"""Tries inputs on every parser and writes docs/reliability/fuzz.json: ``make fuzz``.

Each target has processes of its own, with a limit of memory and of time for each input. A run that
was stopped goes on where it ended, if neither fedsens nor the fuzzers have changed since.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import table
from .targets import ALL, BY_NAME
from .version import version

AT_ONCE = 200_000  # inputs for a process: atheris keeps up to a KiB of memory for each
COVERAGE = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)/")


def run(name: str, runs: int, work: Path, *options: str) -> dict[str, Any]:
    """Try inputs on one target, ``AT_ONCE`` in each process.

    Args:
        name: the target.
        runs: inputs in all.
        work: folder of the results.
        *options: for ``tests.fuzz.run_target``.

    Returns:
        Its result.
    """
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"{name}.log"
    drive = [sys.executable, "-m", "tests.fuzz.run_target", name]
    for upto in [*range(AT_ONCE, runs, AT_ONCE), runs]:
        with log.open("ab") as file:
            command = [*drive, str(upto), str(work), *options]
            done = subprocess.run(command, stdout=file, stderr=file, check=False)
        if done.returncode:
            raise SystemExit(
                f"{name}: exit status {done.returncode}; see {log} and {work}/finding-*"
            )
    return result_of(name, work)


def result_of(name: str, work: Path) -> dict[str, Any]:
    """The result of a target so far, with its coverage.

    Args:
        name: the target.
        work: folder of the results.

    Returns:
        What ``tests.fuzz.run_target`` counted, the branches covered and the corpus they took.
    """
    result: dict[str, Any] = json.loads((work / f"{name}.json").read_text())
    found = COVERAGE.findall((work / f"{name}.log").read_text(errors="replace"))
    if found:
        edges, features, corpus = map(int, max(found, key=lambda each: int(each[1])))
        result |= {"edges": edges, "features": features, "corpus": corpus}
    return result


def main() -> None:
    """Read the command line, run the targets, write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", choices=sorted(BY_NAME), help="only this parser")
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs per parser")
    parser.add_argument("--work", type=Path, default=Path(".fuzz") / version())
    parser.add_argument("--blind", action="store_true", help="mutations only, without atheris")
    parser.add_argument("--write", action="store_true", help="write the results into docs/")
    given = parser.parse_args()
    options = ["--blind"] if given.blind else []
    names = [given.target] if given.target else [target.name for target in ALL]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # of processes, one for each core
        results = pool.map(lambda name: run(name, given.runs, given.work, *options), names)
        targets = dict(zip(names, results, strict=True))
    if given.write:
        table.write({"python": platform.python_version(), "targets": targets})
    sys.stdout.write("".join(f"{name}: {each['inputs']:,}\n" for name, each in targets.items()))


if __name__ == "__main__":
    main()
