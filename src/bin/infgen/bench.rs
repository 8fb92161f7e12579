//! `infgen bench`: kernels at the shapes that the networks use, and whole decodes, beside the device's own peaks.

use infgen::gpu::{Elem, Gpu, Observer, Recorder, Tensor};
use infgen::kernels::Act;
use infgen::kernels::attention::attention;
use infgen::kernels::conv2d::{self, ConvWeights, Geometry};
use infgen::kernels::geglu::geglu;
use infgen::kernels::group_norm::{GroupNormWeights, group_norm, norm_apply};
use infgen::kernels::inpe::{GridRows, inpe_features};
use infgen::kernels::layer_norm::{LayerNormWeights, layer_norm};
use infgen::kernels::linear::{self, LinearWeights};
use infgen::kernels::output::{count_nonfinite, image_to_rgba8};
use infgen::kernels::peak::{peak_copy, peak_fma};
use infgen::kernels::resample::resample_bilinear;
use infgen::{Dtype, Latent, Result};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::run::{Run, weights};

/// One kernel at one shape: records it once on fresh inputs.
struct Case<'a> {
    name: String,
    record: Box<dyn Fn(&mut Recorder) + 'a>,
}

/// Median time of one case, with what it did.
struct Measured {
    name: String,
    seconds: f64,
    spread: f64,
    flops: u64,
    bytes: u64,
}

pub fn bench(run: &Run, args: &BenchArgs) -> Result<()> {
    let engine = run.engine()?;
    let gpu = engine.gpu();
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|part| name.contains(part.as_str()));
    let elem = if Dtype::from(run.common.dtype) == Dtype::F32 { Elem::F32 } else { Elem::Half };
    let software = engine.device().kind == "software";

    let peaks = run.stage("peaks", |_| {
        let rounds = if software { 256 } else { 4096 };
        let groups = if software { 2048 } else { 16384 };
        let size = if software { 1 << 20 } else { 1 << 22 };
        let fma = measure(gpu, args.repeat, "peak_fma", &|rec| drop(peak_fma(rec, groups, rounds)))?;
        let copy = measure(gpu, args.repeat, "peak_copy", &|rec| {
            let x = rec.tensor(1, size, 4, Elem::F32);
            peak_copy(rec, &x);
        })?;
        Ok((fma.flops as f64 / fma.seconds, copy.bytes as f64 / copy.seconds))
    })?;
    if !run.common.json {
        println!("device's own peaks: {:.1} GFLOP/s f32 multiply-add, {:.1} GB/s copy", peaks.0 * 1e-9, peaks.1 * 1e-9);
        println!("{:<44} {:>10} {:>7} {:>10} {:>8} {:>7}", "kernel", "ms", "+-%", "GFLOP/s", "GB/s", "peak");
    }

    let mut rows: Vec<Value> = Vec::new();
    let mut show = |m: &Measured| {
        let (gflops, gbytes) = (m.flops as f64 / m.seconds * 1e-9, m.bytes as f64 / m.seconds * 1e-9);
        // The nearer of the two roofs.
        let share = (gflops * 1e9 / peaks.0).max(gbytes * 1e9 / peaks.1);
        rows.push(json!({
            "name": m.name, "seconds": m.seconds, "spread": m.spread, "gflops": gflops, "gbytes_per_s": gbytes, "share_of_peak": share,
        }));
        if !run.common.json {
            let (ms, spread, share) = (m.seconds * 1e3, m.spread * 100.0, share * 100.0);
            println!("{:<44} {ms:>10.2} {spread:>7.0} {gflops:>10.1} {gbytes:>8.2} {share:>6.0}%", m.name);
        }
    };

    let cases = run.stage("prepare", |_| pollster::block_on(cases(gpu, elem)))?;
    for case in cases.iter().filter(|case| wanted(&case.name)) {
        let measured = run.stage("kernels", |_| measure(gpu, args.repeat, &case.name, &case.record))?;
        show(&measured);
    }

    let sizes: &[usize] = if software { &[256, 512] } else { &[512, 1024, 2048] };
    let decodes: Vec<usize> = sizes.iter().copied().filter(|size| wanted(&format!("decode {size}x{size}"))).collect();
    if !decodes.is_empty() {
        let decoder = run.stage("load", |_| engine.load_decoder(weights(args.weights.as_deref())))?;
        let channels = decoder.facts().latent_channels;
        for size in decodes {
            let side = if decoder.facts().any_size { 64 } else { size / decoder.facts().scale };
            let latent = Latent::new([1, channels, side, side], noise(channels * side * side))?;
            let flops = decoder.estimate(&latent, size, size)?.flops;
            let mut times = Vec::new();
            for round in 0..args.repeat.min(if software { 2 } else { 5 }) + 1 {
                let start = std::time::Instant::now();
                run.stage("decode", |observer| decoder.decode_rgb8(&latent, size, size, observer))?;
                // The first run compiles pipelines.
                if round > 0 {
                    times.push(start.elapsed().as_secs_f64());
                }
            }
            let (seconds, spread) = median(times);
            show(&Measured { name: format!("decode {size}x{size} (wall, with readback)"), seconds, spread, flops, bytes: 0 });
        }
    }
    if run.common.json {
        run.finish(
            &engine,
            &[],
            json!({ "command": "bench", "peak_gflops": peaks.0 * 1e-9, "peak_gbytes_per_s": peaks.1 * 1e-9, "results": rows }),
        );
    } else {
        run.clear();
    }
    Ok(())
}

