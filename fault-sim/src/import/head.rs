//! What stands before the event in a line of ftrace and of `perf script`.

use super::BadLine;
use super::fields::{decimal, time};

/// Who and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head<'a> {
    pub time_ns: u64,
    /// The process, where it is printed.
    pub pid: Option<u64>,
    /// The thread.
    pub tid: u64,
    /// The name of the thread; only the last word of it.
    pub name: &'a str,
}

/// Reads what ftrace and perf print before an event: `app-47 ( 46) [003] d.... 6288.896762:`, `app 46/47 [003]
/// 6288.896762:` or a shorter form of these.
pub(super) fn head(text: &str) -> Result<Head<'_>, BadLine> {
    let mut words = text.split_whitespace().rev().peekable();
    let last = words.next().and_then(|word| word.strip_suffix(':')).ok_or(BadLine::Missing("the time"))?;
    let time_ns = time("time", last, 0)?;
    let bracket = |word: &str| word.starts_with('[') && word.ends_with(']');
    let mut word = words.next().ok_or(BadLine::Missing("the process"))?;
    // Flags stand between the CPU and the time.
    if words.peek().is_some_and(|before| bracket(before)) {
        word = words.next().unwrap_or(word);
    }
    if bracket(word) {
        word = words.next().ok_or(BadLine::Missing("the process"))?;
    }
    let mut pid = None;
    if let Some(group) = word.strip_suffix(')') {
        let group = match group.strip_prefix('(') {
            Some(group) => group,
            None => {
                // `(   46)` is two words, `(  -----)` too.
                if words.next() != Some("(") {
                    return Err(BadLine::field("process", word, "a number in parentheses"));
                }
                group
            }
        };
        if !group.bytes().all(|byte| byte == b'-') {
            pid = Some(decimal("process", group)?);
        }
        word = words.next().ok_or(BadLine::Missing("the thread"))?;
    }
    let both = word.split_once('/').map(|(process, thread)| (decimal("", process), decimal("", thread)));
    if let Some((Ok(pid), Ok(tid))) = both {
        return Ok(Head { time_ns, pid: Some(pid), tid, name: words.next().unwrap_or_default() });
    }
    let is_number = word.bytes().all(|byte| byte.is_ascii_digit());
    if let (false, Some((name, thread))) = (is_number, word.rsplit_once('-')) {
        return Ok(Head { time_ns, pid, tid: decimal("thread", thread)?, name });
    }
    let tid = decimal("thread", word)?;
    Ok(Head { time_ns, pid, tid, name: words.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_head() {
        let head_of = |pid, tid, name| Ok(Head { time_ns: 6_288_896_762_000, pid, tid, name });
        for (text, wanted) in [
            (" my app-47   (     46) [003] d.... 6288.896762:", head_of(Some(46), 47, "app")),
            ("app-x-47 (46) [003] d... 6288.896762:", head_of(Some(46), 47, "app-x")),
            ("app-47 (-----) [003] d... 6288.896762:", head_of(None, 47, "app")),
            ("app-47 [003] 6288.896762:", head_of(None, 47, "app")),
            ("irq/24-dmar0-47 [003] d... 6288.896762:", head_of(None, 47, "irq/24-dmar0")),
            ("app 46/47 [003] 6288.896762:", head_of(Some(46), 47, "app")),
            ("app 46/47 6288.896762:", head_of(Some(46), 47, "app")),
            ("app   47 6288.896762:", head_of(None, 47, "app")),
            ("47 6288.896762:", head_of(None, 47, "")),
        ] {
            assert_eq!(head(text), wanted, "{text}");
        }
        for bad in [
            "",
            "6288.8:",
            "app-47 [003] d... 6288.896762",
            "app-x 6288.8:",
            "app 4/x 6288.8:",
            "x) 1.0:",
            ") 1.0:",
        ] {
            assert!(head(bad).is_err(), "{bad:?}");
        }
    }
}
