//! `scheduler_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Sampler;
use crate::error::{Error, Result, explain_json};

/// `beta_schedule`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly spaced betas.
    Linear,
    /// Evenly spaced square roots of betas; CompVis' "linear".
    ScaledLinear,
    /// Nichol & Dhariwal 2021, capped at 0.999.
    SquaredcosCapV2,
}

/// `timestep_spacing`, Lin et al. 2023 (arXiv:2305.08891), table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Both ends.
    Linspace,
    /// Multiples of T / N, from 0 (plus `steps_offset`).
    Leading,
    /// Multiples of T / N, from the last.
    Trailing,
}

/// `prediction_type`: what the model gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// `sqrt(a) noise - sqrt(1 - a) x0`, Salimans & Ho 2022.
    VPrediction,
    /// The clean latent.
    #[serde(alias = "original_sample")]
    Sample,
    /// The velocity `data - noise` at a time from 0 to 1, Ma et al. 2024 (SiT, arXiv:2401.08740). Configs of diffusers do not say it.
    #[serde(skip)]
    Flow,
    /// What the clean latent lacks beside a share of the noisy one, both weighted by the noise's sigma, at the time `ln(sigma) / 4`: Karras et al. 2022
    /// (EDM, arXiv:2206.00364), table 1. Configs of diffusers do not say it.
    #[serde(skip)]
    Edm,
}

/// Where a list of sigmas ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigmas {
    /// At 0.
    Zero,
    /// At the smallest of the table.
    SigmaMin,
}

/// What a scheduler is made from: the fields of diffusers' configs that these samplers read. Fields that a file leaves out
/// have the default of the sampler's own class, which differ.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Timesteps of the training.
    pub num_train_timesteps: usize,
    /// First beta.
    pub beta_start: f64,
    /// Last beta.
    pub beta_end: f64,
    /// How betas lie between.
    pub beta_schedule: BetaSchedule,
    /// Betas given one by one.
    pub trained_betas: Option<Vec<f64>>,
    /// What the model gives.
    pub prediction_type: Prediction,
    /// How timesteps lie.
    pub timestep_spacing: Spacing,
    /// Added to timesteps of [`Spacing::Leading`].
    pub steps_offset: i64,
    /// Scale the table so that the last timestep is pure noise.
    pub rescale_betas_zero_snr: bool,
    /// After the last step `alphas_cumprod` is 1, not that of timestep 0.
    pub set_alpha_to_one: bool,
    /// Clip the estimate of the clean sample.
    pub clip_sample: bool,
    /// To plus and minus this.
    pub clip_sample_range: f64,
    /// Dynamic thresholding; refused.
    pub thresholding: bool,
    /// PNDM: no Runge-Kutta steps at the start.
    pub skip_prk_steps: bool,
    /// DDPM: `fixed_small`, `fixed_small_log` or `fixed_large`.
    pub variance_type: Option<String>,
    /// Karras' spacing of sigmas.
    pub use_karras_sigmas: bool,
    /// Evenly spaced logarithms of sigmas.
    pub use_exponential_sigmas: bool,
    /// Refused.
    pub use_beta_sigmas: bool,
    /// Lu's spacing (DPM solvers).
    pub use_lu_lambdas: bool,
    /// Refused: for flow models.
    pub use_flow_sigmas: bool,
    /// Euler: `linear` or `log_linear`.
    pub interpolation_type: String,
    /// Euler: `discrete` or `continuous`.
    pub timestep_type: String,
    /// Bounds of Karras' and exponential sigmas, where they are not those of the table; of EDM models 0.002 and 80.
    pub sigma_min: Option<f64>,
    /// See `sigma_min`.
    pub sigma_max: Option<f64>,
    /// DDPM: the variance that the model learned, between the two of the formula, steps from the first to the last of the training, a table in f64: as the
    /// original of DiT has it (Nichol & Dhariwal 2021, arXiv:2102.09672). Configs of diffusers do not say it.
    #[serde(skip)]
    pub learned_variance: bool,
    /// Where the sigmas end.
    pub final_sigmas_type: FinalSigmas,
    /// DPM solvers: order 1 to 3.
    pub solver_order: usize,
    /// DPM solvers: `dpmsolver++`, `sde-dpmsolver++`, `dpmsolver` or `sde-dpmsolver`.
    pub algorithm_type: String,
    /// DPM solvers: `midpoint` or `heun`.
    pub solver_type: String,
    /// DPM solvers: lower orders at the end of short runs.
    pub lower_order_final: bool,
    /// DPM solvers: first order at the end.
    pub euler_at_final: bool,
    /// DPM solvers: smallest lambda.
    #[serde(deserialize_with = "infinite")]
    pub lambda_min_clipped: f64,
    /// LCM: steps of the distillation.
    pub original_inference_steps: usize,
    /// LCM: factor of timesteps in the boundary condition.
    pub timestep_scaling: f64,
}

/// A number, or `-inf` as Python writes it into JSON and as strings.
fn infinite<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_f64().unwrap_or(f64::NEG_INFINITY))
}

