//! The layers of the library hold because this test fails when they do not.
//!
//! # Rules
//! 1. A module imports only layers to its left:
//!    units <- sync <- ports <- dma <- granule <- policy <- migrate <- fault <- os <- service.
//! 2. Everything before `os` is pure: no `std`, no `unsafe`, no crate of the operating system or of threads.
//! 3. Atomics come through `src/sync.rs`. Only `ports` (for `Word`), `os` and `service` name them directly.
//! 4. loom is named in `src/sync.rs` only: nothing else knows whether it is being modelled.
//!
//! Code under `#[cfg(test)]` may use `std`; it keeps every other rule.

mod source;

use source::{Token, files, tokens};

const LAYERS: [&str; 10] =
    ["units", "sync", "ports", "dma", "granule", "policy", "migrate", "fault", "os", "service"];
const IMPURE_CRATES: [&str; 9] =
    ["libc", "linux_raw_sys", "rustix", "memfd", "dashmap", "rayon", "parking_lot", "tracing", "nix"];

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == layer)
}

/// A path as the code names it, `super` and `self` resolved: `["crate", "units", "VirtAddr"]`.
struct Named {
    path: Vec<String>,
    line: usize,
    in_test: bool,
}

/// The modules that a file stands for: `src/units/mask.rs` is `["units", "mask"]`.
fn module_of(path: &str) -> Vec<String> {
    let inner = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if inner == "lib" { Vec::new() } else { inner.split('/').map(str::to_owned).collect() }
}

/// Walks the tokens of one file.
struct Walk<'a> {
    tokens: &'a [Token],
    /// The modules around the current place, with the brace depth at which each inline one ends.
    modules: Vec<(String, usize)>,
    /// Brace depths at which a test module ends.
    tests: Vec<usize>,
    named: Vec<Named>,
}

impl<'a> Walk<'a> {
    fn paths_of(path: &str, tokens: &'a [Token]) -> Vec<Named> {
        let modules = module_of(path).into_iter().map(|name| (name, 0)).collect();
        let mut walk = Self { tokens, modules, tests: Vec::new(), named: Vec::new() };
        if path.ends_with("/tests.rs") || path.contains("/tests/") {
            walk.tests.push(0);
        }
        walk.file();
        walk.named
    }

    fn is(&self, at: usize, text: &str) -> bool {
        self.tokens.get(at).is_some_and(|token| token.is(text))
    }

    fn word(&self, at: usize) -> bool {
        self.tokens.get(at).is_some_and(Token::is_word)
    }

    fn file(&mut self) {
        let (mut i, mut depth, mut test_next) = (0, 0usize, false);
        while i < self.tokens.len() {
            let spells = |words: &[&str]| words.iter().enumerate().all(|(n, word)| self.is(i + n, word));
            if spells(&["#", "[", "cfg", "("]) {
                let end = (i..self.tokens.len()).find(|at| self.is(*at, "]")).unwrap_or(i);
                // `test` as a condition, but not `not(test)`.
                let condition = |at: &usize| self.is(*at, "test") && !self.is(*at - 2, "not");
                test_next |= (i..end).any(|at| condition(&at));
                i = end + 1;
            } else if self.is(i, "mod") && self.word(i + 1) && self.is(i + 2, "{") {
                depth += 1;
                self.modules.push((self.tokens[i + 1].text.clone(), depth));
                if std::mem::take(&mut test_next) {
                    self.tests.push(depth);
                }
                i += 3;
            } else if self.is(i, "use") || spells(&["extern", "crate"]) {
                let from = if self.is(i, "use") { i + 1 } else { i + 2 };
                i = self.tree(from, &[], test_next);
                test_next = false;
            } else if self.is(i, "{") {
                depth += 1;
                // `#[cfg(test)]` in front of anything else with a body covers that body.
                if std::mem::take(&mut test_next) {
                    self.tests.push(depth);
                }
                i += 1;
            } else if self.is(i, "}") {
                while self.modules.last().is_some_and(|(_, end)| *end == depth && depth > 0) {
                    self.modules.pop();
                }
                while self.tests.last().is_some_and(|end| *end == depth && depth > 0) {
                    self.tests.pop();
                }
                depth = depth.saturating_sub(1);
                i += 1;
            } else if self.is(i, ";") {
                test_next = false;
                i += 1;
            } else if self.word(i) || (self.is(i, "::") && self.word(i + 1)) {
                i = self.plain_path(i, test_next);
            } else {
                i += 1;
            }
        }
    }

