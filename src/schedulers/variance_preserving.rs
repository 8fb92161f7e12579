//! Samplers whose sample keeps unit variance: DDIM, DDPM, PNDM, LCM.

use super::tables::{from_end_to_end, timesteps};
use super::{Call, Combination, Mix, Schedule, Scheduler, Spread, State, Update, finish, free_slot};

fn mix(a: f64) -> Mix {
    Mix { signal: a.sqrt(), noise: (1.0 - a).sqrt() }
}

/// Calls at `list` after the first `skip` of them; `updates(i, t, x0, eps, clean)` gives what follows the call at index i of the whole
/// list, `x0` being the estimate of the clean sample (clipped where the config says so).
fn calls(
    scheduler: &Scheduler,
    list: &[f64],
    skip: usize,
    mut updates: impl FnMut(usize, f64, &Combination, &Combination) -> Result<Vec<Update>, String>,
) -> Result<Schedule, String> {
    let mut calls = Vec::new();
    for (i, &t) in list.iter().enumerate().skip(skip) {
        let (predicted, eps) = scheduler.estimates(scheduler.alpha(t, 1.0)?);
        let clip = scheduler
            .config
            .clip_sample
            .then(|| Update { clip: Some(scheduler.config.clip_sample_range), ..Update::new(State::Predicted, predicted.clone()) });
        let x0 = if clip.is_some() { Combination::of(State::Predicted) } else { predicted.clone() };
        let all = clip.into_iter().chain(updates(i, t, &x0, &eps)?).collect();
        let known = match list.get(i + 1) {
            Some(&next) => mix(scheduler.alpha(next, 1.0)?),
            None => Mix { signal: 1.0, noise: 0.0 },
        };
        calls.push(Call { timestep: t, input_scale: 1.0, predicted, updates: all, known, spread: None });
    }
    let start = mix(scheduler.alpha(list[skip], 1.0)?);
    Ok(finish(1.0, start, calls))
}

pub(super) fn ddim(scheduler: &Scheduler, steps: usize, skip: usize, eta: f64) -> Result<Schedule, String> {
    let config = &scheduler.config;
    let list = timesteps(config, steps, false);
    let last = if config.set_alpha_to_one { 1.0 } else { scheduler.alphas_cumprod[0] };
    calls(scheduler, &list, skip, |_, t, x0, eps| {
        let previous = t - (config.num_train_timesteps / steps) as f64;
        let (a, a_prev) = (scheduler.alpha(t, last)?, scheduler.alpha(previous, last)?);
        // Equations 12 and 16.
        let std = eta * ((1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev)).max(0.0).sqrt();
        let direction = (1.0 - a_prev - std * std).max(0.0).sqrt();
        let value = &(a_prev.sqrt() * x0) + &(direction * eps);
        let update = Update::new(State::Sample, &value + &(std * &Combination::of(State::Noise)));
        Ok(vec![if eta > 0.0 { update.drawing() } else { update }])
    })
}

/// Equation 7 of DDPM for the call at `list[i]`: the mean, and the larger and the smaller variance of the formula.
fn posterior(scheduler: &Scheduler, list: &[f64], i: usize, x0: &Combination) -> Result<(Combination, f64, f64), String> {
    let previous = list.get(i + 1).copied().unwrap_or(-1.0);
    let (a, a_prev) = (scheduler.alpha(list[i], 1.0)?, scheduler.alpha(previous, 1.0)?);
    let alpha = a / a_prev;
    let beta = 1.0 - alpha;
    let of_x0 = a_prev.sqrt() * beta / (1.0 - a);
    let of_x = alpha.sqrt() * (1.0 - a_prev) / (1.0 - a);
    let mean = &(of_x0 * x0) + &(of_x * &Combination::of(State::Sample));
    Ok((mean, beta, (1.0 - a_prev) / (1.0 - a) * beta))
}

pub(super) fn ddpm(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    let config = &scheduler.config;
    let list = timesteps(config, steps, false);
    calls(scheduler, &list, skip, |i, t, x0, _| {
        let (mean, large, small) = posterior(scheduler, &list, i, x0)?;
        if t <= 0.0 {
            return Ok(vec![Update::new(State::Sample, mean)]);
        }
        let variance = match config.variance_type.as_deref() {
            Some("fixed_large") => large,
            _ => small.max(1e-20),
        };
        Ok(vec![Update::new(State::Sample, &mean + &(variance.sqrt() * &Combination::of(State::Noise))).drawing()])
    })
}

