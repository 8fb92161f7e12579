"""tests/data/schedulers: diffusers' schedulers on a toy model.

    python tools/goldens/schedulers.py [--check]

Every case runs a diffusers scheduler over a latent [1, 4, 2, 2] with the model `tanh(0.7 x + 0.3 roll(x, 1)) + 0.1 cos(t / 100)` on the scaled
input (t as f32), noise from one CPU generator: first the start, then the scheduler's own draws. Stored are what the test must find again: the
timesteps, init_noise_sigma, the first four values after every call, all after the last. A case that skips steps starts from
`add_noise(clean, draw)` with the clean latent `sin(1), sin(2), ...`, as image to image does.
"""

import inspect
import json
import sys
from pathlib import Path

import torch

OUT = Path(__file__).resolve().parents[2] / "tests" / "data" / "schedulers" / "cases.json"
SEED = 1234
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def cases():
    """(class, config, steps, skipped steps, eta)"""
    plain = [
        ("DDIMScheduler", {**SD, "set_alpha_to_one": False}),
        ("DDPMScheduler", SD),
        ("PNDMScheduler", {**SD, "skip_prk_steps": True}),
        ("EulerDiscreteScheduler", SD),
        ("EulerAncestralDiscreteScheduler", SD),
        ("HeunDiscreteScheduler", SD),
        ("DPMSolverMultistepScheduler", SD),
        ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}),
        ("LCMScheduler", SD),
    ]
    for name, config in plain:
        for steps, skip in ((7, 0), (20, 0), (10, 3)):
            yield name, config, steps, skip, 0.0
        for spacing in ("leading", "linspace", "trailing"):
            yield name, {**config, "timestep_spacing": spacing}, 6, 0, 0.0
        yield name, {**config, **V}, 5, 1, 0.0
        yield name, {}, 5, 0, 0.0
        yield name, {**config, "beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 500}, 6, 0, 0.0
        if name not in ("PNDMScheduler", "HeunDiscreteScheduler"):
            yield name, {**config, **ZERO_SNR}, 5, 0, 0.0
        if name not in ("PNDMScheduler", "EulerAncestralDiscreteScheduler"):
            yield name, {**config, "prediction_type": "sample"}, 5, 0, 0.0
    betas = [0.001 + 0.00002 * i for i in range(400)]
    yield "DDIMScheduler", {**SD, "set_alpha_to_one": True}, 6, 0, 0.7
    yield "DDIMScheduler", SD, 6, 0, 1.0
    yield "DDIMScheduler", {**SD, "clip_sample": True, "clip_sample_range": 0.8}, 6, 0, 0.0
    yield "DDIMScheduler", {**SD, "trained_betas": betas, "num_train_timesteps": 400}, 6, 0, 0.0
    yield "DDPMScheduler", {**SD, "clip_sample": True, "variance_type": "fixed_large"}, 6, 0, 0.0
    yield "DDPMScheduler", {**SD, "variance_type": "fixed_small_log"}, 6, 0, 0.0
    yield "PNDMScheduler", {**SD, "skip_prk_steps": False}, 8, 0, 0.0
    yield "PNDMScheduler", {**SD, **V, "skip_prk_steps": False, "set_alpha_to_one": True}, 4, 0, 0.0
    yield "PNDMScheduler", {**SD, "skip_prk_steps": True}, 1, 0, 0.0
    yield "PNDMScheduler", {**SD, "skip_prk_steps": True}, 2, 0, 0.0
    yield "PNDMScheduler", {**SD, "skip_prk_steps": True}, 10, 1, 0.0
    for extra in ({"use_karras_sigmas": True}, {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0}, {"use_exponential_sigmas": True},
                  {"interpolation_type": "log_linear"}, {"final_sigmas_type": "sigma_min"}, {**V, "timestep_type": "continuous"}):
        yield "EulerDiscreteScheduler", {**SD, **extra}, 6, 0, 0.0
    yield "HeunDiscreteScheduler", {**SD, "use_karras_sigmas": True}, 6, 0, 0.0
    yield "HeunDiscreteScheduler", {**SD, "use_exponential_sigmas": True}, 6, 1, 0.0
    yield "HeunDiscreteScheduler", {**SD, "clip_sample": True}, 6, 0, 0.0
    for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
        for order in (1, 2, 3):
            for solver in ("midpoint", "heun"):
                if (algorithm, order) == ("sde-dpmsolver", 3):
                    continue
                end = "zero" if algorithm.endswith("++") else "sigma_min"
                config = {**SD, "algorithm_type": algorithm, "solver_order": order, "solver_type": solver, "final_sigmas_type": end}
                yield "DPMSolverMultistepScheduler", config, 6, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "final_sigmas_type": "sigma_min", "solver_order": 3}, 16, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "final_sigmas_type": "sigma_min", "lower_order_final": False}, 6, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "final_sigmas_type": "sigma_min", "euler_at_final": True}, 20, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True}, 6, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "use_exponential_sigmas": True}, 6, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, 6, 0, 0.0
    yield "LCMScheduler", {**SD, "original_inference_steps": 25, "timestep_scaling": 7.0}, 4, 0, 0.0
    # Where numpy's floating point decides which timestep it is.
    yield "DDIMScheduler", {**SD, "timestep_spacing": "trailing"}, 48, 30, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, "timestep_spacing": "trailing"}, 48, 30, 0.0
    yield "LCMScheduler", {**SD, "original_inference_steps": 30}, 22, 8, 0.0
    bounds = {"sigma_min": 0.1, "sigma_max": 10.0}
    for name in ("HeunDiscreteScheduler", "DPMSolverMultistepScheduler"):
        yield name, {**SD, **bounds, "use_karras_sigmas": True}, 5, 0, 0.0
        yield name, {**SD, **bounds, "use_exponential_sigmas": True}, 5, 0, 0.0
    yield "DPMSolverMultistepScheduler", {**SD, **bounds, "use_lu_lambdas": True}, 5, 0, 0.0


