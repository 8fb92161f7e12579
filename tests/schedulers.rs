//! Samplers against diffusers, call by call, on the toy model of tools/goldens/schedulers.py.

mod common;

use std::path::Path;

use infgen::noise::TorchGenerator;
use infgen::schedulers::{Combination, Mix, Sampler, Scheduler, State};
use serde::Deserialize;

#[derive(Deserialize)]
struct File {
    seed: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    class: String,
    config: serde_json::Value,
    steps: usize,
    skip: usize,
    eta: f64,
    init_noise_sigma: f64,
    timesteps: Vec<f64>,
    first: Vec<Vec<f64>>,
    last: Vec<f64>,
}

fn cases() -> File {
    serde_json::from_str(&std::fs::read_to_string(common::data("schedulers/cases.json")).unwrap()).unwrap()
}

fn scheduler(case: &Case) -> infgen::Result<Scheduler> {
    let mut config = case.config.clone();
    config["_class_name"] = case.class.clone().into();
    Scheduler::from_json(&config.to_string(), None, Path::new("scheduler_config.json"))
}

fn model(x: &[f64], t: f64) -> Vec<f64> {
    let offset = 0.1 * ((t as f32 / 100.0) as f64).cos();
    (0..x.len()).map(|i| (0.7 * x[i] + 0.3 * x[(i + x.len() - 1) % x.len()]).tanh() + offset).collect()
}

fn close(got: f64, want: f64, tolerance: f64) -> bool {
    (got - want).abs() <= tolerance * want.abs().max(1.0)
}

/// Runs a schedule with f64 vectors; `None` where a state is read that was never written.
struct Toy {
    states: Vec<(State, Vec<f64>)>,
}

impl Toy {
    fn set(&mut self, state: State, value: Vec<f64>) {
        self.states.retain(|(s, _)| *s != state);
        self.states.push((state, value));
    }

    fn get(&self, state: State) -> &[f64] {
        &self.states.iter().find(|(s, _)| *s == state).unwrap_or_else(|| panic!("{state:?} was never written")).1
    }

    fn value(&self, combination: &Combination) -> Vec<f64> {
        let mut sum = vec![0.0; self.get(State::Sample).len()];
        for &(state, c) in combination.terms() {
            sum.iter_mut().zip(self.get(state)).for_each(|(s, v)| *s += c * v);
        }
        sum
    }
}

fn check(case: &Case, seed: u64) -> Result<f64, String> {
    let scheduler = scheduler(case).map_err(|e| e.to_string())?;
    let schedule = scheduler.schedule(case.steps, case.skip, case.eta).map_err(|e| e.to_string())?;
    let mut generator = TorchGenerator::new(seed);
    let mut draw = || -> Vec<f64> { generator.randn(16).into_iter().map(f64::from).collect() };
    if !close(schedule.init_noise_sigma, case.init_noise_sigma, 1e-6) {
        return Err(format!("init_noise_sigma {} instead of {}", schedule.init_noise_sigma, case.init_noise_sigma));
    }
    let timesteps: Vec<f64> = schedule.calls.iter().map(|c| c.timestep).collect();
    if timesteps.len() != case.timesteps.len() || timesteps.iter().zip(&case.timesteps).any(|(g, w)| !close(*g, *w, 1e-6)) {
        return Err(format!("timesteps {timesteps:?} instead of {:?}", case.timesteps));
    }
    let noise = draw();
    let start = match case.skip {
        0 => noise.iter().map(|n| n * schedule.init_noise_sigma).collect(),
        _ => (0..16).map(|i| schedule.start.signal * ((i + 1) as f64).sin() + schedule.start.noise * noise[i]).collect(),
    };
    let mut toy = Toy { states: vec![(State::Sample, start)] };
    let mut worst = 0.0f64;
    for (k, call) in schedule.calls.iter().enumerate() {
        let input: Vec<f64> = toy.get(State::Sample).iter().map(|v| v * call.input_scale).collect();
        toy.set(State::Output, model(&input, call.timestep));
        if call.draws_noise() {
            toy.set(State::Noise, draw());
        }
        for update in &call.updates {
            let reads_itself = update.value.coefficient(update.target) != 0.0;
            assert!(
                !reads_itself || update.target == State::Sample,
                "the kernel that runs this cannot update {:?} in place",
                update.target
            );
            let mut value = toy.value(&update.value);
            if let Some(clip) = update.clip {
                value.iter_mut().for_each(|v| *v = v.clamp(-clip, clip));
            }
            toy.set(update.target, value);
        }
        let want = if k + 1 == schedule.calls.len() { &case.last } else { &case.first[k] };
        let norm = want.iter().map(|w| w * w).sum::<f64>().sqrt().max(1.0);
        let distance = toy.get(State::Sample).iter().zip(want).map(|(g, w)| (g - w).powi(2)).sum::<f64>().sqrt() / norm;
        worst = worst.max(distance);
        if distance.is_nan() || distance > 2e-4 {
            return Err(format!("relative distance {distance:.2e} after call {k} at t = {}", call.timestep));
        }
    }
    Ok(worst)
}

