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
            input: run.input.or(run.input_file).or(run.input_tensor).unwrap(),
            weights: run.weights,
            width: run.width,
            height: run.height,
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

    /// Writes config.json and the weights under the names and shapes of the alias form `form`.
    pub fn write_alias(&self, form: &str) -> WeightsFolder {
        let alias = &self.file.aliases[form];
        self.write(|spec| alias.get(&spec.name).cloned().unwrap_or((spec.name.clone(), spec.shape.clone())))
    }

    fn write(&self, name: impl Fn(&Spec) -> (String, Vec<usize>)) -> WeightsFolder {
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<Vec<u8>> =
            self.file.tensors.iter().map(|spec| self.fill(spec).iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
        let views = self.file.tensors.iter().zip(&values).map(|(spec, bytes)| {
            let (name, shape) = name(spec);
            (name, TensorView::new(Dtype::F32, shape, bytes).unwrap())
        });
        let file = if self.model == "autoencoder_kl" { "diffusion_pytorch_model.safetensors" } else { "model.safetensors" };
        safetensors::serialize_to_file(views, None, &folder.path().join(file)).unwrap();
        if !self.model.starts_with("taesd") {
            std::fs::write(folder.path().join("config.json"), self.file.config.to_string()).unwrap();
        }
        WeightsFolder { folder }
    }
}
