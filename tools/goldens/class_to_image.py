"""tests/data/class-to-image: predictions and final latents of two tiny DiTs, in diffusers' form and in the original's, of two tiny FiTs, a tiny MDTv2 and a tiny
MaskDiT.

    python tools/goldens/class_to_image.py [--check]

Weights are synthetic (synthetic.py), so none are stored: case.json lists every tensor with its amplitude. diffusers' form is computed by its DiTPipeline,
the original's by `Original` below, written from its models.py (facebookresearch/DiT at ed81ce2): they are not the same network. SiT is the original's network
with another sampler. FiT is `Fit` below, written from fit/model/ (whlzy/FiT at b22b7b0), MDTv2 is `Mdt`, from
masked_diffusion/models.py (sail-sg/MDT at 7d26c21), MaskDiT is `Masked`, from models/maskdit.py and sample.py (Anima-Lab/MaskDiT at 73cfb96); their own code, run beside them on these weights, gave the same to 2e-6. `iddpm`: to the bit what diffusion/ of the original gives.
Values are computed in f32.
"""

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from golden import write_or_check, write_run
from synthetic import Spec

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "class-to-image"
SEED = 9
CLASSES = 1000
# Heads 18 wide, which 4 does not divide; an epsilon that shows.
DIFFUSERS = {
    "_class_name": "DiTTransformer2DModel", "activation_fn": "gelu-approximate", "attention_bias": True, "attention_head_dim": 18,
    "in_channels": 4, "norm_elementwise_affine": False, "norm_eps": 1e-2, "norm_num_groups": 32, "norm_type": "ada_norm_zero",
    "num_attention_heads": 2, "num_embeds_ada_norm": CLASSES, "num_layers": 3, "out_channels": 8, "patch_size": 2, "sample_size": 12,
}
# Other patches, another GELU, no variances, heads of odd width; for single calls only.
ODD = {**DIFFUSERS, "activation_fn": "gelu", "attention_head_dim": 3, "num_attention_heads": 4, "num_layers": 1, "out_channels": None, "patch_size": 4,
       "num_embeds_ada_norm": 7, "norm_eps": 1e-6}
# As wide as DiT-S: the number of heads follows from it.
ORIGINAL = {"hidden_size": 384, "depth": 2, "num_heads": 6, "patch_size": 2, "input_size": 8, "in_channels": 4}
# As DiT was trained, and with less noise, so that what a random model makes of it stays in the range that decoders know.
TRAINED = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "clip_sample": False,
           "set_alpha_to_one": True, "steps_offset": 0, "num_train_timesteps": 1000}
SCHEDULER = {**TRAINED, "beta_end": 0.002}
# Heads of one width with and without what differs between the versions; on planes longer than those of training (16 tokens), and not.
FIT1 = {"hidden_size": 64, "depth": 2, "num_heads": 2, "patch_size": 2, "mlp_hidden": 96, "in_channels": 4, "outputs": 8}
FIT2 = {**FIT1, "outputs": 4, "rank": 20, "num_heads": 4}
# Heads of odd width; five tokens a side.
MDT = {"hidden_size": 60, "depth": 6, "decode_layers": 2, "num_heads": 4, "patch_size": 2, "input_size": 10, "in_channels": 4}
# A decoder of 16 heads, as its source has it whatever the width.
MASKED = {"hidden_size": 384, "depth": 2, "num_heads": 6, "patch_size": 2, "input_size": 8, "in_channels": 4, "decoder": 96, "decoder_depth": 2}
SIZES = {"diffusers": (12, 12), "odd": (12, 12), "original": (8, 8), "fit1": (12, 8), "fit2": (36, 16), "mdt": (10, 10), "maskdit": (8, 8)}
# Its --interpolation, as `infgen generate --rope` has it.
ROPES = ["no", "linear", "dynntk", "ntkpro1", "ntkpro2", "partntk", "yarn"]
# Timestep and class of single calls.
CALLS = [(0.0, 0), (801.0, 207), (37.0, CLASSES)]


