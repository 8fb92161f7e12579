"""tests/data/text-to-image: final latents of diffusers' pipelines on a tiny model with every block type of SD 1.5.

    python tools/goldens/text_to_image.py [--check]

Weights are synthetic (synthetic.py), so none are stored: case.json lists every tensor of the UNet, the text encoder and the VAE with its
amplitude, and the configurations; tests/common/text_to_image.rs writes the folder and the single-file form from it. The vocabulary is the real one.
One call of the UNet is kept block by block, so that a failure names the block.
Values are computed in f32 by diffusers 0.42, as its users run it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import clip_vocabulary
import unet as unet_case
from golden import write_or_check, write_run
from synthetic import Spec, fnv1a64

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "text-to-image"
SEED = 5
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False,
      "set_alpha_to_one": False, "num_train_timesteps": 1000}

# What a single-file checkpoint cannot say is what its readers take for granted: 8 heads, 32 groups, text heads 64 wide.
UNET = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [32, 64],
    "cross_attention_dim": 64, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "in_channels": 4, "layers_per_block": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_num_groups": 32, "out_channels": 4, "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
TEXT = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu", "hidden_size": 64,
    "intermediate_size": 96, "num_attention_heads": 1, "num_hidden_layers": 2, "max_position_embeddings": 77, "vocab_size": 49408,
    "layer_norm_eps": 1e-5, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407, "projection_dim": 64,
}
VAE = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "block_out_channels": [32, 32, 32, 32], "in_channels": 3, "latent_channels": 4,
    "layers_per_block": 1, "norm_num_groups": 32, "out_channels": 3, "sample_size": 64, "scaling_factor": 0.18215,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
}

# The inpainting form: as UNET, with a mask and a masked picture behind the latent.
NINE = {**UNET, "in_channels": 9}
# The form of SD 2.x: matrices as projections, heads 64 wide, OpenCLIP's encoder without its last layer, v-prediction, `!` as padding.
SD2 = {
    "unet": {**UNET, "attention_head_dim": [1, 2], "block_out_channels": [64, 128], "cross_attention_dim": 128,
             "use_linear_projection": True, "upcast_attention": True},
    "text_encoder": {**TEXT, "hidden_act": "gelu", "hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 2,
                     "projection_dim": 128},
    "scheduler": {"_class_name": "DDIMScheduler", **SD, "prediction_type": "v_prediction"},
}
# One call of the UNet, block by block: every third row and column, every fifth channel.
BLOCKS = {"prompt": "a photo of a cat", "timestep": 801.0, "seed": 42, "stride": [3, 3, 5]}

LONG = "a very long prompt that goes on and on " * 12 + "and is cut"


def models():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    text = lambda config: CLIPTextModel(CLIPTextConfig(**{k: v for k, v in config.items() if k not in ("architectures", "model_type")}))
    parts = {"unet": UNet2DConditionModel.from_config(UNET), "text_encoder": text(TEXT), "vae": AutoencoderKL.from_config(VAE),
             "unet_sd2": UNet2DConditionModel.from_config(SD2["unet"]), "text_encoder_sd2": text(SD2["text_encoder"])}
    for name in ("text_encoder", "text_encoder_sd2"):
        if not hasattr(parts[name], "text_model"):  # where diffusers 0.42 looks for it when layers are skipped
            object.__setattr__(parts[name], "text_model", parts[name])
    return {name: part.eval() for name, part in parts.items()}


def amplitude(part: str, name: str, shape) -> tuple[float, float]:
    """amp and offset: activations near unit scale, attention far from uniform, every tensor felt."""
    if "embedding.weight" in name:
        return 1.2, 0.0
    if len(shape) == 1:
        norm = "norm" in name and name.endswith("weight")
        return (0.3, 1.0) if norm else (0.2, 0.0)
    fan = int(np.prod(shape[1:]))
    gain = 1.9 if any(k in name for k in ("to_q", "to_k", "q_proj", "k_proj", "time_emb_proj")) else 1.0
    if name in ("conv_out.weight", "decoder.conv_out.weight"):
        gain = 0.6
    return gain * (3.0 / fan) ** 0.5, 0.0


def specs(modules, amplitude=amplitude) -> dict[str, list[Spec]]:
    parts = {}
    for part, module in modules.items():
        parts[part] = []
        for name, tensor in module.state_dict().items():
            if name.endswith("position_ids"):
                continue
            bare = part.startswith("text_encoder") and not name.startswith(("text_model.", "text_projection."))
            stored = f"text_model.{name}" if bare else name
            parts[part].append(Spec(stored, tuple(tensor.shape), *amplitude(part, stored, tensor.shape)))
    return parts


def fill(modules, parts) -> None:
    for part, module in modules.items():
        own = module.state_dict()
        for spec in parts[part]:
            name = spec.name if spec.name in own else spec.name.removeprefix("text_model.")
            own[name].copy_(torch.from_numpy(spec.values(SEED ^ fnv1a64(part.encode()) & 0xFFFF)))


def runs():
    base = {"prompt": "a photo of a cat", "negative": "blurry", "steps": 4, "cfg": 7.5, "seed": 42, "width": 64, "height": 64, "batch": 1}
    for sampler in ("ddim", "pndm", "euler", "heun", "dpmpp-2m", "dpmpp-2m-karras"):
        yield {**base, "name": f"{sampler}-cfg", "sampler": sampler}
        yield {**base, "name": f"{sampler}-plain", "sampler": sampler, "cfg": 1.0, "negative": "", "width": 80, "height": 48}
    for sampler in ("euler-a", "ddpm", "lcm"):
        yield {**base, "name": sampler, "sampler": sampler}
    yield {**base, "name": "own", "sampler": None, "prompt": "café naïve Ünïcode…—test"}
    yield {**base, "name": "odd", "sampler": "ddim", "width": 136, "height": 104, "prompt": "東京 🙂🙂", "steps": 3}
    yield {**base, "name": "empty", "sampler": "ddim", "prompt": "", "negative": "", "steps": 3}
    yield {**base, "name": "long", "sampler": "ddim", "prompt": LONG, "steps": 3}
    yield {**base, "name": "batch", "sampler": "euler-a", "batch": 3, "steps": 3}
    yield {**base, "name": "rescale", "sampler": "ddim", "rescale": 0.7, "steps": 3}
    yield {**base, "name": "image", "sampler": "ddim", "image": True, "strength": 0.6, "steps": 5}
    yield {**base, "name": "image-euler-a", "sampler": "euler-a", "image": True, "strength": 0.5, "steps": 6, "batch": 2}
    yield {**base, "name": "inpaint", "sampler": "euler-a", "image": True, "mask": True, "strength": 0.75, "steps": 4}
    for sampler in ("pndm", "heun", "dpmpp-2m"):
        yield {**base, "name": f"image-{sampler}", "sampler": sampler, "image": True, "strength": 0.7, "steps": 5}
    for sampler in ("ddim", "dpmpp-2m", "euler"):
        yield {**base, "name": f"v-{sampler}", "sampler": sampler, "prediction": "v_prediction", "steps": 3}
    yield {**base, "name": "inpaint-nine", "sampler": "ddim", "image": True, "mask": True, "nine": True, "strength": 1.0, "steps": 3}
    yield {**base, "name": "inpaint-nine-part", "sampler": "pndm", "image": True, "mask": True, "nine": True, "strength": 0.7, "steps": 5}
    yield {**base, "name": "eta", "sampler": "ddim", "eta": 0.6, "steps": 3}
    # Without guidance: diffusers leaves out layers for the prompt only, other tools and this engine for the negative prompt too.
    yield {**base, "name": "clip-skip", "sampler": "ddim", "clip_skip": 1, "cfg": 1.0, "steps": 3}
    yield {**base, "name": "sd2", "sd2": True, "sampler": None, "steps": 3}
    yield {**base, "name": "sd2-euler", "sd2": True, "sampler": "euler", "steps": 3, "width": 80, "height": 48, "prompt": "Café, 東京! 🙂"}
    yield {**base, "name": "sd2-dpmpp-2m-karras", "sd2": True, "sampler": "dpmpp-2m-karras", "steps": 4, "rescale": 0.7}
    yield {**base, "name": "sd2-pndm", "sd2": True, "sampler": "pndm", "steps": 4, "clip_skip": 1, "cfg": 1.0}
    # The first noise given: inpainting starts from it alone, whatever the strength.
    yield {**base, "name": "given", "sampler": "euler", "given": 7, "steps": 3}
    yield {**base, "name": "inpaint-given", "sampler": "ddim", "given": 7, "image": True, "mask": True, "strength": 0.6, "steps": 5}
    yield {**base, "name": "inpaint-nine-given", "sampler": "ddim", "given": 7, "image": True, "mask": True, "nine": True, "strength": 0.6, "steps": 5}
    yield {**base, "name": "inpaint-whole", "sampler": "ddim", "image": True, "mask": True, "strength": 1.0, "steps": 3}


def picture() -> np.ndarray:
    """The picture that image to image starts from: [64, 64, 3] u8, by a rule that the test repeats."""
    y, x, c = np.meshgrid(np.arange(64), np.arange(64), np.arange(3), indexing="ij")
    return ((x * 3 + y * (c + 1) + 40 * c + (x * y) // 16) % 256).astype(np.uint8)


def mask() -> np.ndarray:
    y, x = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    return np.where((x + y >= 40) & (x < 52), 255, 0).astype(np.uint8)


def make(out: Path) -> None:
    import diffusers
    from PIL import Image
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    modules = models()
    parts = specs(modules)
    fill(modules, parts)
    nine = diffusers.UNet2DConditionModel.from_config(NINE).eval()
    state = nine.state_dict()
    wide = Spec("conv_in.weight", tuple(state["conv_in.weight"].shape), *amplitude("unet", "conv_in.weight", state["conv_in.weight"].shape))
    with torch.no_grad():
        for name, tensor in modules["unet"].state_dict().items():
            state[name].copy_(torch.from_numpy(wide.values(SEED ^ fnv1a64(b"unet") & 0xFFFF)) if name == wide.name else tensor)
    parts["unet_nine"] = [wide]
    classes = {"ddim": ("DDIMScheduler", {}), "pndm": ("PNDMScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
               "euler-a": ("EulerAncestralDiscreteScheduler", {}), "heun": ("HeunDiscreteScheduler", {}), "ddpm": ("DDPMScheduler", {}),
               "dpmpp-2m": ("DPMSolverMultistepScheduler", {}), "lcm": ("LCMScheduler", {}),
               "dpmpp-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})}
    own = {"_class_name": "PNDMScheduler", **SD, "skip_prk_steps": True}
    expected, listed = {}, []
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        clip_vocabulary.write_folder(Path(scratch))
        tokenizer = CLIPTokenizer.from_pretrained(scratch)
        clip_vocabulary.write_folder(Path(scratch) / "sd2", "!")
        exclamation = CLIPTokenizer.from_pretrained(Path(scratch) / "sd2")
        kinds = {}
        for kind, name in (("text", "StableDiffusionPipeline"), ("image", "StableDiffusionImg2ImgPipeline"), ("inpaint", "StableDiffusionInpaintPipeline"),
                           ("nine", "StableDiffusionInpaintPipeline"), ("sd2", "StableDiffusionPipeline")):
            kinds[kind] = getattr(diffusers, name)(
                vae=modules["vae"], text_encoder=modules["text_encoder_sd2" if kind == "sd2" else "text_encoder"],
                tokenizer=exclamation if kind == "sd2" else tokenizer,
                unet=nine if kind == "nine" else modules["unet_sd2" if kind == "sd2" else "unet"],
                scheduler=diffusers.PNDMScheduler.from_config(own), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
            kinds[kind].set_progress_bar_config(disable=True)
        for run in runs():
            pipe = kinds["sd2" if run.get("sd2") else "nine" if run.get("nine") else "inpaint" if run.get("mask") else "image" if run.get("image") else "text"]
            from_folder = SD2["scheduler"] if run.get("sd2") else own
            name, extra = classes[run["sampler"]] if run["sampler"] else (from_folder["_class_name"], {})
            if run.get("prediction"):
                extra = {**extra, "prediction_type": run["prediction"]}
            pipe.scheduler = getattr(diffusers, name).from_config(from_folder, **extra)
            args = {"prompt": run["prompt"], "num_inference_steps": run["steps"], "guidance_scale": run["cfg"], "output_type": "latent",
                    "negative_prompt": run["negative"] or None, "num_images_per_prompt": run["batch"],
                    "generator": torch.Generator("cpu").manual_seed(run["seed"])}
            if run.get("image"):
                args |= {"image": Image.fromarray(picture()), "strength": run["strength"]}
            if run.get("mask"):
                args |= {"mask_image": Image.fromarray(mask()), "height": run["height"], "width": run["width"]}
            if not run.get("image"):
                args |= {"height": run["height"], "width": run["width"]}
            if run.get("rescale"):
                args["guidance_rescale"] = run["rescale"]
            if run.get("given"):
                shape = (1, 4, run["height"] // 8, run["width"] // 8)
                args["latents"] = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(run["given"]))
            args |= {key: run[key] for key in ("eta", "clip_skip") if run.get(key)}
            expected[run["name"]] = np.ascontiguousarray(pipe(**args).images.numpy(), np.float32)
            listed.append(run)
        for name, prompt in (("cat", "a photo of a cat"), ("unicode", "café 東京 🙂"), ("empty", ""), ("long", LONG)):
            ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            expected[f"embedding.{name}"] = modules["text_encoder"](ids)[0][0].numpy()[::4, ::3].copy()
            listed.append({"name": f"embedding.{name}", "prompt": prompt, "ids": ids[0].tolist()})
        ids = exclamation("a café", padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        expected["embedding.sd2"] = modules["text_encoder_sd2"](ids)[0][0].numpy()[::4, ::3].copy()
        listed.append({"name": "embedding.sd2", "prompt": "a café", "sd2": True, "ids": ids[0].tolist()})
        ids = tokenizer(BLOCKS["prompt"], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        latent = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(BLOCKS["seed"]))
        taps = unet_case.run(modules["unet"], latent, modules["text_encoder"](ids)[0], BLOCKS["timestep"], None)
        y, x, c = BLOCKS["stride"]
        for name, value in taps.items():
            expected[f"block.{name}"] = np.ascontiguousarray(np.asarray(value)[::y, ::x, ::c], np.float32)
        blocks = {**BLOCKS, "taps": list(taps)}
    case = {"seed": SEED, "unet": UNET, "text_encoder": TEXT, "vae": VAE, "scheduler": own, "sd2": SD2, "runs": listed, "blocks": blocks,
            "tensors": {part: [[s.name, list(s.shape), s.amp, s.offset] for s in all_specs] for part, all_specs in parts.items()}}
    write_run(out, case, expected)


if __name__ == "__main__":
    sys.exit(write_or_check(make, OUT))
