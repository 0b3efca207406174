//! What stands before a line in the kernel's log.

use super::fields::{decimal, time};

/// The time of a line of the kernel's log, and what follows it: `[  12.345678] text`, with or without a level in angle
/// brackets before it or a host behind it, or a record of /dev/kmsg, `6,339,5140900,-;text`.
pub(super) fn log(line: &str) -> Option<(u64, &str)> {
    if let Some((prefix, rest)) = line.split_once(';') {
        let mut fields = prefix.split(',');
        let (level, sequence, micros) = (fields.next()?, fields.next()?, fields.next());
        if let (Ok(_), Ok(_), Some(micros)) = (decimal("", level), decimal("", sequence), micros) {
            return Some((time("", micros, 6).ok()?, rest));
        }
    }
    let (before, rest) = line.split_once('[')?;
    let level = before.is_empty() || (before.starts_with('<') && before.ends_with('>'));
    // A log that was kept by a daemon has its own date before the kernel's time.
    let kept = before.trim_end().ends_with(':');
    if !level && !kept {
        return None;
    }
    let (seconds, rest) = rest.split_once(']')?;
    Some((time("", seconds.trim(), 0).ok()?, rest.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_log() {
        let at = |rest| Some((12_345_678_000, rest));
        assert_eq!(log("[   12.345678] xe: hello"), at("xe: hello"));
        assert_eq!(log("<7>[   12.345678] xe: hello"), at("xe: hello"));
        assert_eq!(log("Nov  1 10:00:00 host kernel: [   12.345678] xe: a [b]"), at("xe: a [b]"));
        assert_eq!(log("7,339,12345678,-;xe: hello"), at("xe: hello"));
        assert_eq!(log("xe: [drm] hello"), None);
        assert_eq!(log("hello"), None);
    }
}
