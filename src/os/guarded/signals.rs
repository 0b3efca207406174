//! The handlers behind the accessors: SIGSEGV, SIGBUS and the interrupt signal.
//!
//! A SIGBUS elsewhere is shown to the [`BusServer`], if there is one: it serves touches of pages that are away.
//!
//! A handler that finds the instruction pointer in front of a guarded access moves it to the fix-up. Everything
//! else goes where it would have gone without us: to the handler that stood there before, with its own mask,
//! or to the kernel's default. Handlers touch the signal frame and static data of this object only; they call
//! the kernel only on the foreign path.
//!
//! A program that replaces the handlers later and does not chain takes the guard away; install the library's
//! last, or chain to it.

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::ptr::{addr_of, null, null_mut};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, Ordering};
use std::sync::Mutex;

use libc::{c_int, c_void, siginfo_t, ucontext_t};
use thiserror::Error;

use super::{before_the_access, granule_guarded_stopped, granule_guarded_vanished};

/// Why the handlers could not be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The program uses the interrupt signal for something else.
    #[error(
        "signal {0} already has a handler in this program; choose another real-time signal as interrupt signal"
    )]
    SignalTaken(i32),
    /// The number is not a real-time signal.
    #[error("{0} is not a real-time signal; choose one from SIGRTMIN to SIGRTMAX")]
    NotRealTime(i32),
    /// The handlers are installed with another interrupt signal.
    #[error(
        "the handlers are installed already with interrupt signal {0}; use that one in the whole process"
    )]
    OtherSignal(i32),
    /// The kernel refused.
    #[error("the kernel refused a signal handler (errno {0}); allow sigaction to this process")]
    Refused(i32),
}

/// What stood at a signal before us. Written once under `INSTALLING` before the handler that reads it exists.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: the one write happens before `sigaction` publishes the handler that reads it; only reads follow.
unsafe impl Sync for Previous {}

static SEGV_BEFORE: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));
static BUS_BEFORE: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));
/// The handler before us asked to be called once only, and was.
static SEGV_SPENT: AtomicBool = AtomicBool::new(false);
static BUS_SPENT: AtomicBool = AtomicBool::new(false);
/// The interrupt signal; 0 until everything is installed.
static INTERRUPT: AtomicI32 = AtomicI32::new(0);
/// A [`BusServer`], or null.
static BUS_SERVER: AtomicPtr<()> = AtomicPtr::new(null_mut());
static INSTALLING: Mutex<()> = Mutex::new(());

/// The interrupt signal that [`install`] uses: the fourth real-time signal from the top.
pub fn default_interrupt_signal() -> i32 {
    libc::SIGRTMAX() - 3
}

/// Installs the handlers, once per process, with the default interrupt signal unless they are there already.
///
/// # Errors
/// [`InstallError`]; nothing is changed then, or SIGSEGV and SIGBUS only, whose handlers are harmless.
pub fn install() -> Result<(), InstallError> {
    match INTERRUPT.load(Ordering::Acquire) {
        0 => install_with(default_interrupt_signal()),
        _ => Ok(()),
    }
}

/// As [`install`], with an interrupt signal of the program's choice.
///
/// # Errors
/// [`InstallError`].
pub fn install_with(interrupt_signal: i32) -> Result<(), InstallError> {
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match INTERRUPT.load(Ordering::Acquire) {
        0 => {}
        same if same == interrupt_signal => return Ok(()),
        other => return Err(InstallError::OtherSignal(other)),
    }
    if !(libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&interrupt_signal) {
        return Err(InstallError::NotRealTime(interrupt_signal));
    }
    let taken = query(interrupt_signal)?;
    if taken.sa_sigaction != libc::SIG_DFL && taken.sa_sigaction != on_interrupt as *const () as usize {
        return Err(InstallError::SignalTaken(interrupt_signal));
    }
    for (signal, before) in [(libc::SIGSEGV, &SEGV_BEFORE), (libc::SIGBUS, &BUS_BEFORE)] {
        let now = query(signal)?;
        if now.sa_sigaction != on_fault as *const () as usize {
            // SAFETY: under INSTALLING; the handler that reads the cell is not installed yet.
            unsafe { (*before.0.get()).write(now) };
            set(signal, on_fault as *const () as usize, libc::SA_NODEFER)?;
        }
    }
    // Deferred while it runs: a storm of interrupts must not nest frames until the stack ends.
    set(interrupt_signal, on_interrupt as *const () as usize, 0)?;
    INTERRUPT.store(interrupt_signal, Ordering::Release);
    Ok(())
}

/// Lets the three signals reach the calling thread. Each thread that makes guarded accesses calls it once.
pub fn admit_this_thread() {
    // SAFETY: a signal set on this stack, filled before it is read; only this thread's mask changes.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        for signal in [libc::SIGSEGV, libc::SIGBUS, INTERRUPT.load(Ordering::Acquire)] {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), null_mut());
    }
}

/// Makes the thread `tid` of this process leave a guarded access in which it sleeps or computes. The caller has
/// set that thread's stop word before. A thread that is elsewhere, or gone, is not disturbed beyond EINTR. Does
/// not wait, does not touch the heap.
pub fn interrupt(tid: i32) {
    let signal = INTERRUPT.load(Ordering::Acquire);
    assert!(signal != 0, "guarded::install comes before guarded::interrupt");
    // SAFETY: a plain system call on numbers. A thread id of another process is refused because of the group id.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
}

