#!/bin/sh
# From pictures to the weights that ship: retrain.sh DATA CACHE RUNS. HOURS (decoder), NARROW_HOURS, ENCODER_HOURS and SPACE (sd, sdxl) may be set.
set -e
cd "$(dirname "$0")"
data=$1 cache=$2 runs=$3 space=${SPACE:-sd} hours=${HOURS:-2} narrow_hours=${NARROW_HOURS:-0.75} encoder_hours=${ENCODER_HOURS:-0.4}
case $space in sd) vae=taesd ;; *) vae=taesdxl ;; esac
python data.py --data "$data" --cache "$cache" --space "$space"
python train_encoder.py --space "$space" --data "$data" --cache "$cache" --out "$runs/encoder-tiny-$space" --hours "$encoder_hours"
python train.py --config "tiny-$space" --data "$data" --cache "$cache" --out "$runs/tiny-$space" --hours "$hours" --crops 3 --ssim 0.3 --texture 0.3 --supersample 0.25 --attention-every 4 \
    --low 2 --low-cells 4 16 64 --large-crops-from 0.5
python export.py encoder "$runs/encoder-tiny-$space/checkpoint.pt" "../weights/encoder-tiny-$space.safetensors"
python export.py decoder "$runs/tiny-$space/checkpoint.pt" "$runs/wide-$space.safetensors"
python narrow.py "$runs/wide-$space.safetensors" --cache "$cache" --out "$runs/narrow-$space" --hours "$narrow_hours"
python export.py decoder "$runs/narrow-$space/checkpoint.pt" "$runs/narrow-$space.safetensors"
python export.py join "$runs/narrow-$space.safetensors" "$data/weights/${vae}_decoder.safetensors" 0.5 "../weights/infgen-tiny-$space.safetensors"
python export.py join "$runs/wide-$space.safetensors" "$data/weights/${vae}_decoder.safetensors" 0.5 "../weights/infgen-base-$space.safetensors"
python export.py sums ../weights
