"""Crops side by side: original, TAESD + Lanczos, TAESD on the enlarged latent, InfGen.

  python figure.py weights/infgen-tiny-sd.safetensors --data DATA --out weights/figure.jpg
Freely licensed pictures only (never Urban100).
"""
import argparse
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from evaluate import Methods, jobs
from export import read_decoder

CROPS = [  # picture, protocol, centre of the crop (x, y) as shares of the decoded picture
    ("kodak_kodim23", "512", 0.62, 0.32), ("kodak_kodim07", "native", 0.45, 0.45), ("budgie_12", "native", 0.2, 0.65),
    ("kodak_kodim19", "native", 0.45, 0.4), ("budgie_6", "2048", 0.5, 0.5)]
METHODS = ["taesd + lanczos", "taesd, latent enlarged", "infgen"]
SIDE = 176


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("weights", type=Path)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--amp", action="store_true")
    ap.add_argument("--quality", type=int, default=90)
    a = ap.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    m = Methods(read_decoder(a.weights), a.data / "weights", amp=a.amp)
    font, top = ImageFont.load_default(13), 20
    sheet = Image.new("RGB", (SIDE * 4 + 3 * 4, (SIDE + top) * len(CROPS)), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, protocol, cx, cy) in enumerate(CROPS):
        im = Image.open(a.data / "eval" / f"{name}.webp").convert("RGB")
        _, source, reference, (w, h), k = next(j for j in jobs(name, im) if j[0] == protocol)
        left = [min(max(0, int(c * s) - SIDE // 2), s - SIDE) for c, s in ((cx, w), (cy, h))]
        box = (*left, left[0] + SIDE, left[1] + SIDE)
        z = m.encode(source)
        cells = [("original" if k == 1 else "original (enlarged)", reference if k == 1 else reference.resize((w, h), Image.BICUBIC))]
        cells += [(q, Image.fromarray(m.run(q, z, (w, h)))) for q in METHODS]
        for col, (title, picture) in enumerate(cells):
            x, y = col * (SIDE + 4), row * (SIDE + top)
            pen.text((x + 2, y + 3), f"{name} at {w}x{h}" if col == 0 else title, "black", font)
            sheet.paste(picture.crop(box), (x, y + top))
    sheet.save(a.out, quality=a.quality)
    print(a.out, a.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
