"""Stable Diffusion 1.5 at its real size with random weights, and one step of diffusers' to compare with.

    python tools/measure/sd15.py FOLDER                      # makes the model and FOLDER/expected.npy; 6 GB of memory, 2.1 GB of disk
    infgen generate --model FOLDER -p "a photo of a cat" --steps 2 --cfg 1 -s 42 --memory 3GiB --save-latent latent.npy -o cat.png --json
    python tools/measure/sd15.py FOLDER --compare latent.npy

The scheduler is DDIM with trailing timesteps: the first step is at t = 999, where the result is the model's prediction through and through.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "goldens"))
import clip_vocabulary  # noqa: E402
import text_to_image as tiny  # noqa: E402
from sd15_unet import CONFIG  # noqa: E402
from unet import kind  # noqa: E402

TEXT = {**tiny.TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768}
VAE = {**tiny.VAE, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 512}
STEPS = 2
SCHEDULER = {"_class_name": "DDIMScheduler", **tiny.SD, "timestep_spacing": "trailing"}


@torch.no_grad()
def fill(module, rule) -> None:
    for name, parameter in module.named_parameters():
        amp, offset = rule(name, tuple(parameter.shape))
        parameter.copy_(parameter.uniform_(-amp, amp).add_(offset).half())


def make(folder: Path) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(15)
    unet = diffusers.UNet2DConditionModel.from_config({k: v for k, v in CONFIG.items() if k != "_class_name"}).eval()
    text = CLIPTextModel(CLIPTextConfig(**{k: v for k, v in TEXT.items() if k not in ("architectures", "model_type")})).eval()
    vae = diffusers.AutoencoderKL.from_config(VAE).eval()
    fill(unet, kind)
    fill(text, lambda name, shape: tiny.amplitude("text_encoder", name, shape))
    fill(vae, lambda name, shape: tiny.amplitude("vae", name, shape))
    with tempfile.TemporaryDirectory() as scratch:
        clip_vocabulary.write_folder(Path(scratch))
        tokenizer = CLIPTokenizer.from_pretrained(scratch)
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=diffusers.DDIMScheduler.from_config(SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    begun = time.monotonic()
    latent = pipe("a photo of a cat", num_inference_steps=STEPS, guidance_scale=1.0, output_type="latent",
                  generator=torch.Generator("cpu").manual_seed(42)).images
    print(f"{sum(p.numel() for p in unet.parameters())} parameters; {STEPS} steps of diffusers in f32 on {torch.get_num_threads()} threads: "
          f"{time.monotonic() - begun:.1f} s; latent's standard deviation {latent.std():.3f}")
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "expected.npy", latent.numpy().astype(np.float32))
    pipe.to(torch.float16).save_pretrained(folder, safe_serialization=True)


def compare(folder: Path, latent: Path) -> None:
    want, got = np.load(folder / "expected.npy").astype(np.float64), np.load(latent).astype(np.float64)
    print(json.dumps({"shape": list(got.shape), "relative_l2": float(np.linalg.norm(got - want) / np.linalg.norm(want))}))


if __name__ == "__main__":
    if sys.argv[2:3] == ["--compare"]:
        compare(Path(sys.argv[1]), Path(sys.argv[3]))
    else:
        make(Path(sys.argv[1]))
