//! Debian's packages: installed as root, else told as one line that a person can type.
//!
//! # Rules
//! 1. A package that a release has only in its backports comes from there. If no source names that suite, one is added:
//!    a copy of the machine's own source of the release with the other suite in its place. So address, key and options
//!    are the machine's, be it a mirror or a folder, and none is written down here.
//! 2. Adding it twice is adding it once. A source that apt cannot use is taken away again: what was there before works
//!    as it did.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tool;

/// A package to install.
pub struct Package {
    /// Its name.
    pub name: &'static str,
    /// The release whose own version is too old: there it comes from the backports.
    pub backport_for: Option<&'static str>,
}

/// A source for a suite: a file of its own.
#[derive(Debug, PartialEq)]
struct Source {
    path: PathBuf,
    text: String,
}

/// The file of an added source, without its ending.
const ADDED: &str = "/etc/apt/sources.list.d/granule-backports";

/// Installs packages.
///
/// # Errors
/// A sentence with the line to type, if this is not root or apt fails.
pub fn install(packages: &[Package]) -> Result<(), String> {
    let release = release();
    let (late, own): (Vec<&Package>, Vec<&Package>) =
        packages.iter().partition(|one| one.backport_for.is_some() && one.backport_for == release.as_deref());
    let release = release.unwrap_or_default();
    let suite = format!("{release}-backports");
    let source = if late.is_empty() || has_suite(&sources(), &suite) {
        None
    } else {
        let copied = sources().iter().find_map(|text| copied(text, &release, &suite));
        let none = format!("apt has no source of {release}; add one, and one of {suite}, and try again");
        Some(copied.ok_or(none)?)
    };
    let installs: Vec<Vec<&str>> = [(&own, None), (&late, Some(suite.as_str()))]
        .into_iter()
        .filter(|(packages, _)| !packages.is_empty())
        .map(|(packages, suite)| {
            let target = suite.map_or(Vec::new(), |suite| vec!["--target-release", suite]);
            let names = packages.iter().map(|one| one.name).collect();
            [vec!["install", "--yes", "--no-install-recommends"], target, names].concat()
        })
        .collect();
    let by_hand = by_hand(source.as_ref(), &installs);
    if !is_root() {
        return Err(format!("packages are missing; install them with: {by_hand}"));
    }
    if let Some(Source { path, text }) = &source {
        std::fs::write(path, text)
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    for arguments in [vec![vec!["update"]], installs].concat() {
        let mut apt = Command::new("apt-get");
        apt.args(&arguments).env("DEBIAN_FRONTEND", "noninteractive");
        if !tool::run_reading(&mut apt, |_| {})? {
            if let Some(Source { path, .. }) = &source {
                // What cannot be removed stands in the sentence below.
                let _ = std::fs::remove_file(path);
            }
            return Err(format!("apt-get {} failed; install by hand with: {by_hand}", arguments[0]));
        }
    }
    Ok(())
}

fn by_hand(source: Option<&Source>, installs: &[Vec<&str>]) -> String {
    let add = source.map(|source| {
        let text = source.text.replace('%', "%%").replace('\'', "'\\''").replace('\n', "\\n");
        format!("printf '{text}' | sudo tee {}", source.path.display())
    });
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
    let read_by_apt = |path: &PathBuf| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        matches!(ending, Some("list" | "sources"))
    };
    let mut all: Vec<PathBuf> = files.filter(read_by_apt).collect();
    all.sort();
    all.insert(0, Path::new("/etc/apt/sources.list").to_owned());
    all.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

fn has_suite(sources: &[String], suite: &str) -> bool {
    sources.iter().any(|text| copied(text, suite, suite).is_some())
}

/// The first source of packages of a suite, with another one in its place, in either of the formats that apt reads.
fn copied(text: &str, from: &str, to: &str) -> Option<Source> {
    let line = text.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("deb") && words.any(|word| word == from)
    });
    if let Some(line) = line {
        let words: Vec<&str> =
            line.split_whitespace().map(|word| if word == from { to } else { word }).collect();
        let path = Path::new(ADDED).with_extension("list");
        return Some(Source { path, text: format!("{}\n", words.join(" ")) });
    }
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            let of = |line: &str| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.to_owned())
            };
            stanza.lines().find_map(of).unwrap_or_default()
        };
        let has = |name: &str, word: &str| field(name).split_whitespace().any(|one| one == word);
        let is_off = ["no", "false"].iter().any(|off| has("Enabled", off));
        if is_off || !has("Types", "deb") || !has("Suites", from) {
            return None;
        }
        let lines = stanza.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).map(|line| {
            match line.split_once(':').map(|(key, _)| key.to_ascii_lowercase()).as_deref() {
                Some("types") => "Types: deb\n".to_owned(),
                Some("suites") => format!("Suites: {to}\n"),
                _ => format!("{line}\n"),
            }
        });
        Some(Source { path: Path::new(ADDED).with_extension("sources"), text: lines.collect() })
    })
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.trim_ascii() == b"0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(source: &str) -> Option<String> {
        copied(source, "a", "a-new").map(|source| source.text)
    }

    #[test]
    fn a_source_is_copied_in_both_formats() {
        let stanzas = "Types: deb\nURIs: mirror/security\nSuites: a-security\n\n\
                       # note\nTypes: deb deb-src\n# note\nURIs: mirror/main\nSuites: a a-updates\n\
                       Components: main\nSigned-By:\n -----BEGIN\n .\n key: x\n";
        let copy = "Types: deb\nURIs: mirror/main\nSuites: a-new\nComponents: main\nSigned-By:\n -----BEGIN\n .\n key: x\n";
        assert_eq!(text(stanzas).as_deref(), Some(copy));
        let lines = "# deb mirror/old a main\ndeb-src mirror/main a main\n\
                     deb [signed-by=/key trusted=yes] mirror/main a main contrib\n";
        let copy = "deb [signed-by=/key trusted=yes] mirror/main a-new main contrib\n";
        assert_eq!(text(lines).as_deref(), Some(copy));
        assert_eq!(text("deb file:/media/disk a main").as_deref(), Some("deb file:/media/disk a-new main\n"));
    }

    #[test]
    fn what_apt_does_not_use_is_no_source() {
        assert_eq!(text("deb-src mirror/main a main"), None);
        assert_eq!(text("deb mirror/main a-updates main"), None);
        assert_eq!(text("#deb mirror/main a main"), None);
        assert_eq!(text("Enabled: no\nTypes: deb\nURIs: mirror\nSuites: a\n"), None);
        assert_eq!(text("Types: deb-src\nURIs: mirror\nSuites: a\n"), None);
    }

    #[test]
    fn a_suite_that_was_added_is_not_added_again() {
        for own in
            ["deb [x=y] mirror/main a main\n", "Types: deb\nURIs: mirror\nSuites: a\nComponents: main\n"]
        {
            let mut sources = vec![own.to_owned()];
            assert!(!has_suite(&sources, "a-new"));
            sources.push(copied(own, "a", "a-new").expect("a source").text);
            assert!(has_suite(&sources, "a-new"), "{sources:?}");
        }
    }

    #[test]
    fn what_is_typed_by_hand_adds_the_suite_first() {
        let source = Source { path: PathBuf::from("/etc/x"), text: "Types: deb\nURIs: a%2b\n".into() };
        let line = by_hand(Some(&source), &[vec!["install", "x"]]);
        let start = "printf 'Types: deb\\nURIs: a%%2b\\n' | sudo tee /etc/x && sudo apt-get update";
        assert_eq!(line, format!("{start} && sudo apt-get install x"));
    }
}
