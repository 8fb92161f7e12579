//! The cases of `tests/data`: format in tools/goldens/README.md.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::Deserialize;

use super::{data, synthetic};

#[derive(Debug, Deserialize)]
struct Spec {
    name: String,
    shape: Vec<usize>,
    amp: f32,
    offset: f32,
}

#[derive(Debug, Deserialize)]
struct CaseFile {
    model: String,
    config: serde_json::Value,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    tensors: Vec<Spec>,
    #[serde(default)]
    inputs: Vec<Spec>,
    #[serde(default)]
    aliases: std::collections::BTreeMap<String, std::collections::BTreeMap<String, (String, Vec<usize>)>>,
    runs: Vec<RunFile>,
}

#[derive(Debug, Deserialize)]
struct RunFile {
    name: String,
    op: String,
    input: Option<String>,
    input_file: Option<String>,
    input_tensor: Option<String>,
    weights: Option<String>,
    width: usize,
    height: usize,
    expected: Vec<ExpectedFile>,
    #[serde(flatten)]
    facts: serde_json::Map<String, serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct ExpectedFile {
    tensor: String,
    tap: String,
    shape: [usize; 3],
    offset: [usize; 3],
    stride: [usize; 3],
}

/// A stored sample of one output.
pub struct Expected {
    pub tap: String,
    /// `[h, w, c]` of the whole output.
    pub shape: [usize; 3],
    pub offset: [usize; 3],
    pub stride: [usize; 3],
    pub values: Vec<f32>,
}

pub struct Run {
    pub name: String,
    pub op: String,
    pub input: String,
    pub weights: Option<String>,
    pub width: usize,
    pub height: usize,
    pub expected: Vec<Expected>,
    /// Whatever else the run says (tokens, timestep ...).
    pub facts: serde_json::Map<String, serde_json::Value>,
}

impl Expected {
    /// The stored sample's share of `values`, a whole output `[h, w, c]`.
    pub fn sample(&self, values: &[f32]) -> Vec<f32> {
        let [h, w, c] = self.shape;
        assert_eq!(values.len(), h * w * c, "{}: values of [{h}, {w}, {c}]", self.tap);
        let ([oy, ox, oc], [sy, sx, sc]) = (self.offset, self.stride);
        let pixels = (oy..h).step_by(sy).flat_map(|y| (ox..w).step_by(sx).map(move |x| (y, x)));
        pixels.flat_map(|(y, x)| (oc..c).step_by(sc).map(move |k| values[(y * w + x) * c + k])).collect()
    }

    /// Relative L2 distance of `values`, a whole output, from what is expected.
    pub fn relative_l2(&self, values: &[f32]) -> f64 {
        relative_l2(&self.sample(values), &self.values)
    }
}

/// `|got - want| / |want|`; infinite where `got` is not finite.
pub fn relative_l2(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len(), "number of values");
    let error: f64 = got.iter().zip(want).map(|(g, w)| (*g as f64 - *w as f64).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| (*w as f64).powi(2)).sum();
    assert!(norm > 0.0, "nothing to compare with");
    if error.is_finite() { (error / norm).sqrt() } else { f64::INFINITY }
}

pub struct Case {
    pub name: String,
    pub model: String,
    pub runs: Vec<Run>,
    file: CaseFile,
}

/// A weights file in a folder of its own, removed with it.
pub struct WeightsFolder {
    folder: tempfile::TempDir,
}

impl WeightsFolder {
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

impl Case {
    pub fn folder(name: &str) -> PathBuf {
        data(name)
    }

    pub fn open(name: &str) -> Case {
        let json = std::fs::read_to_string(data(name).join("case.json")).unwrap();
        let mut file: CaseFile = serde_json::from_str(&json).unwrap();
        let bytes = std::fs::read(data(name).join("expected.safetensors")).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let expected = |e: ExpectedFile| {
            let values = floats(stored.tensor(&e.tensor).unwrap().data());
            Expected { tap: e.tap, shape: e.shape, offset: e.offset, stride: e.stride, values }
        };
        let runs = std::mem::take(&mut file.runs).into_iter().map(|run| Run {
            name: run.name,
            op: run.op,
            input: run.input.or(run.input_file).or(run.input_tensor).unwrap_or_default(),
            weights: run.weights,
            width: run.width,
            height: run.height,
            facts: run.facts,
            expected: run.expected.into_iter().map(expected).collect(),
        });
        Case { name: name.to_owned(), model: file.model.clone(), runs: runs.collect(), file }
    }

    /// The synthetic input `name`: shape and values.
    pub fn input(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let spec = self.file.inputs.iter().find(|spec| spec.name == name).unwrap();
        (spec.shape.clone(), self.fill(spec))
    }

    /// A tensor of expected.safetensors: `[h, w, c]` and values.
    pub fn stored(&self, name: &str) -> ([usize; 3], Vec<f32>) {
        let bytes = std::fs::read(data(&self.name).join("expected.safetensors")).unwrap();
        let tensor = SafeTensors::deserialize(&bytes).unwrap();
        let view = tensor.tensor(name).unwrap();
        (view.shape().try_into().unwrap(), floats(view.data()))
    }

    fn fill(&self, spec: &Spec) -> Vec<f32> {
        synthetic::fill(&spec.name, spec.shape.iter().product(), spec.amp, spec.offset, self.file.seed)
    }

    /// Writes config.json and the weights under their own names.
    pub fn write_weights(&self) -> WeightsFolder {
        self.write(|spec| (spec.name.clone(), spec.shape.clone()))
    }

    /// Names of the alias forms.
    pub fn forms(&self) -> impl Iterator<Item = &str> {
        self.file.aliases.keys().map(String::as_str)
    }

    /// Writes config.json and the weights under the names and shapes of the alias form `form`.
    pub fn write_alias(&self, form: &str) -> WeightsFolder {
        let alias = &self.file.aliases[form];
        self.write(|spec| alias.get(&spec.name).cloned().unwrap_or((spec.name.clone(), spec.shape.clone())))
    }

    fn write(&self, name: impl Fn(&Spec) -> (String, Vec<usize>)) -> WeightsFolder {
        let folder = tempfile::tempdir().unwrap();
        // Tensors that share a name are one behind the other, in the order of the case.
        let mut tensors: std::collections::BTreeMap<String, (Vec<usize>, Vec<u8>)> = Default::default();
        for spec in &self.file.tensors {
            let (name, shape) = name(spec);
            let bytes = self.fill(spec).into_iter().flat_map(f32::to_le_bytes);
            tensors.entry(name).or_insert((shape, Vec::new())).1.extend(bytes);
        }
        let views = tensors.iter().map(|(name, (shape, bytes))| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
        let file =
            if matches!(&self.model[..], "autoencoder_kl" | "unet") { "diffusion_pytorch_model.safetensors" } else { "model.safetensors" };
        safetensors::serialize_to_file(views, None, &folder.path().join(file)).unwrap();
        if !self.model.starts_with("taesd") {
            std::fs::write(folder.path().join("config.json"), self.file.config.to_string()).unwrap();
        }
        WeightsFolder { folder }
    }
}
