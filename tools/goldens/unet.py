"""UNet2DConditionModel (Stable Diffusion 1.x and 2.x), from diffusers."""

import diffusers
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import LatentConsistencyModelPipeline

from golden import QUIET, Case, Taps, channels_last, fan_in_amp, specs_of
from synthetic import Spec

# Every block type of SD 1.x: convolutions as projections, 8 heads. 32 groups on 64 + 32 channels: groups lie across the seam.
SD1 = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [32, 64, 64],
    "center_input_sample": False,
    "cross_attention_dim": 24,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 8,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
# SD 2.x: matrices as projections, heads 64 wide.
SD2 = {
    **SD1,
    "attention_head_dim": [1, 2],
    "block_out_channels": [64, 128],
    "cross_attention_dim": 40,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "use_linear_projection": True,
    "upcast_attention": True,
}
# What 4 does not divide, lists by level, the other conventions, inpainting's 9 channels, an eps that shows.
ODD = {
    **SD1,
    "attention_head_dim": [2, 3, 5],
    "block_out_channels": [10, 15, 30],
    "cross_attention_dim": 22,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 9,
    "layers_per_block": [1, 2, 1],
    "norm_eps": 1e-1,
    "norm_num_groups": 5,
    "time_embedding_dim": 50,
    "transformer_layers_per_block": [1, 2, 1],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}
# A distilled model: no mid block, a guidance embedding.
DISTILLED = {
    **SD1,
    "attention_head_dim": 3,
    "block_out_channels": [36, 24],
    "cross_attention_dim": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "mid_block_type": None,
    "norm_num_groups": 12,
    "time_cond_proj_dim": 16,
}

# Residual streams with a variance near the epsilons: 1e-5 in resnets and layer norms, 1e-6 in front of transformers.
STREAM = {part: QUIET for part in ("conv_in.", ".conv2.", ".proj_in.", ".proj_out.", ".to_out.", ".ff.net.2.")}


