//! What every command shares: the engine, progress, timing, the report.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use infgen::error::human_bytes;
use infgen::{Decoder, Encoder, Engine, EngineOptions, Error, Observer, Result, Tuning, Weights};
use pollster::block_on;
use serde_json::{Map, Value, json};

use crate::args::Common;

/// How long a cancelled program may take to put things in order.
const GRACE: Duration = Duration::from_secs(10);

/// One invocation of the program.
pub struct Run {
    pub common: Common,
    bar: ProgressBar,
    started: Instant,
    /// Seconds per stage, in order.
    stages: RefCell<Vec<(&'static str, f64)>>,
    /// What an interrupt cancels.
    pub observer: Observer,
    /// In front of the layer that the bar names.
    status: Arc<Mutex<String>>,
}

impl Run {
    pub fn new(common: Common) -> Run {
        let shown = !common.quiet && std::io::stderr().is_terminal();
        let bar = if shown { ProgressBar::new(1000) } else { ProgressBar::hidden() };
        bar.set_style(
            ProgressStyle::with_template("{prefix:>10} {bar:32} {percent:>3}%  {elapsed} + {eta}  {wide_msg}").expect("a valid template"),
        );
        if shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let progress = bar.clone();
        let status: Arc<Mutex<String>> = Arc::default();
        let shown_status = status.clone();
        let observer = Observer::new(move |p| {
            progress.set_position((p.done * 1000.0) as u64);
            let status = shown_status.lock().unwrap_or_else(PoisonError::into_inner);
            progress.set_message(format!("{status}{}", p.layer));
        });
        let cancel = observer.clone();
        let interrupted = move || {
            let end = || {
                infgen::image::remove_unfinished();
                complain("infgen: cancelled");
                std::process::exit(1)
            };
            // Who asks twice does not want to wait; who asks once is not kept waiting by what cannot be cancelled, such as a driver's compiler.
            if cancel.is_cancelled() {
                end();
            }
            cancel.cancel();
            std::thread::spawn(move || {
                std::thread::sleep(GRACE);
                end()
            });
        };
        // What stops services and containers, and what a terminal that closes sends, unless `nohup` has it ignored.
        #[cfg(unix)]
        let signals = [Some(libc::SIGTERM), Some(libc::SIGHUP).filter(|&signal| !is_ignored(signal))].into_iter().flatten();
        #[cfg(unix)]
        if let Ok(mut signals) = signal_hook::iterator::Signals::new(signals) {
            let interrupted = interrupted.clone();
            std::thread::spawn(move || signals.forever().for_each(|_| interrupted()));
        }
        // A file that grows past a limit set by the shell: with the signal taken, the write fails, as on a full disk.
        #[cfg(unix)]
        let _ = signal_hook::flag::register(libc::SIGXFSZ, Arc::default());
        // Without a handler an interrupt still ends the program, only less politely.
        let _ = ctrlc::set_handler(interrupted);
        Run { common, bar, started: Instant::now(), stages: RefCell::default(), observer, status }
    }

    /// For the calls of one stage: shows `name` and measures.
    pub fn stage<T>(&self, name: &'static str, work: impl FnOnce(&Observer) -> Result<T>) -> Result<T> {
        self.bar.reset();
        self.bar.set_prefix(name);
        self.bar.set_message("");
        let start = Instant::now();
        let result = work(&self.observer);
        self.add(name, start.elapsed());
        result
    }

    fn add(&self, name: &'static str, took: Duration) {
        let mut stages = self.stages.borrow_mut();
        match stages.iter_mut().find(|(n, _)| *n == name) {
            Some((_, seconds)) => *seconds += took.as_secs_f64(),
            None => stages.push((name, took.as_secs_f64())),
        }
    }

    /// Opens the device that the options ask for, and says which it is.
    pub fn engine(&self) -> Result<Engine> {
        self.engine_with(EngineOptions::default())
    }

    /// The same with what `other` says of things that no common option is there for.
    pub fn engine_with(&self, other: EngineOptions) -> Result<Engine> {
        let options = EngineOptions {
            device: self.common.device.clone(),
            dtype: self.common.dtype.into(),
            memory: self.common.memory,
            host_memory: self.common.host_memory,
            pipeline_cache: true,
            tuning: if self.common.no_tune { Tuning::Off } else { Tuning::Gpus },
            ..other
        };
        let engine = self.stage("device", |observer| block_on(Engine::new_async(options, observer)))?;
        let facts = engine.device();
        self.say(&format!("device: {} ({}, {})", facts.name, facts.backend, facts.driver));
        if facts.kind == "software" {
            self.say("note: this is a software renderer; with a GPU and its driver the same runs in a fraction of the time");
        }
        Ok(engine)
    }

