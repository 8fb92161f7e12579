"""The decoder that ships, on the sample latent of a real photograph: tests/data/shipped/expected.safetensors.

    python tools/goldens/shipped.py      # after every change of weights/infgen-tiny-sd.safetensors

PyTorch in f64 from the shipped f16 weights; every third pixel of each picture, [H, W, 3].
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "training"))
import export  # noqa: E402

SIZES = [(256, 144), (331, 97)]
STRIDE = 3


@torch.no_grad()
def main():
    weights = ROOT / "weights/infgen-tiny-sd.safetensors"
    model = export.read_decoder(weights, torch.float64).double()
    with safe_open(str(ROOT / "examples/sample.safetensors"), "pt") as f:
        latent = f.get_tensor("latent").double()
    z = latent.reshape(1, *latent.shape[-3:]) / model.config["scaling_factor"]
    pictures = {}
    for width, height in SIZES:
        image = model(z, height, width)[0].permute(1, 2, 0).numpy()
        pictures[f"{width}x{height}"] = np.ascontiguousarray(image[::STRIDE, ::STRIDE], dtype=np.float32)
    folder = ROOT / "tests/data/shipped"
    folder.mkdir(exist_ok=True)
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    save_file(pictures, folder / "expected.safetensors", {"weights_sha256": sha256, "stride": str(STRIDE)})


if __name__ == "__main__":
    main()