class OriginalBlock(nn.Module):
    def __init__(self, d, heads, told=None):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(told or d, 6 * d))

    def forward(self, x, c, bias=0.0):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        b, n, d = x.shape
        q, k, v = self.attn["qkv"](modulate(x, shift_a, scale_a)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5 + bias).softmax(-1)
        x = x + gate_a[:, None] * self.attn["proj"]((weights @ v).transpose(1, 2).reshape(b, n, d))
        h = self.mlp["fc2"](F.gelu(self.mlp["fc1"](modulate(x, shift_m, scale_m)), approximate="tanh"))
        return x + gate_m[:, None] * h


def modulate(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Original(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, p = c["hidden_size"], c["patch_size"]
        self.patch, self.channels = p, c["in_channels"]
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(c["in_channels"], d, p, p)})
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(CLASSES + 1, d)})
        self.pos_embed = nn.Parameter(torch.zeros(1, (c["input_size"] // p) ** 2, d))
        self.blocks = nn.ModuleList(OriginalBlock(d, c["num_heads"]) for _ in range(c["depth"]))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(d, p * p * 2 * c["in_channels"]),
                                          "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))})

    def forward(self, x, t, y):
        b, c, height, width = x.shape
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        args = t[:, None].float() * freqs[None]
        cond = self.t_embedder["mlp"](torch.cat([args.cos(), args.sin()], -1)) + self.labels(y)
        x = self.run(x, cond)
        shift, scale = self.final_layer["adaLN_modulation"](cond).chunk(2, dim=1)
        x = self.final_layer["linear"](modulate(x, shift, scale))
        x = x.reshape(b, height // self.patch, width // self.patch, self.patch, self.patch, -1)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(b, -1, height, width)

    def labels(self, y):
        return self.y_embedder["embedding_table"](y)

    def run(self, x, c):
        for block in self.blocks:
            x = block(x, c)
        return x

    def guided(self, x, t, y, scale, rescale=0.0, share=None):
        """forward_with_cfg: the first 3 channels are guided. `rescale`: diffusers' rescale_noise_cfg, which DiT's own pipelines do not have. `share`: what
        MDT's power cosine, and FiT's, is taken of."""
        if share is not None:
            scale = (scale - 1) * (1 - math.cos(share * math.pi)) / 2 + 1
        both = self(torch.cat([x, x]), t.expand(2 * len(x)), torch.cat([y, torch.full_like(y, CLASSES)]))
        with_class, without = both[:, :3].chunk(2)
        guided = torch.cat([without + scale * (with_class - without), both[: len(x), 3:4]], 1)
        return rescale * guided * (both[: len(x), :4].std() / guided.std()) + (1 - rescale) * guided


class FitBlock(nn.Module):
    def __init__(self, d, heads, mlp, rank):
        super().__init__()
        self.heads, self.norm = heads, rank is not None
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"fc1_g": nn.Linear(d, mlp), "fc1_x": nn.Linear(d, mlp), "fc2": nn.Linear(mlp, d)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d)) if rank is None else nn.Sequential(nn.SiLU(), nn.Linear(d, rank), nn.Linear(rank, 6 * d))

    def forward(self, x, c, turns, shared):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (self.adaLN_modulation(c) + shared).chunk(6, dim=1)
        b, n, d = x.shape
        q, k, v = self.attn["qkv"](modulate(x, shift_a, scale_a)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if self.norm:
            q, k = (F.layer_norm(t, t.shape[-1:], eps=1e-6) for t in (q, k))
        q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2) for t in (q, k))
        x = x + gate_a[:, None] * self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        h = modulate(x, shift_m, scale_m)
        return x + gate_m[:, None] * self.mlp["fc2"](F.silu(self.mlp["fc1_g"](h)) * self.mlp["fc1_x"](h))


def turns(head, rows, columns, rope, trained=16, theta=10000.0):
    """What each pair of a head's channels is multiplied by, as complex numbers, [rows * columns, head / 2]."""
    axis = head // 2
    def ramp(fast, slow):
        index = lambda n: axis * math.log(trained / (n * 2 * math.pi)) / (2 * math.log(theta))
        low, high = max(math.floor(index(fast)), 0), min(math.ceil(index(slow)), axis - 1)
        return ((torch.arange(axis // 2) - low) / (high - low + (0.001 if low == high else 0))).clamp(0, 1)
    def frequencies(length):
        s, power = max(length / trained, 1), torch.arange(0, axis, 2) / axis
        own, linear, ntk = theta**-power, theta**-power / s, (theta * s ** (axis / (axis - 2))) ** -power
        if rope == "partntk":
            mixed = linear * ramp(1.25, 0.75) + ntk * (1 - ramp(1.25, 0.75))
            return mixed * ramp(16, 2) + own * (1 - ramp(16, 2))
        if rope == "yarn":
            return linear * ramp(32, 1) + own * (1 - ramp(32, 1))
        return {"no": own, "linear": linear}.get(rope, ntk)
    grown = lambda now, before: math.sqrt(math.log(2 * now) / math.log(before)) if 2 * now > before else 1.0
    longest = max(rows, columns)
    size = {"ntkpro1": grown(longest, trained), "ntkpro2": grown(rows * columns, trained**2), "yarn": 0.1 * math.log(max(longest / trained, 1)) + 1}.get(rope, 1.0)
    along = [torch.outer(torch.arange(n).float(), frequencies(n)) for n in (rows, columns)]
    angles = torch.cat([along[0][:, None].expand(rows, columns, -1), along[1].expand(rows, columns, -1)], -1).flatten(0, 1)
    return torch.polar(torch.full_like(angles, size), angles)


class Fit(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, p, rank = c["hidden_size"], c["patch_size"], c.get("rank")
        self.patch, self.channels, self.head = p, c["in_channels"], d // c["num_heads"]
        self.x_embedder = nn.ModuleDict({"proj": nn.Linear(p * p * c["in_channels"], d)})
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(CLASSES + 1, d)})
        if rank is not None:
            self.global_adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))
        self.blocks = nn.ModuleList(FitBlock(d, c["num_heads"], c["mlp_hidden"], rank) for _ in range(c["depth"]))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(d, p * p * c["outputs"]), "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))})

    def forward(self, x, t, y, rope="dynntk"):
        rows, columns = (n // self.patch for n in x.shape[-2:])
        x = self.x_embedder["proj"](F.unfold(x, self.patch, stride=self.patch).transpose(1, 2))  # channels slowest
        freqs = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
        args = t[:, None].float() * freqs[None]
        c = self.t_embedder["mlp"](torch.cat([args.cos(), args.sin()], -1)) + self.y_embedder["embedding_table"](y)
        shared = self.global_adaLN_modulation(c) if hasattr(self, "global_adaLN_modulation") else 0.0
        for block in self.blocks:
            x = block(x, c, turns(self.head, rows, columns, rope), shared)
        shift, scale = self.final_layer["adaLN_modulation"](c).chunk(2, dim=1)
        x = self.final_layer["linear"](modulate(x, shift, scale)).transpose(1, 2)
        return F.fold(x, (rows * self.patch, columns * self.patch), self.patch, stride=self.patch)

    guided = Original.guided


class MdtBlock(OriginalBlock):
    def __init__(self, d, heads, side, skip):
        super().__init__(d, heads)
        table = nn.Module()
        table.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2 + 3, heads))
        self.attn["rel_pos_bias"] = table
        self.skip_linear = nn.Linear(2 * d, d) if skip else None
        at = torch.arange(side * side)
        down, across = (n[:, None] - n[None] + side - 1 for n in (at // side, at % side))
        self.index = down * (2 * side - 1) + across

    def forward(self, x, c, skip=None):
        if self.skip_linear is not None:
            x = self.skip_linear(torch.cat([x, skip], -1))
        return super().forward(x, c, self.attn["rel_pos_bias"].relative_position_bias_table[self.index].permute(2, 0, 1))


class Mdt(Original):
    def __init__(self, c):
        super().__init__({**c, "depth": 0})
        d, side, half = c["hidden_size"], c["input_size"] // c["patch_size"], (c["depth"] - c["decode_layers"]) // 2
        block = lambda skip: MdtBlock(d, c["num_heads"], side, skip)
        self.en_inblocks = nn.ModuleList(block(False) for _ in range(half))
        self.en_outblocks = nn.ModuleList(block(True) for _ in range(half))
        self.de_blocks = nn.ModuleList(block(True) for _ in range(c["decode_layers"]))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, side * side, d))

    def run(self, x, c):
        first, kept = x, []
        for block in self.en_inblocks:
            x = block(x, c)
            kept.append(x)
        for block in self.en_outblocks:
            x = block(x, c, kept.pop())
        x = x + self.decoder_pos_embed
        for block in self.de_blocks:
            x = block(x, c, first)
        return x


