"""The InfGen decoder in PyTorch: a latent of fixed size in, a picture of any size out.

This file is the golden reference of the engine: it holds the network of specs/infgen.md and
nothing else (no training code, no file formats). Section numbers below refer to that document; the base picture
is an extension of ours (ARCHITECTURE.md).

Shapes: B batch, hl x wl latent grid (m = hl*wl tokens), Hl x Wl query grid (n = Hl*Wl tokens,
one per `patch` x `patch` pixels of the target), D hidden_size.
"""
import copy
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

import taesd

SCALING = {"sd": 0.18215, "sdxl": 0.13025}

_COMMON = dict(
    model_type="infgen", format_version=1, preset="table1", latent_space="sd", scaling_factor=0.18215,
    latent_channels=4, base_latent_size=[64, 64], patch=8, hidden_size=512, stem="conv3x3",
    num_blocks=8, num_heads=8, mlp_hidden=2048, mlp_act="gelu_erf", norm="pre", ln_eps=1e-5,
    qk_norm=False, latent_skip="none", inpe_shared=True, inpe_features=256, inpe_sigma=40.0,
    inpe_hidden=512, inpe_act="silu", inpe_lon_span=math.pi / 2, inpe_lat_span=math.pi / 2,
    mid_block_add_attention=True, layers_per_up_block=3, up_block_channels=[512, 256, 128],
    up_block_upsample=[True, True, True], norm_num_groups=32, norm_eps=1e-6, encode_mode="mode",
    max_step_scale=4.0)
# Fields that a config may have besides: channels between the stem's two 3x3 convolutions, and the base decoder (BaseDecoder).
_MORE = {"stem_channels", "base_channels", "base_blocks"}
PRESETS = {
    "table1": _COMMON,
    "sd4": {**_COMMON, "preset": "sd4", "stem": "sd", "up_block_channels": [512, 512, 256, 128],
            "up_block_upsample": [True, True, True, False]},
}


def preset(name: str, **changes) -> dict:
    return validate({**copy.deepcopy(PRESETS[name]), **changes})


def validate(config: dict) -> dict:
    """The config with absent fields filled from its preset; ValueError for anything not of section 3."""
    base = PRESETS.get(config.get("preset"), _COMMON)
    unknown = set(config) - set(base) - _MORE
    if unknown:
        raise ValueError(f"unknown config fields: {sorted(unknown)}")
    c = {**copy.deepcopy(base), **config}

    def need(ok, what):
        if not ok:
            raise ValueError(f"bad InfGen config: {what}")

    need(c["model_type"] == "infgen", "model_type")
    need(c["format_version"] == 1, "format_version")
    need(c["latent_space"] in SCALING, "latent_space")
    need(abs(c["scaling_factor"] - SCALING.get(c["latent_space"], 0)) < 1e-6, "scaling_factor is not that of latent_space")
    for field, legal in dict(stem=("conv3x3", "sd"), norm=("pre",), qk_norm=(False,), latent_skip=("none", "bilinear"),
                             mlp_act=tuple(ACT), inpe_act=tuple(ACT), encode_mode=("mode", "sample")).items():
        need(c[field] in legal, f"{field} must be one of {legal}")
    for field in ("latent_channels", "patch", "hidden_size", "num_heads", "mlp_hidden", "inpe_features",
                  "inpe_hidden", "layers_per_up_block", "norm_num_groups", "stem_channels"):
        need(isinstance(c.get(field, 1), int) and c.get(field, 1) > 0, f"{field} must be a positive integer")
    need(isinstance(c["num_blocks"], int) and c["num_blocks"] >= 0, "num_blocks")
    need(len(c["base_latent_size"]) == 2, "base_latent_size")
    need(len(c["up_block_channels"]) == len(c["up_block_upsample"]) > 0, "up_block lists differ in length")
    need(2 ** sum(c["up_block_upsample"]) == c["patch"], "2^upsamples must equal patch")
    need(c["hidden_size"] % c["num_heads"] == 0, "hidden_size % num_heads")
    need(len(c.get("base_channels", [])) == len(c.get("base_blocks", [])), "base_channels and base_blocks differ in length")
    need(all(ch % c["norm_num_groups"] == 0 for ch in [c["hidden_size"], *c["up_block_channels"]]),
         "channels must be multiples of norm_num_groups")
    return c


