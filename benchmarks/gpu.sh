#!/usr/bin/env bash
# The figures of docs/benchmarks.md for one GPU, in four parts of ten minutes at most. Where there are several GPUs,
# CUDA_VISIBLE_DEVICES picks one.
#
#     bash benchmarks/gpu.sh OUT speed
#     bash benchmarks/gpu.sh OUT losses
#     bash benchmarks/gpu.sh OUT small
#     bash benchmarks/gpu.sh OUT axes
#
# OUT gets a text file a part. Each part has a limit of its own; one that fails leaves the others alone.
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
    part peers 390 benchmarks/step.py
    part large 180 benchmarks/step.py --no-peer --models 1.3b --micro 32 --variants "" fp8
    ;;
losses)
    part check 230 benchmarks/check_gpu.py
    part curves 330 benchmarks/curves.py --batch 8192
    ;;
small)
    part swiglu 100 benchmarks/step.py --no-peer --models llama 1.3b --variants "plain activations"
    part axes 200 benchmarks/step.py --axes
    part graphs 100 benchmarks/pack.py --scale small --batch 32768 --steps 300 --ways compiled "with CUDA graphs" --together
    part loader 40 benchmarks/loader.py
    part monitor 110 benchmarks/monitor.py --steps 150 --repeats 1
    ;;
axes)
    part check_axes 340 benchmarks/check_gpu.py --axes
    part optional 220 benchmarks/step.py --axes attention_window z_loss logit_softcap moe muon
    ;;
*)
    echo "$2: speed, losses, small or axes" >&2
    exit 2
    ;;
esac
tail -n 30 "$out"/*.txt
