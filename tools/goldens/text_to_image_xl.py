"""tests/data/text-to-image-xl: final latents of diffusers' pipelines on a tiny model with every block type of SDXL.

    python tools/goldens/text_to_image_xl.py [--check | --sensitivity]

As text_to_image.py, whose amplitudes (`calm` makes some smaller), picture, mask and weights' seed it takes: weights are synthetic, case.json lists the tensors, and
tests/common/text_to_image_xl.rs writes the folder and the single-file form. Kept are the context and the pooled vector of one prompt, and
one call of the UNet block by block. --sensitivity prints how far the latents move when a part of the conditioning is left out or mistaken,
and how far f32 is from f64 and rounded weights are from f32.
Values are computed in f32 by diffusers 0.42, as its users run it.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import clip_vocabulary
import unet as unet_case
from golden import Taps, channels_last, relative_l2, write_or_check, write_run
from synthetic import Spec, fnv1a64
from text_to_image import LONG, SEED, TEXT as TEXT_SD, VAE as VAE_SD, amplitude, fill, mask, picture, specs

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "text-to-image-xl"

# What a single-file checkpoint cannot say is what its readers take for granted: heads 64 wide, 32 groups, this scheduler. Every field of
# the published file is here, those that say nothing too.
UNET = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256, "attention_head_dim": [1, 2, 2], "block_out_channels": [64, 128, 128], "center_input_sample": False,
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_dim": 192,
    "cross_attention_norm": None, "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 1, "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps": 1e-5, "norm_num_groups": 32,
    "num_attention_heads": None, "num_class_embeds": None, "only_cross_attention": False, "out_channels": 4,
    "projection_class_embeddings_input_dim": 1664, "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default", "sample_size": 8, "time_cond_proj_dim": None, "time_embedding_act_fn": None,
    "time_embedding_dim": None, "time_embedding_type": "positional", "timestep_post_act": None, "transformer_layers_per_block": [1, 1, 2],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": None, "use_linear_projection": True,
}
# The inpainting form: as UNET, with a mask and a masked picture behind the latent.
NINE = {**UNET, "in_channels": 9}
TEXT = {**TEXT_SD, "num_hidden_layers": 3}
# The published file's ids are not the tokenizer's; with an end of 2 the pooled position is that of the largest id.
TEXT_2 = {
    "architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", "hidden_act": "gelu", "hidden_size": 128,
    "intermediate_size": 160, "num_attention_heads": 2, "num_hidden_layers": 3, "max_position_embeddings": 77, "vocab_size": 49408,
    "layer_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "projection_dim": 128,
}
VAE = {**VAE_SD, "scaling_factor": 0.13025, "force_upcast": True}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    "use_karras_sigmas": False,
}
SAMPLERS = {"ddim": ("DDIMScheduler", {}), "pndm": ("PNDMScheduler", {}), "euler": ("EulerDiscreteScheduler", {}),
            "euler-a": ("EulerAncestralDiscreteScheduler", {}), "heun": ("HeunDiscreteScheduler", {}),
            "dpmpp-2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True})}
# One call of the UNet, block by block: every third channel; the innermost map has four pixels.
BLOCKS = {"prompt": "a photo of a cat", "timestep": 801.0, "seed": 42, "stride": [1, 1, 3], "time_ids": [64, 64, 0, 0, 64, 64]}


def models():
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = lambda fields: CLIPTextConfig(**{k: v for k, v in fields.items() if k not in ("architectures", "model_type")})
    parts = {"unet": UNet2DConditionModel.from_config(UNET), "text_encoder": CLIPTextModel(config(TEXT)),
             "text_encoder_2": CLIPTextModelWithProjection(config(TEXT_2)), "vae": AutoencoderKL.from_config(VAE)}
    return {name: part.eval() for name, part in parts.items()}


def calm(part: str, name: str, shape) -> tuple[float, float]:
    """As `amplitude`, where that would make a rounding error a difference: the context has no norm behind it, and these latents are small."""
    amp, offset = amplitude(part, name, shape)
    gains = {"attn2.to_k.": 0.8, "to_q.": 1.0 if part == "vae" else 1.3, "to_k.": 1.0 if part == "vae" else 1.3, "q_proj.": 1.3, "k_proj.": 1.3,
             "conv_out.weight": 0.4 if part == "unet" else None}
    gain = next((gain for key, gain in gains.items() if key in name and gain), None)
    return (amp, offset) if gain is None or len(shape) == 1 else (gain * (3.0 / int(np.prod(shape[1:]))) ** 0.5, offset)


def widened(unet):
    """The inpainting form, which shares all but the first layer, and the list of what is its own."""
    nine = type(unet).from_config(NINE).eval()
    for name, child in unet.named_children():
        if name != "conv_in":
            setattr(nine, name, child)
    weight = nine.conv_in.weight
    wide = Spec("conv_in.weight", tuple(weight.shape), *calm("unet", "conv_in.weight", weight.shape))
    weight.copy_(torch.from_numpy(wide.values(SEED ^ fnv1a64(b"unet") & 0xFFFF)))
    nine.conv_in.bias.copy_(unet.conv_in.bias)
    return nine, [wide]


def runs():
    base = {"prompt": "a photo of a cat", "negative": None, "steps": 4, "cfg": 5.0, "seed": 42, "width": 64, "height": 64, "batch": 1}
    yield {**base, "name": "own", "sampler": None}
    yield {**base, "name": "negative", "sampler": "ddim", "negative": "blurry"}
    yield {**base, "name": "empty-negative", "sampler": "ddim", "negative": ""}
    yield {**base, "name": "plain", "sampler": "euler", "cfg": 1.0, "width": 80, "height": 48}
    yield {**base, "name": "odd", "sampler": "ddim", "negative": "blurry", "width": 136, "height": 104, "steps": 3}
    yield {**base, "name": "dpmpp-2m-karras", "sampler": "dpmpp-2m-karras", "negative": "blurry"}
    yield {**base, "name": "euler-a", "sampler": "euler-a", "batch": 2, "steps": 3}
    yield {**base, "name": "heun", "sampler": "heun", "negative": "blurry", "steps": 3}
    yield {**base, "name": "pndm", "sampler": "pndm"}
    yield {**base, "name": "long", "sampler": "ddim", "prompt": LONG, "steps": 3}
    yield {**base, "name": "unicode", "sampler": "euler", "prompt": "café 東京 🙂🙂 Ünïcode…—test", "negative": "Ünscharf!", "steps": 3}
    yield {**base, "name": "rescale", "sampler": "ddim", "rescale": 0.7, "steps": 3}
    # Without guidance: diffusers leaves out layers for the prompt only, other tools and this engine for the negative prompt too.
    yield {**base, "name": "clip-skip", "sampler": "ddim", "clip_skip": 1, "cfg": 1.0, "steps": 3}
    yield {**base, "name": "image", "sampler": "ddim", "negative": "blurry", "image": True, "strength": 0.6, "steps": 5}
    yield {**base, "name": "image-euler-a", "sampler": "euler-a", "image": True, "strength": 0.5, "steps": 6, "batch": 2}
    inpaint = {**base, "image": True, "mask": True}
    yield {**inpaint, "name": "inpaint", "sampler": "euler-a", "strength": 0.75}
    # diffusers' own strength for SDXL: the first step is left out, and the picture is in the first latent.
    yield {**inpaint, "name": "inpaint-default", "sampler": "euler", "negative": "blurry", "strength": 0.9999, "batch": 2}
    yield {**inpaint, "name": "inpaint-whole", "sampler": "ddim", "negative": "blurry", "strength": 1.0, "steps": 3}
    yield {**inpaint, "name": "inpaint-nine", "sampler": "ddim", "nine": True, "strength": 1.0, "steps": 3, "batch": 2}
    # Picture and mask are resized; to this size Pillow 13 takes rows first, as all before it.
    yield {**inpaint, "name": "inpaint-resized", "sampler": "ddim", "negative": "blurry", "strength": 0.8, "steps": 5, "width": 136, "height": 104}
    yield {**inpaint, "name": "inpaint-nine-part", "sampler": "pndm", "negative": "blurry", "nine": True, "strength": 0.7, "steps": 5}


def pipelines(modules, scratch: Path) -> dict:
    """`text`, `image`, `inpaint` and `nine`: diffusers' pipelines on one set of modules; the last has a UNet of its own."""
    import diffusers
    from transformers import CLIPTokenizer

    clip_vocabulary.write_folder(scratch / "tokenizer")
    clip_vocabulary.write_folder(scratch / "tokenizer_2", "!")
    parts = {name: part for name, part in modules.items() if name != "unet_nine"}
    shared = {**parts, **{name: CLIPTokenizer.from_pretrained(scratch / name) for name in ("tokenizer", "tokenizer_2")},
              "force_zeros_for_empty_prompt": True, "add_watermarker": False}
    scheduler = lambda: diffusers.EulerDiscreteScheduler.from_config(SCHEDULER)
    kinds = {"text": diffusers.StableDiffusionXLPipeline(**shared, scheduler=scheduler()),
             "image": diffusers.StableDiffusionXLImg2ImgPipeline(**shared, scheduler=scheduler(), requires_aesthetics_score=False),
             "inpaint": diffusers.StableDiffusionXLInpaintPipeline(**shared, scheduler=scheduler(), requires_aesthetics_score=False),
             "nine": diffusers.StableDiffusionXLInpaintPipeline(**{**shared, "unet": modules["unet_nine"]}, scheduler=scheduler(),
                                                                requires_aesthetics_score=False)}
    for pipe in kinds.values():
        pipe.set_progress_bar_config(disable=True)
    return kinds


