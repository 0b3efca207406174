use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use super::*;

const PAGE: usize = 4096;

/// Anonymous memory, unmapped at the end of the test.
struct Mapping(u64, usize);

impl Mapping {
    fn new(pages: usize, protection: i32) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a fresh mapping.
        let at = unsafe { libc::mmap(null_mut(), pages * PAGE, protection, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self(at as u64, pages * PAGE)
    }
    fn at(&self, byte: usize) -> u64 {
        self.0 + byte as u64
    }
    fn protect(&self, page: usize, protection: i32) {
        // SAFETY: inside of the mapping; nobody holds a reference into it.
        assert_eq!(unsafe { libc::mprotect(self.at(page * PAGE) as *mut _, PAGE, protection) }, 0);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new`, whole.
        unsafe { libc::munmap(self.0 as *mut _, self.1) };
    }
}

fn ready() -> AtomicU32 {
    install().expect("handlers");
    admit_this_thread();
    AtomicU32::new(0)
}

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;

#[test]
fn words_of_every_size_are_read_and_written() {
    let go = ready();
    let memory = Mapping::new(1, RW);
    let at = memory.at(64);
    // SAFETY: private mapping of this test, no references into it.
    unsafe {
        assert_eq!(store_u64(at, 0x1122_3344_5566_7788, &go), Ok(()));
        assert_eq!(load_u64(at, &go), Ok(0x1122_3344_5566_7788));
        assert_eq!(load_u32(at + 4, &go), Ok(0x1122_3344));
        assert_eq!(load_u16(at + 2, &go), Ok(0x5566));
        assert_eq!(load_u8(at + 7, &go), Ok(0x11));
        assert_eq!(store_u8(at, 0xff, &go), Ok(()));
        assert_eq!(store_u16(at + 2, 0xabcd, &go), Ok(()));
        assert_eq!(store_u32(at + 4, 7, &go), Ok(()));
        assert_eq!(load_u64(at, &go), Ok(0x0000_0007_abcd_77ff));
        assert_eq!(fetch_add_u64(at, u64::MAX, &go), Ok(0x0000_0007_abcd_77ff));
        assert_eq!(fetch_add_u32(at + 4, 3, &go), Ok(7));
        assert_eq!(swap_u32(at + 4, 1, &go), Ok(10));
        assert_eq!(compare_exchange_u32(at + 4, 2, 9, &go), Ok(1));
        assert_eq!(compare_exchange_u32(at + 4, 1, 9, &go), Ok(1));
        assert_eq!(swap_u64(at, 5, &go), Ok(0x0000_0009_abcd_77fe));
        assert_eq!(compare_exchange_u64(at, 4, 6, &go), Ok(5));
        assert_eq!(compare_exchange_u64(at, 5, 6, &go), Ok(5));
        assert_eq!(load_u64(at, &go), Ok(6));
    }
}

#[test]
fn what_is_not_there_vanishes() {
    let go = ready();
    let none = Mapping::new(1, libc::PROT_NONE);
    let read_only = Mapping::new(1, libc::PROT_READ);
    // SAFETY: nothing is mapped at 4096 or in the gap above the user half; the others belong to this test.
    unsafe {
        for at in [PAGE as u64, none.at(8), 0xffff_8000_0000_0000, 1 << 62] {
            assert_eq!(load_u64(at, &go), Err(Failed::Vanished));
            assert_eq!(store_u32(at, 1, &go), Err(Failed::Vanished));
            assert_eq!(fetch_add_u64(at, 1, &go), Err(Failed::Vanished));
            assert_eq!(compare_exchange_u32(at, 0, 1, &go), Err(Failed::Vanished));
        }
        assert_eq!(load_u64(read_only.at(0), &go), Ok(0));
        assert_eq!(store_u64(read_only.at(0), 1, &go), Err(Failed::Vanished));
        assert_eq!(compare_exchange_u64(read_only.at(0), 7, 1, &go), Err(Failed::Vanished));
    }
}

#[test]
fn a_copy_says_where_it_stopped() {
    let go = ready();
    let from = Mapping::new(3, RW);
    let to = Mapping::new(3, RW);
    // SAFETY: mappings of this test without references into them.
    unsafe {
        for word in 0..(3 * PAGE / 8) as u64 {
            store_u64(from.at(0) + word * 8, word * 3 + 1, &go).expect("mapped");
        }
        assert_eq!(copy(to.at(0), from.at(0), 3 * PAGE, &go), Ok(()));
        assert_eq!(load_u64(to.at(2 * PAGE + 8), &go), load_u64(from.at(2 * PAGE + 8), &go));
        for (gone, broken) in [(&from, "source"), (&to, "target")] {
            gone.protect(2, libc::PROT_NONE);
            let failed = copy(to.at(100), from.at(100), 2 * PAGE, &go).expect_err(broken);
            assert_eq!(failed, CopyFailed { bytes_left: 100, why: Failed::Vanished }, "{broken}");
            gone.protect(2, RW);
        }
        let stop = AtomicU32::new(1);
        let failed = copy(to.at(0), from.at(0), 77, &stop).expect_err("stopped");
        assert_eq!(failed, CopyFailed { bytes_left: 77, why: Failed::Stopped });
        assert_eq!(load_u8(from.at(0), &stop), Err(Failed::Stopped));
        assert_eq!(store_u64(from.at(0), 9, &stop), Err(Failed::Stopped));
        assert_eq!(load_u64(from.at(0), &go), Ok(1), "a stopped store wrote nothing");
    }
}

/// A userfaultfd for missing pages of `memory`, which nobody serves.
fn unserved(memory: &Mapping) -> libc::c_int {
    #[repr(C)]
    struct Api(u64, u64, u64);
    #[repr(C)]
    struct Register(u64, u64, u64, u64);
    const UFFDIO_API: u64 = 0xc018_aa3f;
    const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    const MISSING: u64 = 1;
    const USER_MODE_ONLY: i32 = 1;
    // SAFETY: system calls on structures of this stack and a mapping of this test.
    unsafe {
        let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY)
            as libc::c_int;
        assert!(
            fd >= 0,
            "userfaultfd(2), in user mode only, is needed by this test: {}",
            std::io::Error::last_os_error()
        );
        assert_eq!(libc::ioctl(fd, UFFDIO_API as _, &mut Api(0xaa, 0, 0)), 0);
        let mut register = Register(memory.at(0), memory.1 as u64, MISSING, 0);
        assert_eq!(libc::ioctl(fd, UFFDIO_REGISTER as _, &mut register), 0);
        fd
    }
}

/// Whether a fault waits to be read.
fn fault_is_pending(fd: libc::c_int, wait: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, on this stack.
    unsafe { libc::poll(&mut poll, 1, wait.as_millis() as i32) == 1 && poll.revents == libc::POLLIN }
}

#[test]
fn a_sleeper_in_an_unserved_fault_is_interrupted() {
    ready();
    let memory = Mapping::new(4, RW);
    let copied = Mapping::new(2, RW);
    let fd = unserved(&memory);
    let stop = AtomicU32::new(0);
    let tid = AtomicI32::new(0);
    let (tell, hear) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            admit_this_thread();
            // SAFETY: gettid has no arguments; the mappings live until the scope ends.
            unsafe {
                tid.store(libc::gettid(), Ordering::SeqCst);
                tell.send(load_u64(memory.at(8), &stop).map(|_| ())).expect("listener");
                stop.store(0, Ordering::SeqCst);
                let failed = copy(copied.at(0), memory.at(PAGE), 2 * PAGE, &stop).expect_err("nobody serves");
                assert_eq!(failed.bytes_left, 2 * PAGE);
                tell.send(Err(failed.why)).expect("listener");
                stop.store(0, Ordering::SeqCst);
                tell.send(fetch_add_u64(memory.at(2 * PAGE), 1, &stop).map(|_| ())).expect("listener");
            }
        });
        for _ in 0..3 {
            assert!(fault_is_pending(fd, Duration::from_secs(10)), "the accessor never reached its fault");
            stop.store(1, Ordering::SeqCst);
            interrupt(tid.load(Ordering::SeqCst));
            assert_eq!(hear.recv_timeout(Duration::from_secs(10)), Ok(Err(Failed::Stopped)));
        }
    });
    // SAFETY: made by this test.
    unsafe { libc::close(fd) };
}

#[test]
fn an_access_under_fire_happens_exactly_once() {
    ready();
    let memory = Mapping::new(1, RW);
    let stop = AtomicU32::new(0);
    let tid = AtomicI32::new(0);
    let end = AtomicU32::new(0);
    let (done, stopped) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            admit_this_thread();
            // SAFETY: as above.
            unsafe { tid.store(libc::gettid(), Ordering::SeqCst) };
            while end.load(Ordering::Relaxed) == 0 {
                // SAFETY: the mapping lives until the scope ends.
                match unsafe { fetch_add_u64(memory.at(0), 1, &stop) } {
                    Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                    Err(_) => stopped.fetch_add(1, Ordering::Relaxed),
                };
            }
        });
        while tid.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        // By what happened and not by time: on a busy machine the thread may hardly run.
        let accesses = || done.load(Ordering::Relaxed) + stopped.load(Ordering::Relaxed);
        for _ in 0..50_000 {
            let before = accesses();
            // Without the stop word: only the instruction pointer decides.
            interrupt(tid.load(Ordering::SeqCst));
            while accesses() == before {
                std::thread::yield_now();
            }
        }
        end.store(1, Ordering::Relaxed);
    });
    // SAFETY: the mapping is alive.
    let counted = unsafe { load_u64(memory.at(0), &stop) }.expect("mapped");
    assert_eq!(counted, done.load(Ordering::Relaxed), "an access was counted twice or reported wrongly");
    assert!(counted > 1000);
    println!("{counted} made, {} stopped", stopped.load(Ordering::Relaxed));
}

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn foreign(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's record; mmap at a page this test owns; exit codes only.
    unsafe {
        let at = (*info).si_addr() as u64;
        if SEEN.swap(at, Ordering::SeqCst) != 0 {
            libc::_exit(20);
        }
        let page = (at & !(PAGE as u64 - 1)) as *mut libc::c_void;
        libc::mprotect(page, PAGE, RW);
    }
}

/// Runs `body` in a child and says how it ended. The child makes system calls and guarded accesses only.
fn in_child(body: impl FnOnce() -> i32) -> libc::c_int {
    // SAFETY: the child leaves through _exit and takes no lock that another thread may have held.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::_exit(body());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    }
}

#[test]
fn foreign_faults_go_where_they_went_before() {
    // A fresh image of this test program, in which `install` has not run yet.
    if std::env::var_os("GRANULE_GUARDED_CHAIN").is_none() {
        let ended = std::process::Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "os::guarded::tests::foreign_faults_go_where_they_went_before", "--nocapture"])
            .env("GRANULE_GUARDED_CHAIN", "1")
            .status()
            .expect("starts");
        assert!(ended.success());
        return;
    }
    // SAFETY: handlers for this process, which serves this test only; accesses to mappings of this test.
    unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = foreign as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &action, null_mut()), 0);
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = libc::SIG_DFL;
        assert_eq!(libc::sigaction(libc::SIGBUS, &action, null_mut()), 0);
    }
    let go = ready();
    let none = Mapping::new(1, libc::PROT_NONE);
    // SAFETY: the page belongs to this test; the foreign handler opens it.
    unsafe {
        assert_eq!(load_u64(none.at(16), &go), Err(Failed::Vanished));
        assert_eq!(SEEN.load(Ordering::SeqCst), 0, "a guarded fault went to the foreign handler");
        assert_eq!((none.at(16) as *const u64).read_volatile(), 0);
        assert_eq!(SEEN.load(Ordering::SeqCst), none.at(16), "the foreign handler saw the address");
    }
    // SIGBUS had the default action: a foreign one kills with SIGBUS, sent or found by the kernel.
    let sent = in_child(|| {
        // SAFETY: a signal to oneself.
        unsafe { libc::kill(libc::getpid(), libc::SIGBUS) };
        21
    });
    assert!(libc::WIFSIGNALED(sent) && libc::WTERMSIG(sent) == libc::SIGBUS, "{sent:#x}");
    let found = in_child(|| {
        // SAFETY: a file mapping beyond the file's end, in the child only.
        unsafe {
            let fd = libc::memfd_create(c"empty".as_ptr(), 0);
            let at = libc::mmap(null_mut(), PAGE, RW, libc::MAP_SHARED, fd, 0);
            if load_u64(at as u64, &AtomicU32::new(0)) != Err(Failed::Vanished) {
                return 22;
            }
            at.cast::<u64>().read_volatile();
        }
        23
    });
    assert!(libc::WIFSIGNALED(found) && libc::WTERMSIG(found) == libc::SIGBUS, "{found:#x}");
}

#[test]
fn a_second_interrupt_signal_is_refused() {
    ready();
    assert_eq!(install_with(libc::SIGRTMAX()), Err(InstallError::OtherSignal(default_interrupt_signal())));
    assert_eq!(install_with(default_interrupt_signal()), Ok(()));
}
