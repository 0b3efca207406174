//! `fault-sim list`: policies, profiles, patterns and formats by name.

use std::fmt::Write;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::import::Format;
use crate::output::{Ending, Output, OutputError, end};
use crate::pattern::Pattern;
use crate::policy::catalogue::Needs;
use crate::policy::parameters::{PARAMETERS, Parameter};
use crate::policy::parts::{PARTS, PRESETS};
use crate::replay::PROFILES;
use crate::result::csv_field;

/// What `list` takes.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only these.
    #[arg(value_enum)]
    pub what: Option<What>,
    /// The form of the list.
    #[command(flatten)]
    pub output: Output,
}

/// What can be listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum What {
    /// Presets, and the parts that they and others are put together from.
    Policies,
    /// Cost vectors, with where each figure comes from.
    Profiles,
    /// Numbers of policies that `--set` changes, with their defaults.
    Parameters,
    /// What `gen` makes.
    Patterns,
    /// What `import` reads.
    Formats,
}

impl Ending for OutputError {
    fn refuses(&self) -> bool {
        false
    }
}

/// Prints the lists.
pub fn main(options: &Options) -> ExitCode {
    let what: &[What] = match options.what {
        Some(what) => &[what],
        None => What::value_variants(),
    };
    let text = if options.output.is_json() {
        let lists: serde_json::Map<String, Value> =
            what.iter().map(|what| (name(*what), list(*what))).collect();
        format!("{}\n", Value::Object(lists))
    } else if options.output.csv {
        what.iter().fold("list,kind,name,about\n".to_owned(), |mut text, what| {
            for row in rows(*what) {
                let _ = writeln!(text, "{},{},{},{}", name(*what), row.kind, row.name, csv_field(&row.about));
            }
            text
        })
    } else {
        what.iter().map(|what| table(*what)).collect()
    };
    end(options.output.write(&text))
}

fn name(what: What) -> String {
    match what {
        What::Policies => "policies".to_owned(),
        What::Profiles => "profiles".to_owned(),
        What::Parameters => "parameters".to_owned(),
        What::Patterns => "patterns".to_owned(),
        What::Formats => "formats".to_owned(),
    }
}

struct Row {
    kind: &'static str,
    name: &'static str,
    about: String,
}

fn rows(what: What) -> Vec<Row> {
    match what {
        What::Policies => {
            let presets = PRESETS.iter().map(|preset| Row {
                kind: "preset",
                name: preset.name,
                about: format!("{}: {}", preset.about, preset.parts.join("+")),
            });
            let parts = PARTS.iter().map(|part| {
                let needs = match part.needs {
                    Needs::Nothing => "",
                    Needs::Hits => " (looks at touches that hit)",
                    Needs::Future => " (needs a trace of accesses, read twice)",
                };
                Row { kind: part.kind(), name: part.name, about: format!("{}{needs}", part.about) }
            });
            presets.chain(parts).collect()
        }
        What::Profiles => {
            let row = |profile: &'static crate::replay::Profile| Row {
                kind: "profile",
                name: profile.name,
                about: profile.about.to_owned(),
            };
            PROFILES.iter().map(row).collect()
        }
        What::Parameters => {
            let row = |parameter: &'static Parameter| Row {
                kind: "parameter",
                name: parameter.name,
                about: format!(
                    "{}; {} unless set, {} to {}; of {}",
                    parameter.about,
                    parameter.default,
                    parameter.least,
                    parameter.most,
                    parameter.parts.join(", ")
                ),
            };
            PARAMETERS.iter().map(row).collect()
        }
        What::Patterns => {
            let about = |pattern: &Pattern| {
                let value = pattern.to_possible_value();
                value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
            };
            let row =
                |pattern: &Pattern| Row { kind: "pattern", name: pattern.name(), about: about(pattern) };
            Pattern::value_variants().iter().map(row).collect()
        }
        What::Formats => {
            let row = |format: &Format| Row { kind: "format", name: format.name(), about: format.about() };
            Format::value_variants().iter().map(row).collect()
        }
    }
}

fn list(what: What) -> Value {
    match what {
        What::Profiles => json!(PROFILES),
        _ => rows(what)
            .iter()
            .map(|row| json!({ "kind": row.kind, "name": row.name, "about": row.about }))
            .collect(),
    }
}

fn table(what: What) -> String {
    let mut text = String::new();
    let mut kind = "";
    for row in rows(what) {
        if row.kind != kind {
            kind = row.kind;
            let _ = writeln!(text, "{kind}");
        }
        let _ = writeln!(text, "  {:<30} {}", row.name, row.about);
    }
    if what == What::Profiles {
        for profile in PROFILES {
            let _ = writeln!(text, "\n{}", profile.name);
            for figure in profile.figures {
                let _ = writeln!(text, "  {:<30} {}", figure.name, figure.source);
            }
        }
    }
    text.push('\n');
    text
}
