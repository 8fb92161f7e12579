"""TAESD (madebyollin/taesd, MIT): the small VAE whose latents we decode, and the shape of our own encoder.

Pictures are RGB in [0,1], latents are scaled (x0.18215 for SD, x0.13025 for SDXL). Keys are the nn.Sequential
indices of the original's taesd.py; the decoder's index 0 is the clamp tanh(x/3)*3, so its keys begin at 1.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file


class Block(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(), nn.Conv2d(cout, cout, 3, padding=1),
                                  nn.ReLU(), nn.Conv2d(cout, cout, 3, padding=1))
        self.skip = nn.Conv2d(cin, cout, 1, bias=False) if cin != cout else nn.Identity()

    def forward(self, x):
        return F.relu(self.conv(x) + self.skip(x))


class Clamp(nn.Module):
    def forward(self, x):
        return torch.tanh(x / 3) * 3


def conv(cin, cout, **kw):
    return nn.Conv2d(cin, cout, 3, padding=1, **kw)


def encoder(width=64, latent_channels=4, widths=None):
    """[B,3,H,W] in [0,1] -> scaled latents [B,4,H/8,W/8]. `widths`: channels at 1/1, 1/2, 1/4, 1/8 (default all `width`)."""
    a, b, c, d = widths or [width] * 4
    down = lambda i, o: conv(i, o, stride=2, bias=False)
    return nn.Sequential(conv(3, a), Block(a, a), down(a, b), Block(b, b), Block(b, b), Block(b, b),
                         down(b, c), Block(c, c), Block(c, c), Block(c, c),
                         down(c, d), Block(d, d), Block(d, d), Block(d, d), conv(d, latent_channels))


def decoder(width=64, latent_channels=4, widths=None, blocks=(3, 3, 3, 1)):
    """Scaled latents -> [B,3,8h,8w], about [0,1], not clamped. `widths`, `blocks`: channels and blocks at 1/8, 1/4, 1/2, 1/1."""
    widths = widths or [width] * len(blocks)
    layers = [Clamp(), conv(latent_channels, widths[0]), nn.ReLU()]
    for before, w, n in zip([None, *widths], widths, blocks):
        if before:
            layers += [nn.Upsample(scale_factor=2), conv(before, w, bias=False)]
        layers += [Block(w, w) for _ in range(n)]
    return nn.Sequential(*layers, conv(widths[-1], 3))


def load(net, path, dtype=torch.float32):
    net.load_state_dict({k: v.to(dtype) for k, v in load_file(str(path)).items()})
    return net.eval().requires_grad_(False)
