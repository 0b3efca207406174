//! Upkeep that a machine can check: what a reviewer should not have to look for.

mod source;

use source::{Source, Token, files, root, tokens};

/// A file that is longer has more than one subject.
const MOST_LINES: usize = 600;

fn rust() -> Vec<Source> {
    let sources = files("", &["rs"]);
    assert!(sources.len() > 20, "only {} sources were found; is the root right?", sources.len());
    sources
}

fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{} offences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn no_file_is_too_long() {
    let too_long = |s: &Source| {
        let lines = s.text.lines().count();
        (lines > MOST_LINES)
            .then(|| format!("{} has {lines} lines, {MOST_LINES} at most; split it by its subjects", s.path))
    };
    none(rust().iter().filter_map(too_long).collect());
}

/// Marks of unfinished work, put together here so that this file does not hold them.
fn unfinished(text: &str) -> Option<String> {
    let words = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    let macros = [["to", "do!"], ["unimple", "mented!"]].map(|parts| parts.concat());
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    words.into_iter().find(|word| text.split(|c| !is_word(c)).any(|part| part == word)).or_else(|| {
        let called = |name: &String| text.match_indices(name).any(|(at, _)| !text[..at].ends_with(is_word));
        macros.into_iter().find(called)
    })
}

#[test]
fn nothing_is_unfinished() {
    assert!(unfinished(&["// TO", "DO: later"].concat()).is_some());
    assert!(unfinished(&["fn f() { to", "do!() }"].concat()).is_some());
    assert!(unfinished("a custodo!() of METODOS").is_none());
    let all = files("", &["rs", "md", "toml", "sh", "yml"]);
    let found = all.iter().flat_map(|s| {
        s.text
            .lines()
            .enumerate()
            .filter_map(|(n, line)| unfinished(line).map(|mark| format!("{}:{}: {mark}", s.path, n + 1)))
    });
    none(found.collect());
}

/// The lines of `allow` and `expect` attributes that give no reason.
fn without_reason(text: &str) -> Vec<usize> {
    let tokens = tokens(text);
    let is = |i: usize, text: &str| tokens.get(i).is_some_and(|token: &Token| token.is(text));
    let mut found = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let open = is(i, "#") && (is(i + 1, "[") || (is(i + 1, "!") && is(i + 2, "[")));
        if !open {
            i += 1;
            continue;
        }
        let (mut brackets, mut exempt, mut reason, line) = (0, false, false, tokens[i].line);
        i += 1;
        while i < tokens.len() {
            match tokens[i].text.as_str() {
                "[" => brackets += 1,
                "]" => brackets -= 1,
                "allow" | "expect" => exempt |= is(i + 1, "("),
                "reason" => reason |= is(i + 1, "="),
                _ => {}
            }
            i += 1;
            if brackets == 0 && !is(i, "[") {
                break;
            }
        }
        if exempt && !reason {
            found.push(line);
        }
    }
    found
}

#[test]
fn every_exemption_has_a_reason() {
    assert_eq!(without_reason("\n#![allow(dead_code)]"), [2]);
    assert_eq!(without_reason("#[cfg_attr(test, expect(unused))] fn f() {}"), [1]);
    assert!(
        without_reason("#[allow(unused, reason = \"x\")] fn f(a: A) { a.allow(b); c.expect(\"d\") }")
            .is_empty()
    );
    let found = |s: &Source| -> Vec<String> {
        let lines = without_reason(&s.text);
        lines.iter().map(|line| format!("{}:{line}: an exemption without a reason", s.path)).collect()
    };
    none(rust().iter().flat_map(found).collect());
}

/// The lines of code that let time pass instead of waiting for what they need.
fn sleeping(text: &str) -> Vec<usize> {
    let banned = ["sleep", "sleep_ms", "sleep_until", "usleep", "nanosleep", "clock_nanosleep"];
    let tokens = tokens(text);
    let named = |i: usize| banned.contains(&tokens[i].text.as_str());
    let reached =
        |i: usize| tokens.get(i + 1).is_some_and(|next| next.is("(")) || (i > 0 && tokens[i - 1].is("::"));
    (0..tokens.len()).filter(|i| named(*i) && reached(*i)).map(|i| tokens[i].line).collect()
}

#[test]
fn nothing_sleeps_to_synchronise() {
    assert_eq!(sleeping("fn f() {\n std::thread::sleep(d); }"), [2]);
    assert_eq!(sleeping("use std::thread::sleep;"), [1]);
    assert!(sleeping("// thread::sleep(d)\nfn f(a: A) { a.asleep(); a.sleep; }").is_empty());
    let found = |s: &Source| -> Vec<String> {
        sleeping(&s.text)
            .iter()
            .map(|line| format!("{}:{line}: sleeps; wait for a condition", s.path))
            .collect()
    };
    none(rust().iter().flat_map(found).collect());
}

/// The targets of relative links in a markdown text, without their fragments.
fn links(text: &str) -> Vec<String> {
    let targets = text.match_indices("](").filter_map(|(at, _)| text[at + 2..].split(')').next());
    let plain = targets.map(|target| target.split(['#', ' ']).next().unwrap_or_default());
    plain.filter(|target| !target.is_empty() && !target.contains("://")).map(str::to_owned).collect()
}

#[test]
fn documents_are_linked_and_their_links_lead_somewhere() {
    let documents = files("", &["md"]);
    assert!(documents.iter().any(|d| d.path == "README.md"), "there is no README.md");
    let mut reached = Vec::new();
    let mut found = Vec::new();
    for document in &documents {
        let at = root().join(&document.path);
        let folder = at.parent().expect("a file lies in a folder");
        for link in links(&document.text) {
            match folder.join(&link).canonicalize() {
                Ok(target) => reached.push(target),
                Err(_) => found.push(format!("{}: the link to {link} leads nowhere", document.path)),
            }
        }
    }
    for document in documents.iter().filter(|d| d.path.starts_with("docs/")) {
        let at = root().join(&document.path).canonicalize().expect("it was just read");
        if !reached.contains(&at) {
            found.push(format!("{}: no other document links to it", document.path));
        }
    }
    none(found);
}

#[test]
fn no_path_of_somebodys_machine() {
    let places = ["home", "root", "Users", "work"].map(|name| format!("/{name}/"));
    let mut found = Vec::new();
    for source in files("", &["rs", "md", "toml", "sh", "yml", "json"]) {
        for (n, line) in source.text.lines().enumerate() {
            for place in &places {
                let starts = |(at, _)| at == 0 || line[..at].ends_with([' ', '"', '\'', '`', '(', '=', ':']);
                if line.match_indices(place.as_str()).any(starts) {
                    found.push(format!("{}:{}: names {place}", source.path, n + 1));
                }
            }
        }
    }
    none(found);
}

/// Every counter of the library has its row in the page that explains them.
#[test]
fn every_counter_is_explained() {
    let page =
        std::fs::read_to_string(root().join("docs/counters.md")).expect("docs/counters.md can be read");
    let missing = |count: &granule::ports::Count| {
        let name = format!("`{count:?}`");
        (!page.contains(&name)).then(|| format!("docs/counters.md does not explain {name}"))
    };
    none(granule::ports::Count::ALL.iter().filter_map(missing).collect());
}
