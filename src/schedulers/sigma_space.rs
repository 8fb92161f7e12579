//! Samplers whose sample is `x0 + sigma * noise`: Euler, its ancestral form, Heun.

use super::tables::{exponential, interpolate, karras, sigma_to_t, sigmas, timesteps};
use super::{Call, Combination, FinalSigmas, Mix, Prediction, Sampler, Schedule, Scheduler, Spacing, State, Update, finish};

/// Timesteps, and sigmas with the last one behind them.
fn spaced(scheduler: &Scheduler, steps: usize) -> Result<(Vec<f64>, Vec<f64>), String> {
    let config = &scheduler.config;
    let (table, logs) = sigmas(&scheduler.alphas_cumprod);
    let mut list = timesteps(config, steps, true);
    if config.timestep_spacing == Spacing::Leading && list[0] > (table.len() - 1) as f64 {
        return Err(format!("{steps}; timestep {} lies beyond the training's, take fewer steps", list[0]));
    }
    let mut spaced: Vec<f64> = list.iter().map(|&t| interpolate(&table, t)).collect();
    let plain_euler = scheduler.sampler == Sampler::Euler;
    if plain_euler && config.interpolation_type == "log_linear" {
        // One more than steps, as in diffusers: the last step ends at the smallest sigma and not at what follows it.
        spaced = exponential(table[0], table[table.len() - 1], steps + 1);
    }
    let respaced = if scheduler.sampler == Sampler::EulerAncestral {
        None
    } else {
        let (min, max) = (config.sigma_min.unwrap_or(spaced[spaced.len() - 1]), config.sigma_max.unwrap_or(spaced[0]));
        if config.use_karras_sigmas {
            Some(karras(min, max, steps))
        } else if config.use_exponential_sigmas {
            Some(exponential(min, max, steps))
        } else {
            None
        }
    };
    if let Some(respaced) = respaced {
        list = respaced.iter().map(|&s| sigma_to_t(s, &logs)).collect();
        spaced = respaced;
    }
    if plain_euler && config.timestep_type == "continuous" && config.prediction_type == Prediction::VPrediction {
        list = spaced.iter().map(|s| 0.25 * s.ln()).collect();
    }
    let end = if plain_euler && config.final_sigmas_type == FinalSigmas::SigmaMin { table[0] } else { 0.0 };
    spaced.push(end);
    let f32s = |values: Vec<f64>| values.into_iter().map(|v| v as f32 as f64).collect::<Vec<f64>>();
    Ok((f32s(list), f32s(spaced)))
}

fn init_noise_sigma(scheduler: &Scheduler, sigmas: &[f64]) -> f64 {
    let max = sigmas.iter().copied().fold(0.0, f64::max);
    match scheduler.config.timestep_spacing {
        Spacing::Linspace | Spacing::Trailing => max,
        Spacing::Leading => (max * max + 1.0).sqrt(),
    }
}

/// The estimate of the clean sample at `sigma`.
fn denoised(scheduler: &Scheduler, sigma: f64) -> Combination {
    let (x, out) = (Combination::of(State::Sample), Combination::of(State::Output));
    let norm = sigma * sigma + 1.0;
    match scheduler.config.prediction_type {
        Prediction::Epsilon => &x - &(sigma * &out),
        Prediction::Sample => out,
        Prediction::Flow | Prediction::Edm => unreachable!("{}", super::NO_TABLE),
        Prediction::VPrediction => &((1.0 / norm) * &x) - &(sigma / norm.sqrt() * &out),
    }
}

fn known(sigma: f64) -> Mix {
    Mix { signal: 1.0, noise: sigma }
}

fn input_scale(sigma: f64) -> f64 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}

pub(super) fn euler(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    let (list, sigmas) = spaced(scheduler, steps)?;
    let x = Combination::of(State::Sample);
    let call = |i: usize| {
        let (sigma, next) = (sigmas[i], sigmas[i + 1]);
        let predicted = denoised(scheduler, sigma);
        let derivative = (1.0 / sigma) * &(&x - &predicted);
        let update = match scheduler.sampler {
            Sampler::EulerAncestral => {
                let up = (next * next * (sigma * sigma - next * next) / (sigma * sigma)).max(0.0).sqrt();
                let down = (next * next - up * up).max(0.0).sqrt();
                let moved = &x + &((down - sigma) * &derivative);
                Update::new(State::Sample, &moved + &(up * &Combination::of(State::Noise))).drawing()
            }
            _ => Update::new(State::Sample, &x + &((next - sigma) * &derivative)),
        };
        let known = if i + 1 == list.len() { known(0.0) } else { known(next) };
        Call { timestep: list[i], input_scale: input_scale(sigma), predicted, updates: vec![update], known, spread: None }
    };
    let calls = (skip..list.len()).map(call).collect();
    Ok(finish(init_noise_sigma(scheduler, &sigmas), known(sigmas[skip]), calls))
}

pub(super) fn heun(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    let (list, sigmas) = spaced(scheduler, steps)?;
    let x = Combination::of(State::Sample);
    let (sample, slope) = (State::Kept(0), State::Kept(1));
    let mut calls = Vec::new();
    let clipped = |predicted: &Combination| -> (Vec<Update>, Combination) {
        match scheduler.config.clip_sample {
            false => (Vec::new(), predicted.clone()),
            true => {
                let clip = Some(scheduler.config.clip_sample_range);
                (vec![Update { clip, ..Update::new(State::Predicted, predicted.clone()) }], Combination::of(State::Predicted))
            }
        }
    };
    for i in skip..list.len() {
        let (sigma, next) = (sigmas[i], sigmas[i + 1]);
        let last = i + 1 == list.len();
        let predicted = denoised(scheduler, sigma);
        let (mut updates, x0) = clipped(&predicted);
        let derivative = (1.0 / sigma) * &(&x - &x0);
        if next != 0.0 {
            updates.push(Update::new(sample, x.clone()));
            updates.push(Update::new(slope, derivative.clone()));
        }
        updates.push(Update::new(State::Sample, &x + &((next - sigma) * &derivative)));
        let known_after = if last { known(0.0) } else { known(next) };
        calls.push(Call { timestep: list[i], input_scale: input_scale(sigma), predicted, updates, known: known_after, spread: None });
        if !last {
            // The corrector: the mean of the slopes at both ends, from where the step began.
            let predicted = denoised(scheduler, next);
            let (mut updates, x0) = clipped(&predicted);
            let second = (1.0 / next) * &(&x - &x0);
            let mean = 0.5 * &(&Combination::of(slope) + &second);
            updates.push(Update::new(State::Sample, &Combination::of(sample) + &((next - sigma) * &mean)));
            calls.push(Call {
                timestep: list[i + 1],
                input_scale: input_scale(next),
                predicted,
                updates,
                known: known(next),
                spread: None,
            });
        }
    }
    Ok(finish(init_noise_sigma(scheduler, &sigmas), known(sigmas[skip]), calls))
}
