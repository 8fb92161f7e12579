"""Trains an InfGen decoder on latents of a frozen encoder. See README.md for the one command.

Each step takes B latents and K crops of one target size of each. The crops of one picture share their GroupNorm
statistics (they are normalised together), which estimates the statistics of the whole picture that inference uses:
a lone crop's would differ. Latent stem, keys and values are computed once per picture.

The schedule runs by wall clock: `--hours` of training from learning rate peak to zero, however fast the machine is,
and however often the run was stopped: the time spent is part of the checkpoint.
"""
import argparse
import copy
import math
import os
import random
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import data as D
import export
import taesd
from infgen_model import InfGenDecoder, grid_points, preset, resample_bicubic
from losses import Features, Patch, gradient_l1, hinge_d, ssim, texture

TINY = dict(hidden_size=128, num_blocks=2, num_heads=4, mlp_hidden=256, latent_skip="bilinear", inpe_features=64,
            inpe_hidden=128, mid_block_add_attention=False, layers_per_up_block=2, up_block_channels=[128, 128, 64],
            norm_num_groups=8)
LARGE = {**TINY, **dict(hidden_size=256, num_heads=8, num_blocks=4, mlp_hidden=1024, inpe_features=128,
                        inpe_hidden=256, up_block_channels=[256, 192, 96], layers_per_up_block=3, norm_num_groups=8)}
CONFIGS = {
    "tiny-sd": preset("table1", **TINY),
    "tiny-sdxl": preset("table1", **TINY, latent_space="sdxl", scaling_factor=0.13025),
    "large-sd": preset("table1", **LARGE),
    "smoke": preset("table1", **{**TINY, **dict(hidden_size=32, num_heads=1, num_blocks=1, mlp_hidden=32, inpe_features=8,
                                                inpe_hidden=16, up_block_channels=[32, 16, 16], layers_per_up_block=1)}),
}


# ---------------------------------------------------------------- the network in training

@torch.no_grad()
def initialise(model, lookup=False):
    """Section 7's initialisation; token branches start at zero. lookup: attention starts as a position look-up (section 10)."""
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
            nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="linear")
            if m.bias is not None:  # a base decoder's enlarging ones have none
                nn.init.zeros_(m.bias)
    for i, b in enumerate(model.blocks):
        nn.init.zeros_(b.attn.to_out[0].weight)
        nn.init.zeros_(b.ff.net[2].weight)
        if lookup:
            for q in (b.attn.to_q, b.attn.to_k):
                q.weight.copy_(2 * torch.eye(len(q.weight)))
            nn.init.orthogonal_(b.attn.to_v.weight)
            if i == 0:
                nn.init.eye_(b.attn.to_out[0].weight)
    if lookup:
        nets = [model.inpe] if model.config["inpe_shared"] else model.inpe.values()
        for n in nets:
            nn.init.orthogonal_(n.fc1.weight, 2)
            nn.init.orthogonal_(n.fc2.weight, 3)


