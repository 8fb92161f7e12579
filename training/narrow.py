"""Makes a trained decoder narrower: fewer channels in its up blocks and between the convolutions of its stem.

The stem exactly: what `post_quant_conv` writes lies in a space of 36 dimensions and its bias, so 37 channels do. The up blocks layer by layer (channel pruning
with reconstruction by least squares; ThiNet, arXiv 1707.06342; He et al., arXiv 1707.06168): channels that the layers behind use least are left out, and each
convolution is fitted to give, from what the narrower network really hands it, what the wide network's gave. Then the narrow network learns
what the wide one makes of latents (`--hours`): a target without noise, so half an hour does. Of larger pictures that is the mean with what it makes of the
same latent at smaller sizes, enlarged, which is better than its own (`taught`).

  python narrow.py DECODER.safetensors --cache CACHE --out RUN [--up 96 88 48] [--stem-channels 40] [--hours 0.75]

Goes on from RUN/checkpoint.pt if it is there; `--begin` begins with another narrow decoder, a base decoder included or not as in DECODER. CACHE: written by data.py. `export.py decoder RUN/checkpoint.pt OUT` makes the file.
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

import export
from infgen_model import InfGenDecoder, validate
from losses import gradient_l1
from train import core_crops, crop_tokens, descend, optimizers

LATENTS, SIDE, SAMPLES = 120, 32, 600  # what least squares see: parts of so many latents, so many pixels of each layer of each


def latent(view, scaling):
    return torch.from_numpy(np.load(view)["z"].astype(np.float32)) / scaling


# ---------------------------------------------------------------- least squares

def patches(x, at):
    """What a 3x3 convolution sees of x [1,C,H,W] at flat places [n], and a one for its bias: [n, 9C + 1] in f64."""
    i, j = at // x.shape[-1], at % x.shape[-1]
    p = F.pad(x[0], (1, 1, 1, 1))
    taps = torch.stack([p[:, i + a, j + b] for a in range(3) for b in range(3)], 1).flatten(0, 1)
    return torch.cat([taps, torch.ones(1, len(at))]).T.double()


def fit(conv, inputs, outputs, ridge=1e-4):
    """`conv` so that it gives `outputs` from `inputs`. Returns the share of their variance that it explains."""
    rows = []
    for x, y in zip(inputs, outputs):
        at = torch.randperm(y.shape[-1] * y.shape[-2])[:SAMPLES]
        rows.append((patches(x, at), y[0].flatten(1)[:, at].T.double()))
    A, Y = (torch.cat(v) for v in zip(*rows))
    gram = A.T @ A
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    W = torch.linalg.solve(gram, A.T @ Y)
    conv.weight.copy_(W[:-1].T.reshape(conv.weight.shape))
    conv.bias.copy_(W[-1])
    return (1 - (A @ W - Y).square().mean() / Y.var(0).mean()).item()


def active(norm, xs):
    return [F.silu(norm(x)) for x in xs]


def use(conv, inputs):
    """How much each input channel of `conv` adds to its result."""
    e = sum(x.square().mean((0, 2, 3)) for x in inputs) * conv.weight.square().sum((0, 2, 3))
    return e / e.sum()


def chosen(scores, count, groups):
    """The channels with the highest scores, as many of each group of a GroupNorm."""
    by_group = scores.view(groups, -1)
    best = by_group.topk(count // groups, 1).indices.sort(1).values
    return (best + torch.arange(groups)[:, None] * by_group.shape[1]).flatten()


def some(norm, of, channels):
    norm.weight.copy_(of.weight[channels])
    norm.bias.copy_(of.bias[channels])


@torch.no_grad()
def narrowed(wide, latents, up, stem_channels):
    """A decoder with up blocks of `up` channels that gives about what `wide` gives."""
    c = validate({**wide.config, "up_block_channels": up, "stem_channels": stem_channels})
    net, groups = InfGenDecoder(c).eval(), c["norm_num_groups"]
    own, there = net.state_dict(), wide.state_dict()
    for k, v in there.items():
        if k in own and own[k].shape == v.shape:
            own[k].copy_(v)
    # The stem: post_quant_conv's rows in a basis of the space that they and the bias lie in, conv_in of that basis.
    rows = torch.cat([wide.post_quant_conv.weight.flatten(1), wide.post_quant_conv.bias[:, None]], 1).double()
    basis = torch.linalg.svd(rows, full_matrices=False).U[:, :stem_channels]
    inside, r = basis.T @ rows, basis.shape[1]
    for p in (net.post_quant_conv.weight, net.post_quant_conv.bias, net.decoder.conv_in.weight):
        p.zero_()
    net.post_quant_conv.weight[:r].copy_(inside[:, :-1].reshape(r, *net.post_quant_conv.weight.shape[1:]))
    net.post_quant_conv.bias[:r].copy_(inside[:, -1])
    net.decoder.conv_in.weight[:, :r].copy_(torch.einsum("oikl,ir->orkl", wide.decoder.conv_in.weight.double(), basis))

    def features(model, z):
        h, w = z.shape[-2:]
        p = c["patch"]
        return model.decoder.mid_block(crop_tokens(model, z, [(p * h, p * w)], [[(0, 0, h, w)]]))

    xs, ws = ([features(m, z[None]) for z in latents] for m in (net, wide))
    stream = torch.arange(c["hidden_size"])  # which channels of the wide network's plane the narrow one's has
    for u, (n, w) in enumerate(zip(net.decoder.up_blocks, wide.decoder.up_blocks)):
        hidden, planes, here = [], [], ws
        for r in w.resnets:
            first = [r.conv1(a) for a in active(r.norm1, here)]
            second = active(r.norm2, first)
            skip = here if r.conv_shortcut is None else [r.conv_shortcut(x) for x in here]
            here = [s + r.conv2(a) for s, a in zip(skip, second)]
            hidden.append((first, second))
            planes.append(here)
        behind = [use(r.conv1, active(r.norm1, p)) for r, p in zip(w.resnets[1:], planes)]
        behind += [use(s.conv, planes[-1]) for s in w.upsamplers]
        kept = stream if n.resnets[0].conv_shortcut is None else chosen(sum(behind), up[u], groups)
        for i, (rn, rw) in enumerate(zip(n.resnets, w.resnets)):
            first, second = hidden[i]
            between = chosen(use(rw.conv2, second), up[u], groups)
            some(rn.norm1, rw.norm1, stream)
            explained = [fit(rn.conv1, active(rn.norm1, xs), [h[:, between] for h in first])]
            some(rn.norm2, rw.norm2, between)
            seconds = active(rn.norm2, [rn.conv1(a) for a in active(rn.norm1, xs)])
            skip = xs
            if rn.conv_shortcut is not None:
                if rw.conv_shortcut is None:
                    rn.conv_shortcut.weight.copy_((kept[:, None] == stream)[..., None, None])
                    rn.conv_shortcut.bias.zero_()
                else:
                    rn.conv_shortcut.weight.copy_(rw.conv_shortcut.weight[kept][:, stream])
                    rn.conv_shortcut.bias.copy_(rw.conv_shortcut.bias[kept])
                skip = [rn.conv_shortcut(x) for x in xs]
            explained.append(fit(rn.conv2, seconds, [p[:, kept] - s for p, s in zip(planes[i], skip)]))
            xs, stream = [s + rn.conv2(a) for s, a in zip(skip, seconds)], kept
            print(f"up block {u} resnet {i}: {explained[0]:.3f} and {explained[1]:.3f} of the variance", flush=True)
        ws = planes[-1]
        if w.upsamplers:
            double = lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest")
            ws = [w.upsamplers[0].conv(double(x)) for x in ws]
            if u + 1 < len(up):
                r = wide.decoder.up_blocks[u + 1].resnets[0]
                scores = use(r.conv1, active(r.norm1, ws)) + (use(r.conv_shortcut, ws) if r.conv_shortcut is not None else 0)
            else:
                scores = use(wide.decoder.conv_out, active(wide.decoder.conv_norm_out, ws))
            stream = chosen(scores, up[u], groups)
            xs = [double(x) for x in xs]
            explained = fit(n.upsamplers[0].conv, xs, [y[:, stream] for y in ws])
            xs = [n.upsamplers[0].conv(x) for x in xs]
            print(f"up block {u} upsampler: {explained:.3f}", flush=True)
    some(net.decoder.conv_norm_out, wide.decoder.conv_norm_out, stream)
    explained = fit(net.decoder.conv_out, active(net.decoder.conv_norm_out, xs), [wide.decoder.conv_out(a) for a in active(wide.decoder.conv_norm_out, ws)])
    print(f"output: {explained:.4f}", flush=True)
    return net


# ---------------------------------------------------------------- learning from the wide network

def draw(views, scaling, sizes, rng):
    """A latent, the size of a decode of it, one of `sizes` times its own, and what is looked at: all, or four crops of 256 pixels of larger ones.
    Never mirrored: a latent's mirror image is not the latent of the mirrored picture (decoded, 29 dB apart)."""
    z = latent(rng.choice(views), scaling)
    if rng.random() < 0.2:
        z = z * rng.uniform(0.85, 1.15)
    (h, w), k = z.shape[-2:], rng.choice(sizes)
    if k == 1:
        return z[None], [(8 * h, 8 * w)], [[(0, 0, h, w)]]
    H, W = int(h * k), int(w * k)
    rows, cols = min(32, H), min(32, W)
    at = lambda n, k: min(max(rng.randint(-2, n - k + 2), 0), n - k)
    return z[None], [(8 * H, 8 * W)], [[(at(H, rows), at(W, cols), rows, cols) for _ in range(4)]]


