//! A cost vector with a name: one that is shipped, or one from a file that `fit` wrote.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Cost, PROFILES, profile_named, profile_nearest};

/// The word that a cost file begins with, and its version.
pub const FORMAT: &str = "granule-cost-1";

/// What things cost, and what that is called in results.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CostModel {
    /// The profile's name, or the file's.
    pub name: String,
    /// The vector.
    pub cost: Cost,
}

/// A file of costs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct CostFile {
    /// [`FORMAT`].
    pub format: String,
    /// What it is called in results.
    pub name: String,
    /// What it stands for.
    pub about: String,
    /// The vector.
    pub cost: Cost,
    /// Where each figure comes from.
    #[serde(default)]
    pub figures: Vec<Source>,
}

/// Where some figures of a cost file come from.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Which fields of [`Cost`].
    pub name: String,
    /// Where they come from.
    pub source: String,
}

/// Why there are no such costs.
#[derive(Debug, Error)]
pub enum CostError {
    /// Neither a profile nor a file.
    #[error(
        "there is no profile and no file {0:?}; the profiles are {names}; `fault-sim fit` makes a file",
        names = profile_names()
    )]
    Unknown(String),
    /// The file cannot be read.
    #[error("the costs in {path} cannot be read: {source}", path = .path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no costs: {source}; docs/fit.md says what it has to hold", path = .path.display())]
    NotCosts {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file is of another format.
    #[error("{path} is of the format {format:?}, and this program reads {FORMAT}", path = .path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it says.
        format: String,
    },
}

fn profile_names() -> String {
    PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ")
}

impl CostModel {
    /// The costs that were asked for: a profile by its name, or a file.
    ///
    /// # Errors
    /// There is no such profile and no such file, or the file holds no costs.
    pub fn named(wish: &str) -> Result<Self, CostError> {
        if let Some(profile) = profile_named(wish) {
            return Ok(Self { name: profile.name.to_owned(), cost: profile.cost });
        }
        let path = Path::new(wish);
        if !path.exists() {
            return Err(CostError::Unknown(wish.to_owned()));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| CostError::Read { path: path.to_owned(), source })?;
        let file: CostFile = serde_json::from_str(&text)
            .map_err(|source| CostError::NotCosts { path: path.to_owned(), source })?;
        if file.format != FORMAT {
            return Err(CostError::Format { path: path.to_owned(), format: file.format });
        }
        Ok(Self { name: file.name, cost: file.cost })
    }

    /// The costs of the hardware that a trace most likely comes from.
    pub fn nearest(origin: &str) -> Self {
        let profile = profile_nearest(origin);
        Self { name: profile.name.to_owned(), cost: profile.cost }
    }
}
