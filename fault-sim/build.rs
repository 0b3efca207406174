//! Tells the program which commit it was built from, so that every result can be made again.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

fn main() {
    let mut commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let sources = ["status", "--porcelain", "--", ".", "../src", "../gpu-backends"];
    if git(&sources).is_some_and(|changes| !changes.is_empty()) {
        commit.push_str("-changed");
    }
    println!("cargo::rustc-env=FAULT_SIM_COMMIT={commit}");
    for path in [".", "../src", "../gpu-backends"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
}
