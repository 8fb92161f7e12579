//! Text to image against diffusers: embeddings and final latents of every sampler, in both layouts.

mod common;

use common::devices::{self, engine, skipped};
use common::text_to_image::{Case, latents, models, one_call, relative_l2, strided};
use infgen::pipeline::{Keep, Pipeline, PipelineOptions, Request};
use infgen::schedulers::Sampler;
use infgen::{Dtype, Observer};

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
    let (sd2, sd2_file) = (models.scratch.path().join("sd2"), models.scratch.path().join("sd2.safetensors"));
    case.write_sd2_folder(&sd2);
    case.write_sd2_file(&sd2_file, safetensors::Dtype::F32);
    let (sd2, sd2_file) = (open(&sd2), open(&sd2_file));
    for run in case.runs.iter().filter(|run| only.as_ref().is_none_or(|part| run.name.contains(part.as_str()))) {
        let (_, want) = case.expected(&run.name);
        let (in_folder, in_file) = match (run.sd2, run.nine) {
            (true, _) => (&sd2, &sd2_file),
            (_, true) => (&nine, &file),
            _ => (&folder, &file),
        };
        let distance = if run.name.starts_with("embedding.") {
            let (ids, encoded) = in_folder.embed(&run.prompt, 0).unwrap();
            assert_eq!(ids, run.ids, "{}", run.name);
            assert_eq!(in_file.embed(&run.prompt, 0).unwrap(), (ids, encoded.clone()), "{}: the single file gives another", run.name);
            let width = in_folder.parts().texts().next().unwrap().config.hidden_size;
            let sampled: Vec<f32> = encoded.context.chunks_exact(width).step_by(4).flat_map(|row| row.iter().step_by(3).copied()).collect();
            relative_l2(&sampled, &want)
        } else {
            let got = latents(in_folder, &run.request());
            if ["ddim-cfg", "own", "image", "sd2", "sd2-euler"].contains(&run.name.as_str()) {
                assert!(latents(in_file, &run.request()) == got, "{}: the single file gives another latent", run.name);
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
    let (_, encoded) = pipeline.embed(&case.blocks.prompt, 0).unwrap();
    let gpu = devices::open(&devices::options()).expect("there is an engine");
    for path in [&models.folder, &models.file] {
        let mut outputs = one_call(&gpu, path, case.blocks.seed, case.blocks.timestep, &encoded.context, |_| None);
        assert!(case.blocks.taps.len() > 15);
        for tap in &case.blocks.taps {
            let (shape, want) = case.expected(&format!("block.{tap}"));
            let values = outputs.numbers(tap);
            // Planes of this model are square; the time embedding is one row.
            let channels = match tap.as_str() {
                "sample" => 4,
                "time_embedding" => 128,
                _ if shape[2] == 32usize.div_ceil(case.blocks.stride[2]) => 32,
                _ => 64,
            };
            let side = (values.len() / channels).isqrt();
            let sampled = strided(&values, [side, side, channels], case.blocks.stride);
            let distance = relative_l2(&sampled, &want);
            assert!(distance < 1e-4, "{}: first block that drifts is {tap}, relative L2 {distance:.2e}", path.display());
        }
    }
}

/// The second prompt finds what the first one loaded, where the ceiling has room, and loads it again where it has none.
#[test]
fn what_has_room_stays_for_the_next_prompt() {
    let Some(engine) = engine(Dtype::F32) else { return skipped("what_has_room_stays_for_the_next_prompt") };
    let case = Case::open();
    let models = models(&case);
    let gpu = engine.gpu();
    let open = |keep| Pipeline::open(&engine, &models.folder, &PipelineOptions { keep, ..PipelineOptions::default() }).unwrap();
    let asked =
        |prompt: &str, seed, width| Request { steps: 2, cfg: 3.0, seed, sampler: Some(Sampler::Ddim), ..Request::new(prompt, width, 64) };
    let run = |pipeline: &Pipeline, request: &Request| {
        let generated = pipeline.generate(request, &Observer::default(), &|_| {}).unwrap();
        (generated.loaded, generated.latent.data().to_vec())
    };
    let (cat, dog) = (asked("a cat", 1, 64), asked("a dog", 2, 64));

    // Nothing is kept: all is loaded every time, and nothing stays on the device.
    let bare = gpu.memory().current;
    let single = open(Keep::Nothing);
    gpu.reset_peak();
    let (loaded, first) = run(&single, &cat);
    let alone = gpu.memory().peak;
    assert_eq!((loaded, gpu.memory().current), (vec!["text_encoder", "denoiser"], bare));
    let (loaded, second) = run(&single, &dog);
    assert_eq!(loaded, ["text_encoder", "denoiser"]);
    // The prompts are known, so a seed more needs no text encoder.
    assert_eq!(run(&single, &Request { seed: 9, ..cat.clone() }).0, ["denoiser"]);
    drop(single);

    // Room for all: nothing is loaded twice, and the latents are the same.
    let pipeline = open(Keep::All);
    assert_eq!(run(&pipeline, &cat), (vec!["text_encoder", "denoiser"], first.clone()));
    assert_eq!(run(&pipeline, &dog), (vec![], second.clone()));
    assert_eq!(run(&pipeline, &asked("a dog", 2, 72)).0, ["denoiser"], "a size that does not halve needs another form");
    let kept = gpu.memory().current - bare;
    let planned = pipeline.plan(&cat, infgen::Weights::from(models.folder.join("vae")), (64, 64), &Observer::default()).unwrap();
    assert_eq!((pipeline.release() > 0, kept > 0, gpu.memory().current), (true, true, bare));
    assert_eq!(pipeline.release(), 0);
    assert_eq!(
        pipeline.plan(&cat, infgen::Weights::from(models.folder.join("vae")), (64, 64), &Observer::default()).unwrap(),
        planned,
        "what is kept does not count"
    );
    drop(pipeline);

    // A ceiling that a single call just keeps: the text encoder makes room for the denoiser, and half of it is the decoder's.
    gpu.set_memory_ceiling(Some(alone));
    gpu.reset_peak();
    let tight = open(Keep::All);
    assert_eq!(run(&tight, &cat), (vec!["text_encoder", "denoiser"], first.clone()));
    assert_eq!(run(&tight, &dog), (vec!["text_encoder", "denoiser"], second.clone()));
    assert!(gpu.memory().peak <= alone && gpu.memory().current - bare <= alone / 2, "{} of {alone}", gpu.memory().peak);
    drop(tight);
    // Calls one after the other may keep the denoiser there.
    let denoiser = open(Keep::Denoiser);
    assert_eq!(run(&denoiser, &cat), (vec!["text_encoder", "denoiser"], first.clone()));
    assert_eq!(run(&denoiser, &Request { seed: 9, ..cat.clone() }).0, [""; 0]);
    assert!(gpu.memory().peak <= alone);
    drop(denoiser);

    // Room for both while the denoiser runs and not for both in between: the text encoder stays.
    gpu.set_memory_ceiling(Some(alone + kept));
    let between = open(Keep::All);
    run(&between, &cat);
    let staying = gpu.memory().current - bare;
    let (loaded, latent) = run(&between, &dog);
    assert_eq!(latent, second);
    assert!(!loaded.contains(&"text_encoder") && staying > 0 && staying <= (alone + kept) / 2, "{loaded:?}, {staying} bytes");
    drop(between);
    assert_eq!(gpu.memory().current, bare);
}
