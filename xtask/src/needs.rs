//! What the tests need beyond Rust, as a table: a new need is a new line.
//!
//! # Rules
//! 1. As root, what is missing is installed through apt; else the commands are named that a person can type.
//! 2. A package that a release has only in its backports comes from there. If the machine does not have that suite, it
//!    is added with the address and the key of the machine's own source of the release: none is written down here.

use std::path::Path;
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
    /// The release whose own version is too old: there it comes from the backports.
    backport_for: Option<&'static str>,
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler and linker, for everything that is linked",
        probe: ("cc", &["--version"]),
        package: "build-essential",
        backport_for: None,
    },
    Need {
        what: "the Vulkan loader, for tests of the Vulkan backend",
        probe: ("sh", &["-c", "/sbin/ldconfig -p | grep -q libvulkan.so.1"]),
        package: "libvulkan1",
        backport_for: None,
    },
    Need {
        what: "lavapipe, the Vulkan driver for CPUs, for tests of the Vulkan backend",
        probe: ("sh", &["-c", "ls /usr/share/vulkan/icd.d/lvp_icd*.json"]),
        package: "mesa-vulkan-drivers",
        backport_for: Some("bookworm"),
    },
    Need {
        what: "the Vulkan validation layer, which fails tests of the Vulkan backend",
        probe: ("ls", &["/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json"]),
        package: "vulkan-validationlayers",
        backport_for: None,
    },
    Need {
        what: "the compiler of shaders, to compare them with their sources",
        probe: ("glslangValidator", &["--version"]),
        package: "glslang-tools",
        backport_for: None,
    },
    Need {
        what: "the validator of shaders",
        probe: ("spirv-val", &["--version"]),
        package: "spirv-tools",
        backport_for: None,
    },
];

/// Sees to it that every need is met: through apt as root, else by saying which commands to type.
///
/// # Errors
/// One sentence with the commands that a person can type.
pub fn meet() -> Result<(), String> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !tool::works(need.probe.0, need.probe.1)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        println!("missing: {}", need.what);
    }
    let release = release();
    let (late, own): (Vec<&Need>, Vec<&Need>) = missing
        .iter()
        .partition(|need| need.backport_for.is_some() && need.backport_for == release.as_deref());
    let suite = format!("{}-backports", release.as_deref().unwrap_or_default());
    let source = if late.is_empty() || has_suite(&suite) { None } else { Some(backports(&suite)?) };
    let installs: Vec<Vec<&str>> = [(&own, None), (&late, Some(suite.as_str()))]
        .into_iter()
        .filter(|(needs, _)| !needs.is_empty())
        .map(|(needs, suite)| {
            let target = suite.map_or(Vec::new(), |suite| vec!["--target-release", suite]);
            let packages = needs.iter().map(|need| need.package).collect();
            [vec!["install", "--yes", "--no-install-recommends"], target, packages].concat()
        })
        .collect();
    let by_hand = by_hand(source.as_deref(), &installs);
    if !is_root() {
        return Err(format!("packages are missing; install them with: {by_hand}"));
    }
    if let Some(source) = source {
        std::fs::write(ADDED, source).map_err(|error| format!("{ADDED} cannot be written: {error}"))?;
    }
    for arguments in [vec![vec!["update"]], installs].concat() {
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

/// Where a suite is added.
const ADDED: &str = "/etc/apt/sources.list.d/granule-backports.sources";

fn by_hand(source: Option<&str>, installs: &[Vec<&str>]) -> String {
    let add = source.map(|source| format!("printf '{}' | sudo tee {ADDED}", source.replace('\n', "\\n")));
    let update = "sudo apt-get update".to_owned();
    let installs = installs.iter().map(|arguments| format!("sudo apt-get {}", arguments.join(" ")));
    add.into_iter().chain([update]).chain(installs).collect::<Vec<_>>().join(" && ")
}

/// The name of the Debian release, if this is one.
fn release() -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    if value("ID")? == "debian" { value("VERSION_CODENAME") } else { None }
}

/// The text of every file that names sources of packages.
fn sources() -> Vec<String> {
    let folder = std::fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten();
    let files = folder.filter_map(|entry| Some(entry.ok()?.path()));
    let all = files.chain([Path::new("/etc/apt/sources.list").to_owned()]);
    all.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn has_suite(suite: &str) -> bool {
    let names = |line: &str| !line.starts_with('#') && line.split_whitespace().any(|word| word == suite);
    sources().iter().any(|text| text.lines().any(names))
}

/// A source for a suite of backports, made from the machine's own source of the release.
fn backports(suite: &str) -> Result<String, String> {
    let release = suite.trim_end_matches("-backports");
    sources().iter().find_map(|text| own_source(text, release)).map_or_else(
        || Err(format!("no source of {release} is configured for apt; add the suite {suite} by hand")),
        |(address, key)| {
            let key = key.map_or(String::new(), |key| format!("Signed-By: {key}\n"));
            Ok(format!("Types: deb\nURIs: {address}\nSuites: {suite}\nComponents: main\n{key}"))
        },
    )
}

/// Address and key of the source of a release, in either of the formats that apt reads.
fn own_source(text: &str, release: &str) -> Option<(String, Option<String>)> {
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned()))
        };
        let suites = field("Suites").unwrap_or_default();
        if suites.split_whitespace().any(|suite| suite == release) {
            let address = field("URIs")?.split_whitespace().next()?.to_owned();
            return Some((address, field("Signed-By")));
        }
    }
    text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == release)?;
        let is_source = words.first() == Some(&"deb") && at >= 2;
        let key = line.split("signed-by=").nth(1).and_then(|rest| rest.split([']', ' ']).next());
        is_source.then(|| (words[at - 1].to_owned(), key.map(str::to_owned)))
    })
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_are_read() {
        let stanzas = "Types: deb\nURIs: mirror/security\nSuites: a-security\n\n\
                       Types: deb\n# note\nURIs: mirror/main\nSuites: a a-updates\nSigned-By: /key\n";
        assert_eq!(own_source(stanzas, "a"), Some(("mirror/main".into(), Some("/key".into()))));
        assert_eq!(own_source(stanzas, "b"), None);
        let lines = "# deb mirror/old a main\ndeb [signed-by=/key] mirror/main a main\n";
        assert_eq!(own_source(lines, "a"), Some(("mirror/main".into(), Some("/key".into()))));
        assert_eq!(own_source("deb mirror/main a main", "a"), Some(("mirror/main".into(), None)));
        assert_eq!(own_source("deb-src mirror/main a main", "a"), None);
    }

    #[test]
    fn what_is_typed_by_hand_adds_the_suite_first() {
        let line = by_hand(Some("Types: deb\n"), &[vec!["install", "x"]]);
        assert!(line.starts_with("printf 'Types: deb\\n' | sudo tee /etc/apt"), "{line}");
        assert!(line.ends_with("&& sudo apt-get update && sudo apt-get install x"), "{line}");
    }
}
