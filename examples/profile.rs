//! GPU time of each kernel of one decode, summed by kernel: `cargo run --release --example profile [WxH]`
//! (decodes `examples/sample.safetensors` with the decoder that ships).

use std::collections::BTreeMap;

use infgen::{Engine, EngineOptions, Latent, Result, Weights};

fn main() -> Result<()> {
    let size = std::env::args().nth(1).unwrap_or_else(|| "512x288".into());
    let sides: Vec<usize> = size.split('x').filter_map(|side| side.parse().ok()).collect();
    let [width, height] = sides[..] else { panic!("a size is WIDTHxHEIGHT") };
    let engine = Engine::new(EngineOptions::default())?;
    let decoder = engine.load_decoder(Weights::Builtin)?;
    let latent = Latent::open("examples/sample.safetensors")?;
    decoder.decode(&latent, width, height)?; // compiles the pipelines
    let mut kernels: BTreeMap<&str, (usize, f64, u64)> = BTreeMap::new();
    for timing in decoder.profile(&latent, width, height)? {
        let (count, seconds, flops) = kernels.entry(timing.kernel).or_default();
        *count += 1;
        *seconds += timing.seconds;
        *flops += timing.flops;
    }
    let total: f64 = kernels.values().map(|(_, seconds, _)| seconds).sum();
    println!("{} {size}: {:.1} ms", engine.device().name, total * 1e3);
    let mut rows: Vec<_> = kernels.into_iter().collect();
    rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    for (kernel, (count, seconds, flops)) in rows {
        let (ms, share, gflops) = (seconds * 1e3, seconds / total * 100.0, flops as f64 / seconds * 1e-9);
        println!("{kernel:<22} x{count:<4} {ms:>9.1} ms {share:>5.1}% {gflops:>8.1} GFLOP/s");
    }
    Ok(())
}
