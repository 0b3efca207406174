use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use thiserror::Error;

use crate::play::{PlayError, Setting, device_bytes};
use crate::policy::catalogue;
use crate::policy::parameters::{Parameters, values};
use crate::replay::{CostModel, LEAST_BYTES, Limits, SetupError};
use crate::size::Amount;

/// The lists whose combinations are played.
#[derive(Clone, Debug)]
pub struct Grid {
    /// Policies by name.
    pub policies: Vec<String>,
    /// Device memory.
    pub device_memory: Vec<Amount>,
    /// What things cost.
    pub costs: Vec<CostModel>,
    /// Faults that the device can have open.
    pub outstanding: Vec<usize>,
    /// Parameters, each `NAME=V1,V2,...`.
    pub parameters: Vec<String>,
    /// What else the device is like.
    pub limits: Limits,
    /// What chance in policies follows from.
    pub seed: u64,
}

impl Grid {
    /// Every combination once: policies outermost, then device memory, costs, outstanding faults, parameters. Where two
    /// are the same (a share that is less than the least memory, a parameter that a policy does not look at), the first
    /// one stands for both.
    ///
    /// # Errors
    /// A name or a number is not known, or a device has too little memory.
    pub fn settings(&self, footprint_pages: u64) -> Result<Vec<Setting>, PlayError> {
        let parameters = self.parameter_sets()?;
        if self.outstanding.contains(&0) {
            return Err(SetupError::NoOutstanding.into());
        }
        let mut settings: Vec<Setting> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for policy in &self.policies {
            let plan = catalogue::parse(policy)?;
            for amount in &self.device_memory {
                let device_bytes = device_bytes(*amount, footprint_pages);
                if device_bytes < LEAST_BYTES {
                    return Err(SetupError::TooSmall(device_bytes).into());
                }
                for cost in &self.costs {
                    for outstanding in &self.outstanding {
                        for parameters in &parameters {
                            let setting = Setting {
                                policy: policy.clone(),
                                plan: plan.with(*parameters),
                                cost: cost.clone(),
                                limits: Limits { device_bytes, outstanding: *outstanding, ..self.limits },
                                seed: self.seed,
                            };
                            if seen.insert(setting.key()) {
                                settings.push(setting);
                            }
                        }
                    }
                }
            }
        }
        Ok(settings)
    }

    /// Every combination of values of the parameters.
    fn parameter_sets(&self) -> Result<Vec<Parameters>, PlayError> {
        let mut sets = vec![Parameters::default()];
        for text in &self.parameters {
            let (at, values) = values(text)?;
            let with = |set: &Parameters| {
                let set = *set;
                values.clone().into_iter().map(move |value| {
                    let mut set = set;
                    set.set(at, value);
                    set
                })
            };
            sets = sets.iter().flat_map(with).collect();
        }
        Ok(sets)
    }
}

/// One of several parts of a grid: `I/N`, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shard {
    index: u64,
    count: u64,
}

/// Why a text is no shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("a shard is I/N with I from 1 to N, such as 1/4")]
pub struct ShardError;

impl Shard {
    /// All of it.
    pub const WHOLE: Self = Self { index: 1, count: 1 };

    /// Which of `settings` are its own; end exclusive. Empty for some shards if there are more of them than settings.
    pub fn range(self, settings: usize) -> Range<usize> {
        let at = |index: u64| (u128::from(index) * settings as u128 / u128::from(self.count)) as usize;
        at(self.index - 1)..at(self.index)
    }

    /// Whether what it writes stands at the beginning of the whole.
    pub fn is_first(self) -> bool {
        self.index == 1
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let (index, count) = text.split_once('/').ok_or(ShardError)?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| ShardError);
        let shard = Self { index: number(index)?, count: number(count)? };
        if (1..=shard.count).contains(&shard.index) { Ok(shard) } else { Err(ShardError) }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_neighbours_and_together_the_whole() {
        for settings in [0, 1, 2, 3, 10, 97] {
            for count in [1, 2, 3, 7, 100, u64::MAX] {
                let last = count.min(200);
                let shard = |index| Shard { index, count }.range(settings);
                assert_eq!(shard(1).start, 0);
                assert_eq!(shard(count).end, settings);
                for index in 2..=last {
                    assert_eq!(shard(index - 1).end, shard(index).start);
                }
            }
        }
        assert_eq!("2/3".parse::<Shard>().map(|shard| shard.range(10)), Ok(3..6));
        for text in ["0/3", "4/3", "1", "1/0", "/", "a/b", "-1/2"] {
            assert_eq!(text.parse::<Shard>(), Err(ShardError), "{text}");
        }
    }

    #[test]
    fn every_combination_comes_once() {
        let grid = Grid {
            policies: vec!["nvidia".to_owned(), "lru-2m".to_owned()],
            device_memory: ["1%", "2%", "50%"].map(|text| text.parse().expect("a share")).to_vec(),
            costs: vec![CostModel::nearest("")],
            outstanding: vec![64, 256],
            parameters: vec!["tree-threshold=25,51".to_owned(), "batch-entries=64,256".to_owned()],
            limits: Limits::new(0),
            seed: 1,
        };
        // 1 and 2 percent are both the least device memory, and lru-2m looks at no parameter.
        let settings = grid.settings(8192).expect("a good grid");
        assert_eq!(settings.len(), 2 * 2 * 4 + 2 * 2);
        let wrong = Grid { parameters: vec!["tree-threshold=200".to_owned()], ..grid };
        assert!(matches!(wrong.settings(8192), Err(PlayError::Parameter(_))));
    }
}