class Masked(Original):
    """At inference nothing is masked. The network F of EDM; `denoised` is D. Class `CLASSES` is a vector of zeros."""

    def __init__(self, c):
        super().__init__(c)
        d, n, p = c["hidden_size"], c["decoder"], c["patch_size"]
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Linear(CLASSES, d, bias=False)})
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, (c["input_size"] // p) ** 2, n))
        told = lambda: nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))
        self.decoder_layer = nn.ModuleDict({"linear": nn.Linear(d, n), "adaLN_modulation": told()})
        self.decoder_blocks = nn.ModuleList(OriginalBlock(n, 16, d) for _ in range(c["decoder_depth"]))
        self.final_layer = nn.ModuleDict({"linear": nn.Linear(n, p * p * c["in_channels"]), "adaLN_modulation": nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * n))})

    def labels(self, y):
        return self.y_embedder["embedding_table"](F.one_hot(y, CLASSES + 1)[:, :CLASSES].float())

    def run(self, x, c):
        x = super().run(x, c)
        shift, scale = self.decoder_layer["adaLN_modulation"](c).chunk(2, dim=1)
        x = self.decoder_layer["linear"](modulate(x, shift, scale)) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x, c)
        return x

    def denoised(self, x, sigma, y, scale):
        norm = (sigma**2 + 0.5**2).sqrt()
        told = (x.float() / norm).float(), (sigma.log() / 4).float().reshape(1)
        if scale > 1:
            with_class, without = self(torch.cat([told[0]] * 2), told[1].expand(2), torch.cat([y, torch.full_like(y, CLASSES)])).chunk(2)
            out = without + scale * (with_class - without)
        else:
            out = self(*told, y)
        return 0.5**2 / norm**2 * x + sigma * 0.5 / norm * out.double()