ACT = {"gelu_erf": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


def grid_points(rows, cols, rect=None):
    """Normalised cell centres (y^, x^), each [n], row-major; rect = (top, left, rows, cols) picks a part of the grid."""
    top, left, nr, nc = rect or (0, 0, rows, cols)
    y = (torch.arange(top, top + nr, dtype=torch.float32) + 0.5) / rows
    x = (torch.arange(left, left + nc, dtype=torch.float32) + 0.5) / cols
    return y.repeat_interleave(nc), x.repeat(nr)


class Inpe(nn.Module):
    """Section 6: points of [0,1]^2 -> unit sphere -> Fourier features -> two-layer network."""

    def __init__(self, c):
        super().__init__()
        self.spans = c["inpe_lat_span"], c["inpe_lon_span"]
        self.act = ACT[c["inpe_act"]]
        self.register_buffer("B", torch.randn(c["inpe_features"], 3) * c["inpe_sigma"])
        self.fc1 = nn.Linear(2 * c["inpe_features"], c["inpe_hidden"])
        self.fc2 = nn.Linear(c["inpe_hidden"], c["hidden_size"])

    def forward(self, y, x):  # [..., n] each -> [..., n, D]
        with torch.autocast(y.device.type, enabled=False):  # |B p| reaches 160 rad: f32
            lat, lon = self.spans[0] * (y.float() - 0.5), self.spans[1] * (x.float() - 0.5)
            p = torch.stack([lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()], -1)
            t = p @ self.B.float().T
            f = torch.cat([t.cos(), t.sin()], -1)
        return self.fc2(self.act(self.fc1(f.to(self.fc1.weight.dtype))))


class CrossAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def attend(self, q, kv):  # [B,n,D], [B,m,D] -> [B,n,D], heads side by side
        split = lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B,heads,tokens,D/heads]
        o = F.scaled_dot_product_attention(split(self.to_q(q)), split(self.to_k(kv)), split(self.to_v(kv)))
        return o.transpose(1, 2).flatten(2)

    def forward(self, q, kv):
        return self.to_out[0](self.attend(q, kv))


class FeedForward(nn.Module):
    """Keys net.0.proj and net.2 as in diffusers; no gating."""

    def __init__(self, dim, hidden, act):
        super().__init__()
        first = nn.Module()
        first.proj = nn.Linear(dim, hidden)
        self.net = nn.ModuleList([first, nn.Identity(), nn.Linear(hidden, dim)])
        self.act = act

    def forward(self, x):
        return self.net[2](self.act(self.net[0].proj(x)))


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["hidden_size"]
        self.norm1, self.norm_kv, self.norm2 = (nn.LayerNorm(d, eps=c["ln_eps"]) for _ in range(3))
        self.attn = CrossAttention(d, c["num_heads"])
        self.ff = FeedForward(d, c["mlp_hidden"], ACT[c["mlp_act"]])

    def forward(self, M, L, attention=True):
        if attention:
            M = M + self.attn(self.norm1(M), self.norm_kv(L))
        return M + self.ff(self.norm2(M))


def conv3(cin, cout):
    return nn.Conv2d(cin, cout, 3, padding=1)


class Resnet(nn.Module):
    def __init__(self, cin, cout, groups, eps):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, cin, eps), conv3(cin, cout)
        self.norm2, self.conv2 = nn.GroupNorm(groups, cout, eps), conv3(cout, cout)
        self.conv_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if self.conv_shortcut is not None else x)


class MidAttention(nn.Module):
    """One head over all tokens of the mid block (diffusers' UNetMidBlock2D)."""

    def __init__(self, ch, groups, eps):
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, ch, eps)
        self.to_q, self.to_k, self.to_v = nn.Linear(ch, ch), nn.Linear(ch, ch), nn.Linear(ch, ch)
        self.to_out = nn.ModuleList([nn.Linear(ch, ch)])

    def forward(self, x):  # [B,D,Hl,Wl]
        t = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # [B,1,n,D]: one head
        o = F.scaled_dot_product_attention(self.to_q(t), self.to_k(t), self.to_v(t))
        return x + self.to_out[0](o[:, 0]).transpose(1, 2).reshape(x.shape)


class MidBlock(nn.Module):
    def __init__(self, ch, groups, eps, attention):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(ch, ch, groups, eps) for _ in range(2)])
        self.attentions = nn.ModuleList([MidAttention(ch, groups, eps)] if attention else [])

    def forward(self, x):
        x = self.resnets[0](x)
        for a in self.attentions:
            x = a(x)
        return self.resnets[1](x)


class Upsample(nn.Module):
    def __init__(self, ch):
        super().__init__()
        self.conv = conv3(ch, ch)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UpBlock(nn.Module):
    def __init__(self, cin, ch, layers, groups, eps, upsample):
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(cin if r == 0 else ch, ch, groups, eps) for r in range(layers)])
        self.upsamplers = nn.ModuleList([Upsample(ch)] if upsample else [])

    def forward(self, x):
        for layer in [*self.resnets, *self.upsamplers]:
            x = layer(x)
        return x


