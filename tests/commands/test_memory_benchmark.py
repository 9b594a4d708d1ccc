"""The memory benchmark measures what it says, on lists of a few thousand lines."""

from __future__ import annotations

import subprocess
import sys

from tests.support.smoke import ROOT


def test_it_counts_images_processes_and_memory():
    script = ROOT / "benchmarks" / "speed" / "memory.py"
    arguments = "--remote-sensing 3000 --natural 2000 --workers 2 --batch-size 4 --batches 3"
    output = subprocess.check_output(
        [sys.executable, script, *arguments.split()],
        text=True,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    values = {line.split()[0]: line.split()[1].replace(",", "") for line in output.splitlines()}
    found = {name: float(value) for name, value in values.items()}
    assert found["images"] == 5000
    assert found["worker_processes"] == 2
    assert 0 < found["seconds_to_dataset"] <= found["seconds_to_first_batch"] < 300
    total = found["pss_main_mib"] + found["pss_workers_mib"]
    assert abs(found["pss_sum_mib"] - total) <= 1
    assert 100 < found["pss_sum_mib"] <= found["highest_pss_sum_mib"] < 2000
    assert found["peak_rss_main_mib"] >= found["pss_main_mib"]
