//! The f64 reference against torch's float64 numbers (`tests/data/ops`), and the synthetic tensors against their bit patterns.

mod common;

use std::collections::HashMap;

use common::compare::compare;
use common::{data, synthetic, wide};
use infgen::reference::{self, Activation, Bounded, Geometry, Heads};
use serde_json::Value;

fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(data(path)).unwrap()).unwrap()
}

fn sizes(shape: &Value) -> Vec<usize> {
    shape.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

#[test]
fn synthetic_tensors_have_the_bits_of_the_protocol() {
    let rows = json("synthetic/vectors.json");
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 6);
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let seed = row["seed"].as_u64().unwrap();
        let len = sizes(&row["shape"]).iter().product();
        assert_eq!(format!("{:016x}", synthetic::fnv1a64(name.as_bytes()) ^ seed), row["key"].as_str().unwrap(), "{name}");
        let values = synthetic::fill(name, len, row["amp"].as_f64().unwrap() as f32, row["offset"].as_f64().unwrap() as f32, seed);
        let bits: Vec<String> = values.iter().map(|v| format!("{:08x}", v.to_bits())).collect();
        for (i, first) in row["first_bits"].as_array().unwrap().iter().enumerate() {
            assert_eq!(bits[i], first.as_str().unwrap(), "{name}[{i}]");
        }
        assert_eq!(bits[len - 1], row["last_bits"].as_str().unwrap(), "{name}");
        let sum: u64 = values.iter().map(|v| v.to_bits() as u64).sum();
        assert_eq!(sum, row["sum_of_bits"].as_u64().unwrap(), "{name}");
    }
}

/// Arguments and parameters of one case.
struct Case<'a> {
    case: &'a Value,
    args: HashMap<&'a str, (Vec<f64>, Vec<usize>)>,
}

impl Case<'_> {
    fn arg(&self, name: &str) -> &[f64] {
        self.args.get(name).map_or(&[], |(values, _)| values)
    }

    fn shape(&self, name: &str) -> &[usize] {
        &self.args[name].1
    }

    fn number(&self, name: &str) -> f64 {
        self.case["params"][name].as_f64().unwrap_or_else(|| panic!("{}: {name}", self.case["name"]))
    }

    fn count(&self, name: &str) -> usize {
        self.number(name) as usize
    }

    fn plane(&self) -> (usize, usize, usize) {
        let s = self.shape("x");
        (s[0], s[1], s[2])
    }

    /// What the reference makes of the case, by the suffix of the expected tensor.
    fn compute(&self) -> Vec<(&'static str, Vec<Bounded>)> {
        let x = self.arg("x");
        let map = |activation: Activation| vec![("", x.iter().map(|&v| activation.apply(Bounded::exact(v))).collect())];
        let op = self.case["op"].as_str().unwrap();
        let single = match op {
            "conv2d" => {
                let w = self.shape("weight");
                let stride = self.count("stride");
                let geometry = Geometry {
                    kernel: (w[2], w[3]),
                    stride: (stride, stride),
                    pad_rows: (self.count("pad_top"), self.count("pad_bottom")),
                    pad_columns: (self.count("pad_left"), self.count("pad_right")),
                };
                reference::conv2d(x, self.plane(), self.arg("weight"), self.arg("bias"), w[0], geometry)
            }
            "upsample_nearest_2x_conv3x3" => {
                let (h, w, c) = self.plane();
                let large = reference::upsample_nearest_2x(x, (h, w, c));
                let cout = self.shape("weight")[0];
                reference::conv2d(&large, (2 * h, 2 * w, c), self.arg("weight"), self.arg("bias"), cout, Geometry::same(3))
            }
            "linear" => {
                let w = self.shape("weight");
                reference::linear(x, w[1], self.arg("weight"), self.arg("bias"), w[0])
            }
            "group_norm" => {
                reference::group_norm(x, self.plane().2, self.count("groups"), self.arg("weight"), self.arg("bias"), self.number("eps"))
            }
            "layer_norm" => reference::layer_norm(x, self.shape("x")[1], self.arg("weight"), self.arg("bias"), self.number("eps")),
            "attention" => {
                let d = self.count("head_dim");
                let causal = self.case["params"]["causal"].as_bool().unwrap_or(false);
                let split = Heads { heads: self.count("heads"), head_dim: d, scale: (d as f64).powf(-0.5), causal };
                reference::attention(self.arg("q"), self.arg("k"), self.arg("v"), split)
            }
            "geglu" => reference::glu(x, self.shape("x")[1] / 2, reference::Activation::GeluErf),
            "bilinear_resample" => reference::resample_bilinear(x, self.plane(), self.count("height"), self.count("width")),
            "bicubic_resample" => reference::resample_bicubic(x, self.plane(), self.count("height"), self.count("width")),
            "image_to_unit" => x.iter().map(|&v| Bounded::exact(reference::image_to_unit(v))).collect(),
            "image_to_u8" => reference::image_to_rgba8(x).iter().flat_map(|p| p[..3].to_vec()).map(|v| Bounded::exact(v as f64)).collect(),
            "gelu_erf" => return map(Activation::GeluErf),
            "gelu_tanh" => return map(Activation::GeluTanh),
            "gelu_quick" => return map(Activation::GeluQuick),
            "silu" => return map(Activation::Silu),
            "relu" => return map(Activation::Relu),
            "taesd_clamp" => return map(Activation::TaesdClamp),
            "inpe" => return self.inpe(),
            _ => panic!("ops.json has an operator that is not compared here: {op}"),
        };
        vec![("", single)]
    }

    fn inpe(&self) -> Vec<(&'static str, Vec<Bounded>)> {
        let grid = (self.count("rows"), self.count("cols"));
        let cells = || (0..grid.0).flat_map(|i| (0..grid.1).map(move |j| (i, j)));
        let point = |cell| reference::sphere_point(cell, grid, self.number("lon_span"), self.number("lat_span"));
        let points: Vec<Bounded> = cells().flat_map(point).map(Bounded::exact).collect();
        let features: Vec<Bounded> = cells().flat_map(|cell| reference::fourier_features(self.arg("B"), point(cell))).collect();
        let activation = match self.case["params"]["act"].as_str().unwrap() {
            "silu" => Activation::Silu,
            "gelu_erf" => Activation::GeluErf,
            "gelu_tanh" => Activation::GeluTanh,
            act => panic!("{act}"),
        };
        let (w1, w2) = (self.shape("fc1_weight"), self.shape("fc2_weight"));
        let hidden = reference::linear(&reference::values(&features), w1[1], self.arg("fc1_weight"), self.arg("fc1_bias"), w1[0]);
        let hidden: Vec<f64> = hidden.into_iter().map(|v| activation.apply(v).value).collect();
        let embedding = reference::linear(&hidden, w2[1], self.arg("fc2_weight"), self.arg("fc2_bias"), w2[0]);
        vec![("points", points), ("features", features.clone()), ("embedding", embedding), ("features_f32", features)]
    }
}

