//! Looking a mapping up in the text of /proc/self/maps, for kernels without PROCMAP_QUERY (before 6.11). Slow
//! (one line per mapping), without the heap.
#![allow(unsafe_code, reason = "open and read without buffers of the standard library's")]

use super::abi::Errno;
use super::vma::{NAME_BYTES, RawVma};

/// The mapping that holds `at`, or the next one above it.
pub(super) fn find(at: u64) -> Result<Option<RawVma>, Errno> {
    // SAFETY: a C string; the descriptor is closed below.
    let fd = unsafe { libc::open(c"/proc/self/maps".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    let found = search(fd, at);
    // SAFETY: opened above, closed once.
    unsafe { libc::close(fd) };
    found
}

fn search(fd: i32, at: u64) -> Result<Option<RawVma>, Errno> {
    let mut text = [0u8; 4096];
    let mut line = Line::default();
    loop {
        // SAFETY: the buffer is writable for its whole length.
        let got = unsafe { libc::read(fd, text.as_mut_ptr().cast(), text.len()) };
        match got {
            ..0 if Errno::last().0 == libc::EINTR => continue,
            ..0 => return Err(Errno::last()),
            0 => return Ok(None),
            _ => {}
        }
        for &byte in &text[..got as usize] {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            match parse(line.bytes()) {
                Some(vma) if vma.end > at => return Ok(Some(vma)),
                Some(_) => line = Line::default(),
                None => return Err(Errno(libc::EIO)),
            }
        }
    }
}

/// The beginning of a line: the numbers and as much of the name as is looked at.
struct Line {
    bytes: [u8; Self::BYTES],
    len: usize,
}

impl Line {
    const BYTES: usize = 96 + NAME_BYTES;

    fn push(&mut self, byte: u8) {
        if self.len < Self::BYTES {
            self.bytes[self.len] = byte;
            self.len += 1;
        }
    }
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; Self::BYTES], len: 0 }
    }
}

/// `start-end perms offset major:minor inode   name`
fn parse(line: &[u8]) -> Option<RawVma> {
    let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    let mut vma = RawVma::EMPTY;
    let (range, perms, _offset, dev) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    (vma.start, vma.end) = pair(range, b'-')?;
    let [read, write, _, shared] = perms else { return None };
    (vma.readable, vma.writable, vma.shared) = (*read == b'r', *write == b'w', *shared == b's');
    let (major, minor) = pair(dev, b':')?;
    vma.dev = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    vma.inode = number(fields.next()?, 10)?;
    if let Some(first) = fields.next() {
        let from = first.as_ptr() as usize - line.as_ptr() as usize;
        let name = &line[from..];
        let kept = name.len().min(NAME_BYTES);
        vma.name[..kept].copy_from_slice(&name[..kept]);
    }
    Some(vma)
}

fn pair(field: &[u8], between: u8) -> Option<(u64, u64)> {
    let at = field.iter().position(|&byte| byte == between)?;
    Some((number(&field[..at], 16)?, number(&field[at + 1..], 16)?))
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    let add = |sum: u64, &digit: &u8| {
        let digit = (digit as char).to_digit(radix)?;
        sum.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0u64, add) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_shapes() {
        let vma = parse(b"7ffc12340000-7ffc12361000 rw-p 00000000 00:00 0                          [stack]")
            .unwrap();
        assert_eq!(
            (vma.start, vma.end, vma.writable, vma.shared),
            (0x7ffc_1234_0000, 0x7ffc_1236_1000, true, false)
        );
        assert_eq!(&vma.name[..8], b"[stack]\0");
        let vma = parse(b"1000-2000 r--s 00001000 fd:1a 77 /memfd:a b (deleted)").unwrap();
        assert_eq!((vma.dev, vma.inode, vma.readable, vma.shared), ((0xfd, 0x1a), 77, true, true));
        assert_eq!(&vma.name[..22], b"/memfd:a b (deleted)\0\0");
        let vma = parse(b"1000-2000 ---p 00000000 00:00 0 ").unwrap();
        assert_eq!((vma.name[0], vma.readable), (0, false));
        assert!(parse(b"1000 r--p 0 00:00 0").is_none() && parse(b"").is_none());
    }
}
