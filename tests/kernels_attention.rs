//! Attention against its f64 reference: odd shapes, three storage kinds, default limits, NaN-filled memory with guard bands.
//!
//! `CASE=<part of a label>` runs some cases only. `INFGEN_DEVICE` chooses the adapter; `REQUIRE_GPU=1` makes its absence a failure.

mod common;

use common::devices::Config;
use common::operands::{MATRIX, MIXED, start, start_gpu, values};
use common::suite::{Suite, evaluate};
use common::wide;
use infgen::gpu::{DeviceProfile, KernelFamily, MatrixUnits, Recorder};
use infgen::kernels::attention::{attention, attention_into};
use infgen::reference::{self, Bounded};

/// Queries, keys, heads, head dim, causal, standard deviation of the scores.
type Attention = (usize, usize, usize, usize, bool, f32);

#[test]
fn attention_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("attention_agrees_with_its_definition") else { return };
    // Blocks are 4 or 8 keys, runs of queries 8, 32 or 64.
    const SMALL: [Attention; 12] = [
        (1, 1, 1, 20, false, 2.0),
        (5, 1, 2, 20, false, 2.0),
        (3, 7, 2, 20, false, 2.0),
        (9, 8, 1, 20, false, 2.0),
        (17, 9, 3, 20, false, 2.0),
        (6, 77, 2, 20, false, 2.0),
        (65, 16, 1, 20, false, 2.0),
        (4, 33, 2, 20, false, 40.0),
        (8, 8, 2, 20, true, 2.0),
        (9, 9, 3, 20, true, 2.0),
        (77, 77, 2, 20, true, 2.0),
        (1, 1, 2, 20, true, 2.0),
    ];
    // Head dims of the networks. Each is a pipeline, which lavapipe compiles for up to 10 s.
    const DIMS: [Attention; 6] = [
        (3, 11, 5, 4, false, 2.0),
        (37, 43, 3, 32, false, 2.0),
        (3, 77, 2, 40, false, 2.0),
        (7, 37, 8, 64, false, 2.0),
        (19, 19, 2, 160, true, 2.0),
        (5, 19, 1, 512, false, 2.0),
    ];
    // Heads of whole octets, which software devices take in three passes (runs of 8 queries, 32 keys, 8 octets) where lanes do not read for each
    // other or heads are wider than 64. The last two have more queries than scores are kept for at a time.
    const OCTETS: [Attention; 13] = [
        (1, 1, 1, 40, false, 2.0),
        (3, 77, 2, 40, false, 2.0),
        (65, 32, 3, 40, false, 2.0),
        (9, 33, 1, 64, false, 2.0),
        (33, 6, 2, 64, false, 2.0),
        (77, 77, 2, 64, true, 2.0),
        (4, 66, 2, 48, false, 40.0),
        (8, 32, 3, 72, false, 2.0),
        (17, 31, 2, 72, false, 2.0),
        (7, 5, 2, 160, false, 2.0),
        (77, 77, 2, 72, true, 2.0),
        (67, 2049, 16, 72, false, 2.0),
        (67, 2049, 16, 72, true, 2.0),
    ];
    // 36: nine quads, which two lanes cannot share evenly.
    const OTHER: [Attention; 2] = [(5, 27, 2, 36, false, 2.0), (5, 27, 2, 80, false, 2.0)];
    for config in &configs {
        let dims = match config.name {
            "f32" => &DIMS[..],
            "f32, lanes of the other kind" => &OTHER,
            "packed" => &DIMS[5..],
            _ => &[],
        };
        // Elsewhere a head dim is a pipeline.
        let octets = if config.profile.software && !config.name.contains("browser") { &OCTETS[..] } else { &[] };
        for case in SMALL.iter().chain(dims).chain(octets) {
            attention_case(&mut suite, config, *case);
        }
        // Heads of 20 are no whole octets, which lanes of 8 read for each other.
        for &(n, m, heads, _, causal, logit) in SMALL.iter().filter(|_| config.device.profile.broadcast) {
            attention_case(&mut suite, config, (n, m, heads, 24, causal, logit));
        }
    }
    suite.finish(80);
}

/// More pipelines of the same: `cargo test -- --ignored`. Heads wider than 80 take a software device minutes with 64 lanes.
#[test]
#[ignore = "a minute of compiling on a software device"]
fn attention_agrees_with_its_definition_at_more_head_dims() {
    let Some((mut suite, configs)) = start("attention_agrees_with_its_definition_at_more_head_dims") else { return };
    for config in configs.iter().filter(|c| c.name.starts_with("f32")) {
        for (heads, d) in [(2, 8), (3, 36), (2, 40), (2, 48), (2, 64), (1, 68), (2, 80), (1, 160), (2, 256), (1, 512)] {
            if d <= 80 || config.name == "f32" || !config.device.profile.software {
                attention_case(&mut suite, config, (11, 29, heads, d, false, 2.0));
            }
        }
    }
    suite.finish(16);
}

