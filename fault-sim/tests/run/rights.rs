//! What a process without rights gets: the user-mode-only mode, or a refusal when no way to a userfaultfd opens.
#![allow(unsafe_code, reason = "a filter of system calls is installed in a child before it runs the program")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{SOURCES, is_refusal, number};

const NOBODY: u32 = 65_534;
/// `_IO(0xAA, 0x00)` of linux/userfaultfd.h: what makes a userfaultfd of an open `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: u32 = 0xAA00;

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Whether this machine lets every user have faults of the kernel served.
fn anybody_may_have_more() -> bool {
    let allowed = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let device = fs::metadata("/dev/userfaultfd").map(|device| device.permissions().mode());
    allowed.is_ok_and(|allowed| allowed.trim() != "0") || device.is_ok_and(|mode| mode & 0o6 == 0o6)
}

/// A command that runs the program. The user may not be able to read the folder of the program: it is started from a
/// descriptor, which is open for as long as the file that comes along.
fn program() -> (Command, File) {
    let file = File::open(env!("CARGO_BIN_EXE_fault-sim")).expect("the built program");
    (Command::new(format!("/proc/self/fd/{}", file.as_raw_fd())), file)
}

/// A process that really has no rights gets that mode without asking for it. As root: another user runs it.
#[test]
fn without_rights_it_works_all_the_same() {
    for source in SOURCES {
        let (mut command, _file) = program();
        command.args(["run", "--json", "--size", "4MiB", "--alloc", source]);
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let out = command.output().expect("the program starts");
        let errors = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(0), "{source}: {errors}");
        let report: serde_json::Value = serde_json::from_slice(&out.stdout).expect("an object");
        assert_eq!(report["verified"], true, "{source}: {report}");
        if is_root() && !anybody_may_have_more() {
            assert_eq!(report["user_mode_only"], true, "{source}: {report}");
        }
        if report["user_mode_only"] == true {
            let moved = number(&report, "migrated_to_device_pages");
            assert_eq!(moved > 0, ["library", "userptr"].contains(&source), "{source}: {report}");
        }
    }
}

/// Has the kernel refuse these with EPERM in the child and whatever it runs: the system call `userfaultfd`, and, with
/// `device`, the request for one at `/dev/userfaultfd`. Both doors are shut as a container's filter shuts them.
fn refuse_userfaultfd(command: &mut Command, device: bool) {
    let does = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    // A jump skips so many of the instructions that follow.
    let if_equal = |k: u32, then: u8, or_else: u8| libc::sock_filter {
        jt: then,
        jf: or_else,
        ..does(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let load = |at: usize| does(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at as u32);
    let answer = |what: u32| does(libc::BPF_RET | libc::BPF_K, what);
    // The low half of the second argument: the number of the request.
    let request =
        std::mem::offset_of!(libc::seccomp_data, args) + 8 + 4 * usize::from(cfg!(target_endian = "big"));
    let mut filter = [
        load(std::mem::offset_of!(libc::seccomp_data, nr)),
        if_equal(libc::SYS_userfaultfd as u32, 4, 0),
        if_equal(if device { libc::SYS_ioctl as u32 } else { u32::MAX }, 0, 2),
        load(request),
        if_equal(USERFAULTFD_IOC_NEW, 1, 0),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
    ];
    let install = move || {
        let filter = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the kernel copies the program, which the closure owns, before the second call returns.
        let set = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) == 0
        };
        if set { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes two system calls over memory of its own: no lock, no heap.
    unsafe { command.pre_exec(install) };
}

/// The sentence is the one that docs/kernel.md shows, with the commands that grant the right.
fn is_refused(command: &mut Command, asked: &str) {
    let page = include_str!("../../../docs/kernel.md");
    let sentence = page.lines().find(|line| line.starts_with("this process may not open a userfaultfd"));
    let sentence = sentence.expect("docs/kernel.md shows the sentence");
    assert!(sentence.contains("`sysctl -w vm.unprivileged_userfaultfd=1`"), "{sentence}");
    let out = command.output().expect("the kernel takes the filter and the program starts");
    is_refusal(&out, asked, sentence);
}

#[test]
fn with_every_door_shut_it_is_refused() {
    for source in SOURCES {
        for more in [&[][..], &["--json"], &["--user-mode-only"]] {
            let (mut command, _file) = program();
            command.args(["run", "--size", "4MiB", "--alloc", source]).args(more);
            refuse_userfaultfd(&mut command, true);
            is_refused(&mut command, &format!("{source} {more:?}"));
        }
    }
}

/// As in a container: no rights to the device file, and a filter that knows the system call only.
#[test]
fn a_user_without_rights_whose_system_call_is_filtered_is_refused() {
    if !is_root() || anybody_may_have_more() {
        eprintln!(
            "skipped: it takes root, and a machine that does not give every user more, to have a user without rights"
        );
        return;
    }
    let (mut command, _file) = program();
    command.args(["run", "--json", "--size", "4MiB"]).uid(NOBODY).gid(NOBODY);
    refuse_userfaultfd(&mut command, false);
    is_refused(&mut command, "nobody");
    // The filter alone does not do it: who may open the device file is served.
    let (mut command, _file) = program();
    command.args(["run", "--json", "--size", "4MiB"]);
    refuse_userfaultfd(&mut command, false);
    let out = command.output().expect("the program starts");
    let served = fs::exists("/dev/userfaultfd").is_ok_and(|exists| exists);
    let expected = if served { 0 } else { 2 };
    assert_eq!(out.status.code(), Some(expected), "{}", String::from_utf8_lossy(&out.stderr));
}
