//! Policies by name. A name is a preset, or parts joined by `+`; a later part replaces an earlier one of its kind.
//! A part alone stands in front of the plainest others of its class: pages on demand in the unit of the eviction, LRU
//! in the unit of the prefetcher, first touch, one fault at a time.

use std::fmt;

use granule::policy::Granularity;
use thiserror::Error;

use super::parameters::Parameters;
use super::{Batching, Eviction, Prefetcher, Residency};
use crate::replay::Future;
use crate::trace::{Metadata, TraceKind};

use super::parts::{PARTS, PRESETS};

/// What `replay` compares where nothing else is asked for.
pub const MAIN: &str = "nvidia,gpusvm,amd,granule,on-demand-4k,lru-2m";

/// One policy of each kind.
pub struct Set {
    /// What comes beside faults.
    pub prefetch: Box<dyn Prefetcher>,
    /// Who leaves.
    pub eviction: Box<dyn Eviction>,
    /// Where pages shall be.
    pub residency: Box<dyn Residency>,
    /// How the fault buffer is read.
    pub batching: Box<dyn Batching>,
    /// Faults that the driver lets be open at most.
    pub outstanding: usize,
}

/// What policies are made from.
#[derive(Clone, Copy)]
pub struct Making<'a> {
    /// What chance follows from.
    pub seed: u64,
    /// What comes, where it is known.
    pub future: Option<&'a Future>,
    /// Numbers that differ from the vendor's.
    pub parameters: &'a Parameters,
}

