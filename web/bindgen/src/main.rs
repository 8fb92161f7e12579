//! bindgen MODULE.wasm FOLDER NAME: what `wasm-bindgen --target web --out-dir FOLDER --out-name NAME MODULE.wasm` does.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder, name] = &args[..] else { return Err("usage: bindgen MODULE.wasm FOLDER NAME".into()) };
    let mut bindgen = wasm_bindgen_cli_support::Bindgen::new();
    bindgen.input_path(module).web(true)?.out_name(name).typescript(false).remove_name_section(true).remove_producers_section(true);
    Ok(bindgen.generate(folder)?)
}
