"""INFD (Image Neural Field Diffusion, arXiv 2406.07480): its autoencoder, the renderer CLIF patch by patch, its diffusion model and how that is sampled.

Written from the facts in yinboc/infd b79aafe (models/vqgan/model.py, models/infd_base.py, models/renderers/wrappers.py, utils/geometry.py,
diffusion/unet.py, diffusion/gaussian_diffusion.py, gen_samples.py) under that code's names, so that a state dict of one is one of the other. Taps have the
engine's names.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from golden import Case, channels_last, fan_in_amp, specs_of
from synthetic import Spec

CONFIG = {"ch": 32, "ch_mult": [1, 2, 3], "num_res_blocks": 1, "z_channels": 3, "n_embed": 40, "hidden_channels": 64}
PATCH, CONTEXT = 256, 8
# Attention at half and a quarter of the sides, one, two and three heads of 32.
UNET = {"model_channels": 32, "channel_mult": [1, 2, 3], "num_res_blocks": 2, "channels": 3, "attention": [1, 2], "head": 32}


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Resnet(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.norm1, self.conv1 = norm(cin), nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2, self.conv2 = norm(cout), nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        a = self.norm(x)
        q, k, v = (f(a).flatten(2) for f in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Level(nn.Module):
    """Resnets, then one resize (`upsample.conv` or `downsample.conv`)."""

    def __init__(self, channels, resize):
        super().__init__()
        self.block = nn.ModuleList(Resnet(a, b) for a, b in zip(channels, channels[1:]))
        if resize:
            inner = nn.Module()
            inner.conv = nn.Conv2d(channels[-1], channels[-1], 3, padding=int(resize == "upsample"), stride=1 if resize == "upsample" else 2)
            setattr(self, resize, inner)

    def forward(self, x):
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample"):
            return self.upsample.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.downsample.conv(F.pad(x, (0, 1, 0, 1))) if hasattr(self, "downsample") else x


def middle(c):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = Resnet(c, c), Attention(c), Resnet(c, c)
    return mid


def through_middle(mid, x, seen, part):
    for name, layer in (("resnets.0", mid.block_1), ("attentions.0", mid.attn_1), ("resnets.1", mid.block_2)):
        x = seen[f"{part}.mid_block.{name}"] = layer(x)
    return x


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        widths = [c["ch"] * m for m in c["ch_mult"]]
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.down = nn.ModuleList(Level([a] + [b] * c["num_res_blocks"], "downsample" if i + 1 < len(widths) else None)
                                  for i, (a, b) in enumerate(zip(before, widths)))
        self.mid, self.norm_out = middle(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c["z_channels"], 3, padding=1)

    def forward(self, x, seen):
        x = seen["encoder.conv_in"] = self.conv_in(x)
        for i, level in enumerate(self.down):
            x = seen[f"encoder.down_blocks.{i}"] = level(x)
        return self.conv_out(F.silu(self.norm_out(through_middle(self.mid, x, seen, "encoder"))))


class Decoder(nn.Module):
    """Ends before the last norm."""

    def __init__(self, c):
        super().__init__()
        widths = [c["ch"] * m for m in c["ch_mult"]]
        self.conv_in = nn.Conv2d(c["z_channels"], widths[-1], 3, padding=1)
        self.mid = middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(Level([a] + [b] * (c["num_res_blocks"] + 1), "upsample" if i else None)
                                for i, (a, b) in enumerate(zip(before, widths)))

    def forward(self, z, seen):
        x = seen["decoder.conv_in"] = self.conv_in(z)
        x = through_middle(self.mid, x, seen, "decoder")
        for i, level in enumerate(reversed(self.up)):
            x = seen[f"decoder.up_blocks.{i}"] = level(x)
        return x


class Renderer(nn.Module):
    def __init__(self, c):
        super().__init__()
        w = c["hidden_channels"]
        self.model = nn.ModuleList([nn.Conv2d(c["ch"] + 4, w, 3, padding=1), Resnet(w, w), Resnet(w, w)])
        self.norm_out, self.conv_out = norm(w), nn.Conv2d(w, 3, 3, padding=1)

    def forward(self, x, seen):
        for i, layer in enumerate(self.model):
            x = seen[f"renderer.net.model.{i}"] = layer(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Infd(nn.Module):
    def __init__(self, c):
        super().__init__()
        z = c["z_channels"]
        self.encoder = nn.Sequential(Encoder(c), nn.Conv2d(z, z, 1))
        self.decoder = nn.Sequential(nn.Conv2d(z, z, 1), Decoder(c))
        self.quantizer = nn.Module()
        self.quantizer.embedding = nn.Embedding(c["n_embed"], z)
        self.renderer = nn.Module()
        self.renderer.net = Renderer(c)

    def quantise(self, z):
        codes = self.quantizer.embedding.weight
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        distance = (flat ** 2).sum(1, keepdim=True) + (codes ** 2).sum(1) - 2 * flat @ codes.T
        nearest = distance.sort(1).values
        self.margin = (nearest[:, 1] - nearest[:, 0]).min().item()  # a case in which the nearest is not clear tests rounding
        return codes[distance.argmin(1)].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)

    def gather(self, features, rows, columns, size):
        """Of rows and columns (ranges) of a picture: the nearest features, where pixels lie in their cells, how large they are. Coordinates in f32."""
        def grid(n):
            return -1 + 2 * ((0.5 + torch.arange(n)) / n)

        coord = torch.stack(torch.meshgrid(grid(size[0])[rows], grid(size[1])[columns], indexing="ij"), -1)[None]
        cell = torch.ones_like(coord) * torch.tensor([2 / size[0], 2 / size[1]])
        n = torch.tensor(features.shape[-2:])
        centres = torch.stack(torch.meshgrid(grid(n[0]), grid(n[1]), indexing="ij"), 0)[None]
        nearest = lambda x: F.grid_sample(x, coord.flip(-1).to(x.dtype), mode="nearest", align_corners=False)
        # The nearest by coordinates in f32, whatever the features are in.
        index = nearest(torch.arange(n[0] * n[1], dtype=torch.float32).view(1, 1, *n)).long().flatten()
        offset = (coord - nearest(centres).permute(0, 2, 3, 1)) * n
        x = features.flatten(2)[:, :, index].view(1, -1, *coord.shape[1:3])
        return torch.cat([x, offset.permute(0, 3, 1, 2).to(x.dtype), (cell * n).permute(0, 3, 1, 2).to(x.dtype)], 1)

    def decode(self, z, height, width):
        seen = {}
        features = self.decoder[1](self.decoder[0](self.quantise(z)), seen)
        image = features.new_zeros(1, 3, height, width)
        single = height <= PATCH and width <= PATCH
        for y in range(0, height, PATCH):
            for x in range(0, width, PATCH):
                y1, x1 = min(y + PATCH, height), min(x + PATCH, width)
                top, left = max(y - CONTEXT, 0), max(x - CONTEXT, 0)
                area = slice(top, min(y1 + CONTEXT, height)), slice(left, min(x1 + CONTEXT, width))
                patch = self.renderer.net(self.gather(features, *area, (height, width)), seen if single else {})
                image[..., y:y1, x:x1] = patch[..., y - top:y1 - top, x - left:x1 - left]
        return {**seen, "image": image}

    def encode(self, x):
        seen = {}
        latent = self.encoder[1](self.encoder[0](x, seen))
        return {**seen, "latent": latent}


class ResBlock(nn.Module):
    def __init__(self, cin, cout, time):
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, cin), nn.SiLU(), nn.Conv2d(cin, cout, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, cout))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, cout), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(cout, cout, 3, padding=1))
        self.skip_connection = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

    def forward(self, x, emb):
        return self.skip_connection(x) + self.out_layers(self.in_layers(x) + self.emb_layers(emb)[..., None, None])


class AttentionBlock(nn.Module):
    def __init__(self, c, head):
        super().__init__()
        self.head = head
        self.norm, self.qkv, self.proj_out = nn.GroupNorm(32, c), nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def forward(self, x):
        flat = x.flatten(2)
        # Heads first, q, k and v within each.
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (-1, 3, self.head)).unbind(2)
        weights = (q.transpose(-1, -2) @ k / math.sqrt(self.head)).softmax(-1)
        return x + self.proj_out((v @ weights.transpose(-1, -2)).flatten(1, 2)).view_as(x)


class Resize(nn.Module):
    """To half or double the sides."""

    def __init__(self, c, down):
        super().__init__()
        setattr(self, "op" if down else "conv", nn.Conv2d(c, c, 3, stride=2 if down else 1, padding=1))

    def forward(self, x):
        return self.op(x) if hasattr(self, "op") else self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Unet(nn.Module):
    def __init__(self, c):
        super().__init__()
        base, count, levels = c["model_channels"], c["num_res_blocks"], len(c["channel_mult"])
        time, self.base = 4 * base, base
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        self.input_blocks, self.output_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(c["channels"], base, 3, padding=1)])]), nn.ModuleList()
        attention = lambda level, width: [AttentionBlock(width, c["head"])] if level in c["attention"] else []
        widths, skips = [base * m for m in c["channel_mult"]], [base]
        # Each layer's name in the engine, in the order of computation.
        self.names, at = ["conv_in"], base
        for i, width in enumerate(widths):
            for n in range(count):
                self.input_blocks.append(nn.ModuleList([ResBlock(at, width, time), *attention(i, width)]))
                self.names += [f"down_blocks.{i}.{kind}.{n}" for kind in ("resnets", "attentions")[: len(self.input_blocks[-1])]]
                at = width
                skips.append(at)
            if i + 1 < levels:
                self.input_blocks.append(nn.ModuleList([Resize(at, True)]))
                self.names.append(f"down_blocks.{i}.downsamplers.0")
                skips.append(at)
        self.middle_block = nn.ModuleList([ResBlock(at, at, time), AttentionBlock(at, c["head"]), ResBlock(at, at, time)])
        self.names += ["mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"]
        for i, width in reversed(list(enumerate(widths))):
            for n in range(count + 1):
                block = [ResBlock(at + skips.pop(), width, time), *attention(i, width)]
                self.names += [f"up_blocks.{levels - 1 - i}.{kind}.{n}" for kind in ("resnets", "attentions")[: len(block)]]
                if i and n == count:
                    block.append(Resize(width, False))
                    self.names.append(f"up_blocks.{levels - 1 - i}.upsamplers.0")
                self.output_blocks.append(nn.ModuleList(block))
                at = width
        self.out = nn.Sequential(nn.GroupNorm(32, at), nn.SiLU(), nn.Conv2d(at, c["channels"], 3, padding=1))

    def forward(self, x, timestep, seen):
        half = self.base // 2
        angles = timestep * torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()])[None].to(x.dtype))
        seen["time_embedding"] = F.silu(emb)[..., None, None]
        names, skips = iter(self.names), []

        def through(layers, x):
            for layer in layers:
                x = seen[next(names)] = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
            return x

        for block in self.input_blocks:
            x = through(block, x)
            skips.append(x)
        x = through(self.middle_block, x)
        for block in self.output_blocks:
            x = through(block, torch.cat([x, skips.pop()], 1))
        return self.out(x)

    def sample(self, shape, steps, seed):
        """ddim_sample_loop with eta 1 and without clipping; noise as torch draws it on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        dtype = self.out[2].weight.dtype
        draw = lambda: torch.randn(shape, generator=generator).to(dtype)
        kept = torch.cumprod(1 - torch.linspace(0.0015, 0.0195, 1000, dtype=torch.float64), 0)
        times = torch.arange(steps) * (1000 // steps)
        x = draw()
        for i in reversed(range(steps)):
            now, before = kept[times[i]], kept[times[i - 1]] if i else torch.tensor(1.0, dtype=torch.float64)
            eps = torch.cat([self(one[None], times[i].item(), {}) for one in x])
            sigma = ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
            clean = (1 / now).sqrt().to(dtype) * x - (1 / now - 1).sqrt().to(dtype) * eps
            x = clean * before.sqrt().to(dtype) + (1 - before - sigma ** 2).sqrt().to(dtype) * eps + (sigma.to(dtype) * draw() if i else 0)
        return x


def kind(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(amp, offset) of a tensor: activations stay near unit scale, attention is far from uniform."""
    if "embedding" in name:
        return 2.0, 0.0
    if "norm" in name:
        return (0.3, 1.0) if name.endswith(".weight") else (0.3, 0.0)
    if name.endswith(".bias"):
        return 0.2, 0.0
    return fan_in_amp(1.5 if any(k in name for k in (".conv1.", ".conv2.", ".q.", ".k.", ".v.", "proj_out")) else 1.0, shape), 0.0


# A picture of several patches with odd edges, one smaller than the features, one of their size, ratios that are no whole numbers.
DECODES = [((7, 5), (50, 37)), ((7, 5), (13, 9)), ((4, 6), (16, 24)), ((5, 4), (300, 262))]


@torch.no_grad()
def small() -> Case:
    net = Infd(CONFIG).eval()
    inputs = [Spec(f"latent.{w}x{h}", (3, h, w), 2.0) for w, h in sorted({size for size, _ in DECODES})] + [Spec("image.24x20", (3, 20, 24), 1.0)]
    case = Case("infd-small", "infd", CONFIG, "PyTorch from yinboc/infd b79aafe, float64", 71, specs_of(net, kind), inputs, limits=(400, 4000))
    net.load_state_dict(case.state_dict())
    last = lambda outputs: {name: channels_last(x) for name, x in outputs.items()}
    for (w, h), (width, height) in DECODES:
        z = case.input(f"latent.{w}x{h}")
        want = last(net.double().decode(z.double(), height, width))
        assert net.margin > 1e-3, net.margin
        facts = {"op": "decode", "input": f"latent.{w}x{h}", "width": width, "height": height}
        case.add(f"decode.{width}x{height}", facts, want, last(net.float().decode(z, height, width)))
    x = case.input("image.24x20")
    want, f32 = last(net.double().encode(x.double())), last(net.float().encode(x))
    case.add("encode.24x20", {"op": "encode", "input": "image.24x20", "width": 6, "height": 5}, want, f32)
    z = case.input("latent.7x5")
    case.probes["image"] = net.float(), lambda: net.decode(z, 37, 50)["image"]
    return case


@torch.no_grad()
def unet() -> Case:
    net = nn.ModuleDict({"z_dm_ema": Unet(UNET)}).eval()
    amps = lambda name, shape: (0.3, 1.0) if len(shape) == 1 and name.endswith(".weight") else kind(name, shape)
    inputs = [Spec(f"latent.{w}x{h}", (3, h, w), 1.7) for w, h in ((8, 12), (4, 4))]
    case = Case("unet-infd", "infd_unet", UNET, "PyTorch from yinboc/infd b79aafe, float64", 72, specs_of(net, amps), inputs, limits=(250, 2000))
    net.load_state_dict(case.state_dict())
    model = net["z_dm_ema"]

    def run(latent, timestep):
        seen = {}
        sample = model(latent.to(model.out[2].weight.dtype), timestep, seen)
        return {name: channels_last(x) for name, x in {**seen, "sample": sample}.items()}

    for (w, h), timestep in (((8, 12), 995.0), ((4, 4), 20.0)):
        z = case.input(f"latent.{w}x{h}")
        net.double()
        want = run(z, timestep)
        net.float()
        facts = {"op": "unet", "input": f"latent.{w}x{h}", "context": None, "timestep": timestep, "guidance": None, "width": w, "height": h}
        case.add(f"unet.{w}x{h}", facts, want, run(z, timestep), final=("sample",))
    for steps, seed, batch in ((5, 11, 2), (8, 12, 1)):
        shape = (batch, 3, 12, 8)
        sample = lambda: {f"latent.{i}": channels_last(x[None]) for i, x in enumerate(model.sample(shape, steps, seed))}
        net.double()
        want = sample()
        net.float()
        facts = {"op": "generate", "steps": steps, "seed": seed, "batch": batch, "width": 8, "height": 12}
        case.add(f"generate.{steps}", facts, want, sample(), final=tuple(want))
    z = case.input("latent.4x4")
    case.probes["sample"] = net, lambda: model(z, 500.0, {})
    return case


CASES = {"infd-small": small, "unet-infd": unet}