    /// Loads a decoder, which an interrupt stops. A refusal names what its weights need: see [`for_all`].
    pub fn load_decoder(&self, engine: &Engine, weights: Weights) -> Result<Decoder> {
        self.stage("load", |observer| block_on(engine.load_decoder_async(weights, observer)))
    }

    /// Loads an encoder, likewise.
    pub fn load_encoder(&self, engine: &Engine, weights: Weights) -> Result<Encoder> {
        self.stage("load", |observer| block_on(engine.load_encoder_async(weights, observer)))
    }

    /// What the bar shows in front of the layer: steps, files.
    pub fn status(&self) -> impl Fn(String) + Send + Sync + use<> {
        let (bar, status) = (self.bar.clone(), self.status.clone());
        move |text| {
            bar.set_message(text.clone());
            *status.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
    }

    /// A line that matters also to those who asked for no progress; scripts find it in the JSON object.
    pub fn warn(&self, line: &str) {
        if !self.common.json {
            self.bar.suspend(|| complain(&format!("warning: {}", one_line(line))));
        }
    }

    /// A line for people, on stderr.
    pub fn say(&self, line: &str) {
        if !self.common.quiet && !self.common.json {
            self.bar.suspend(|| complain(&one_line(line)));
        }
    }

    /// A line for stdout. Who reads no further (`infgen inspect FILE | head -n 1`) is no error.
    pub fn print(&self, line: impl Display) -> Result<()> {
        match self.bar.suspend(|| writeln!(std::io::stdout().lock(), "{line}")) {
            Err(source) if source.kind() != ErrorKind::BrokenPipe => Err(Error::Io { path: PathBuf::from("standard output"), source }),
            _ => Ok(()),
        }
    }

    /// Takes the progress bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// `facts` with what every report says.
    pub fn report(&self, engine: &Engine, facts: Value) -> Map<String, Value> {
        let device = engine.device();
        let mut object = match facts {
            Value::Object(object) => object,
            _ => Map::new(),
        };
        let stages: Map<String, Value> = self.stages.borrow().iter().map(|(n, s)| ((*n).into(), json!(s))).collect();
        object.insert("seconds".into(), stages.into());
        object.insert("total_seconds".into(), json!(self.started.elapsed().as_secs_f64()));
        object.insert("peak_gpu_bytes".into(), json!(engine.memory().peak));
        let names = json!({ "name": device.name, "backend": device.backend, "driver": device.driver, "kernels": engine.kernels() });
        object.insert("device".into(), names);
        object
    }

    /// Ends the command: the JSON object or a summary.
    pub fn finish(&self, engine: &Engine, outputs: &[&Path], facts: Value) -> Result<()> {
        self.clear();
        let peak = engine.memory().peak;
        let outputs: Vec<String> = outputs.iter().map(|path| path.display().to_string()).collect();
        if self.common.json {
            let mut object = self.report(engine, facts);
            if let [output] = &outputs[..] {
                object.insert("output".into(), json!(output));
            }
            object.insert("outputs".into(), json!(outputs));
            self.print(Value::Object(object))
        } else {
            let stages: Vec<String> = self.stages.borrow().iter().map(|(n, s)| format!("{n} {s:.2} s")).collect();
            for output in &outputs {
                self.say(&format!("wrote {output}"));
            }
            self.say(&format!("{}; peak GPU memory {}", stages.join(", "), human_bytes(peak)));
            Ok(())
        }
    }
}

/// A line on stderr. Not by `eprintln`, which panics where the terminal is gone or the disk behind it is full.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// `text` on one line that a terminal can show: names out of files may hold anything.
pub fn one_line(text: &str) -> String {
    const LONGEST: usize = 2000;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    match text.char_indices().nth(LONGEST) {
        None => text.chars().map(plain).collect(),
        Some((end, _)) => text[..end].chars().map(plain).chain(" ... ".chars()).collect(),
    }
}

/// Whether this process was started with `signal` ignored.
#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: without a new action `sigaction` only fills in the old one, for which all zeros are a valid value.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// The weights named, or the ones that ship.
pub fn weights(path: Option<&Path>) -> Weights {
    path.map_or(Weights::Builtin, Weights::from)
}

/// A refusal of weights for want of memory, with what the whole job needs, so that the ceiling that it names does for the rest too.
pub fn for_all(error: Error, least: impl FnOnce() -> Result<u64>) -> Error {
    match error {
        Error::MemoryCeiling { needed, ceiling } => match least() {
            Ok(least) => Error::MemoryCeiling { needed: least.max(needed), ceiling },
            Err(wrong) => wrong,
        },
        other => other,
    }
}
