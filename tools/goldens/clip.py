"""CLIP text encoders (SD 1.x: quick GELU; SD 2.x: OpenCLIP, GELU, penultimate layer), from transformers."""

import torch
import transformers
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from transformers import CLIPTextConfig, CLIPTextModel

from golden import QUIET, Case, fan_in_amp, specs_of

SD1 = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 61,
    "hidden_size": 128,
    "intermediate_size": 180,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 59,
    "eos_token_id": 60,
    "pad_token_id": 60,
}
# Heads of 20 and 6 channels; an eps that shows; as many positions as Stable Diffusion has.
ODD = {**SD1, "hidden_size": 42, "num_attention_heads": 7, "intermediate_size": 99, "max_position_embeddings": 77,
       "layer_norm_eps": 1e-2, "hidden_act": "gelu"}
SD2 = {**SD1, "hidden_act": "gelu", "num_hidden_layers": 2}
Q_K_V = ("q_proj", "k_proj", "v_proj")


def kind(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(amp, offset) of a tensor: activations stay near unit scale, attention is far from uniform."""
    if "norm" in name:
        return (0.3, 1.0) if name.endswith(".weight") else (0.3, 0.0)
    if name.endswith(".bias"):
        return 0.3, 0.0
    if "embedding" in name:
        return (1.2 if "token" in name else 0.8), 0.0
    return fan_in_amp(2.0 if "q_proj" in name or "k_proj" in name else 1.3, shape), 0.0


def order(spec) -> tuple:
    """q, k, v in the order in which OpenCLIP holds them; everything else as it was."""
    at = next((i for i, p in enumerate(Q_K_V) if p in spec.name), -1)
    return (spec.name.replace(Q_K_V[at], "?") if at >= 0 else "", at)


def arranged(specs: list) -> list:
    fused = sorted((s for s in specs if order(s)[0]), key=order)
    return [s for s in specs if not order(s)[0]] + fused


def plain(name: str) -> str:
    return name.removeprefix("text_model.")


def open_clip_name(name: str) -> str:
    """transformers (without `text_model.`) -> OpenCLIP (open_clip/transformer.py)"""
    for now, then in (("embeddings.token_embedding.", "token_embedding."), ("embeddings.position_embedding.weight", "positional_embedding"),
                      ("final_layer_norm.", "ln_final."), ("encoder.layers.", "transformer.resblocks."), (".layer_norm1.", ".ln_1."),
                      (".layer_norm2.", ".ln_2."), (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."),
                      (".self_attn.out_proj.", ".attn.out_proj.")):
        name = name.replace(now, then)
    for projection in Q_K_V:
        name = name.replace(f".self_attn.{projection}.", ".attn.in_proj_")
    return name


@torch.no_grad()
def run(model, tokens: list[int], skip: int) -> dict:
    """Taps and result: what Stable Diffusion hands to the UNet."""
    states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    used = len(states) - 1 - skip
    seen = {f"encoder.layers.{i}": states[i + 1].numpy() for i in range(used)}
    text = getattr(model, "text_model", model)
    seen["embedding"] = text.final_layer_norm(states[used]).numpy()
    return seen


def make(name, config, runs, seed, adjust=None, aliases=()) -> Case:
    torch.manual_seed(0)
    # An OpenCLIP file has one layer more than the encoder that was trained with.
    file_layers = config["num_hidden_layers"] + ("open_clip" in aliases)
    model = CLIPTextModel(CLIPTextConfig(**{**config, "num_hidden_layers": file_layers})).eval()
    specs = arranged(specs_of(model, kind, adjust))
    forms = {}
    if "ldm" in aliases:
        forms["ldm"] = {s.name: ["cond_stage_model.transformer.text_model." + plain(s.name), list(s.shape)] for s in specs}
        forms["bare"] = {s.name: [plain(s.name), list(s.shape)] for s in specs}
    forms["prefixed"] = {s.name: ["text_model." + plain(s.name), list(s.shape)] for s in specs}
    if "open_clip" in aliases:
        fused = lambda s: [3 * s.shape[0], *s.shape[1:]] if any(p in s.name for p in Q_K_V) else list(s.shape)
        forms["open_clip"] = {s.name: ["cond_stage_model.model." + open_clip_name(plain(s.name)), fused(s)] for s in specs}
    case = Case(name, "clip_text", config, f"transformers {transformers.__version__} CLIPTextModel, float64", seed, specs, (), aliases=forms)
    model.load_state_dict(case.state_dict())
    if "open_clip" in aliases:
        check_open_clip(model, case)
    skipped = file_layers - config["num_hidden_layers"]
    for i, (tokens, skip) in enumerate(runs):
        want, f32 = run(model.double(), tokens, skip + skipped), run(model.float(), tokens, skip + skipped)
        facts = {"op": "text", "input": "tokens", "width": len(tokens), "height": 1, "tokens": tokens, "clip_skip": skip}
        case.add(f"text.{i}", facts, want, f32, final=("embedding",))
    case.probes["text"] = (model, lambda: run(model, runs[0][0], runs[0][1] + skipped)["embedding"])
    return case


def check_open_clip(model, case) -> None:
    """diffusers itself must read the OpenCLIP form back to the same tensors."""
    checkpoint = {}
    for name, tensor in ((s.name, model.state_dict()[s.name]) for s in case.tensors):
        target = case.head["aliases"]["open_clip"][name][0]
        checkpoint[target] = torch.cat([checkpoint[target], tensor]) if target in checkpoint else tensor
    back = convert_open_clip_checkpoint(model, checkpoint, prefix="cond_stage_model.model.")
    for name, tensor in model.state_dict().items():
        read = back.get("text_model." + plain(name), back.get(plain(name)))
        assert read is not None and torch.equal(read, tensor), name


PROMPT = [59, 3, 14, 15, 9, 26, 5, 60, 60, 60, 60, 60, 60, 60, 60, 60]

CASES = {
    "clip-sd1": lambda: make("clip-sd1", SD1, [(PROMPT, 0), (PROMPT, 1), ([59, 60] + [60] * 14, 0), ([59, 7, 60], 2)], seed=31,
                             adjust={"embedding": QUIET}, aliases=("ldm",)),
    "clip-sd2": lambda: make("clip-sd2", SD2, [(PROMPT, 0), (PROMPT, 1)], seed=32, aliases=("open_clip",)),
    "clip-odd": lambda: make("clip-odd", ODD, [([59] + [i % 58 for i in range(2, 77)] + [60], 0), ([59], 0)], seed=33),
}
