"""The UNet of SD 1.5 at its real size (859.5 M parameters) with random weights, and one step of diffusers' to compare with.

    python tools/measure/sd15_unet.py FOLDER
    cargo run --release --example unet_step -- FOLDER [f16 | f16-weights | f32]

Writes FOLDER/{config.json, diffusion_pytorch_model.safetensors} (f16, 1.7 GB) and FOLDER/step.safetensors: latent [64, 64, 4], context [77, 768],
timestep and the prediction [64, 64, 4] of diffusers in f32 from the same f16 weights. Needs 8 GB of memory.
"""

import json
import sys
import time
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "goldens"))
from unet import SD1, kind  # noqa: E402

CONFIG = {
    **SD1,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "sample_size": 64,
}
TIMESTEP = 801.0


@torch.no_grad()
def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(15)
    unet = UNet2DConditionModel.from_config({k: v for k, v in CONFIG.items() if k != "_class_name"}).eval()
    for name, parameter in unet.named_parameters():
        amp, offset = kind(name, tuple(parameter.shape))
        parameter.copy_(parameter.uniform_(-amp, amp).add_(offset).half())
    count = sum(p.numel() for p in unet.parameters())
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    save_file({n: t.half().contiguous() for n, t in unet.state_dict().items()}, folder / "diffusion_pytorch_model.safetensors")
    latent, context = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    begun = time.monotonic()
    sample = unet(latent, TIMESTEP, context).sample
    print(f"{count} parameters; one step of diffusers in f32 on {torch.get_num_threads()} threads: {time.monotonic() - begun:.1f} s; "
          f"prediction's standard deviation {sample.std():.3f}")
    plane = lambda x: x[0].permute(1, 2, 0).contiguous()
    save_file({"latent": plane(latent), "context": context[0].contiguous(), "timestep": torch.tensor([TIMESTEP]), "sample": plane(sample)},
              folder / "step.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
