"""What an app declares, what its bundle takes along, and what is refused before a run starts."""

import pytest
from flwr.cli.build import build_fab_from_disk
from typer.testing import CliRunner

from fedsens.cli import app as cli
from fedsens.errors import ConfigurationError
from fedsens.simulation._app import FlowerApp
from fedsens.simulation._runner import RunOptions
from fedsens.simulation._simulate import _new_folder, check_options

PYPROJECT = """
[project]
name = "fresh"
version = "1.0.0"

[tool.flwr.app]
publisher = "me"

[tool.flwr.app.components]
serverapp = "fresh.server:app"
clientapp = "fresh.client:app"

[tool.flwr.app.config]
num-server-rounds = 3
{config}
"""


@pytest.fixture
def make(tmp_path):
    def make(config="", ignored=None):
        folder = tmp_path / "app"
        (folder / "fresh").mkdir(parents=True)
        (folder / "pyproject.toml").write_text(PYPROJECT.format(config=config))
        for name in ("server", "client"):
            (folder / "fresh" / f"{name}.py").write_text("app = None\n")
        if ignored is not None:
            (folder / ".gitignore").write_text(ignored)
        return FlowerApp.load(folder)

    return make


def leave_results(folder):
    """As a run does: Flower's installed copy of the app, deep down, and results."""
    deep = folder / "flower" / "home" / "apps" / "a" / "b" / "c" / "d" / "e" / "f" / "fresh"
    deep.mkdir(parents=True)
    for path in (deep / "client.py", folder / "reports.jsonl", folder / "summary.json"):
        path.write_text("{}")


# Flower itself names its patterns as its library no longer does.
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
@pytest.mark.parametrize("ignored", [None, "*.log\n", "runs/\n", "/runs\n"])
@pytest.mark.parametrize("name", ["runs", "results/all"])
def test_runs_are_never_packed_into_the_next_bundle(make, ignored, name):
    app = make(ignored=ignored)
    before, runs = build_fab_from_disk(app.folder), app.folder / name
    for _ in range(3):
        folder = _new_folder(app.outside_of_bundles(runs))
        leave_results(folder)
        assert (runs / folder.name / "summary.json").exists()
        assert build_fab_from_disk(app.folder) == before


def test_a_folder_elsewhere_is_left_alone(make, tmp_path):
    app = make()
    runs = app.outside_of_bundles(tmp_path / "elsewhere" / "runs")
    assert runs.is_dir()
    assert not runs.is_symlink()


def test_results_that_flower_would_pack_already_are_named(make):
    app = make()
    (app.folder / "runs").mkdir()
    with pytest.raises(ConfigurationError, match=r"add runs/ to .*\.gitignore"):
        app.outside_of_bundles(app.folder / "runs")


def test_all_unknown_keys_are_named_with_the_nearest(make):
    app = make("fedsens.ratio = 0.1")
    app.check(["num-server-rounds", "fedsens.ratio"])
    with pytest.raises(ConfigurationError) as caught:
        app.check(["fedsens.ratoi", "num-server-round", "zzz"])
    text = str(caught.value)
    assert "fedsens.ratoi (nearest: fedsens.ratio)" in text
    assert "num-server-round (nearest: num-server-rounds)" in text
    assert ", zzz;" in text


@pytest.mark.parametrize(
    ("content", "text"),
    [("[project", "expected TOML"), ("[project]\n", r"tool\.flwr\.app\.components")],
)
def test_what_is_no_app_is_one_sentence(tmp_path, content, text):
    (tmp_path / "pyproject.toml").write_text(content)
    with pytest.raises(ConfigurationError, match=text):
        FlowerApp.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "given", "clients", "text"),
    [
        ("", {}, 2, "at least 3 clients, because fedsens.train-min"),
        ("fedsens.train-min-clients = 2", {}, 1, "at least 2 clients, because"),
        ("fedsens.key-min-clients = 4", {}, 3, "at least 4 clients, because fedsens.key-min"),
        ("fedsens.map-min-clients = 0", {"fedsens.map-min-clients": "9"}, 8, "at least 9"),
        ("", {"fedsens.ratio": "0.3"}, 2, "fedsens.ratio"),
    ],
)
def test_what_cannot_succeed_is_refused_at_once(make, config, given, clients, text):
    with pytest.raises(ConfigurationError, match=text):
        check_options(RunOptions(make(config), clients, config=given), baseline=False)


def test_one_client_is_enough_for_plaintext(make):
    check_options(RunOptions(make("fedsens.ratio = 0.0"), 1), baseline=False)


def test_a_baseline_needs_the_ratio_before_the_first_run(make):
    app = make()
    check_options(RunOptions(app, 3), baseline=False)
    with pytest.raises(ConfigurationError, match=r"got fedsens\.ratio"):
        check_options(RunOptions(app, 3), baseline=True)


def test_the_command_refuses_before_anything_starts(make):
    app = make("fedsens.ratio = 0.1")
    arguments = ["simulate", str(app.folder), "--clients", "1", "--runs", str(app.folder / "runs")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "at least 3 clients" in result.output
    assert not (app.folder / "runs").exists()
    result = CliRunner().invoke(cli, ["simulate", str(app.folder), "--policy", "random"])
    assert "got fedsens.policy;" in result.output.replace("\n", " ")


@pytest.mark.parametrize("command", ["simulate", "submit"])
def test_all_that_is_wrong_is_told_at_once_before_anything_starts(make, monkeypatch, command):
    monkeypatch.setenv("FLWR_HOME", "/nowhere")
    app = make("fedsens.ratio = 0.1\nfedsens.opens = 'sever'")
    wrong = ["fedsens.ratio=2", "fedsens.preset=huge", "fedsens.ratoi=0.5", "num-server-round=1"]
    given = [part for setting in wrong for part in ("-c", setting)]
    result = CliRunner().invoke(cli, [command, str(app.folder), *given])
    output = " ".join(result.output.split())
    assert result.exit_code == 1
    for told in (
        "fedsens.ratoi (nearest: fedsens.ratio), num-server-round (nearest: num-server-rounds); ",
        "ratio: Input should be less than or equal to 1, got 2",
        "opens: Input should be 'clients' or 'server', got 'sever'",
        "preset: Input should be 'tiny', 'compact', 'precise' or 'exact', got 'huge'",
    ):
        assert told in output
