//! DPM-Solver and DPM-Solver++, multistep, orders 1 to 3, as ODE and SDE.

use super::config::BetaSchedule;
use super::tables::{dpm_timesteps, exponential, interpolate, karras, ramp, sigma_to_t, sigmas};
use super::{Call, Combination, FinalSigmas, Mix, Prediction, Schedule, Scheduler, State, Update, finish, free_slot};

/// A noise level of the variance-preserving sample.
#[derive(Clone, Copy)]
struct Level {
    alpha: f64,
    sigma: f64,
    lambda: f64,
}

fn level(sigma: f64) -> Level {
    let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
    let noise = sigma * alpha;
    Level { alpha, sigma: noise, lambda: alpha.ln() - noise.ln() }
}

/// Timesteps, and sigmas with the last one behind them.
fn spaced(scheduler: &Scheduler, steps: usize) -> Result<(Vec<f64>, Vec<f64>), String> {
    let config = &scheduler.config;
    let (table, logs) = sigmas(&scheduler.alphas_cumprod);
    let whole = |t: f64| if config.beta_schedule == BetaSchedule::SquaredcosCapV2 { t.trunc() } else { t.round_ties_even() };
    // The whole table, whatever the spacing.
    let (min, max) = (table[0], table[table.len() - 1]);
    // Lu's spacing has no other bounds in diffusers.
    let (lowest, highest) = (config.sigma_min.unwrap_or(min), config.sigma_max.unwrap_or(max));
    let (list, mut spaced): (Vec<f64>, Vec<f64>) = if config.use_karras_sigmas {
        let sigmas = karras(lowest, highest, steps);
        (sigmas.iter().map(|&s| whole(sigma_to_t(s, &logs))).collect(), sigmas)
    } else if config.use_lu_lambdas {
        let sigmas: Vec<f64> = ramp(steps).map(|r| (max.ln() + r * (min.ln() - max.ln())).exp()).collect();
        (sigmas.iter().map(|&s| whole(sigma_to_t(s, &logs))).collect(), sigmas)
    } else if config.use_exponential_sigmas {
        let sigmas = exponential(lowest, highest, steps);
        (sigmas.iter().map(|&s| sigma_to_t(s, &logs).trunc()).collect(), sigmas)
    } else {
        // Timesteps whose lambda lies below the bound are not used.
        let clipped = logs.iter().rev().take_while(|&&log_sigma| -log_sigma < config.lambda_min_clipped).count();
        let list = dpm_timesteps(config, steps, config.num_train_timesteps - clipped);
        let sigmas = list.iter().map(|&t| interpolate(&table, t)).collect();
        (list, sigmas)
    };
    if list.len() != steps || list.iter().any(|&t| t < 0.0 || t >= table.len() as f64) {
        return Err(format!("{steps}; the timesteps of this spacing leave the training's, take another number"));
    }
    spaced.push(if config.final_sigmas_type == FinalSigmas::SigmaMin { min } else { 0.0 });
    Ok((list, spaced.into_iter().map(|s| s as f32 as f64).collect()))
}