def latents(kinds, run) -> np.ndarray:
    import diffusers
    from PIL import Image

    pipe = kinds["nine" if run.get("nine") else "inpaint" if run.get("mask") else "image" if run.get("image") else "text"]
    name, extra = SAMPLERS[run["sampler"]] if run["sampler"] else (SCHEDULER["_class_name"], {})
    pipe.scheduler = getattr(diffusers, name).from_config(SCHEDULER, **extra)
    args = {"prompt": run["prompt"], "negative_prompt": run["negative"], "num_inference_steps": run["steps"], "guidance_scale": run["cfg"],
            "num_images_per_prompt": run["batch"], "generator": torch.Generator("cpu").manual_seed(run["seed"]), "output_type": "latent"}
    if run.get("image"):
        args |= {"image": Image.fromarray(picture()), "strength": run["strength"]}
    if run.get("mask"):
        args["mask_image"] = Image.fromarray(mask())
    if run.get("mask") or not run.get("image"):
        args |= {"height": run["height"], "width": run["width"]}
    if run.get("rescale"):
        args["guidance_rescale"] = run["rescale"]
    if run.get("clip_skip"):
        args["clip_skip"] = run["clip_skip"]
    return np.ascontiguousarray(pipe(**args).images.numpy())


def encoded(kinds, prompt: str):
    """Context [1, 77, 192] and pooled vector [1, 128]."""
    context, _, pooled, _ = kinds["text"].encode_prompt(prompt, do_classifier_free_guidance=False)
    return context, pooled