def edm(model, x, run):
    """MaskDiT's sampler without churn, the state in f64."""
    y, n = torch.tensor([run["class"]]), run["steps"]
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    sigmas = torch.cat([(high + torch.arange(n, dtype=torch.float64) / max(n - 1, 1) * (low - high)) ** 7, torch.zeros(1, dtype=torch.float64)])
    x = x.double() * sigmas[0]
    for now, after in zip(sigmas[:-1], sigmas[1:]):
        slope = (x - model.denoised(x, now, y, run["cfg"])) / now
        there = x + (after - now) * slope
        if run["sampler"] != "euler" and after > 0:
            slope = (slope + (there - model.denoised(there, after, y, run["cfg"])) / after) / 2
            there = x + (after - now) * slope
        x = there
    return x


def amplitude(name: str, shape) -> tuple[float, float]:
    """amp and offset: activations near unit scale, attention far from uniform, every tensor felt."""
    if "embedding_table" in name or "bias_table" in name or name in ("pos_embed", "decoder_pos_embed"):
        return 1.0, 0.0
    if len(shape) == 1:
        return 0.3, 0.0
    gain = 1.6 if any(part in name for part in ("to_q", "to_k", "qkv")) else 1.0
    return gain * (3.0 / int(np.prod(shape[1:]))) ** 0.5, 0.0


def fill(module) -> list[Spec]:
    specs = [Spec(name, tuple(t.shape), *amplitude(name, t.shape)) for name, t in module.state_dict().items()]
    module.load_state_dict({spec.name: torch.from_numpy(spec.values(SEED)) for spec in specs})
    return specs


def flow(model, x, run):
    """SiT's sampler with a fixed grid: the same network, told a time from 0 to 1, gives the velocity from noise to data."""
    y, dt = torch.tensor([run["class"]]), 1 / run["steps"]
    rope = {"rope": run["rope"]} if "rope" in run else {}

    def velocity(x, t):
        share = (1 - t) ** run["power"] if "power" in run else None
        t = torch.tensor([t])
        return model.guided(x, t, y, run["cfg"], share=share) if run["cfg"] > 1 else model(x, t, y, **rope)[:, :4]

    for i in range(run["steps"]):
        v = velocity(x, i * dt)
        x = x + dt * v if run["sampler"] == "euler" else x + dt / 2 * (v + velocity(x + dt * v, (i + 1) * dt))
    return x


