//! A progress bar on a terminal, none in a pipe.
#![allow(unsafe_code, reason = "a terminal is opened")]

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Output, Stdio};

/// Of the terminal.
const COLUMNS: u16 = 80;

/// A terminal of 24 lines: the side of who watches it, and that of the program. `None`, and said, where no file system of
/// pseudo-terminals is mounted (a bare chroot).
fn terminal() -> Option<(File, OwnedFd)> {
    let (mut watcher, mut program) = (-1, -1);
    let size = libc::winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
    let nothing = std::ptr::null_mut();
    // SAFETY: two descriptors are written; neither name nor settings are asked for; the size is read.
    let rc = unsafe {
        libc::openpty(&raw mut watcher, &raw mut program, nothing, nothing.cast(), &raw const size)
    };
    if rc != 0 {
        let why = std::io::Error::last_os_error();
        let absent = matches!(why.raw_os_error(), Some(libc::ENODEV | libc::ENOENT | libc::ENXIO));
        assert!(absent, "a terminal: {why}");
        println!("skipped: there are no pseudo-terminals here (mount devpts on /dev/pts): {why}");
        return None;
    }
    // SAFETY: both are fresh, and owned by nobody else.
    Some(unsafe { (File::from_raw_fd(watcher), OwnedFd::from_raw_fd(program)) })
}

fn small_run() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fault-sim"));
    command.args(["run", "--json", "--size", "4MiB"]).env("TERM", "xterm").env_remove("NO_COLOR");
    command
}

/// What the terminal shows until the last who writes to it has ended, and what came out elsewhere.
fn watched(mut command: Command, mut watcher: File) -> (String, Output) {
    let child = command.spawn().expect("the built program starts");
    // It holds the program's side of the terminal, too.
    drop(command);
    let (mut shown, mut piece) = (Vec::new(), [0; 4096]);
    // Once nobody has the other side open any more, a read is refused.
    while let Ok(bytes @ 1..) = watcher.read(&mut piece) {
        shown.extend_from_slice(&piece[..bytes]);
    }
    let out = child.wait_with_output().expect("it ends");
    (String::from_utf8_lossy(&shown).into_owned(), out)
}

fn is_verified(report: &[u8]) {
    let report: serde_json::Value = serde_json::from_slice(report).expect("one object and nothing else");
    assert_eq!(report["verified"], true, "{report}");
}

#[test]
fn a_bar_is_drawn_on_a_terminal_and_taken_away() {
    let Some((watcher, program)) = terminal() else { return };
    let mut command = small_run();
    command.stdout(Stdio::piped()).stderr(program);
    let (shown, out) = watched(command, watcher);
    assert_eq!(out.status.code(), Some(0), "{shown}");
    is_verified(&out.stdout);
    for part in ["device [", "░", "/4.00 MiB"] {
        assert!(shown.contains(part), "no {part:?} in {shown:?}");
    }
    // The line is emptied before each frame but the first, and at the end.
    let empty = "\r\x1b[2K";
    assert!(shown.ends_with(empty), "something is left on the terminal: {shown:?}");
    for frame in shown.split(empty) {
        assert!(frame.chars().count() <= usize::from(COLUMNS), "longer than a line: {frame:?}");
        assert!(!frame.contains(['\x1b', '\n']), "more than text: {frame:?}");
        assert!(!frame.contains("/0 B"), "the bar shows before its length is known: {frame:?}");
    }
}

/// Standard output on a terminal is no reason to draw: the bar belongs to standard error.
#[test]
fn no_bar_is_drawn_in_a_pipe() {
    let Some((watcher, program)) = terminal() else { return };
    let mut command = small_run();
    command.stdout(program).stderr(Stdio::piped());
    let (shown, out) = watched(command, watcher);
    let errors = String::from_utf8_lossy(&out.stderr);
    assert_eq!((out.status.code(), errors.as_ref()), (Some(0), ""), "{shown}");
    is_verified(shown.as_bytes());
    let out = small_run().output().expect("the built program starts");
    assert!(out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    is_verified(&out.stdout);
}
