"""Measures a decoder against TAESD on the same latents. Evaluation pictures only.

Latents come from the TAESD encoder (--encoder: another one) at 512 x 512, in f32. Targets:
  512     centre square of each picture, reduced to 512
  1024    centre square of the pictures whose short side has 1024 pixels
  2048    the same pictures decoded at 2048; no original has these pixels, so outputs are box-reduced to 1024 and compared there
  native  the whole picture squashed to 512 x 512 (as the paper does) and decoded at its own, non-square size
Methods: ours, ours with cross-attention off (--ablation), TAESD + Lanczos, TAESD + bicubic, TAESD on the bilinearly enlarged latent.
Measures: PSNR (RGB, dB), SSIM (luma, Gaussian 11, sigma 1.5), mean gradient magnitude of luma relative to the original's,
SSIMULACRA2 (the PyPI package `ssimulacra2`). Means over pictures. Outputs are rounded to 8 bits first.
--amp decodes in bf16 (all methods alike): measured on a Kodak picture, TAESD's PSNR moves by 0.005 dB.
"""
import argparse
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import taesd
from export import read_decoder, read_encoder

LUMA = np.array([0.299, 0.587, 0.114])


def psnr(a, b):
    return -10 * math.log10(max(1e-10, np.square((a.astype(np.float64) - b) / 255).mean()))


def ssim(a, b):
    g = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    k = torch.from_numpy(g / g.sum())
    def blur(t):
        return F.conv2d(F.conv2d(t, k.view(1, 1, 1, -1)), k.view(1, 1, -1, 1))
    a, b = (torch.from_numpy(t @ LUMA)[None, None] for t in (a, b))
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma ** 2, blur(b * b) - mb ** 2, blur(a * b) - ma * mb
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * ma * mb + c1) * (2 * cov + c2) / ((ma ** 2 + mb ** 2 + c1) * (va + vb + c2))).mean())


def gradient(a):
    y = a @ LUMA
    return float(np.hypot(y[:-1, 1:] - y[:-1, :-1], y[1:, :-1] - y[:-1, :-1]).mean())


def ssimulacra2(a, b):
    from ssimulacra2 import compute_ssimulacra2
    files = []
    for t in (a, b):
        f = io.BytesIO()
        Image.fromarray(t).save(f, "bmp")
        f.seek(0)
        files.append(f)
    return float(compute_ssimulacra2(*files))


def measure(original, out, perceptual=True):
    r = dict(psnr=psnr(original, out), ssim=ssim(original, out), grad=gradient(out) / gradient(original))
    if perceptual:
        r["ssimulacra2"] = ssimulacra2(original, out)
    return r


