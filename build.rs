//! Finds the models to embed: sets `cfg(builtin_decoder)` and `cfg(builtin_encoder)` for those whose file and SHA-256
//! are in `weights/`.

use std::path::Path;

fn main() {
    let weights = Path::new("weights"); // build scripts run in the package's folder
    let sums_path = weights.join("SHA256SUMS");
    println!("cargo::rerun-if-changed={}", sums_path.display());
    let sums = std::fs::read_to_string(&sums_path).unwrap_or_default();
    for (name, file) in [("decoder", "infgen-tiny-sd.safetensors"), ("encoder", "encoder-tiny-sd.safetensors")] {
        println!("cargo::rustc-check-cfg=cfg(builtin_{name})");
        let path = weights.join(file);
        println!("cargo::rerun-if-changed={}", path.display());
        // `sha256sum` writes "<hex>  <file>", or "<hex> *<file>" in binary mode.
        let sum = sums.lines().filter_map(|line| line.split_once(' ')).find(|(_, f)| f.trim_start_matches([' ', '*']) == file);
        if let (true, Some((sum, _))) = (path.is_file(), sum) {
            // The browser's package ships the files beside the module: half the download, and nothing twice in memory.
            if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("wasm32") {
                println!("cargo::rustc-cfg=builtin_{name}");
            }
            println!("cargo::rustc-env=INFGEN_SHA256_{}={sum}", name.to_uppercase());
        }
    }
}
