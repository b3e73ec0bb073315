"""Summaries, figures and tables from reports, without starting Flower."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from fedsens.protocol import PhaseReport
from fedsens.reporting._sections import run_section
from fedsens.simulation._figure import draw_curves
from fedsens.simulation._runner import RunOutcome
from fedsens.simulation._screen import SimulationScreen, tables
from fedsens.simulation._summary import SimulationSummary, choose_metric, summarize
from tests.simulation.helpers import protected_model


def reports(rounds=2):
    yield PhaseReport(phase="keys", round=1, clients=3, bytes_up_plain=5, seconds=1.0)
    yield PhaseReport(phase="map", round=1, clients=3, probed_maps=2)
    for number in range(1, rounds + 1):
        yield PhaseReport(
            phase="train",
            round=number,
            clients=2,
            lost=1,
            bytes_up_plain=100,
            bytes_up_encrypted=40,
            bytes_down_plain=110,
            bytes_down_encrypted=80,
            seconds=2.0,
            encrypt_seconds=0.1,
        )
        yield PhaseReport(
            phase="evaluate",
            round=number,
            clients=3,
            bytes_down_plain=110,
            seconds=0.5,
            metrics={"accuracy": 0.5 + 0.1 * number},
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return protected_model(tmp_path_factory.mktemp("model"))[0]


@pytest.fixture
def simulation(model):
    return lambda folder: simulation_of(model, folder)


def simulation_of(model, folder):
    run = summarize(RunOutcome("1", "finished:completed", 9.0, list(reports())), model)
    return SimulationSummary(
        **dict(run), baseline=run, model_sha256="ab" * 32, clients_agreeing=3, folder=folder
    )


def test_a_summary_adds_phases_up(simulation, tmp_path):
    summary = simulation(tmp_path)
    assert (summary.parameters, summary.encrypted_parameters, summary.ratio) == (4, 1, 0.25)
    assert summary.accuracy == pytest.approx([0.6, 0.7])
    assert summary.bytes_up.model_dump() == {"plain": 205, "encrypted": 80}
    assert summary.bytes_down.model_dump() == {"plain": 440, "encrypted": 160}
    assert summary.seconds == {"keys": 1.0, "map": 0.0, "train": 4.0, "evaluate": 1.0, "total": 9.0}
    assert summary.probed_maps == 2
    first = summary.per_round[0]
    assert (first.clients, first.lost, first.seconds, first.encrypt_seconds) == (2, 1, 2.5, 0.1)
    assert first.bytes_up.model_dump() == {"plain": 100, "encrypted": 40}
    assert SimulationSummary.model_validate_json(summary.model_dump_json()) == summary


def test_a_run_without_evaluation_has_no_accuracy(model):
    only = [report for report in reports() if report.phase != "evaluate"]
    summary = summarize(RunOutcome("1", "finished:completed", 9.0, only), model)
    assert (summary.metric, summary.accuracy) == (None, [None, None])


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["loss", "accuracy", "eval_acc"], "accuracy"),
        (["num-examples", "eval_loss", "eval_acc"], "eval_acc"),
        (["eval_loss", "auc"], "auc"),
        (["mse"], "mse"),
        (["num-examples"], None),
    ],
)
def test_the_metric_is_an_accuracy_if_there_is_one(names, chosen):
    assert choose_metric(names) == chosen


def test_a_metric_that_is_asked_for_is_taken_or_missed():
    assert choose_metric(["accuracy", "f1"], "f1") == "f1"
    assert choose_metric(["accuracy", "f1"], "f2") is None


def test_any_metric_is_compared_under_its_own_name(model, tmp_path):
    named = [
        report.model_copy(update={"metrics": {"eval_f1": 0.25} if report.metrics else {}})
        for report in reports()
    ]
    run = summarize(RunOutcome("1", "finished:completed", 9.0, named), model)
    assert (run.metric, run.scores) == ("eval_f1", [0.25, 0.25])
    assert json.loads(run.model_dump_json())["accuracy"] == [None, None]
    summary = SimulationSummary(
        **dict(run), baseline=None, model_sha256=None, clients_agreeing=0, folder=tmp_path
    )
    draw_curves(summary, tmp_path / "curves.png")
    console = Console(record=True, width=80)
    SimulationScreen(console, None, None, baseline=False).conclude(summary, tmp_path)
    assert "eval_f1" in console.export_text()


def test_a_run_without_metrics_says_so(model, tmp_path):
    bare = [report.model_copy(update={"metrics": {}}) for report in reports()]
    run = summarize(RunOutcome("1", "finished:completed", 9.0, bare), model)
    summary = SimulationSummary(
        **dict(run), baseline=run, model_sha256=None, clients_agreeing=0, folder=tmp_path
    )
    draw_curves(summary, tmp_path / "curves.png")
    console = Console(record=True, width=80)
    SimulationScreen(console, 2, 0.1, baseline=True).conclude(summary, tmp_path)
    assert "No metric to compare; the app reports: none." in console.export_text()


def test_the_end_of_a_run_tells_its_warnings_and_who_was_lost_once(model, tmp_path):
    first, *rest = reports()
    reasons = {1: "ValueError in the app", 2: "ValueError in the app", 3: "KeyFileError: [x]"}
    told = [
        first.model_copy(update={"warnings": ["examples in install()"]}),
        *(each.model_copy(update={"warnings": ["examples in install()"]}) for each in rest),
        PhaseReport(phase="train", round=3, clients=2, lost=3, reasons=reasons),
    ]
    run = summarize(RunOutcome("1", "finished:completed", 9.0, told), model)
    assert run.warnings == [
        "examples in install()",
        "round 3 train: 2 clients lost: ValueError in the app",
        "round 3 train: 1 client lost: KeyFileError: [x]",
    ]
    console = Console(record=True, width=100)
    more = {"baseline": None, "model_sha256": None, "clients_agreeing": 0, "folder": tmp_path}
    for opens in ("clients", "server", None):
        summary = SimulationSummary(**{**dict(run), **more, "opens": opens})
        SimulationScreen(console, None, None, baseline=False).conclude(summary, tmp_path)
        shown = console.export_text()
        for warning in run.warnings:
            assert shown.count(f"Warning: {warning}") == 1
        assert ("they have NaN at the" in shown) == (opens == "clients")


@pytest.mark.parametrize("metric", ["accuracy", "next_token_acc", "val-top-5-accuracy"])
def test_the_name_of_a_metric_takes_no_figure_its_room(model, metric):
    told = [each.model_copy(update={"metrics": {metric: 0.5}}) for each in reports()]
    run = summarize(RunOutcome("1", "finished:completed", 9.0, told), model)
    console = Console(record=True, width=80)
    console.print(*tables(run, run))
    assert "…" not in console.export_text()


def test_the_figure_and_the_tables_are_drawn(simulation, tmp_path):
    summary = simulation(tmp_path)
    draw_curves(summary, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    console = Console(record=True, width=80)
    with SimulationScreen(console, rounds=2, ratio=0.25, baseline=True) as screen:
        for report in reports():
            screen.show("encrypted", report)
    screen.conclude(summary, tmp_path)
    text = console.export_text()
    assert "0.7000" in text
    assert "1 of 4" in text
    assert "2 (-1)" in text
    assert "…" not in text.split("Rounds at ratio")[1]  # nothing is cut off at 80 columns


def test_a_run_tells_who_opened_and_what_its_means_cost(model, tmp_path):
    told = {"opens": "server", "central_epsilon": 3.25}
    named = [r.model_copy(update=told if r.phase == "train" else {}) for r in reports()]
    run = summarize(RunOutcome("1", "finished:completed", 9.0, named), model)
    assert (run.opens, run.central_epsilon) == ("server", 3.25)
    summary = SimulationSummary(
        **dict(run), baseline=run, model_sha256=None, clients_agreeing=0, folder=tmp_path
    )
    (tmp_path / "summary.json").write_text(summary.model_dump_json())
    _, page = run_section(tmp_path)
    assert "opens the mean of each round" in page
    assert "3.25" in page
    console = Console(record=True, width=80)
    SimulationScreen(console, 2, 0.1, baseline=True).conclude(summary, tmp_path)
    assert "the server" in console.export_text()
