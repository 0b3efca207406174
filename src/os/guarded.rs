//! Accessors to memory of the process that may vanish, be protected, or make the thread sleep in a page fault
//! at any moment: an access that the kernel refuses comes back as [`Failed::Vanished`], an access that somebody
//! wants ended as [`Failed::Stopped`]. Good accesses cost about 2 ns for a word.
//!
//! # Roles
//! * The *accessor* is a thread that calls one of the functions below. Before its first access it calls
//!   [`install`] (or knows that somebody has), and [`admit_this_thread`].
//! * A *closer* is a thread that needs the accessor out of its access: it sets the accessor's stop word and then
//!   calls [`interrupt`] with the accessor's thread id.
//! * The *handlers* of SIGSEGV, SIGBUS and the interrupt signal live in `guarded/signals.rs`.
//!
//! # Rules
//! 1. The accesses are machine code between two symbols. Each routine tests the stop word, makes its one access,
//!    and returns; nothing else is in between. A closer stores to the stop word before it signals: a signal that
//!    comes before the routine finds the word set there; a signal that comes inside is turned into
//!    [`Failed::Stopped`] by moving the instruction pointer.
//! 2. Done or not done, never both: the instruction behind the access is a bare `ret`. A signal that finds the
//!    instruction pointer there leaves it alone, so an access that took effect is never reported as stopped.
//! 3. [`copy`] says how many bytes are left; the bytes before were copied once and need not be copied again.
//! 4. The routines keep nothing on the stack and call nothing: the fix-up is a `ret` with a status.
//! 5. Signals whose instruction pointer lies elsewhere are not ours: they go where they would have gone.
//!
//! # Lost races
//! A closer that signals late hits a thread that is somewhere else: the handler returns at once. System calls of
//! that thread may see EINTR.
//!
//! Only x86_64 so far.
#![allow(
    unsafe_code,
    reason = "machine code, signal handlers, and access to memory that Rust knows nothing of"
)]

use core::ptr::addr_of;
use core::sync::atomic::AtomicU32;

use thiserror::Error;

#[path = "guarded/signals.rs"]
mod signals;
#[cfg(test)]
#[path = "guarded/tests.rs"]
mod tests;

pub use signals::{
    BusServer, InstallError, admit_this_thread, default_interrupt_signal, install, install_with, interrupt,
    set_bus_server,
};

/// Why an access was not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Failed {
    /// Nothing is mapped there, or not with this permission, or no memory could be had for the page.
    #[error("the memory is not there any more, or does not permit this access; find out why and try again")]
    Vanished,
    /// The stop word was set.
    #[error("the access was stopped by another thread; try again when its stop word is clear")]
    Stopped,
}

/// Why a copy ended early, and how much of it was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{bytes_left} bytes were not copied: {why}")]
pub struct CopyFailed {
    /// Bytes at the end that were not copied; all before them were.
    pub bytes_left: usize,
    /// Why.
    pub why: Failed,
}

/// What the routines return in rax and rdx.
#[repr(C)]
struct Out {
    value: u64,
    status: u64,
}

