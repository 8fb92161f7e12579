//! The program `infgen`: latents to pictures of any size, and what goes with it.

mod args;
mod bench;
mod decode;
mod encode;
mod generate;
mod info;
mod run;
mod upscale;
#[cfg(feature = "viewer")]
mod view;

use std::process::ExitCode;

use args::{Args, Command};
use clap::Parser;
use infgen::Error;
use run::Run;

fn main() -> ExitCode {
    // Mesa's drivers print two error lines where a session has no runtime directory, as in containers.
    #[cfg(target_os = "linux")]
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() && std::env::var_os("WAYLAND_DISPLAY").is_none() {
        // SAFETY: the first statement of the program, no other thread exists that could read the environment.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    let args = Args::parse();
    let level = if args.common.verbose { "infgen=debug,wgpu_hal=warn,wgpu_core=warn" } else { "off" };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    let run = Run::new(args.common);
    let result = match args.command {
        Command::Devices => info::devices(&run),
        Command::Inspect(inspect) => info::inspect(&run, &inspect),
        Command::Decode(decode) => decode::decode(&run, &decode),
        Command::Encode(encode) => encode::encode(&run, &encode),
        Command::Generate(generate) => generate::generate(&run, &generate),
        Command::Upscale(upscale) => upscale::upscale(&run, &upscale),
        #[cfg(feature = "viewer")]
        Command::View(view) => view::view(&run, &view),
        Command::Bench(bench) => bench::bench(&run, &bench),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run.clear();
            run::complain(&format!("infgen: {}{}", run::one_line(&error.to_string()), options(&error)));
            ExitCode::FAILURE
        }
    }
}

/// The options that do what the library advises, which does not know that it is called from a command line.
fn options(error: &Error) -> &'static str {
    match error {
        Error::MemoryCeiling { .. } | Error::OutOfMemory { .. } => " (--memory)",
        Error::HostMemory { .. } => " (--memory, --host-memory)",
        Error::F16Range { .. } => " (--dtype)",
        Error::NonFinite { hint, .. } if !hint.is_empty() => " (--dtype)",
        _ => "",
    }
}