def taught(wide, z, sizes, rects):
    """The crops that `wide` makes, each the mean with what it makes of the latent at its own size and at twice that, if the picture is larger, enlarged:
    they err differently (alone it is 0.12 dB worse at 2048)."""
    p, (H, W), (h, w) = wide.config["patch"], sizes[0], z.shape[-2:]
    crops = [core_crops(wide, z, sizes, rects).float()]
    for k in (1, 2):
        if H <= k * p * h:
            break
        f = k * p * h / H, k * p * w / W
        n = [min(math.ceil(r * q) + 5, k * side) for r, q, side in zip(rects[0][0][2:], f, (h, w))]  # two patches and more around
        at = [[min(max(int(o * q) - 2, 0), k * side - m) for o, q, side, m in zip(r[:2], f, (h, w), n)] for r in rects[0]]
        small = core_crops(wide, z, [(k * p * h, k * p * w)], [[(*o, *n) for o in at]]).float()
        grids = []
        for r, o in zip(rects[0], at):
            y, x = (((torch.arange(p * r[2 + a]) + p * r[a] + 0.5) * f[a] - p * o[a]) / (p * n[a]) * 2 - 1 for a in (0, 1))
            grids.append(torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1))
        crops.append(F.grid_sample(small, torch.stack(grids), mode="bicubic", padding_mode="border", align_corners=False))
    return sum(crops) / len(crops)


