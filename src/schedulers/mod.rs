//! Samplers: which timesteps a model is called at, and how its outputs move the latent. Scalars in f64; no GPU.
//!
//! A sampler never touches a tensor. [`Scheduler::schedule`] plans a whole run: for each call of the model the timestep, the
//! factor of its input, and the linear combinations that follow ([`Update`]), which one kernel applies. The formulas are those of
//! diffusers 0.42 (`src/diffusers/schedulers/`), which cites the papers; tables are rounded to f32 where it rounds them.

mod config;
mod dpm_solver;
mod edm;
mod expr;
mod flow;
mod sigma_space;
mod tables;
mod variance_preserving;

use std::fmt;
use std::path::Path;

pub(crate) use config::with_class;
pub use config::{BetaSchedule, FinalSigmas, Prediction, SchedulerConfig, Spacing};
pub use expr::{Combination, State};

use crate::error::{Error, Result};

/// The samplers by their names in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// Song et al. 2020 (arXiv:2010.02502).
    Ddim,
    /// Ho et al. 2020 (arXiv:2006.11239).
    Ddpm,
    /// Liu et al. 2022 (arXiv:2202.09778); without Runge-Kutta steps, PLMS.
    Pndm,
    /// Euler steps in sigma, Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without churn.
    Euler,
    /// Euler with fresh noise at every step.
    EulerAncestral,
    /// Heun's second order, two calls a step.
    Heun,
    /// DPM-Solver++ 2M, Lu et al. 2022 (arXiv:2211.01095); as the config says also of order 1 or 3 and its SDE form.
    DpmSolver,
    /// The same at Karras' sigmas.
    DpmSolverKarras,
    /// Latent consistency models, Luo et al. 2023 (arXiv:2310.04378).
    Lcm,
}

impl Sampler {
    /// All of them.
    pub const ALL: [Sampler; 9] = [
        Sampler::Ddim,
        Sampler::Ddpm,
        Sampler::Pndm,
        Sampler::Euler,
        Sampler::EulerAncestral,
        Sampler::Heun,
        Sampler::DpmSolver,
        Sampler::DpmSolverKarras,
        Sampler::Lcm,
    ];

