#!/usr/bin/env bash
# Half an hour on a machine with a real GPU: correctness first, then variants, kernels, decodes and PyTorch beside them.
#
#   benches/gpu-session.sh pack DIR    here: builds, and puts everything that the other machine needs into DIR (125 MB) and into DIR.tar.xz (63 MB)
#   DIR/benches/gpu-session.sh         there: runs it all; results go to $OUT (default: ./gpu-session)
#
# There it needs a Vulkan driver and loader, no network, no compiler. To bring the loader: the package libvulkan1 unpacked into DIR/vulkan
# (`pack` does that on Debian). NVIDIA's driver brings its own ICD file; where that is missing one is written. DEVICE=<number or name> picks the adapter
# (default: the best), SIZES and DECODERS the decodes, PYTHON a Python with CUDA torch (skipped where there is none), REPEAT how often each kernel is timed.
# PATIENCE multiplies the time that a step may take: 10 lets a software device rehearse the session. TESTS, for both: fewer tests, a smaller archive
# (37 MB with TESTS="kernels kernels_attention kernels_tile").
set -euo pipefail
cd "$(dirname "$0")/.."
tests=${TESTS:-kernels kernels_conv2d kernels_attention kernels_tile kernels_latent kernels_unet windows bounded models}

if [[ "${1:-}" == pack ]]; then
    to=${2:?usage: $0 pack DIR}
    mkdir -p "$to"/{bin,benches,training,weights,examples,tests}
    cargo build --release
    cp "${CARGO_TARGET_DIR:-target}/release/infgen" "$to/bin/"
    # The newest executable of each test, by cargo's own account.
    for test in $tests; do
        built=$(cargo test --release --no-run --test "$test" --message-format=json 2>/dev/null |
            sed -n '/"kind":\["test"\]/s/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
        cp "$built" "$to/bin/test-$test"
    done
    strip "$to"/bin/*
    cp benches/{gpu-session.sh,compare.py} "$to/benches/"
    cp training/infgen_model.py "$to/training/"
    cp weights/*.safetensors weights/SHA256SUMS "$to/weights/"
    cp -r tests/data "$to/tests/"
    cp examples/sample.safetensors "$to/examples/"
    if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
        work=$(mktemp -d)
        (cd "$work" && apt-get download libvulkan1 >/dev/null 2>&1 && dpkg-deb -x libvulkan1_*.deb root) &&
            mkdir -p "$to/vulkan" && cp -a "$work"/root/usr/lib/*/libvulkan.so* "$to/vulkan/" ||
            echo "libvulkan1 could not be had: the other machine must have a Vulkan loader"
        rm -rf "$work"
    fi
    git rev-parse HEAD >"$to/commit"
    XZ_OPT="-3 -T0" tar -C "$to" -cJf "${to%/}.tar.xz" .
    du -sh "$to" "${to%/}.tar.xz"
    exit
fi

out=${OUT:-gpu-session}
mkdir -p "$out"
out=$(cd "$out" && pwd)
infgen=bin/infgen
[[ -x $infgen ]] || infgen=${CARGO_TARGET_DIR:-target}/release/infgen
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp} XDG_CACHE_HOME="$out/cache" LD_LIBRARY_PATH="$PWD/vulkan:${LD_LIBRARY_PATH:-}"
if [[ -z "${VK_DRIVER_FILES:-}" ]] && ! ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json >/dev/null 2>&1; then
    library=$(ldconfig -p | sed -n 's/.*=> \(.*libGLX_nvidia\.so\.0\)$/\1/p' | head -n 1)
    if [[ -n $library ]]; then
        echo "{\"file_format_version\":\"1.0.0\",\"ICD\":{\"library_path\":\"$library\",\"api_version\":\"1.3.0\"}}" >"$out/icd.json"
        export VK_DRIVER_FILES="$out/icd.json" VK_ICD_FILENAMES="$out/icd.json"
    fi
fi
device=(${DEVICE:+--device "$DEVICE"})
failed=()

# Runs one step into its own file, shows it, and remembers whether it failed; nothing stops the rest.
step() {
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    if timeout $((limit * ${PATIENCE:-1})) "$@" 2>&1 | tee "$out/$name.txt"; then return 0; fi
    failed+=("$name")
    return 1
}

{
    date -u
    cat commit 2>/dev/null || git rev-parse HEAD
    uname -a
    nvidia-smi 2>/dev/null || true
} >"$out/machine.txt"
step devices 60 $infgen devices || true

# 1. Correctness. A wrong kernel is not worth timing, but the others still are.
for test in $tests; do
    [[ -x bin/test-$test ]] || continue
    step "test-$test" 240 env ${DEVICE:+INFGEN_DEVICE="$DEVICE"} REQUIRE_GPU=1 CARGO_MANIFEST_DIR="$PWD" bin/test-$test || true
done
step check 300 $infgen bench "${device[@]}" --check --repeat ${REPEAT:-7} --output "$out/kernels.json" conv2d linear attention norm geglu || true

# 2. Every family at every shape, then what the tuner makes of it (twice: the second is from its cache).
step variants 300 $infgen bench "${device[@]}" --variants --repeat ${REPEAT:-7} --output "$out/variants.json" conv2d linear attention || true
step checked 200 $infgen bench "${device[@]}" --check --bounds-checks true --repeat ${REPEAT:-7} --output "$out/checked.json" conv2d linear attention || true
for run in first second; do
    step "tuned-$run" 120 $infgen decode "${device[@]}" --latent examples/sample.safetensors --size 512x512 -v --json -o "$out/$run.png" || true
done
cmp "$out/first.png" "$out/second.png" || failed+=("bits of two runs")

# 3. Whole decodes, memory traffic, both storage types.
step decodes 300 $infgen bench "${device[@]}" --output "$out/decodes.json" --sizes "${SIZES:-512,1024,2048}" decode upload readback || true
step decodes-f32 200 $infgen bench "${device[@]}" --dtype f32 --output "$out/decodes-f32.json" --sizes "${SIZES:-512,1024}" decode || true

# 4. The same in PyTorch.
python=${PYTHON:-python3}
if $python -c 'import torch, numpy, safetensors; assert torch.cuda.is_available()' 2>/dev/null; then
    step compare 600 $python benches/compare.py --infgen "$infgen" --device cuda --compile --networks tiny,table1,vae,unet \
        --decoders "${DECODERS:-tiny,table1,sd4}" --sizes "${SIZES:-512,1024,2048}" --save "$out/compare.json" || true
else
    echo "no Python with CUDA torch: nothing to compare with"
fi

echo "== summary"
{
    cat "$out/machine.txt" | head -n 2
    for file in variants check checked decodes decodes-f32 compare; do
        [[ -s "$out/$file.txt" ]] && echo "-- $file" && cat "$out/$file.txt"
    done
    echo "failed: ${failed[*]:-nothing}"
} | tee "$out/summary.txt" | tail -n 1
rm -rf "$out/cache"
[[ ${#failed[@]} == 0 ]]