/// DDPM with the learned variance, whose logarithm lies between those of the formula's two.
pub(super) fn ddpm_learned(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    if steps < 2 {
        return Err(format!("{steps}; ddpm with a learned variance takes 2 at least"));
    }
    let list = from_end_to_end(scheduler.config.num_train_timesteps, steps);
    let mut spreads = Vec::new();
    let mut schedule = calls(scheduler, &list, skip, |i, _, x0, _| {
        let (mean, large, small) = posterior(scheduler, &list, i, x0)?;
        if i + 1 == list.len() {
            spreads.push(None);
            return Ok(vec![Update::new(State::Sample, mean)]);
        }
        // Of the standard deviation: half of `f ln(large) + (1 - f) ln(small)` with f = (v + 1) / 2.
        spreads.push(Some(Spread { base: 0.25 * (large.ln() + small.ln()), slope: 0.25 * (large.ln() - small.ln()) }));
        Ok(vec![Update::new(State::Sample, &mean + &Combination::of(State::Noise)).drawing()])
    })?;
    schedule.calls.iter_mut().zip(spreads).for_each(|(call, spread)| call.spread = spread);
    Ok(schedule)
}

pub(super) fn lcm(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    let config = &scheduler.config;
    let original = config.original_inference_steps;
    if original == 0 || original > config.num_train_timesteps {
        return Err(format!("original_inference_steps is {original}"));
    }
    if steps > original {
        return Err(format!("{steps}; an LCM takes at most {original}, and 4 to 8 are usual"));
    }
    let k = config.num_train_timesteps / original;
    // `floor(linspace(0, original, steps, endpoint=False))` in floating point, as numpy has it.
    let skipped = |i: usize| (i as f64 * (original as f64 / steps as f64)).floor() as usize;
    let list: Vec<f64> = (0..steps).map(|i| ((original - skipped(i)) * k - 1) as f64).collect();
    calls(scheduler, &list, skip, |i, t, x0, _| {
        const SIGMA_DATA: f64 = 0.5;
        let scaled = t * config.timestep_scaling;
        let norm = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (c_skip, c_out) = (SIGMA_DATA * SIGMA_DATA / norm, scaled / norm.sqrt());
        let denoised = &(c_out * x0) + &(c_skip * &Combination::of(State::Sample));
        let Some(&next) = list.get(i + 1) else { return Ok(vec![Update::new(State::Sample, denoised)]) };
        let a = scheduler.alpha(next, 1.0)?;
        let noisy = &(a.sqrt() * &denoised) + &((1.0 - a).sqrt() * &Combination::of(State::Noise));
        Ok(vec![Update::new(State::Sample, noisy).drawing()])
    })
}

/// Timesteps of the Runge-Kutta calls and of the multistep calls.
fn pndm_timesteps(scheduler: &Scheduler, steps: usize) -> Result<(Vec<f64>, Vec<f64>), String> {
    let config = &scheduler.config;
    let mut base = timesteps(config, steps, false);
    base.reverse();
    let n = base.len();
    if config.skip_prk_steps {
        // The second highest timestep is visited twice.
        let mut list = base.clone();
        if n > 1 {
            list.insert(n - 1, base[n - 2]);
        }
        list.reverse();
        return Ok((Vec::new(), list));
    }
    if n < 4 {
        return Err(format!("{steps}; pndm with Runge-Kutta steps takes 4 at least"));
    }
    let half = (config.num_train_timesteps / steps / 2) as f64;
    let doubled: Vec<f64> = base[n - 4..].iter().flat_map(|&t| [t, t + half]).collect();
    let repeated: Vec<f64> = doubled[..doubled.len() - 1].iter().flat_map(|&t| [t, t]).collect();
    let prk = repeated[1..repeated.len() - 1].iter().rev().copied().collect();
    Ok((prk, base[..n - 3].iter().rev().copied().collect()))
}

