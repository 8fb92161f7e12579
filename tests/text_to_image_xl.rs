//! SDXL against diffusers: context and pooled vector, every block of the UNet, and final latents, in both layouts.

mod common;

use std::path::Path;

use common::devices::{self, engine, skipped};
use common::text_to_image::{latents, one_call, relative_l2, strided};
use common::text_to_image_xl::{Case, models};
use infgen::models::unet::added_features;
use infgen::models::unet_config::UnetConfig;
use infgen::pipeline::{Pipeline, PipelineOptions, Request};
use infgen::{Dtype, Engine};

/// f32 against f32. torch's own f32 is up to 2e-6 from its f64 here.
const LATENT: f64 = 2e-5;

fn open(engine: &Engine, path: &Path) -> Pipeline {
    Pipeline::open(engine, path, &PipelineOptions::default()).unwrap()
}

#[test]
fn latents_are_diffusers() {
    let Some(engine) = engine(Dtype::F32) else { return skipped("latents_are_diffusers") };
    let case = Case::open();
    let models = models(&case);
    let only = std::env::var("CASE").ok();
    let (folder, file) = (open(&engine, &models.folder), open(&engine, &models.file));
    let nine = models.nine.each_ref().map(|path| open(&engine, path));
    let mut failures = Vec::new();
    let mut worst = 0.0f64;
    for run in case.runs.iter().filter(|run| only.as_ref().is_none_or(|part| run.name.contains(part.as_str()))) {
        let (_, want) = case.expected(&run.name);
        let (in_folder, in_file) = if run.nine { (&nine[0], &nine[1]) } else { (&folder, &file) };
        let got = latents(in_folder, &run.request());
        if ["own", "empty-negative", "odd", "image", "inpaint-nine-part"].contains(&run.name.as_str()) {
            assert!(latents(in_file, &run.request()) == got, "{}: the single file gives another latent", run.name);
        }
        let distance = relative_l2(&got, &want);
        worst = worst.max(distance);
        println!("{}: {distance:.2e}", run.name);
        if distance.is_nan() || distance > LATENT {
            failures.push(format!("{}: relative L2 {distance:.2e}", run.name));
        }
    }
    println!("worst {worst:.2e}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));

    // A model that does not force zeros encodes a missing negative prompt as an empty one.
    case.write_index(&models.folder, false);
    let unforced = open(&engine, &models.folder);
    let asked = |negative: Option<&str>| Request { negative: negative.map(str::to_owned), steps: 2, ..case.run("own").request() };
    let encoded = latents(&folder, &asked(Some("")));
    assert!(latents(&unforced, &asked(None)) == encoded);
    assert!(relative_l2(&latents(&folder, &asked(None)), &encoded) > 0.05);
}

#[test]
fn context_and_pooled_vector_are_diffusers() {
    let Some(engine) = engine(Dtype::F32) else { return skipped("context_and_pooled_vector_are_diffusers") };
    let case = Case::open();
    let models = models(&case);
    let (folder, file) = (open(&engine, &models.folder), open(&engine, &models.file));
    let (ids, own) = folder.embed(&case.own.prompt, 0).unwrap();
    assert_eq!(ids, case.own.ids);
    for pipeline in [&folder, &file] {
        let both: Vec<Vec<u32>> = pipeline.parts().texts().map(|text| text.tokenizer.encode(&case.own.prompt).ids).collect();
        assert_eq!(both, [case.own.ids.clone(), case.own.ids_2.clone()]);
    }
    let pooled = own.pooled.as_ref().expect("SDXL has a pooled vector");
    for (name, got) in [("context.own", &own.context), ("pooled.own", pooled)] {
        let distance = relative_l2(got, &case.expected(name).1);
        println!("{name}: {distance:.2e}");
        assert!(distance < 1e-5, "{name}: relative L2 {distance:.2e}");
    }
    assert!(file.embed(&case.own.prompt, 0).unwrap() == (ids, own.clone()), "the single file gives another embedding");
    // Layers are left out of the context; what is pooled has gone through all of them.
    let (_, fewer) = folder.embed(&case.own.prompt, 1).unwrap();
    assert!(fewer.pooled == own.pooled);
    assert!(relative_l2(&fewer.context, &own.context) > 0.1);
}

/// One call of the UNet behind our own text encoders: where the latents drift, this names the block.
#[test]
fn every_block_is_diffusers() {
    let Some(engine) = engine(Dtype::F32) else { return skipped("every_block_is_diffusers") };
    let case = Case::open();
    let models = models(&case);
    let (_, encoded) = open(&engine, &models.folder).embed(&case.blocks.prompt, 0).unwrap();
    let pooled = encoded.pooled.expect("SDXL has a pooled vector");
    let gpu = devices::open(&devices::options()).expect("there is an engine");
    for path in [&models.folder, &models.file] {
        let added = |config: &UnetConfig| Some(added_features(config, &pooled, case.blocks.time_ids));
        let mut outputs = one_call(&gpu, path, case.blocks.seed, case.blocks.timestep, &encoded.context, added);
        assert!(case.blocks.taps.len() > 25);
        for (tap, shape) in &case.blocks.taps {
            let (_, want) = case.expected(&format!("block.{tap}"));
            let sampled = strided(&outputs.numbers(tap), *shape, case.blocks.stride);
            let distance = relative_l2(&sampled, &want);
            println!("{tap}: {distance:.2e}");
            assert!(distance < 2e-5, "{}: first block that drifts is {tap}, relative L2 {distance:.2e}", path.display());
        }
    }
}

/// Rounded weights alone move these latents by 2e-4 (`plain`) and 1e-3 (`own`) in torch; f16 throughout by 6e-4 and 2.1e-3.
#[test]
fn halves_are_near() {
    let (Some(single), Some(half)) = (engine(Dtype::F32), engine(Dtype::F16)) else { return skipped("halves_are_near") };
    let case = Case::open();
    let scratch = tempfile::tempdir().unwrap();
    let file = scratch.path().join("half.safetensors");
    case.write_single_file(&file, safetensors::Dtype::F16);
    for (engine, name, bound) in [(&single, "plain", 1e-3), (&single, "own", 2e-3), (&half, "plain", 2e-3), (&half, "own", 5e-3)] {
        let distance = relative_l2(&latents(&open(engine, &file), &case.run(name).request()), &case.expected(name).1);
        println!("{name}, {:?} activations: {distance:.2e}", engine.dtype());
        assert!(distance < bound, "{name}, {:?} activations: relative L2 {distance:.2e}", engine.dtype());
    }
}