#[test]
fn samples_and_timesteps_are_diffusers() {
    let file = cases();
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for case in &file.cases {
        match check(case, file.seed) {
            Ok(distance) => worst = worst.max(distance),
            Err(error) => failures.push(format!("{} {} {} steps, {} skipped: {error}", case.class, case.config, case.steps, case.skip)),
        }
    }
    println!("{} cases, largest relative distance {worst:.2e}", file.cases.len());
    assert!(file.cases.len() > 120);
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), file.cases.len(), failures.join("\n"));
}

#[test]
fn a_sampler_named_keeps_what_the_folder_sets_and_nothing_else() {
    let path = Path::new("scheduler_config.json");
    // SD 1.5's file says nothing of the spacing: each class then has its own.
    let sd15 = r#"{"_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null, "clip_sample": false}"#;
    let timesteps = |json: &str, sampler: Option<Sampler>, steps| -> Vec<f64> {
        let scheduler = Scheduler::from_json(json, sampler, path).unwrap();
        scheduler.schedule(steps, 0, 0.0).unwrap().calls.iter().map(|c| c.timestep).collect()
    };
    assert_eq!(timesteps(sd15, None, 4), [751.0, 501.0, 501.0, 251.0, 1.0]);
    assert_eq!(timesteps(sd15, Some(Sampler::Ddim), 4), [751.0, 501.0, 251.0, 1.0]);
    assert_eq!(timesteps(sd15, Some(Sampler::Euler), 3), [999.0, 499.5, 0.0]);
    assert_eq!(timesteps(sd15, Some(Sampler::DpmSolverKarras), 10), [999.0, 916.0, 815.0, 687.0, 523.0, 327.0, 146.0, 41.0, 7.0, 0.0]);
    assert_eq!(timesteps(sd15, Some(Sampler::DpmSolver), 4)[..2], [999.0, 749.0]);
    assert_eq!(timesteps(sd15, Some(Sampler::Lcm), 4), [999.0, 759.0, 499.0, 259.0]);
    let leading = sd15.replace("{", r#"{"timestep_spacing": "leading", "#);
    assert_eq!(timesteps(&leading, Some(Sampler::Euler), 30)[..2], [958.0, 925.0]);
    // A folder of DPM++ at Karras' sigmas is that without being asked, and plain when plain is asked for by another name.
    let karras = leading.replace("PNDMScheduler", "DPMSolverMultistepScheduler").replace("{", r#"{"use_karras_sigmas": true, "#);
    assert_eq!(timesteps(&karras, None, 10)[1], 916.0);
}

/// A folder of a sampler that is not here can be used with one that is: fields that this one does not read are not looked at.
#[test]
fn fields_of_other_samplers_do_not_matter() {
    let path = Path::new("scheduler_config.json");
    let folder = |class: &str, fields: &str| {
        format!(r#"{{"_class_name": "{class}", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", {fields}}}"#)
    };
    let plain = folder("DDIMScheduler", r#""solver_order": 2"#);
    for other in [
        folder("UniPCMultistepScheduler", r#""solver_order": 2, "solver_type": "bh2""#),
        folder("DEISMultistepScheduler", r#""solver_order": 2, "solver_type": "logrho", "algorithm_type": "deis""#),
    ] {
        assert!(Scheduler::from_json(&other, None, path).is_err(), "{other}");
        for sampler in Sampler::ALL {
            let [got, expected] =
                [&other, &plain].map(|json| Scheduler::from_json(json, Some(sampler), path).unwrap().schedule(7, 0, 0.0).unwrap());
            assert_eq!(got, expected, "{sampler}: {other}");
        }
    }
    // But a model that was trained with other noise is no better off with another sampler.
    for class in ["EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"] {
        let error = Scheduler::from_json(&folder(class, r#""sigma_data": 0.5"#), Some(Sampler::Euler), path).unwrap_err().to_string();
        assert!(error.contains(class) && error.contains("whatever the sampler"), "{error}");
    }
    let of = |fields: &str, sampler: Sampler| Scheduler::from_json(&folder("PNDMScheduler", fields), Some(sampler), path);
    for (fields, readers) in [
        (r#""thresholding": true"#, "ddim ddpm dpmpp-2m dpmpp-2m-karras lcm"),
        (r#""use_beta_sigmas": true"#, "euler heun dpmpp-2m dpmpp-2m-karras"),
        (r#""variance_type": "learned_range""#, "ddpm"),
        (r#""interpolation_type": "cubic""#, "euler"),
        (r#""solver_order": 9"#, "dpmpp-2m dpmpp-2m-karras"),
    ] {
        for sampler in Sampler::ALL {
            let reads = readers.split(' ').any(|name| name == sampler.name());
            assert_eq!(of(fields, sampler).is_err(), reads, "{sampler}: {fields}");
        }
    }
}

#[test]
fn wrong_configs_and_step_counts_are_errors_that_say_what_to_do() {
    let path = Path::new("scheduler_config.json");
    let refused = |json: &str, words: &[&str]| {
        let error = Scheduler::from_json(json, None, path).unwrap_err().to_string();
        assert!(words.iter().all(|w| error.contains(w)), "{json}: {error} lacks one of {words:?}");
    };
    refused("[1]", &["scheduler_config.json"]);
    refused("{", &["scheduler_config.json", "scheduler config"]);
    refused(r#"{"beta_start": 1}"#, &["_class_name", "--sampler"]);
    refused(r#"{"_class_name": "UniPCMultistepScheduler"}"#, &["UniPCMultistepScheduler", "--sampler"]);
    refused(r#"{"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}"#, &["sigmoid"]);
    refused(r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": 0}"#, &["num_train_timesteps"]);
    refused(r#"{"_class_name": "DDIMScheduler", "num_train_timesteps": -5}"#, &["-5"]);
    refused(r#"{"_class_name": "DDIMScheduler", "thresholding": true}"#, &["thresholding"]);
    refused(r#"{"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}"#, &["trained_betas"]);
    refused(r#"{"_class_name": "PNDMScheduler", "prediction_type": "sample"}"#, &["pndm", "ddim"]);
    refused(r#"{"_class_name": "DPMSolverMultistepScheduler", "solver_order": 7}"#, &["solver_order"]);
    refused(r#"{"_class_name": "DDPMScheduler", "variance_type": "learned_range"}"#, &["learned_range"]);
    for sampler in Sampler::ALL {
        assert_eq!(Sampler::from_name(sampler.name()), Some(sampler));
        let scheduler = Scheduler::from_json("{}", Some(sampler), path).unwrap();
        for (steps, skip) in [(0, 0), (1001, 0), (5, 5), (usize::MAX, 0)] {
            assert!(scheduler.schedule(steps, skip, 0.0).is_err(), "{sampler}: {steps} steps, {skip} skipped");
        }
        let one = scheduler.schedule(1, 0, 0.0);
        assert!(one.is_ok() || sampler == Sampler::Pndm, "{sampler}: {one:?}");
    }
    // Zero terminal SNR leaves no signal to divide by unless the model predicts v.
    let zero = r#"{"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#;
    let error = Scheduler::from_json(zero, None, path).unwrap().schedule(5, 0, 0.0).unwrap_err().to_string();
    assert!(error.contains("v-prediction"), "{error}");
}

#[test]
fn the_last_call_leaves_a_clean_sample_and_each_call_estimates_it() {
    for sampler in Sampler::ALL {
        let config = infgen::schedulers::SchedulerConfig::stable_diffusion(sampler, infgen::schedulers::Prediction::Epsilon);
        let schedule = Scheduler::new(sampler, config).unwrap().schedule(6, 0, 0.0).unwrap();
        assert_eq!(schedule.calls.last().unwrap().known, Mix { signal: 1.0, noise: 0.0 }, "{sampler}");
        for call in &schedule.calls {
            // A sample that is x0 + noise with a perfect model gives x0 back, wherever the noise level lies.
            let (of_x, of_out) = (call.predicted.coefficient(State::Sample), call.predicted.coefficient(State::Output));
            let (signal, noise) = (1.0 / of_x, -of_out / of_x);
            let in_sigmas = matches!(sampler, Sampler::Euler | Sampler::EulerAncestral | Sampler::Heun);
            let norm = if in_sigmas { signal } else { signal * signal + noise * noise };
            assert!((norm - 1.0).abs() < 1e-6 && noise > 0.0, "{sampler}: {signal} {noise}");
        }
    }
}