    /// A path in an expression, a type or a macro call. Returns the place behind it.
    fn plain_path(&mut self, mut i: usize, test: bool) -> usize {
        if self.is(i, "::") {
            i += 1;
        }
        let line = self.tokens[i].line;
        let mut path = vec![self.tokens[i].text.clone()];
        i += 1;
        while self.is(i, "::") && self.word(i + 1) {
            path.push(self.tokens[i + 1].text.clone());
            i += 2;
        }
        // A single word is a name of its own, not a path; `self.x` and `crate` in a visibility are none either.
        if path.len() > 1 {
            self.enter(path, line, test);
        }
        i
    }

    /// A use tree from `i` on, below `prefix`. Returns the place behind it.
    fn tree(&mut self, mut i: usize, prefix: &[String], test: bool) -> usize {
        let mut path = prefix.to_vec();
        loop {
            if self.is(i, "::") {
                i += 1;
            } else if self.is(i, "{") {
                i += 1;
                while i < self.tokens.len() && !self.is(i, "}") {
                    let before = i;
                    i = self.tree(i, &path, test);
                    if self.is(i, ",") || i == before {
                        i += 1;
                    }
                }
                return i + 1;
            } else if self.is(i, "*") {
                self.enter(path, self.tokens[i].line, test);
                return i + 1;
            } else if self.word(i) {
                let token = &self.tokens[i];
                if !token.is("self") || path.is_empty() {
                    path.push(token.text.clone());
                }
                i += 1;
                if self.is(i, "as") {
                    i += 2;
                }
                if !self.is(i, "::") {
                    self.enter(path, token.line, test);
                    return i;
                }
            } else {
                return i;
            }
        }
    }

    fn enter(&mut self, path: Vec<String>, line: usize, test: bool) {
        let mut base: Vec<String> = self.modules.iter().map(|(name, _)| name.clone()).collect();
        let relative = path.iter().take_while(|part| *part == "super" || *part == "self").count();
        let path = if relative == 0 {
            path
        } else {
            for part in &path[..relative] {
                if part == "super" {
                    base.pop();
                }
            }
            ["crate".to_owned()].into_iter().chain(base).chain(path[relative..].iter().cloned()).collect()
        };
        self.named.push(Named { path, line, in_test: test || !self.tests.is_empty() });
    }
}

/// What is wrong with one file, one sentence each.
fn offences(path: &str, text: &str) -> Vec<String> {
    let module = module_of(path);
    let Some(layer) = module.first().map(String::as_str) else { return Vec::new() };
    let Some(own) = rank(layer) else {
        return vec![format!("{path}: `{layer}` is no layer; the layers are {}", LAYERS.join(", "))];
    };
    let pure = own < rank("os").expect("os is a layer");
    let tokens = tokens(text);
    let mut found = Vec::new();
    for Named { path: named, line, in_test } in Walk::paths_of(path, &tokens) {
        let shown = named.join("::");
        let mut offence = |why: String| found.push(format!("{path}:{line}: `{shown}` {why}"));
        let [first, rest @ ..] = &named[..] else { continue };
        if first == "crate" {
            match rest.first().map(|name| (name, rank(name))) {
                Some((name, Some(other))) if other > own => {
                    offence(format!("imports `{name}` from `{layer}`, against the direction of the layers"));
                }
                Some((name, None)) if name != "crate" => {
                    offence("goes through the crate root; name the layer that the item lives in".into());
                }
                None => offence("imports the whole crate; name a layer".into()),
                _ => {}
            }
        }
        if pure && first == "std" && !in_test {
            offence(format!("names `std`, but `{layer}` is pure: use core or alloc"));
        }
        if pure && IMPURE_CRATES.contains(&first.as_str()) {
            offence(format!("names a crate that only `os`, `service` and programs may use, in `{layer}`"));
        }
        let door = path == "src/sync.rs" || path == "src/ports/mod.rs";
        let through = (first == "core" || first == "std") && rest.first().is_some_and(|name| name == "sync");
        if pure && !door && through && (!in_test || rest.get(1).is_none_or(|name| name == "atomic")) {
            offence("names atomics or locks directly; take them from `crate::sync`".into());
        }
        if first == "loom" && path != "src/sync.rs" {
            offence("names loom outside of src/sync.rs".into());
        }
    }
    if pure {
        let unsafe_words = tokens.iter().filter(|token| token.is("unsafe"));
        found.extend(unsafe_words.map(|token| format!("{path}:{}: `unsafe` in the pure part", token.line)));
    }
    found
}