/// Serves a touch of an address that raised SIGBUS in the calling thread; `true`: make it again. Called in the handler,
/// with all signals blocked: touches static data and private memory only.
pub type BusServer = fn(at: u64, write: bool) -> bool;

/// Sets who is asked about each SIGBUS that is not a guarded access. One for the process, once and for all.
pub fn set_bus_server(server: BusServer) {
    BUS_SERVER.store(server as *mut (), Ordering::Release);
}

/// Asks the server. Keeps errno; blocks every signal (the frame's mask comes back when the handler returns) unless
/// the answer is no.
///
/// # Safety
/// As the arguments of a handler.
unsafe fn serve_bus(info: *mut siginfo_t, context: *mut c_void) -> bool {
    /// The processor's page-fault error code: the access was a write.
    const WROTE: i64 = 2;
    let server = BUS_SERVER.load(Ordering::Acquire);
    if server.is_null() {
        return false;
    }
    // SAFETY: `set_bus_server` stored a function of this type; the frame and the record are the kernel's; the sets
    // live on this stack, and the mask is restored unless the frame does that.
    unsafe {
        let server: BusServer = core::mem::transmute(server);
        let (at, code) = ((*info).si_addr() as u64, (*context.cast::<ucontext_t>()).uc_mcontext.gregs);
        let errno = *libc::__errno_location();
        let (mut all, mut before) = (MaybeUninit::<libc::sigset_t>::uninit(), MaybeUninit::uninit());
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr());
        let served = server(at, code[libc::REG_ERR as usize] & WROTE != 0);
        if !served {
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), null_mut());
        }
        *libc::__errno_location() = errno;
        served
    }
}

fn query(signal: i32) -> Result<libc::sigaction, InstallError> {
    let mut now = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asks only; `now` is valid for the write.
    let result = unsafe { libc::sigaction(signal, null(), now.as_mut_ptr()) };
    if result != 0 {
        return Err(InstallError::Refused(errno()));
    }
    // SAFETY: filled by the kernel (and zeroed before).
    Ok(unsafe { now.assume_init() })
}

fn set(signal: i32, handler: usize, more_flags: c_int) -> Result<(), InstallError> {
    // SAFETY: all-zero is a valid sigaction with an empty mask; both handlers have the SA_SIGINFO signature.
    let result = unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = handler;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART | more_flags;
        libc::sigaction(signal, &action, null_mut())
    };
    if result == 0 { Ok(()) } else { Err(InstallError::Refused(errno())) }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Moves the instruction pointer of the interrupted thread to `to` if it stands in front of a guarded access.
///
/// # Safety
/// `context` is the frame that the kernel passed to a handler of the calling thread.
unsafe fn fix_up(context: *mut c_void, to: *const u8) -> bool {
    let context = context.cast::<ucontext_t>();
    // SAFETY: the caller's frame, exclusively ours until the handler returns.
    let ip = unsafe { &mut (*context).uc_mcontext.gregs[libc::REG_RIP as usize] };
    if before_the_access(*ip as u64) {
        *ip = to as i64;
        return true;
    }
    false
}

extern "C" fn on_interrupt(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passed this frame.
    unsafe { fix_up(context, addr_of!(granule_guarded_stopped)) };
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passed this frame and this record.
    unsafe {
        // A positive code says that the kernel found the fault in this very instruction.
        if (*info).si_code > 0 && fix_up(context, addr_of!(granule_guarded_vanished)) {
            return;
        }
        if signal == libc::SIGBUS && (*info).si_code == libc::BUS_ADRERR && serve_bus(info, context) {
            return;
        }
        pass_on(signal, info, context);
    }
}

/// What the kernel would have done with a signal that is not ours.
///
/// # Safety
/// As the arguments of a handler.
unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let (cell, spent) =
        if signal == libc::SIGSEGV { (&SEGV_BEFORE, &SEGV_SPENT) } else { (&BUS_BEFORE, &BUS_SPENT) };
    // SAFETY: written before this handler was installed, never again.
    let before = unsafe { (*cell.0.get()).assume_init_ref() };
    // SAFETY: the kernel's record.
    let forced = unsafe { (*info).si_code } > 0;
    let handler = match before.sa_sigaction {
        _ if spent.load(Ordering::Relaxed) => libc::SIG_DFL,
        libc::SIG_IGN if !forced => return,
        // The kernel does not let a fault be ignored.
        libc::SIG_IGN => libc::SIG_DFL,
        other => other,
    };
    if handler == libc::SIG_DFL {
        // SAFETY: plain system calls on static data and the caller's record.
        unsafe {
            let default = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            libc::sigaction(signal, &default, null_mut());
            if !forced {
                // Sent by somebody: send it again, with the same record, to its default end.
                let tid = libc::syscall(libc::SYS_gettid);
                libc::syscall(libc::SYS_rt_tgsigqueueinfo, libc::getpid(), tid, signal, info);
            }
            // Otherwise the instruction is executed again and faults again, now for the kernel.
        }
        return;
    }
    if before.sa_flags & libc::SA_RESETHAND != 0 {
        spent.store(true, Ordering::Relaxed);
    }
    // SAFETY: masks on this stack. The kernel restores the thread's mask from the frame when we return; a
    // handler that jumps out restores it itself, as it would without us.
    unsafe {
        let mut mask = before.sa_mask;
        if before.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&mut mask, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &mask, null_mut());
        if before.sa_flags & libc::SA_SIGINFO != 0 {
            let call: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = core::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: extern "C" fn(c_int) = core::mem::transmute(handler);
            call(signal);
        }
    }
}
