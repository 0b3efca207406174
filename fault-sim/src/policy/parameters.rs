//! Parameters: the numbers in vendors' policies that can be changed without another policy, by name.
//!
//! # Rules
//! 1. A parameter has the vendor's default, and a range outside of which the policy means nothing.
//! 2. It belongs to parts. A plan without any of them does not take it, and is the same plan with it.
//! 3. What is not set is not written: a result without parameters is one with all defaults.

use std::collections::BTreeMap;

use thiserror::Error;

/// One number of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is, in one line.
    pub about: &'static str,
    /// Its value if nothing is said.
    pub default: u64,
    /// The least value.
    pub least: u64,
    /// The largest value.
    pub most: u64,
    /// The parts that look at it.
    pub parts: &'static [&'static str],
}

const TREE: &[&str] = &["nvidia-tree"];
const BATCH: &[&str] = &["batch-nvidia", "batch-nvidia-block", "batch-nvidia-batch", "batch-nvidia-once"];
const THRASHING: &[&str] = &[
    "nvidia-residency-535",
    "nvidia-residency-590",
    "nvidia-residency-590-intended",
    "nvidia-residency-counters",
];
const COUNTERS: &[&str] = &["nvidia-residency-counters"];
const ORACLE: &[&str] = &["oracle"];

const COUNT: usize = 9;

const fn parameter(
    name: &'static str,
    default: u64,
    (least, most): (u64, u64),
    parts: &'static [&'static str],
    about: &'static str,
) -> Parameter {
    Parameter { name, about, default, least, most, parts }
}

/// All of them.
pub const PARAMETERS: [Parameter; COUNT] = [
    parameter(
        "tree-threshold",
        51,
        (0, 100),
        TREE,
        "uvm_perf_prefetch_threshold: percent of a subtree that must be exceeded",
    ),
    parameter(
        "tree-min-faults",
        1,
        (1, 20),
        TREE,
        "uvm_perf_prefetch_min_faults: faults of a block before anything is prefetched",
    ),
    parameter(
        "batch-entries",
        256,
        (1, 1024),
        BATCH,
        "uvm_perf_fault_batch_count: entries of the fault buffer in a batch",
    ),
    parameter(
        "batches-per-service",
        20,
        (1, u32::MAX as u64),
        BATCH,
        "uvm_perf_fault_max_batches_per_service: batches before the driver leaves its loop",
    ),
    parameter(
        "thrashing-threshold",
        3,
        (1, 7),
        THRASHING,
        "uvm_perf_thrashing_threshold: moves within the lapse that make a page thrash",
    ),
    parameter(
        "thrashing-pin-threshold",
        10,
        (1, 255),
        THRASHING,
        "uvm_perf_thrashing_pin_threshold: throttles after which a page is pinned",
    ),
    parameter(
        "thrashing-lapse-us",
        500,
        (1, 1_000_000),
        THRASHING,
        "uvm_perf_thrashing_lapse_usec: time between two moves that counts as thrashing",
    ),
    parameter(
        "counter-threshold",
        256,
        (1, 65_535),
        COUNTERS,
        "uvm_perf_access_counter_threshold: touches through the bus after which 64 KiB move",
    ),
    parameter(
        "oracle-horizon",
        4096,
        (1, u32::MAX as u64),
        ORACLE,
        "events within which the oracle fetches what will be needed",
    ),
];

/// Why a parameter cannot be set.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ParameterError {
    /// Nothing is called so.
    #[error("there is no parameter {0:?}; `fault-sim list parameters` names them")]
    Unknown(String),
    /// Not `NAME=VALUE`.
    #[error("{0:?} is no parameter; write NAME=VALUE, such as tree-threshold=75")]
    NotAPair(String),
    /// No number, or one outside of the range.
    #[error("{name} is a whole number from {least} to {most}, not {value:?}")]
    Value {
        /// Which parameter.
        name: &'static str,
        /// The least value.
        least: u64,
        /// The largest value.
        most: u64,
        /// What was given.
        value: String,
    },
}

/// Values of parameters; those that are not set have their defaults.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Parameters([Option<u64>; COUNT]);

impl Parameters {
    /// Sets one. The default counts as not set.
    pub fn set(&mut self, at: usize, value: u64) {
        self.0[at] = (value != PARAMETERS[at].default).then_some(value);
    }

    /// The value of a parameter. Asserts that there is one of that name.
    pub fn get(&self, name: &str) -> u64 {
        let at = PARAMETERS.iter().position(|parameter| parameter.name == name);
        let at = at.unwrap_or_else(|| panic!("there is no parameter {name}"));
        self.0[at].unwrap_or(PARAMETERS[at].default)
    }

    /// Without those that none of these parts looks at.
    pub fn of_parts(mut self, parts: &[&str]) -> Self {
        for (value, parameter) in self.0.iter_mut().zip(&PARAMETERS) {
            if !parameter.parts.iter().any(|part| parts.contains(part)) {
                *value = None;
            }
        }
        self
    }

    /// What is set, by name.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let set = self.0.iter().zip(&PARAMETERS);
        set.filter_map(|(value, parameter)| Some((parameter.name.to_owned(), (*value)?))).collect()
    }
}

/// One parameter and the values it shall take: `NAME=V1,V2,...`.
///
/// # Errors
/// No such parameter, or a value that it cannot have.
pub fn values(text: &str) -> Result<(usize, Vec<u64>), ParameterError> {
    let (name, values) = text.split_once('=').ok_or_else(|| ParameterError::NotAPair(text.to_owned()))?;
    let at = PARAMETERS.iter().position(|parameter| parameter.name == name);
    let at = at.ok_or_else(|| ParameterError::Unknown(name.to_owned()))?;
    let Parameter { name, least, most, .. } = PARAMETERS[at];
    let value = |text: &str| {
        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| ParameterError::Value { name, least, most, value: text.to_owned() })
    };
    Ok((at, values.split(',').map(value).collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::parts::PARTS;

    #[test]
    fn every_parameter_belongs_to_parts_that_exist() {
        for parameter in &PARAMETERS {
            assert!((parameter.least..=parameter.most).contains(&parameter.default), "{}", parameter.name);
            for part in parameter.parts {
                assert!(PARTS.iter().any(|other| other.name == *part), "{part}");
            }
        }
    }

    #[test]
    fn values_are_read_and_kept_within_their_range() {
        assert_eq!(values("tree-threshold=25,75"), Ok((0, vec![25, 75])));
        assert!(matches!(values("tree-threshold=101"), Err(ParameterError::Value { .. })));
        assert!(matches!(values("tree-threshold="), Err(ParameterError::Value { .. })));
        assert!(matches!(values("tree=1"), Err(ParameterError::Unknown(_))));
        assert!(matches!(values("tree-threshold"), Err(ParameterError::NotAPair(_))));
        let mut set = Parameters::default();
        set.set(0, 75);
        set.set(1, 1);
        assert_eq!((set.get("tree-threshold"), set.get("tree-min-faults")), (75, 1));
        assert_eq!(set.named().len(), 1, "a default is not set");
        assert_eq!(set.of_parts(&["lru-2m"]), Parameters::default());
        assert_eq!(set.of_parts(&["nvidia-tree", "lru-2m"]), set);
    }
}