#[test]
fn modules_import_only_to_the_left() {
    let sources = files("src", &["rs"]);
    for layer in LAYERS {
        let there = sources.iter().any(|s| module_of(&s.path).first().is_some_and(|first| first == layer));
        assert!(there, "no file of the layer `{layer}` was read; does the list of layers still hold?");
    }
    let found: Vec<String> = sources.iter().flat_map(|s| offences(&s.path, &s.text)).collect();
    assert!(found.is_empty(), "{} offences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn offending_sources_are_caught() {
    let cases = [
        ("src/units/range.rs", "use crate::sync::WordLock;", "against the direction"),
        ("src/granule/block.rs", "fn f() { crate::fault::serve(); }", "against the direction"),
        ("src/dma/space.rs", "use crate::{units::Iova, migrate::{self, Plan}};", "imports `migrate`"),
        ("src/granule/block.rs", "use super::super::policy::Decision;", "imports `policy`"),
        ("src/granule/mod.rs", "pub use super::fault as f;", "imports `fault`"),
        ("src/fault/mod.rs", "mod inner { use super::super::os::Host; }", "imports `os`"),
        ("src/sync.rs", "struct A(Vec<super::units::X, crate::ports::Word>);", "imports `ports`"),
        ("src/ports/host.rs", "use crate::Svm;", "through the crate root"),
        ("src/ports/host.rs", "use crate::*;", "imports the whole crate"),
        ("src/fault/serve.rs", "fn f() { let _ = std::time::Instant::now(); }", "names `std`"),
        ("src/fault/serve.rs", "extern crate std;", "names `std`"),
        ("src/fault/serve.rs", "use ::std::vec::Vec;", "names `std`"),
        ("src/migrate/mod.rs", "use rustix::mm;", "only `os`"),
        ("src/migrate/mod.rs", "fn f() { unsafe { g() } }", "`unsafe`"),
        ("src/granule/bits.rs", "use core::sync::atomic::AtomicU64;", "names atomics"),
        ("src/granule/bits.rs", "use core::{fmt, sync::atomic::{AtomicU64, Ordering}};", "names atomics"),
        ("src/granule/bits.rs", "use core::sync; fn f(_: sync::atomic::AtomicU8) {}", "names atomics"),
        ("src/granule/bits.rs", "#[cfg(granule_loom)] use loom::sync::Arc;", "names loom"),
        ("src/granule/bits.rs", "#[cfg(test)] mod t { use std::sync::atomic::AtomicU8; }", "names atomics"),
        (
            "src/granule/a.rs",
            "#[cfg(test)] mod t { use std::vec; } fn f(_: std::io::Error) {}",
            "names `std`",
        ),
        ("src/granule/a.rs", "#[cfg(not(test))] mod t { use std::vec::Vec; }", "names `std`"),
        ("src/granule/a.rs", "#[cfg(feature = \"os\")] use std::vec::Vec;", "names `std`"),
        ("src/extra/mod.rs", "", "is no layer"),
    ];
    for (path, text, why) in cases {
        let found = offences(path, text);
        assert!(!found.is_empty(), "not caught: {path}: {text}");
        assert!(found.iter().all(|line| line.contains(why)), "{found:?} does not say {why:?}");
    }
}

#[test]
fn clean_sources_pass() {
    let cases = [
        ("src/fault/serve.rs", "use crate::{granule::Block, units::{self, PageMask}}; use super::intake;"),
        (
            "src/fault/serve.rs",
            "// crate::os::x\n/* std::io /* unsafe */ */ const A: &str = \"std::io unsafe\";",
        ),
        ("src/fault/serve.rs", "const A: &str = r#\"use std::io \" unsafe\"#; const C: char = '\"';"),
        ("src/units/mod.rs", "mod mask; pub use mask::PageMask; pub(crate) fn f<'a>(_: &'a u8) {}"),
        ("src/units/mask.rs", "#[cfg(test)] mod tests { use super::*; use std::collections::HashSet; }"),
        (
            "src/units/mask.rs",
            "#[cfg(all(test, not(granule_loom)))] mod tests { use std::collections::HashSet; }",
        ),
        ("src/ports/mod.rs", "pub type Word = core::sync::atomic::AtomicU64;"),
        ("src/sync.rs", "pub use core::sync::atomic::AtomicU32; pub use loom::sync::atomic::AtomicU64;"),
        (
            "src/os/park.rs",
            "use std::sync::atomic::AtomicU32; fn f() { unsafe { g() } } use crate::sync::Park;",
        ),
        ("src/granule/mod.rs", "impl X { fn f(&self) { self.fault.os(); Self::service(); } }"),
    ];
    for (path, text) in cases {
        let found = offences(path, text);
        assert!(found.is_empty(), "{path}: {text}\n{found:?}");
    }
}