def taps(unet, context, pooled) -> dict[str, np.ndarray]:
    """Of one call, in the order of computation; the time embedding with what is added to it, after the SiLU that all its readers begin with."""
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator("cpu").manual_seed(BLOCKS["seed"]))
    added = {"text_embeds": pooled, "time_ids": torch.tensor([BLOCKS["time_ids"]], dtype=torch.float32)}
    with Taps(unet, ["add_embedding", *unet_case.tap_names(unet)]) as seen:
        sample = unet(latent, BLOCKS["timestep"], context, added_cond_kwargs=added).sample
    own, more = seen.pop("time_embedding"), seen.pop("add_embedding")
    embedding = torch.nn.functional.silu(torch.from_numpy(own + more)).numpy()
    seen = {"add_embedding": more[None, None], "time_embedding": embedding[None, None], **seen}
    seen["sample"] = channels_last(sample)
    return seen


@contextlib.contextmanager
def filled():
    """Modules with their weights, the list of those, and the pipelines."""
    torch.manual_seed(0)
    modules = models()
    parts = specs(modules, calm)
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        fill(modules, parts)
        modules["unet_nine"], parts["unet_nine"] = widened(modules["unet"])
        yield modules, parts, pipelines(modules, Path(scratch))


def make(out: Path) -> None:
    expected = {}
    with filled() as (modules, parts, kinds):
        listed = list(runs())
        for run in listed:
            expected[run["name"]] = latents(kinds, run)
        ids = {}
        for name in ("tokenizer", "tokenizer_2"):
            tokens = getattr(kinds["text"], name)(BLOCKS["prompt"], padding="max_length", max_length=77, truncation=True)
            ids[name] = tokens.input_ids
        context, pooled = encoded(kinds, BLOCKS["prompt"])
        expected |= {"context.own": context[0].numpy().copy(), "pooled.own": pooled[0].numpy().copy()}
        y, x, c = BLOCKS["stride"]
        shapes = []
        for name, value in taps(modules["unet"], context, pooled).items():
            shapes.append([name, list(value.shape)])
            expected[f"block.{name}"] = np.ascontiguousarray(value[::y, ::x, ::c], np.float32)
        index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    case = {"seed": SEED, "model_index": index, "unet": UNET, "text_encoder": TEXT, "text_encoder_2": TEXT_2, "vae": VAE,
            "scheduler": SCHEDULER, "runs": listed, "own": {"prompt": BLOCKS["prompt"], "ids": ids["tokenizer"], "ids_2": ids["tokenizer_2"]},
            "blocks": {**BLOCKS, "taps": shapes},
            "tensors": {part: [[s.name, list(s.shape), s.amp, s.offset] for s in all_specs] for part, all_specs in parts.items()}}
    write_run(out, case, expected)


