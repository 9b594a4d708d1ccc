"""Tables of text, and progress where there is no terminal."""

from __future__ import annotations

from gersp_mm.utils import console


def test_table():
    rows = [("train [all]", 1_281_167, "3.0 %"), ("x" * 200, 7, "")]
    lines = console.table(["part", "images", "share"], rows).splitlines()
    assert lines[0].split() == ["part", "images", "share"]
    assert lines[1] == "-" * len(lines[1]) and len(lines[1]) == 200 + 2 + 9 + 2 + 5
    assert lines[2] == f"{'train [all]':200}  1,281,167  3.0 %"
    assert lines[3] == "x" * 200 + "  " + f"{'7':>9}"


def test_progress_is_a_line_every_half_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    for _ in console.progress(range(10), "decoding", "img"):
        now[0] += 12
    assert capsys.readouterr().err.splitlines() == [
        "decoding: 3/10 img, 84 s left",
        "decoding: 6/10 img, 48 s left",
        "decoding: 9/10 img, 12 s left",
    ]
    for _ in console.progress(iter("ab"), "decoding", "img", shown=False):
        now[0] += 100
    assert capsys.readouterr().err == ""


def test_time_left_follows_the_work_of_this_start(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar("training", "iterations") as bar:
        now[0] += 20
        bar.start_from(900, 1000)
        now[0] += 40
        bar.advance(10)
    assert capsys.readouterr().err == "training: 910/1,000 iterations, 6 min left\n"
