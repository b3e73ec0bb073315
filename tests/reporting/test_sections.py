"""What a page says of runs, studies and experiments."""

import json

import pytest
from typer.testing import CliRunner

from fedsens.cli import app
from fedsens.protocol import save_protected
from fedsens.simulation._summary import Bytes, RoundSummary, RunSummary, SimulationSummary
from tests.simulation.helpers import protected_model

from .html_reader import HOSTILE, Reader

PIXEL = bytes.fromhex("89504e470d0a1a0a")  # a page does not look into pictures


def run(accuracy):
    row = RoundSummary(
        round=1,
        score=accuracy,
        metrics={"loss": 0.5},
        clients=3,
        lost=0,
        bytes_up=Bytes(plain=100, encrypted=20),
        bytes_down=Bytes(plain=100, encrypted=40),
        seconds=1.0,
        encrypt_seconds=0.1,
        decrypt_seconds=0.1,
        add_seconds=0.1,
    )
    return RunSummary(
        status="finished:completed",
        rounds=1,
        ratio=0.25,
        parameters=4,
        encrypted_parameters=1,
        probed_maps=2,
        metric=None if accuracy is None else "accuracy",
        bytes_up=row.bytes_up,
        bytes_down=row.bytes_down,
        seconds={"train": 1.0, "total": 2.0},
        per_round=[row],
    )


def write_run(folder, accuracy=0.75, baseline=True):
    base = run(0.5)
    plain = base.per_round[0].model_copy(update={"bytes_up": Bytes(plain=100, encrypted=0)})
    base = base.model_copy(update={"per_round": [plain]})
    summary = SimulationSummary(
        **dict(run(accuracy)),
        baseline=base if baseline else None,
        model_sha256="ab" * 32,
        clients_agreeing=2,
        folder=folder,
    )
    (folder / "summary.json").write_text(summary.model_dump_json())
    (folder / "curves.png").write_bytes(PIXEL)
    model, _ = protected_model(folder)
    save_protected(model, folder / "protected.safetensors")


def report(*arguments):
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_run_shows_its_figures_and_its_mask(tmp_path):
    folder = tmp_path / "run-1"
    folder.mkdir()
    write_run(folder)
    result = report(folder, "--out", tmp_path / "page.html", "--title", "My run")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text()
    read = Reader(text)
    assert read.open == []
    for shown in (
        "My run",
        "Run run-1",
        "0.7500",
        "1.20x",
        "clients evaluated the final model",
        "maps estimated from random probes",
        "256-bit",
        "differs by 0.2500, with 1.20 times the bytes up",
    ):
        assert shown in text
    at = read.cells.index("weight")
    names, sizes, counts, shares = zip(*(read.cells[i : i + 4] for i in (at, at + 4)), strict=True)
    assert (names, sizes) == (("weight", "bias"), ("3", "1"))
    assert sorted(counts) == ["0", "1"]
    assert {*shares} <= {"0.0%", "33.3%", "100.0%"}
    assert [a[:22] for a in read.addresses] == ["data:image/png;base64,"]


def test_a_run_without_accuracy_and_baseline_shows_what_there_is(tmp_path):
    write_run(tmp_path, accuracy=None, baseline=False)
    result = report(tmp_path, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert "accuracy after" not in (tmp_path / "page.html").read_text()


def test_experiments_show_every_row(tmp_path):
    folder = tmp_path / "first" / "results"
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text(
        "# The first table\n\nText.\n\n**In short:** see [`it`](x.md),\nit *works*.\n\nMore.\n"
    )
    rows = [{"model": HOSTILE, "size": 3, "figures": {"a": 0.123456}}, {"model": "b", "size": 4}]
    content = {"environment": {"torch": "2"}, "rows": rows}
    (folder / "first.json").write_text(json.dumps(content))
    (folder / "first.png").write_bytes(PIXEL)
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    result = report(tmp_path, "--out", tmp_path / "deep" / "page.html")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "deep" / "page.html").read_text()
    assert "The first table" in text
    assert "torch 2" in text
    assert '<p class="end">See it, it works.</p>' in text
    cells = ["model", "size", "a", HOSTILE, "3", "0.1235", "b", "4", ""]
    assert Reader(text).cells == cells


def test_files_of_one_experiment_share_a_section(tmp_path):
    folder = tmp_path / "first" / "results"
    folder.mkdir(parents=True)
    (folder.parent / "README.md").write_text("# Two tables\n")
    for name in ("one", "two"):
        (folder / f"{name}.json").write_text(json.dumps({"rows": [{"a": 1}]}))
    (folder / "settings.json").write_text("{}")
    result = report(tmp_path, "--out", tmp_path / "page.html")
    assert result.output.rstrip().endswith(": Two tables")
    text = (tmp_path / "page.html").read_text()
    assert [text.count(f"<h3>{name}</h3>") for name in ("one", "two")] == [1, 1]


def test_a_study_shows_its_pictures_and_tables(tmp_path):
    study = tmp_path / "audit"
    study.mkdir()
    (study / "audit.json").write_text("{}")
    (study / "audit.csv").write_text("policy,ratio,ssim\nrandom,0.1,0.97\n")
    (study / "labels.csv").write_text("")
    (study / "leakage.png").write_bytes(PIXEL)
    (study / "recommend.json").write_text('{"verdict": "Encrypt all."}')
    result = report(study, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    read = Reader((tmp_path / "page.html").read_text())
    assert read.cells == ["policy", "ratio", "ssim", "random", "0.1", "0.97"]
    assert [a[:22] for a in read.addresses] == ["data:image/png;base64,"]
    assert "Audit audit" in (tmp_path / "page.html").read_text()
    assert '<p class="end">Encrypt all.</p>' in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("audit.json", ""),
        ("audit.json", '{"settings": '),
        ("audit.json", "[]"),
        ("audit.json", "\xff"),
        ("audit.csv", "policy,ratio\nrandom\n"),
        ("membership.csv", "policy,ratio\nrandom,0.1,0.2\n"),
        ("recommend.json", "{}"),
        ("recommend.json", '{"verdict": null}'),
        ("recommend.json", '"verdict"'),
    ],
)
def test_a_damaged_study_is_an_error_by_name(tmp_path, name, content):
    (tmp_path / "audit.json").write_text("{}")
    (tmp_path / name).write_text(content, encoding="latin-1")
    result = report(tmp_path, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "ConfigurationError" in result.output
    assert name in "".join(result.output.split())
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_without_results_is_an_error_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    result = report(tmp_path, "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "ConfigurationError" in result.output
    assert not (tmp_path / "page.html").exists()
