#!/usr/bin/env bash
# What has yet to be measured on a host with two GPUs, in order of weight, each part with a limit of its own:
#
#     bash benchmarks/gpus.sh OUT one    # what takes one GPU, on both at once: about 8 minutes
#     bash benchmarks/gpus.sh OUT two    # what takes both: about 4
#
# OUT gets a text file a part, and the study as a tar ball. A part that fails leaves the others alone.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 NCCL_NVLS_ENABLE=0

part() { # part NAME GPUS SECONDS COMMAND...: run it, with its output in OUT/NAME.txt and its time there
    local name=$1 gpus=$2 limit=$3 began=$SECONDS
    shift 3
    CUDA_VISIBLE_DEVICES=$gpus timeout --signal=INT --kill-after=20 "$limit" "$@" >"$out/$name.txt" 2>&1
    echo "exit $?, $((SECONDS - began)) s" >>"$out/$name.txt"
}
study() {
    part study 0 260 "$python" -m raytrain.tune --space docs/results/four_axes.yaml --seeds 2 \
        --frontier_budgets 0.25,0.5,2 --scale small --global_batch 32768 --checkpoint_interval none --compile True \
        --flops 6e14 --name four_axes --runs "$out/runs"
    tar czf "$out/four_axes.tgz" --exclude=four_axes/ray -C "$out/runs" four_axes
}
first_gpu() {
    study
    part turnaround1 0 180 "$python" benchmarks/turnaround.py --ranks 1 --textbook 3
}
second_gpu() {
    part axes 1 120 "$python" benchmarks/step.py --axes
    part curves 1 170 "$python" benchmarks/curves.py --batch 8192
    part llama 1 90 "$python" benchmarks/step.py --no-peer --models llama --variants "" "two matrices"
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/machine.txt"
if [ "$2" = one ]; then
    first_gpu &
    first=$!
    second_gpu &
    second=$!
    wait "$first" "$second" # by name: a bare wait would also wait for whatever reads this script's output
else
    part turnaround2 0,1 180 "$python" benchmarks/turnaround.py --ranks 2 --textbook 3
    part reuse 0 60 "$python" benchmarks/reuse.py --compile False
fi
tail -n 30 "$out"/*.txt