def learn(net, wide, views, held, out, sizes, hours, lr, seed):
    """Of the picture without the base, which both share. Adam and Muon, cosine by wall clock to zero; the average is what counts. Writes out/checkpoint.pt."""
    rng, c, path = random.Random(seed), net.config, out / "checkpoint.pt"
    net, wide = (m.to(memory_format=torch.channels_last) for m in (net.train().requires_grad_(True), wide))
    if net.base:
        net.base.requires_grad_(False)
    ema = InfGenDecoder(c).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    ema.load_state_dict(net.state_dict())
    opts, step, spent = optimizers(net, lr, "muon"), 0, 0.0
    if path.exists():
        k = torch.load(path, weights_only=True)
        net.load_state_dict(k["model"]); ema.load_state_dict(k["ema"])
        for o, s in zip(opts, k["opts"]):
            o.load_state_dict(s)
        step, spent = k["step"], k["seconds"]
    amp = lambda: torch.autocast("cpu", torch.bfloat16)
    db = lambda e: -10 * math.log10((e / 2).square().mean().item() + 1e-9)

    def distance():
        """At the latents' own sizes, and of the middle at four times that."""
        def of(z, k):
            h, w = (k * n for n in z.shape[1:])
            part = (0, 0, h, w) if k == 1 else (h // 2 - 32, w // 2 - 32, 64, 64)
            b = z[None], [(8 * h, 8 * w)], [[part]]
            return db(core_crops(ema, *b).float() - taught(wide, *b))

        with torch.inference_mode(), amp():
            return " and ".join(f"{sum(of(z, k) for z in held) / len(held):.2f} dB" for k in (1, 4))

    print(f"held out: {distance()}", flush=True)
    first, begin, saved, seen = spent, time.time(), spent, []
    while spent < 3600 * hours:
        rate = max(0.01, 0.5 * (1 + math.cos(math.pi * spent / 3600 / hours)) * min(1, (step + 1) / 30))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = lr * rate
        batch = draw(views, c["scaling_factor"], sizes, rng)
        with amp():
            with torch.no_grad():
                want = taught(wide, *batch)
            e = core_crops(net, *batch).float() - want
        if len(batch[2][0]) > 1:
            e = F.pad(e[..., 8:-8, 8:-8], (8, 8, 8, 8))  # rims saw zeros
        cells = sum(F.avg_pool2d(e, k).abs().mean() for k in (4, 16, 64))
        loss = e.abs().mean() + 4 * e.square().mean() + 0.5 * gradient_l1(e, torch.zeros_like(e)) + cells
        descend(net, ema, opts, loss, min(0.995, (1 + step) / (10 + step)))
        step, spent = step + 1, first + time.time() - begin
        seen.append(db(e.detach()))
        if step % 50 == 0:
            print(f"step {step} {spent / 3600:.3f} h lr {lr * rate:.1e} {sum(seen) / len(seen):.2f} dB", flush=True)
            seen.clear()
        if spent - saved > 240 or spent >= 3600 * hours:
            saved = spent
            torch.save(dict(config=c, model=net.state_dict(), ema=ema.state_dict(), opts=[o.state_dict() for o in opts], step=step, seconds=spent), f"{path}.tmp")
            os.replace(f"{path}.tmp", path)
    print(f"held out: {distance()}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("decoder", type=Path, help="the wide one (.safetensors)")
    ap.add_argument("--cache", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    ap.add_argument("--begin", type=Path, help="a narrow decoder to begin from (.safetensors), instead of least squares")
    ap.add_argument("--up", type=int, nargs="+", default=[96, 88, 48])
    ap.add_argument("--stem-channels", type=int, default=40)
    ap.add_argument("--sizes", type=float, nargs="+", default=[1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 1.25, 1.5, 3],
                    help="how much larger than a latent's own size its decodes are; one is drawn for each step")
    ap.add_argument("--hours", type=float, default=0.75)
    ap.add_argument("--lr", type=float, default=1.5e-4)
    ap.add_argument("--seed", type=int, default=0)
    a = ap.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    wide = export.read_decoder(a.decoder)
    scaling = wide.config["scaling_factor"]
    views = sorted((a.cache / f"views-{wide.config['latent_space']}").glob("*.npz"))
    picture = lambda f: f.name.rsplit(".", 2)[0]
    kept_out = set(sorted({picture(f) for f in views})[::32])
    square = lambda z: z.shape[1:] == (64, 64)
    held = [z for z in (latent(f, scaling) for f in views if picture(f) in kept_out) if square(z)][:4]
    views = [f for f in views if picture(f) not in kept_out]
    if (a.out / "checkpoint.pt").exists():
        net = InfGenDecoder(torch.load(a.out / "checkpoint.pt", weights_only=True)["config"])
    elif a.begin:
        net = export.read_decoder(a.begin)
    else:
        rng = random.Random(a.seed)
        some_views = rng.sample(views, min(2 * LATENTS, len(views)))
        parts = [z for z in (latent(f, scaling) for f in some_views) if square(z)][:LATENTS]
        at = lambda: rng.randint(0, 64 - SIDE)
        parts = [z[:, i:i + SIDE, j:j + SIDE] for z in parts for i, j in [(at(), at())]]
        net = narrowed(wide, parts, a.up, a.stem_channels)
    learn(net, wide, views, held, a.out, a.sizes, a.hours, a.lr, a.seed)


if __name__ == "__main__":
    main()
