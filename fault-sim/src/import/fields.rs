//! Numbers, times and addresses as tools print them. Nothing is rounded in silence: what does not fit is an error.

use granule::units::PAGE_SHIFT;

use super::BadLine;
use crate::trace::{Event, EventKind, MigrationCause};

/// Nanoseconds in a second, as a number of decimal places.
const SECOND: u32 = 9;

/// A decimal number.
pub(super) fn decimal(field: &'static str, text: &str) -> Result<u64, BadLine> {
    digits(text).ok_or_else(|| BadLine::field(field, text, "a decimal number of at most 64 bits"))
}

/// Only digits: what `parse` also takes, a plus sign, no tool prints.
fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A hexadecimal number, with or without 0x.
pub(super) fn hexadecimal(field: &'static str, text: &str) -> Result<u64, BadLine> {
    let bare = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let all = !bare.is_empty() && bare.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = if all { u64::from_str_radix(bare, 16).ok() } else { None };
    number.ok_or_else(|| BadLine::field(field, text, "a hexadecimal number of at most 64 bits"))
}

/// A hexadecimal number that begins with 0x.
pub(super) fn prefixed(field: &'static str, text: &str) -> Result<u64, BadLine> {
    if text.starts_with("0x") || text.starts_with("0X") {
        hexadecimal(field, text)
    } else {
        Err(BadLine::field(field, text, "a hexadecimal number that begins with 0x"))
    }
}

/// A time in units of `10^-places` seconds, with or without a fraction, as nanoseconds. Digits below a nanosecond are
/// dropped.
pub(super) fn time(field: &'static str, text: &str, places: u32) -> Result<u64, BadLine> {
    let wrong = || BadLine::field(field, text, "a time that fits 64 bits of nanoseconds");
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let scale = SECOND.checked_sub(places).ok_or_else(wrong)?;
    if whole.is_empty() || (fraction.is_empty() && text.contains('.')) {
        return Err(wrong());
    }
    let whole = digits(whole).and_then(|whole| whole.checked_mul(10u64.pow(scale))).ok_or_else(wrong)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let mut below = 0u64;
    for place in 0..scale as usize {
        let digit = fraction.as_bytes().get(place).map_or(0, |byte| u64::from(byte - b'0'));
        below = below * 10 + digit;
    }
    whole.checked_add(below).ok_or_else(wrong)
}

/// The page of an address.
pub(super) fn page_of(address: u64) -> u64 {
    address >> PAGE_SHIFT
}

/// The pages that a range of bytes touches: the first, and how many.
pub(super) fn pages_of(address: u64, bytes: u64) -> Result<(u64, u32), BadLine> {
    let wrong = |why| BadLine::Range { field: "size", found: bytes, why };
    let last = bytes.checked_sub(1).ok_or_else(|| wrong("it covers no byte"))?;
    let last =
        address.checked_add(last).ok_or_else(|| wrong("it goes beyond the end of the address space"))?;
    let pages = page_of(last) - page_of(address) + 1;
    let pages = u32::try_from(pages).map_err(|_| wrong("it covers more pages than an event can"))?;
    Ok((page_of(address), pages))
}

/// Pages that moved. `to` is the number of the device that they went to; `None` is system memory.
pub(super) fn migration(
    time_ns: u64,
    page: u64,
    pages: u32,
    cause: MigrationCause,
    to: Option<u16>,
) -> Event {
    let engine = to.map_or(0, |device| device.saturating_add(1));
    Event { engine, detail: cause as u8, ..Event::range(time_ns, page, pages, EventKind::Migration) }
}

/// A number of an engine: 16 bits.
pub(super) fn engine(field: &'static str, number: u64) -> Result<u16, BadLine> {
    u16::try_from(number).map_err(|_| BadLine::Range {
        field,
        found: number,
        why: "engines are numbered in 16 bits",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_every_nanosecond() {
        assert_eq!(time("t", "6288.896762", 0), Ok(6_288_896_762_000));
        assert_eq!(time("t", "12.000000001", 0), Ok(12_000_000_001));
        assert_eq!(time("t", "1.5", 3), Ok(1_500_000));
        assert_eq!(time("t", "18446744073709551615", 9), Ok(u64::MAX));
        assert_eq!(time("t", "0.0000000019", 0), Ok(1));
        for bad in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1.-2", "18446744074", "1.2.3", "0x10"] {
            assert!(time("t", bad, 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_numbers() {
        assert_eq!(hexadecimal("a", "ffffffffffffffff"), Ok(u64::MAX));
        assert_eq!(prefixed("a", "0x10"), Ok(16));
        for bad in ["", "0x", "g", "-1", "+1", "10000000000000000", "0x0x1"] {
            assert!(hexadecimal("a", bad).is_err(), "{bad:?}");
        }
        assert!(prefixed("a", "10").is_err() && decimal("d", "+1").is_err() && decimal("d", "").is_err());
    }

    #[test]
    fn a_range_touches_the_pages_of_its_ends() {
        assert_eq!(pages_of(0xfff, 2), Ok((0, 2)));
        assert_eq!(pages_of(u64::MAX, 1), Ok((u64::MAX >> 12, 1)));
        assert!(pages_of(u64::MAX, 2).is_err() && pages_of(0, 0).is_err() && pages_of(0, u64::MAX).is_err());
    }
}
