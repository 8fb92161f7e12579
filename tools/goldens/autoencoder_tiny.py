"""TAESD (madebyollin/taesd) encoder and decoder, through diffusers' AutoencoderTiny.

The original's keys are its nn.Sequential indices. diffusers holds the same layers, except that the decoder's first
one, tanh(x / 3) * 3, is not counted and that pictures are [-1, 1] outside; here they are [0, 1] as in the original.
"""

import hashlib
import os
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from golden import Case, Taps, channels_last, fan_in_amp, specs_of
from synthetic import Spec

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPHS = ROOT / "tests" / "data" / "taesd-photographs"
# The folder with taesd_{en,de}coder.safetensors and taesdxl_{en,de}coder.safetensors.
WEIGHTS = Path(os.environ.get("INFGEN_WEIGHTS", "no published weights"))


class Decoder(torch.nn.Sequential):
    """diffusers' layers, counted as the original counts them."""

    def __init__(self, layers):
        class Clamp(torch.nn.Module):
            def forward(self, x):
                return torch.tanh(x / 3) * 3

        super().__init__(Clamp(), *layers)


def build(half: str) -> torch.nn.Sequential:
    tiny = AutoencoderTiny().eval()
    return tiny.encoder.layers if half == "encoder" else Decoder(tiny.decoder.layers)


@torch.no_grad()
def run(net: torch.nn.Sequential, x: torch.Tensor, result: str) -> dict:
    """The output of every convolution and block outside blocks, then the result."""
    named = [n for n, m in net.named_children() if next(m.parameters(), None) is not None]
    with Taps(net, named[:-1]) as seen:
        seen[result] = channels_last(net(x))
    return seen


def kind(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(amp, offset) of a tensor: activations stay near unit scale, pictures mostly within [0, 1]."""
    to_image = name.startswith("19.")
    if name.endswith(".bias"):
        return 0.2, 0.5 if to_image else 0.0
    gain = 0.25 if to_image else 1.0
    if ".conv." in name:  # in a block; the last of its three convolutions is added to the block's input
        gain = 0.8 if ".conv.4." in name else 1.4
    return fan_in_amp(gain, shape), 0.0


def synthetic(half: str, sizes, seed: int) -> Case:
    net = build(half)
    prefix, result = ("image", "latent") if half == "encoder" else ("latent", "image")
    inputs = [Spec(f"image.{w}x{h}", (3, h, w), 0.5, 0.5) if half == "encoder" else Spec(f"latent.{w}x{h}", (4, h, w), 4.0)
              for w, h in sizes]
    tensors = specs_of(net, kind)
    case = Case(f"taesd-{half}", f"taesd_{half}", {"latent_channels": 4},
                f"diffusers {diffusers.__version__} AutoencoderTiny, float64", seed, tensors, inputs,
                aliases=alias_forms(half, tensors))
    net.load_state_dict(case.state_dict())
    for w, h in sizes:
        x = case.input(f"{prefix}.{w}x{h}")
        want, f32 = run(net.double(), x.double(), result), run(net.float(), x, result)
        out_h, out_w = want[result].shape[:2]
        op = "encode" if half == "encoder" else "decode"
        case.add(f"{w}x{h}", {"op": op, "input": f"{prefix}.{w}x{h}", "width": out_w, "height": out_h}, want, f32)
    x = case.input(inputs[0].name)
    case.probes[result] = net, lambda: net(x)
    return case


def alias_forms(half: str, tensors) -> dict:
    """Other spellings of the same tensors: name -> [name in that file, shape in that file]."""
    diffusers_form = {}
    for t in tensors:
        index, rest = t.name.split(".", 1)
        diffusers_form[t.name] = [f"{half}.layers.{int(index) - (half == 'decoder')}.{rest}", list(t.shape)]
    tiny = AutoencoderTiny().state_dict()
    assert {n: list(tiny[n].shape) for n in tiny if n.startswith(half)} == {n: s for n, s in diffusers_form.values()}
    return {
        "diffusers": diffusers_form,
        "prefixed": {t.name: [f"taesd_{half}.{t.name}", list(t.shape)] for t in tensors},  # as ComfyUI joins the halves
    }


def photographs() -> Case | None:
    """The published weights on crops of two Kodak photographs: picture -> latent -> picture."""
    files = [WEIGHTS / f"taesd{xl}_{half}.safetensors" for xl in ("", "xl") for half in ("encoder", "decoder")]
    if not all(f.exists() for f in files):
        return None
    sums = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    case = Case(PHOTOGRAPHS.name, "taesd", {"latent_channels": 4},
                f"diffusers {diffusers.__version__} AutoencoderTiny, float64; madebyollin/taesd weights (bfloat16 files)",
                limits=(500, 8000), weights_sha256=sums)
    for space, stem in (("sd", "taesd"), ("sdxl", "taesdxl")):
        nets = {}
        for half in ("encoder", "decoder"):
            nets[half] = build(half)
            nets[half].load_state_dict({k: v.float() for k, v in load_file(WEIGHTS / f"{stem}_{half}.safetensors").items()})
        for name in ("kodim04", "kodim23"):
            png = (PHOTOGRAPHS / f"{name}.png").read_bytes()
            case.files[f"{name}.png"] = png
            picture = np.asarray(Image.open(PHOTOGRAPHS / f"{name}.png").convert("RGB"), np.float32) / np.float32(255)
            x = torch.from_numpy(picture).permute(2, 0, 1)[None]
            latent = both(case, f"{space}.encode.{name}", f"{stem}_encoder.safetensors", nets["encoder"], x,
                          {"op": "encode", "input_file": f"{name}.png"}, "latent")
            image = both(case, f"{space}.decode.{name}", f"{stem}_decoder.safetensors", nets["decoder"],
                         torch.from_numpy(latent).float().permute(2, 0, 1)[None],
                         {"op": "decode", "input_tensor": f"{space}.encode.{name}/latent"}, "image")
            psnr = -10 * np.log10(np.mean((image.clip(0, 1) - picture) ** 2))
            print(f"  {space} {name}: there and back {psnr:.2f} dB")
            assert psnr > 22, "these are not the published weights, or not run as they should be"
    return case


def both(case, name, weights, net, x, facts, result) -> np.ndarray:
    want, f32 = run(net.double(), x.double(), result), run(net.float(), x.float(), result)
    h, w = want[result].shape[:2]
    case.add(name, {**facts, "weights": weights, "width": w, "height": h}, want, f32)
    return want[result]


CASES = {
    # 37x23: each stride-2 convolution rounds up
    "taesd-encoder": lambda: synthetic("encoder", [(40, 24), (37, 23), (8, 8)], seed=21),
    "taesd-decoder": lambda: synthetic("decoder", [(5, 3), (13, 9), (1, 1)], seed=22),
    "taesd-photographs": photographs,
}
