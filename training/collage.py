"""Pictures made up of shapes: what a few hundred photographs hold too little of.

Discs, polygons, bars and strokes of all scales lie over each other ("dead leaves"), filled with strong flat colours,
gradients and recoloured pieces of the training pictures; some are out of focus, some transparent. Edges between any two
colours are known at every target size.
"""
import colorsys
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import data as D


def colour(rng):
    """RGB in [0,255]; saturated more often than not."""
    s = rng.random() ** (0.5 if rng.random() < 0.7 else 2)
    return np.array([255 * c for c in colorsys.hsv_to_rgb(rng.random(), s, rng.random() ** 0.7)], np.float32)


def gradient(w, h, rng):
    """[h,w,3] from one colour to another along a random direction."""
    a, u, v = rng.uniform(0, 2 * np.pi), np.linspace(-0.5, 0.5, w, dtype=np.float32), np.linspace(-0.5, 0.5, h, dtype=np.float32)
    t = np.clip(0.5 + np.cos(a) * u[None] + np.sin(a) * v[:, None], 0, 1)[..., None]
    first, second = colour(rng), colour(rng)
    return first + t * (second - first)


def piece(w, h, pictures, rng):
    """[h,w,3]: a window of a picture, enlarged only where all of it has fewer pixels: recoloured, as tones between two colours, or as it is."""
    _, a = rng.choice(pictures)
    H, W = a.shape[:2]
    k = min(W / w, H / h)
    k *= rng.uniform(min(1.0, 1 / k), 1.0)
    l, t = rng.uniform(0, W - k * w), rng.uniform(0, H - k * h)
    im = D.resample(a, (l, t, l + k * w, t + k * h), (w, h))
    kind = rng.random()
    if kind < 0.3:
        luma, first, second = im @ np.array([0.299, 0.587, 0.114], np.float32) / 255, colour(rng), colour(rng)
        return first + luma[..., None] * (second - first)
    return (D.recolour(im, D.random_colours(rng)) if kind < 0.8 else im).astype(np.float32)


def fill(w, h, pictures, rng):
    kind = rng.random()
    if kind < 0.35:
        return np.broadcast_to(colour(rng), (h, w, 3))
    return gradient(w, h, rng) if kind < 0.5 else piece(w, h, pictures, rng)


def mask(side, radius, rng):
    """((left, top), [h,w] in [0,1]) of one shape, antialiased; None where it lies outside."""
    s, cx, cy = 4 if radius < 100 else 2, rng.uniform(0, side), rng.uniform(0, side)
    blur = rng.uniform(0.5, 0.1 * radius + 1) if rng.random() < 0.25 else 0
    reach = int(radius + 3 * blur) + 2
    l, t, r, b = max(0, int(cx) - reach), max(0, int(cy) - reach), min(side, int(cx) + reach), min(side, int(cy) + reach)
    if r - l < 2 or b - t < 2:
        return None
    im = Image.new("L", (s * (r - l), s * (b - t)))
    draw, kind, turn = ImageDraw.Draw(im), rng.random(), rng.uniform(0, 2 * np.pi)
    at = lambda angle, d: (s * (cx - l + d * np.cos(turn + angle)), s * (cy - t + d * np.sin(turn + angle)))
    if kind < 0.35:  # a disc, or an ellipse as a polygon
        f = rng.uniform(0.3, 1)
        c, q = np.cos(turn), np.sin(turn)
        draw.polygon([(s * (cx - l + radius * (c * x - q * f * y)), s * (cy - t + radius * (q * x + c * f * y)))
                      for x, y in ((np.cos(i), np.sin(i)) for i in np.linspace(0, 2 * np.pi, 97)[:-1])], fill=255)
    elif kind < 0.65:  # straight sides, star-shaped around its middle
        n = rng.randint(3, 9)
        draw.polygon([at(2 * np.pi * (i + 0.7 * rng.random()) / n, radius * rng.uniform(0.4, 1)) for i in range(n)], fill=255)
    elif kind < 0.8:  # a bar
        f = rng.uniform(0.05, 0.6)
        draw.polygon([at(a, radius) for a in (f, np.pi - f, np.pi + f, -f)], fill=255)
    else:  # strokes
        for _ in range(rng.randint(1, 6)):
            points = [at(rng.uniform(0, 2 * np.pi), radius * rng.random()) for _ in range(rng.randint(2, 6))]
            draw.line(points, fill=255, width=max(1, round(s * rng.uniform(1, 0.06 * radius + 2))), joint="curve")
    m = np.asarray(im.resize((r - l, b - t), Image.BOX).filter(ImageFilter.GaussianBlur(blur)) if blur else im.resize((r - l, b - t), Image.BOX))
    return (l, t), m.astype(np.float32) / 255


def collage(pictures, rng, side=1536):
    """One uint8 [side,side,3] of `pictures` [(name, array)] and shapes."""
    out = np.array(fill(side, side, pictures, rng))
    for _ in range(int(2 ** rng.uniform(4, 7.5))):
        shape = mask(side, 8 * (side / 24) ** rng.random(), rng)  # radii of 8 pixels to a third of the side, log-uniform
        if shape:
            (l, t), m = shape
            h, w = m.shape
            part = out[t:t + h, l:l + w]
            part += m[..., None] * rng.choice((1, 1, 1, 0.6)) * (fill(w, h, pictures, rng) - part)
    return (out + 0.5).clip(0, 255).astype(np.uint8)


def stored(cache: Path):
    """[(name, array)] of those in a cache of pictures."""
    return [(f.stem, np.load(f, mmap_mode="r")) for f in sorted(cache.glob("collage-*.npy"))]


def make(pictures, cache: Path, count, seed):
    """`count` collages of `pictures` as .npy beside them; what exists is kept. Returns all that are stored."""
    cache.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        f = cache / f"collage-{i:04}.npy"
        if not f.exists():
            tmp = f.with_suffix(f".{os.getpid()}.tmp")
            with open(tmp, "wb") as h:
                np.save(h, collage(pictures, random.Random(f"{seed} {i}")))
            tmp.rename(f)
    return stored(cache)
