//! One step of a UNet, compared with diffusers' from `tools/measure/sd15_unet.py`: error, time, peak bytes.
//!
//! cargo run --release --example unet_step -- FOLDER [f16 | f16-weights | f32] [--any-size] [--kernels]

use std::path::Path;
use std::time::Instant;

use infgen::error::human_bytes;
use infgen::gpu::{Elem, Gpu, GpuOptions, Observer};
use infgen::models::unet::Unet;
use infgen::nn::{Loader, Precision};
use infgen::weights::{Weights, recognise};
use pollster::block_on;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(arguments.first().ok_or("name the folder that tools/measure/sd15_unet.py wrote")?);
    let precision = match arguments.get(1).map_or("f16", String::as_str) {
        "f16" => Precision::F16,
        "f16-weights" => Precision::F16_WEIGHTS,
        "f32" => Precision::F32,
        other => return Err(format!("{other}: f16, f16-weights or f32").into()),
    };
    let any_size = arguments.iter().any(|a| a == "--any-size");
    let stored = Weights::open(folder.join("step.safetensors"))?;
    let (shape, latent) = stored.get_any("latent")?;
    let (context_shape, context) = stored.get_any("context")?;
    let (_, want) = stored.get_any("sample")?;
    let timestep = stored.get_any("timestep")?.1[0] as f64;

    let gpu = block_on(Gpu::new(&GpuOptions { device: std::env::var("INFGEN_DEVICE").ok(), ..GpuOptions::default() }))?;
    println!("{} ({precision:?})", gpu.facts().name);
    let begun = Instant::now();
    let weights = Weights::open(folder.join("diffusion_pytorch_model.safetensors"))?;
    let (view, config) = recognise::unet(&weights)?.ok_or("no UNet")?;
    view.check(&config.tensors())?;
    let unet = block_on(Unet::load(&Loader::new(&gpu, &view, precision), &config, any_size))?;
    let prompt = block_on(unet.allocate_prompt(&gpu, context_shape[0]))?;
    println!("loaded in {:.1} s: {}", begun.elapsed().as_secs_f64(), human_bytes(gpu.memory().current));

    let mut rec = gpu.recorder();
    let context = rec.upload(&context, context_shape[0], 1, context_shape[1], Elem::F32);
    unet.prompt_into(&mut rec, &context, None, &prompt)?;
    block_on(gpu.run(rec.finish(), &Observer::default()))?;
    for run in 1..=2 {
        let mut rec = gpu.recorder();
        let x = rec.upload(&latent, shape[0], shape[1], shape[2], Elem::F32);
        let step = unet.step(&mut rec, timestep, None, &prompt);
        let y = unet.forward(&mut rec, &x, &step, &prompt)?;
        rec.output("sample", &y);
        let recording = rec.finish();
        let (flops, dispatches, planned) = (recording.flops(), recording.dispatches(), gpu.peak_bytes(&recording));
        let begun = Instant::now();
        let got = if run == 2 && arguments.iter().any(|a| a == "--kernels") {
            let mut outputs = block_on(gpu.run_timed(recording, &Observer::default()))?;
            let mut kernels: std::collections::BTreeMap<&str, (f64, u64)> = Default::default();
            for timing in &outputs.timings {
                let sum = kernels.entry(timing.kernel).or_default();
                *sum = (sum.0 + timing.seconds, sum.1 + timing.flops);
            }
            for (kernel, (seconds, flops)) in kernels {
                println!("  {kernel:<24} {seconds:>8.2} s {:>7.1} GFLOP/s", flops as f64 / seconds / 1e9);
            }
            outputs.numbers("sample")
        } else {
            block_on(gpu.run(recording, &Observer::default()))?.numbers("sample")
        };
        let seconds = begun.elapsed().as_secs_f64();
        let error: f64 = got.iter().zip(&want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
        let norm: f64 = want.iter().map(|w| (*w as f64).powi(2)).sum();
        println!(
            "run {run}: {seconds:.1} s, {:.0} GFLOP in {dispatches} kernel calls, {:.1} GFLOP/s; relative L2 {:.2e}; peak {} bytes ({}), planned {planned}",
            flops as f64 / 1e9,
            flops as f64 / 1e9 / seconds,
            (error / norm).sqrt(),
            gpu.memory().peak,
            human_bytes(gpu.memory().peak)
        );
    }
    Ok(())
}
