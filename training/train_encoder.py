"""Trains an encoder of our own (TAESD-shaped, narrower where pixels are many) to give the latents of a frozen encoder.

The encoder has no normalisation and sees nothing beyond its convolutions' reach, so crops teach it exactly. Crops of
all scales, from whole pictures shrunk to 512 up to full resolution, so that it is as good for large pictures. Besides the
latents it learns to predict the frozen encoder's features at 1/2, 1/4 and 1/8 resolution through 1x1 convolutions that are
dropped afterwards: 192 numbers teach more than 4.
The schedule runs by wall clock as in train.py.
"""
import argparse
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data as D
import taesd
from train import descend, optimizers

TAPS = (5, 9, 13)
WIDTHS = [32, 48, 64, 96]  # channels at 1/1, 1/2, 1/4, 1/8


def draw(pictures, rng, crop):
    """A crop [3,crop,crop] uint8 of a picture at a random scale between long side 512 and its own."""
    a = pictures[rng.randrange(len(pictures))][1]
    H, W = a.shape[:2]
    k = max(crop / min(H, W), (512 / max(H, W)) ** rng.random())
    side = crop / k
    if min(H, W) <= side:
        l, t, side = 0, 0, min(H, W)
    else:
        l, t = rng.uniform(0, W - side), rng.uniform(0, H - side)
    im = D.resample(a, (l, t, l + side, t + side), (crop, crop))
    im = im[:, ::-1] if rng.random() < 0.5 else im
    return torch.from_numpy(im.copy()).permute(2, 0, 1)


def features(net, x):
    """Outputs of the layers TAPS, and the latents."""
    taps = []
    for i, layer in enumerate(net):
        x = layer(x)
        if i in TAPS:
            taps.append(x)
    return taps, x


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--space", choices=("sd", "sdxl"), default="sd")
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--weights", type=Path)
    ap.add_argument("--cache", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--hours", type=float, default=0.4)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--batch", type=int, default=8)
    ap.add_argument("--crop", type=int, default=128)
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    name = f"taesd{'xl' if a.space == 'sdxl' else ''}_encoder.safetensors"
    cl = dict(memory_format=torch.channels_last)
    teacher = taesd.load(taesd.encoder(), (a.weights or a.data / "weights") / name).to(device, **cl)
    net = taesd.encoder(widths=WIDTHS).to(device, **cl)
    for m in net.modules():
        if isinstance(m, taesd.Block):
            torch.nn.init.zeros_(m.conv[4].weight)
    ema = taesd.encoder(widths=WIDTHS).to(device, **cl).requires_grad_(False)
    ema.load_state_dict(net.state_dict())
    heads = torch.nn.ModuleList([torch.nn.Conv2d(w, 64, 1) for w in WIDTHS[1:]]).to(device, **cl)
    opts = optimizers(net, a.lr, "muon") + optimizers(heads, a.lr, "adamw")
    pictures = D.decode_all(a.data, a.cache / "pictures")
    held, pictures = pictures[::32], [p for i, p in enumerate(pictures) if i % 32]
    step, spent = 0, 0.0
    ckpt = a.out / "checkpoint.pt"
    if ckpt.exists():
        c = torch.load(ckpt, map_location=device, weights_only=True)
        net.load_state_dict(c["model"]); heads.load_state_dict(c["heads"]); ema.load_state_dict(c["ema"])
        for o, s in zip(opts, c["opts"]):
            o.load_state_dict(s)
        step, spent = c["step"], c["seconds"]

    def save():
        torch.save(dict(widths=WIDTHS, space=a.space, model=net.state_dict(), heads=heads.state_dict(), ema=ema.state_dict(),
                        opts=[o.state_dict() for o in opts], step=step, seconds=spent), str(ckpt) + ".tmp")
        os.replace(str(ckpt) + ".tmp", ckpt)

    def validate():
        rng, err, power = random.Random(1), 0.0, 0.0
        with torch.inference_mode():
            for _, p in held:
                x = torch.stack([draw([("", p)], rng, 256) for _ in range(2)]).to(device).float().div(255).to(**cl)
                z = teacher(x)
                err, power = err + (ema(x) - z).square().mean().item(), power + z.var().item()
        return f"latent error {10 * math.log10(err / power):.2f} dB of the latents' variance"

    rng = random.Random(a.seed + step)
    total, first, begin, last_save, run = a.hours * 3600, spent, time.time(), spent, []
    while spent < total:
        lr = a.lr * max(0.005, 0.5 * (1 + math.cos(math.pi * spent / total)) * min(1, (step + 1) / 100))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = lr
        x = torch.stack([draw(pictures, rng, a.crop) for _ in range(a.batch)]).to(device).float().div(255).to(**cl)
        with torch.autocast(device.type, torch.bfloat16):
            with torch.no_grad():
                ft, z = features(teacher, x)
            fy, y = features(net, x)
            y, z, loss = y.float(), z.float(), 0.0
            for head, u, t in zip(heads, fy, ft):
                t = t.float()
                loss = loss + 0.3 * ((head(u).float() - t) * t.square().mean((0, 2, 3), keepdim=True).add(1e-4).rsqrt()).abs().mean()
        loss = loss + F.l1_loss(y, z) + F.mse_loss(y, z)
        descend(net, ema, opts, loss, min(0.998, (1 + step) / (10 + step)))
        step += 1
        run.append((y - z).square().mean().item() / z.var().item())
        spent = first + time.time() - begin
        if step % 100 == 0:
            print(f"step {step} {spent / 3600:.3f} h lr {lr:.1e} error {10 * math.log10(sum(run) / len(run)):.2f} dB", flush=True)
            run = []
        if spent - last_save > 180:
            save(); last_save = spent
            print(f"== step {step} validation: {validate()}", flush=True)
    save()
    print(f"== step {step} validation: {validate()}", flush=True)


if __name__ == "__main__":
    main()
