"""Single operators from torch, in float64: what the engine's own f64 reference loops are tied to.

Activations are channels-last ([H, W, C] or [tokens, C]), weights in torch's order ([out, in, kh, kw], [out, in]).
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from golden import fan_in_amp, relative_l2
from synthetic import Spec

GELU = {
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
    "taesd_clamp": lambda x: torch.tanh(x / 3) * 3,
}


class Ops:
    name = "ops"

    def __init__(self, seed=0):
        self.seed, self.cases, self.expected = seed, [], {}

    def add(self, name, op, params, inputs, compute):
        """`inputs`: argument -> (shape, amp, offset); `compute(**tensors)` gives one tensor or a dict of them."""
        specs = {arg: Spec(f"ops.{name}.{arg}", *spec) for arg, spec in inputs.items()}
        tensors = {arg: torch.from_numpy(s.values(self.seed)) for arg, s in specs.items()}
        want = compute(**{arg: t.double() for arg, t in tensors.items()})
        got = compute(**tensors)
        outputs = []
        for key in want if isinstance(want, dict) else [""]:
            w, g = (want[key], got[key]) if key else (want, got)
            tensor = f"{name}.{key}" if key else name
            assert relative_l2(g, w) < 2e-5, (tensor, relative_l2(g, w))
            self.expected[tensor] = np.ascontiguousarray(w.numpy(), dtype=np.float32)
            outputs.append({"tensor": tensor, "shape": list(w.shape)})
        self.cases.append({
            "name": name, "op": op, "params": params,
            "inputs": [{"arg": a, "name": s.name, "shape": list(s.shape), "amp": s.amp, "offset": s.offset}
                       for a, s in specs.items()],
            "outputs": outputs,
        })

    def write(self, root: Path):
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        rows = ",\n".join("    " + json.dumps(c) for c in self.cases)
        (folder / "ops.json").write_text(
            f'{{\n  "source": "torch {torch.__version__.split("+")[0]}, float64",\n  "seed": {self.seed},\n  "cases": [\n{rows}\n  ]\n}}\n')
        save_file(self.expected, folder / "expected.safetensors")


def planes(x):  # [H, W, C] -> [1, C, H, W]
    return x.permute(2, 0, 1)[None]


def pixels(x):  # [1, C, H, W] -> [H, W, C]
    return x[0].permute(1, 2, 0)


def conv(x, weight, bias=None, stride=1, pad=(0, 0, 0, 0)):
    return pixels(F.conv2d(F.pad(planes(x), pad), weight, bias, stride))


def add_conv(ops, name, h, w, cin, cout, k, stride=1, pad=(0, 0, 0, 0), bias=True):
    """pad: left, right, top, bottom"""
    weight = (cout, cin, k, k)
    inputs = {"x": ((h, w, cin), 1.7), "weight": (weight, fan_in_amp(1.0, weight))}
    if bias:
        inputs["bias"] = ((cout,), 0.2)
    params = {"stride": stride, "pad_left": pad[0], "pad_right": pad[1], "pad_top": pad[2], "pad_bottom": pad[3]}
    ops.add(name, "conv2d", params, inputs, lambda **t: conv(**t, stride=stride, pad=pad))


def add_upsample_conv(ops, name, h, w, cin, cout):
    weight = (cout, cin, 3, 3)
    ops.add(name, "upsample_nearest_2x_conv3x3", {},
            {"x": ((h, w, cin), 1.7), "weight": (weight, fan_in_amp(1.0, weight)), "bias": ((cout,), 0.2)},
            lambda x, weight, bias: pixels(
                F.conv2d(F.interpolate(planes(x), scale_factor=2.0, mode="nearest"), weight, bias, padding=1)))


def add_linear(ops, name, n, cin, cout):
    ops.add(name, "linear", {},
            {"x": ((n, cin), 1.7), "weight": ((cout, cin), fan_in_amp(1.0, (cout, cin))), "bias": ((cout,), 0.2)},
            lambda x, weight, bias: F.linear(x, weight, bias))


def add_group_norm(ops, name, h, w, c, groups, amp=1.7, offset=0.0, eps=1e-6):
    ops.add(name, "group_norm", {"groups": groups, "eps": eps},
            {"x": ((h, w, c), amp, offset), "weight": ((c,), 0.3, 1.0), "bias": ((c,), 0.3)},
            lambda x, weight, bias: pixels(F.group_norm(planes(x), groups, weight, bias, eps)))


def add_layer_norm(ops, name, n, c, amp=1.7, offset=0.0, eps=1e-5):
    ops.add(name, "layer_norm", {"eps": eps},
            {"x": ((n, c), amp, offset), "weight": ((c,), 0.3, 1.0), "bias": ((c,), 0.3)},
            lambda x, weight, bias: F.layer_norm(x, (c,), weight, bias, eps))


def add_attention(ops, name, n, m, heads, head_dim, logit=2.0):
    """`logit`: standard deviation of the scaled scores."""
    amp = (3 * logit) ** 0.5

    def attention(q, k, v):
        q, k, v = (t.unflatten(-1, (heads, head_dim)).transpose(0, 1) for t in (q, k, v))  # the head is the slow index
        scores = q @ k.transpose(1, 2) * head_dim**-0.5
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    c = heads * head_dim
    ops.add(name, "attention", {"heads": heads, "head_dim": head_dim},
            {"q": ((n, c), amp), "k": ((m, c), amp), "v": ((m, c), 1.7)}, attention)


def add_bilinear(ops, name, h, w, out_h, out_w, c):
    def resample(x):
        y = F.interpolate(planes(x), (out_h, out_w), mode="bilinear", align_corners=False, antialias=False)
        cy = (torch.arange(out_h, dtype=x.dtype) + 0.5) / out_h  # the same by sampling at the cell centres
        cx = (torch.arange(out_w, dtype=x.dtype) + 0.5) / out_w
        grid = 2 * torch.stack([cx.expand(out_h, -1), cy[:, None].expand(-1, out_w)], -1)[None] - 1
        again = F.grid_sample(planes(x), grid, mode="bilinear", padding_mode="border", align_corners=False)
        assert relative_l2(again, y) < 1e-5
        return pixels(y)

    ops.add(name, "bilinear_resample", {"width": out_w, "height": out_h}, {"x": ((h, w, c), 1.7)}, resample)


def add_bicubic(ops, name, h, w, out_h, out_w, c):
    def resample(x):
        return pixels(F.interpolate(planes(x), (out_h, out_w), mode="bicubic", align_corners=False, antialias=True))

    ops.add(name, "bicubic_resample", {"width": out_w, "height": out_h}, {"x": ((h, w, c), 1.7)}, resample)


def add_inpe(ops, name, rows, cols, act, lon_span, lat_span, m=6, hidden=10, out=7):
    """Points, Fourier features and embedding of a grid; `features_f32` is torch's own f32 run of the same."""

    def inpe(B, fc1_weight, fc1_bias, fc2_weight, fc2_bias):
        y = ((torch.arange(rows, dtype=B.dtype) + 0.5) / rows).repeat_interleave(cols)
        x = ((torch.arange(cols, dtype=B.dtype) + 0.5) / cols).repeat(rows)
        lon, lat = lon_span * (x - 0.5), lat_span * (y - 0.5)
        p = torch.stack([lat.cos() * lon.sin(), lat.sin(), lat.cos() * lon.cos()], -1)
        f = torch.cat([(p @ B.T).cos(), (p @ B.T).sin()], -1)
        hidden = GELU[act](F.linear(f, fc1_weight, fc1_bias))
        return {"points": p, "features": f, "embedding": F.linear(hidden, fc2_weight, fc2_bias)}

    inputs = {
        "B": ((m, 3), 69.0),
        "fc1_weight": ((hidden, 2 * m), fan_in_amp(1.4, (hidden, 2 * m))), "fc1_bias": ((hidden,), 0.2),
        "fc2_weight": ((out, hidden), fan_in_amp(1.7, (out, hidden))), "fc2_bias": ((out,), 0.2),
    }
    ops.add(name, "inpe", {"rows": rows, "cols": cols, "act": act, "lon_span": lon_span, "lat_span": lat_span},
            inputs, inpe)
    f32 = inpe(**{a: torch.from_numpy(Spec(f"ops.{name}.{a}", *s).values(ops.seed)) for a, s in inputs.items()})
    ops.expected[f"{name}.features_f32"] = f32["features"].numpy()
    ops.cases[-1]["outputs"].append({"tensor": f"{name}.features_f32", "shape": list(f32["features"].shape)})


