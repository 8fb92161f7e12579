//! The kernels of diffusion transformers against plain loops, as in kernels.rs: patches, gates, heads that turn, and layers on some rows of a tensor.

mod common;

use common::devices::{configs, skipped};
use common::suite::Suite;
use common::synthetic::fill;
use common::{stored, wide};
use infgen::gpu::{Elem, Recorder};
use infgen::kernels::attention::{RelativeBias, attention_biased_into, attention_into};
use infgen::kernels::gated_add::gated_add_into;
use infgen::kernels::layer_norm::{LayerNormWeights, layer_norm_into};
use infgen::kernels::patchify::{patchify, unpatchify};
use infgen::kernels::rotary::{Rotary, rotary};
use infgen::reference::{self, Bounded};

fn values(label: &str, arg: &str, len: usize, elem: Elem) -> Vec<f32> {
    stored(fill(&format!("{label}.{arg}"), len, 1.7, 0.4, 0), elem)
}

#[test]
fn patches_become_tokens_and_planes_again() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("patches_become_tokens_and_planes_again");
    }
    let mut suite = Suite::new("patches_become_tokens_and_planes_again");
    for config in &configs {
        // Height, width, patch, channels of a pixel, and of those the ones that come back.
        for (h, w, p, c, kept) in
            [(2, 2, 2, 4, 0..4), (6, 4, 2, 8, 4..8), (4, 12, 4, 12, 0..8), (5, 3, 1, 4, 0..4), (9, 6, 3, 16, 0..16), (32, 32, 2, 8, 0..4)]
        {
            let label = format!("{h}x{w}x{c} by {p}, {kept:?} kept");
            let x = values(&label, "x", h * w * c, config.elem);
            // Value of a token in torch's order: [h / p, w / p, p, p, c].
            let token_of = |row: usize, column: usize| ((row / p) * (w / p) + column / p, (row % p) * p + column % p);
            let mut tokens = vec![0.0f32; h * w * c];
            for (i, value) in x.iter().enumerate() {
                let (row, column, channel) = (i / c / w, i / c % w, i % c);
                let (token, within) = token_of(row, column);
                tokens[(token * p * p + within) * c + channel] = *value;
            }
            let there = |rec: &mut Recorder| {
                let plane = rec.upload(&x, h, w, c, config.elem);
                patchify(rec, &plane, p, config.elem)
            };
            suite.exact(config, &label, there, || tokens.iter().map(|v| Bounded::exact(*v as f64)).collect());
            let back = |rec: &mut Recorder| {
                let tokens = rec.upload(&tokens, h / p, w / p, p * p * c, config.elem);
                unpatchify(rec, &tokens, p, kept.clone(), config.elem)
            };
            let want = || x.chunks_exact(c).flat_map(|pixel| pixel[kept.clone()].iter().map(|v| Bounded::exact(*v as f64))).collect();
            suite.exact(config, &format!("{label}, back"), back, want);
        }
    }
    suite.finish(12 * configs.len());
}

#[test]
fn a_gate_a_channel_scales_what_is_added() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("a_gate_a_channel_scales_what_is_added");
    }
    let mut suite = Suite::new("a_gate_a_channel_scales_what_is_added");
    for config in &configs {
        for (rows, c) in [(1, 4), (5, 36), (37, 7), (64, 1152), (300, 20)] {
            let label = format!("{rows}x{c}");
            let [x, residual] = ["x", "residual"].map(|name| values(&label, name, rows * c, config.elem));
            let gate = values(&label, "gate", c, Elem::F32);
            let record = |rec: &mut Recorder| {
                let [x, residual] = [&x, &residual].map(|v| rec.upload(v, rows, 1, c, config.elem));
                let gate = rec.upload(&gate, 1, 1, c, Elem::F32);
                let y = rec.tensor(rows, 1, c, config.elem);
                gated_add_into(rec, &x, &gate, &residual, &y);
                y
            };
            let want = || {
                let product = |i: usize| {
                    let value = gate[i % c] as f64 * x[i] as f64;
                    Bounded { value, bound: value.abs() * reference::ULP }
                };
                (0..rows * c).map(|i| product(i).plus(residual[i] as f64)).collect()
            };
            suite.case(config, &label, record, want);
        }
    }
    suite.finish(5 * configs.len());
}

