"""The shell launchers: usage, errors, and the commands they end in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.smoke import ROOT

TOOLS = ROOT / "tools"
CONFIG = "configs/pretrain/gersp_r18_demo.py"
DROPPED = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "GPUS",
           "GPUS_PER_NODE", "CPUS_PER_TASK", "SRUN_ARGS", "SLURM_JOB_ID")  # fmt: skip


@pytest.fixture
def call(tmp_path):
    """Call a launcher with a `python` that reports no GPU and prints how it is started."""
    fake = tmp_path / "bin" / "python"
    write_script(
        fake,
        'if [ "$1" = -c ]; then echo "${FAKE_GPUS:-0} ${FAKE_PASSES_ON:-False}"; '
        'else printf "%s\\n" "OMP=${OMP_NUM_THREADS:-}" "$@"; fi',
    )

    def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if k not in DROPPED}
        env.update(PYTHON=str(fake), PATH=f"{fake.parent}{os.pathsep}{env['PATH']}", **variables)
        return subprocess.run(
            ["bash", str(TOOLS / script), *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    run.bin = fake.parent
    return run


def write_script(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "script, between", [("dist_train.sh", ""), ("dist_test.sh", " CHECKPOINT")]
)
def test_help(call, script, between):
    done = call(script, "--help")
    assert done.returncode == 0
    assert f"Usage: bash tools/{script} CONFIG{between} GPUS" in done.stdout
    assert "NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500" in done.stdout


@pytest.mark.parametrize("script, arguments", [
    ("dist_train.sh", []), ("dist_train.sh", [CONFIG]), ("dist_test.sh", [CONFIG, "a.pth"]),
    ("slurm_train.sh", []), ("slurm_train.sh", ["gpu", "job"]),
])  # fmt: skip
def test_missing_arguments_show_the_usage(call, script, arguments):
    done = call(script, *arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stdout + done.stderr


@pytest.mark.parametrize("gpus", ["0", "-1", "two", "1.5", "--amp"])
def test_bad_number_of_gpus(call, gpus):
    done = call("dist_train.sh", CONFIG, gpus)
    assert done.returncode == 2
    assert f"error: GPUS must be a positive number, got '{gpus}'" in done.stderr


def test_more_gpus_than_there_are(call):
    done = call("dist_train.sh", CONFIG, "4", FAKE_GPUS="2")
    assert done.returncode == 2
    assert "error: 4 GPUS were requested, but this machine has 2".lower() in done.stderr.lower()


def test_one_machine_command(call):
    done = call("dist_train.sh", CONFIG, "2", "--amp", "bf16", "--cfg-options", "a=[1, 2]")
    assert done.returncode == 0
    _, *command = done.stdout.splitlines()
    assert command == [
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        str(TOOLS / "train.py"), CONFIG, "--amp", "bf16", "--cfg-options", "a=[1, 2]",
        "--launcher", "pytorch",
    ]  # fmt: skip


@pytest.mark.parametrize("ignored, heard", [
    ("", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"), ("HUP", "SIGTERM,SIGINT,SIGQUIT,SIGUSR1"),
])  # fmt: skip
def test_torchrun_passes_on_what_is_not_ignored(call, ignored, heard):
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # ignored where the tests run in the background
    script = f'{f"trap {chr(39) * 2} {ignored};" if ignored else ""} exec bash "$0" "$@"'
    env = dict(os.environ, PYTHON=str(call.bin / "python"), FAKE_PASSES_ON="True")
    done = subprocess.run(
        ["bash", "-c", script, str(TOOLS / "dist_train.sh"), CONFIG, "2"],
        env=env, capture_output=True, text=True, timeout=60, start_new_session=True)  # fmt: skip
    command = done.stdout.splitlines()[1:]
    assert command[2:4] == ["--signals-to-handle", heard]


@pytest.mark.parametrize("number, told", [("USR1", "TERM"), ("TERM", "TERM"), ("HUP", "HUP")])
def test_an_older_torchrun_gets_a_signal_that_it_passes_on(tmp_path, number, told):
    """Its place is taken by a script that says what it got, and ends a little later."""
    fake = tmp_path / "python"
    write_script(
        fake,
        'if [ "$1" = -c ]; then echo "0 False"; exit; fi\n'
        'for s in TERM HUP USR1; do trap "echo got $s; got=1" $s; done\n'
        'echo started; while [ -z "$got" ]; do sleep 0.05; done; sleep 0.2; exit 7',
    )
    process = subprocess.Popen(
        ["bash", str(TOOLS / "dist_train.sh"), CONFIG, "2"], env=dict(os.environ, PYTHON=str(fake)),
        stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert process.stdout.readline() == "started\n"
    process.send_signal(getattr(signal, f"SIG{number}"))
    rest, _ = process.communicate(timeout=60)
    assert rest == f"got {told}\n"
    assert process.returncode == 7


def test_test_command_has_the_checkpoint_before_the_number(call):
    done = call("dist_test.sh", CONFIG, "a.pth", "3", "--work-dir", "w")
    arguments = done.stdout.splitlines()[1:]
    script = arguments.index(str(TOOLS / "test.py"))
    assert arguments[script + 1 :] == [CONFIG, "a.pth", "--work-dir", "w", "--launcher", "pytorch"]
    assert arguments[script - 1] == "3"


def test_cpu_processes_share_the_cores(call):
    cores = os.cpu_count() or 1
    done = call("dist_train.sh", CONFIG, "2")
    assert "no GPU here: starting 2 CPU processes (gloo)" in done.stderr
    assert done.stdout.splitlines()[0] == f"OMP={max(cores // 2, 1)}"
    assert call("dist_train.sh", CONFIG, "2", OMP_NUM_THREADS="7").stdout.startswith("OMP=7\n")
    assert call("dist_train.sh", CONFIG, "2", FAKE_GPUS="2").stdout.startswith("OMP=\n")


def test_several_machines(call):
    machines = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1")
    done = call("dist_train.sh", CONFIG, "8", FAKE_GPUS="8", **machines)
    command = " ".join(done.stdout.splitlines()[1:])
    assert (
        "--nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29500 --nproc_per_node 8"
    ) in command
    for name, text in (
        ("MASTER_ADDR", "set MASTER_ADDR to the address of the machine"),
        ("NODE_RANK", "set NODE_RANK to 0, 1, ..."),
    ):
        rest = {key: value for key, value in machines.items() if key != name}
        failed = call("dist_train.sh", CONFIG, "8", FAKE_GPUS="8", **rest)
        assert failed.returncode != 0
        assert text in failed.stderr


def test_a_chosen_port_on_one_machine(call):
    done = call("dist_train.sh", CONFIG, "2", MASTER_PORT="29777")
    assert "--master_addr 127.0.0.1 --master_port 29777" in " ".join(done.stdout.splitlines())


@pytest.fixture
def slurm(call):
    """slurm_train.sh with an `srun` that shows its options, then runs the task once, on node3."""
    write_script(
        call.bin / "srun",
        'printf "srun %s\\n" "$@" | sed "/^srun bash/,\\$d"\n'
        'while [ "$1" != bash ]; do shift; done\n'
        'echo "port=$MASTER_PORT"\nSLURM_JOB_NODELIST="node[3-4]" "$@"',
    )
    write_script(
        call.bin / "scontrol", '[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"'
    )
    write_script(call.bin / "python", 'printf "task %s\\n" "$@"; echo "address=$MASTER_ADDR"')

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
        return call("slurm_train.sh", *arguments, **variables)

    return run


def lines(done: subprocess.CompletedProcess, start: str) -> list[str]:
    return [line[len(start) :] for line in done.stdout.splitlines() if line.startswith(start)]


def test_slurm_command(slurm):
    done = slurm(
        "gpu",
        "gersp",
        CONFIG,
        "--amp",
        "bf16",
        "--cfg-options",
        "a=[1, 2]",
        GPUS="16",
        SRUN_ARGS="--time=1:00:00 --exclusive",
    )
    assert done.returncode == 0, done.stderr
    assert lines(done, "srun ") == [
        "-p", "gpu", "--job-name=gersp", "--ntasks=16", "--cpus-per-task=8",
        "--kill-on-bad-exit=1", "--gres=gpu:8", "--ntasks-per-node=8", "--time=1:00:00",
        "--exclusive",
    ]  # fmt: skip
    assert lines(done, "task ") == [
        "-u", str(TOOLS / "train.py"), CONFIG, "--launcher", "slurm", "--amp", "bf16",
        "--cfg-options", "a=[1, 2]",
    ]  # fmt: skip
    assert lines(done, "address=") == ["node3"]
    assert 20000 <= int(lines(done, "port=")[0]) < 60000


def test_slurm_with_fewer_gpus_than_a_node_has(slurm):
    options = lines(slurm("gpu", "gersp", CONFIG, GPUS="2"), "srun ")
    assert "--gres=gpu:2" in options and "--ntasks-per-node=2" in options


def test_slurm_without_gpus(slurm):
    done = slurm(
        "cpu",
        "gersp",
        CONFIG,
        GPUS="4",
        GPUS_PER_NODE="0",
        CPUS_PER_TASK="2",
        MASTER_ADDR="10.0.0.9",
        MASTER_PORT="31000",
    )
    options = lines(done, "srun ")
    assert "--ntasks=4" in options and "--cpus-per-task=2" in options
    assert not any(re.match("--gres|--ntasks-per-node", option) for option in options)
    assert (lines(done, "address="), lines(done, "port=")) == (["10.0.0.9"], ["31000"])


@pytest.mark.parametrize("variables", [dict(GPUS="many"), dict(GPUS="0"), dict(GPUS_PER_NODE="x")])
def test_slurm_bad_numbers(slurm, variables):
    done = slurm("gpu", "gersp", CONFIG, **variables)
    assert done.returncode == 2
    assert "error: GPUS and GPUS_PER_NODE must be numbers" in done.stderr
    assert not lines(done, "srun ")


def test_slurm_help(call):
    done = call("slurm_train.sh", "--help")
    assert done.returncode == 0
    assert "GPUS_PER_NODE=0 requests no GPU" in done.stdout
    assert sys.executable not in done.stdout


def test_outside_of_the_environment_a_tool_says_how_to_enter(tmp_path):
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True
    )
    done = subprocess.run(
        [str(python), str(ROOT / "tools" / "train.py")], capture_output=True, text=True,
        cwd=tmp_path, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "No module named 'gersp_mm': source .venv/bin/activate, or bash tools/setup_env.sh"
    ]