def kind(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(amp, offset) of a tensor: activations stay near unit scale, attention is far from uniform."""
    if "norm" in name:
        return (0.3, 1.0) if name.endswith(".weight") else (0.3, 0.0)
    if name.endswith(".bias"):
        return 0.3, 0.0
    gain = 1.0
    if ".to_q." in name or ".to_k." in name:
        gain = 1.7
    elif ".conv1." in name or ".conv2." in name or "time_emb" in name or ".to_" in name or ".ff." in name or ".proj_" in name:
        gain = 1.5  # after a normalisation, an activation, or an average
    return fan_in_amp(gain, shape), 0.0


def build(config: dict) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config({k: v for k, v in config.items() if k != "_class_name"}).eval()


def tap_names(unet) -> list[str]:
    """Modules in the order of computation."""
    names = ["time_embedding", "conv_in"]
    blocks = [(f"{side}_blocks.{i}", block) for side in ("down", "up") for i, block in enumerate(getattr(unet, f"{side}_blocks"))]
    if unet.mid_block is not None:
        blocks.insert(len(unet.down_blocks), ("mid_block", unet.mid_block))
    for path, block in blocks:
        for n in range(len(block.resnets)):
            names.append(f"{path}.resnets.{n}")
            if n < len(getattr(block, "attentions", ())):
                names.append(f"{path}.attentions.{n}")
        names += [f"{path}.{s}.0" for s in ("downsamplers", "upsamplers") if getattr(block, s, None)]
    return names


@torch.no_grad()
def run(unet, latent, context, timestep: float, guidance: float | None) -> dict:
    """Taps and result; the time embedding after the SiLU that all its readers begin with."""
    dtype = next(unet.parameters()).dtype
    cond = None
    if guidance is not None:
        features = LatentConsistencyModelPipeline.get_guidance_scale_embedding
        cond = features(None, torch.tensor([guidance]), embedding_dim=unet.config.time_cond_proj_dim, dtype=torch.float32).to(dtype)
    with Taps(unet, tap_names(unet)) as seen:
        sample = unet(latent.to(dtype), timestep, context.to(dtype), timestep_cond=cond).sample
    seen["time_embedding"] = torch.nn.functional.silu(torch.from_numpy(seen["time_embedding"])).numpy()[None, None]
    seen["sample"] = channels_last(sample)
    return seen


def make(name, config, runs, seed, tokens=7, ldm=False, adjust=None) -> Case:
    unet = build(config)
    sizes = sorted({size for size, _, _ in runs})
    inputs = [Spec(f"latent.{w}x{h}", (config["in_channels"], h, w), 1.7) for w, h in sizes]
    inputs.append(Spec("context", (tokens, config["cross_attention_dim"]), 1.7))
    specs = specs_of(unet, kind, adjust)
    aliases = {"aliases": {"ldm": alias(unet)}} if ldm else {}
    case = Case(name, "unet", config, f"diffusers {diffusers.__version__} UNet2DConditionModel, float64", seed, specs, inputs,
                limits=(250, 2000), **aliases)
    unet.load_state_dict(case.state_dict())
    if ldm:
        check_ldm(unet, config, case)
    context = case.input("context")
    for (w, h), timestep, guidance in runs:
        latent = case.input(f"latent.{w}x{h}")
        args = (latent, context, timestep, guidance)
        facts = {"op": "unet", "input": f"latent.{w}x{h}", "context": "context", "timestep": timestep, "guidance": guidance,
                 "width": w, "height": h}
        case.add(f"unet.{w}x{h}", facts, run(unet.double(), *args), run(unet.float(), *args), final=("sample",))
    (w, h), timestep, guidance = runs[0]
    case.probes["unet"] = (unet, lambda: torch.from_numpy(
        run(unet, case.input(f"latent.{w}x{h}"), context, timestep, guidance)["sample"]))
    return case


def ldm_name(name: str, layers: list[int], up_attention: list[bool]) -> str:
    """diffusers -> CompVis (ldm/modules/diffusionmodules/openaimodel.py); `layers` by level from the finest."""
    for now, then in (("time_embedding.linear_1.", "time_embed.0."), ("time_embedding.linear_2.", "time_embed.2."),
                      ("conv_norm_out.", "out.0."), ("conv_out.", "out.2.")):
        name = name.replace(now, then)
    if name.startswith("conv_in."):
        name = name.replace("conv_in.", "input_blocks.0.0.")
    if ".resnets." in name:
        for now, then in ((".norm1.", ".in_layers.0."), (".conv1.", ".in_layers.2."), (".time_emb_proj.", ".emb_layers.1."),
                          (".norm2.", ".out_layers.0."), (".conv2.", ".out_layers.3."), (".conv_shortcut.", ".skip_connection.")):
            name = name.replace(now, then)
    name = name.replace("mid_block.attentions.0.", "middle_block.1.")
    name = name.replace("mid_block.resnets.0.", "middle_block.0.").replace("mid_block.resnets.1.", "middle_block.2.")
    index = 1
    for b, count in enumerate(layers):
        for n in range(count):
            name = name.replace(f"down_blocks.{b}.resnets.{n}.", f"input_blocks.{index + n}.0.")
            name = name.replace(f"down_blocks.{b}.attentions.{n}.", f"input_blocks.{index + n}.1.")
        name = name.replace(f"down_blocks.{b}.downsamplers.0.conv.", f"input_blocks.{index + count}.0.op.")
        index += count + 1
    index = 0
    for b, count in enumerate(reversed(layers)):
        for n in range(count + 1):
            name = name.replace(f"up_blocks.{b}.resnets.{n}.", f"output_blocks.{index + n}.0.")
            name = name.replace(f"up_blocks.{b}.attentions.{n}.", f"output_blocks.{index + n}.1.")
        j = 2 if up_attention[b] else 1
        name = name.replace(f"up_blocks.{b}.upsamplers.0.conv.", f"output_blocks.{index + count}.{j}.conv.")
        index += count + 1
    return "model.diffusion_model." + name


def alias(unet) -> dict:
    layers = [len(block.resnets) for block in unet.down_blocks]
    attention = [hasattr(block, "attentions") for block in unet.up_blocks]
    return {name: [ldm_name(name, layers, attention), list(p.shape)] for name, p in unet.state_dict().items()}


def check_ldm(unet, config, case) -> None:
    """diffusers itself must read the CompVis form back to the same tensors."""
    tensors = unet.state_dict()
    checkpoint = {case.head["aliases"]["ldm"][name][0]: tensor for name, tensor in tensors.items()}
    back = convert_ldm_unet_checkpoint(checkpoint, dict(config))
    assert set(back) == set(tensors) and all(torch.equal(back[n], t) for n, t in tensors.items())


CASES = {
    "unet-sd1": lambda: make("unet-sd1", SD1, [((8, 8), 981.0, None), ((12, 4), 1.0, None), ((9, 13), 799.2, None)], seed=51, ldm=True),
    "unet-sd2": lambda: make("unet-sd2", SD2, [((6, 10), 500.0, None), ((5, 5), 20.0, None)], seed=52, ldm=True),
    "unet-quiet": lambda: make("unet-quiet", SD2 | {"block_out_channels": [32, 48], "attention_head_dim": 4, "norm_num_groups": 8},
                               [((6, 4), 321.0, None)], seed=55, adjust=STREAM),
    "unet-odd": lambda: make("unet-odd", ODD, [((7, 5), 333.3, None), ((8, 12), 999.0, None), ((17, 11), 0.0, None)], seed=53, tokens=77),
    "unet-distilled": lambda: make("unet-distilled", DISTILLED, [((4, 6), 259.0, 6.5), ((3, 3), 19.0, None)], seed=54, tokens=2),
}
