//! Reading this project's own sources: the files, and a small tokenizer that knows what is a comment, a string
//! or a lifetime, so that a check sees code and nothing else.

#![allow(dead_code, reason = "each of the tests that share this module uses a part of it")]

use std::path::{Path, PathBuf};

/// One file of the project.
pub struct Source {
    /// Relative to the root of the workspace, with forward slashes.
    pub path: String,
    pub text: String,
}

/// The root of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` (relative to the root; "" for all of it) with one of these extensions, by path.
/// Build outputs and what begins with a dot (but `.ci` and `.cargo`) are left out.
pub fn files(folder: &str, extensions: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    walk(&root().join(folder), extensions, &mut found);
    found.sort_by(|a: &Source, b| a.path.cmp(&b.path));
    found
}

fn walk(folder: &Path, extensions: &[&str], found: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        let hidden = name.starts_with('.') && name != ".ci" && name != ".cargo";
        if hidden || name == "target" || name == "Cargo.lock" {
            continue;
        }
        if path.is_dir() {
            walk(&path, extensions, found);
        } else if extensions.contains(&path.extension().unwrap_or_default().to_string_lossy().as_ref()) {
            let relative = path.strip_prefix(root()).expect("the walk stays below the root");
            let text = std::fs::read_to_string(&path).expect("sources are text");
            found.push(Source { path: relative.to_string_lossy().replace('\\', "/"), text });
        }
    }
}

/// A word, a `::`, or a single other character of code, with its line (from 1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

impl Token {
    pub fn is(&self, text: &str) -> bool {
        self.text == text
    }
    pub fn is_word(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// The code of a source text without comments, and with every string, character and lifetime left out.
pub fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut i, mut line) = (0, 1);
    let mut out: Vec<Token> = Vec::new();
    while i < chars.len() {
        let c = chars[i];
        let start = i;
        match c {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && chars[i] != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => i = after_block_comment(&chars, i),
            '"' => i = after_string(&chars, i),
            '\'' => i = after_quote(&chars, i),
            _ if c.is_alphabetic() || c == '_' => {
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
                let word: String = chars[start..i].iter().collect();
                match (word.as_str(), at(i)) {
                    ("r" | "br" | "cr", '"') => i = after_raw_string(&chars, i, 0),
                    ("r" | "br" | "cr", '#') => {
                        let hashes = chars[i..].iter().take_while(|c| **c == '#').count();
                        // `r#name` is a word; the name is read in the next round.
                        i += hashes;
                        if at(i) == '"' {
                            i = after_raw_string(&chars, i, hashes);
                        }
                    }
                    ("b" | "c", '"') => i = after_string(&chars, i),
                    ("b", '\'') => i = after_quote(&chars, i),
                    _ => out.push(Token { text: word, line }),
                }
            }
            _ if c.is_ascii_digit() => {
                while at(i).is_alphanumeric() || at(i) == '_' {
                    i += 1;
                }
            }
            ':' if at(i + 1) == ':' => {
                out.push(Token { text: "::".into(), line });
                i += 2;
            }
            _ => {
                if !c.is_whitespace() {
                    out.push(Token { text: c.into(), line });
                }
                i += 1;
            }
        }
        line += chars[start..i].iter().filter(|c| **c == '\n').count();
    }
    out
}

fn after_block_comment(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i
}

fn after_string(chars: &[char], open: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

fn after_raw_string(chars: &[char], open: usize, hashes: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// Behind a character literal, or behind the quote of a lifetime.
fn after_quote(chars: &[char], open: usize) -> usize {
    match (chars.get(open + 1), chars.get(open + 2)) {
        (Some('\\'), _) => {
            let mut i = open + 3;
            while i < chars.len() && chars[i] != '\'' {
                i += 1;
            }
            (i + 1).min(chars.len())
        }
        (Some(_), Some('\'')) => open + 3,
        _ => {
            let mut i = open + 1;
            while chars.get(i).is_some_and(|c| c.is_alphanumeric() || *c == '_') {
                i += 1;
            }
            i
        }
    }
}