pub(super) fn multistep(scheduler: &Scheduler, steps: usize, skip: usize) -> Result<Schedule, String> {
    let config = &scheduler.config;
    let (list, sigmas) = spaced(scheduler, steps)?;
    let (sde, data) = (config.algorithm_type.starts_with("sde"), config.algorithm_type.ends_with("++"));
    if !data && config.final_sigmas_type == FinalSigmas::Zero {
        return Err(format!("algorithm_type {} needs final_sigmas_type sigma_min", config.algorithm_type));
    }
    if sde && !data && config.solver_order == 3 {
        return Err("sde-dpmsolver is not defined for order 3".into());
    }
    let (x, out) = (Combination::of(State::Sample), Combination::of(State::Output));
    // Estimates of the last calls, oldest first, with their levels.
    let mut kept: Vec<(State, Level)> = Vec::new();
    let mut calls = Vec::new();
    for i in skip..list.len() {
        let (from, to) = (level(sigmas[i]), level(sigmas[i + 1]));
        let last = i + 1 == list.len();
        let first_order_at_end =
            last && (config.euler_at_final || (config.lower_order_final && steps < 15) || config.final_sigmas_type == FinalSigmas::Zero);
        let second_order_at_end = i + 2 == list.len() && config.lower_order_final && steps < 15;
        let (x0, eps) = match config.prediction_type {
            Prediction::Epsilon => ((1.0 / from.alpha) * &(&x - &(from.sigma * &out)), out.clone()),
            Prediction::Sample => (out.clone(), (1.0 / from.sigma) * &(&x - &(from.alpha * &out))),
            Prediction::Flow | Prediction::Edm => unreachable!("{}", super::NO_TABLE),
            Prediction::VPrediction => (&(from.alpha * &x) - &(from.sigma * &out), &(from.alpha * &out) + &(from.sigma * &x)),
        };
        // The estimate that the solver integrates; kept where a later step reads it.
        let estimate = if data { x0.clone() } else { eps };
        let mut updates = Vec::new();
        if config.solver_order > 1 && !last {
            let used: Vec<State> = kept.iter().map(|(s, _)| *s).collect();
            let slot = free_slot(&used);
            updates.push(Update::new(slot, estimate.clone()));
            kept.push((slot, from));
        } else {
            kept.push((State::Output, from));
        }
        let m = |back: usize| if back == 0 { estimate.clone() } else { Combination::of(kept[kept.len() - 1 - back].0) };
        let before = |back: usize| kept[kept.len() - 1 - back].1.lambda;
        let h = to.lambda - from.lambda;
        let known_calls = kept.len();
        let order = if config.solver_order == 1 || known_calls < 2 || first_order_at_end {
            1
        } else if config.solver_order == 2 || known_calls < 3 || second_order_at_end {
            2
        } else {
            3
        };
        // e^-h - 1 and e^h - 1, of twice the step for the SDE.
        let (shrink, grow) = ((-h).exp_m1(), h.exp_m1());
        let midpoint = config.solver_type == "midpoint";
        let (of_x, d0, d1, d2, noise) = match (data, sde) {
            (true, false) => {
                let d1 = if midpoint && order == 2 { -0.5 * to.alpha * shrink } else { to.alpha * (shrink / h + 1.0) };
                (to.sigma / from.sigma, -to.alpha * shrink, d1, -to.alpha * ((shrink + h) / (h * h) - 0.5), 0.0)
            }
            (false, false) => {
                let d1 = if midpoint && order == 2 { -0.5 * to.sigma * grow } else { -to.sigma * (grow / h - 1.0) };
                (to.alpha / from.alpha, -to.sigma * grow, d1, -to.sigma * ((grow - h) / (h * h) - 0.5), 0.0)
            }
            (true, true) => {
                let gone = -(-2.0 * h).exp_m1();
                let d1 = if midpoint && order == 2 { 0.5 * to.alpha * gone } else { to.alpha * (gone / (-2.0 * h) + 1.0) };
                let d2 = to.alpha * ((gone - 2.0 * h) / (4.0 * h * h) - 0.5);
                (to.sigma / from.sigma * (-h).exp(), to.alpha * gone, d1, d2, to.sigma * gone.sqrt())
            }
            (false, true) => {
                let d1 = if midpoint { -to.sigma * grow } else { -2.0 * to.sigma * (grow / h - 1.0) };
                (to.alpha / from.alpha, -2.0 * to.sigma * grow, d1, 0.0, to.sigma * (2.0 * h).exp_m1().sqrt())
            }
        };
        let mut next = &(of_x * &x) + &(d0 * &m(0));
        if order >= 2 {
            let r0 = (before(0) - before(1)) / h;
            let slope = (1.0 / r0) * &(&m(0) - &m(1));
            if order == 2 {
                next = &next + &(d1 * &slope);
            } else {
                let r1 = (before(1) - before(2)) / h;
                let earlier = (1.0 / r1) * &(&m(1) - &m(2));
                let change = &slope - &earlier;
                let first = &slope + &(r0 / (r0 + r1) * &change);
                let second = 1.0 / (r0 + r1) * &change;
                next = &(&next + &(d1 * &first)) + &(d2 * &second);
            }
        }
        let update = Update::new(State::Sample, &next + &(noise * &Combination::of(State::Noise)));
        updates.push(if sde { update.drawing() } else { update });
        let excess = (kept.len() + 1).saturating_sub(config.solver_order);
        kept.drain(..excess.min(kept.len()));
        let known = if last { Mix { signal: 1.0, noise: 0.0 } } else { Mix { signal: to.alpha, noise: to.sigma } };
        calls.push(Call { timestep: list[i], input_scale: 1.0, predicted: x0, updates, known, spread: None });
    }
    let start = level(sigmas[skip]);
    Ok(finish(1.0, Mix { signal: start.alpha, noise: start.sigma }, calls))
}
