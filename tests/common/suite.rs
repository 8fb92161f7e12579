//! Cases of one kernel: run on a device, compared with the reference, counted, and rerun by name.

use infgen::gpu::{Elem, Recorder, Tensor};
use infgen::reference::Bounded;

use super::compare::compare;
use super::devices::{self, Config};

/// The cases of one test function.
pub struct Suite {
    test: &'static str,
    filter: Option<String>,
    ran: usize,
    worst: (f64, String),
    failures: Vec<String>,
}

impl Suite {
    pub fn new(test: &'static str) -> Suite {
        Suite { test, filter: std::env::var("CASE").ok(), ran: 0, worst: (0.0, String::new()), failures: vec![] }
    }

    /// Whether the variable CASE (a part of a label) asks for this one.
    pub fn wants(&self, label: &str) -> bool {
        self.filter.as_ref().is_none_or(|part| label.contains(part.as_str()))
    }

    /// Runs what `record` appends and compares the tensor that it returns with `want`; its pad channels must be zero.
    /// Returns the values, pad channels dropped.
    pub fn case(
        &mut self,
        config: &Config,
        label: &str,
        record: impl FnOnce(&mut Recorder) -> Tensor,
        want: impl FnOnce() -> Vec<Bounded>,
    ) -> Option<Vec<f32>> {
        self.check(config, label, record, want, true)
    }

    /// [`Suite::case`] for results that storage does not round either.
    pub fn exact(
        &mut self,
        config: &Config,
        label: &str,
        record: impl FnOnce(&mut Recorder) -> Tensor,
        want: impl FnOnce() -> Vec<Bounded>,
    ) {
        self.check(config, label, record, want, false);
    }

    fn check(
        &mut self,
        config: &Config,
        label: &str,
        record: impl FnOnce(&mut Recorder) -> Tensor,
        want: impl FnOnce() -> Vec<Bounded>,
        rounded: bool,
    ) -> Option<Vec<f32>> {
        let label = format!("{label} [{}]", config.name);
        if !self.wants(&label) {
            return None;
        }
        match evaluate(config, record) {
            Err(error) => {
                self.fail(&label, error);
                None
            }
            Ok((got, shape, elem)) => {
                let mut want = want();
                if elem == Elem::Half && rounded {
                    want.iter_mut().for_each(|v| *v = v.stored_f16());
                }
                let result = compare(&got, &want, shape);
                self.outcome(&label, result);
                Some(got)
            }
        }
    }

    /// Counts a case that was run by other means.
    pub fn outcome(&mut self, label: &str, result: Result<f64, String>) {
        self.ran += 1;
        match result {
            Ok(used) if used > self.worst.0 => self.worst = (used, label.to_owned()),
            Ok(_) => {}
            Err(error) => self.fail(label, error),
        }
    }

    pub fn fail(&mut self, label: &str, error: String) {
        self.failures
            .push(format!("{label}: {error}\n    rerun: CASE='{label}' cargo test --release --test kernels -- --exact {}", self.test));
    }

    /// Fails if any case did. At least `least` must have run, unless some were asked for by name.
    pub fn finish(self, least: usize) {
        println!("{}: {} cases, at most {:.2} of a bound used ({})", self.test, self.ran, self.worst.0, self.worst.1);
        let shown = self.failures.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
        assert!(self.failures.is_empty(), "{}: {} of {} cases failed\n{shown}", self.test, self.failures.len(), self.ran);
        assert!(self.filter.is_some() || self.ran >= least, "{}: only {} cases ran", self.test, self.ran);
    }
}

/// Values without pad channels, `(height, width, channels)`, and how they were stored.
type Evaluated = (Vec<f32>, (usize, usize, usize), Elem);

/// The tensor that `record` returns, after a run on `config`'s device; an error if a pad channel is not zero.
pub fn evaluate(config: &Config, record: impl FnOnce(&mut Recorder) -> Tensor) -> Result<Evaluated, String> {
    let mut rec = config.recorder();
    let y = record(&mut rec);
    let mut padded = y.clone();
    padded.channels = y.quads() * 4;
    rec.output("y", &padded);
    let mut outputs = devices::run(&config.device.lock(), rec.finish()).map_err(|e| e.to_string())?;
    let all = outputs.numbers("y");
    let mut got = Vec::with_capacity(y.pixels() * y.channels);
    for (pixel, values) in all.chunks_exact(padded.channels).enumerate() {
        got.extend_from_slice(&values[..y.channels]);
        if let Some(c) = values[y.channels..].iter().position(|&v| v != 0.0) {
            return Err(format!("pad channel {} of pixel {pixel} holds {}", y.channels + c, values[y.channels + c]));
        }
    }
    Ok((got, y.shape(), y.elem))
}