/// Reproducible values around zero.
fn noise(count: usize) -> Vec<f32> {
    infgen::noise::torch_cpu_randn(1, count)
}

/// Sum of GPU times of what `record` appends, median of `repeat` after one warm-up; wall time without timestamps.
fn measure(gpu: &Gpu, repeat: u32, name: &str, record: &dyn Fn(&mut Recorder)) -> Result<Measured> {
    let mut times = Vec::new();
    let (mut flops, mut bytes) = (0, 0);
    for round in 0..repeat + 1 {
        let mut rec = gpu.recorder();
        record(&mut rec);
        let start = std::time::Instant::now();
        let outputs = pollster::block_on(gpu.run_timed(rec.finish(), &Observer::default()))?;
        let wall = start.elapsed().as_secs_f64();
        let timed: f64 = outputs.timings.iter().map(|t| t.seconds).sum();
        flops = outputs.timings.iter().map(|t| t.flops).sum();
        bytes = outputs.timings.iter().map(|t| t.bytes).sum();
        if round > 0 {
            times.push(if timed > 0.0 { timed } else { wall });
        }
    }
    let (seconds, spread) = median(times);
    Ok(Measured { name: name.to_owned(), seconds, spread, flops, bytes })
}

/// Median, and half the range relative to it.
fn median(mut times: Vec<f64>) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    let middle = times[times.len() / 2].max(1e-9);
    (middle, (times[times.len() - 1] - times[0]) / 2.0 / middle)
}

async fn upload(gpu: &Gpu, values: &[f32], elem: Elem) -> Result<Tensor> {
    let bytes = infgen::gpu::to_units(values, values.len(), elem);
    gpu.resident("bench", &bytes, 1, 1, values.len(), elem).await
}