#[test]
fn heads_turn_by_the_row_and_column_of_their_token() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("heads_turn_by_the_row_and_column_of_their_token");
    }
    let mut suite = Suite::new("heads_turn_by_the_row_and_column_of_their_token");
    for config in &configs {
        // Planes below each other, their size, heads and their width.
        for (planes, h, w, heads, d) in [(1, 1, 1, 1, 8), (2, 3, 5, 2, 16), (1, 20, 3, 3, 72), (2, 7, 9, 16, 72), (1, 2, 40, 5, 96)] {
            for norm in [None, Some(1e-3f32)] {
                let label = format!("{planes} planes of {h}x{w}, {heads} heads of {d}, norm {norm:?}");
                let c = heads * d;
                let x = values(&label, "x", planes * h * w * c, config.elem);
                let table = values(&label, "table", (h + w) * d / 2, Elem::F32);
                let record = |rec: &mut Recorder| {
                    let x = rec.upload(&x, planes * h, w, c, config.elem);
                    let table = rec.upload(&table, h + w, 1, d / 2, Elem::F32);
                    rotary(rec, &x, heads, &Rotary { table, rows: h, columns: w, norm })
                };
                let want = || {
                    let head = |(i, head): (usize, &[f32])| -> Vec<Bounded> {
                        let token = i / heads % (h * w);
                        let places = [token / w, h + token % w];
                        let values: Vec<Bounded> = match norm {
                            Some(eps) => reference::layer_norm(&wide(head), d, &vec![1.0; d], &vec![0.0; d], eps as f64),
                            None => head.iter().map(|v| Bounded::exact(*v as f64)).collect(),
                        };
                        let turned = |at: usize| {
                            let (pair, half) = (at / 2, at / (d / 2));
                            let angle = places[half] * d / 2 + 2 * (pair - half * d / 4);
                            let (cos, sin) = (table[angle] as f64, table[angle + 1] as f64);
                            let (own, other) = (&values[at], &values[at ^ 1]);
                            let sin = if at.is_multiple_of(2) { -sin } else { sin };
                            let (a, b) = (own.value * cos, other.value * sin);
                            let bound = own.bound * cos.abs() + other.bound * sin.abs() + 2.0 * reference::ULP * (a.abs() + b.abs());
                            Bounded { value: a + b, bound }
                        };
                        (0..d).map(turned).collect()
                    };
                    x.chunks_exact(d).enumerate().flat_map(head).collect()
                };
                suite.case(config, &label, record, want);
            }
        }
    }
    suite.finish(10 * configs.len());
}

/// The same as attention over heads that are wider by a channel for each token: the bias of a query and a one at the key.
#[test]
fn biases_follow_where_the_query_lies_from_the_key() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("biases_follow_where_the_query_lies_from_the_key");
    }
    let mut suite = Suite::new("biases_follow_where_the_query_lies_from_the_key");
    for config in &configs {
        for (h, w, heads, d) in [(1, 1, 1, 4), (3, 5, 2, 20), (2, 9, 3, 72), (16, 16, 2, 64)] {
            let (n, c, scale) = (h * w, heads * d, 0.2f32);
            let entries = (2 * h - 1) * (2 * w - 1);
            let label = format!("{h}x{w}, {heads} heads of {d}");
            let [q, k, v] = ["q", "k", "v"].map(|name| values(&label, name, n * c, config.elem));
            let table = values(&label, "table", heads * entries, Elem::F32);
            let record = |rec: &mut Recorder| {
                let [q, k, v] = [&q, &k, &v].map(|values| rec.upload(values, h, w, c, config.elem));
                let bias = RelativeBias { table: rec.upload(&table, heads, 1, entries, Elem::F32), rows: h, columns: w };
                let y = rec.tensor(h, w, c, config.elem);
                attention_biased_into(rec, [&q, &k, &v], heads, scale, &bias, &y);
                y
            };
            let want = || {
                let wider = |values: &[f32], more: &dyn Fn(usize, usize, usize) -> f64| -> Vec<f64> {
                    let of = |(i, part): (usize, &[f32])| {
                        let (token, head) = (i / heads, i % heads);
                        let more: Vec<f64> = (0..n).map(|other| more(token, head, other)).collect();
                        [wide(part), more].concat()
                    };
                    values.chunks_exact(d).enumerate().flat_map(of).collect()
                };
                let bias = |query: usize, head: usize, key: usize| {
                    let (down, across) = (query / w + h - 1 - key / w, query % w + w - 1 - key % w);
                    table[head * entries + down * (2 * w - 1) + across] as f64 / scale as f64
                };
                let q = wider(&q, &bias);
                let k = wider(&k, &|key, _, other| f64::from(key == other));
                let v = wider(&v, &|_, _, _| 0.0);
                let split = reference::Heads { heads, head_dim: d + n, scale: scale as f64, causal: false };
                let all = reference::attention(&q, &k, &v, split);
                (0..n * heads).flat_map(|i| all[i * (d + n)..i * (d + n) + d].to_vec()).collect()
            };
            suite.case(config, &label, record, want);
        }
    }
    suite.finish(4 * configs.len());
}

