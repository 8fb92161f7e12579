//! What decodes of large pictures would take on a discrete GPU: `cargo run --release --example plans WEIGHTS LATENT [WxH ...]`
//! (random weights and latents: `tools/measure/random_decoders.py`). Nothing is decoded.

use infgen::engine::Form;
use infgen::error::human_bytes;
use infgen::{Engine, EngineOptions, Error, Latent, Result};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [weights, latent, sizes @ ..] = &arguments[..] else { panic!("usage: plans WEIGHTS LATENT WxH ...") };
    let engine = Engine::new(EngineOptions { as_discrete: true, host_memory: Some(64 << 30), ..EngineOptions::default() })?;
    let decoder = engine.load_decoder(weights.as_str())?;
    let latent = Latent::open(latent)?;
    println!(
        "| size | ceiling | peak | on the host | TFLOP | again | host traffic | sweeps |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for size in sizes {
        let sides: Vec<usize> = size.split('x').filter_map(|side| side.parse().ok()).collect();
        let [width, height] = sides[..] else { panic!("a size is WIDTHxHEIGHT") };
        for ceiling in [None, Some(8u64 << 30), Some(4 << 30), Some(2 << 30)] {
            engine.gpu().set_memory_ceiling(ceiling);
            let name = ceiling.map_or("none".into(), human_bytes);
            match decoder.plan(&latent, width, height, Form::Rgba8) {
                Ok(plan) => {
                    let (host, again, traffic, sweeps) = plan.schedule.as_ref().map_or((0, 0.0, 0, 0), |s| {
                        let again = (s.flops as f64 / s.flops_once as f64 - 1.0).max(0.0);
                        (s.host_peak_bytes, again, s.sweeps.iter().map(|s| s.host_traffic_bytes).sum(), s.sweeps.len())
                    });
                    println!(
                        "| {size} | {name} | {} | {} | {:.0} | {:.1} % | {} | {} |",
                        human_bytes(plan.peak_bytes),
                        human_bytes(host),
                        plan.flops as f64 * 1e-12,
                        again * 100.0,
                        human_bytes(traffic),
                        if sweeps == 0 { "whole".into() } else { sweeps.to_string() }
                    );
                }
                Err(Error::MemoryCeiling { needed, .. }) => println!("| {size} | {name} | needs {} | | | | | |", human_bytes(needed)),
                Err(error) => println!("| {size} | {name} | {error} | | | | | |"),
            }
        }
    }
    Ok(())
}
