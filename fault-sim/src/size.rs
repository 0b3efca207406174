//! Sizes as people write them: `64MiB`, `1GiB`, or a number of bytes.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

/// Why a text is no size.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SizeError {
    /// Neither a number nor a number with a unit.
    #[error("a size is a number of bytes or a number with KiB, MiB, GiB or TiB, such as 64MiB")]
    NotASize,
    /// Does not fit in 64 bits.
    #[error("the size does not fit in 64 bits; give a smaller one")]
    TooLarge,
}

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let unit = UNITS.iter().find_map(|(name, shift)| Some((text.strip_suffix(name)?, *shift)));
        let (digits, shift) = unit.unwrap_or((text, 0));
        let digits = digits.trim_end();
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(SizeError::NotASize);
        }
        let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
        number.checked_mul(1 << shift).map(Size).ok_or(SizeError::TooLarge)
    }
}

impl fmt::Display for Size {
    /// The largest unit in which the size is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &&(&str, u32)| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().rev().find(whole) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// A size, or a share of something that is known later.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// So many bytes.
    Bytes(Size),
    /// So many hundredths of a percent.
    Share(u32),
}

/// Why a text is no amount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AmountError {
    /// No size.
    #[error("{0}, or a percentage such as 50%")]
    Size(SizeError),
    /// No percentage.
    #[error("a percentage is a number with at most two decimals and a percent sign, such as 50% or 12.5%")]
    Percentage,
}

impl Amount {
    /// Bytes, where the whole is `whole` bytes.
    pub fn of(self, whole: u64) -> u64 {
        match self {
            Self::Bytes(size) => size.0,
            Self::Share(share) => {
                (u128::from(whole) * u128::from(share) / 10_000).min(u64::MAX.into()) as u64
            }
        }
    }
}

/// Hundredths of a percent: `50%`, `12.5%`.
pub fn share(text: &str) -> Result<u32, AmountError> {
    let number = text.strip_suffix('%').ok_or(AmountError::Percentage)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 || whole.len() > 6 {
        return Err(AmountError::Percentage);
    }
    let number = |text: &str| text.parse::<u32>().map_err(|_| AmountError::Percentage);
    Ok(number(whole)? * 100 + number(part)? * if part.len() == 1 { 10 } else { 1 })
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        if text.ends_with('%') {
            return share(text).map(Self::Share);
        }
        text.parse().map(Self::Bytes).map_err(AmountError::Size)
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Share(share) if share % 100 == 0 => write!(f, "{}%", share / 100),
            Self::Share(share) => write!(f, "{}.{:02}%", share / 100, share % 100),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_sizes_or_shares() {
        let whole = 1000;
        for (text, bytes, shown) in
            [("50%", 500, "50%"), ("12.5%", 125, "12.50%"), ("0.01%", 0, "0.01%"), ("4KiB", 4096, "4KiB")]
        {
            let amount: Amount = text.parse().expect(text);
            assert_eq!((amount.of(whole), amount.to_string().as_str()), (bytes, shown));
        }
        for text in ["%", "-1%", "1.234%", "50.%", "1e3%", "50 %"] {
            assert_eq!(text.parse::<Amount>(), Err(AmountError::Percentage), "{text}");
        }
        assert_eq!("50MB".parse::<Amount>(), Err(AmountError::Size(SizeError::NotASize)));
    }

    #[test]
    fn sizes_are_read_and_written() {
        let good = [
            ("0", 0, "0"),
            ("4097", 4097, "4097"),
            ("64MiB", 64 << 20, "64MiB"),
            ("1 GiB", 1 << 30, "1GiB"),
            ("1024KiB", 1 << 20, "1MiB"),
            ("16777215TiB", 16_777_215 << 40, "16777215TiB"),
        ];
        for (text, bytes, shown) in good {
            let size: Size = text.parse().expect(text);
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
        }
        for text in ["", "MiB", "-1", "1.5GiB", "64mb", "0x10", "1MiB2", "+3"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::NotASize), "{text}");
        }
        for text in ["16777216TiB", "18446744073709551616"] {
            assert_eq!(text.parse::<Size>(), Err(SizeError::TooLarge), "{text}");
        }
    }
}
