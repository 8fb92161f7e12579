"""The same operators and the same networks in PyTorch, on the same machine, right after `infgen bench`: prints ratios.

    python benches/compare.py                              # CPU: kernels of the shipped decoder, its decode at 256x256
    python benches/compare.py --device cuda --sizes 512,1024,2048 --decoders tiny,table1,sd4 --networks tiny,table1,sd4,vae,unet

Needs torch, numpy and safetensors. On the CPU PyTorch runs f32 (its f16 is slower there), channels_last, and both sides are measured in
CPU time over cores, since other work stretches wall time; on CUDA f16, channels_last, by events, eager and (`--compile`) through torch.compile.
A ratio is infgen's rate over PyTorch's: above 1 infgen is faster. `--save FILE` keeps everything as JSON.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "training"))
from infgen_model import InfGenDecoder, preset  # noqa: E402

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--infgen", default=str(ROOT / "target/release/infgen"), help="the program")
parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="PyTorch's device")
parser.add_argument("--adapter", help="infgen's --device")
names = lambda text: [name for name in text.split(",") if name not in ("", "none")]
parser.add_argument("--networks", type=names, default="tiny", help="kernels of these networks, or `none`: tiny,table1,sd4,vae,unet")
parser.add_argument("--decoders", type=names, default="tiny", help="whole decodes with these, or `none`: tiny,table1,sd4 (the last two with random weights)")
parser.add_argument("--sizes", default="256", help="sides of the whole decodes")
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--compile", action="store_true", help="torch.compile too")
parser.add_argument("--save", help="JSON file")
ARGS = parser.parse_args()

CUDA = ARGS.device.startswith("cuda")
DTYPE = torch.float16 if CUDA else torch.float32
CORES = os.cpu_count() or 1


def bench(*arguments):
    command = [ARGS.infgen, "bench", *arguments, "--json", "--repeat", str(ARGS.repeat)]
    if ARGS.adapter:
        command += ["--device", ARGS.adapter]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def seconds(work, repeat=None):
    """Median after a warm-up: CUDA events, or this process's CPU time over cores. Short work is repeated to last 20 ms."""
    repeat = repeat or ARGS.repeat

    def once(times):
        if CUDA:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(times):
                work()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) * 1e-3 / times
        start = time.process_time()
        for _ in range(times):
            work()
        return (time.process_time() - start) / CORES / times

    with torch.inference_mode():
        once(1)
        times = max(1, min(64, int(0.02 / max(once(1), 1e-5))))
        return statistics.median(once(times) for _ in range(repeat))


def random(*shape):
    return torch.randn(*shape, device=ARGS.device, dtype=DTYPE)


def image(channels, h, w):
    return random(1, channels, h, w).to(memory_format=torch.channels_last)


def operator(row):
    """The operator of a row of `infgen bench`, or None."""
    op = row.get("op")
    if op in ("conv2d_3x3", "norm_conv2d_3x3", "upsample_conv2d_3x3", "conv2d_3x3_stride2"):
        x = image(row["cin"], row["h"], row["w"])
        weight = (random(row["cout"], row["cin"], 3, 3) / (9 * row["cin"]) ** 0.5).to(memory_format=torch.channels_last)
        bias = random(row["cout"])
        if op == "conv2d_3x3":
            return lambda: F.conv2d(x, weight, bias, padding=1)
        if op == "upsample_conv2d_3x3":
            return lambda: F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), weight, bias, padding=1)
        if op == "conv2d_3x3_stride2":
            return lambda: F.conv2d(x, weight, bias, padding=1, stride=2)
        scale, shift, residual = random(1, row["cin"], 1, 1), random(1, row["cin"], 1, 1), image(row["cout"], row["h"], row["w"])
        return lambda: F.conv2d(F.silu(x * scale + shift), weight, bias, padding=1) + residual
    if op == "linear":
        x, weight, bias = random(row["rows"], row["k"]), random(row["n"], row["k"]), random(row["n"])
        return lambda: F.linear(x, weight, bias)
    if op == "attention":
        q, kv = random(1, row["heads"], row["n"], row["d"]), random(1, row["heads"], row["m"], row["d"])
        return lambda: F.scaled_dot_product_attention(q, kv, kv)
    if op == "group_norm_silu":
        x, weight, bias = image(row["c"], row["h"], row["w"]), random(row["c"]), random(row["c"])
        return lambda: F.silu(F.group_norm(x, 32, weight, bias, 1e-6))
    if op == "layer_norm":
        x, weight, bias = random(row["rows"], row["c"]), random(row["c"]), random(row["c"])
        return lambda: F.layer_norm(x, (row["c"],), weight, bias, 1e-6)
    return None