fn attention_case(suite: &mut Suite, config: &Config, (n, m, heads, d, causal, logit): Attention) {
    let elem = config.elem;
    let label = format!("{n} queries {m} keys {heads} x {d} causal={causal} scores {logit}");
    let c = heads * d;
    let amp = (3.0 * logit).sqrt();
    let (q, k) = (values(&label, "q", n * c, amp, elem), values(&label, "k", m * c, amp, elem));
    let v = values(&label, "v", m * c, 1.7, elem);
    let scale = 1.0 / (d as f32).sqrt();
    let record = |rec: &mut Recorder| {
        let q = rec.upload(&q, n, 1, c, elem);
        let k = rec.upload(&k, m, 1, c, elem);
        let v = rec.upload(&v, m, 1, c, elem);
        attention(rec, &q, &k, &v, heads, scale, causal, elem)
    };
    suite.case(config, &label, record, || {
        let split = reference::Heads { heads, head_dim: d, scale: scale as f64, causal };
        reference::attention(&wide(&q), &wide(&k), &wide(&v), split)
    });
}

/// The kernels for GPUs, whatever the device: blocks of 32 keys, of 64 for heads wider than 160; runs of 64 queries.
#[test]
fn attention_for_gpus_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start_gpu("attention_for_gpus_agrees_with_its_definition") else { return };
    const CASES: [Attention; 16] = [
        (1, 1, 2, 64, false, 2.0),
        (63, 31, 1, 64, false, 2.0),
        (64, 32, 3, 64, false, 2.0),
        (65, 33, 2, 64, false, 2.0),
        (130, 97, 2, 64, false, 2.0),
        (5, 77, 2, 64, false, 2.0),
        (67, 65, 2, 64, false, 40.0),
        (66, 66, 1, 64, true, 2.0),
        (130, 130, 2, 64, true, 2.0),
        (9, 47, 3, 32, false, 2.0),
        (70, 35, 2, 40, false, 2.0),
        (66, 64, 2, 40, true, 40.0),
        (33, 61, 2, 80, false, 2.0),
        (19, 41, 2, 160, false, 2.0),
        // Peaks that grow from block to block, in every shape of workgroup.
        (70, 200, 2, 64, false, 40.0),
        (200, 200, 1, 40, true, 40.0),
    ];
    // Odd quads and other pipelines; heads beyond 160 take 28 KiB of workgroup memory.
    const OTHER: [Attention; 9] = [
        (9, 37, 3, 4, false, 2.0),
        (9, 37, 2, 36, false, 2.0),
        (9, 37, 2, 68, false, 2.0),
        (66, 67, 1, 164, true, 2.0),
        (9, 63, 1, 512, false, 2.0),
        (65, 130, 1, 512, false, 2.0),
        (3, 33, 1, 520, false, 2.0),
        (40, 300, 1, 160, false, 40.0),
        (40, 300, 1, 512, false, 40.0),
    ];
    let narrow: Vec<Config> = configs.iter().filter(|c| c.name == MATRIX).map(|c| c.with_kernels(KernelFamily::NarrowMatrix)).collect();
    for config in configs.iter().chain(&narrow) {
        let other = if matches!(config.name, "f32" | MATRIX | MIXED) { &OTHER[..] } else { &[] };
        for case in CASES.iter().chain(other) {
            attention_case(&mut suite, config, *case);
        }
    }
    suite.finish(70);
}

/// Keys that no binding holds whole: ranges of them, merged.
#[test]
fn attention_over_ranges_of_keys_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start("attention_over_ranges_of_keys_agrees_with_its_definition") else { return };
    // Most keys a range: 8, 16, 40. The last range may be short, or a single key.
    const CASES: [(Attention, u64); 6] = [
        ((1, 9, 1, 20, false, 2.0), 8),
        ((70, 33, 2, 20, false, 2.0), 8),
        ((17, 40, 3, 20, false, 2.0), 16),
        ((5, 33, 2, 20, false, 40.0), 8),
        ((37, 121, 3, 32, false, 2.0), 40),
        ((9, 90, 1, 64, false, 2.0), 40),
    ];
    let mut ranges = |config: &Config, cases: &[(Attention, u64)]| {
        for &(case, keys) in cases {
            let (_, _, heads, d, ..) = case;
            let max_binding = keys * (heads * d / 4) as u64 * config.elem.bytes() + config.profile.offset_alignment;
            let profile = DeviceProfile { max_binding, ..config.profile };
            attention_case(&mut suite, &Config { profile, ..*config }, case);
        }
    };
    for config in configs.iter().filter(|c| !c.name.contains("browser")) {
        ranges(config, &CASES);
    }
    // Whole blocks of the kernels for GPUs: 32 keys, 64 for the widest heads; a range of fewer goes to the other kernel.
    const BLOCKS: [(Attention, u64); 5] = [
        ((70, 33, 2, 64, false, 2.0), 32),
        ((66, 97, 2, 64, false, 40.0), 40),
        ((9, 200, 1, 40, false, 2.0), 64),
        ((9, 70, 1, 512, false, 2.0), 64),
        ((9, 70, 1, 64, false, 2.0), 24),
    ];
    let (_, gpu) = start_gpu("attention_over_ranges_of_keys_agrees_with_its_definition").expect("as above");
    for config in gpu.iter().filter(|c| matches!(c.name, "f32" | "packed" | MATRIX | MIXED)) {
        ranges(config, &BLOCKS);
    }
    suite.finish(28);
}