pub(super) fn pndm(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    let config = &scheduler.config;
    let (prk, plms) = pndm_timesteps(scheduler, steps)?;
    let list: Vec<f64> = prk.iter().chain(&plms).copied().collect();
    let last = if config.set_alpha_to_one { 1.0 } else { scheduler.alphas_cumprod[0] };
    let stride = (config.num_train_timesteps / steps) as f64;
    // Equation 9, from `x` at `t` to `previous`.
    let transition = |x: &Combination, t: f64, previous: f64, output: &Combination| -> Result<Combination, String> {
        let (a, a_prev) = (scheduler.alpha(t, last)?, scheduler.alpha(previous, last)?);
        let eps = match config.prediction_type {
            super::Prediction::VPrediction => &(a.sqrt() * output) + &((1.0 - a).sqrt() * x),
            _ => output.clone(),
        };
        let denominator = a * (1.0 - a_prev).sqrt() + (a * (1.0 - a) * a_prev).sqrt();
        Ok(&((a_prev / a).sqrt() * x) - &((a_prev - a) / denominator * &eps))
    };
    let out = Combination::of(State::Output);
    // What is kept: outputs, oldest first; the sample a step began from; the Runge-Kutta sum.
    let mut outputs: Vec<State> = Vec::new();
    let (mut start, mut sum): (Option<State>, Option<State>) = (None, None);
    let unclipped = Scheduler { config: super::SchedulerConfig { clip_sample: false, ..config.clone() }, ..scheduler.clone() };
    let mut counter = 0;
    calls(&unclipped, &list, skip, |_, now, _, _| {
        let mut updates = Vec::new();
        let keep = |value: Combination, used: &[State], updates: &mut Vec<Update>| {
            let slot = free_slot(used);
            updates.push(Update::new(slot, value));
            slot
        };
        let all = |outputs: &[State], start: Option<State>, sum: Option<State>| -> Vec<State> {
            outputs.iter().copied().chain(start).chain(sum).collect()
        };
        let next = if counter < prk.len() {
            let previous = now - if counter % 2 == 1 { 0.0 } else { (config.num_train_timesteps / steps / 2) as f64 };
            let from = prk[counter / 4 * 4];
            let mut direction = out.clone();
            match counter % 4 {
                0 => {
                    let used = all(&outputs, None, sum);
                    start = Some(keep(Combination::of(State::Sample), &used, &mut updates));
                    let used = all(&outputs, start, sum);
                    outputs.push(keep(out.clone(), &used, &mut updates));
                    let used = all(&outputs, start, sum);
                    sum = Some(keep((1.0 / 6.0) * &out, &used, &mut updates));
                }
                1 | 2 => {
                    let so_far = sum.map(Combination::of).unwrap_or_default();
                    let used = all(&outputs, start, sum);
                    sum = Some(keep(&so_far + &((1.0 / 3.0) * &out), &used, &mut updates));
                }
                _ => direction = &sum.take().map(Combination::of).unwrap_or_default() + &((1.0 / 6.0) * &out),
            }
            let x = Combination::of(start.unwrap_or(State::Sample));
            transition(&x, from, previous, &direction)?
        } else {
            let (mut t, mut previous) = (now, now - stride);
            let mut x = Combination::of(State::Sample);
            if counter == 1 {
                (t, previous) = (now + stride, now);
            } else {
                outputs.drain(..outputs.len().saturating_sub(3));
                let used = all(&outputs, start, None);
                outputs.push(keep(out.clone(), &used, &mut updates));
            }
            let e = |back: usize| Combination::of(outputs[outputs.len() - back]);
            let direction = match (outputs.len(), counter) {
                (1, 1) => {
                    x = Combination::of(start.take().unwrap_or(State::Sample));
                    0.5 * &(&out + &e(1))
                }
                (1, _) => {
                    let used = all(&outputs, None, None);
                    start = Some(keep(x.clone(), &used, &mut updates));
                    out.clone()
                }
                (2, _) => 0.5 * &(&(3.0 * &e(1)) - &e(2)),
                (3, _) => (1.0 / 12.0) * &(&(&(23.0 * &e(1)) - &(16.0 * &e(2))) + &(5.0 * &e(3))),
                _ => (1.0 / 24.0) * &(&(&(55.0 * &e(1)) - &(59.0 * &e(2))) + &(&(37.0 * &e(3)) - &(9.0 * &e(4)))),
            };
            transition(&x, t, previous, &direction)?
        };
        updates.push(Update::new(State::Sample, next));
        counter += 1;
        Ok(updates)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Prediction, Sampler, SchedulerConfig};
    use super::*;

    #[test]
    fn learned_variances_belong_to_their_calls() {
        let config = SchedulerConfig { learned_variance: true, ..SchedulerConfig::dit(Sampler::Ddpm, Prediction::Epsilon) };
        let scheduler = Scheduler::new(Sampler::Ddpm, config.clone()).unwrap();
        let (all, tail) = (scheduler.schedule(8, 0, 0.0).unwrap(), scheduler.schedule(8, 3, 0.0).unwrap());
        assert_eq!(all.calls[3..], tail.calls[..]);
        assert_eq!(all.calls.iter().map(|call| call.timestep).collect::<Vec<_>>(), [999.0, 856.0, 714.0, 571.0, 428.0, 285.0, 143.0, 0.0]);
        for (i, call) in all.calls.iter().enumerate() {
            assert_eq!((call.spread.is_some(), call.draws_noise()), (i < 7, i < 7), "call {i}");
            let coefficient = call.updates[0].value.coefficient(State::Noise);
            assert_eq!(coefficient, if i < 7 { 1.0 } else { 0.0 }, "call {i}: its spread is the whole factor");
        }
        for (sampler, changed) in [
            (Sampler::Ddim, config.clone()),
            (Sampler::Ddpm, SchedulerConfig { rescale_betas_zero_snr: true, ..config.clone() }),
            (Sampler::Ddpm, SchedulerConfig { prediction_type: Prediction::VPrediction, ..config }),
        ] {
            assert!(Scheduler::new(sampler, changed).is_err());
        }
    }
}
