//! EDM models: the latent is `data + sigma noise`, scaled for the model by sigma, as is what it gives; the time it is told is `ln(sigma) / 4`.
//!
//! Source: Karras et al. 2022 (arXiv:2206.00364), table 1 and algorithm 1 without churn, as in Anima-Lab/MaskDiT `sample.py` at 73cfb96.

use super::tables::karras;
use super::{Call, Combination, Mix, Sampler, Schedule, Scheduler, State, Update, finish};

/// Of the data, as the models were trained, whatever their latents have.
const SIGMA_DATA: f64 = 0.5;

/// The range of the noise, where the config says none.
const SIGMAS: (f64, f64) = (0.002, 80.0);

/// The model's call at `sigma`, and the estimate of the clean latent.
fn call(sigma: f64, after: f64, updates: impl FnOnce(&Combination) -> Vec<Update>) -> Call {
    let (x, out) = (Combination::of(State::Sample), Combination::of(State::Output));
    let norm = sigma.hypot(SIGMA_DATA);
    let skip = (SIGMA_DATA / norm).powi(2);
    let predicted = &(skip * &x) + &(sigma * SIGMA_DATA / norm * &out);
    let updates = updates(&predicted);
    let known = Mix { signal: 1.0, noise: after };
    Call { timestep: 0.25 * sigma.ln(), input_scale: 1.0 / norm, predicted, updates, known, spread: None }
}

/// Euler's steps or Heun's, whose last is Euler's, at Karras' sigmas.
pub(super) fn plan(scheduler: &Scheduler, steps: usize, skip: usize) -> Schedule {
    let (min, max) = (scheduler.config.sigma_min.unwrap_or(SIGMAS.0), scheduler.config.sigma_max.unwrap_or(SIGMAS.1));
    let sigmas: Vec<f64> = karras(min, max, steps).into_iter().chain([0.0]).collect();
    let (x, half) = (Combination::of(State::Sample), State::Kept(0));
    let mut calls = Vec::new();
    for ends in sigmas[skip..].windows(2) {
        let (sigma, next) = (ends[0], ends[1]);
        // What a step of `share` of the way along the slope at a sigma adds.
        let along = |share: f64, at: f64, predicted: &Combination| (share * (next - sigma) / at) * &(&x - predicted);
        let second = scheduler.sampler == Sampler::Heun && next > 0.0;
        calls.push(call(sigma, next, |predicted| {
            let mut updates = Vec::new();
            if second {
                updates.push(Update::new(half, &x + &along(0.5, sigma, predicted)));
            }
            updates.push(Update::new(State::Sample, &x + &along(1.0, sigma, predicted)));
            updates
        }));
        if second {
            calls.push(call(next, next, |predicted| {
                vec![Update::new(State::Sample, &Combination::of(half) + &along(0.5, next, predicted))]
            }));
        }
    }
    finish(sigmas[0], Mix { signal: 1.0, noise: sigmas[skip] }, calls)
}

#[cfg(test)]
mod tests {
    use super::super::flow::tests::follow;
    use super::super::{Prediction, SchedulerConfig};
    use super::*;

    /// Where the model knows the data, the path from any noise is straight, so every sampler ends there.
    #[test]
    fn a_model_that_knows_the_data_leads_to_it() {
        let (data, noise) = (3.0, -0.5);
        for (sampler, second) in [(Sampler::Euler, 0), (Sampler::Heun, 1)] {
            let scheduler = Scheduler::new(sampler, SchedulerConfig::dit(sampler, Prediction::Edm)).unwrap();
            for (steps, skip) in [(1, 0), (4, 0), (5, 2), (40, 39)] {
                let schedule = scheduler.schedule(steps, skip, 0.0).unwrap();
                assert_eq!(schedule.calls.len(), steps - skip + second * (steps - skip - 1), "{sampler} {steps} {skip}");
                assert!((schedule.init_noise_sigma - 80.0).abs() < 1e-9);
                // The network's output that the preconditioning makes the data of.
                let output = |call: &Call, x: f64| {
                    let sigma = (4.0 * call.timestep).exp();
                    assert!((call.input_scale - 1.0 / (sigma * sigma + 0.25).sqrt()).abs() < 1e-12);
                    (data * (sigma * sigma + 0.25) - 0.25 * x) / (0.5 * sigma * (sigma * sigma + 0.25).sqrt())
                };
                let end = follow(&schedule, data, noise, output);
                assert!((end - data).abs() < 1e-12, "{sampler} {steps} {skip}");
            }
            let smallest = scheduler.schedule(40, 39, 0.0).unwrap().start.noise;
            assert!((smallest - 0.002).abs() < 1e-12);
        }
        assert!(Scheduler::new(Sampler::Ddim, SchedulerConfig::dit(Sampler::Ddim, Prediction::Edm)).is_err());
    }
}
