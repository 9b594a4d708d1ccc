#!/usr/bin/env bash
# Train under Slurm with one task per GPU (or CPU processes in a partition without GPUs).
set -euo pipefail

if [ $# -lt 3 ] || [ "${1:-}" = -h ] || [ "${1:-}" = --help ]; then
    cat <<'USAGE'
Usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=8] [SRUN_ARGS="..."] \
           bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of tools/train.py]

  GPUS=16 bash tools/slurm_train.sh gpu gersp configs/pretrain/gersp_r50.py --amp bf16
  GPUS=4 GPUS_PER_NODE=0 bash tools/slurm_train.sh cpu gersp-demo configs/pretrain/gersp_r18_demo.py

GPUS is the total number of tasks; GPUS_PER_NODE=0 requests no GPU.
SIGUSR1 (#SBATCH --signal=USR1@120) lets the run save and end with exit code 138, for requeueing:
docs/guide/pretraining.md, "Requeueing under Slurm".
USAGE
    [ $# -lt 3 ] && [ "${1:-}" != -h ] && [ "${1:-}" != --help ] && exit 2
    exit 0
fi

partition=$1 job=$2 config=$3
shift 3
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
for number in "GPUS=$gpus" "GPUS_PER_NODE=$per_node"; do
    if ! [[ ${number#*=} =~ ^(0|[1-9][0-9]*)$ ]] || [ "$gpus" = 0 ]; then
        echo "error: GPUS and GPUS_PER_NODE must be numbers (GPUS at least 1), got $number" >&2
        exit 2
    fi
done
[ "$per_node" -gt "$gpus" ] && per_node=$gpus
resources=(--ntasks="$gpus" --cpus-per-task="${CPUS_PER_TASK:-8}" --kill-on-bad-exit=1)
if [ "$per_node" -gt 0 ]; then
    resources+=(--gres="gpu:$per_node" --ntasks-per-node="$per_node")
fi

tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-${GERSP_VENV:-$(dirname "$tools")/.venv}/bin/python}
[ -x "$python" ] || python=$(command -v python3 || command -v python)

export MASTER_PORT=${MASTER_PORT:-$((20000 + (${SLURM_JOB_ID:-$$} + RANDOM) % 40000))}
# The first node of the allocation is only known on the nodes, so each task looks it up.
# shellcheck disable=SC2086,SC2016
exec srun -p "$partition" --job-name="$job" "${resources[@]}" ${SRUN_ARGS:-} bash -c '
    if [ -z "${MASTER_ADDR:-}" ]; then
        MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
        export MASTER_ADDR
    fi
    exec "$@"' slurm_train "$python" -u "$tools/train.py" "$config" --launcher slurm "$@"