def make() -> Ops:
    ops = Ops()
    add_conv(ops, "conv2d_1x1", 4, 6, 5, 7, 1)
    add_conv(ops, "conv2d_1x1_no_bias", 3, 5, 8, 4, 1, bias=False)
    add_conv(ops, "conv2d_3x3", 7, 5, 6, 9, 3, pad=(1, 1, 1, 1))
    add_conv(ops, "conv2d_3x3_one_pixel", 1, 1, 5, 6, 3, pad=(1, 1, 1, 1))
    add_conv(ops, "conv2d_3x3_to_rgb", 5, 8, 12, 3, 3, pad=(1, 1, 1, 1))
    add_conv(ops, "conv2d_3x3_stride2", 7, 6, 5, 6, 3, stride=2, pad=(1, 1, 1, 1))
    add_conv(ops, "conv2d_3x3_stride2_right_bottom", 8, 6, 5, 6, 3, stride=2, pad=(0, 1, 0, 1))
    add_conv(ops, "conv2d_3x3_stride2_right_bottom_odd", 7, 5, 4, 6, 3, stride=2, pad=(0, 1, 0, 1))
    add_upsample_conv(ops, "upsample_conv_3x4", 3, 4, 5, 6)
    add_upsample_conv(ops, "upsample_conv_one_pixel", 1, 1, 4, 5)
    add_linear(ops, "linear", 9, 11, 13)
    add_linear(ops, "linear_one_token", 1, 32, 7)
    add_group_norm(ops, "group_norm", 5, 6, 12, 3)
    add_group_norm(ops, "group_norm_one_group", 3, 4, 10, 1)
    add_group_norm(ops, "group_norm_channel_a_group", 4, 5, 8, 8)
    add_group_norm(ops, "group_norm_far_mean", 6, 5, 8, 2, amp=0.5, offset=9.0)
    add_group_norm(ops, "group_norm_no_variance", 2, 3, 6, 2, amp=0.0)
    add_group_norm(ops, "group_norm_variance_near_eps", 5, 4, 8, 2, amp=2e-3)
    add_layer_norm(ops, "layer_norm", 7, 20)
    add_layer_norm(ops, "layer_norm_variance_near_eps", 5, 12, amp=5e-3)
    add_layer_norm(ops, "layer_norm_far_mean", 3, 33, amp=0.5, offset=-9.0)
    add_attention(ops, "attention_self_one_head", 12, 12, 1, 24)
    add_attention(ops, "attention_self", 11, 11, 3, 8)
    add_attention(ops, "attention_cross_head_dim_5", 7, 10, 3, 5)
    add_attention(ops, "attention_cross_head_dim_40", 3, 77, 2, 40)
    add_attention(ops, "attention_cross_head_dim_64", 5, 33, 2, 64)
    add_attention(ops, "attention_head_dim_512", 2, 5, 1, 512)
    add_attention(ops, "attention_one_key", 4, 1, 2, 8)
    add_attention(ops, "attention_large_scores", 6, 70, 2, 16, logit=40.0)
    for name, function in GELU.items():
        ops.add(name, name, {}, {"x": ((10, 20), 9.0)}, lambda x, f=function: f(x))
    ops.add("geglu", "geglu", {}, {"x": ((9, 22), 3.0)}, lambda x: x[:, :11] * F.gelu(x[:, 11:]))  # value, then gate
    add_bilinear(ops, "bilinear_up", 3, 4, 5, 9, 5)
    add_bilinear(ops, "bilinear_down", 9, 7, 4, 3, 5)
    add_bilinear(ops, "bilinear_same", 4, 5, 4, 5, 6)
    add_bilinear(ops, "bilinear_from_one", 1, 1, 3, 2, 7)
    add_bilinear(ops, "bilinear_mixed", 2, 11, 7, 6, 4)
    add_bicubic(ops, "bicubic_up", 5, 7, 13, 16, 3)
    add_bicubic(ops, "bicubic_down", 29, 23, 4, 9, 3)
    add_bicubic(ops, "bicubic_same", 4, 5, 4, 5, 3)
    add_bicubic(ops, "bicubic_from_one", 1, 1, 3, 2, 3)
    add_bicubic(ops, "bicubic_mixed", 3, 17, 8, 6, 3)
    quarter = float(np.pi / 2)
    add_inpe(ops, "inpe", 3, 5, "silu", quarter, quarter)
    add_inpe(ops, "inpe_one_cell", 1, 1, "gelu_erf", quarter, quarter)
    add_inpe(ops, "inpe_full_sphere", 4, 3, "gelu_tanh", float(2 * np.pi), float(np.pi))
    ops.add("image_to_unit", "image_to_unit", {}, {"x": ((6, 7, 3), 1.5)}, lambda x: (x / 2 + 0.5).clamp(0, 1))
    ops.add("image_to_u8", "image_to_u8", {}, {"x": ((6, 7, 3), 1.5)},
            lambda x: ((x / 2 + 0.5).clamp(0, 1) * 255).round())  # torch rounds half to even
    return ops


CASES = {"ops": make}