def iddpm(model, x, run):
    """The original's sampler with learned variances (diffusion/ of facebookresearch/DiT at ed81ce2): p_sample_loop, clip_denoised=False. With guidance it draws
    noise for the null class, too."""
    b = len(x)
    y, generator, at, kept = torch.tensor([run["class"]] * b), torch.Generator("cpu").manual_seed(run["seed"]), 0.0, []
    torch.randn(x.shape, generator=generator)  # the first noise
    for _ in range(run["steps"]):
        kept.append(round(at))
        at += 999 / (run["steps"] - 1)
    alphas = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[kept]
    before = np.append(1.0, alphas[:-1])
    betas = 1 - alphas / before
    posterior = betas * (1 - before) / (1 - alphas)
    for i in reversed(range(len(kept))):
        t = torch.tensor([kept[i]])
        if run["cfg"] > 1:
            share = (1 - kept[i] / 1000) ** run["power"] if "power" in run else None
            e, v = model.guided(x, t, y, run["cfg"], share=share), model(x, t, y)[:, 4:]
        else:
            e, v = model(x, t, y).chunk(2, dim=1)
        share = (v + 1) / 2
        log = share * float(np.log(betas[i])) + (1 - share) * float(np.log(posterior[max(i, 1)]))
        x0 = x * float((1 / alphas[i]) ** 0.5) - e * float((1 / alphas[i] - 1) ** 0.5)
        mean = float(betas[i] * before[i] ** 0.5 / (1 - alphas[i])) * x0 + float((1 - before[i]) * (1 - betas[i]) ** 0.5 / (1 - alphas[i])) * x
        noise = torch.randn(2 * b if run["cfg"] > 1 else b, *x.shape[1:], generator=generator)[:b]
        x = mean + (i > 0) * torch.exp(0.5 * log) * noise
    return x


def runs():
    base = {"sampler": "ddim", "class": 207, "steps": 5, "cfg": 4.0, "seed": 3}
    for model in ("diffusers", "original"):
        for sampler in ("ddim", "dpmpp-2m"):
            yield {**base, "name": f"{model}-{sampler}-cfg", "model": model, "sampler": sampler}
        yield {**base, "name": f"{model}-plain", "model": model, "cfg": 1.0, "class": 999}
    yield {**base, "name": "original-ddpm-cfg", "model": "original", "sampler": "ddpm", "steps": 8}
    yield {**base, "name": "original-ddpm-batch", "model": "original", "sampler": "ddpm", "steps": 3, "batch": 2}
    yield {**base, "name": "fit1-ddpm", "model": "fit1", "sampler": "ddpm", "cfg": 1.0, "steps": 12}
    yield {**base, "name": "mdt-ddpm-cfg", "model": "mdt", "sampler": "ddpm", "steps": 5, "power": 0.01}
    yield {**base, "name": "original-rescaled", "model": "original", "rescale": 0.7, "steps": 3}
    yield {**base, "name": "sit-own-cfg", "model": "sit", "sampler": None, "steps": 4}
    yield {**base, "name": "sit-euler", "model": "sit", "sampler": "euler", "cfg": 1.0, "steps": 6}
    yield {**base, "name": "diffusers-own", "model": "diffusers", "sampler": None, "steps": 4}
    yield {**base, "name": "fit1-own-cfg", "model": "fit1", "sampler": None, "cfg": 1.5}
    yield {**base, "name": "fit2-own-cfg", "model": "fit2", "sampler": None, "cfg": 1.5, "steps": 3}
    yield {**base, "name": "mdt-own-cfg", "model": "mdt", "sampler": None, "power": 0.01}
    yield {**base, "name": "mdt-power-cfg", "model": "mdt", "steps": 6, "power": 4.0}
    yield {**base, "name": "maskdit-own-cfg", "model": "maskdit", "sampler": None, "cfg": 1.5, "steps": 6}
    yield {**base, "name": "maskdit-euler", "model": "maskdit", "sampler": "euler", "cfg": 1.0, "steps": 4, "class": 999}
    yield {**base, "name": "maskdit-one-step", "model": "maskdit", "sampler": "heun", "cfg": 3.0, "steps": 1}
    yield {**base, "name": "fit2-power-cfg", "model": "fit2", "sampler": "euler", "cfg": 3.0, "steps": 3, "power": 2.0}
    yield {**base, "name": "fit2-euler", "model": "fit2", "sampler": "euler", "cfg": 1.0, "steps": 2, "rope": "ntkpro2"}