RESULTS = []


def line(name, ours, theirs, **facts):
    RESULTS.append({"name": name, "infgen_seconds": ours, "torch_seconds": theirs, "ratio": theirs / ours, **facts})
    print(f"{name:<58} {ours * 1e3:>10.2f} {theirs * 1e3:>10.2f} {theirs / ours:>7.2f}", flush=True)


def kernels():
    seen = set()
    for network in ARGS.networks:
        report = bench("--network", network, "conv2d", "linear", "attention", "norm")
        for row in report["results"]:
            work = operator(row)
            if work is None or row["name"] in seen:
                continue
            seen.add(row["name"])
            line(row["name"], row["seconds"], seconds(work), flops=row["flops"], gflops=row["gflops"])


def decoder(name, folder):
    """The PyTorch model, and its files for infgen."""
    if name == "tiny":
        from safetensors import safe_open

        path = ROOT / "weights/infgen-tiny-sd.safetensors"
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["infgen_config"])
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}
        model = InfGenDecoder(config)
        model.load_state_dict(tensors)
        return model.eval(), path, config
    torch.manual_seed(1)
    config = preset(name)
    model = InfGenDecoder(config).eval()
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return model, folder, config


def agreement(model, weights, config, folder):
    """Relative L2 between the two programs' pictures of one latent in f32: they must be the same network."""
    latent = torch.randn(1, config["latent_channels"], 16, 24, generator=torch.Generator().manual_seed(2)) * config["scaling_factor"]
    np.save(folder / "latent.npy", latent.numpy())
    out = folder / "image.npy"
    command = [ARGS.infgen, "decode", "--latent", str(folder / "latent.npy"), "--weights", str(weights), "--size", "101x67"]
    command += ["--dtype", "f32", "-q", "-o", str(out)] + (["--device", ARGS.adapter] if ARGS.adapter else [])
    subprocess.run(command, check=True)
    with torch.inference_mode():
        expected = model.float().cpu()(latent / config["scaling_factor"], 67, 101)[0].numpy()
    got = np.load(out)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def decodes():
    for name in ARGS.decoders:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            model, weights, config = decoder(name, folder)
            error = agreement(model, weights, config, folder)
            print(f"{name}: relative L2 between the two in f32 {error:.1e}")
            if not error < 1e-3:
                sys.exit(f"{name}: not the same network, no times are given")
            model = model.to(ARGS.device, DTYPE).to(memory_format=torch.channels_last)
            model.inpe.float()
            side = config["base_latent_size"][0]
            z = torch.randn(1, config["latent_channels"], side, side).to(ARGS.device, DTYPE)
            forms = [("eager", model)] + ([("torch.compile", torch.compile(model))] if ARGS.compile else [])
            for size in map(int, ARGS.sizes.split(",")):
                row = bench("decode", "--weights", str(weights), "--sizes", str(size))["results"][-1]
                for form, network in forms:
                    theirs = seconds(lambda: network(z, size, size))
                    line(f"decode {name} {size}x{size}, {form}", row["seconds"], theirs, flops=row["flops"], gflops=row["gflops"])


report = bench("peak")
where = torch.cuda.get_device_name() if CUDA else f"CPU, {CORES} cores, {torch.get_num_threads()} threads"
print(f"infgen: {report['device']['name']}, {report['device']['driver']}, {report['dtype']}; {report['clock']}")
print(f"torch {torch.__version__}: {where}, {str(DTYPE).removeprefix('torch.')}, channels_last")
print(f"{'':<58} {'infgen ms':>10} {'torch ms':>10} {'ratio':>7}")
kernels()
decodes()
if ARGS.save:
    with open(ARGS.save, "w") as file:
        json.dump({"infgen": report["device"], "torch": torch.__version__, "torch_device": where, "results": RESULTS}, file, indent=1)
