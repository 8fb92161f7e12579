"""The InfGen decoder, from training/infgen_model.py."""

import contextlib
import sys
from pathlib import Path
from unittest import mock

import diffusers
import torch
import torch.nn.functional as F

import autoencoder_kl
from golden import QUIET, Case, Taps, channels_last, fan_in_amp, specs_of
from synthetic import Spec

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))
import infgen_model  # noqa: E402
from infgen_model import InfGenDecoder  # noqa: E402


def kind(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(amp, offset) of a tensor; what a VAE decoder has too is drawn as for the VAE."""
    if name == "mask_token":
        return 1.0, 0.0
    if name.startswith("base."):
        if name.endswith(".bias"):
            return 0.2, 0.0
        return fan_in_amp(0.5 if shape[0] == 3 else 0.8 if ".conv.4." in name else 1.4, shape), 0.0
    if name.endswith(".B"):
        return 69.0, 0.0  # the standard deviation of the format's normal(0, 40)
    if name.endswith(".weight") and "norm" not in name:
        for part, gain in (("fc1.", 1.4), ("fc2.", 1.7), (".ff.", 1.5)):
            if part in name:
                return fan_in_amp(gain, shape), 0.0
    return autoencoder_kl.kind(name, shape)


@contextlib.contextmanager
def exact_positions():
    """Runs section 6 of the format in f64: the model itself fixes it to f32, the precision an engine must have."""

    def grid_points(rows, cols, rect=None):
        assert rect is None
        y = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
        x = (torch.arange(cols, dtype=torch.float64) + 0.5) / cols
        return y.repeat_interleave(cols), x.repeat(rows)

    def forward(inpe, y, x):
        lat, lon = inpe.spans[0] * (y - 0.5), inpe.spans[1] * (x - 0.5)
        points = torch.stack([lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()], -1)
        angles = F.linear(points, inpe.B)
        return inpe.fc2(inpe.act(inpe.fc1(torch.cat([angles.cos(), angles.sin()], -1))))

    with mock.patch.object(infgen_model, "grid_points", grid_points), \
            mock.patch.object(infgen_model.Inpe, "forward", forward):
        yield


def decoder_taps(config: dict) -> list[str]:
    mid = ["resnets.0", "attentions.0", "resnets.1"] if config["mid_block_add_attention"] else ["resnets.0", "resnets.1"]
    ups = range(len(config["up_block_channels"]))
    return ([f"decoder.mid_block.{m}" for m in mid] + [f"decoder.up_blocks.{u}" for u in ups] + ["decoder.conv_norm_out"])


@torch.no_grad()
def run(model: InfGenDecoder, z: torch.Tensor, width: int, height: int) -> dict:
    c = model.config
    hl, wl = z.shape[-2:]
    rows, cols = -(-height // c["patch"]), -(-width // c["patch"])
    blocks = [f"blocks.{i}" for i in range(c["num_blocks"])]
    positions = []
    nets = [model.inpe] if c["inpe_shared"] else list(model.inpe.values())
    extra = [n.register_forward_hook(lambda _m, _i, out: positions.append(out.numpy())) for n in nets]
    base = ["base"] if c.get("base_channels") else []
    with Taps(model, ["decoder.conv_in"] + blocks + decoder_taps(c) + base) as seen:
        def entering(tokens, latent):  # not a hook of block 0: there may be none
            seen.update(mask_tokens=channels_last(tokens))
            return InfGenDecoder.run_blocks(model, tokens, latent)
        model.run_blocks = entering
        image = channels_last(model(z, height, width))
        del model.run_blocks
    for handle in extra:
        handle.remove()
    latent, mask = positions  # the latent's embedding is computed first
    taps = {"decoder.conv_in": seen["decoder.conv_in"], "inpe.latent": latent.reshape(hl, wl, -1),
            "inpe.mask": mask.reshape(rows, cols, -1)}
    taps |= {t: seen[t].reshape(rows, cols, -1) for t in ["mask_tokens"] + blocks}
    taps |= {t: seen[t] for t in decoder_taps(c) + base}
    return taps | {"image": image}


def make(name: str, config: dict, seed: int, runs, limits, adjust=None) -> Case:
    """runs: (latent width, latent height, width, height)"""
    config = infgen_model.validate(config)
    model = InfGenDecoder(config).eval()
    tensors = specs_of(model, kind, adjust)
    latents = dict.fromkeys((wl, hl) for wl, hl, _, _ in runs)
    inputs = [Spec(f"latent.{wl}x{hl}", (config["latent_channels"], hl, wl), 8.0) for wl, hl in latents]
    case = Case(name, "infgen", config, "training/infgen_model.py, float64", seed, tensors, inputs, limits)
    model.load_state_dict(case.state_dict())
    for wl, hl, w, h in runs:
        z = case.input(f"latent.{wl}x{hl}")
        with exact_positions():
            want = run(model.double(), z.double(), w, h)
        facts = {"op": "decode", "input": f"latent.{wl}x{hl}", "width": w, "height": h}
        case.add(f"{wl}x{hl}.{w}x{h}", facts, want, run(model.float(), z, w, h))
    wl, hl, w, h = runs[0]
    z, edge = case.input(f"latent.{wl}x{hl}"), 8 * config["patch"]
    case.probes["image"] = model, lambda: model(z, min(h, edge), min(w, edge))
    return case


def preset(name: str, seed: int) -> Case:
    sizes = [(128, 128), (200, 136), (331, 97), (512, 256)]
    return make(f"infgen-{name}", infgen_model.preset(name), seed, [(16, 16, w, h) for w, h in sizes], (1000, 20000))


SMALL = {
    # head dims, channels and token counts that no vector width divides; what differs from `preset` is listed
    "skip": dict(
        preset="sd4", stem="sd", hidden_size=48, num_heads=4, num_blocks=3, mlp_hidden=80, latent_skip="bilinear",
        inpe_features=16, inpe_hidden=24, up_block_channels=[48, 32, 24, 16], norm_num_groups=8),
    "two-inpe": dict(
        hidden_size=60, num_heads=4, num_blocks=2, mlp_hidden=90, mlp_act="gelu_tanh", inpe_act="gelu_erf",
        inpe_shared=False, inpe_features=11, inpe_hidden=18, mid_block_add_attention=False, layers_per_up_block=1,
        up_block_channels=[60, 20, 12], norm_num_groups=4),
    "odd-channels": dict(
        hidden_size=63, num_heads=7, num_blocks=2, mlp_hidden=50, mlp_act="silu", latent_skip="bilinear",
        inpe_features=7, inpe_hidden=33, layers_per_up_block=2, up_block_channels=[45, 27, 15], norm_num_groups=3),
    "patch4": dict(
        preset="sd4", stem="sd", patch=4, hidden_size=80, num_heads=1, num_blocks=2, mlp_hidden=96, ln_eps=0.05,
        norm_eps=0.1, inpe_features=32, inpe_hidden=40, layers_per_up_block=2, up_block_channels=[80, 40, 24],
        up_block_upsample=[True, False, True], norm_num_groups=8),
    "patch16": dict(
        patch=16, latent_space="sdxl", scaling_factor=0.13025, latent_channels=16, base_latent_size=[32, 48],
        hidden_size=96, num_heads=3, num_blocks=2, mlp_hidden=128, inpe_act="gelu_tanh", inpe_features=20,
        inpe_hidden=48, inpe_lon_span=6.283185307179586, inpe_lat_span=3.141592653589793, layers_per_up_block=1,
        up_block_channels=[64, 48, 32, 16], up_block_upsample=[True] * 4, norm_num_groups=8),
    "no-blocks": dict(
        hidden_size=40, num_heads=4, num_blocks=0, mlp_hidden=40, latent_skip="bilinear", inpe_features=12, inpe_hidden=20,
        layers_per_up_block=1, up_block_channels=[40, 24, 16], norm_num_groups=8),
    "base": dict(
        hidden_size=24, num_heads=2, num_blocks=1, mlp_hidden=20, latent_skip="bilinear", inpe_features=9, inpe_hidden=16,
        mid_block_add_attention=False, layers_per_up_block=1, up_block_channels=[24, 16, 8], norm_num_groups=4,
        base_channels=[20, 12, 9, 6], base_blocks=[2, 1, 0, 1]),
    "base-reduced": dict(
        patch=4, hidden_size=16, num_heads=2, num_blocks=0, mlp_hidden=20, latent_skip="bilinear", inpe_features=9, inpe_hidden=16,
        mid_block_add_attention=False, layers_per_up_block=1, up_block_channels=[16, 8], up_block_upsample=[True, True], norm_num_groups=4,
        stem_channels=7, base_channels=[8, 5], base_blocks=[0, 1]),
}
# The forms of GELU differ by less than 5e-4, so it shows only where GELU itself is small: around -2.5.
MLP_TAIL = {".ff.net.0.proj.weight": (0.2, 0.0), ".ff.net.0.proj.bias": (1.0, -2.5), ".ff.net.2.weight": (55.0, 0.0)}
INPE_TAIL = {".fc1.weight": (0.3, 0.0), ".fc1.bias": (1.0, -2.5), ".fc2.weight": (35.0, 0.0)}
ADJUST = {
    "skip": MLP_TAIL,
    "two-inpe": MLP_TAIL | INPE_TAIL | {".conv1.": QUIET, "decoder.conv_in.": QUIET, "inpe.latent.fc2.": QUIET},
    "patch16": INPE_TAIL,
}


def small(name: str, seed: int) -> Case:
    runs = [(9, 14, 72, 40), (9, 14, 129, 65), (6, 5, 7, 3), (6, 5, 1, 1)]
    return make(f"infgen-small-{name}", SMALL[name], seed, runs, (500, 9000), ADJUST.get(name))


def plain_vae() -> Case:
    """With the new parts zeroed and the bilinear skip, a decode at 8 x latent is the VAE's own (same tensors as vae-small)."""
    vae = autoencoder_kl.build(autoencoder_kl.SMALL)
    channels = autoencoder_kl.SMALL["block_out_channels"][::-1]
    config = infgen_model.preset(
        "sd4", hidden_size=channels[0], num_heads=6, num_blocks=2, mlp_hidden=100, latent_skip="bilinear", inpe_features=16,
        inpe_hidden=24, up_block_channels=channels, norm_num_groups=autoencoder_kl.SMALL["norm_num_groups"])
    model = InfGenDecoder(config).eval()
    zeroed = ("mask_token", "inpe.fc2.", ".attn.to_out.0.", ".ff.net.2.")
    tensors = [Spec(t.name, t.shape, 0.0) if any(z in t.name for z in zeroed) else t for t in specs_of(model, kind)]
    sizes = [(8, 8), (5, 9), (1, 1)]
    case = Case("infgen-plain-vae", "infgen", config, f"diffusers {diffusers.__version__} AutoencoderKL, float64", 7, tensors,
                [Spec(f"latent.{w}x{h}", (4, h, w), 8.0) for w, h in sizes])
    state = case.state_dict()
    model.load_state_dict(state)
    vae.double().load_state_dict({n: t for n, t in state.items() if n in vae.state_dict()}, strict=False)
    for w, h in sizes:
        z = case.input(f"latent.{w}x{h}")
        want = autoencoder_kl.run(vae, "decode", z.double())
        facts = {"op": "decode", "input": f"latent.{w}x{h}", "width": 8 * w, "height": 8 * h}
        case.add(f"{w}x{h}.{8 * w}x{8 * h}", facts, want, run(model, z, 8 * w, 8 * h))
    return case


CASES = {f"infgen-small-{n}": lambda n=n, i=i: small(n, 31 + i) for i, n in enumerate(SMALL)}
CASES |= {
    "infgen-plain-vae": plain_vae,
    "infgen-table1": lambda: preset("table1", 41),
    "infgen-sd4": lambda: preset("sd4", 42),
}