#[test]
fn reference_agrees_with_torch() {
    let ops = json("ops/ops.json");
    let bytes = std::fs::read(data("ops/expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let seed = ops["seed"].as_u64().unwrap();
    let mut compared = 0;
    for case in ops["cases"].as_array().unwrap() {
        let mut args = HashMap::new();
        for input in case["inputs"].as_array().unwrap() {
            let shape = sizes(&input["shape"]);
            let number = |key: &str| input[key].as_f64().unwrap() as f32;
            let values = synthetic::fill(input["name"].as_str().unwrap(), shape.iter().product(), number("amp"), number("offset"), seed);
            args.insert(input["arg"].as_str().unwrap(), (wide(&values), shape));
        }
        let results = Case { case, args }.compute();
        let name = case["name"].as_str().unwrap();
        assert_eq!(results.len(), case["outputs"].as_array().unwrap().len(), "{name}");
        for (suffix, got) in results {
            let tensor = if suffix.is_empty() { name.to_owned() } else { format!("{name}.{suffix}") };
            let view = expected.tensor(&tensor).unwrap_or_else(|e| panic!("{tensor}: {e}"));
            let golden: Vec<f32> = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let c = *view.shape().last().unwrap();
            // Goldens are f64 results rounded to f32; features_f32 is torch's own f32 run, for which the bounds are.
            let want: Vec<Bounded> = match suffix {
                "features_f32" => got,
                _ => got.iter().map(|v| Bounded { value: v.value, bound: v.value.abs() * 1.2e-7 + 1e-12 }).collect(),
            };
            if let Err(error) = compare(&golden, &want, (golden.len() / c, 1, c)) {
                panic!("{tensor}: {error}");
            }
            compared += 1;
        }
    }
    println!("{compared} outputs compared");
    assert!(compared >= 50);
}

#[test]
fn erf_has_its_known_values() {
    // Abramowitz & Stegun, table 7.1, and erf(-x) = -erf(x).
    for (x, y) in [(0.0, 0.0), (0.5, 0.5204998778130465), (1.0, 0.8427007929497149), (2.0, 0.9953222650189527), (3.0, 0.9999779095030014)] {
        assert!((reference::erf(x) - y).abs() < 1e-15 && reference::erf(-x) == -reference::erf(x), "{x}");
    }
    assert_eq!(reference::erf(7.0), 1.0);
}

/// Bounds say how far f32 may stray: f32 loops must keep them, and not be orders of magnitude inside.
#[test]
fn bounds_hold_for_f32_loops_and_are_not_loose() {
    let (n, inputs, outputs) = (7, 333, 11);
    let x = synthetic::fill("bounds.x", n * inputs, 1.7, 0.0, 0);
    let weight = synthetic::fill("bounds.weight", outputs * inputs, 0.1, 0.0, 0);
    let want = reference::linear(&wide(&x), inputs, &wide(&weight), &[], outputs);
    let mut worst = 0.0f64;
    for t in 0..n {
        for o in 0..outputs {
            let sum: f32 = (0..inputs).map(|k| x[t * inputs + k] * weight[o * inputs + k]).sum();
            let v = want[t * outputs + o];
            worst = worst.max((sum as f64 - v.value).abs() / v.bound);
        }
    }
    assert!(worst < 1.0 && worst > 1e-3, "{worst}");
}