    /// Its name in the program.
    pub fn name(self) -> &'static str {
        match self {
            Sampler::Ddim => "ddim",
            Sampler::Ddpm => "ddpm",
            Sampler::Pndm => "pndm",
            Sampler::Euler => "euler",
            Sampler::EulerAncestral => "euler-a",
            Sampler::Heun => "heun",
            Sampler::DpmSolver => "dpmpp-2m",
            Sampler::DpmSolverKarras => "dpmpp-2m-karras",
            Sampler::Lcm => "lcm",
        }
    }

    /// The sampler of that name.
    pub fn from_name(name: &str) -> Option<Sampler> {
        Sampler::ALL.into_iter().find(|s| s.name() == name)
    }

    /// The name other tools read in a picture's metadata (AUTOMATIC1111's).
    pub fn common_name(self) -> &'static str {
        match self {
            Sampler::Ddim => "DDIM",
            Sampler::Ddpm => "DDPM",
            Sampler::Pndm => "PLMS",
            Sampler::Euler => "Euler",
            Sampler::EulerAncestral => "Euler a",
            Sampler::Heun => "Heun",
            Sampler::DpmSolver => "DPM++ 2M",
            Sampler::DpmSolverKarras => "DPM++ 2M Karras",
            Sampler::Lcm => "LCM",
        }
    }

    /// The sampler of a diffusers class.
    fn from_class(class: &str) -> Option<Sampler> {
        Some(match class {
            "DDIMScheduler" => Sampler::Ddim,
            "DDPMScheduler" => Sampler::Ddpm,
            "PNDMScheduler" => Sampler::Pndm,
            "EulerDiscreteScheduler" => Sampler::Euler,
            "EulerAncestralDiscreteScheduler" => Sampler::EulerAncestral,
            "HeunDiscreteScheduler" => Sampler::Heun,
            "DPMSolverMultistepScheduler" => Sampler::DpmSolver,
            "LCMScheduler" => Sampler::Lcm,
            _ => return None,
        })
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A sampler with its noise table.
#[derive(Debug, Clone)]
pub struct Scheduler {
    sampler: Sampler,
    config: SchedulerConfig,
    alphas_cumprod: Vec<f64>,
}

/// Why no formula with a table of noise meets a flow or EDM model.
const NO_TABLE: &str = "Scheduler::new refuses flow and EDM models but for the samplers of flow.rs and edm.rs";

/// `alphas_cumprod` of the last timestep where a rescaled table is needed as sigmas: the smallest f16 that is not 0.
const SNR_FLOOR: f64 = 1.0 / (1 << 24) as f64;

impl Scheduler {
    /// A sampler for a model trained as `config` says.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a config that contradicts itself or that this sampler cannot follow.
    pub fn new(sampler: Sampler, config: SchedulerConfig) -> Result<Scheduler> {
        let invalid = |detail: String| Error::Invalid { what: "scheduler", detail };
        config.check(sampler).map_err(invalid)?;
        let of_their_own = match config.prediction_type {
            Prediction::Flow => Some("flow"),
            Prediction::Edm => Some("EDM"),
            _ => None,
        };
        if let Some(models) = of_their_own.filter(|_| !matches!(sampler, Sampler::Euler | Sampler::Heun)) {
            return Err(invalid(format!("{sampler} is not defined for {models} models; use heun or euler")));
        }
        let knows_samples = !matches!(sampler, Sampler::Pndm | Sampler::EulerAncestral);
        if config.prediction_type == Prediction::Sample && !knows_samples {
            return Err(invalid(format!("{sampler} is not defined for models that predict the sample; use ddim, euler or dpmpp-2m")));
        }
        let in_sigmas = matches!(sampler, Sampler::Euler | Sampler::EulerAncestral | Sampler::DpmSolver | Sampler::DpmSolverKarras);
        let rescales = config.rescale_betas_zero_snr && !matches!(sampler, Sampler::Pndm | Sampler::Heun);
        let for_table = SchedulerConfig { rescale_betas_zero_snr: rescales, ..config.clone() };
        let alphas_cumprod = tables::alphas_cumprod(&for_table, in_sigmas.then_some(SNR_FLOOR));
        Ok(Scheduler { sampler, config, alphas_cumprod })
    }

    /// The scheduler of a model folder: `json` is its `scheduler_config.json`. `sampler` overrides the class that it names and keeps
    /// the fields it sets, as diffusers' `from_config` does.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Config`]: also for a class that is none of the samplers, with the remedy.
    pub fn from_json(json: &str, sampler: Option<Sampler>, path: &Path) -> Result<Scheduler> {
        let class = config::class_name(json, path)?;
        if let Some(class) = class.as_deref().filter(|class| class.starts_with("EDM") || class.starts_with("FlowMatch")) {
            let detail =
                format!("_class_name is {class}: the model was trained with noise that this version does not know, whatever the sampler");
            return Err(Error::Config { path: path.to_owned(), detail });
        }
        let sampler = match sampler {
            Some(sampler) => sampler,
            None => {
                let class = class.as_deref().unwrap_or("nothing");
                Sampler::from_class(class).ok_or_else(|| Error::Config {
                    path: path.to_owned(),
                    detail: format!(
                        "_class_name is {class}, which this version does not have; choose a sampler with --sampler, for instance dpmpp-2m"
                    ),
                })?
            }
        };
        let mut config = SchedulerConfig::from_json(json, sampler, path)?;
        let named = class.as_deref().and_then(Sampler::from_class);
        if matches!(sampler, Sampler::DpmSolver | Sampler::DpmSolverKarras) && named != Some(sampler) {
            config.use_karras_sigmas = sampler == Sampler::DpmSolverKarras;
        }
        Scheduler::new(sampler, config).map_err(|error| match error {
            Error::Invalid { detail, .. } => Error::Config { path: path.to_owned(), detail },
            other => other,
        })
    }

    /// The same with other settings.
    ///
    /// # Errors
    /// As [`Scheduler::new`].
    pub fn with(&self, change: impl FnOnce(&mut SchedulerConfig)) -> Result<Scheduler> {
        let mut config = self.config.clone();
        change(&mut config);
        Scheduler::new(self.sampler, config)
    }

    /// Which it is.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// What it was made from.
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// `alphas_cumprod` of every timestep of the training.
    pub fn alphas_cumprod(&self) -> &[f64] {
        &self.alphas_cumprod
    }

    /// A run of `steps` steps of which the first `skip` are left out (image to image). `eta` scales DDIM's noise.
    ///
    /// # Errors
    /// [`Error::Invalid`] for numbers of steps that the sampler cannot make.
    pub fn schedule(&self, steps: usize, skip: usize, eta: f64) -> Result<Schedule> {
        let invalid = |detail: String| Error::Invalid { what: "steps", detail };
        let train = self.config.num_train_timesteps;
        if !(1..=train).contains(&steps) {
            return Err(invalid(format!("{steps}; from 1 to {train} are possible with this model")));
        }
        if skip >= steps {
            return Err(invalid(format!("none of {steps} is left at this strength; raise --strength or --steps")));
        }
        if !(0.0..=1.0).contains(&eta) {
            return Err(Error::Invalid { what: "eta", detail: format!("{eta} does not lie between 0 and 1") });
        }
        let schedule = match self.sampler {
            Sampler::Euler if self.config.prediction_type == Prediction::Flow => Ok(flow::euler(steps, skip)),
            Sampler::Heun if self.config.prediction_type == Prediction::Flow => Ok(flow::heun(steps, skip)),
            Sampler::Euler | Sampler::Heun if self.config.prediction_type == Prediction::Edm => Ok(edm::plan(self, steps, skip)),
            Sampler::Ddim => variance_preserving::ddim(self, steps, skip, eta),
            Sampler::Ddpm if self.config.learned_variance => variance_preserving::ddpm_learned(self, steps, skip),
            Sampler::Ddpm => variance_preserving::ddpm(self, steps, skip),
            Sampler::Pndm => variance_preserving::pndm(self, steps, skip),
            Sampler::Lcm => variance_preserving::lcm(self, steps, skip),
            Sampler::Euler | Sampler::EulerAncestral => sigma_space::euler(self, steps, skip),
            Sampler::Heun => sigma_space::heun(self, steps, skip),
            Sampler::DpmSolver | Sampler::DpmSolverKarras => dpm_solver::multistep(self, steps, skip),
        }
        .map_err(invalid)?;
        let whole = schedule.calls.iter().all(|c| c.timestep.is_finite() && c.updates.iter().all(|u| u.value.is_finite()));
        if !whole {
            let detail = match self.config.rescale_betas_zero_snr {
                true => "a coefficient is infinite: a table rescaled to zero terminal SNR needs a model of v-prediction, and spacing `trailing` or `linspace` needs it too".into(),
                false => format!("a coefficient of {} is infinite or undefined in {steps} steps with this config: take another number of steps, or another sampler", self.sampler),
            };
            return Err(Error::Invalid { what: "scheduler", detail });
        }
        Ok(schedule)
    }

    /// `alphas_cumprod[t]`, or `last` before timestep 0.
    fn alpha(&self, t: f64, last: f64) -> Result<f64, String> {
        if t < 0.0 {
            return Ok(last);
        }
        let found = self.alphas_cumprod.get(t as usize).copied();
        found.ok_or_else(|| format!("timestep {t} lies beyond the {} of the training; take fewer steps", self.config.num_train_timesteps))
    }

    /// The estimates of the clean sample and of the noise from sample and output, `a` being `alphas_cumprod`.
    fn estimates(&self, a: f64) -> (Combination, Combination) {
        let (x, out) = (Combination::of(State::Sample), Combination::of(State::Output));
        let (signal, noise) = (a.sqrt(), (1.0 - a).sqrt());
        match self.config.prediction_type {
            Prediction::Epsilon => ((1.0 / signal) * &(&x - &(noise * &out)), out),
            Prediction::Sample => {
                let eps = (1.0 / noise) * &(&x - &(signal * &out));
                (out, eps)
            }
            Prediction::VPrediction => (&(signal * &x) - &(noise * &out), &(signal * &out) + &(noise * &x)),
            Prediction::Flow | Prediction::Edm => unreachable!("{NO_TABLE}"),
        }
    }
}

/// A planned run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// Factor of the first noise where a run starts from nothing else.
    pub init_noise_sigma: f64,
    /// Where a run starts from a latent: `signal * latent + noise * draw`.
    pub start: Mix,
    /// The model's calls, in order.
    pub calls: Vec<Call>,
    /// Number of [`State::Kept`] values in use at once, at most.
    pub kept: usize,
}

