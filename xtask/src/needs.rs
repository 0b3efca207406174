//! What the tests need beyond Rust, as a table: a new need is a new line.

use std::process::Command;

use crate::tool;

/// One thing that has to be on the machine.
struct Need {
    /// What it is and who wants it.
    what: &'static str,
    /// A command that succeeds where it is there.
    probe: (&'static str, &'static [&'static str]),
    /// The Debian package that brings it.
    package: &'static str,
}

const NEEDS: &[Need] = &[Need {
    what: "a C compiler and linker, for everything that is linked",
    probe: ("cc", &["--version"]),
    package: "build-essential",
}];

/// Sees to it that every need is met: through apt as root, else by saying which command to type.
///
/// # Errors
/// One sentence with the command that a person can type.
pub fn meet() -> Result<(), String> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !tool::works(need.probe.0, need.probe.1)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("missing: {}", need.what);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    let by_hand = format!(
        "sudo apt-get update && sudo apt-get install --yes --no-install-recommends {}",
        packages.join(" ")
    );
    if !is_root() {
        return Err(format!("packages are missing; install them with: {by_hand}"));
    }
    for arguments in
        [vec!["update"], [&["install", "--yes", "--no-install-recommends"], &packages[..]].concat()]
    {
        let mut apt = Command::new("apt-get");
        apt.args(&arguments).env("DEBIAN_FRONTEND", "noninteractive");
        if !tool::run_reading(&mut apt, |_| {})? {
            return Err(format!("apt-get {} failed; install by hand with: {by_hand}", arguments[0]));
        }
    }
    match missing.iter().find(|need| !tool::works(need.probe.0, need.probe.1)) {
        Some(need) => {
            Err(format!("{} is installed but `{}` still does not work", need.package, need.probe.0))
        }
        None => Ok(()),
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}