def share_statistics(model, crops):
    """Each GroupNorm of the conv part takes its statistics over `crops` consecutive entries of the batch together."""
    def joint(norm, x):
        BK, C, h, w = x.shape
        t = x.permute(0, 2, 3, 1).reshape(BK // crops, crops * h, w, C).permute(0, 3, 1, 2)  # no copy: channels last
        t = F.group_norm(t, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return t.permute(0, 2, 3, 1).reshape(BK, h, w, C).permute(0, 3, 1, 2)
    for m in model.modules():
        if isinstance(m, nn.GroupNorm):
            m.forward = joint.__get__(m)


def crop_tokens(model, z, sizes, rects):
    """Latents [B,4,hl,wl], the target (H,W) in pixels of each and K rects of it, all of one shape -> features before the mid block [B*K,D,rows,cols]."""
    p = model.config["patch"]
    x, L = model.encode_latent(z.contiguous(memory_format=torch.channels_last))
    pts = [[grid_points(-(-H // p), -(-W // p), r) for r in of_one] for (H, W), of_one in zip(sizes, rects)]
    y_, x_ = (torch.stack([torch.cat([q[i] for q in of_one]) for of_one in pts]).to(z.device) for i in (0, 1))
    M = model.run_blocks(model.mask_tokens(x, y_, x_), L)
    return M.reshape(-1, *rects[0][0][2:], M.shape[-1]).permute(0, 3, 1, 2)


def decode_crops(model, batch):
    """What the network makes of the crops of a step's pictures (of one shape), their statistics shared picture by picture."""
    z, sizes, rects = (list(v) for v in zip(*(b[:3] for b in batch)))
    out = core_crops(model, torch.stack(z), sizes, rects)
    return out + base_crops(model, torch.stack(z), sizes, rects) if model.base else out


def core_crops(model, z, sizes, rects):
    """The crops without the base picture."""
    share_statistics(model, len(rects[0]))
    return model.decoder(crop_tokens(model, z, sizes, rects).contiguous(memory_format=torch.channels_last))


def base_crops(model, z, sizes, rects):
    """The crops of the base pictures, resampled to the targets' sizes."""
    p = model.config["patch"]
    wholes = model.base(z.contiguous(memory_format=torch.channels_last))
    crops = []
    for whole, (H, W), of_one in zip(wholes, sizes, rects):
        whole = resample_bicubic(whole[None], -(-H // p) * p, -(-W // p) * p)
        crops += [whole[..., p * i:p * (i + rows), p * j:p * (j + cols)] for i, j, rows, cols in of_one]
    return torch.cat(crops)


def as_target(batch):
    return torch.cat([b[3] for b in batch]).float() / 127.5 - 1


def attention_learns(model, learns):
    """Whether gradients go through the attention's softmax (a third of a step on a CPU) or only through its output projection."""
    for b in model.blocks:
        b.attn.__dict__.pop("attend", None)
        if not learns:
            b.attn.attend = torch.no_grad()(b.attn.attend)


def reduced(out, batch):
    """Supersampled pictures (data.Sampler) averaged over 2 x 2 pixels, at the size they had."""
    parts = out.split([len(b[2]) for b in batch])
    pool = lambda t, k: t if k == 1 else F.interpolate(F.avg_pool2d(t, k), scale_factor=k, mode="nearest")
    return torch.cat([pool(t, b[4]) for t, b in zip(parts, batch)])


def inside(batch, rim):
    """[B*K,1,h,w] bool: false in a rim of each crop that saw zeros where the picture goes on, true at the picture's own edge."""
    masks = []
    for _, (H, W), rects, crops, _ in batch:
        for i, j, rows, cols in rects:
            m = torch.zeros(1, *crops.shape[-2:], dtype=torch.bool)
            top, left = rim * (i > 0), rim * (j > 0)
            bottom, right = rim * ((i + rows) * rim < H), rim * ((j + cols) * rim < W)
            m[:, top:m.shape[1] - bottom, left:m.shape[2] - right] = True
            masks.append(m)
    return torch.stack(masks)


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix-shaped updates are orthogonalised (Newton-Schulz); a third to half the steps of AdamW here."""

    def __init__(self, params, lr, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            same = {}
            for p in g["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - g["momentum"])
                u = p.grad.lerp(m, g["momentum"]).flatten(1)
                same.setdefault(u.shape, []).append((p, u if u.shape[0] <= u.shape[1] else u.T))
            for ps in same.values():  # all matrices of a shape in one batch
                X = torch.stack([u for _, u in ps])
                X = (X / (X.norm(dim=(1, 2), keepdim=True) + 1e-12)).bfloat16()
                for _ in range(5):
                    A = X @ X.mT
                    X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
                for (p, _), x in zip(ps, X.float()):
                    x = x if p.flatten(1).shape == x.shape else x.T
                    p.mul_(1 - g["lr"] * g["weight_decay"])
                    p.add_(x.reshape(p.shape), alpha=-g["lr"] * 0.2 * max(x.shape) ** 0.5)  # RMS of AdamW's update


def optimizers(model, lr, kind):
    def hidden(n, p):
        return p.ndim >= 2 and not any(k in n for k in ("post_quant_conv", "conv_out", "inpe"))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if kind == "adamw":
        return [torch.optim.AdamW([p for _, p in named], lr, betas=(0.9, 0.98), weight_decay=0.01)]
    return [Muon([p for n, p in named if hidden(n, p)], lr, weight_decay=0.01),
            torch.optim.AdamW([p for n, p in named if not hidden(n, p)], lr, betas=(0.9, 0.98), weight_decay=0.0)]


def descend(net, ema, opts, loss, keep):
    """One step of the optimisers down `loss`; the average keeps a share `keep` of itself."""
    for o in opts:
        o.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    for o in opts:
        o.step()
    with torch.no_grad():
        torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - keep)


# ---------------------------------------------------------------- validation on pictures kept out of training

@torch.inference_mode()
def validate(model, encoder, pictures, device, amp):
    """Mean PSNR over whole pictures (centre squares) at 512 and, where they are large enough, at 1024."""
    res = {512: [], 1024: []}
    for _, a in pictures:
        s = min(a.shape[:2])
        t, l = (a.shape[0] - s) // 2, (a.shape[1] - s) // 2
        def at(n):
            im = D.resample(a, (l, t, l + s, t + s), (n, n))
            return torch.from_numpy(im.copy()).permute(2, 0, 1)[None].to(device) / 255
        if s < 512:
            continue
        z = encoder(at(512)) / model.config["scaling_factor"]
        for n in res:
            if s >= n:
                with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                    o = model(z, n, n)
                mse = ((o.float() / 2 + 0.5).clamp(0, 1) - at(n)).square().mean()
                res[n].append(-10 * math.log10(mse.item()))
    return {n: round(sum(v) / len(v), 3) for n, v in res.items() if v}


# ---------------------------------------------------------------- the run

def phase(progress, a):
    """(B pictures, K crops each, crop side in patches, largest target side) as training goes on."""
    if a.smoke:
        return 1, 2, 8, 128
    max_side = 1024 if progress < a.stage2_from else 2048  # the paper's two stages
    if progress < a.large_crops_from:
        return a.batch, a.crops, 16, max_side
    return max(1, a.batch // 2), 4, 32, max_side  # a picture of 512 x 512 in 4 such crops is taken whole


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--config", choices=CONFIGS, help="default: that of --init, if it is a .safetensors, else tiny-sd")
    ap.add_argument("--data", type=Path)
    ap.add_argument("--weights", type=Path, help="folder of the TAESD files (default: DATA/weights)")
    ap.add_argument("--cache", type=Path, help="written by data.py")
    ap.add_argument("--fresh-views", action="store_true", help="each step makes and encodes views of its own, instead of drawing from those of data.py: for a GPU")
    ap.add_argument("--out", type=Path, required=True, help="folder of the checkpoint and the log; resumes from it")
    ap.add_argument("--init", type=Path, help="checkpoint (its EMA weights) or exported .safetensors to start from (a new stem where shapes or spaces differ)")
    ap.add_argument("--hours", type=float, default=2.0)
    ap.add_argument("--stop-after", type=float, help="hours of this call; training goes on with the next")
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    ap.add_argument("--batch", type=int, default=2, help="latents a step")
    ap.add_argument("--crops", type=int, default=4, help="crops of 128 px from one target of each latent")
    ap.add_argument("--large-crops-from", type=float, default=0.85, help="share of the hours after which half as many pictures have four crops of 256 px each, or are taken whole")
    ap.add_argument("--stage2-from", type=float, default=0.6, help="share of the hours after which targets reach 2048 instead of 1024 px")
    ap.add_argument("--freeze-base", action="store_true", help="the base decoder, where the network has one, stays as it is")
    ap.add_argument("--lookup", action="store_true", help="position look-up initialisation")
    ap.add_argument("--no-attention", action="store_true", help="ablation: blocks without cross-attention")
    ap.add_argument("--attention-every", type=int, default=1, help="steps from one gradient of queries, keys and values to the next")
    ap.add_argument("--supersample", type=float, default=0.0,
                    help="share of pictures decoded at twice the size of their target and box-reduced before the loss")
    ap.add_argument("--mse", type=float, default=1.0)
    ap.add_argument("--low", type=float, default=1.0, help="weight of L1 at lower resolution: colour and brightness")
    ap.add_argument("--low-cells", type=int, nargs="+", default=[8], help="how much lower: means of cells of so many pixels")
    ap.add_argument("--grad", type=float, default=0.5)
    ap.add_argument("--ssim", type=float, default=0.1)
    ap.add_argument("--texture", type=float, default=0.0, help="weight of the loss on the amount of detail")
    ap.add_argument("--texture-from", type=float, default=0.6)
    ap.add_argument("--features", type=float, default=0.0, help="weight of the loss on the frozen encoder's features")
    ap.add_argument("--features-from", type=float, default=0.5, help="share of the hours after which it begins")
    ap.add_argument("--gan", type=float, default=0.0, help="PatchGAN weight (the paper: 0.1)")
    ap.add_argument("--gan-from", type=float, default=0.7)
    ap.add_argument("--teach", type=float, nargs=2, metavar=("TAESD", "BEFORE"),
                    help="shares in the targets of what TAESD makes of the latent, and of what the network made of it before this run (--init)")
    ap.add_argument("--repair", action="store_true",
                    help="targets are what the network made before this run (--init), but what is coarser than a place of the latent: that is of the picture, and of TAESD (--teach SHARE 0)")
    ap.add_argument("--f32", action="store_true")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--max-steps", type=int, default=10 ** 9)
    ap.add_argument("--smoke", action="store_true", help="a few steps of a toy network on synthetic pictures, CPU, seconds")
    a = ap.parse_args()

    if a.smoke:
        a.max_steps, a.features, a.features_from, a.gan, a.gan_from = 6, 0.1, 0, 0.1, 0
        a.config = None if a.init else "smoke"
        a.teach = 0.4, 0.0 if a.repair else 0.3
    elif a.teach and (min(a.teach) < 0 or sum(a.teach) > 1 or a.teach[1] > 0 and not a.init):
        ap.error("--teach wants shares from 0 to 1 with a sum of at most 1, and --init for the second")
    elif a.repair and (not a.init or a.teach and a.teach[1]):
        ap.error("--repair wants --init, and no second share of --teach")
    device = torch.device("cuda" if torch.cuda.is_available() and not a.smoke else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(a.seed)
    a.out.mkdir(parents=True, exist_ok=True)
    of_init = a.init and a.init.suffix == ".safetensors" and not a.config
    cfg = export.read_decoder(a.init).config if of_init else CONFIGS[a.config or "tiny-sd"]
    amp = not a.f32 and not a.smoke

    # data
    enc = taesd.encoder()
    if a.smoke:
        rng = np.random.default_rng(0)
        pictures = [(f"s{i}", np.kron(rng.integers(0, 255, (80, 80, 3), np.uint8), np.ones((8, 8, 1), np.uint8))) for i in range(2)]
        held, views = [], a.out / "views"
        D.make_views(pictures, enc, views, 1, 0, amp=False)
    else:
        weights = a.weights or a.data / "weights"
        name = "taesdxl" if cfg["latent_space"] == "sdxl" else "taesd"
        enc = taesd.load(enc, weights / f"{name}_encoder.safetensors")
        pictures = D.decode_all(a.data, a.cache / "pictures")
        held = pictures[::32]  # never drawn: for validation
        views = a.cache / f"views-{cfg['latent_space']}"
    enc = enc.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    sampler = D.Sampler(pictures, None if a.fresh_views else views, cfg["scaling_factor"], cfg["patch"], {n for n, _ in held}, a.supersample)

    # network, its average, optimisers
    model = InfGenDecoder(cfg)
    initialise(model, a.lookup)
    if a.init:
        if a.init.suffix == ".safetensors":
            start = export.read_decoder(a.init)
            old = dict(ema=start.state_dict(), config=start.config)
        else:
            old = torch.load(a.init, map_location="cpu", weights_only=True)
        own = model.state_dict()
        sd = {k: v for k, v in old["ema"].items() if k in own and v.shape == own[k].shape}
        if old["config"]["latent_space"] != cfg["latent_space"]:
            sd = {k: v for k, v in sd.items() if not k.startswith("post_quant_conv")}
        print("started from", a.init, "new:", model.load_state_dict(sd, strict=False).missing_keys)
    model.to(device, memory_format=torch.channels_last)
    model.use_attention = not a.no_attention
    if a.freeze_base and model.base:
        model.base.requires_grad_(False)
    ema = InfGenDecoder(cfg).to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
    ema.load_state_dict(model.state_dict())
    ema.use_attention = model.use_attention
    targets = as_target
    if a.teach or a.repair:
        vae = taesd.decoder().eval().requires_grad_(False)
        if not a.smoke:
            vae = taesd.load(vae, weights / f"{name}_decoder.safetensors")
        targets = Teachers(vae.to(device, memory_format=torch.channels_last), copy.deepcopy(ema), a.teach or (0, 0), amp, a.repair)
    opts = optimizers(model, a.lr, a.optimizer)
    feats = Features(enc)
    disc = Patch().to(device, memory_format=torch.channels_last) if a.gan else None
    opt_d = torch.optim.AdamW(disc.parameters(), 2e-4, betas=(0.5, 0.9)) if a.gan else None

    step, spent = 0, 0.0
    ckpt = a.out / "checkpoint.pt"
    if ckpt.exists():
        c = torch.load(ckpt, map_location=device, weights_only=True)
        model.load_state_dict(c["model"]); ema.load_state_dict(c["ema"])
        for o, s in zip(opts, c["opts"]):
            o.load_state_dict(s)
        if disc and c.get("disc"):
            disc.load_state_dict(c["disc"]); opt_d.load_state_dict(c["opt_d"])
        step, spent = c["step"], c["seconds"]
        print(f"resumed at step {step}, {spent / 3600:.2f} h", flush=True)

    def save():
        torch.save(dict(config=cfg, model=model.state_dict(), ema=ema.state_dict(), opts=[o.state_dict() for o in opts],
                        disc=disc and disc.state_dict(), opt_d=opt_d and opt_d.state_dict(), step=step, seconds=spent,
                        args={k: str(v) for k, v in vars(a).items()}), str(ckpt) + ".tmp")
        os.replace(str(ckpt) + ".tmp", ckpt)

    autocast = lambda: torch.autocast(device.type, torch.bfloat16, enabled=amp)
    total, first, begin = a.hours * 3600, spent, time.time()
    last_save = last_val = last = spent
    sums, pixels = {}, 0
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    encode = (lambda pictures: encoded(pictures, enc, cfg["scaling_factor"], amp)) if a.fresh_views else list
    workers = os.cpu_count() if device.type == "cuda" else 1
    fetch = prefetch(sampler, random.Random(a.seed + step), lambda: phase(spent / total, a), device, encode, targets, workers)
    while spent < total and step < a.max_steps and not stop and (not a.stop_after or spent - first < a.stop_after * 3600):
        progress = spent / total
        lr = 0.5 * (1 + math.cos(math.pi * progress)) * min(1, (step + 1) / 100)
        for o in opts:
            for g in o.param_groups:
                g["lr"] = a.lr * max(lr, 0.005)
        attention_learns(model, step % a.attention_every == 0)
        for o in opts:
            o.zero_grad(set_to_none=True)
        pairs, mean = [], {}
        gan = disc is not None and progress >= a.gan_from
        for share, target, batch in next(fetch):
            with autocast():
                out = decode_crops(model, batch)
            out = torch.where(inside(batch, cfg["patch"]).to(device), reduced(out.float(), batch), target)
            losses = {"l1": (F.l1_loss(out, target), 1.0), "mse": (F.mse_loss(out, target), a.mse),
                      "low": (sum(F.avg_pool2d(out - target, k).abs().mean() for k in a.low_cells) / len(a.low_cells), a.low),
                      "grad": (gradient_l1(out, target), a.grad), "ssim": (1 - ssim(out, target), a.ssim)}
            if a.texture and progress >= a.texture_from:
                losses["tex"] = texture(out, target), a.texture
            with autocast():
                if a.features and progress >= a.features_from:
                    losses["feat"] = feats(out, target), a.features
                if gan:
                    losses["g"] = -disc(out).float().mean(), a.gan
            (share * sum(v * w for v, w in losses.values())).backward()
            for n, (v, _) in losses.items():
                mean[n] = mean.get(n, 0.0) + share * v.item()
            pixels += target.numel() // 3
            pairs.append((share, out.detach(), target))
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: gradient norm {norm}")
        for o in opts:
            o.step()
        if gan:
            opt_d.zero_grad(set_to_none=True)
            for share, out, target in pairs:
                with autocast():
                    ld = hinge_d(disc(target).float(), disc(out).float())
                (share * ld).backward()
                mean["d"] = mean.get("d", 0.0) + share * ld.item()
            opt_d.step()
        with torch.no_grad():
            # Weights that a run begins with are worth as much as its own: a short average would drop them within a hundred steps.
            k = 0.999 if a.init else min(0.999, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - k)
        step += 1
        mean["psnr"] = -10 * math.log10(mean["mse"] / 4 + 1e-10)
        for n, v in mean.items():
            sums[n] = sums.get(n, 0.0) + v
        spent = first + time.time() - begin

        if step % 50 == 0 or a.smoke:
            n = 1 if a.smoke else 50
            print(f"step {step} {spent / 3600:.3f} h lr {a.lr * lr:.1e} |g| {norm:.2f} {pixels / max(spent - last, 1e-9) / 1e6:.2f} MP/s "
                  + " ".join(f"{k} {v / n:.4f}" for k, v in sums.items()), flush=True)
            sums, pixels, last = {}, 0, spent
            sampler.rescan()
        if spent - last_val > 480 and held:
            print(f"== step {step} validation PSNR (dB) {validate(ema, enc, held, device, amp)}", flush=True)
            last_val = spent
        if spent - last_save > 240:
            save(); last_save = spent
    save()
    if held and not stop:
        print(f"== step {step} validation PSNR (dB) {validate(ema, enc, held, device, amp)}", flush=True)


class Teachers:
    """Targets that follow from the latent: of the picture, of what TAESD makes of the latent and of what the network made of it when the run began, a
    weighted mean. The errors of the last two differ, so their mean is better than both (weights/README.md), and no detail is in it that no latent tells."""

    def __init__(self, vae, before, shares, amp, repair=False):
        self.vae, self.before, self.shares, self.amp, self.repair = vae, before, shares, amp, repair

    @torch.no_grad()
    def __call__(self, batch):
        """Pictures of a step of one shape -> [crops of all, 3, h, w] in [-1, 1]."""
        c, (of_vae, of_before) = self.before.config, self.shares
        target = (1 - of_vae - of_before) * as_target(batch)
        with torch.autocast(target.device.type, torch.bfloat16, enabled=self.amp):
            if self.repair:
                before = self.made(batch)
            elif of_before:
                target += of_before * self.of_before(batch)
            if of_vae:
                zs = torch.stack([b[0] for b in batch]) * c["scaling_factor"]
                wholes = self.vae(zs.contiguous(memory_format=torch.channels_last)).float().clamp(0, 1)
                target += of_vae * torch.cat([self.enlarged(whole[None], *b[1:]) for whole, b in zip(wholes, batch)])
        if self.repair:
            parts = (target - before).split([len(b[2]) for b in batch])
            return before + torch.cat([self.coarse(e, b) for e, b in zip(parts, batch)])
        return target

    def coarse(self, e, picture):
        """What is smooth over the pixels of a place in the latent; at larger sizes over as many more, at most those of a crop."""
        z, (H, W), *_ = picture
        e = e * inside([picture], self.before.config["patch"]).to(e.device)  # crops do not know their rims
        k = min(8 * 2 ** max(0, round(math.log2(max(H, W) / 8 / max(z.shape[1:])))), e.shape[-2], e.shape[-1])
        return F.interpolate(F.avg_pool2d(e, k), e.shape[-2:], mode="bilinear", align_corners=False)

    def made(self, batch):
        return reduced(decode_crops(self.before, batch).float().clamp(-1, 1), batch)

    def of_before(self, batch):
        """What the network made of each latent: at the picture's size, or where that is more than the latent's own, its picture of that size
        enlarged, which is nearer to the original (weights/README.md)."""
        parts = [None] * len(batch)
        for large in (False, True):
            some = [i for i, (z, size, *_) in enumerate(batch) if (size[0] * size[1] > 64 * z[0].numel()) == large]
            alike = [batch[i] for i in some]
            if not some:
                continue
            if large:
                zs = torch.stack([b[0] for b in alike])
                wholes = self.before(zs, 8 * zs.shape[2], 8 * zs.shape[3]).float().clamp(-1, 1) / 2 + 0.5
                made = [self.enlarged(whole[None], *b[1:]) for whole, b in zip(wholes, alike)]
            else:
                made = self.made(alike).split([len(b[2]) for b in alike])
            for i, part in zip(some, made):
                parts[i] = part
        return torch.cat(parts)

    def enlarged(self, whole, size, rects, crops, reduce):
        """A picture in [0, 1] at `size`, bicubic, cut as the crops are: in [-1, 1]."""
        (H, W), (h, w), p = size, crops.shape[-2:], self.before.config["patch"]
        pts = [grid_points(H // reduce, W // reduce, (i * p // reduce, j * p // reduce, h // reduce, w // reduce)) for i, j, _, _ in rects]
        at = torch.stack([2 * torch.stack([x, y], -1) - 1 for y, x in pts]).unflatten(1, (h // reduce, w // reduce)).to(whole.device)
        cut = F.grid_sample(whole.expand(len(rects), -1, -1, -1), at, mode="bicubic", padding_mode="border", align_corners=False)
        return F.interpolate(cut.clamp(0, 1) * 2 - 1, scale_factor=reduce, mode="nearest")


@torch.no_grad()
def encoded(pictures, encoder, scaling, amp):
    """Pictures of a step whose latents are still views, uint8 [3,h,w]: the same with latents, views of one shape encoded together."""
    for shape in {p[0].shape for p in pictures}:
        of_shape = [i for i, p in enumerate(pictures) if p[0].shape == shape]
        x = torch.stack([pictures[i][0] for i in of_shape]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            zs = encoder(x / 255).float() / scaling
        for i, z in zip(of_shape, zs):
            pictures[i] = (z, *pictures[i][1:])
    return pictures


def prefetch(sampler, rng, plan, device, encode, targets, workers):
    """What a step learns from, made two steps ahead: [(share of the pixels, target, [(z, size, rects, crops, reduce)])], pictures together whose
    latents have one shape, and whose crops have. Pictures are drawn by `workers` threads; the targets of a step by one."""
    def assemble(drawn):
        alike = {}
        for picture in encode([tuple(t.to(device) if torch.is_tensor(t) else t for t in p.result()) for p in drawn]):
            alike.setdefault((picture[0].shape, picture[3].shape), []).append(picture)
        pixels = [sum(picture[3].numel() for picture in batch) for batch in alike.values()]
        return [(n / sum(pixels), targets(batch), batch) for n, batch in zip(pixels, alike.values())]
    with ThreadPoolExecutor(workers) as draws, ThreadPoolExecutor(1) as last:
        def begin():
            B, K, crop, max_side = plan()
            drawn = [draws.submit(sampler.draw, random.Random(rng.random()), K, crop, max_side) for _ in range(B)]
            return last.submit(assemble, drawn)
        ahead = deque([begin(), begin()])
        while True:
            step = ahead.popleft().result()
            ahead.append(begin())
            yield step


if __name__ == "__main__":
    main()
