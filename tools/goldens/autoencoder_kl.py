"""AutoencoderKL (the SD and SDXL VAE): encoder and decoder, from diffusers."""

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

from golden import QUIET, Case, Taps, channels_last, fan_in_amp, specs_of
from synthetic import Spec

SD15 = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
SMALL = {**SD15, "block_out_channels": [32, 64, 96, 96], "norm_num_groups": 8, "sample_size": 64}
SDXL_SMALL = {
    **SD15,
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "sample_size": 64,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}


def kind(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(amp, offset) of a tensor: activations stay near unit scale, attention is far from uniform."""
    norm = "norm" in name
    if name.endswith(".bias"):
        return (0.3, 0.0) if norm else (0.2, 0.0)
    if norm:
        return 0.3, 1.0
    gain = 1.0
    if ".conv1." in name or ".conv2." in name or ".to_" in name:
        gain = 1.5  # after a normalisation (and SiLU)
    elif "decoder.conv_in." in name or "post_quant_conv." in name:
        gain = 0.6  # latents come with a standard deviation near 4.6
    elif ".conv_out." in name:
        gain = 0.9
    return fan_in_amp(gain, shape), 0.0


def build(config: dict) -> AutoencoderKL:
    return AutoencoderKL.from_config({k: v for k, v in config.items() if k != "_class_name"}).eval()


def tap_names(half: str, levels: int) -> list[str]:
    blocks = "down_blocks" if half == "encoder" else "up_blocks"
    mid = [f"{half}.mid_block.{m}" for m in ("resnets.0", "attentions.0", "resnets.1")]
    levels = [f"{half}.{blocks}.{i}" for i in range(levels)]
    body = levels + mid if half == "encoder" else mid + levels
    stem = ["decoder.conv_in"] if half == "decoder" else ["encoder.conv_in"]
    return stem + body + [f"{half}.conv_norm_out"]


def forward(vae: AutoencoderKL, op: str, x: torch.Tensor) -> torch.Tensor:
    """Encode: moments (mean, then log variance, not clamped); decode: image, not clamped."""
    return vae.encode(x).latent_dist.parameters if op == "encode" else vae.decode(x).sample


@torch.no_grad()
def run(vae: AutoencoderKL, op: str, x: torch.Tensor) -> dict:
    """Taps and result."""
    half = "encoder" if op == "encode" else "decoder"
    with Taps(vae, tap_names(half, len(vae.config.block_out_channels))) as seen:
        seen["moments" if op == "encode" else "image"] = channels_last(forward(vae, op, x))
    return seen


def make(name, config, latents, images, seed, aliases=False, adjust=None) -> Case:
    vae = build(config)
    inputs = [Spec(f"latent.{w}x{h}", (config["latent_channels"], h, w), 8.0) for w, h in latents]
    inputs += [Spec(f"image.{w}x{h}", (3, h, w), 1.0) for w, h in images]
    case = Case(name, "autoencoder_kl", config, f"diffusers {diffusers.__version__} AutoencoderKL, float64", seed,
                specs_of(vae, kind, adjust), inputs, **({"aliases": alias_forms(vae)} if aliases else {}))
    vae.load_state_dict(case.state_dict())
    todo = [("decode", "latent", s) for s in latents] + [("encode", "image", s) for s in images]
    for op, prefix, (w, h) in todo:
        x = case.input(f"{prefix}.{w}x{h}")
        want, f32 = run(vae.double(), op, x.double()), run(vae.float(), op, x)
        out_h, out_w = next(reversed(want.values())).shape[:2]
        case.add(f"{op}.{w}x{h}", {"op": op, "input": f"{prefix}.{w}x{h}", "width": out_w, "height": out_h}, want, f32)
        case.probes.setdefault(op, (vae, lambda op=op, x=x: forward(vae, op, x)))
    return case


def alias_forms(vae: AutoencoderKL) -> dict:
    """Other spellings of the same tensors: name -> [name in that file, shape in that file]; values are unchanged."""
    shapes = {n: list(p.shape) for n, p in vae.state_dict().items()}
    levels = len(vae.config.block_out_channels)
    ldm, old = {}, {}
    for name, shape in shapes.items():
        new = ldm_name(name, levels)
        attention_weight = ".attentions.0.to_" in name and name.endswith(".weight")
        ldm[name] = ["first_stage_model." + new, shape + [1, 1] if attention_weight else shape]
        before = name
        for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            before = before.replace(f".attentions.0.{now}.", f".attentions.0.{then}.")
        if before != name:
            old[name] = [before, shape]
    # diffusers itself must read both forms back to the same tensors
    tensors = vae.state_dict()
    back = convert_ldm_vae_checkpoint({ldm[n][0]: t.reshape(ldm[n][1]) for n, t in tensors.items()}, dict(vae.config))
    assert set(back) == set(tensors) and all(torch.equal(back[n], t) for n, t in tensors.items())
    deprecated = {old.get(n, [n])[0]: t for n, t in tensors.items()}
    vae._fix_state_dict_keys_on_load(deprecated)
    assert all(torch.equal(deprecated[n], t) for n, t in tensors.items())
    return {"ldm": ldm, "old_attention": old}


def ldm_name(name: str, levels: int) -> str:
    """diffusers -> CompVis latent-diffusion (ldm/modules/diffusionmodules/model.py)."""
    name = name.replace(".conv_norm_out.", ".norm_out.").replace(".conv_shortcut.", ".nin_shortcut.")
    name = name.replace(".mid_block.resnets.0.", ".mid.block_1.").replace(".mid_block.resnets.1.", ".mid.block_2.")
    attention = (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))
    for now, then in attention:
        name = name.replace(f".mid_block.attentions.0.{now}.", f".mid.attn_1.{then}.")
    for i in range(levels):
        name = name.replace(f".down_blocks.{i}.resnets.", f".down.{i}.block.")
        name = name.replace(f".down_blocks.{i}.downsamplers.0.", f".down.{i}.downsample.")
        name = name.replace(f".up_blocks.{i}.resnets.", f".up.{levels - 1 - i}.block.")
        name = name.replace(f".up_blocks.{i}.upsamplers.0.", f".up.{levels - 1 - i}.upsample.")
    return name


CASES = {
    "vae-sd15": lambda: make("vae-sd15", SD15, [(8, 8), (12, 8)], [(64, 64), (96, 64)], seed=15),
    # 45x77: not multiples of 8; diffusers rounds down at each halving (each pads right and bottom by one)
    "vae-small": lambda: make("vae-small", SMALL, [(8, 8), (5, 9), (1, 1)], [(64, 64), (40, 72), (45, 77), (8, 8)],
                              seed=7, aliases=True),
    # 32 groups on 32 channels (one channel a group), three levels (f = 4), SDXL's scaling fields; eps is visible
    "vae-small-sdxl": lambda: make("vae-small-sdxl", SDXL_SMALL, [(7, 6)], [(28, 24)], seed=8,
                                   adjust={".conv1.": QUIET}),
}