impl Default for SchedulerConfig {
    fn default() -> SchedulerConfig {
        SchedulerConfig {
            num_train_timesteps: 1000,
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            timestep_spacing: Spacing::Leading,
            steps_offset: 0,
            rescale_betas_zero_snr: false,
            set_alpha_to_one: true,
            clip_sample: false,
            clip_sample_range: 1.0,
            thresholding: false,
            skip_prk_steps: false,
            variance_type: None,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            interpolation_type: "linear".into(),
            timestep_type: "discrete".into(),
            sigma_min: None,
            sigma_max: None,
            learned_variance: false,
            final_sigmas_type: FinalSigmas::Zero,
            solver_order: 2,
            algorithm_type: "dpmsolver++".into(),
            solver_type: "midpoint".into(),
            lower_order_final: true,
            euler_at_final: false,
            lambda_min_clipped: f64::NEG_INFINITY,
            original_inference_steps: 50,
            timestep_scaling: 10.0,
        }
    }
}

impl SchedulerConfig {
    /// The defaults of the sampler's class in diffusers 0.42.
    pub fn of(sampler: Sampler) -> SchedulerConfig {
        let plain = SchedulerConfig::default();
        match sampler {
            Sampler::Ddim | Sampler::Ddpm => SchedulerConfig { clip_sample: true, ..plain },
            Sampler::Pndm => SchedulerConfig { set_alpha_to_one: false, ..plain },
            Sampler::Euler | Sampler::EulerAncestral => SchedulerConfig { timestep_spacing: Spacing::Linspace, ..plain },
            Sampler::Heun => SchedulerConfig { timestep_spacing: Spacing::Linspace, beta_start: 0.00085, beta_end: 0.012, ..plain },
            Sampler::DpmSolver | Sampler::DpmSolverKarras => {
                SchedulerConfig { timestep_spacing: Spacing::Linspace, use_karras_sigmas: sampler == Sampler::DpmSolverKarras, ..plain }
            }
            Sampler::Lcm => SchedulerConfig { beta_start: 0.00085, beta_end: 0.012, beta_schedule: BetaSchedule::ScaledLinear, ..plain },
        }
    }

    /// Stable Diffusion 1.x and 2.x, for checkpoints without a scheduler config: what diffusers' `from_single_file` builds.
    pub fn stable_diffusion(sampler: Sampler, prediction_type: Prediction) -> SchedulerConfig {
        SchedulerConfig {
            beta_start: 0.00085,
            beta_end: 0.012,
            beta_schedule: BetaSchedule::ScaledLinear,
            prediction_type,
            set_alpha_to_one: sampler == Sampler::Lcm,
            skip_prk_steps: true,
            steps_offset: 1,
            clip_sample: false,
            ..SchedulerConfig::of(sampler)
        }
    }

    /// DiT, SiT where `prediction_type` is [`Prediction::Flow`] and MaskDiT where it is [`Prediction::Edm`], for files without a scheduler config: evenly spaced betas, nothing clipped.
    pub fn dit(sampler: Sampler, prediction_type: Prediction) -> SchedulerConfig {
        SchedulerConfig {
            beta_start: 0.0001,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            prediction_type,
            clip_sample: false,
            ..SchedulerConfig::of(sampler)
        }
    }

    /// INFD's (Chen et al. 2024, arXiv:2406.07480), whose files bring no config: evenly spaced betas between others than DiT's, nothing clipped.
    pub fn infd(sampler: Sampler, prediction_type: Prediction) -> SchedulerConfig {
        SchedulerConfig { beta_start: 0.0015, beta_end: 0.0195, ..SchedulerConfig::dit(sampler, prediction_type) }
    }

    /// Reads a `scheduler_config.json` for `sampler`; fields it lacks are those of the sampler's class.
    ///
    /// # Errors
    /// [`Error::Malformed`] for what is no JSON object; [`Error::Config`] for values that are unknown.
    pub fn from_json(json: &str, sampler: Sampler, path: &Path) -> Result<SchedulerConfig> {
        let given = object(json, path)?;
        let config = |detail: String| Error::Config { path: path.to_owned(), detail };
        let mut merged = defaults(sampler);
        // `null` is the class's default for every field that knows it.
        merged.extend(given.into_iter().filter(|(_, value)| !value.is_null()));
        let all = Value::Object(merged).to_string();
        let mut parsed: SchedulerConfig = serde_json::from_str(&all).map_err(|e| config(explain_json::<SchedulerConfig>(&all, &e)))?;
        // Those of UniPC and DEIS, as DPMSolverMultistepScheduler takes them.
        if ["bh1", "bh2", "logrho"].contains(&&*parsed.solver_type) {
            parsed.solver_type = "midpoint".into();
        }
        if parsed.algorithm_type == "deis" {
            parsed.algorithm_type = "dpmsolver++".into();
        }
        parsed.check(sampler).map_err(config)?;
        Ok(parsed)
    }

