"""Synthetic tensors: reproducible weights and inputs that need not be stored.

The value at row-major flat index i of the tensor `name` with seed s is

    key   = fnv1a64(utf8(name)) xor s
    z     = splitmix64(key + (i + 1) * 0x9E3779B97F4A7C15)     (all modulo 2^64)
    t     = f32(z >> 40) * 2^-23 - 1                           (exact, in [-1, 1))
    value = f32(f32(t * amp) + offset)                         (two f32 roundings, no fused multiply-add)

so any language with 64-bit integers reproduces the same bits. Variance: amp^2 / 3.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Spec:
    """One synthetic tensor: uniform on [offset - amp, offset + amp)."""

    name: str
    shape: tuple[int, ...]
    amp: float
    offset: float = 0.0

    def __post_init__(self):
        # The numbers are kept as the shortest decimals that name exactly one f32, the form case.json holds.
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "amp", shortest_f32(self.amp))
        object.__setattr__(self, "offset", shortest_f32(self.offset))

    def values(self, seed: int) -> np.ndarray:
        return fill(self.name, self.shape, self.amp, self.offset, seed)


def shortest_f32(x: float) -> float:
    x = np.float32(x)
    text = np.format_float_scientific(x, unique=True)
    assert np.float32(float(text)) == np.float32(text) == x, "reading the decimal through f64 must not round twice"
    return float(text)


def fnv1a64(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def fill(name: str, shape: tuple[int, ...], amp: float, offset: float, seed: int) -> np.ndarray:
    """The tensor as f32."""
    key = np.uint64(fnv1a64(name.encode()) ^ seed)
    z = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += key
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    t = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return (t * np.float32(amp) + np.float32(offset)).reshape(shape)


class Vectors:
    """synthetic/vectors.json: bit patterns another implementation of this protocol must reproduce."""

    name = "synthetic"
    specs = (
        (Spec("mask_token", (5,), 1.0), 0),
        (Spec("decoder.conv_in.weight", (7, 4, 3, 3), 0.28867513), 15),
        (Spec("blocks.0.norm1.weight", (33,), 0.3, 1.0), 4294967295),
        (Spec("inpe.B", (256, 3), 69.0), 41),
        (Spec("blocks.0.ff.net.0.proj.weight", (3000, 101), 0.1, -0.3), 7),
        (Spec("zero", (4,), 0.0), 3),
    )

    def write(self, root: Path) -> None:
        rows = []
        for spec, seed in self.specs:
            bits = spec.values(seed).reshape(-1).view(np.uint32)
            rows.append({
                "name": spec.name, "seed": seed, "shape": list(spec.shape), "amp": spec.amp, "offset": spec.offset,
                "key": f"{fnv1a64(spec.name.encode()) ^ seed:016x}",
                "first_bits": [f"{b:08x}" for b in bits[:4]],
                "last_bits": f"{bits[-1]:08x}",
                "sum_of_bits": int(bits.astype(np.uint64).sum()),
            })
        folder = root / self.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vectors.json").write_text("[\n" + ",\n".join("  " + json.dumps(r) for r in rows) + "\n]\n")


CASES = {"synthetic": Vectors}