def to8(x):  # [1,3,H,W] in [0,1] -> uint8 [H,W,3]
    return (x[0].float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def to_tensor(a, device="cpu"):
    return torch.from_numpy(np.array(a)).permute(2, 0, 1)[None].to(device) / 255


def jobs(name, im):
    """(protocol, picture encoded (PIL), reference (PIL), decode size (w, h), box reduction before comparing)."""
    w, h = im.size
    s = min(w, h)
    sq = im.crop(((w - s) // 2, (h - s) // 2, (w - s) // 2 + s, (h - s) // 2 + s))
    at = lambda p, n: p if p.size == (n, n) else p.resize((n, n), Image.LANCZOS)
    yield "512", at(sq, 512), at(sq, 512), (512, 512), 1
    if s >= 1024:
        yield "1024", at(sq, 512), at(sq, 1024), (1024, 1024), 1
        yield "2048", at(sq, 512), at(sq, 1024), (2048, 2048), 2
    yield "native", im.resize((512, 512), Image.LANCZOS), im, (w, h), 1


class Methods:
    def __init__(self, model, weights, encoder=None, device="cpu", amp=False):
        self.device, self.model, self.amp = device, model.to(device, memory_format=torch.channels_last), amp
        self.encoder = (encoder or taesd.load(taesd.encoder(), weights / f"taesd{self.xl}_encoder.safetensors")).to(
            device, memory_format=torch.channels_last)
        self.decoder = taesd.load(taesd.decoder(), weights / f"taesd{self.xl}_decoder.safetensors").to(
            device, memory_format=torch.channels_last)

    @property
    def xl(self):
        return "xl" if self.model.config["latent_space"] == "sdxl" else ""

    @torch.inference_mode()
    def encode(self, picture):
        return self.encoder(to_tensor(picture, self.device))

    @torch.inference_mode()
    def run(self, method, z, size):
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.amp):
            return self._run(method, z, *size)

    def _run(self, method, z, w, h):
        method = method.removesuffix(", own encoder")
        if method.startswith("infgen"):
            self.model.use_attention = "off" not in method
            return to8(self.model(z / self.model.config["scaling_factor"], h, w) / 2 + 0.5)
        if method == "taesd, latent enlarged":
            big = F.interpolate(z, (-(-h // 8), -(-w // 8)), mode="bilinear", align_corners=False)
            return to8(self.decoder(big)[..., :h, :w])
        base = Image.fromarray(to8(self.decoder(z)))
        return np.asarray(base if base.size == (w, h) else base.resize(
            (w, h), Image.LANCZOS if method.endswith("lanczos") else Image.BICUBIC))


def reduce(a, k):
    h, w, _ = a.shape
    return a if k == 1 else np.round(a.reshape(h // k, k, w // k, k, 3).mean((1, 3))).astype(np.uint8)


def table(results):
    """Markdown of the means, from {"picture|protocol|method": measures}."""
    groups = {}
    for key, m in results.items():
        _, protocol, method = key.split("|")
        groups.setdefault(protocol, {}).setdefault(method, []).append(m)
    lines = ["| target | method | pictures | PSNR | SSIM | gradient | SSIMULACRA2 |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for protocol, methods in groups.items():
        for method, ms in methods.items():
            mean = lambda k: sum(m.get(k, math.nan) for m in ms) / len(ms)
            lines.append(f"| {protocol} | {method} | {len(ms)} | {mean('psnr'):.2f} | {mean('ssim'):.3f} | {mean('grad'):.2f} | {mean('ssimulacra2'):.1f} |")
    return "\n".join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("weights", type=Path, help="decoder (.safetensors)")
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--encoder", type=Path, help="encoder (.safetensors of our own) instead of TAESD's")
    ap.add_argument("--out", type=Path, required=True, help="results, .json: what is there is not measured again")
    ap.add_argument("--protocols", default="512,1024,2048,native")
    ap.add_argument("--native-every", type=int, default=3, help="protocol native takes every n-th picture")
    ap.add_argument("--amp", action="store_true")
    ap.add_argument("--ablation", action="store_true", help="also decode with cross-attention off")
    ap.add_argument("--ours-only", action="store_true")
    ap.add_argument("--baselines-only", action="store_true")
    a = ap.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    m = Methods(read_decoder(a.weights), a.data / "weights", a.encoder and read_encoder(a.encoder),
                "cuda" if torch.cuda.is_available() else "cpu", a.amp)
    results = json.loads(a.out.read_text()) if a.out.exists() else {}
    for protocol in a.protocols.split(","):
        for f in sorted((a.data / "eval").glob("*.webp"))[:: a.native_every if protocol == "native" else 1]:
            im = Image.open(f).convert("RGB")
            for p, source, reference, size, k in jobs(f.stem, im):
                if p != protocol:
                    continue
                methods = [] if a.baselines_only else ["infgen"] + (["infgen, attention off"] if a.ablation else [])
                if not a.ours_only:
                    methods += ["taesd"] if p == "512" else ["taesd + lanczos", "taesd + bicubic", "taesd, latent enlarged"]
                if a.encoder:
                    methods = [q + ", own encoder" for q in methods]
                methods = [q for q in methods if f"{f.stem}|{p}|{q}" not in results]
                z = m.encode(source) if methods else None
                for q in methods:
                    results[f"{f.stem}|{p}|{q}"] = measure(
                        np.asarray(reference), reduce(m.run(q, z, size), k), perceptual="off" not in q)
                    print(f.stem, p, q, {n: round(v, 3) for n, v in results[f"{f.stem}|{p}|{q}"].items()}, flush=True)
                a.out.write_text(json.dumps(results, indent=0))
    print(table(results))


if __name__ == "__main__":
    main()
