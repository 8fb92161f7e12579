//! `infgen bench`: kernels at the shapes that the networks use, transfers, pipelines and whole decodes, beside the device's own peaks.

mod cases;
mod check;
mod measure;

use std::cell::Cell;
use std::collections::BTreeSet;

use infgen::error::human_bytes;
use infgen::gpu::{DeviceProfile, Elem, KernelFamily, KernelPlan, Recorder};
use infgen::image::{check_writable, write_whole};
use infgen::nn::Precision;
use infgen::{Dtype, Engine, EngineOptions, Error, Latent, Result};
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::run::{Run, weights};
use cases::{CASES, Op, Operands};
use measure::{Bench, Measured, Peaks};

/// Operations of one kernel's measurement on a software device: larger planes lose rows.
const SOFTWARE_FLOPS: u64 = 2_000_000_000;

/// Rows of the table and of the JSON report.
struct Report<'a> {
    run: &'a Run,
    peaks: Peaks,
    rows: Vec<Value>,
}

impl Report<'_> {
    fn line(&mut self, name: &str, m: &Measured, facts: Value) -> Result<()> {
        let (roof, share, bound) = self.peaks.roof(m);
        let mut row = json!({
            "name": name, "seconds": m.seconds, "spread": m.spread, "wall_seconds": m.wall, "cpu_seconds": m.cpu, "flops": m.flops,
            "bytes": m.bytes, "gflops": m.gflops(), "gbytes_per_s": m.gbytes(), "roof_gflops": roof, "share_of_roof": share, "bound": bound,
        });
        if let (Value::Object(row), Value::Object(facts)) = (&mut row, facts) {
            row.extend(facts);
        }
        self.rows.push(row);
        if self.run.common.json {
            return Ok(());
        }
        let (ms, spread, share) = (m.seconds * 1e3, m.spread * 100.0, share * 100.0);
        let rate = |on: bool, value: f64| if on { format!("{value:.1}") } else { "-".into() };
        let (gflops, gbytes) = (rate(m.flops > 0, m.gflops()), rate(m.bytes > 0, m.gbytes()));
        let intensity = rate(m.flops > 0 && m.bytes > 0, m.flops as f64 / m.bytes as f64);
        let roof = rate(m.flops > 0, roof);
        let rates = format!("{gflops:>9} {gbytes:>7} {intensity:>7} {roof:>9}");
        self.run.print(format_args!("{name:<62} {ms:>9.2} {spread:>4.0} {rates} {share:>5.0}% {bound}"))
    }

    fn note(&self, line: &str) -> Result<()> {
        if self.run.common.json { Ok(()) } else { self.run.print(line) }
    }
}

