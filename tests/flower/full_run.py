"""A run with everything that may happen in one, and every byte that was sent, logged or written.

Five clients agree on a key; the mask is made from their maps and renewed, the key is rotated. In
round 2 a client's function raises with its parameters in the text, another's training ends in NaN,
which its own client refuses, and a third answers another question, which the server refuses. In
round 3 a client is away. In round 4 the server dies; a new one resumes, and the model is exported.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from typer.testing import CliRunner

from fedsens import FederationKey, ParameterLayout
from fedsens.cli import app as commands
from fedsens.errors import FedSensError
from fedsens.flower import LocalGrid, SelectiveEncryption
from fedsens.flower._logs import JsonLines
from fedsens.flower._records import HEADER
from fedsens.keys import PendingUpload, UploadRecords, open_model
from fedsens.protocol import ReportFile, save_protected
from fedsens.reporting._page import page
from fedsens.reporting._sections import run_section
from fedsens.simulation._runner import COMPLETED, RunOutcome
from fedsens.simulation._summary import SimulationSummary, summarize

from .federation import (
    arrays_of,
    config_of,
    initial_arrays,
    is_reply,
    is_request,
    make_app,
    sensitivity,
    shared_key,
    train,
)

CLIENTS, ROUNDS, DIES = 5, 5, 4
RAISES, REFUSED, HOSTILE, AWAY = 1001, 1002, 1003, 1000
TROUBLE = 2  # the round in which three clients fail


class KilledError(BaseException):
    """Stands for the end of the server's process."""


@dataclass
class Story:
    """What the run left.

    Attributes:
        folder: of all files; ``state`` is the clients', the rest the server's.
        documents: what was sent, logged or written on the server's side and in the clients' logs.
        quoted: the clients' log lines that quote an exception of the app's own function.
        values: vectors of masked values: trained, weighted by examples, aggregated; and all maps.
        outcomes: of every training phase, clients and lost.
        one_time: the secrets that the clients kept for their uploads.
    """

    folder: Path
    documents: dict[str, bytes] = field(default_factory=dict)
    quoted: list[bytes] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    outcomes: list[tuple[int, int]] = field(default_factory=list)
    one_time: list[np.ndarray] = field(default_factory=list)

    def note(self, name: str, data: bytes) -> None:
        self.documents[f"{len(self.documents)} {name}"] = data


class Lines(logging.Handler):
    """Keeps every log line as text and as JSON."""

    def __init__(self, story: Story) -> None:
        super().__init__(logging.DEBUG)
        self._story, self._formats = story, (logging.Formatter(), JsonLines())

    def emit(self, record: logging.LogRecord) -> None:
        line = "\n".join(each.format(record) for each in self._formats).encode()
        if "diverged at" in record.exc_text if record.exc_text else False:
            self._story.quoted.append(line)
        else:
            self._story.note(f"log {record.name}", line)