@torch.no_grad()
def make(out: Path) -> None:
    models = {"diffusers": diffusers.DiTTransformer2DModel.from_config(DIFFUSERS).eval(), "original": Original(ORIGINAL).eval(),
              "odd": diffusers.DiTTransformer2DModel.from_config(ODD).eval(), "fit1": Fit(FIT1).eval(), "fit2": Fit(FIT2).eval(), "mdt": Mdt(MDT).eval(), "maskdit": Masked(MASKED).eval()}
    specs = {name: fill(model) for name, model in models.items()}
    noise = lambda model, seed, batch=1: torch.randn(batch, 4, *SIZES[model], generator=torch.Generator("cpu").manual_seed(seed))
    expected, listed = {}, []
    for name, model in models.items():
        for t, y in CALLS if name != "odd" else [(500.0, 7)]:
            told = {"timestep": torch.tensor([t]), "class_labels": torch.tensor([y])}
            if name in ("diffusers", "odd"):
                sample = model(noise(name, 1), **told).sample
            else:
                t = told["timestep"] / {"fit2": 1000, "maskdit": -500}.get(name, 1)
                sample = model(noise(name, 1), t, told["class_labels"])
            expected[f"call.{name}.{y}"] = sample[0, :4].numpy()
    for rope in ROPES:
        expected[f"rope.{rope}"] = models["fit2"](noise("fit2", 1), torch.tensor([0.3]), torch.tensor([5]), rope)[0].numpy()
    classes = {"ddim": diffusers.DDIMScheduler, "dpmpp-2m": diffusers.DPMSolverMultistepScheduler, None: diffusers.DDIMScheduler}
    for run in runs():
        scheduler = classes.get(run["sampler"], diffusers.DDIMScheduler).from_config(SCHEDULER if run["model"] == "diffusers" else TRAINED)
        if run["model"] == "diffusers":
            kept = []
            vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=1, scaling_factor=1.0)
            vae.decode = lambda z: kept.append(z) or SimpleNamespace(sample=z)
            pipe = diffusers.DiTPipeline(transformer=models["diffusers"], vae=vae, scheduler=scheduler)
            pipe.set_progress_bar_config(disable=True)
            pipe(class_labels=[run["class"]], guidance_scale=run["cfg"], num_inference_steps=run["steps"], output_type="pt",
                 generator=torch.Generator("cpu").manual_seed(run["seed"]))
            latents = kept[0]
        elif run["model"] in ("sit", "fit2"):
            name = "original" if run["model"] == "sit" else "fit2"
            latents = flow(models[name], noise(name, run["seed"]), run)
        elif run["sampler"] == "ddpm":
            latents = iddpm(models[run["model"]], noise(run["model"], run["seed"], run.get("batch", 1)), run)
        elif run["model"] == "maskdit":
            latents = edm(models["maskdit"], noise("maskdit", run["seed"]), run)
        else:
            model = models[run["model"]]
            latents, y = noise(run["model"], run["seed"]), torch.tensor([run["class"]])
            scheduler.set_timesteps(run["steps"])
            for t in scheduler.timesteps:
                x = scheduler.scale_model_input(latents, t)
                guided = run["cfg"] > 1
                share = (1 - t.item() / 1000) ** run["power"] if "power" in run else None
                eps = model.guided(x, t[None], y, run["cfg"], run.get("rescale", 0.0), share) if guided else model(x, t[None], y)[:, :4]
                latents = scheduler.step(eps, t, latents).prev_sample
        expected[run["name"]] = latents.numpy()
        listed.append(run)
    case = {"seed": SEED, "transformer": DIFFUSERS, "odd": ODD, "scheduler": SCHEDULER, "calls": CALLS, "sizes": SIZES, "ropes": ROPES, "runs": listed,
            "tensors": {name: [[s.name, list(s.shape), s.amp, s.offset] for s in all_specs] for name, all_specs in specs.items()}}
    write_run(out, case, {name: np.ascontiguousarray(value, np.float32) for name, value in expected.items()})


if __name__ == "__main__":
    sys.exit(write_or_check(make, OUT))