/// How one part is made, and so of which kind it is.
#[derive(Clone, Copy)]
pub enum Make {
    /// A prefetcher.
    Prefetch(fn(Making<'_>) -> Box<dyn Prefetcher>),
    /// An eviction, and its unit.
    Eviction(Granularity, fn(Making<'_>) -> Box<dyn Eviction>),
    /// A residency.
    Residency(fn(Making<'_>) -> Box<dyn Residency>),
    /// A batching, and how many faults may be open with it.
    Batching(usize, fn(Making<'_>) -> Box<dyn Batching>),
}

/// What a part must be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needs {
    /// Nothing but what happens.
    Nothing,
    /// Touches that hit.
    Hits,
    /// All that comes.
    Future,
}

/// A part: one policy of one kind.
#[derive(Clone, Copy)]
pub struct Part {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What it must be told.
    pub needs: Needs,
    /// How it is made.
    pub make: Make,
}

impl Part {
    /// Which kind it is of.
    pub fn kind(&self) -> &'static str {
        match self.make {
            Make::Prefetch(_) => "prefetch",
            Make::Eviction(..) => "eviction",
            Make::Residency(_) => "residency",
            Make::Batching(..) => "batching",
        }
    }
}

/// A name for several parts.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it stands for, in one line.
    pub about: &'static str,
    /// One part of each kind: prefetch, eviction, residency, batching.
    pub parts: [&'static str; 4],
}

/// Why a name stands for no policy.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum NameError {
    /// Nothing is called so.
    #[error("there is no policy {0:?}; `fault-sim list policies` names them")]
    Unknown(String),
}

/// The parts that a name stands for.
#[derive(Clone, Copy)]
pub struct Plan {
    prefetch: &'static Part,
    eviction: &'static Part,
    residency: &'static Part,
    batching: &'static Part,
    parameters: Parameters,
}

fn part(name: &str) -> Option<&'static Part> {
    PARTS.iter().find(|part| part.name == name)
}

/// Reads a name.
///
/// # Errors
/// A part of it is not known.
pub fn parse(name: &str) -> Result<Plan, NameError> {
    let mut chosen: [Option<&'static Part>; 4] = [None; 4];
    let mut choose = |part: &'static Part| {
        let kind = match part.make {
            Make::Prefetch(_) => 0,
            Make::Eviction(..) => 1,
            Make::Residency(_) => 2,
            Make::Batching(..) => 3,
        };
        chosen[kind] = Some(part);
    };
    for word in name.split('+') {
        let unknown = || NameError::Unknown(word.to_owned());
        match PRESETS.iter().find(|preset| preset.name == word) {
            Some(preset) => {
                for name in preset.parts {
                    choose(part(name).ok_or_else(unknown)?);
                }
            }
            None => choose(part(word).ok_or_else(unknown)?),
        }
    }
    let plain = |name: &str| part(name).ok_or_else(|| NameError::Unknown(name.to_owned()));
    let [prefetch, eviction, residency, batching] = chosen;
    let unit = match eviction.map(|part| part.make) {
        Some(Make::Eviction(unit, _)) => Some(unit),
        _ => None,
    };
    Ok(Plan {
        prefetch: match (prefetch, unit) {
            (Some(prefetch), _) => prefetch,
            (None, Some(Granularity::Kib64)) => plain("on-demand-64k")?,
            (None, Some(Granularity::Mib2)) => plain("whole-2m")?,
            (None, _) => plain("on-demand-4k")?,
        },
        eviction: match (eviction, prefetch.map(|part| part.name)) {
            (Some(eviction), _) => eviction,
            (None, Some("on-demand-64k")) => plain("lru-64k")?,
            (None, Some("whole-2m")) => plain("lru-2m")?,
            (None, _) => plain("lru-4k")?,
        },
        residency: residency.map_or_else(|| plain("first-touch"), Ok)?,
        batching: batching.map_or_else(|| plain("serial"), Ok)?,
        parameters: Parameters::default(),
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.parts().map(|part| part.name);
        f.write_str(&names.join("+"))
    }
}

impl Plan {
    /// Prefetch, eviction, residency, batching.
    pub fn parts(&self) -> [&'static Part; 4] {
        [self.prefetch, self.eviction, self.residency, self.batching]
    }

    /// The same with other numbers; those that none of its parts looks at are left out.
    pub fn with(self, parameters: Parameters) -> Self {
        let names = self.parts().map(|part| part.name);
        Self { parameters: parameters.of_parts(&names), ..self }
    }

    /// The numbers that differ from the vendor's.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Whether a part must know what comes.
    pub fn knows_the_future(&self) -> bool {
        self.parts().iter().any(|part| part.needs == Needs::Future)
    }

    /// What the numbers of this plan do not mean on a trace of this kind.
    pub fn notes(&self, metadata: &Metadata) -> Vec<String> {
        let mut notes = Vec::new();
        if metadata.kind == TraceKind::Accesses {
            return notes;
        }
        let by = metadata.policy.as_deref().unwrap_or("an unknown policy");
        notes.push(format!(
            "biased: the trace holds only {} under {by}; touches that hit, and prefetched pages, are not in it",
            metadata.kind.name()
        ));
        for part in self.parts() {
            if part.needs == Needs::Hits {
                notes.push(format!("{} sees no hits in this trace and works on faults alone", part.name));
            }
        }
        notes
    }

    /// Why this plan cannot be played on a trace of this kind, if it cannot.
    pub fn refusal(&self, kind: TraceKind) -> Option<&'static str> {
        let part = self.parts().into_iter().find(|part| part.needs == Needs::Future)?;
        (kind != TraceKind::Accesses).then_some(part.name)
    }

    /// Makes the policies. Asserts that the future is there if a part must know it.
    pub fn build(&self, seed: u64, future: Option<&Future>) -> Set {
        let making = Making { seed, future, parameters: &self.parameters };
        match (self.prefetch.make, self.eviction.make, self.residency.make, self.batching.make) {
            (
                Make::Prefetch(prefetch),
                Make::Eviction(_, eviction),
                Make::Residency(residency),
                Make::Batching(outstanding, batching),
            ) => Set {
                prefetch: prefetch(making),
                eviction: eviction(making),
                residency: residency(making),
                batching: batching(making),
                outstanding,
            },
            _ => unreachable!("a plan has one part of each kind"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_name_and_every_preset_has_its_parts() {
        let mut names: Vec<_> =
            PARTS.iter().map(|part| part.name).chain(PRESETS.iter().map(|preset| preset.name)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for preset in PRESETS {
            let plan = parse(preset.name).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(plan.parts().map(|part| part.name), preset.parts, "{}", preset.name);
            assert_eq!(plan.parts().map(|p| p.kind()), ["prefetch", "eviction", "residency", "batching"]);
        }
        for part in PARTS {
            assert!(parse(part.name).is_ok(), "{}", part.name);
        }
        for name in MAIN.split(',') {
            assert!(parse(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn later_parts_replace_earlier_ones() {
        let shown = |name| parse(name).map(|plan| plan.to_string());
        let nvidia = shown("nvidia").expect("a preset");
        assert!(nvidia.starts_with("nvidia-tree+lrm-2m+"), "{nvidia}");
        assert_eq!(shown("nvidia+lru-2m"), Ok(nvidia.replace("lrm-2m", "lru-2m")));
        assert_eq!(shown("lru-64k").as_deref(), Ok("on-demand-64k+lru-64k+first-touch+serial"));
        assert_eq!(shown("whole-2m").as_deref(), Ok("whole-2m+lru-2m+first-touch+serial"));
        assert_eq!(shown("nvidia+nothing"), Err(NameError::Unknown("nothing".to_owned())));
        assert_eq!(shown(""), Err(NameError::Unknown(String::new())));
    }
}