class Federation(LocalGrid):
    """Clients of which some fail in one round; the server dies in another."""

    def __init__(self, story: Story, run_id: int, dies: bool = False) -> None:
        self._story, self._dies, self._round = story, dies, 0
        app = make_app(self._train, sensitivity=self._sensitivity)
        super().__init__(app, CLIENTS, run_id=run_id, tap=self._seen)

    def get_node_ids(self):
        return [node for node in super().get_node_ids() if (node, self._round) != (AWAY, TROUBLE)]

    def _train(self, message, context):
        self._round = message.content["config"]["server-round"]
        reply = train(message, context)
        arrays = reply.content["arrays"]
        self._keep(arrays, reply.content["metrics"]["num-examples"])
        if self._round == TROUBLE and context.node_id == RAISES:
            raise ValueError(f"diverged at {arrays['3.weight'].numpy()!r}")
        if self._round == TROUBLE and context.node_id == REFUSED:
            arrays["3.bias"] = Array(np.full(3, np.nan, np.float32))
        return reply

    def _keep(self, arrays, examples):
        model = self._strategy.model
        flat = model.layout.flatten(arrays_of(arrays))
        masked = unknown(flat, model.layout)[self._strategy._run.mask.selected]
        weight = examples / self._strategy._run.reference
        self._story.values += [masked, masked.astype(np.float64) * weight]

    def _sensitivity(self, message, context):
        smap = sensitivity(message, context)
        layout = self._strategy._run.model.layout
        self._story.values += [smap.flat(layout), smap.flat(layout) * smap.count]
        return smap

    def _seen(self, message):
        objects = get_all_nested_objects(message).values()
        kind = message.metadata.message_type
        self._story.note(f"message {kind}", b"".join(each.deflate() for each in objects))
        if message.has_error() or not message.has_content():
            return
        header = message.content.get(HEADER)
        if is_reply(message) and message.metadata.src_node_id == HOSTILE:
            content = json.loads(header["json"])
            if self._round == TROUBLE:
                message.content[HEADER] = ConfigRecord({
                    "json": json.dumps({**content, "context": "ab" * 32})
                })
        if self._dies and is_request(message) and json.loads(header["json"])["round"] == DIES:
            raise KilledError

    def run(self, story: Story, resume: bool) -> SelectiveEncryption:
        """Be a server's process."""
        output = story.folder / f"output-{self._run_id}"
        reports = ReportFile(output / "reports.jsonl")

        def seen(report):
            reports.append(report)
            if report.phase != "train":
                return
            story.outcomes.append((report.clients, report.lost))
            for path in (story.folder / "checkpoints").iterdir():
                story.note(f"file {path.name}", path.read_bytes())

        options = {"ratio": 0.5, "refresh_every": 2, "rotate_at": (3,), "resume": resume}
        config = config_of(checkpoint_dir=story.folder / "checkpoints", **options)
        self._strategy = SelectiveEncryption(FedAvg(), config, on_report=seen)
        random.seed(0)
        self._strategy.start(self, initial_arrays(), ROUNDS)
        return self._strategy


def unknown(flat: np.ndarray, layout: ParameterLayout) -> np.ndarray:
    """NaN where training has not moved the initial model, which the server knows whole."""
    initial = layout.flatten(arrays_of(initial_arrays()))
    return np.where(np.isclose(flat, initial, rtol=1e-5, atol=1e-6), np.float32(np.nan), flat)


def tell(folder: Path) -> Story:
    """Run it all; the environment names the clients' state folder already."""
    story = Story(folder)
    logger, handler = logging.getLogger(), Lines(story)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    keep = UploadRecords.keep

    def kept(records: UploadRecords, kind: str, number: int, pending: PendingUpload) -> None:
        story.one_time.append(pending.secret)
        keep(records, kind, number, pending)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(UploadRecords, "keep", kept)
            _run(story)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "state" not in path.parts[len(folder.parts) :]:
            story.note(f"file {path.relative_to(folder)}", path.read_bytes())
    return story


def _run(story: Story) -> None:
    with pytest.raises(KilledError):
        Federation(story, 1, dies=True).run(story, resume=False)
    with pytest.raises(FedSensError) as refused:  # there are checkpoints already
        Federation(story, 2).run(story, resume=False)
    story.note("exception", str(refused.value).encode())
    grid = Federation(story, 3)
    strategy = grid.run(story, resume=True)
    _export(story, strategy, shared_key(grid, strategy._run.keys.fingerprint))


def _export(story: Story, strategy: SelectiveEncryption, key: FederationKey) -> None:
    output, model = story.folder / "output-3", strategy.model
    save_protected(model, output / "protected.safetensors")
    flat = model.layout.flatten({
        name: np.asarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)
        for name, array in open_model(model, key, 1).items()
    })
    story.values.append(unknown(flat, model.layout)[model.mask.selected])
    outcome = RunOutcome("3", COMPLETED, 1.0, strategy.reports)
    summary = SimulationSummary(
        **dict(summarize(outcome, model)),
        baseline=None,
        model_sha256=None,
        clients_agreeing=CLIENTS,
        folder=output,
    )
    (output / "summary.json").write_text(summary.model_dump_json())
    (output / "report.html").write_text(page("run", "", [run_section(output)]))
    state = story.folder / "state" / "run-3" / f"node-{HOSTILE}"
    key.save(story.folder / "state" / "federation.key")
    opened = story.folder / "state" / "opened.safetensors"
    calls = [["inspect", str(path)] for path in (output / "protected.safetensors", state / "key-1")]
    calls.append(["open", calls[0][1], "--key", str(story.folder / "state" / "federation.key")])
    calls[-1] += ["--out", str(opened)]
    for call in calls:
        said = CliRunner().invoke(commands, call)
        assert said.exit_code == 0, said.output
        story.note(f"output of fedsens {call[0]}", said.output.encode())