@contextlib.contextmanager
def instead(tensor, value):
    """Another value in a tensor for a while."""
    before = tensor.detach().clone()
    tensor.copy_(value)
    try:
        yield
    finally:
        tensor.copy_(before)


@contextlib.contextmanager
def hooked(handle):
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def swapped(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def all_of(*managers):
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


def mistakes(modules, kinds):
    """Name and context manager of everything that must show."""
    unet, second = modules["unet"], modules["text_encoder_2"]

    def added(change):
        def hook(_module, args, kwargs):
            given = dict(kwargs["added_cond_kwargs"])
            change(given)
            return args, {**kwargs, "added_cond_kwargs": given}
        return hooked(unet.register_forward_pre_hook(hook, with_kwargs=True))

    def context(change):
        def hook(_module, args, kwargs):
            return args, {**kwargs, "encoder_hidden_states": change(kwargs["encoder_hidden_states"])}
        return hooked(unet.register_forward_pre_hook(hook, with_kwargs=True))

    def zero_first(value):
        return torch.cat([0 * value[..., :64], value[..., 64:]], -1)

    def zero_second(value):
        return torch.cat([value[..., :64], 0 * value[..., 64:]], -1)

    def reorder(order):
        return lambda given: given.update(time_ids=given["time_ids"][:, order])

    def gelu(change):
        functions = [layer.mlp.activation_fn for layer in second.text_model.encoder.layers]
        return all_of(*(hooked(f.register_forward_hook(lambda _module, args, _out: change(args[0]))) for f in {id(f): f for f in functions}.values()))

    last = second.text_model.encoder.layers[-1]
    yield "added embedding zero", lambda: hooked(unet.add_embedding.register_forward_hook(lambda _m, _i, out: 0 * out))
    yield "pooled zero", lambda: added(lambda given: given.update(text_embeds=0 * given["text_embeds"]))
    yield "text_projection zero", lambda: instead(second.text_projection.weight, 0 * second.text_projection.weight)
    yield "text_projection transposed", lambda: instead(second.text_projection.weight, second.text_projection.weight.T.clone())
    yield "encoder 2's last layer left out", lambda: hooked(last.register_forward_hook(lambda _m, args, _out: args[0]))
    yield "encoder 2's final norm left out", lambda: hooked(second.text_model.final_layer_norm.register_forward_hook(lambda _m, args, _o: args[0]))
    yield "pooled at the first padding", lambda: swapped(second.text_model, "eos_token_id", 0)
    yield "time ids zero", lambda: added(lambda given: given.update(time_ids=0 * given["time_ids"]))
    yield "time ids: crop last", lambda: added(reorder([0, 1, 4, 5, 2, 3]))
    yield "time ids: width first", lambda: added(reorder([1, 0, 3, 2, 5, 4]))
    yield "time ids: sine first", lambda: swapped(unet.add_time_proj, "flip_sin_to_cos", False)
    yield "context of encoder 1 zero", lambda: context(zero_first)
    yield "context of encoder 2 zero", lambda: context(zero_second)
    yield "context after the last layers", lambda: swapped(kinds["text"], "encode_prompt", lambda **args: type(kinds["text"]).encode_prompt(
        kinds["text"], **{**args, "clip_skip": -1}))
    yield "encoder 2 padded with the end", lambda: swapped(kinds["text"].tokenizer_2, "pad_token", "<|endoftext|>")
    yield "encoder 1 padded with !", lambda: swapped(kinds["text"].tokenizer, "pad_token", "!")
    yield "encoder 2 with quick_gelu", lambda: gelu(lambda x: x * torch.sigmoid(1.702 * x))
    yield "encoder 2 with tanh gelu", lambda: gelu(lambda x: torch.nn.functional.gelu(x, approximate="tanh"))
    yield "None as the negative encoded as empty", lambda: zeros(kinds, False)
    yield "zeros as every negative", lambda: swapped(kinds["text"], "encode_prompt", lambda **args: type(kinds["text"]).encode_prompt(
        kinds["text"], **{**args, "negative_prompt": None}))


@contextlib.contextmanager
def zeros(kinds, force: bool):
    kinds["text"].register_to_config(force_zeros_for_empty_prompt=force)
    try:
        yield
    finally:
        kinds["text"].register_to_config(force_zeros_for_empty_prompt=True)


def sensitivity() -> None:
    """Relative L2 of what each mistake changes."""
    with filled() as (modules, _, kinds):
        tried = [run for run in runs() if run["name"] in ("own", "negative", "empty-negative", "plain")]
        right = {run["name"]: latents(kinds, run) for run in tried}
        print(f"{'':40}" + "".join(f"{run['name']:>16}" for run in tried))
        for name, mistake in mistakes(modules, kinds):
            with mistake():
                wrong = [relative_l2(latents(kinds, run), right[run["name"]]) for run in tried]
            print(f"{name:40}" + "".join(f"{value:16.1e}" for value in wrong), flush=True)
        assert all(np.array_equal(latents(kinds, run), right[run["name"]]) for run in tried), "a mistake stayed"
        right = {run["name"]: latents(kinds, run) for run in runs()}
        halves = {}
        weights = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in modules.items()}
        for kind in (torch.float16, torch.bfloat16):
            for module in modules.values():
                for tensor in module.parameters():
                    tensor.copy_(tensor.to(kind))
            halves[kind] = {run["name"]: latents(kinds, run) for run in runs()}
            for name, module in modules.items():
                module.load_state_dict(weights[name])
        for module in modules.values():
            module.double()
        draw = torch.randn
        single = lambda *args, **kwargs: draw(*args, **{**kwargs, "dtype": torch.float32}).to(kwargs.get("dtype") or torch.float32)
        print(f"{'':20}{'f32 to f64':>12}{'f16 weights':>14}{'bf16 weights':>14}")
        with swapped(torch, "randn", single):
            for run in runs():
                name = run["name"]
                print(f"{name:20}{relative_l2(right[name], latents(kinds, run)):12.1e}"
                      + "".join(f"{relative_l2(half[name], right[name]):14.1e}" for half in halves.values()), flush=True)


if __name__ == "__main__":
    sys.exit(sensitivity() if "--sensitivity" in sys.argv else write_or_check(make, OUT))
