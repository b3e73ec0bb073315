"""A short soak, and what it would notice."""

import json

import pytest
from typer.testing import CliRunner

import experiments.soak.__main__ as command
from experiments.soak import run as running
from experiments.soak.run import Plan, Soak, soak
from experiments.soak.schedule import AWAY, HOSTILE, KINDS, Schedule
from experiments.soak.summary import growth, left_out, worst
from fedsens.errors import BenchmarkError


class Eventful(Schedule):
    """Every kind once in the rounds of four clients, and some of them together."""

    def of(self, server_round, node):
        kind = (server_round - 2) * 2 + (node - 1001) if node in {1001, 1002} else -1
        return KINDS[kind] if 0 <= kind < len(KINDS) else None


def test_everything_that_goes_wrong_is_left_out_and_every_round_is_the_mean(monkeypatch):
    monkeypatch.setattr(running, "Schedule", Eventful)
    rows = soak(Plan(4, 12, rotate_every=5, refresh_every=3))
    assert [row["round"] for row in rows] == list(range(1, 13))
    assert left_out(rows).keys() == {*KINDS} - {"answers twice"}
    assert sum(row["twice"] for row in rows) == 1
    assert worst(rows) <= 1
    assert [row["in the mean"] for row in rows] == [4] + [2] * 9 + [0, 3]
    assert rows[-1]["accuracy"] > rows[0]["accuracy"]


def test_a_client_that_spoils_sums_is_excluded_and_the_others_mean_is_right(tmp_path):
    plan = Plan(5, 44, spoils=True, seed=1, refresh_every=10)
    rows = Soak(plan, tmp_path, lambda row: None).run()
    assert sum(row["spoilt"] for row in rows) >= 2
    assert worst(rows) <= 1
    assert rows[-1]["excluded"] == 1
    assert rows[-1]["sampled"] == 4


def test_clients_that_join_later_get_the_key_when_they_are_sampled(tmp_path):
    plan = Plan(40, 6, fraction=0.1, first=20, joining=4, refresh_every=3)
    rows = Soak(plan, tmp_path, lambda row: None).run()
    assert [row["connected"] for row in rows] == [20, 24, 28, 32, 36, 40]
    assert [row["sampled"] for row in rows] == [2, 2, 2, 3, 3, 4]
    assert worst(rows) <= 1
    holders = {path.parent.name for path in tmp_path.glob("state/run-1/node-*/key")}
    assert 20 <= len(holders) <= 40
    assert any(int(name.removeprefix("node-")) >= 1020 for name in holders)


def test_a_mean_that_is_not_the_honest_ones_is_noticed(monkeypatch):
    mean = running.mean_of
    monkeypatch.setattr(running, "mean_of", lambda answers: mean(answers[1:]))
    rows = soak(Plan(3, 2, seed=1))
    assert worst(rows) > 1


def test_a_hostile_answer_that_gets_in_is_noticed(monkeypatch):
    monkeypatch.setattr("experiments.soak.grid.change_of", lambda *_: lambda content: None)
    with pytest.raises(BenchmarkError, match="in the mean of round"):
        soak(Plan(8, 40, seed=1))


def test_the_schedule_is_the_same_for_the_same_seed_and_has_everything():
    first, again = Schedule(3), Schedule(3)
    drawn = [first.of(number, node) for number in range(500) for node in range(8)]
    assert drawn == [again.of(number, node) for number in range(500) for node in range(8)]
    assert set(drawn) == {None, *KINDS}
    assert 0.08 < 1 - drawn.count(None) / len(drawn) < 0.12
    assert 0.4 < drawn.count(AWAY) / (len(drawn) - drawn.count(None)) < 0.6
    assert set(HOSTILE) < set(KINDS)


def test_growth_is_the_slope_of_the_later_rounds():
    rows = [{"round": n, "MiB": 100.0 + (50 if n > 2 else 0) + n / 1024} for n in range(1, 21)]
    assert growth(rows) == pytest.approx(1.0)
    assert growth([{**row, "MiB": None} for row in rows]) is None


def test_the_command_writes_rows_and_a_figure(tmp_path):
    few = ["--no-spoils", "--rounds=3", "--clients=3", "--many-rounds=2", "--many-clients=40"]
    result = CliRunner().invoke(command.app, ["--out", str(tmp_path), *few])
    assert result.exit_code == 0, result.output
    assert len(json.loads((tmp_path / "soak.json").read_text())["rows"]) == 5
    assert (tmp_path / "soak.png").stat().st_size > 5000
    assert (tmp_path / "soak.csv").read_text().count("\n") == 6
    assert "rounds within the bound" in result.output
