# Sourced by dist_train.sh and dist_test.sh.

dist_usage() {
    local script=$1 between=""
    [ "$script" = test.py ] && between=" CHECKPOINT"
    cat <<USAGE
Usage: bash tools/dist_${script%.py}.sh CONFIG$between GPUS [arguments of tools/$script]

GPUS is the number of processes on this machine: one per GPU, or without GPUs CPU processes that
communicate over gloo (OMP_NUM_THREADS sets the cores of each).

One machine:      bash tools/dist_${script%.py}.sh CONFIG$between 8
Two machines:     on each, with NODE_RANK=0 and NODE_RANK=1,
                  NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 MASTER_PORT=29500 \\
                      bash tools/dist_${script%.py}.sh CONFIG$between 8

NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT default to one machine and a free port.
USAGE
}

dist_launch() {
    local script=$1; shift
    local positional=2
    [ "$script" = test.py ] && positional=3
    case "${1:-}" in -h | --help) dist_usage "$script"; return 0 ;; esac
    if [ $# -lt "$positional" ]; then dist_usage "$script" >&2; return 2; fi
    local gpus=${!positional}
    if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
        echo "error: GPUS must be a positive number, got '$gpus'" >&2
        dist_usage "$script" >&2
        return 2
    fi
    local arguments=("${@:1:positional-1}" "${@:positional+1}")

    local tools root python
    tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    root=$(dirname "$tools")
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        python=${GERSP_VENV:-$root/.venv}/bin/python
        [ -x "$python" ] || python=$(command -v python3 || command -v python)
    fi

    local present passes_on
    read -r present passes_on < <("$python" -c '
import torch
from torch.distributed import run
print(torch.cuda.device_count(), "signals_to_handle" in vars(run.get_args_parser().parse_args(["-"])))')
    if [ "$present" -gt 0 ] && [ "$gpus" -gt "$present" ]; then
        echo "error: $gpus GPUs were requested, but this machine has $present" >&2
        return 2
    fi
    if [ "$present" -eq 0 ]; then
        echo "no GPU here: starting $gpus CPU processes (gloo)" >&2
        local cores
        cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores / gpus > 0 ? cores / gpus : 1))}
    fi

    local rendezvous=(--standalone)
    if [ "${NNODES:-1}" -gt 1 ]; then
        : "${MASTER_ADDR:?set MASTER_ADDR to the address of the machine with NODE_RANK=0}"
        rendezvous=(--nnodes "$NNODES" --node_rank "${NODE_RANK:?set NODE_RANK to 0, 1, ...}"
            --master_addr "$MASTER_ADDR" --master_port "${MASTER_PORT:-29500}")
    elif [ -n "${MASTER_PORT:-}" ]; then
        rendezvous=(--nnodes 1 --node_rank 0 --master_addr "${MASTER_ADDR:-127.0.0.1}"
            --master_port "$MASTER_PORT")
    fi
    local launch=("$python" -m torch.distributed.run)
    local started=("${rendezvous[@]}" --nproc_per_node "$gpus"
        "$tools/$script" "${arguments[@]}" --launcher pytorch)
    if [ "$passes_on" = True ]; then
        exec "${launch[@]}" --signals-to-handle "$(dist_signals)" "${started[@]}"
    fi
    dist_forward "${launch[@]}" "${started[@]}"
}

# The signals that torchrun has to pass on to the ranks. By default USR1 ends torchrun, and HUP does
# so even under nohup. Signals that were ignored from the start appear as trapped; they are omitted.
dist_signals() {
    local heard="" name
    for name in TERM INT HUP QUIT USR1; do
        [ -n "$(trap -p "SIG$name")" ] || heard+="${heard:+,}SIG$name"
    done
    echo "$heard"
}

# For releases of torchrun that cannot pass USR1 on; TERM has the same effect on the ranks.
dist_forward() {
    local child code=0
    "$@" &
    child=$!
    trap 'kill -TERM "$child"' TERM USR1
    trap 'kill -INT "$child"' INT
    trap 'kill -HUP "$child"' HUP
    wait "$child" || code=$?
    while kill -0 "$child" 2>/dev/null; do  # A signal ends `wait` early.
        code=0
        wait "$child" || code=$?
    done
    return "$code"
}
