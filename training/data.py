"""Training pictures and their latents.

A *view* is a window of a picture, squashed or cropped to a small fixed size (512 x 512, or long side 512), and the
frozen encoder's latent of that. From a view any number of training samples follow: choose a target size between the
latent's own and the window's, cut some patch-aligned crops out of the target; the matching crops of the query grid
go through the decoder. Targets are never enlarged pictures.

  python data.py --data DIR --weights DIR --cache DIR [--space sd] [--rounds 8]    decodes pictures and encodes views
"""
import argparse
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import taesd

SETS = ("train", "train-hires", "more")  # the last is pictures.py's and need not be there; eval is never read here
SUFFIXES = (".webp", ".avif", ".png", ".jpg")


def decode_all(data: Path, cache: Path):
    """Every picture once as uint8 .npy, memory-mapped afterwards. Returns [(name, array [H,W,3])]."""
    cache.mkdir(parents=True, exist_ok=True)

    def decode(f):
        npy = cache / f"{f.parent.name}-{f.stem}.npy"
        if not npy.exists():
            tmp = npy.with_suffix(f".{os.getpid()}.tmp")
            with open(tmp, "wb") as h:
                np.save(h, np.asarray(Image.open(f).convert("RGB")))
            tmp.rename(npy)
        return npy.stem, np.load(npy, mmap_mode="r")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(decode, [f for s in SETS if s != "more" or (data / s).is_dir() for f in sorted((data / s).iterdir()) if f.suffix in SUFFIXES]))


def resample(a, box, size):
    """Window box = (left, top, right, bottom) of array a (float coordinates allowed) at size = (w, h); antialiased."""
    l, t, r, b = box
    pad = 3 * max((r - l) / size[0], (b - t) / size[1], 1)  # the filter's reach
    x0, y0 = max(0, int(l - pad)), max(0, int(t - pad))
    x1, y1 = min(a.shape[1], int(r + pad) + 1), min(a.shape[0], int(b + pad) + 1)
    im = Image.fromarray(np.ascontiguousarray(a[y0:y1, x0:x1]))
    return np.asarray(im.resize(size, Image.LANCZOS, box=(l - x0, t - y0, r - x0, b - y0)))


def random_colours(rng):
    """[3,4] affine map of RGB in [0,1]: channels swapped, balance, saturation and contrast changed. A few hundred pictures
    hold too few strong colours: without it, flat parts of colourful pictures not seen in training came out wrong."""
    m = np.eye(3)
    if rng.random() < 0.5:
        m = m[rng.sample(range(3), 3)]
    m = np.diag([np.exp(rng.uniform(-0.15, 0.15)) for _ in range(3)]) @ m
    luma = np.tile([0.299, 0.587, 0.114], (3, 1))
    m = (luma + rng.uniform(0.5, 1.8) * (np.eye(3) - luma)) @ m
    contrast, pivot = np.exp(rng.uniform(-0.35, 0.35)), rng.uniform(0.3, 0.7)
    offset = (1 - contrast) * pivot + rng.uniform(-0.12, 0.12)
    return np.concatenate([contrast * m, np.full((3, 1), offset)], 1).astype(np.float32)


def recolour(a, colours):
    """uint8 [H,W,3] through a map of random_colours, clipped to 8 bits."""
    return (a @ colours[:, :3].T + (255 * colours[:, 3] + 0.5)).clip(0, 255).astype(np.uint8)


def random_view(shape, rng):
    """(left, top, w, h) of a window and the size (w, h) it is encoded at."""
    H, W = shape[:2]
    kind = rng.random()
    if kind < 0.3:  # the whole picture, squashed to a square as in the paper
        return (0, 0, W, H), (512, 512)
    if kind < 0.45:  # the whole picture in its own aspect, long side 512
        k = 512 / max(W, H)
        return (0, 0, W, H), (round(W * k / 8) * 8, round(H * k / 8) * 8)
    side = min(W, H) if kind < 0.75 else rng.randint(min(512, W, H), min(W, H))
    return (rng.randint(0, W - side), rng.randint(0, H - side), side, side), (512, 512)


def describe_view(a, rng, recoloured):
    """A view of picture a: window (left, top, w, h), the size (w, h) it is encoded at, flip, colours; a share `recoloured` has others than the picture."""
    window, size = random_view(a.shape, rng)
    flip = rng.random() < 0.5
    colours = random_colours(rng) if recoloured and rng.random() < recoloured else np.eye(3, 4, dtype=np.float32)
    return dict(window=window, size=size, flip=flip, colours=colours)


def show(v, a, box, size):
    """uint8 [h,w,3]: what of picture a lies in box, as view v shows it."""
    im = resample(a, box, size)
    if (v["colours"] != np.eye(3, 4)).any():
        im = recolour(im, v["colours"])
    return im[:, ::-1] if v["flip"] else im


def whole_view(v, a):
    l, t, w, h = v["window"]
    return show(v, a, (l, t, l + w, t + h), v["size"])


def weight(a):
    """Views of a picture in a round: large ones have more windows."""
    return 3 if max(a.shape) >= 2000 else 1


def make_views(pictures, encoder, cache: Path, rounds, seed, amp=True, plain=3):
    """`rounds` views of every picture (3x as many of the large ones), one .npz each; skips what exists. The first
    `plain` rounds keep the pictures' colours, in the others three quarters of the views are recoloured."""
    out = cache
    out.mkdir(parents=True, exist_ok=True)
    for r in range(rounds):
        for i, (name, a) in enumerate(pictures):
            for k in range(weight(a)):
                f = out / f"{name}.{r}{k}.npz"
                if f.exists():
                    continue
                v = describe_view(a, random.Random(f"{seed} {name} {r} {k}"), 0.75 if r >= plain else 0)
                x = torch.from_numpy(whole_view(v, a).copy()).permute(2, 0, 1)[None] / 255
                with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=amp):
                    z = encoder(x.contiguous(memory_format=torch.channels_last))
                tmp = f.with_suffix(".tmp")
                with open(tmp, "wb") as fh:
                    np.savez(fh, z=z[0].float().numpy().astype(np.float16), window=np.array(v["window"]), flip=v["flip"], colours=v["colours"])
                tmp.rename(f)
        print(f"views: round {r + 1}/{rounds} done", flush=True)