    /// Only of fields that the sampler's class reads: a config may be that of another one.
    pub(super) fn check(&self, sampler: Sampler) -> Result<(), String> {
        let dpm = matches!(sampler, Sampler::DpmSolver | Sampler::DpmSolverKarras);
        let euler = sampler == Sampler::Euler;
        let sigmas = dpm || euler || sampler == Sampler::Heun;
        let known = |name: &str, value: &str, all: &[&str]| match all.contains(&value) {
            true => Ok(()),
            false => Err(format!("{name} `{value}` is not known to this version ({} are)", all.join(", "))),
        };
        if !(2..=1_000_000).contains(&self.num_train_timesteps) {
            return Err(format!("num_train_timesteps is {}, it must lie between 2 and 1000000", self.num_train_timesteps));
        }
        if let Some(betas) = &self.trained_betas
            && betas.len() != self.num_train_timesteps
        {
            return Err(format!("trained_betas has {} values for {} timesteps", betas.len(), self.num_train_timesteps));
        }
        let betas = self.trained_betas.as_deref().unwrap_or(&[]).iter().chain([&self.beta_start, &self.beta_end]);
        if let Some(beta) = betas.into_iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(format!("a beta is {beta}, it must lie between 0 and 1"));
        }
        if !(0..self.num_train_timesteps as i64).contains(&self.steps_offset) {
            return Err(format!("steps_offset is {}", self.steps_offset));
        }
        if self.thresholding && (dpm || matches!(sampler, Sampler::Ddim | Sampler::Ddpm | Sampler::Lcm)) {
            return Err("dynamic thresholding is for models that make pixels; set `thresholding` to false".into());
        }
        if (self.use_beta_sigmas && sigmas) || (self.use_flow_sigmas && dpm) {
            return Err("use_beta_sigmas and use_flow_sigmas are not known to this version; use --sampler ddim or another".into());
        }
        if sigmas && [self.use_karras_sigmas, self.use_exponential_sigmas, self.use_lu_lambdas].into_iter().filter(|&on| on).count() > 1 {
            return Err("only one of use_karras_sigmas, use_exponential_sigmas and use_lu_lambdas can be true".into());
        }
        if euler {
            known("interpolation_type", &self.interpolation_type, &["linear", "log_linear"])?;
            known("timestep_type", &self.timestep_type, &["discrete", "continuous"])?;
        }
        if self.learned_variance {
            let plain = self.beta_schedule == BetaSchedule::Linear && self.trained_betas.is_none() && !self.rescale_betas_zero_snr;
            if sampler != Sampler::Ddpm || self.prediction_type != Prediction::Epsilon || !plain {
                return Err("learned variances are for ddpm with linear betas and a model that predicts the noise".into());
            }
        }
        if let Some(variance) = self.variance_type.as_ref().filter(|_| sampler == Sampler::Ddpm) {
            known("variance_type", variance, &["fixed_small", "fixed_small_log", "fixed_large"])?;
        }
        if dpm {
            known("algorithm_type", &self.algorithm_type, &["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"])?;
            known("solver_type", &self.solver_type, &["midpoint", "heun"])?;
            if !(1..=3).contains(&self.solver_order) {
                return Err(format!("solver_order is {}, it must be 1, 2 or 3", self.solver_order));
            }
        }
        Ok(())
    }
}

fn object(json: &str, path: &Path) -> Result<serde_json::Map<String, Value>> {
    let malformed = |detail: String| Error::Malformed { path: path.to_owned(), format: "scheduler config", detail };
    // Python's json writes infinities that JSON does not have.
    let plain = json.replace("-Infinity", "null").replace("Infinity", "null").replace("NaN", "null");
    match serde_json::from_str(&plain).map_err(|e| malformed(e.to_string()))? {
        Value::Object(given) => Ok(given),
        _ => Err(malformed("it is no JSON object".into())),
    }
}

/// The same config under the name of another class; what is no JSON object stays as it is, to be refused where it is read.
pub(crate) fn with_class(json: String, class: &str) -> String {
    match object(&json, Path::new("")) {
        Ok(mut fields) => {
            fields.insert("_class_name".into(), class.into());
            Value::Object(fields).to_string()
        }
        Err(_) => json,
    }
}

/// `_class_name`
pub(super) fn class_name(json: &str, path: &Path) -> Result<Option<String>> {
    Ok(object(json, path)?.get("_class_name").and_then(Value::as_str).map(str::to_owned))
}

/// The class's defaults as JSON fields.
fn defaults(sampler: Sampler) -> serde_json::Map<String, Value> {
    let c = SchedulerConfig::of(sampler);
    let beta_schedule = if c.beta_schedule == BetaSchedule::ScaledLinear { "scaled_linear" } else { "linear" };
    let spacing = if c.timestep_spacing == Spacing::Linspace { "linspace" } else { "leading" };
    let fields = serde_json::json!({
        "beta_start": c.beta_start, "beta_end": c.beta_end, "beta_schedule": beta_schedule, "timestep_spacing": spacing,
        "set_alpha_to_one": c.set_alpha_to_one, "clip_sample": c.clip_sample,
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Default::default(),
    }
}