def model(x, t):
    t = torch.as_tensor(float(t), dtype=torch.float32)
    rolled = torch.roll(x.reshape(-1), 1).reshape(x.shape)
    return torch.tanh(0.7 * x + 0.3 * rolled) + 0.1 * torch.cos(t / 100)


def run(name, config, steps, skip, eta):
    import diffusers

    scheduler = getattr(diffusers, name).from_config(config)
    generator = torch.Generator("cpu").manual_seed(SEED)
    scheduler.set_timesteps(steps)
    noise = torch.randn((1, 4, 2, 2), generator=generator)
    timesteps = scheduler.timesteps[skip * scheduler.order :]
    if hasattr(scheduler, "set_begin_index"):  # without, a first timestep that appears twice makes diffusers run past the end
        scheduler.set_begin_index(skip * scheduler.order)
    if skip:
        clean = torch.sin(torch.arange(1, 17, dtype=torch.float32)).reshape(1, 4, 2, 2)
        x = scheduler.add_noise(clean, noise, timesteps[:1])
    else:
        x = noise * scheduler.init_noise_sigma
    accepted = inspect.signature(scheduler.step).parameters
    extra = {**({"generator": generator} if "generator" in accepted else {}), **({"eta": eta} if "eta" in accepted else {})}
    first = []
    for t in timesteps:
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, **extra).prev_sample
        first.append([float(v) for v in x.reshape(-1)[:4]])
    return {
        "class": name, "config": config, "steps": steps, "skip": skip, "eta": eta,
        "init_noise_sigma": float(scheduler.init_noise_sigma), "timesteps": [float(t) for t in timesteps],
        "first": first, "last": [float(v) for v in x.reshape(-1)],
    }


def rounded(value):
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return value


def make() -> str:
    import logging

    logging.disable(logging.WARNING)
    rows = []
    for case in cases():
        row = run(*case)
        rows.append(json.dumps({k: v if k == "config" else rounded(v) for k, v in row.items()}, separators=(",", ":")))
    return f'{{"seed":{SEED},"cases":[\n' + ",\n".join(rows) + "\n]}\n"


if __name__ == "__main__":
    if "--check" in sys.argv:
        same = OUT.read_text() == make()
        print("as committed" if same else "differs")
        sys.exit(not same)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(make())
