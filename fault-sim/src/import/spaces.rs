//! Which lines belong together: addresses of two processes have nothing to do with one another.

use std::collections::HashMap;
use std::hash::Hash;
use std::str::FromStr;

use thiserror::Error;

use super::BadLine;

/// Whose addresses are imported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Pids {
    /// Those of the only one that there is; a second one is an error.
    #[default]
    One,
    /// All, as if they shared one address space.
    All,
    /// Those of these; the others are passed over.
    These(Vec<u64>),
}

/// What is said of a text that names no processes.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0:?} is neither a list of numbers such as 47,48 nor all")]
pub struct PidsError(String);

impl FromStr for Pids {
    type Err = PidsError;

    fn from_str(text: &str) -> Result<Self, PidsError> {
        if text == "all" {
            return Ok(Self::All);
        }
        let numbers = text.split(',').map(|number| number.trim().parse::<u64>());
        let numbers = numbers.collect::<Result<_, _>>();
        numbers.map(Self::These).map_err(|_| PidsError(text.to_owned()))
    }
}

/// Admits lines by the number of their process, thread or address space.
#[derive(Clone, Debug)]
pub(super) struct Spaces {
    wanted: Pids,
    /// What the numbers are.
    what: &'static str,
    first: Option<u64>,
    elsewhere: u64,
}

impl Spaces {
    pub fn new(wanted: &Pids, what: &'static str) -> Self {
        Self { wanted: wanted.clone(), what, first: None, elsewhere: 0 }
    }

    /// Whether a line with this number is wanted.
    ///
    /// # Errors
    /// It is of a second one, and which is wanted was not said.
    pub fn admit(&mut self, number: u64) -> Result<bool, BadLine> {
        let wanted = match &self.wanted {
            Pids::All => true,
            Pids::These(numbers) => numbers.contains(&number),
            Pids::One => {
                let first = *self.first.get_or_insert(number);
                if first != number {
                    return Err(BadLine::Space { what: self.what, first, other: number });
                }
                true
            }
        };
        self.elsewhere += u64::from(!wanted);
        Ok(wanted)
    }

    /// Lines that were not wanted.
    pub fn elsewhere(&self) -> u64 {
        self.elsewhere
    }
}

/// Numbers engines (threads, devices, uTLBs) in the order in which they appear. At most 65,536; all further ones are
/// the last.
#[derive(Clone, Debug)]
pub(super) struct Engines<K>(HashMap<K, u16>);

impl<K> Default for Engines<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq> Engines<K> {
    pub fn number(&mut self, key: K) -> u16 {
        let next = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        match self.0.get(&key) {
            Some(number) => *number,
            None if self.0.len() > usize::from(u16::MAX) => u16::MAX,
            None => {
                self.0.insert(key, next);
                next
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_must_be_asked_for() {
        let mut one = Spaces::new(&Pids::One, "process");
        assert_eq!((one.admit(7), one.admit(7)), (Ok(true), Ok(true)));
        assert_eq!(one.admit(8), Err(BadLine::Space { what: "process", first: 7, other: 8 }));
        let mut these = Spaces::new(&"8, 9".parse().expect("numbers"), "process");
        assert_eq!((these.admit(7), these.admit(9), these.elsewhere()), (Ok(false), Ok(true), 1));
        assert_eq!("all".parse(), Ok(Pids::All));
        assert!("".parse::<Pids>().is_err() && "7,".parse::<Pids>().is_err());
    }

    #[test]
    fn engines_are_numbered_as_they_come() {
        let mut engines = Engines::default();
        assert_eq!((engines.number(9), engines.number(4), engines.number(9)), (0, 1, 0));
        for key in 10..70_000 {
            engines.number(key);
        }
        assert_eq!((engines.number(69_999), engines.number(4)), (u16::MAX, 1));
    }
}