/// Matrix units whose subgroups are half as large as the kernels count on: two of them do the work of one.
#[test]
fn attention_by_smaller_subgroups_agrees_with_its_definition() {
    let Some((mut suite, configs)) = start_gpu("attention_by_smaller_subgroups_agrees_with_its_definition") else { return };
    const CASES: [Attention; 4] =
        [(66, 97, 2, 32, false, 40.0), (72, 72, 2, 64, true, 2.0), (33, 40, 1, 160, false, 2.0), (9, 70, 1, 512, false, 2.0)];
    for config in configs.iter().filter(|c| matches!(c.name, MATRIX | MIXED)) {
        let matrix = config.profile.matrix.map(|units| MatrixUnits { subgroup: 2 * units.subgroup, ..units });
        let config = Config { profile: DeviceProfile { matrix, ..config.profile }, ..*config };
        for case in CASES {
            attention_case(&mut suite, &config, case);
        }
    }
    suite.finish(0);
}

/// Few queries and many keys on a device that has room for more workgroups: the keys are split, and some rows of the queries have the bits that
/// they have among all.
#[test]
fn keys_are_split_to_fill_a_device() {
    let test = "keys_are_split_to_fill_a_device";
    let Some((mut suite, configs)) = start_gpu(test) else { return };
    // Workgroups that fill the device, ranges that follow for `attention_tile`.
    const CASES: [(Attention, u32, usize); 6] = [
        ((5, 2048, 1, 20, false, 2.0), 2, 2),
        ((70, 3100, 2, 32, false, 2.0), 256, 3),
        ((30, 3100, 2, 32, false, 2.0), 4, 2),
        ((9, 2500, 1, 64, false, 40.0), 64, 2),
        ((3, 2100, 1, 512, false, 2.0), 64, 2),
        // A query that may not see all keys, keys that are too few.
        ((9, 2047, 2, 32, false, 2.0), 64, 1),
    ];
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed" | MATRIX | MIXED)) {
        for (case, fill, count) in CASES {
            let config = Config { profile: DeviceProfile { fill, ..config.profile }, ..*config };
            attention_case(&mut suite, &config, case);
            let (n, m, heads, d, ..) = case;
            let label = format!("{n} of queries {m} keys {heads} x {d} fill {fill} [{}]", config.name);
            if !suite.wants(&label) {
                continue;
            }
            let (c, elem) = (heads * d, config.elem);
            let [q, k, v] = [("q", n), ("k", m), ("v", m)].map(|(name, tokens)| values(&label, name, tokens * c, 2.0, elem));
            let record = |rec: &mut Recorder, first: usize| {
                let q = rec.upload(&q[first * c..], n - first, 1, c, elem);
                let [k, v] = [&k, &v].map(|values| rec.upload(values, m, 1, c, elem));
                let y = rec.tensor(n - first, 1, c, elem);
                attention_into(rec, [&q, &k, &v], heads, 0.2, false, &y, n);
                y
            };
            let mut rec = config.recorder();
            record(&mut rec, 0);
            let dispatches = rec.finish().dispatches();
            let [whole, part] = [0, n / 2].map(|first| evaluate(&config, |rec| record(rec, first)).unwrap().0);
            let differ = whole[n / 2 * c..].iter().zip(&part).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            suite.outcome(
                &label,
                match (differ, dispatches == 1 + (count > 1) as usize) {
                    (0, true) => Ok(0.0),
                    all => Err(format!("values that differ, split as expected: {all:?}")),
                },
            );
        }
    }
    suite.finish(24);
}

/// Queries that see one key only return its value: each key position in turn, in every place of a block.
#[test]
fn one_hot_attention_picks_one_value() {
    let Some((mut suite, configs)) = start("one_hot_attention_picks_one_value") else { return };
    let (m, d) = (19, 20);
    for config in configs.iter().filter(|c| matches!(c.name, "f32" | "packed" | "f32, lanes of the other kind")) {
        let elem = config.elem;
        // Query i is 40 times a unit vector that key i alone has.
        let mut q = vec![0.0; m * d];
        let mut k = vec![0.0; m * d];
        for i in 0..m {
            q[i * d + i] = 40.0;
            k[i * d + i] = 40.0;
        }
        let v = values("one hot", "v", m * d, 1.7, elem);
        let record = |rec: &mut Recorder| {
            let q = rec.upload(&q, m, 1, d, elem);
            let k = rec.upload(&k, m, 1, d, elem);
            let v = rec.upload(&v, m, 1, d, elem);
            attention(rec, &q, &k, &v, 1, 1.0, false, elem)
        };
        suite.exact(config, "19 keys", record, || v.iter().map(|&v| Bounded::exact(v as f64)).collect());
    }
    suite.finish(3);
}
