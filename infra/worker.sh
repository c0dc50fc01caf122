#!/bin/sh
# A worker of the pool `flywheel`, from the project's folder. Where RAY_HEAD names a Ray cluster, the worker's machine joins it
# with no CPUs: stages that say `address: auto` are its drivers, and their pieces run elsewhere. It joins again when it was
# dropped, as when the head starts anew.
set -eu
if [ -n "${RAY_HEAD:-}" ]; then
    while :; do
        ray start --address "$RAY_HEAD" --num-cpus 0 --num-gpus 0 --disable-usage-stats --block || true
        sleep 5
    done &
    export RAY_ADDRESS="$RAY_HEAD"    # else a stage that finds no cluster starts one here
fi
python -m flows.deploy
exec prefect worker start --pool flywheel --type process
