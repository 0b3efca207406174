use std::collections::BTreeMap;
use std::path::Path;

use super::TraceError;

/// What the events of a trace are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceKind {
    /// Every touch, or every first one after a miss of an infinitely small cache: what hits is in it.
    Accesses,
    /// Only what faulted under the policy that it was recorded under: hits and prefetched pages are not in it.
    Faults,
    /// Only what that policy moved.
    Migrations,
}

impl TraceKind {
    /// Its name in the file and in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accesses => "accesses",
            Self::Faults => "faults",
            Self::Migrations => "migrations",
        }
    }
}

/// What a trace says of itself. Stored as key-value metadata of the Parquet file, each key with the prefix `granule.`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Metadata {
    /// What the events are.
    pub kind: TraceKind,
    /// Who made it: `gen stream`, `nsys`, `perf`...
    pub origin: String,
    /// What the clock of `time_ns` is: `virtual`, `boottime`, `device`.
    pub clock: String,
    /// The policy that it was recorded under, if any was at work.
    pub policy: Option<String>,
    /// The commit of the program that made it.
    pub commit: String,
    /// The seed that it follows from, if it does.
    pub seed: Option<u64>,
}

/// The version of the format that this program writes.
const VERSION: &str = "1";

impl Metadata {
    /// The pairs for the file.
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("granule.version", VERSION.to_owned()),
            ("granule.kind", self.kind.name().to_owned()),
            ("granule.origin", self.origin.clone()),
            ("granule.clock", self.clock.clone()),
            ("granule.commit", self.commit.clone()),
        ];
        pairs.extend(self.policy.clone().map(|policy| ("granule.policy", policy)));
        pairs.extend(self.seed.map(|seed| ("granule.seed", seed.to_string())));
        pairs
    }

    /// Back from the pairs of a file.
    pub(super) fn of_pairs(path: &Path, pairs: &BTreeMap<String, String>) -> Result<Self, TraceError> {
        let get = |key: &str| pairs.get(key).cloned();
        let wrong = |key, value| TraceError::Metadata { path: path.to_owned(), key, value };
        let version = get("granule.version").unwrap_or_default();
        if version != VERSION {
            return Err(wrong("granule.version", version));
        }
        let kind = get("granule.kind").unwrap_or_default();
        let kind = [TraceKind::Accesses, TraceKind::Faults, TraceKind::Migrations]
            .into_iter()
            .find(|known| known.name() == kind)
            .ok_or_else(|| wrong("granule.kind", kind))?;
        let seed = match get("granule.seed") {
            Some(text) => Some(text.parse().map_err(|_| wrong("granule.seed", text))?),
            None => None,
        };
        Ok(Self {
            kind,
            origin: get("granule.origin").unwrap_or_else(|| "unknown".to_owned()),
            clock: get("granule.clock").unwrap_or_else(|| "unknown".to_owned()),
            policy: get("granule.policy"),
            commit: get("granule.commit").unwrap_or_else(|| "unknown".to_owned()),
            seed,
        })
    }
}
