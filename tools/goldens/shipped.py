"""The decoders that ship, on the sample latent of a real photograph: tests/data/shipped/<decoder>.safetensors.

    python tools/goldens/shipped.py      # after every change of a decoder in weights/

PyTorch in f64 from the shipped f16 weights; every third pixel of each picture, [H, W, 3]. The sample is a latent of Stable Diffusion; for the decoder of
SDXL's it is just numbers of the right size.
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

SIZES = {"infgen-tiny-sd": [(256, 144), (331, 97)], "infgen-tiny-sdxl": [(331, 97)], "infgen-base-sd": [(331, 97)]}
STRIDE = 3


@torch.no_grad()
def main():
    with safe_open(str(ROOT / "examples/sample.safetensors"), "pt") as f:
        latent = f.get_tensor("latent").double()
    folder = ROOT / "tests/data/shipped"
    folder.mkdir(exist_ok=True)
    for name, sizes in SIZES.items():
        weights = ROOT / f"weights/{name}.safetensors"
        model = export.read_decoder(weights, torch.float64).double()
        z = latent.reshape(1, *latent.shape[-3:]) / model.config["scaling_factor"]
        pictures = {}
        for width, height in sizes:
            image = model(z, height, width)[0].permute(1, 2, 0).numpy()
            pictures[f"{width}x{height}"] = np.ascontiguousarray(image[::STRIDE, ::STRIDE], dtype=np.float32)
        sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
        save_file(pictures, folder / f"{name}.safetensors", {"weights_sha256": sha256, "stride": str(STRIDE)})


if __name__ == "__main__":
    main()
