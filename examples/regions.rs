//! A decode that is prepared once and then looked at in rectangles: `cargo run --release --example regions WxH RECTxRECT [MEMORY in MiB]`
//! (decodes `examples/sample.safetensors` with the decoder that ships). Prints what a rectangle costs beside preparing everything. Its seconds are by the clock and, in brackets, of
//! the processor, which on a software device other work does not stretch.

use std::time::Instant;

use cpu_time::ProcessTime;
use infgen::error::human_bytes;
use infgen::{Engine, EngineOptions, Latent, Rect, Result, Weights};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let side = |text: &str| text.split('x').filter_map(|side| side.parse().ok()).collect::<Vec<usize>>();
    let [size, rect, memory @ ..] = &arguments[..] else { panic!("usage: regions WxH WxH [MiB]") };
    let [width, height, w, h] = [side(size), side(rect)].concat()[..] else { panic!("a size is WIDTHxHEIGHT") };
    let memory = memory.first().map(|mib| mib.parse::<u64>().expect("a number of MiB") << 20);
    let engine = Engine::new(EngineOptions { memory, ..EngineOptions::default() })?;
    let decoder = engine.load_decoder(Weights::Builtin)?;
    let latent = Latent::open("examples/sample.safetensors")?;
    let (start, work) = (Instant::now(), ProcessTime::now());
    let decoding = decoder.prepare(&latent, width, height)?;
    let (prepared, prepared_work) = (start.elapsed().as_secs_f64(), work.elapsed().as_secs_f64());
    let (device, host) = decoding.memory_bytes();
    println!(
        "prepared {size} in {prepared:.1} s ({prepared_work:.1} s); it keeps {} on the device, {} on the host",
        human_bytes(device),
        human_bytes(host)
    );
    for (x, y) in [(0, 0), ((width - w) / 2, (height - h) / 2), (width - w, height - h)] {
        let (start, work) = (Instant::now(), ProcessTime::now());
        decoding.region(Rect { x, y, w, h })?;
        let (seconds, work) = (start.elapsed().as_secs_f64(), work.elapsed().as_secs_f64());
        println!(
            "{rect} at {x},{y}: {seconds:.2} s ({work:.2} s), {:.1} % ({:.1} %) of preparing",
            seconds / prepared * 100.0,
            work / prepared_work * 100.0
        );
    }
    println!("peak GPU memory {}", human_bytes(engine.memory().peak));
    Ok(())
}
