//! A file line by line. Memory: one line.

use std::io::{self, BufRead};

/// The longest line that is read. Of what is longer only the beginning is kept.
pub const MOST_BYTES: usize = 1 << 16;

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line<'a> {
    /// Without its end. Bytes that are no UTF-8 are replaced by U+FFFD.
    pub text: std::borrow::Cow<'a, str>,
    /// Counted from 1.
    pub number: u64,
    /// It is longer than [`MOST_BYTES`]: `text` is its beginning.
    pub too_long: bool,
    /// It ends with a line feed, and not with the file.
    pub ended: bool,
}

/// Reads lines.
pub(super) struct Lines<R> {
    from: R,
    buffer: Vec<u8>,
    number: u64,
    /// Bytes read so far.
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(from: R) -> Self {
        Self { from, buffer: Vec::new(), number: 0, bytes: 0 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.buffer.clear();
        let (mut ended, mut too_long, mut any) = (false, false, false);
        while !ended {
            let available = match self.from.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if available.is_empty() {
                break;
            }
            any = true;
            let (part, used) = match memchr(available) {
                Some(at) => (&available[..at], at + 1),
                None => (available, available.len()),
            };
            ended = part.len() < used;
            let room = MOST_BYTES - self.buffer.len();
            too_long |= part.len() > room;
            self.buffer.extend_from_slice(&part[..part.len().min(room)]);
            self.from.consume(used);
            self.bytes += used as u64;
        }
        if !any {
            return Ok(None);
        }
        self.number += 1;
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        let text = String::from_utf8_lossy(&self.buffer);
        Ok(Some(Line { text, number: self.number, too_long, ended }))
    }
}

fn memchr(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| *byte == b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(bytes: &[u8]) -> Vec<(String, u64, bool, bool)> {
        // A buffer of three bytes: lines lie across its edges.
        let mut lines = Lines::new(io::BufReader::with_capacity(3, bytes));
        let mut found = Vec::new();
        while let Some(line) = lines.next().expect("a slice can be read") {
            found.push((line.text.chars().take(8).collect(), line.number, line.too_long, line.ended));
        }
        assert_eq!(lines.bytes(), bytes.len() as u64);
        found
    }

    #[test]
    fn lines_end_with_a_line_feed_or_the_file() {
        let line = |text: &str, number, ended| (text.to_owned(), number, false, ended);
        assert_eq!(all(b""), []);
        assert_eq!(all(b"abcd\r\n\nx"), [line("abcd", 1, true), line("", 2, true), line("x", 3, false)]);
        assert_eq!(all(b"\xff\n"), [line("\u{fffd}", 1, true)]);
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let mut bytes = vec![b'a'; MOST_BYTES + 1];
        bytes.extend_from_slice(b"\nb\n");
        let found = all(&bytes);
        assert_eq!(found.iter().map(|line| line.2).collect::<Vec<_>>(), [true, false]);
        assert_eq!(found[1].0, "b");
    }
}
