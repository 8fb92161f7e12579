//! Noise tables and timestep spacings, to the bit as diffusers has them where it rounds to f32.

use super::config::{BetaSchedule, SchedulerConfig, Spacing};

/// `torch.linspace(start, end, n, dtype=float32)`: from both ends towards the middle.
fn linspace_f32(start: f64, end: f64, n: usize) -> Vec<f32> {
    let (start, end) = (start as f32, end as f32);
    let step = if n > 1 { (end - start) / (n - 1) as f32 } else { 0.0 };
    (0..n).map(|i| if i < n / 2 || n == 1 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 }).collect()
}

/// `beta_t` in f32.
fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let n = config.num_train_timesteps;
    let cosine = |u: f64| ((u + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    if let Some(trained) = &config.trained_betas {
        return trained.iter().map(|&b| b as f32).collect();
    }
    match config.beta_schedule {
        BetaSchedule::Linear => linspace_f32(config.beta_start, config.beta_end, n),
        BetaSchedule::ScaledLinear => {
            linspace_f32(config.beta_start.sqrt(), config.beta_end.sqrt(), n).into_iter().map(|b| b * b).collect()
        }
        BetaSchedule::SquaredcosCapV2 => {
            let ratio = |i: usize| cosine((i + 1) as f64 / n as f64) / cosine(i as f64 / n as f64);
            (0..n).map(|i| (1.0 - ratio(i)).min(0.999) as f32).collect()
        }
    }
}

/// The cumulative product that torch gives for f32: summed up in f64, each value rounded.
fn cumprod(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    factors
        .scan(1.0f64, |product, factor| {
            *product *= factor as f64;
            Some(*product as f32)
        })
        .collect()
}

/// `alphas_cumprod`. With `rescale_betas_zero_snr` the last is 0, or `floor` where a scheduler needs its inverse.
pub(super) fn alphas_cumprod(config: &SchedulerConfig, floor: Option<f64>) -> Vec<f64> {
    if config.learned_variance {
        let (low, high) = (config.beta_start, config.beta_end);
        return ramp(config.num_train_timesteps)
            .scan(1.0, |product, share| {
                *product *= 1.0 - (low + share * (high - low));
                Some(*product)
            })
            .collect();
    }
    let mut table = cumprod(betas(config).into_iter().map(|beta| 1.0 - beta));
    if config.rescale_betas_zero_snr {
        // Lin et al. 2023 (arXiv:2305.08891), algorithm 1.
        let roots: Vec<f32> = table.iter().map(|a| a.sqrt()).collect();
        let (first, last) = (roots[0], roots[roots.len() - 1]);
        let bars: Vec<f32> = roots.iter().map(|root| ((root - last) * (first / (first - last))).powi(2)).collect();
        let alphas = (0..bars.len()).map(|i| if i == 0 { bars[0] } else { bars[i] / bars[i - 1] });
        table = cumprod(alphas.map(|alpha| 1.0 - (1.0 - alpha)));
        if let (Some(floor), Some(last)) = (floor, table.last_mut()) {
            *last = floor as f32;
        }
    }
    table.into_iter().map(f64::from).collect()
}

/// `sqrt((1 - a) / a)` of every timestep, and its logarithm, both rounded to f32 as diffusers has them.
pub(super) fn sigmas(alphas_cumprod: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let sigmas: Vec<f64> = alphas_cumprod.iter().map(|a| ((1.0 - a) / a).sqrt() as f32 as f64).collect();
    let logs = sigmas.iter().map(|s| s.ln() as f32 as f64).collect();
    (sigmas, logs)
}

/// `numpy.linspace(0, last, n)`
fn linspace(last: f64, n: usize) -> Vec<f64> {
    let step = if n > 1 { last / (n - 1) as f64 } else { 0.0 };
    (0..n).map(|i| if n > 1 && i == n - 1 { last } else { step * i as f64 }).collect()
}

/// The timesteps of `steps` from the first to the last, descending, as the original of DiT sums them up.
pub(super) fn from_end_to_end(train: usize, steps: usize) -> Vec<f64> {
    let stride = (train - 1) as f64 / (steps - 1) as f64;
    let sums = std::iter::successors(Some(0.0), |at| Some(at + stride)).take(steps);
    let mut list: Vec<f64> = sums.map(f64::round_ties_even).collect();
    list.reverse();
    list
}

/// Descending timesteps of `config.timestep_spacing`, whole unless `fractional` (which keeps those of `linspace` in f32).
pub(super) fn timesteps(config: &SchedulerConfig, steps: usize, fractional: bool) -> Vec<f64> {
    let train = config.num_train_timesteps;
    let mut list: Vec<f64> = match config.timestep_spacing {
        Spacing::Linspace if fractional => linspace((train - 1) as f64, steps).into_iter().map(|t| t as f32 as f64).collect(),
        Spacing::Linspace => linspace((train - 1) as f64, steps).into_iter().map(f64::round_ties_even).collect(),
        Spacing::Leading => (0..steps).map(|i| (i * (train / steps)) as f64 + config.steps_offset as f64).collect(),
        Spacing::Trailing => return trailing(train as f64, train as f64 / steps as f64),
    };
    list.reverse();
    list
}

/// `round(arange(last, 0, -ratio)) - 1`
fn trailing(last: f64, ratio: f64) -> Vec<f64> {
    let count = (last / ratio).ceil() as usize;
    // numpy's step is the difference of the first two values, as rounded.
    let step = (last - ratio) - last;
    (0..count).map(|i| (last + i as f64 * step).round_ties_even() - 1.0).collect()
}

/// The timesteps of the DPM solvers: one more point than steps, the last dropped.
pub(super) fn dpm_timesteps(config: &SchedulerConfig, steps: usize, last: usize) -> Vec<f64> {
    let mut list: Vec<f64> = match config.timestep_spacing {
        Spacing::Linspace => linspace(last.saturating_sub(1) as f64, steps + 1).into_iter().map(f64::round_ties_even).collect(),
        Spacing::Leading => (0..steps + 1).map(|i| (i * (last / (steps + 1))) as f64 + config.steps_offset as f64).collect(),
        Spacing::Trailing => return trailing(last as f64, config.num_train_timesteps as f64 / steps as f64),
    };
    list.reverse();
    list.truncate(steps);
    list
}

/// `table` at a fractional index, ends clamped (`numpy.interp`).
pub(super) fn interpolate(table: &[f64], at: f64) -> f64 {
    let last = table.len() - 1;
    let low = (at.max(0.0) as usize).min(last);
    let high = (low + 1).min(last);
    let share = (at - low as f64).clamp(0.0, 1.0);
    table[low] + (table[high] - table[low]) * share
}

/// The fractional timestep of a sigma, linear in its logarithm.
pub(super) fn sigma_to_t(sigma: f64, log_sigmas: &[f64]) -> f64 {
    let log = sigma.max(1e-10).ln();
    let below = log_sigmas.iter().rposition(|&s| log >= s).unwrap_or(0);
    let low = below.min(log_sigmas.len() - 2);
    let share = ((log_sigmas[low] - log) / (log_sigmas[low] - log_sigmas[low + 1])).clamp(0.0, 1.0);
    (1.0 - share) * low as f64 + share * (low + 1) as f64
}

/// Karras et al. 2022 (arXiv:2206.00364), equation 5, with rho = 7.
pub(super) fn karras(min: f64, max: f64, steps: usize) -> Vec<f64> {
    const RHO: f64 = 7.0;
    let (low, high) = (min.powf(1.0 / RHO), max.powf(1.0 / RHO));
    ramp(steps).map(|r| (high + r * (low - high)).powf(RHO)).collect()
}

/// Evenly spaced logarithms.
pub(super) fn exponential(min: f64, max: f64, steps: usize) -> Vec<f64> {
    ramp(steps).map(|r| (max.ln() + r * (min.ln() - max.ln())).exp()).collect()
}

/// 0 to 1 in `steps` points.
pub(super) fn ramp(steps: usize) -> impl Iterator<Item = f64> {
    (0..steps).map(move |i| if steps > 1 { i as f64 / (steps - 1) as f64 } else { 0.0 })
}
