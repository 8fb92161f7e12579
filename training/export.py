"""Checkpoint -> safetensors of the engine's single-file form, from the averaged (EMA) weights.

  python export.py decoder RUN/checkpoint.pt weights/infgen-tiny-sd.safetensors
  python export.py decoder RUN-A/checkpoint.pt RUN-B/checkpoint.pt OUT     the mean of runs that began at the same weights
  python export.py encoder RUN/checkpoint.pt weights/encoder-tiny-sd.safetensors
  python export.py mix A.safetensors B.safetensors SHARE OUT               exported decoders, SHARE of the second
  python export.py join DECODER.safetensors TAESD_DECODER.safetensors SHARE OUT     with TAESD as the base decoder: SHARE of its picture, the rest of the decoder's
  python export.py sums weights            rewrites weights/SHA256SUMS
"""
import hashlib
import json
import math
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import taesd
from infgen_model import InfGenDecoder, validate


def half(state, keep=()):
    """f16 tensors, except those of `keep` (f32). Every value must survive."""
    out = {}
    for k, v in state.items():
        t = v.detach().cpu().float().contiguous() if k in keep else v.detach().cpu().half().contiguous()
        if not torch.isfinite(t).all():
            raise ValueError(f"{k} is not finite in {t.dtype}")
        out[k] = t
    return out


@torch.no_grad()
def balance(state, config):
    """The same network with activations that fit f16: the streams between GroupNorms have no scale of their own.

    A factor on what an upsampler writes passes unchanged through identity and 1x1 shortcuts and is divided out by the next
    GroupNorm (but for eps), so it can be chosen freely: here the power of two that brings the largest value of a
    calibration decode below 128. Training does not mind 1e5; f16 ends at 65504.
    """
    net = InfGenDecoder(config)
    net.load_state_dict({k: v.float().cpu() for k, v in state.items()})
    peaks = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: peaks.append(out.abs().max().item())) for b in net.decoder.up_blocks]
    z = torch.randn(1, config["latent_channels"], 32, 32, generator=torch.Generator().manual_seed(0)) / config["scaling_factor"]
    net.eval()(z, 256, 256)
    [h.remove() for h in hooks]
    state, scale = {k: v.detach().float().cpu().clone() for k, v in state.items()}, 1.0
    for u, peak in enumerate(peaks):
        block = f"decoder.up_blocks.{u}."
        for k in state:  # what enters this block is `scale` times what it was
            if k.startswith(block + "resnets.") and (".conv2." in k or k.endswith(".conv_shortcut.bias")):
                state[k] *= scale
        if block + "upsamplers.0.conv.weight" in state:
            after = 2.0 ** -max(0, math.ceil(math.log2(peak / 128)))
            state[block + "upsamplers.0.conv.weight"] *= after / scale
            state[block + "upsamplers.0.conv.bias"] *= after
            scale = after
    return state


def save(state, path, metadata):
    save_file(state, str(path), metadata)
    Path(path).chmod(0o644)  # safetensors writes for the user alone


def write_decoder(state, config, path):
    config = validate(config)
    state = balance(state, config)
    keep = {k for k in state if k.endswith("inpe.B") or k in ("inpe.latent.B", "inpe.mask.B")}
    save(half(state, keep), path, {"infgen_config": json.dumps(config)})


def write_encoder(state, space, widths, path):
    meta = {"model_type": "taesd_encoder", "latent_space": space, "scaled": "true", "widths": json.dumps(widths)}
    save(half(state), path, meta)


@torch.no_grad()
def join(model, vae, share):
    """State and config of one network whose output is `share` of what TAESD's decoder makes of the latent, enlarged, and the rest of what `model` makes."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for k in ("weight", "bias"):
        state[f"decoder.conv_out.{k}"] *= 1 - share
    config = validate({**model.config, "base_channels": [64] * 4, "base_blocks": [3, 3, 3, 1]})
    base = {f"base.layers.{k}": v.clone() for k, v in torch.nn.Sequential(*vae[1:]).state_dict().items()}
    last = len(vae) - 2
    base[f"base.layers.{last}.weight"] *= 2 * share  # [0, 1] to [-1, 1]
    base[f"base.layers.{last}.bias"] = share * (2 * base[f"base.layers.{last}.bias"] - 1)
    return {**state, **base}, config


def read_decoder(path, dtype=torch.float32):
    with safe_open(str(path), "pt") as f:
        config = json.loads(f.metadata()["infgen_config"])
        state = {k: f.get_tensor(k).to(dtype) for k in f.keys()}
    model = InfGenDecoder(config)
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def read_encoder(path, dtype=torch.float32):
    with safe_open(str(path), "pt") as f:
        widths = json.loads(f.metadata()["widths"])
    return taesd.load(taesd.encoder(widths=widths), path, dtype)


def main(kind, *args):
    if kind == "sums":
        d = Path(args[0])
        (d / "SHA256SUMS").write_text("".join(
            f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in sorted(d.glob("*.safetensors"))))
        return
    if kind == "mix":
        (a, b), share, out = map(read_decoder, args[:2]), float(args[2]), args[3]
        other = b.state_dict()
        write_decoder({k: v.lerp(other[k], share) for k, v in a.state_dict().items()}, a.config, out)
        return
    if kind == "join":
        vae = taesd.load(taesd.decoder(), args[1])
        write_decoder(*join(read_decoder(args[0]), vae, float(args[2])), args[3])
        return
    *runs, out = args
    checkpoints = [torch.load(run, map_location="cpu", weights_only=True) for run in runs]
    c = checkpoints[0]
    # Runs that began at the same weights may be averaged: each has noise of its own.
    ema = {k: sum(other["ema"][k].float() for other in checkpoints) / len(checkpoints) for k in c["ema"]}
    if kind == "decoder":
        write_decoder(ema, c["config"], out)
    else:
        write_encoder(ema, c["space"], c["widths"], out)
    for run, c in zip(runs, checkpoints):
        print(f"{run}: step {c['step']}, {c['seconds'] / 3600:.2f} h of training")
    print(f"{out}: {Path(out).stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