/// Runs of tokens below each other in one tensor: each is normalised and attends as if it were alone.
#[test]
fn runs_of_tokens_do_not_see_each_other() {
    let configs = configs();
    if configs.is_empty() {
        return skipped("runs_of_tokens_do_not_see_each_other");
    }
    let mut suite = Suite::new("runs_of_tokens_do_not_see_each_other");
    for config in &configs {
        for (h, w, heads, d) in [(3, 5, 2, 20), (6, 6, 3, 72), (16, 16, 2, 64)] {
            let (n, c) = (h * w, heads * d);
            let label = format!("2 runs of {h}x{w}, {heads} heads of {d}");
            let [q, k, v] = ["q", "k", "v"].map(|name| values(&label, name, 2 * n * c, config.elem));
            let affine: Vec<f32> = values(&label, "affine", 4 * c, Elem::F32);
            let attend = |rec: &mut Recorder| {
                let [q, k, v] = [&q, &k, &v].map(|values| rec.upload(values, 2 * h, w, c, config.elem));
                let y = rec.tensor(2 * h, w, c, config.elem);
                for run in 0..2 {
                    let [q, k, v, y] = [&q, &k, &v, &y].map(|t| t.rows(run * h, h));
                    attention_into(rec, [&q, &k, &v], heads, 0.2, false, &y, h * w);
                }
                y
            };
            let split = reference::Heads { heads, head_dim: d, scale: 0.2f32 as f64, causal: false };
            let want = || {
                let part = |values: &[f32], run: usize| wide(&values[run * n * c..(run + 1) * n * c]);
                (0..2).flat_map(|run| reference::attention(&part(&q, run), &part(&k, run), &part(&v, run), split)).collect()
            };
            suite.case(config, &format!("{label}, attention"), attend, want);
            let normalise = |rec: &mut Recorder| {
                let (x, affine) = (rec.upload(&q, 2 * h, w, c, config.elem), rec.upload(&affine, 4, 1, c, Elem::F32));
                let y = rec.tensor(2 * h, w, c, config.elem);
                for run in 0..2 {
                    let weights = LayerNormWeights { affine: affine.rows(2 * run, 2), eps: 1e-6 };
                    layer_norm_into(rec, &x.rows(run * h, h), &weights, &y.rows(run * h, h));
                }
                y
            };
            let want = || {
                let row = |i: usize| wide(&affine[i * c..(i + 1) * c]);
                let part = |run: usize| wide(&q[run * n * c..(run + 1) * n * c]);
                (0..2).flat_map(|run| reference::layer_norm(&part(run), c, &row(2 * run), &row(2 * run + 1), 1e-6f32 as f64)).collect()
            };
            suite.case(config, &format!("{label}, norm"), normalise, want);
        }
    }
    suite.finish(6 * configs.len());
}