// Registers: rdi address, rsi value, rdx stop word (then the status), rcx expected value or length.
core::arch::global_asm!(
    ".pushsection .text.granule_guarded,\"ax\",@progbits",
    ".p2align 4",
    ".globl granule_guarded_begin, granule_guarded_end, granule_guarded_vanished, granule_guarded_stopped",
    ".hidden granule_guarded_begin",
    ".hidden granule_guarded_end",
    ".hidden granule_guarded_vanished",
    ".hidden granule_guarded_stopped",
    ".macro granule_guarded_routine name",
    ".globl granule_guarded_\\name",
    ".hidden granule_guarded_\\name",
    "granule_guarded_\\name:",
    "cmp dword ptr [rdx], 0",
    "jne granule_guarded_stopped",
    "xor edx, edx",
    ".endm",
    "granule_guarded_begin:",
    "granule_guarded_routine load8",
    "movzx eax, byte ptr [rdi]",
    "ret",
    "granule_guarded_routine load16",
    "movzx eax, word ptr [rdi]",
    "ret",
    "granule_guarded_routine load32",
    "mov eax, dword ptr [rdi]",
    "ret",
    "granule_guarded_routine load64",
    "mov rax, qword ptr [rdi]",
    "ret",
    "granule_guarded_routine store8",
    "mov byte ptr [rdi], sil",
    "ret",
    "granule_guarded_routine store16",
    "mov word ptr [rdi], si",
    "ret",
    "granule_guarded_routine store32",
    "mov dword ptr [rdi], esi",
    "ret",
    "granule_guarded_routine store64",
    "mov qword ptr [rdi], rsi",
    "ret",
    "granule_guarded_routine add32",
    "mov eax, esi",
    "lock xadd dword ptr [rdi], eax",
    "ret",
    "granule_guarded_routine add64",
    "mov rax, rsi",
    "lock xadd qword ptr [rdi], rax",
    "ret",
    "granule_guarded_routine swap32",
    "mov eax, esi",
    "xchg dword ptr [rdi], eax",
    "ret",
    "granule_guarded_routine swap64",
    "mov rax, rsi",
    "xchg qword ptr [rdi], rax",
    "ret",
    "granule_guarded_routine cas32",
    "mov eax, ecx",
    "lock cmpxchg dword ptr [rdi], esi",
    "ret",
    "granule_guarded_routine cas64",
    "mov rax, rcx",
    "lock cmpxchg qword ptr [rdi], rsi",
    "ret",
    // rdi target, rsi source, rcx bytes. The processor keeps the three up to date when it is interrupted.
    "granule_guarded_routine copy",
    "rep movsb",
    "ret",
    "granule_guarded_end:",
    "granule_guarded_vanished:",
    "mov rax, rcx",
    "mov edx, 1",
    "ret",
    "granule_guarded_stopped:",
    "mov rax, rcx",
    "mov edx, 2",
    "ret",
    ".purgem granule_guarded_routine",
    ".popsection",
);

