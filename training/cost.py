"""What a config costs: parameters, and FLOP (2 x multiply-add) by stage. `phases` counts nearest-2x + 3x3 as the engine
computes it, four 2x2 convolutions on the small image (2.25x fewer operations).

  python cost.py [config or decoder.safetensors] [size]
"""
import sys

import torch

from infgen_model import InfGenDecoder


def parameters(c):
    with torch.device("meta"):
        return sum(v.numel() for v in InfGenDecoder(c).state_dict().values())


def flop(c, height, width, latent=(64, 64), phases=True):
    n, m = -(-height // c["patch"]) * -(-width // c["patch"]), latent[0] * latent[1]
    D, N, lc = c["hidden_size"], c["num_blocks"], c["latent_channels"]
    conv = lambda ci, co, k, px: 2 * k * k * ci * co * px
    res = lambda ci, co, px: conv(ci, co, 3, px) + conv(co, co, 3, px) + (conv(ci, co, 1, px) if ci != co else 0)
    between = c.get("stem_channels", D)
    s = {"stem": conv(lc, between, 3, m) + conv(between, D, 3, m) if c["stem"] == "conv3x3" else conv(lc, lc, 1, m) + conv(lc, D, 3, m),
         "inpe": (n + m) * (6 * c["inpe_features"] + 4 * c["inpe_features"] * c["inpe_hidden"] + 2 * c["inpe_hidden"] * D),
         "projections": N * 4 * D * D * (n + m), "attention": N * 4 * n * m * D, "mlp": N * 4 * D * c["mlp_hidden"] * n,
         "mid": 4 * conv(D, D, 3, n) + ((8 * D * D * n + 4 * n * n * D) if c["mid_block_add_attention"] else 0)}
    px, cin = n, D
    for u, (ch, up) in enumerate(zip(c["up_block_channels"], c["up_block_upsample"])):
        s[f"up{u}"] = res(cin, ch, px) + (c["layers_per_up_block"] - 1) * res(ch, ch, px)
        if up:
            px *= 4
            s[f"up{u} x2"] = conv(ch, ch, 3, px) / (2.25 if phases else 1)
        cin = ch
    s["out"] = conv(cin, 3, 3, px)
    widths, blocks = c.get("base_channels", []), c.get("base_blocks", [])
    for i, (w, n) in enumerate(zip(widths, blocks)):
        at = m * 4 ** i
        s["base"] = s.get("base", 0) + (conv(widths[i - 1], w, 3, at) / (2.25 if phases else 1) if i else conv(lc, w, 3, at)) + 3 * n * conv(w, w, 3, at)
    if widths:
        s["base"] += conv(widths[-1], 3, 3, at)
    s["total"] = sum(s.values())
    return s


if __name__ == "__main__":
    from export import read_decoder
    from train import CONFIGS
    name, size = (sys.argv[1:] + ["tiny-sd", "1024"][len(sys.argv) - 1:])[:2]
    c, size = read_decoder(name).config if name.endswith(".safetensors") else CONFIGS[name], int(size)
    print(f"{name}: {parameters(c) / 1e6:.3f} M parameters, {parameters(c) * 2 / 2 ** 20:.2f} MiB in f16; at {size}x{size}, kFLOP per pixel:")
    for k, v in flop(c, size, size).items():
        print(f"  {k:12s} {v / size ** 2 / 1e3:9.1f}")
