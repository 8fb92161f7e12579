"""Losses that need no downloaded backbone. Pictures are [B,3,H,W] in [-1,1]."""
import torch
import torch.nn as nn
import torch.nn.functional as F


def gradient_l1(a, b, scales=3):
    """L1 of horizontal and vertical differences at 1/1, 1/2, 1/4 resolution."""
    d, total = a - b, 0.0
    for s in range(scales):
        total = total + (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
        if s + 1 < scales:
            d = F.avg_pool2d(d, 2)
    return total / scales


def texture(a, b, scales=2, cell=8):
    """L1 between mean gradient magnitudes of cells: how much detail there is, wherever in the cell it lies."""
    def energy(t):
        d = (t[..., 1:, :-1] - t[..., :-1, :-1]) ** 2 + (t[..., :-1, 1:] - t[..., :-1, :-1]) ** 2
        return F.avg_pool2d((d + 1e-6).sqrt(), cell)
    total = 0.0
    for s in range(scales):
        total = total + (energy(a) - energy(b)).abs().mean()
        if s + 1 < scales:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return total / scales


def ssim(a, b, window=7):
    """Mean SSIM of luma with a uniform window (differentiable; evaluate.py has the usual Gaussian one)."""
    w = a.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    a, b = ((t * w).sum(1, keepdim=True) for t in (a, b))
    mean = lambda t: F.avg_pool2d(t, window, 1)
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    return ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()


class Features(nn.Module):
    """Distance in the feature space of the frozen TAESD encoder at 1/1, 1/2, 1/4 and 1/8 resolution."""

    def __init__(self, encoder, taps=(1, 5, 9, 13)):
        super().__init__()
        self.net, self.taps = [encoder], taps  # in a list: not a submodule, never saved

    def forward(self, out, target):
        x = torch.cat([out, target]) / 2 + 0.5
        total = 0.0
        for i, layer in enumerate(self.net[0][: self.taps[-1] + 1]):
            x = layer(x)
            if i in self.taps:
                f, t = x.float().chunk(2)
                scale = t.detach().square().mean((0, 2, 3), keepdim=True).add(1e-4).rsqrt()
                total = total + ((f - t.detach()) * scale).abs().mean()
        return total / len(self.taps)


class Patch(nn.Module):
    """PatchGAN discriminator (three strided layers), GroupNorm instead of BatchNorm: batches are small."""

    def __init__(self, width=48):
        super().__init__()
        w, act = width, lambda: nn.LeakyReLU(0.2, inplace=True)
        self.net = nn.Sequential(
            nn.Conv2d(3, w, 4, 2, 1), act(),
            nn.Conv2d(w, 2 * w, 4, 2, 1), nn.GroupNorm(8, 2 * w), act(),
            nn.Conv2d(2 * w, 4 * w, 4, 2, 1), nn.GroupNorm(8, 4 * w), act(),
            nn.Conv2d(4 * w, 4 * w, 4, 1, 1), nn.GroupNorm(8, 4 * w), act(), nn.Conv2d(4 * w, 1, 4, 1, 1))

    def forward(self, x):
        return self.net(x)


def hinge_d(real, fake):
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
