"""Reports of phases: files of them, and the line in a log."""

from fedsens.protocol import PhaseReport, ReportFile, read_reports

REPORTS = [
    PhaseReport(
        phase="train", round=1, clients=3, lost=1, reasons={7: "away"}, bytes_up_plain=1200
    ),
    PhaseReport(phase="evaluate", round=1, clients=4, metrics={"loss": float("nan")}),
]


def test_report_files_leave_out_a_line_that_is_being_written(tmp_path):
    path = tmp_path / "new" / "reports.jsonl"
    file = ReportFile(path)
    for report in REPORTS:
        file.append(report)
    with path.open("a") as half:
        half.write('{"phase": "tra')
    assert [str(each) for each in read_reports(path)] == [str(each) for each in REPORTS]
    assert read_reports(path)[0] == REPORTS[0]
    assert read_reports(tmp_path / "absent") == []


def test_a_new_file_drops_what_an_earlier_run_left(tmp_path):
    ReportFile(tmp_path / "r").append(REPORTS[0])
    ReportFile(tmp_path / "r")
    assert read_reports(tmp_path / "r") == []


def test_a_report_is_one_line_with_its_figures():
    text = str(REPORTS[0])
    assert "\n" not in text
    assert text.startswith("round 1 train: 3 clients, 1 lost, up 1,200 + 0 B")