// SAFETY: each is defined in the assembly above with this signature (values of the two-argument ones are passed
// as a dummy), follows the C calling convention, and preserves every register that the convention preserves.
unsafe extern "C" {
    fn granule_guarded_load8(at: u64, unused: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_load16(at: u64, unused: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_load32(at: u64, unused: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_load64(at: u64, unused: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_store8(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_store16(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_store32(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_store64(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_add32(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_add64(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_swap32(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_swap64(at: u64, value: u64, stop: *const AtomicU32) -> Out;
    fn granule_guarded_cas32(at: u64, new: u64, stop: *const AtomicU32, expected: u64) -> Out;
    fn granule_guarded_cas64(at: u64, new: u64, stop: *const AtomicU32, expected: u64) -> Out;
    fn granule_guarded_copy(to: u64, from: u64, stop: *const AtomicU32, bytes: u64) -> Out;
    static granule_guarded_begin: u8;
    static granule_guarded_end: u8;
    static granule_guarded_vanished: u8;
    static granule_guarded_stopped: u8;
}

/// The first byte of a bare `ret`: an instruction pointer that stands on it has its access behind it.
const RET: u8 = 0xc3;

/// Whether `ip` lies in a routine whose access has not been made.
fn before_the_access(ip: u64) -> bool {
    let (begin, end) = (addr_of!(granule_guarded_begin) as u64, addr_of!(granule_guarded_end) as u64);
    // SAFETY: `ip` lies between the two symbols, in code of this module, which is mapped as long as it runs.
    (begin..end).contains(&ip) && unsafe { *(ip as *const u8) } != RET
}

fn failed(status: u64) -> Failed {
    if status == 1 { Failed::Vanished } else { Failed::Stopped }
}

macro_rules! accessor {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) -> $out:ty, $raw:ident($value:expr $(, $expected:expr)?)) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Failed`]; nothing was read or written then.
        ///
        /// # Safety
        /// `at` is a multiple of the operand's size. The memory there may change behind the compiler's back: no
        /// Rust reference may claim it at this moment. [`install`] has succeeded and this thread is admitted.
        #[inline]
        pub unsafe fn $name(at: u64, $($arg: $ty,)* stop: &AtomicU32) -> Result<$out, Failed> {
            // SAFETY: the caller answers for the memory and the handlers; `stop` outlives the call.
            let out = unsafe { $raw(at, $value as u64, stop $(, $expected as u64)?) };
            if out.status == 0 { Ok(out.value as $out) } else { Err(failed(out.status)) }
        }
    };
}

accessor!(
    /// Reads a byte.
    load_u8() -> u8, granule_guarded_load8(0));
accessor!(
    /// Reads 2 bytes, in one piece.
    load_u16() -> u16, granule_guarded_load16(0));
accessor!(
    /// Reads 4 bytes, in one piece.
    load_u32() -> u32, granule_guarded_load32(0));
accessor!(
    /// Reads 8 bytes, in one piece.
    load_u64() -> u64, granule_guarded_load64(0));
accessor!(
    /// Adds to 4 bytes atomically (wrapping, sequentially consistent) and returns what was there before.
    fetch_add_u32(value: u32) -> u32, granule_guarded_add32(value));
accessor!(
    /// Adds to 8 bytes atomically (wrapping, sequentially consistent) and returns what was there before.
    fetch_add_u64(value: u64) -> u64, granule_guarded_add64(value));
accessor!(
    /// Exchanges 4 bytes atomically (sequentially consistent) and returns what was there before.
    swap_u32(value: u32) -> u32, granule_guarded_swap32(value));
accessor!(
    /// Exchanges 8 bytes atomically (sequentially consistent) and returns what was there before.
    swap_u64(value: u64) -> u64, granule_guarded_swap64(value));
accessor!(
    /// Stores `new` if 4 bytes hold `expected` (sequentially consistent) and returns what was there before.
    compare_exchange_u32(expected: u32, new: u32) -> u32, granule_guarded_cas32(new, expected));
accessor!(
    /// Stores `new` if 8 bytes hold `expected` (sequentially consistent) and returns what was there before.
    compare_exchange_u64(expected: u64, new: u64) -> u64, granule_guarded_cas64(new, expected));

macro_rules! store {
    ($(#[$doc:meta])* $name:ident($ty:ty), $raw:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Failed`]; nothing was written then.
        ///
        /// # Safety
        /// As [`load_u64`], and nobody else's promise is broken by the write.
        #[inline]
        pub unsafe fn $name(at: u64, value: $ty, stop: &AtomicU32) -> Result<(), Failed> {
            // SAFETY: the caller answers for the memory and the handlers; `stop` outlives the call.
            let out = unsafe { $raw(at, value as u64, stop) };
            if out.status == 0 { Ok(()) } else { Err(failed(out.status)) }
        }
    };
}

store!(
    /// Writes a byte.
    store_u8(u8), granule_guarded_store8);
store!(
    /// Writes 2 bytes, in one piece.
    store_u16(u16), granule_guarded_store16);
store!(
    /// Writes 4 bytes, in one piece.
    store_u32(u32), granule_guarded_store32);
store!(
    /// Writes 8 bytes, in one piece.
    store_u64(u64), granule_guarded_store64);

/// Copies `bytes` bytes upwards from `from` to `to`; either side may vanish. Words may tear. The ranges do not
/// overlap, or `to` lies below `from`.
///
/// # Errors
/// [`CopyFailed`]; the bytes before the last `bytes_left` were copied.
///
/// # Safety
/// As [`store_u64`] for the target and [`load_u64`] for the source, but for alignment.
#[inline]
pub unsafe fn copy(to: u64, from: u64, bytes: usize, stop: &AtomicU32) -> Result<(), CopyFailed> {
    // SAFETY: the caller answers for the memory and the handlers; `stop` outlives the call.
    let out = unsafe { granule_guarded_copy(to, from, stop, bytes as u64) };
    match out.status {
        0 => Ok(()),
        status => Err(CopyFailed { bytes_left: out.value as usize, why: failed(status) }),
    }
}
