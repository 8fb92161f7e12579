#!/usr/bin/env bash
# Training on a machine with a GPU that is at hand for a while and reaches nothing else: what it needs travels in parts.
#
#   training/gpu-session.sh pack DATA DIR [MIB]   here: DIR/part-1, part-2, ... of at most MIB each (40): pictures, TAESD, scripts, our weights
#   DIR/part-N/gpu-session.sh take                there, for each part in any order: adds it to $WORK (default: /tmp/infgen-training)
#   $WORK/training/gpu-session.sh train NAME MINUTES [options of train.py]
#                                                 there: trains NAME (tiny-sd, tiny-sdxl, base-sd; large-sd from scratch) from the weights that ship, if it has any, for MINUTES of a
#                                                 schedule of HOURS (default: 0.33), and leaves NAME.safetensors and NAME.log in $OUT (default: $WORK/out)
#
# `train` once more goes on where the last one stopped, while the machine lasts; on the next machine begin with what came back, as weights/infgen-NAME.safetensors. The last part of a
# schedule is where the noise goes: fit HOURS to the time there is. PYTHON is one with CUDA's torch, numpy, safetensors and pillow (11.3 or newer: AVIF); RUN=NAME-2 keeps a second run apart.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=${WORK:-/tmp/infgen-training}

case "${1:-}" in
pack)
    data=${2:?usage: $0 pack DATA DIR [MIB]} to=${3:?usage: $0 pack DATA DIR [MIB]} limit=$((${4:-40} * 1024 * 1024))
    part=0 size=$limit
    # put FILE FOLDER: into the part that is being filled, or the next.
    put() {
        local bytes
        bytes=$(stat -L -c %s "$1")
        if ((size + bytes > limit)); then
            part=$((part + 1)) size=0
            [[ ! -e $to/part-$part ]] || { echo "$to/part-$part is there already" >&2; exit 1; }
            mkdir -p "$to/part-$part"
            cp "$here/gpu-session.sh" "$to/part-$part/"
        fi
        mkdir -p "$to/part-$part/$2"
        cp "$1" "$to/part-$part/$2/"
        size=$((size + bytes))
    }
    for f in "$here"/*.py "$here/gpu-session.sh"; do put "$f" training; done
    for f in "$here"/../weights/infgen-*.safetensors; do put "$f" weights; done
    for f in "$data"/weights/*.safetensors; do put "$f" data/weights; done
    for set in train train-hires more; do
        for f in "$data/$set"/*.{webp,avif,png,jpg}; do [[ ! -e $f ]] || put "$f" "data/$set"; done
    done
    du -sh "$to"/part-*
    ;;
take)
    mkdir -p "$work"
    cp -r "$here"/*/ "$work/"
    ;;
train)
    name=${2:?usage: $0 train NAME MINUTES [options]} minutes=${3:?usage: $0 train NAME MINUTES [options]}
    shift 3
    python=${PYTHON:-python3} run=$work/runs/${RUN:-$name} out=${OUT:-$work/out}
    mkdir -p "$run" "$out"
    cd "$work/training"
    # Weights that are there bring their config.
    start=(--config "$name") start_weights=$work/weights/infgen-$name.safetensors
    [[ ! -e $start_weights ]] || start=(--init "$start_weights" --teach 0.55 0.45)
    "$python" -c 'import torch; print(torch.__version__, torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: on the CPU")' | tee -a "$out/${RUN:-$name}.log"
    "$python" -u train.py --data "$work/data" --cache "$work/cache" --out "$run" --hours "${HOURS:-0.33}" --fresh-views --batch 32 --lr 1e-3 \
        --large-crops-from 0 --stage2-from 0 --supersample 0.3 --low 2 --low-cells 4 16 64 --ssim 0.3 --texture 0.3 --texture-from 0 "${start[@]}" "$@" \
        --stop-after "$("$python" -c "print($minutes / 60)")" 2>&1 | tee -a "$out/${RUN:-$name}.log"
    "$python" export.py decoder "$run/checkpoint.pt" "$out/${RUN:-$name}.safetensors"
    ;;
*)
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
    ;;
esac