pub fn bench(run: &Run, args: &BenchArgs) -> Result<()> {
    check_names(&args.names)?;
    args.output.as_deref().map_or(Ok(()), check_writable)?;
    let engine = run.engine_with(EngineOptions { bounds_checks: args.bounds_checks, ..EngineOptions::default() })?;
    let gpu = engine.gpu();
    let software = engine.device().kind == "software";
    let bench = Bench { gpu, software, repeat: args.repeat, observer: run.observer.quiet() };
    let wanted = |name: &str| args.names.is_empty() || args.names.iter().any(|part| name.contains(part.as_str()));
    let dtype = Dtype::from(run.common.dtype);

    let (fma, copy) = run.stage("peaks", |_| bench.peaks())?;
    let peaks = Peaks { flops: fma.flops as f64 / fma.seconds, bytes: copy.bytes as f64 / copy.seconds };
    let mut report = Report { run, peaks, rows: Vec::new() };
    let clock = if software { "CPU time over cores" } else { "GPU timestamps" };
    report.note(&format!("{}; times are {clock}, medians of {}", device_line(&engine), args.repeat))?;
    report.note(&format!("own peaks: {:.1} GFLOP/s multiply-add in f32, {:.1} GB/s copy", peaks.flops * 1e-9, peaks.bytes * 1e-9))?;
    if dtype == Dtype::F16 {
        report.note("weights f16; activations f16, those of the UNet's own shapes f32, as text to image has them")?;
    }
    report.note(&format!(
        "{:<62} {:>9} {:>4} {:>9} {:>7} {:>7} {:>9} {:>6} bound by",
        "kernel", "ms", "+-%", "GFLOP/s", "GB/s", "flop/B", "roof", "share"
    ))?;

    let mut wrong = Vec::new();
    for case in CASES {
        let op = if software && !args.full { case.op.within(SOFTWARE_FLOPS) } else { case.op };
        if !wanted(&op.name()) || args.network.as_ref().is_some_and(|net| !case.nets.split(' ').any(|n| n == net)) {
            continue;
        }
        let precision = case.precision(dtype);
        let families: Vec<Option<KernelFamily>> = match op.families() {
            all if args.variants && !all.is_empty() => {
                let own = |family: &KernelFamily| family.is_own(gpu.profile(), precision.activations, precision.weights);
                all.into_iter().filter(own).map(Some).collect()
            }
            _ => vec![None],
        };
        let operands = Operands::new(op, precision);
        let record = run.stage("prepare", |_| pollster::block_on(operands.upload(gpu)))?;
        for family in families {
            let profile = match family {
                Some(family) => DeviceProfile { kernels: KernelPlan::uniform(family), ..*gpu.profile() },
                None => *gpu.profile(),
            };
            let name = match family {
                Some(family) => format!("{} [{}]", op.name(), family),
                None => op.name(),
            };
            let mut facts = facts(case.nets, op, precision, family);
            if args.check {
                match run.stage("check", |_| check::check(gpu, Recorder::new(profile), &*record, &operands)) {
                    Ok(worst) => facts["worst_error_over_bound"] = json!(worst),
                    Err(error @ Error::Gpu { .. }) => {
                        report.note(&format!("{name:<62} WRONG: {error}"))?;
                        wrong.push(error.to_string());
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            let append = |rec: &mut Recorder| drop(record(rec));
            let measured = run.stage("kernels", |_| bench.measure(&|| Recorder::new(profile), &append))?;
            report.line(&name, &measured, facts)?;
        }
    }
    if wanted("upload") || wanted("readback") {
        let (up, down) = run.stage("transfers", |_| bench.transfers())?;
        report.line("upload 64 MiB", &up, json!({ "op": "upload" }))?;
        report.line("readback 64 MiB", &down, json!({ "op": "readback" }))?;
    }
    decodes(run, args, &engine, &bench, &mut report, &wanted)?;
    let facts = json!({
        "command": "bench", "kind": engine.device().kind, "clock": clock, "bounds_checks": gpu.bounds_checks(), "dtype": if dtype == Dtype::F16 { "f16" } else { "f32" },
        "cores": std::thread::available_parallelism().map_or(1, |n| n.get()), "wrong": wrong,
        "peak_gflops": peaks.flops * 1e-9, "peak_gbytes_per_s": peaks.bytes * 1e-9, "results": report.rows,
    });
    if let Some(path) = &args.output {
        let text = serde_json::to_string_pretty(&run.report(&engine, facts.clone())).expect("a tree of values");
        write_whole(path, text.as_bytes())?;
    }
    if let Some(first) = wrong.first() {
        let detail = format!("{} of the kernels are wrong, the first: {first}", wrong.len());
        return Err(Error::Gpu { during: "checking kernels".into(), detail });
    }
    if run.common.json {
        return run.finish(&engine, &[], facts);
    }
    run.clear();
    Ok(())
}

/// Refuses names that nothing has.
fn check_names(names: &[String]) -> Result<()> {
    let ops: Vec<String> = CASES.iter().flat_map(|case| [case.op, case.op.within(SOFTWARE_FLOPS)]).map(Op::name).collect();
    // The device's own peaks are measured always: alone by their name.
    let others = ["peaks", "upload", "readback", "decode"];
    let known = |part: &str| ops.iter().any(|op| op.contains(part)) || others.iter().any(|name| part.contains(name) || name.contains(part));
    let Some(unknown) = names.iter().find(|part| !known(part)) else { return Ok(()) };
    let kinds: BTreeSet<&str> = ops.iter().filter_map(|op| op.split(' ').next()).chain(others).collect();
    let kinds: Vec<&str> = kinds.into_iter().collect();
    Err(Error::Invalid { what: "name", detail: format!("nothing has `{unknown}` in its name; there are {}", kinds.join(", ")) })
}

fn device_line(engine: &Engine) -> String {
    let facts = engine.device();
    format!("{} ({}, {})", facts.name, facts.backend, facts.driver)
}

fn facts(nets: &str, op: Op, precision: Precision, family: Option<KernelFamily>) -> Value {
    let mut facts = op.json();
    facts["networks"] = json!(nets.split(' ').collect::<Vec<_>>());
    facts["activations"] = json!(if precision.activations == Elem::Half { "f16" } else { "f32" });
    if let Some(family) = family {
        facts["family"] = json!(family.to_string());
    }
    facts
}

/// Whole decodes: the first one with the pipelines it has to make, then as they go.
fn decodes(
    run: &Run,
    args: &BenchArgs,
    engine: &Engine,
    bench: &Bench<'_>,
    report: &mut Report<'_>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let usual: &[usize] = if bench.software { &[256] } else { &[512, 1024, 2048] };
    let sizes = if args.sizes.is_empty() { usual } else { &args.sizes };
    let sizes: Vec<usize> = sizes.iter().copied().filter(|size| wanted(&format!("decode {size}x{size}"))).collect();
    if sizes.is_empty() {
        return Ok(());
    }
    let decoder = run.load_decoder(engine, weights(args.weights.as_deref()))?;
    let channels = decoder.facts().latent_channels;
    for size in sizes {
        let side = if decoder.facts().any_size { 64 } else { size / decoder.facts().scale };
        // Two in turn: a decoder keeps the base picture of the last one.
        let latent = |seed| Latent::new([1, channels, side, side], infgen::noise::torch_cpu_randn(seed, channels * side * side));
        let (latents, turn) = ([latent(1)?, latent(2)?], Cell::new(0));
        let next = || &latents[turn.replace(1 - turn.get())];
        let flops = decoder.estimate(&latents[0], size, size)?.flops;
        let before = engine.gpu().compiled();
        engine.gpu().trim();
        engine.gpu().reset_peak();
        let rounds = args.repeat.min(if bench.software { 2 } else { 5 });
        let (first, later) =
            run.stage("decode", |observer| bench.host(rounds, &|| decoder.decode_rgb8(next(), size, size, observer).map(|_| ())))?;
        let compiled = engine.gpu().compiled();
        let (count, seconds) = (compiled.0 - before.0, (compiled.1 - before.1).as_secs_f64());
        let peak = engine.memory().peak;
        let facts = json!({
            "op": "decode", "model": decoder.facts().model, "width": size, "height": size, "latent": [channels, side, side],
            "first_wall_seconds": first.wall, "pipelines": count, "pipeline_seconds": seconds, "peak_gpu_bytes": peak,
        });
        report.line(&format!("decode {size}x{size} (with readback)"), &Measured { flops, ..later }, facts)?;
        report.note(&format!(
            "  wall {:.2} s, CPU {:.2} s; the first took {:.2} s, {count} pipelines of it {seconds:.2} s; peak {}",
            later.wall,
            later.cpu,
            first.wall,
            human_bytes(peak)
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_names;

    /// `benches/compare.py` asks for the peaks alone, `benches/gpu-session.sh` for the others.
    #[test]
    fn names_in_use_are_known_and_others_refused() {
        let known = |names: &[&str]| check_names(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).is_ok();
        assert!(known(&["peak"]));
        assert!(known(&["conv2d", "linear", "attention", "norm", "geglu", "decode", "upload", "readback"]));
        assert!(known(&[]));
        assert!(!known(&["conv2d", "convolution 9x9"]));
    }
}
