//! A ceiling on memory and a rectangle change no bit of a result, and the peak is the one that was planned.
//!
//! `SEED=<n>` chooses other sizes, ceilings and rectangles; each failure prints its own.

mod common;

use common::devices;
use common::golden::Case;
use infgen::engine::{EngineOptions, Form, WorkPlan};
use infgen::gpu::{GpuOptions, KernelFamily};
use infgen::{Decoder, Dtype, Encoder, Engine, Error, Image, Latent, Observer, Rect};

/// Sizes, ceilings and rectangles.
struct Dice(u64);

impl Dice {
    fn new() -> Dice {
        let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("SEED is a number"));
        println!("SEED={seed}");
        Dice(seed)
    }

    /// From `low` to `high`, both included.
    fn roll(&mut self, low: usize, high: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        low + (self.0 >> 33) as usize % (high - low + 1)
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.roll(0, 2000) as f32 / 1000.0 - 1.0).collect()
    }
}

/// f32, f16 as the engine stores it, f16 at WebGPU's default limits (packed), the kernels for GPUs, and native f16, which engines leave
/// to GPUs; none without an adapter.
fn engines(test: &str, host_memory: Option<u64>) -> Vec<(&'static str, Engine)> {
    let Some(native) = devices::open(&GpuOptions { native_f16: true, ..devices::options() }) else {
        devices::skipped(test);
        return vec![];
    };
    let base = || EngineOptions { device: devices::options().device, host_memory, ..EngineOptions::default() };
    [
        ("f32", EngineOptions { dtype: Dtype::F32, ..base() }),
        ("f16", base()),
        ("packed", EngineOptions { default_limits: true, ..base() }),
        ("f16, kernels for GPUs", EngineOptions { kernels: Some(KernelFamily::Tile), ..base() }),
        ("f16, by Winograd in tiles", EngineOptions { kernels: Some(KernelFamily::WinogradTile), ..base() }),
    ]
    .map(|(name, options)| (name, Engine::new(options).expect("an engine")))
    .into_iter()
    .chain([("native f16", pollster::block_on(Engine::on_async(native, &base(), &Observer::default())).expect("an engine"))])
    .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Where two results differ first, as row, column and channel.
fn same(a: &[f32], b: &[f32], width: usize, channels: usize) -> Result<(), String> {
    assert_eq!(a.len(), b.len());
    match bits(a).iter().zip(bits(b)).position(|(a, b)| *a != b) {
        None => Ok(()),
        Some(i) => {
            Err(format!("row {}, column {}, channel {}: {} and {}", i / channels / width, i / channels % width, i % channels, a[i], b[i]))
        }
    }
}

fn crop(values: &[f32], width: usize, rect: Rect) -> Vec<f32> {
    (rect.y..rect.y + rect.h).flat_map(|y| &values[(y * width + rect.x) * 3..(y * width + rect.x + rect.w) * 3]).copied().collect()
}

/// The smallest ceiling that `plan` says would do.
fn smallest(engine: &Engine, plan: impl Fn() -> infgen::Result<WorkPlan>) -> u64 {
    engine.gpu().trim();
    engine.gpu().set_memory_ceiling(Some(engine.memory().current + 1));
    let refused = plan();
    engine.gpu().set_memory_ceiling(None);
    match refused {
        Err(Error::MemoryCeiling { needed, .. }) => {
            let free = plan().expect("a plan without a ceiling").peak_bytes;
            assert!(needed <= free, "{needed} bytes are asked for where {free} do");
            needed
        }
        other => panic!("a ceiling of next to nothing: {other:?}"),
    }
}

/// Runs under `ceiling`; the result must be `whole`, and the measured peak the planned one. Returns the plan.
fn under(
    engine: &Engine,
    label: &str,
    ceiling: u64,
    whole: &[f32],
    (width, channels): (usize, usize),
    plan: impl Fn() -> infgen::Result<WorkPlan>,
    run: impl Fn() -> infgen::Result<Vec<f32>>,
) -> WorkPlan {
    engine.gpu().trim();
    engine.gpu().set_memory_ceiling(Some(ceiling));
    let planned = plan().unwrap_or_else(|e| panic!("{label} under {ceiling}: {e}"));
    engine.gpu().reset_peak();
    let result = run().unwrap_or_else(|e| panic!("{label} under {ceiling}: {e}\n{planned}"));
    engine.gpu().set_memory_ceiling(None);
    let peak = engine.memory().peak;
    assert_eq!(same(&result, whole, width, channels), Ok(()), "{label} under {ceiling} bytes\n{planned}");
    assert!(peak <= ceiling, "{label}: {peak} bytes under a ceiling of {ceiling}\n{planned}");
    assert_eq!(peak, planned.peak_bytes, "{label} under {ceiling} bytes: measured and planned peak\n{planned}");
    planned
}

/// The whole, the smallest ceiling and two between give the same bits; below the smallest there is a refusal.
fn check(
    engine: &Engine,
    label: &str,
    dice: &mut Dice,
    shape: (usize, usize),
    plan: impl Fn() -> infgen::Result<WorkPlan>,
    run: impl Fn() -> infgen::Result<Vec<f32>>,
) -> (Vec<f32>, usize) {
    let whole_plan = plan().expect("a plan without a ceiling");
    assert!(whole_plan.schedule.is_none(), "{label}: fits whole");
    let whole = run().expect("runs without a ceiling");
    let least = smallest(engine, &plan);
    assert!(least < whole_plan.peak_bytes, "{label}: {least} bytes do, {} in one piece", whole_plan.peak_bytes);
    let mut scheduled = 0;
    for percent in [0, dice.roll(5, 40), dice.roll(50, 90), 100] {
        let ceiling = least + (whole_plan.peak_bytes - least) * percent as u64 / 100;
        let planned = under(engine, label, ceiling, &whole, shape, &plan, &run);
        scheduled += planned.schedule.is_some() as usize;
    }
    engine.gpu().set_memory_ceiling(Some(least - least / 64 - 8192));
    let refused = run();
    engine.gpu().set_memory_ceiling(None);
    assert!(
        matches!(refused, Err(Error::MemoryCeiling { needed, .. }) if needed.abs_diff(least) <= least / 128 + 8192),
        "{label}: {refused:?}"
    );
    (whole, scheduled)
}

fn check_decoder(engine: &Engine, name: &str, dice: &mut Dice, decoder: &Decoder, native: (usize, usize)) {
    let facts = decoder.facts();
    let (h, w) = native;
    let patches = facts.model.starts_with("INFD");
    let values = dice.values(facts.latent_channels * h * w);
    let latent = Latent::new([1, facts.latent_channels, h, w], values).expect("a latent");
    let (width, height) = match facts.any_size {
        // Two beside each other.
        true if patches => (dice.roll(258, 300), dice.roll(30, 50)),
        true => (dice.roll(9 * facts.scale, 14 * facts.scale), dice.roll(9 * facts.scale, 14 * facts.scale)),
        false => (w * facts.scale, h * facts.scale),
    };
    let label = format!("{} {name} {h}x{w} to {width}x{height}", facts.model);
    let plan = || decoder.plan(&latent, width, height, Form::Float);
    let run = || Ok(decoder.decode(&latent, width, height)?.data().to_vec());
    let (whole, scheduled) = check(engine, &label, dice, (width, 3), plan, run);
    assert!(scheduled >= 3, "{label}: schedules were used");

    // What a refusal to prepare names does for rectangles too.
    engine.gpu().trim();
    engine.gpu().set_memory_ceiling(Some(engine.gpu().held_bytes() + 1));
    let needed = match decoder.prepare(&latent, width, height) {
        Err(Error::MemoryCeiling { needed, .. }) => needed,
        other => panic!("{label}: {other:?}"),
    };
    engine.gpu().set_memory_ceiling(Some(needed));
    let decoding = decoder.prepare(&latent, width, height).unwrap_or_else(|e| panic!("{label}: {e}"));
    for (x, y) in [(0, 0), (width / 2, height / 2), (width - 3, height - 2)] {
        let rect = Rect { x, y, w: 3, h: 2 };
        let region = decoding.region(rect).unwrap_or_else(|e| panic!("{label} {rect:?} under {needed} bytes: {e}"));
        assert_eq!(same(region.data(), &crop(&whole, width, rect), 3, 3), Ok(()), "{label} {rect:?} under {needed} bytes");
    }
    engine.gpu().set_memory_ceiling(None);
    drop(decoding);

    // Rectangles, prepared with plenty of memory and with little.
    let least = smallest(engine, plan);
    for ceiling in [None, Some(least + least / 8)] {
        engine.gpu().trim();
        engine.gpu().set_memory_ceiling(ceiling);
        engine.gpu().reset_peak();
        let decoding = decoder.prepare(&latent, width, height).unwrap_or_else(|e| panic!("{label}: {e}"));
        for n in 0..5 {
            let (x, y) = (dice.roll(0, width - 1), dice.roll(0, height - 1));
            let rect = Rect { x, y, w: dice.roll(1, width - x), h: dice.roll(1, height - y) };
            let rect = if n == 0 { Rect { x: 0, y: 0, w: width, h: height } } else { rect };
            let region = decoding.region(rect).unwrap_or_else(|e| panic!("{label} {rect:?}: {e}"));
            assert_eq!(same(region.data(), &crop(&whole, width, rect), rect.w, 3), Ok(()), "{label} {rect:?} under {ceiling:?}");
            let eight = decoding.region_rgb8(rect, &Observer::default()).expect("in 8 bits");
            assert_eq!(eight, region.to_rgb8(), "{label} {rect:?} in 8 bits");
        }
        let peak = engine.memory().peak;
        assert!(ceiling.is_none_or(|ceiling| peak <= ceiling), "{label}: {peak} bytes under {ceiling:?}");
        engine.gpu().set_memory_ceiling(None);
        engine.gpu().trim();
        let with = engine.memory().current;
        drop(decoding);
        assert!(
            engine.memory().current < with || facts.model.starts_with("TAESD") || patches,
            "{label}: a dropped decoding frees its memory"
        );
    }
}

fn check_decoders(test: &str, cases: &[(&str, (usize, usize))], host_memory: Option<u64>) {
    let mut dice = Dice::new();
    for (name, engine) in engines(test, host_memory) {
        for (case, native) in cases {
            let folder = Case::open(case).write_weights();
            let decoder = engine.load_decoder(folder.path()).expect("a decoder");
            check_decoder(&engine, name, &mut dice, &decoder, *native);
        }
    }
}

#[test]
fn an_infgen_decode_does_not_depend_on_ceiling_or_rectangle() {
    let cases = [
        ("infgen-small-skip", (7, 9)),
        ("infgen-small-patch4", (5, 8)),
        ("infgen-small-no-blocks", (6, 7)),
        ("infgen-small-base", (6, 9)),
        ("infgen-small-base-reduced", (9, 7)),
    ];
    check_decoders("an_infgen_decode_does_not_depend_on_ceiling_or_rectangle", &cases, None);
}

/// 2070 keys, which kernels for GPUs split where queries are few: by how many the whole picture has, whatever part of it is asked for.
#[test]
fn a_decode_with_split_keys_does_not_depend_on_ceiling_or_rectangle() {
    let mut dice = Dice::new();
    let folder = Case::open("infgen-small-skip").write_weights();
    let engines = engines("a_decode_with_split_keys_does_not_depend_on_ceiling_or_rectangle", None);
    let for_gpus: Vec<_> = engines.iter().filter(|(name, _)| name.contains("for GPUs")).collect();
    assert!(engines.is_empty() || !for_gpus.is_empty());
    for (name, engine) in for_gpus {
        let decoder = engine.load_decoder(folder.path()).expect("a decoder");
        check_decoder(engine, name, &mut dice, &decoder, (46, 45));
        // So many queries that the keys stay together, in chunks of few queries too.
        let latent = Latent::new([1, 4, 46, 45], dice.values(4 * 46 * 45)).expect("a latent");
        let (width, height) = (560, 520);
        let [whole, chunks] = [8192, 500].map(|tokens| decoder.decode_in_chunks(&latent, width, height, tokens).expect("a picture"));
        assert_eq!(same(&chunks, &whole, width, 3), Ok(()), "{width}x{height} in chunks of 500 tokens");
    }
}

#[test]
fn a_vae_decode_does_not_depend_on_ceiling_or_rectangle() {
    check_decoders("a_vae_decode_does_not_depend_on_ceiling_or_rectangle", &[("vae-small", (11, 9))], None);
}

#[test]
fn a_taesd_decode_does_not_depend_on_ceiling_or_rectangle() {
    check_decoders("a_taesd_decode_does_not_depend_on_ceiling_or_rectangle", &[("taesd-decoder", (9, 8))], None);
}

#[test]
fn an_infd_decode_does_not_depend_on_ceiling_or_rectangle() {
    check_decoders("an_infd_decode_does_not_depend_on_ceiling_or_rectangle", &[("infd-small", (5, 6))], None);
}

#[test]
fn an_encode_does_not_depend_on_the_ceiling() {
    let mut dice = Dice::new();
    for (name, engine) in engines("an_encode_does_not_depend_on_the_ceiling", None) {
        for case in ["vae-small", "taesd-encoder", "infd-small"] {
            let folder = Case::open(case).write_weights();
            let encoder: Encoder = engine.load_encoder(folder.path()).expect("an encoder");
            let scale = encoder.facts().scale;
            let (w, h) = (dice.roll(60 / scale, 100 / scale) * scale, dice.roll(60 / scale, 100 / scale) * scale);
            let image = Image::new(w, h, dice.values(3 * w * h)).expect("a picture");
            let label = format!("{} {name} {w}x{h}", encoder.facts().model);
            let run = || Ok(encoder.encode(&image, None, &Observer::default())?.image(0).expect("one").to_vec());
            check(&engine, &label, &mut dice, (w / scale, 1), || encoder.plan(w, h), run);
        }
    }
}

/// A device that is lost in the middle of bands is named with what was happening, and a new one gives the same bytes.
#[test]
fn a_decode_repeats_to_the_same_bytes_on_a_new_device() {
    let test = "a_decode_repeats_to_the_same_bytes_on_a_new_device";
    if devices::open(&devices::options()).is_none() {
        return devices::skipped(test);
    }
    let mut dice = Dice::new();
    let folder = Case::open("infgen-small-skip").write_weights();
    let latent = Latent::new([1, 4, 7, 9], dice.values(4 * 7 * 9)).expect("a latent");
    let (width, height) = (101, 94);
    let open = || {
        let engine = Engine::new(EngineOptions { device: devices::options().device, ..EngineOptions::default() }).expect("an engine");
        let decoder = engine.load_decoder(folder.path()).expect("a decoder");
        let least = smallest(&engine, || decoder.plan(&latent, width, height, Form::Float));
        engine.gpu().set_memory_ceiling(Some(least));
        (engine, decoder)
    };
    let (engine, decoder) = open();
    let whole = decoder.decode(&latent, width, height).expect("a decode under a ceiling");
    for when in [0.2, 0.7] {
        let engine = std::sync::Arc::new(open());
        let lost = engine.clone();
        let observer = Observer::new(move |progress| {
            if progress.done > when {
                lost.0.gpu().lose();
            }
        });
        let result = pollster::block_on(engine.1.decode_async(&latent, width, height, &observer));
        match result {
            Err(Error::DeviceLost { during, .. }) => assert!(!during.is_empty()),
            other => panic!("lost at {when}: {other:?}"),
        }
    }
    drop((engine, decoder));
    let again = open().1.decode(&latent, width, height).expect("a decode on a new device");
    assert_eq!(bits(again.data()), bits(whole.data()));
}

/// Without room on the host, planes are computed again instead.
#[test]
fn recomputed_planes_are_the_same() {
    let test = "recomputed_planes_are_the_same";
    let mut dice = Dice::new();
    for (name, engine) in engines(test, Some(0)).into_iter().take(2) {
        let folder = Case::open("infgen-small-skip").write_weights();
        let decoder = engine.load_decoder(folder.path()).expect("a decoder");
        let values = dice.values(4 * 7 * 9);
        let latent = Latent::new([1, 4, 7, 9], values).expect("a latent");
        let (width, height) = (101, 94);
        let plan = || decoder.plan(&latent, width, height, Form::Float);
        let run = || Ok(decoder.decode(&latent, width, height)?.data().to_vec());
        let whole = run().expect("runs");
        let peak = plan().expect("a plan").peak_bytes;
        let held = engine.gpu().held_bytes();
        let planned = under(&engine, name, held + (peak - held) * 6 / 10, &whole, (width, 3), plan, run);
        let schedule = planned.schedule.expect("does not fit whole");
        assert!(schedule.flops > schedule.flops_once && schedule.host_peak_bytes == 0, "{schedule}");
    }
}

/// Every band counts: with next to no memory on either side bands in the middle compute most again, more than the first and the last. What is
/// planned is what runs, and the least ceiling that a refusal names does.
#[test]
fn a_plan_counts_all_of_its_bands() {
    let mut dice = Dice::new();
    for (name, engine) in engines("a_plan_counts_all_of_its_bands", Some(3000)).into_iter().take(1) {
        let folder = Case::open("infgen-small-skip").write_weights();
        let decoder = engine.load_decoder(folder.path()).expect("a decoder");
        for (w, h, width, height) in [(11, 14, 40, 66), (6, 15, 33, 170)] {
            let latent = Latent::new([1, 4, h, w], dice.values(4 * h * w)).expect("a latent");
            let plan = || decoder.plan(&latent, width, height, Form::Float);
            let run = || Ok(decoder.decode(&latent, width, height)?.data().to_vec());
            let (whole, least) = (run().expect("runs"), smallest(&engine, plan));
            let held = engine.gpu().held_bytes();
            let mut planned = 0;
            for percent in (100..150).step_by(5) {
                let ceiling = held + (least - held) * percent / 100;
                engine.gpu().set_memory_ceiling(Some(ceiling));
                let possible = plan();
                engine.gpu().set_memory_ceiling(None);
                match possible {
                    Ok(_) => {
                        under(&engine, &format!("{name} {width}x{height}"), ceiling, &whole, (width, 3), plan, run);
                        planned += 1;
                    }
                    Err(Error::HostMemory { .. }) => {}
                    Err(other) => panic!("{width}x{height} under {percent} % of the least ceiling: {other}"),
                }
            }
            assert!(planned > 0, "{width}x{height}: host memory is always short");
        }
    }
}

/// Textures of a region stay while the others are made: what does not fit with them is refused before the first.
#[test]
fn a_region_in_several_textures_is_counted_whole() {
    let mut dice = Dice::new();
    for (_, engine) in engines("a_region_in_several_textures_is_counted_whole", None).into_iter().take(1) {
        let folder = Case::open("infgen-small-patch4").write_weights();
        let decoder = engine.load_decoder(folder.path()).expect("a decoder");
        let latent = Latent::new([1, 4, 7, 9], dice.values(4 * 7 * 9)).expect("a latent");
        let decoding = decoder.prepare(&latent, 300, 240).expect("prepared");
        let rect = Rect { x: 101, y: 83, w: 90, h: 70 };
        let held = engine.gpu().held_bytes();
        let region = || pollster::block_on(decoding.region_picture_async(rect, &Observer::default()));
        let ceilings = (0..24).map(|n| held + (150_000.0 * 1.15f64.powi(n)) as u64);
        let (mut several, mut refused) = (0, 0);
        for ceiling in ceilings {
            engine.gpu().trim();
            engine.gpu().set_memory_ceiling(Some(ceiling));
            engine.gpu().reset_peak();
            match region() {
                Ok(pieces) => {
                    assert_eq!(pieces.iter().map(|(rect, _)| rect.w * rect.h).sum::<usize>(), 90 * 70);
                    several += (pieces.len() > 1) as usize;
                }
                Err(Error::MemoryCeiling { needed, .. }) => {
                    assert_eq!(engine.memory().peak, held, "under {ceiling} bytes something ran before it was refused");
                    // In single pixels, so once is enough.
                    if refused == 0 {
                        engine.gpu().set_memory_ceiling(Some(needed));
                        region().unwrap_or_else(|error| panic!("what was asked for, {needed} bytes, does not do: {error}"));
                    }
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
            assert!(engine.memory().peak <= engine.gpu().memory_ceiling().unwrap());
            engine.gpu().set_memory_ceiling(None);
        }
        assert!(several > 2 && refused > 2, "{several} in several, {refused} refused");
    }
}

/// A device with less memory than a decode in one piece takes gets it in bands without being asked for a ceiling.
#[test]
fn a_decode_that_runs_out_of_memory_goes_on_with_less() {
    let mut dice = Dice::new();
    for (name, engine) in engines("a_decode_that_runs_out_of_memory_goes_on_with_less", None).into_iter().take(2) {
        let folder = Case::open("infgen-small-skip").write_weights();
        let decoder = engine.load_decoder(folder.path()).expect("a decoder");
        let latent = Latent::new([1, 4, 7, 9], dice.values(4 * 7 * 9)).expect("a latent");
        let (width, height) = (101, 94);
        let run = || Ok(decoder.decode(&latent, width, height)?.data().to_vec());
        let whole: Vec<f32> = run().expect("runs");
        let peak = decoder.plan(&latent, width, height, Form::Float).expect("a plan").peak_bytes;
        let held = engine.gpu().held_bytes();
        for percent in [95, 60] {
            engine.gpu().trim();
            engine.gpu().reset_peak();
            let device = held + (peak - held) * percent / 100;
            engine.gpu().force_memory(device);
            let result = run().unwrap_or_else(|e| panic!("{name}, {percent} %: {e}"));
            assert_eq!(same(&result, &whole, width, 3), Ok(()), "{name}, {percent} %");
            let decoding = decoder.prepare(&latent, width, height).unwrap_or_else(|e| panic!("{name}, {percent} %: {e}"));
            assert!(engine.memory().peak <= device, "{name}, {percent} %: {} bytes on a device of {device}", engine.memory().peak);
            let rect = Rect { x: 3, y: 5, w: 20, h: 9 };
            let region = decoding.region(rect).expect("a region");
            assert_eq!(same(region.data(), &crop(&whole, width, rect), rect.w, 3), Ok(()), "{name}, {percent} %");
        }
        engine.gpu().trim();
        engine.gpu().force_memory(held + 1000);
        assert!(matches!(run(), Err(Error::OutOfMemory { .. })), "{name}: nothing would fit");
    }
}
