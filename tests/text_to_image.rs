//! Text to image against diffusers: embeddings and final latents of every sampler, in both layouts.

mod common;

use common::devices::skipped;
use common::text_to_image::{Case, Run, models, picture, relative_l2};
use infgen::pipeline::{Pipeline, PipelineOptions, Request};
use infgen::schedulers::Sampler;
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
    let (folder, file) = (open(&models.folder), open(&models.file));
    for run in case.runs.iter().filter(|run| only.as_ref().is_none_or(|part| run.name.contains(part.as_str()))) {
        let (_, want) = case.expected(&run.name);
        let distance = if run.name.starts_with("embedding.") {
            let (ids, values) = folder.embed(&run.prompt, 0).unwrap();
            assert_eq!(ids, run.ids, "{}", run.name);
            let sampled: Vec<f32> = values.chunks_exact(64).step_by(4).flat_map(|row| row.iter().step_by(3).copied()).collect();
            relative_l2(&sampled, &want)
        } else {
            let got = latents(&folder, &request(run));
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
