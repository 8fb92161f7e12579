//! Text to image against diffusers: embeddings and final latents of every sampler, in both layouts.

mod common;

use common::devices::{self, skipped};
use common::text_to_image::{Case, Run, models, picture, relative_l2};
use infgen::gpu::Elem;
use infgen::models::unet::Unet;
use infgen::nn::{Loader, Precision};
use infgen::pipeline::Parts;
use infgen::pipeline::{Pipeline, PipelineOptions, Request};
use infgen::schedulers::{Prediction, Sampler};
use infgen::{Dtype, Engine, EngineOptions, Observer};

fn engine(dtype: Dtype) -> Option<Engine> {
    let options = EngineOptions { device: std::env::var("INFGEN_DEVICE").ok(), dtype, ..EngineOptions::default() };
    match Engine::new(options) {
        Ok(engine) => Some(engine),
        Err(infgen::Error::NoAdapter { detail }) => {
            assert!(std::env::var_os("REQUIRE_GPU").is_none(), "{detail}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn request(run: &Run) -> Request {
    let (image, mask) = picture();
    Request {
        negative: run.negative.clone(),
        sampler: run.sampler.as_deref().map(|name| Sampler::from_name(name).unwrap()),
        prediction: run.prediction.as_deref().map(|name| match name {
            "v_prediction" => Prediction::VPrediction,
            other => panic!("{other}"),
        }),
        steps: run.steps,
        cfg: run.cfg,
        guidance_rescale: run.rescale,
        seed: run.seed,
        batch: run.batch,
        image: run.image.then_some(image),
        strength: run.strength,
        mask: run.mask.then_some(mask),
        ..Request::new(run.prompt.clone(), run.width, run.height)
    }
}

fn latents(pipeline: &Pipeline, request: &Request) -> Vec<f32> {
    pipeline.generate(request, &Observer::default(), &|_| {}).unwrap().latent.data().to_vec()
}

#[test]
fn embeddings_and_latents_are_diffusers() {
    let Some(engine) = engine(Dtype::F32) else { return skipped("embeddings_and_latents_are_diffusers") };
    let case = Case::open();
    let models = models(&case);
    let only = std::env::var("CASE").ok();
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    let open = |path: &std::path::Path| Pipeline::open(&engine, path, &PipelineOptions::default()).unwrap();
    let (folder, file, nine) = (open(&models.folder), open(&models.file), open(&models.nine));
    for run in case.runs.iter().filter(|run| only.as_ref().is_none_or(|part| run.name.contains(part.as_str()))) {
        let (_, want) = case.expected(&run.name);
        let distance = if run.name.starts_with("embedding.") {
            let (ids, values) = folder.embed(&run.prompt, 0).unwrap();
            assert_eq!(ids, run.ids, "{}", run.name);
            let sampled: Vec<f32> = values.chunks_exact(64).step_by(4).flat_map(|row| row.iter().step_by(3).copied()).collect();
            relative_l2(&sampled, &want)
        } else {
            let got = latents(if run.nine { &nine } else { &folder }, &request(run));
            if ["ddim-cfg", "own", "image"].contains(&run.name.as_str()) {
                assert_eq!(latents(&file, &request(run)), got, "{}: the single file gives another latent", run.name);
            }
            relative_l2(&got, &want)
        };
        worst = worst.max(distance);
        println!("{}: {distance:.2e}", run.name);
        if distance.is_nan() || distance > 2e-3 {
            failures.push(format!("{}: relative L2 {distance:.2e}", run.name));
        }
    }
    println!("worst {worst:.2e}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// One call of the UNet behind our own text encoder: where the latents drift, this names the block.
#[test]
fn every_block_is_diffusers() {
    let Some(engine) = engine(Dtype::F32) else { return skipped("every_block_is_diffusers") };
    let case = Case::open();
    let models = models(&case);
    let pipeline = Pipeline::open(&engine, &models.folder, &PipelineOptions::default()).unwrap();
    let (ids, context) = pipeline.embed(&case.blocks.prompt, 0).unwrap();
    let gpu = devices::open(&devices::options()).expect("there is an engine");
    for path in [&models.folder, &models.file] {
        let parts = Parts::open(path).unwrap();
        let view = parts.unet_view().unwrap();
        let unet = pollster::block_on(Unet::load(&Loader::new(&gpu, &view, Precision::F32), &parts.unet, false)).unwrap();
        let mut rec = gpu.recorder();
        rec.keep_taps(true);
        let noise = infgen::noise::torch_cpu_randn(case.blocks.seed, 4 * 8 * 8);
        let last: Vec<f32> = (0..noise.len()).map(|i| noise[i % 4 * 64 + i / 4]).collect();
        let latent = rec.upload(&last, 8, 8, 4, Elem::F32);
        let context = rec.upload(&context, ids.len(), 1, parts.unet.cross_attention_dim, Elem::F32);
        let step = unet.step(&mut rec, case.blocks.timestep, None);
        let prompt = unet.prompt(&mut rec, &context).unwrap();
        let y = unet.forward(&mut rec, &latent, &step, &prompt).unwrap();
        rec.output("sample", &y);
        let mut outputs = devices::run(&gpu, rec.finish()).unwrap();
        assert!(case.blocks.taps.len() > 15);
        for tap in &case.blocks.taps {
            let (shape, want) = case.expected(&format!("block.{tap}"));
            let [y, x, c] = case.blocks.stride;
            let values = outputs.numbers(tap);
            // Planes of this model are square; the time embedding is one row.
            let channels = match tap.as_str() {
                "sample" => 4,
                "time_embedding" => 128,
                _ if shape[2] == 32usize.div_ceil(c) => 32,
                _ => 64,
            };
            let side = (values.len() / channels).isqrt();
            assert_eq!(values.len(), side * side * channels, "{tap}");
            let mut sampled = Vec::new();
            for row in (0..side).step_by(y) {
                for column in (0..side).step_by(x) {
                    sampled.extend(values[(row * side + column) * channels..][..channels].iter().step_by(c));
                }
            }
            let distance = relative_l2(&sampled, &want);
            assert!(distance < 1e-4, "{}: first block that drifts is {tap}, relative L2 {distance:.2e}", path.display());
        }
    }
}
