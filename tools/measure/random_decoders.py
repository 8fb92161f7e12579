"""Random decoders of full size, for measuring memory and time where weights do not matter.

    python tools/measure/random_decoders.py OUT      # sd4.safetensors, table1.safetensors, vae/, latent-64.safetensors, latent-512.safetensors

`vae/` is the AutoencoderKL of Stable Diffusion 1.x as diffusers writes it.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))
import export  # noqa: E402
from infgen_model import InfGenDecoder, preset  # noqa: E402


def main(out: Path):
    from diffusers import AutoencoderKL

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name in ("sd4", "table1"):
        config = preset(name)
        export.write_decoder(InfGenDecoder(config).state_dict(), config, str(out / f"{name}.safetensors"))
    AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, sample_size=512,
    ).half().save_pretrained(out / "vae")
    for side in (64, 512, 1024, 2048):
        save_file({"latent": torch.randn(1, 4, side, side)}, out / f"latent-{side}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
