//! The program as its users call it.

use std::path::Path;
use std::process::{Command, Output};

pub fn infgen(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_infgen")).args(arguments).env("XDG_RUNTIME_DIR", std::env::temp_dir()).output().unwrap()
}

/// Whether there is a device to run on; a test without one says so, and fails if `REQUIRE_GPU` is set.
pub fn has_device() -> bool {
    let output = infgen(&["devices", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = listed["devices"].as_array().is_some_and(|all| !all.is_empty());
    assert!(found || std::env::var_os("REQUIRE_GPU").is_none(), "no adapter");
    if !found {
        println!("SKIPPED: no adapter");
    }
    found
}

/// What it reports with `--json`; nothing on stderr.
pub fn done(arguments: &[&str]) -> serde_json::Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    let output = infgen(&all);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "infgen {}: {}: {stderr}", all.join(" "), output.status);
    assert_eq!(stderr, "", "infgen {}", all.join(" "));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Exit status 1, one line on stderr that has all of `words`, nothing on stdout, and no file.
pub fn refused(arguments: &[&str], output: &Path, words: &[&str]) {
    let result = infgen(arguments);
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "infgen {}: {stderr}", arguments.join(" "));
    // Progress and notes for people come first; the error is the last line, and the only one with --quiet.
    let lines: Vec<&str> = stderr.lines().collect();
    assert_eq!(lines.len(), 1, "infgen {}: {stderr}", arguments.join(" "));
    assert!(words.iter().all(|word| stderr.contains(word)), "infgen {}: {stderr} lacks one of {words:?}", arguments.join(" "));
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(result.stdout.is_empty());
    assert!(!output.exists(), "{} was left behind", output.display());
    let siblings = std::fs::read_dir(output.parent().unwrap()).unwrap().filter(|f| {
        let name = f.as_ref().unwrap().file_name();
        name.to_string_lossy().ends_with(".part")
    });
    assert_eq!(siblings.count(), 0, "a temporary file was left behind");
}

/// [`refused`] of `infgen generate`.
pub fn not_generated(arguments: &[&str], output: &Path, words: &[&str]) {
    refused(&[&["generate", "-q", "-o", output.to_str().unwrap()], arguments].concat(), output, words);
}
