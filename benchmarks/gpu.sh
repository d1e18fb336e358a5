#!/usr/bin/env bash
# What has yet to be measured on one GPU (docs/log.md), in two calls, each part with a limit of its own:
#
#     bash benchmarks/gpu.sh OUT speed     # 9 minutes
#     bash benchmarks/gpu.sh OUT losses    # 8
#
# OUT gets a text file a part. A part that fails leaves the others alone.
set -u
out=$(mkdir -p "$1" && cd "$1" && pwd)
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

part() { # part NAME SECONDS SCRIPT...: run it, with its output in OUT/NAME.txt and its time there
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    timeout --signal=INT --kill-after=20 "$limit" "$python" "$@" >"$out/$name.txt" 2>&1
    echo "exit $?, $((SECONDS - began)) s" >>"$out/$name.txt"
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/machine.txt"
case $2 in
speed)
    part large 70 benchmarks/step.py --no-peer --models 1.3b --micro 32
    part peers 330 benchmarks/step.py --variants "" "plain activations"
    part axes 140 benchmarks/step.py --axes
    ;;
losses)
    part check 150 benchmarks/check_gpu.py
    part curves 320 benchmarks/curves.py --batch 8192
    ;;
*)
    echo "$2: speed or losses" >&2
    exit 2
    ;;
esac
tail -n 30 "$out"/*.txt
