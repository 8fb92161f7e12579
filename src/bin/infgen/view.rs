//! `infgen view`

use infgen::viewer::{self, ViewerOptions};
use infgen::{Error, Result, Tuning};

use crate::args::ViewArgs;
use crate::run::Run;

pub fn view(run: &Run, args: &ViewArgs) -> Result<()> {
    if let Some(path) = &args.file {
        std::fs::metadata(path).map_err(|source| Error::Io { path: path.clone(), source })?;
    }
    let options = ViewerOptions {
        device: run.common.device.clone(),
        dtype: run.common.dtype.into(),
        memory: run.common.memory,
        host_memory: run.common.host_memory,
        tuning: if run.common.no_tune { Tuning::Off } else { Tuning::Gpus },
        file: args.file.clone(),
        weights: args.weights.clone(),
        compare: args.compare.clone(),
        model: args.model.clone(),
        size: args.size.map(|size| (size.width.min(16384) as u32, size.height.min(16384) as u32)),
        bare: args.bare,
        events: args.events.clone(),
    };
    let report = run.stage("view", |interrupt| viewer::run(options, interrupt))?;
    if run.common.json { run.print(report) } else { Ok(()) }
}
