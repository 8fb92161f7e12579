"""tests/data/class-to-image: predictions and final latents of two tiny DiTs, in diffusers' form and in the original's.

    python tools/goldens/class_to_image.py [--check]

Weights are synthetic (synthetic.py), so none are stored: case.json lists every tensor with its amplitude. diffusers' form is computed by its DiTPipeline,
the original's by `Original` below, written from its models.py (facebookresearch/DiT at ed81ce2): they are not the same network. SiT is the original's network
with another sampler.
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
# Timestep and class of single calls.
CALLS = [(0.0, 0), (801.0, 207), (37.0, CLASSES)]


class OriginalBlock(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 6 * d))

    def forward(self, x, c):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)
        b, n, d = x.shape
        q, k, v = self.attn["qkv"](modulate(x, shift_a, scale_a)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(-2, -1)) * (d // self.heads) ** -0.5).softmax(-1)
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
        cond = self.t_embedder["mlp"](torch.cat([args.cos(), args.sin()], -1)) + self.y_embedder["embedding_table"](y)
        for block in self.blocks:
            x = block(x, cond)
        shift, scale = self.final_layer["adaLN_modulation"](cond).chunk(2, dim=1)
        x = self.final_layer["linear"](modulate(x, shift, scale))
        x = x.reshape(b, height // self.patch, width // self.patch, self.patch, self.patch, 2 * c)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(b, 2 * c, height, width)

    def guided(self, x, t, y, scale, rescale=0.0):
        """forward_with_cfg: the first 3 channels are guided. `rescale`: diffusers' rescale_noise_cfg, which DiT's own pipelines do not have."""
        both = self(torch.cat([x, x]), t.expand(2 * len(x)), torch.cat([y, torch.full_like(y, CLASSES)]))
        with_class, without = both[:, :3].chunk(2)
        guided = torch.cat([without + scale * (with_class - without), both[: len(x), 3:4]], 1)
        return rescale * guided * (both[: len(x), :4].std() / guided.std()) + (1 - rescale) * guided


def amplitude(name: str, shape) -> tuple[float, float]:
    """amp and offset: activations near unit scale, attention far from uniform, every tensor felt."""
    if "embedding_table" in name or name == "pos_embed":
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

    def velocity(x, t):
        t = torch.tensor([t])
        return model.guided(x, t, y, run["cfg"]) if run["cfg"] > 1 else model(x, t, y)[:, :4]

    for i in range(run["steps"]):
        v = velocity(x, i * dt)
        x = x + dt * v if run["sampler"] == "euler" else x + dt / 2 * (v + velocity(x + dt * v, (i + 1) * dt))
    return x


def runs():
    base = {"sampler": "ddim", "class": 207, "steps": 5, "cfg": 4.0, "seed": 3}
    for model in ("diffusers", "original"):
        for sampler in ("ddim", "dpmpp-2m"):
            yield {**base, "name": f"{model}-{sampler}-cfg", "model": model, "sampler": sampler}
        yield {**base, "name": f"{model}-plain", "model": model, "cfg": 1.0, "class": 999}
    yield {**base, "name": "original-rescaled", "model": "original", "rescale": 0.7, "steps": 3}
    yield {**base, "name": "sit-own-cfg", "model": "sit", "sampler": None, "steps": 4}
    yield {**base, "name": "sit-euler", "model": "sit", "sampler": "euler", "cfg": 1.0, "steps": 6}
    yield {**base, "name": "diffusers-own", "model": "diffusers", "sampler": None, "steps": 4}


@torch.no_grad()
def make(out: Path) -> None:
    models = {"diffusers": diffusers.DiTTransformer2DModel.from_config(DIFFUSERS).eval(), "original": Original(ORIGINAL).eval(),
              "odd": diffusers.DiTTransformer2DModel.from_config(ODD).eval()}
    specs = {name: fill(model) for name, model in models.items()}
    sides = {"diffusers": DIFFUSERS["sample_size"], "original": ORIGINAL["input_size"], "odd": ODD["sample_size"]}
    noise = lambda model, seed: torch.randn(1, 4, sides[model], sides[model], generator=torch.Generator("cpu").manual_seed(seed))
    expected, listed = {}, []
    for name, model in models.items():
        for t, y in CALLS if name != "odd" else [(500.0, 7)]:
            told = {"timestep": torch.tensor([t]), "class_labels": torch.tensor([y])}
            if name != "original":
                sample = model(noise(name, 1), **told).sample
            else:
                sample = model(noise(name, 1), told["timestep"], told["class_labels"])
            expected[f"call.{name}.{y}"] = sample[0, :4].numpy()
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
        elif run["model"] == "sit":
            latents = flow(models["original"], noise("original", run["seed"]), run)
        else:
            latents, y = noise("original", run["seed"]), torch.tensor([run["class"]])
            scheduler.set_timesteps(run["steps"])
            for t in scheduler.timesteps:
                x = scheduler.scale_model_input(latents, t)
                guided = run["cfg"] > 1
                eps = models["original"].guided(x, t[None], y, run["cfg"], run.get("rescale", 0.0)) if guided else models["original"](x, t[None], y)[:, :4]
                latents = scheduler.step(eps, t, latents).prev_sample
        expected[run["name"]] = latents.numpy()
        listed.append(run)
    case = {"seed": SEED, "transformer": DIFFUSERS, "odd": ODD, "scheduler": SCHEDULER, "calls": CALLS, "sides": sides, "runs": listed,
            "tensors": {name: [[s.name, list(s.shape), s.amp, s.offset] for s in all_specs] for name, all_specs in specs.items()}}
    write_run(out, case, {name: np.ascontiguousarray(value, np.float32) for name, value in expected.items()})


if __name__ == "__main__":
    sys.exit(write_or_check(make, OUT))