/// Shares of a clean latent and of unit noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Factor of the latent.
    pub signal: f64,
    /// Factor of the noise.
    pub noise: f64,
}

/// One call of the model and what follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What the model is told; fractional for some samplers, an f32 there.
    pub timestep: f64,
    /// The model's input is the sample times this.
    pub input_scale: f64,
    /// The estimate of the clean sample, from sample and output.
    pub predicted: Combination,
    /// In order; each reads what was there before it.
    pub updates: Vec<Update>,
    /// A clean latent at the noise level that the sample has afterwards (inpainting keeps what is outside the mask so).
    pub known: Mix,
    /// What the noise is multiplied by, where the model learned that; none: by 1.
    pub spread: Option<Spread>,
}

/// `exp(base + slope v)`, v being what the model gave for the variance, channel by channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Logarithm of the standard deviation in the middle.
    pub base: f64,
    /// How far the bounds lie from there, where v is -1 and 1.
    pub slope: f64,
}

impl Call {
    /// Whether an update reads [`State::Noise`], or diffusers draws it all the same: the stream of random numbers moves on.
    pub fn draws_noise(&self) -> bool {
        self.updates.iter().any(|u| u.draws || u.value.coefficient(State::Noise) != 0.0)
    }
}

/// `target = value`, clipped to plus and minus `clip`.
#[derive(Debug, Clone, PartialEq)]
pub struct Update {
    /// What is written.
    pub target: State,
    /// What is written to it.
    pub value: Combination,
    /// Bound of the value.
    pub clip: Option<f64>,
    /// Noise is drawn for it even where its coefficient is 0.
    pub draws: bool,
}

impl Update {
    fn new(target: State, value: Combination) -> Update {
        Update { target, value, clip: None, draws: false }
    }

    fn drawing(self) -> Update {
        Update { draws: true, ..self }
    }
}

/// The first [`State::Kept`] that none of `used` is.
fn free_slot(used: &[State]) -> State {
    (0..).map(State::Kept).find(|slot| !used.contains(slot)).unwrap_or(State::Kept(0))
}

/// Puts calls together; counts what is kept.
fn finish(init_noise_sigma: f64, start: Mix, calls: Vec<Call>) -> Schedule {
    let slots = calls.iter().flat_map(|c| &c.updates).map(|u| match u.target {
        State::Kept(n) => n as usize + 1,
        _ => 0,
    });
    let kept = slots.max().unwrap_or(0);
    Schedule { init_noise_sigma, start, calls, kept }
}
