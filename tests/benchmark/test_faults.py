"""benchmarks/faults: entries, what output says, verdicts, and a few entries run for real."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from tests.support.forked import SUBPROCESS
from tests.support.smoke import ROOT

FAULTS = ROOT / "benchmarks" / "faults"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Import the benchmark's files as its entry script does, and forget them afterwards."""
    before = dict(sys.modules)
    sys.path.insert(0, str(FAULTS))
    yield
    sys.path.remove(str(FAULTS))
    for name in set(sys.modules) - set(before):
        if str(FAULTS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def tool():
    import run

    return run


@pytest.fixture(scope="module")
def cases() -> Iterator[Any]:
    """Its commands run in forks: one at a time, since threads that fork would share pipes."""
    import cases

    with mock.patch.object(cases, "subprocess", SUBPROCESS):
        yield cases


# ----------------------------------------------------------------------------------------- entries


def test_entries_name_things_that_exist(tool, cases, tmp_path):
    import inject

    faults = tool.read_entries("faults.yml")
    assert len(faults) >= 30
    entries = [(f["name"], entry) for f in faults for side in tool.SIDES
               if (entry := f if side == "ours" else tool.peer_entry(f, side))]  # fmt: skip
    entries += [(entry["name"], entry) for entry in tool.read_entries("healthy.yml")]
    for name, entry in entries:
        for command in filter(None, (entry["run"], entry.get("beside"))):
            words = cases.expand(command, tmp_path)
            assert Path(words[1]).is_file(), name
            assert not re.search(r"\{\w+\}", " ".join(words)), name
        for step in entry.get("inject", ()):
            assert set(step) <= set(inject.INJECTORS), name
        assert entry.get("start") in (None, *cases.STARTS), name
        assert {entry.get("harmless"), entry.get("proof")} <= {None, *cases.PROOFS}, name
    for fault in faults:
        assert fault["wrong"].endswith(".") and fault["group"], fault["name"]
        for entry in filter(None, (fault, fault.get("mmpretrain"), fault.get("lightly"))):
            assert re.compile(entry["noticed"]).search("") is None, fault["name"]


def test_every_shipped_config_is_looked_at(tool):
    tasks = {task.name for task in tool.all_tasks(["ours"]) if task.side == tool.HEALTHY}
    shipped = {p.relative_to(ROOT / "configs").as_posix() for p in (ROOT / "configs").rglob("*.py")
               if "_base_" not in p.parts}  # fmt: skip
    assert shipped and shipped <= tasks


# ------------------------------------------------------------------------------------------ output

LOG = """\
11/28 10:00:00 - mmengine - INFO - Config:
model = dict(queue_len=4096)

11/28 10:00:00 - mmengine - INFO - Hooks will be executed in the following order:
before_run:
(VERY_HIGH   ) TroubleHook
 --------------------

error: an early end
11/28 10:00:01 - mmengine - WARNING - first trouble
[faults] step 1 begins
11/28 10:00:02 - mmengine - INFO - Epoch(train)  [1][1/6]  lr: nan
[faults] step 2 begins
second trouble
Traceback (most recent call last):
  File "a.py", line 1, in f
    raise ValueError("source line")
ValueError: third trouble
"""


def test_messages_are_placed_and_repeated_values_are_none():
    from output import Message, find_message, read_output

    output = read_output(LOG)
    assert output.crashed
    assert find_message(output, "first TROUBLE").step == 0
    assert find_message(output, "an early end").step == 0
    assert find_message(output, "second") == Message(2, "second trouble")
    assert find_message(output, "third") == Message(2, "ValueError: third trouble")
    for repeated in ("4096", "TroubleHook", "nan", "source line"):
        assert find_message(output, repeated) is None


@pytest.mark.parametrize(
    "text, code, more, verdict",
    [
        ("error: trouble", 2, {}, ("refused", "before", None)),
        ("[faults] step 3 begins\na trouble", 0, {}, ("warned", "step", 3)),
        ("fine", 0, {}, ("unnoticed", "never", None)),
        ("something else", 1, {}, ("crashed", "never", None)),
        ("fine", 0, dict(harmless="no_bad_images"), ("harmless", "before", None)),
        ("fine", 2, dict(harmless="no_bad_images"), ("crashed", "never", None)),
        ("error: trouble", 2, dict(result="rows.jsonl"), ("refused", "step", None)),
        ("Traceback (most recent call last):\n  File\nTrouble", 1, {}, ("crashed", "before", None)),
        ("fine", -9, {}, ("hung", "never", None)),
    ],
)
def test_verdicts(cases, tmp_path, text, code, more, verdict):
    (tmp_path / "run").mkdir()
    (tmp_path / "rows.jsonl").write_text("a row\n")
    done = cases.Done(code, text, 1.0)
    found = cases.judge(dict(noticed="trouble", **more), tmp_path, done, ours=True)
    assert (found["outcome"], found["when"], found["step"]) == verdict


def test_the_name_of_a_case_is_no_message(cases, tmp_path):
    case = tmp_path / "trouble"
    done = cases.Done(0, f"writing to {case}/run", 1.0)
    assert cases.judge(dict(noticed="trouble"), case, done, ours=True)["when"] == "never"


def test_alarms_are_warnings_and_errors_but_for_known_ones():
    from alarms import find_alarms

    quiet = '11/28 10:00:00 - mmengine - WARNING - Failed to search registry with scope "mmdet"'
    assert find_alarms(f"{quiet}\n11/28 10:00:00 - mmengine - INFO - error-free\n") == []
    framed = "11/28 10:00:00 - mmengine - WARNING - \n" + "!" * 96 + "\n  It is odd.\n  Fix it.\n"
    assert len(find_alarms(framed)) == 1 and "It is odd. Fix it." in find_alarms(framed)[0]
    assert find_alarms("error: no") == ["error: no"]
    assert find_alarms("Traceback (most recent call last):\n  File\nValueError: x") == [
        "ValueError: x"
    ]


def test_summary_counts_what_was_noticed(tool):
    rows = {}
    for number, (outcome, when) in enumerate(
        [("refused", "before"), ("warned", "step"), ("harmless", "before"), ("crashed", "before")]
    ):
        rows[f"f{number}", "ours"] = dict(fault=f"f{number}", outcome=outcome, when=when)
        rows[f"f{number}", "mmpretrain"] = dict(rows[f"f{number}", "ours"])
    rows["a", tool.HEALTHY] = dict(fault="a", outcome="alarm")
    rows["b", tool.HEALTHY] = dict(fault="b", outcome="quiet")
    assert list(tool.summary(rows)) == [
        "gersp_mm: 3 of 4 faults noticed, 2 before step 1 (50 %; 1 of them harmless), 1 never",
        "mmpretrain: 4 of 4 faults noticed, 3 before step 1 (75 %), 0 never",
        "lightly: nothing was run",
        "false alarms: 1 of 2 healthy runs and shipped configs: a",
    ]


# -------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def recorded(tool, cases, tmp_path_factory) -> tuple[Path, str]:
    """Rows of three converters, which need no training, and what was printed."""
    folder = tmp_path_factory.mktemp("faults")
    words = ["nothing-usable", "loveda-labels-of-the-server", "incomplete-data-set"]
    command = ["--sides", "ours", "--out", folder / "rows.jsonl", "--work", folder / "work"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert tool.main([*map(str, command), "--only", *words]) == 0
    return folder / "rows.jsonl", printed.getvalue()


def test_rows_say_what_was_noticed_and_when(recorded):
    rows = {row["fault"]: row for row in map(json.loads, recorded[0].read_text().splitlines())}
    outcomes = {name: (row["outcome"], row["when"]) for name, row in rows.items()}
    assert outcomes == {
        "nothing-usable": ("refused", "before"),
        "loveda-labels-of-the-server": ("warned", "before"),
        "incomplete-data-set": ("refused", "before"),
    }
    assert "labels shifted to 0 to 6" in rows["loveda-labels-of-the-server"]["message"]
    assert rows["incomplete-data-set"]["versions"]["torch"]
    assert "gersp_mm: 3 of 3 faults noticed, 3 before step 1 (100 %), 0 never" in recorded[1]


def test_what_has_a_row_is_not_run_again_and_goes_into_the_docs(recorded, tool, tmp_path, capsys):
    before = recorded[0].read_text()
    page = tmp_path / "faults.md"
    page.write_text("# Faults\n\n<!-- faults: begin -->\n<!-- faults: end -->\nend\n")
    arguments = ["--only", "nothing-usable", "--sides", "ours", "--out", str(recorded[0])]
    assert tool.main([*arguments, "--docs", str(page)]) == 0
    assert recorded[0].read_text() == before
    text = page.read_text()
    assert text.startswith("# Faults\n\n<!-- faults: begin") and text.endswith("-->\nend\n")
    assert re.search(r"\| `nothing-usable` \| .* \| before step 1 \| — \| — \|", text)


def test_a_training_fault_is_noticed_before_the_first_step(cases, tool, tmp_path):
    (fault,) = [f for f in tool.read_entries("faults.yml") if f["name"] == "teacher-without-hook"]
    case, done = cases.Workshop(tmp_path).run("case", "ours", fault)
    found = cases.judge(fault, case, done, ours=True)
    assert (found["outcome"], found["when"]) == ("refused", "before"), done.text[-2000:]
    assert "teacher" in found["message"]