/// The shapes: the shipped decoder's, the SD VAE's and InfGen's `table1`.
async fn cases(gpu: &Gpu, elem: Elem) -> Result<Vec<Case<'static>>> {
    let mut cases: Vec<Case<'static>> = Vec::new();
    let activations = move |rec: &mut Recorder, h: usize, w: usize, c: usize| rec.upload(&noise(h * w * c), h, w, c, elem);
    for (h, w, cin, cout) in [(512, 512, 32, 32), (256, 256, 64, 64), (128, 128, 128, 128), (64, 64, 512, 512), (512, 512, 32, 3)] {
        let weight = noise(cout * cin * 9);
        let bias = upload(gpu, &noise(cout), Elem::F32).await?;
        let plain = ConvWeights { weight: upload(gpu, &conv2d::pack_square(&weight, cout, cin, 3).values, elem).await?, bias, cin, cout };
        let shape = format!("{h}x{w} {cin}->{cout}");
        let conv = plain.clone();
        cases.push(Case {
            name: format!("conv2d 3x3 {shape}"),
            record: Box::new(move |rec| {
                let x = activations(rec, h, w, cin);
                conv2d::conv2d_3x3(rec, &x, None, &conv, None, Act::None, elem);
            }),
        });
        if cin == cout && h < 512 {
            let phases = ConvWeights { weight: upload(gpu, &conv2d::pack_phases(&weight, cout, cin).values, elem).await?, ..plain.clone() };
            cases.push(Case {
                name: format!("conv2d upsample 2x {shape}"),
                record: Box::new(move |rec| {
                    let x = activations(rec, h, w, cin);
                    conv2d::upsample2x_conv2d_3x3(rec, &x, &phases, Act::None, elem);
                }),
            });
            let geometry = Geometry { kernel: 3, stride: 2, pad_before: 1, pad_after: 1 };
            cases.push(Case {
                name: format!("conv2d stride 2 {shape}"),
                record: Box::new(move |rec| {
                    let x = activations(rec, h, w, cin);
                    conv2d::conv2d_strided(rec, &x, &plain, geometry, Act::None, elem);
                }),
            });
            let ones = upload(gpu, &vec![1.0; cin], Elem::F32).await?;
            let norm = GroupNormWeights { weight: ones.clone(), bias: ones, groups: 32, eps: 1e-6 };
            cases.push(Case {
                name: format!("group_norm + silu {h}x{w}x{cin}"),
                record: Box::new(move |rec| {
                    let x = activations(rec, h, w, cin);
                    let affine = group_norm(rec, &x, &norm);
                    norm_apply(rec, &x, &affine, true, elem);
                }),
            });
        }
    }
    for (rows, k, n) in [(4096, 128, 512), (4096, 512, 512), (4096, 512, 2048)] {
        let weight = upload(gpu, &linear::pack_linear(&noise(n * k), n, k).values, elem).await?;
        let layer = LinearWeights { weight, bias: upload(gpu, &noise(n), Elem::F32).await?, inputs: k, outputs: n };
        cases.push(Case {
            name: format!("linear {rows}x{k}->{n}"),
            record: Box::new(move |rec| {
                let x = activations(rec, rows, 1, k);
                linear::linear(rec, &x, &layer, None, Act::None, elem);
            }),
        });
    }
    for (n, m, heads, d) in [(1024, 1024, 4, 32), (1024, 1024, 8, 64), (256, 77, 8, 40), (1024, 1024, 1, 512)] {
        cases.push(Case {
            name: format!("attention {n} queries {m} keys {heads}x{d}"),
            record: Box::new(move |rec| {
                let q = activations(rec, n, 1, heads * d);
                let kv = activations(rec, m, 1, heads * d);
                attention(rec, &q, &kv, &kv, heads, 1.0 / (d as f32).sqrt(), false, elem);
            }),
        });
    }
    let affine = gpu.resident("bench", &infgen::gpu::to_units(&noise(1024), 512, Elem::F32), 2, 1, 512, Elem::F32).await?;
    cases.push(Case {
        name: "layer_norm 4096x512".into(),
        record: Box::new(move |rec| {
            let x = activations(rec, 4096, 1, 512);
            layer_norm(rec, &x, &LayerNormWeights { affine: affine.clone(), eps: 1e-5 }, elem);
        }),
    });
    cases.push(Case {
        name: "geglu 4096x2560".into(),
        record: Box::new(move |rec| {
            let x = activations(rec, 4096, 1, 2560);
            geglu(rec, &x, elem);
        }),
    });
    let b = upload(gpu, &noise(256 * 3), Elem::F32).await?;
    let grid = GridRows { grid: (128, 128), row0: 0, rows: 128 };
    cases.push(Case {
        name: "inpe_features 128x128, 256 features".into(),
        record: Box::new(move |rec| {
            inpe_features(rec, &b, 256, grid, 1.5, 1.5);
        }),
    });
    cases.push(Case {
        name: "resample_bilinear 64x64 to 128x128x128".into(),
        record: Box::new(move |rec| {
            let x = activations(rec, 64, 64, 128);
            resample_bilinear(rec, &x, grid, elem);
        }),
    });
    cases.push(Case {
        name: "image_to_rgba8 1024x1024".into(),
        record: Box::new(move |rec| {
            let x = activations(rec, 1024, 1024, 3);
            image_to_rgba8(rec, &x, 1024, 1024, (0, 0));
        }),
    });
    cases.push(Case {
        name: "count_nonfinite 1024x1024x4".into(),
        record: Box::new(move |rec| {
            let x = activations(rec, 1024, 1024, 4);
            count_nonfinite(rec, &x);
        }),
    });
    Ok(cases)
}