class ConvDecoder(nn.Module):
    """Steps 6-8. `conv_in` belongs to the stem (step 1) and is only stored here for its key."""

    def __init__(self, c, stem_in):
        super().__init__()
        d, g, eps = c["hidden_size"], c["norm_num_groups"], c["norm_eps"]
        chans = c["up_block_channels"]
        self.conv_in = conv3(stem_in, d)
        self.mid_block = MidBlock(d, g, eps, c["mid_block_add_attention"])
        self.up_blocks = nn.ModuleList([
            UpBlock(cin, ch, c["layers_per_up_block"], g, eps, up)
            for cin, ch, up in zip([d, *chans], chans, c["up_block_upsample"])])
        self.conv_norm_out, self.conv_out = nn.GroupNorm(g, chans[-1], eps), conv3(chans[-1], 3)

    def forward(self, x):  # [B,D,Hl,Wl] -> [B,3,patch*Hl,patch*Wl]
        x = self.mid_block(x)
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class BaseDecoder(nn.Module):
    """A small convolutional decoder of the latent at its own size, of TAESD's layers; keys as diffusers' DecoderTiny has them."""

    def __init__(self, c):
        super().__init__()
        self.scaling_factor = c["scaling_factor"]
        self.clamp, *layers = taesd.decoder(latent_channels=c["latent_channels"], widths=c["base_channels"], blocks=c["base_blocks"])
        self.layers = nn.Sequential(*layers)

    def forward(self, z):  # [B,C,h,w] in VAE units -> [B,3,s*h,s*w], s = 2^(stages - 1)
        return self.layers(self.clamp(z * self.scaling_factor))


def resample_bicubic(x, height, width):
    """As Pillow's BICUBIC: Keys' cubic (a = -1/2), stretched where it reduces, weights of what lies inside made 1."""
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        return F.interpolate(x, (height, width), mode="bicubic", antialias=True, align_corners=False)


class InfGenDecoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        c = self.config = validate(config)
        d, lc = c["hidden_size"], c["latent_channels"]
        between = c.get("stem_channels", d) if c["stem"] == "conv3x3" else lc
        self.post_quant_conv = conv3(lc, between) if c["stem"] == "conv3x3" else nn.Conv2d(lc, lc, 1)
        self.decoder = ConvDecoder(c, stem_in=between)
        self.mask_token = nn.Parameter(torch.randn(d) * 0.02)
        self.inpe = Inpe(c) if c["inpe_shared"] else nn.ModuleDict({"latent": Inpe(c), "mask": Inpe(c)})
        self.blocks = nn.ModuleList([Block(c) for _ in range(c["num_blocks"])])
        self.base = BaseDecoder(c) if c.get("base_channels") else None
        self.use_attention = True  # runtime switch of the ablation; not part of the config

    # Steps 1-2. z [B,4,hl,wl] in VAE units -> features x [B,D,hl,wl], latent tokens L [B,hl*wl,D]
    def encode_latent(self, z):
        x = self.decoder.conv_in(self.post_quant_conv(z))
        inpe = self.inpe if self.config["inpe_shared"] else self.inpe["latent"]
        y_, x_ = (t.to(z.device) for t in grid_points(*z.shape[-2:]))
        return x, x.flatten(2).transpose(1, 2) + inpe(y_, x_)

    # Step 3. Query points y_, x_ ([n], or [B,n] when each latent has its own) -> mask tokens [B,n,D]
    def mask_tokens(self, x, y_, x_):
        B = x.shape[0]
        inpe = self.inpe if self.config["inpe_shared"] else self.inpe["mask"]
        M = self.mask_token + inpe(y_, x_)
        M = M.expand(B, *M.shape[-2:])
        if self.config["latent_skip"] == "bilinear":  # half-pixel centres, edge clamp
            grid = (2 * torch.stack([x_, y_], -1) - 1).to(x.dtype).expand(B, -1, 2)[:, None]
            skip = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
            M = M + skip[:, :, 0].transpose(1, 2)
        return M

    # Step 4
    def run_blocks(self, M, L):
        for block in self.blocks:
            M = block(M, L, self.use_attention)
        return M

    def forward(self, z_unscaled, height, width, rect=None):
        """[B,3,height,width] in about [-1,1]. rect = (top, left, rows, cols) in patches computes that part of the
        query grid alone and gives its [B,3,patch*rows,patch*cols] pixels, not cropped to the target: the tokens
        are exact, while convolutions see zeros beyond the part and GroupNorm the part's own statistics."""
        p = self.config["patch"]
        Hl, Wl = -(-height // p), -(-width // p)
        rows, cols = (rect[2], rect[3]) if rect else (Hl, Wl)
        x, L = self.encode_latent(z_unscaled)
        y_, x_ = (t.to(x.device) for t in grid_points(Hl, Wl, rect))
        M = self.run_blocks(self.mask_tokens(x, y_, x_), L)
        M = M.transpose(1, 2).unflatten(2, (rows, cols))  # [B,D,rows,cols]
        out = self.decoder(M)
        if self.base:
            top, left = (p * rect[0], p * rect[1]) if rect else (0, 0)
            base = resample_bicubic(self.base(z_unscaled), p * Hl, p * Wl)
            out = out + base[..., top:top + p * rows, left:left + p * cols]
        return out if rect else out[..., :height, :width]


def to_uint8(image):
    """Step 10: [-1,1] -> 8-bit, half to even."""
    return ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