def enlargement(view, max_side):
    """How much larger than its latent's own size a view's target may be."""
    (bw, bh), (w, h) = view["size"], view["window"][2:]
    return max(1.0, min(max_side / max(bw, bh), max(w / bw, h / bh)))


def target_size(view, rng, patch, max_side, native):
    """Target (w, h): the latent's own size, or larger up to the window's, capped at max_side; often twice."""
    (bw, bh), (w, h) = view["size"], view["window"][2:]
    top = enlargement(view, max_side)
    k = 1.0 if native else min(2.0, top) if rng.random() < 0.5 else top ** rng.random()
    # towards the window's own aspect as the target grows (a squashed picture unsquashes)
    f = 0 if k == 1 else rng.random()
    tw, th = min(w, bw * k * (w / bw / (h / bh)) ** (f / 2)), min(h, bh * k * (h / bh / (w / bw)) ** (f / 2))
    return max(bw if w >= bw else w, int(tw)) // patch * patch, max(bh if h >= bh else h, int(th)) // patch * patch


class Sampler:
    """Draws (z, decoded size, rects, crops, reduce): K crops of `crop` x `crop` patches of one target, as uint8
    [K,3,crop*patch,crop*patch]; instead of as many pixels, a target of the latent's own size is taken whole. A share `supersample` of them is to be decoded at reduce = 2 times the size of the
    target that the picture has pixels for, and box-reduced before it is compared; its crops repeat each pixel. Without a folder of views each draw makes
    one of its own, and z is the picture that is still to be encoded, uint8 [3,h,w]: more variety, where an encoder is quick."""

    def __init__(self, pictures, views_dir: Path | None, scaling, patch=8, held=(), supersample=0.0):
        self.held, self.supersample = held, supersample  # held: names of pictures never to draw
        self.pictures, self.dir, self.scaling, self.patch = dict(pictures), views_dir, scaling, patch
        self.views = {}
        self.names = [n for n, a in pictures if n not in held for _ in range(weight(a))]
        self.rescan()

    def rescan(self):
        if self.dir is None:
            return
        for f in self.dir.glob("*.npz"):
            name = f.name.rsplit(".", 2)[0]
            if f.name not in self.views and name not in self.held:
                v = {"colours": np.eye(3, 4, dtype=np.float32), **np.load(f)}
                v.update(picture=name, size=tuple(8 * n for n in v["z"].shape[:0:-1]))
                self.views[f.name] = v
        self.names = sorted(self.views)

    def view(self, rng):
        name = rng.choice(self.names)
        return self.views[name] if self.dir else dict(describe_view(self.pictures[name], rng, 0.47), picture=name)

    def draw(self, rng, K, crop, max_side):
        p = self.patch
        native = rng.random() < 0.35
        v = self.view(rng)
        if not native and rng.random() < 0.6:  # few windows are large: look for one
            for _ in range(20):
                if enlargement(v, max_side) >= 1.8:
                    break
                v = self.view(rng)
        a = self.pictures[v["picture"]]
        W, H = target_size(v, rng, p, max_side, native)
        reduce = 2 if rng.random() < self.supersample and 2 * max(W, H) <= 2048 else 1
        W, H = W * reduce, H * reduce
        Wl, Hl = W // p, H // p
        rows, cols = min(crop, Hl), min(crop, Wl)
        if native and K * crop * crop >= Hl * Wl:
            K, rows, cols = 1, Hl, Wl
        l, t, w, h = (float(q) for q in v["window"])
        rects, crops = [], []
        for _ in range(K):
            # a little beyond and clamped, so that the picture's edges are seen often enough
            i, j = (min(max(rng.randint(-2, n - k + 2), 0), n - k) for n, k in ((Hl, rows), (Wl, cols)))
            jj = Wl - cols - j if v["flip"] else j  # where the crop lies in the unflipped window
            box = (l + jj / Wl * w, t + i / Hl * h, l + (jj + cols) / Wl * w, t + (i + rows) / Hl * h)
            crops.append(show(v, a, box, (cols * p // reduce, rows * p // reduce)).repeat(reduce, 0).repeat(reduce, 1))
            rects.append((i, j, rows, cols))
        if self.dir:
            z = torch.from_numpy(v["z"].astype(np.float32)) / self.scaling
        else:
            z = torch.from_numpy(whole_view(v, a).copy()).permute(2, 0, 1)
        return z, (H, W), rects, torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2), reduce


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--weights", type=Path, help="folder of the TAESD files (default: DATA/weights)")
    ap.add_argument("--cache", type=Path, required=True)
    ap.add_argument("--space", choices=("sd", "sdxl"), default="sd")
    ap.add_argument("--rounds", type=int, default=8)
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    pictures = decode_all(a.data, a.cache / "pictures")
    name = {"sd": "taesd", "sdxl": "taesdxl"}[a.space]
    enc = taesd.load(taesd.encoder(), (a.weights or a.data / "weights") / f"{name}_encoder.safetensors")
    order = list(pictures)
    random.Random(a.seed).shuffle(order)
    make_views(order, enc.to(memory_format=torch.channels_last), a.cache / f"views-{a.space}", a.rounds, a.seed)


if __name__ == "__main__":
    main()
