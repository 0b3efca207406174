use core::ops::Range;

use thiserror::Error;

use super::{WORDS_PER_PAGE, Word};
use crate::sync::AtomicU32;
use crate::units::{Access, BlockNo, PageMask, VirtAddr, VirtRange};

/// The CPU side of one address space.
///
/// Words used below. *Mirrored*: the mapping's changes are delivered as events, nothing is trapped. *Armed*: a
/// touch of an absent page is trapped, too. *Taken*: a page's contents were moved out of the application's
/// mapping into a staging slot.
///
/// # Who may call what
/// * Inside the gate: `mirror`, `arm`, `disarm`, `take`, `give`, `give_words`, `fill_zero`, `poison`,
///   `unprotect`.
/// * Outside gate and locks only, since it may wait for the reader of events: `populate`, `copy_taken`, `drop_taken`.
/// * Anywhere: the rest.
///
/// # Contract
/// 1. Nothing here touches the heap but `vma` and `populate`.
/// 2. [`HostError::Changing`] means that an event waits to be read (or its caller has not run yet): nothing was
///    done beyond what the result says. Leave the gate and come back; never retry in place.
/// 3. `take` is atomic per page: a CPU write lands either in what was taken or after the page came back.
pub trait Host: Sync {
    /// The part of the address space that is served.
    fn window(&self) -> VirtRange;

    /// The mapping that holds an address.
    ///
    /// # Errors
    /// [`HostError`] if the kernel cannot be asked.
    fn vma(&self, at: VirtAddr) -> Result<Lookup, HostError>;

    /// Follows a mapping from now on. Idempotent. [`Mirrored::FromNow`] if any part of it was not followed before:
    /// what was known of it until now may be out of date without an event to tell.
    ///
    /// # Errors
    /// [`HostError::Changing`], [`HostError::NotSupported`] for memory that gives no events,
    /// [`HostError::MappingLimit`], [`HostError::OutOfMemory`]; what was followed before still is.
    fn mirror(&self, range: VirtRange) -> Result<Mirrored, HostError>;

    /// How often anything was followed that was not before. Read before a mapping is looked up and compared after
    /// `mirror`, it says whether the mapping was followed all the while: `mirror` alone answers
    /// [`Mirrored::Already`], too, when another thread has just followed what came after the mapping that was seen.
    fn follow_count(&self) -> FollowCount;

    /// Traps touches of absent pages. `range` lies in one block and is mirrored. Idempotent.
    ///
    /// # Errors
    /// As `mirror`.
    fn arm(&self, range: VirtRange) -> Result<(), HostError>;

    /// Ends `arm` for the parts of the block that are still mirrored. Best effort: a part that stays armed costs
    /// time, not correctness.
    fn disarm(&self, block: BlockNo);

    /// Makes pages present for `access`, as a touch by the CPU would. May wait for the reader of events.
    ///
    /// # Errors
    /// [`HostError::NoMapping`], [`HostError::NotPermitted`], [`HostError::OutOfMemory`], [`HostError::Trapped`];
    /// some pages may be present then.
    fn populate(&self, range: VirtRange, access: Access) -> Result<(), HostError>;

    /// Takes `pages` of `block` out of the application into `staging`, each to its own position. A page that was
    /// never touched is taken as zeros. The block is armed over these pages.
    fn take(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Take;

    /// Whether `take` only protects (a kernel without `UFFDIO_MOVE`): then `copy_taken` and `drop_taken` do the rest.
    fn takes_by_protecting(&self) -> bool {
        false
    }

    /// Whether a change of the address space waits to be read, or its caller has not run since.
    fn is_changing(&self) -> bool {
        false
    }

    /// Copies to staging what `take` could only protect, and returns the pages that are there now. As `drop_taken`: it may
    /// meet a page whose mapping has just gone elsewhere.
    fn copy_taken(&self, block: BlockNo, pages: &PageMask) -> PageMask {
        let _ = block;
        *pages
    }

    /// Ends a take: drops from the application what was protected and copied, and returns the pages that are gone now.
    /// Whoever calls it has just made sure, inside the gate and with no change under way, that these pages are in transit
    /// still: what another thread has mapped in their place since would be dropped. Called once after each `take`, for the pages
    /// that it took, while they are still marked in transit and before `staging_done`. Those that are not
    /// returned are still present and protected: give them back. Waits for the reader of events.
    fn drop_taken(&self, block: BlockNo, pages: &PageMask) -> PageMask;

    /// Moves `pages` of `block` from `staging` back to the application and wakes who waits for them. What was not given
    /// is still in staging.
    fn give(&self, block: BlockNo, pages: &PageMask, staging: StagingId) -> Give;

    /// Copies `words` (a multiple of a page) to the absent pages from `at` on and wakes who waits for them.
    /// Returns how many pages were filled.
    fn give_words(&self, at: VirtAddr, words: &[Word]) -> (u64, Result<(), HostError>);

    /// Fills absent pages with zeros and wakes who waits for them. Stops at the first present page. Returns how
    /// many pages were filled.
    fn fill_zero(&self, range: VirtRange) -> (u64, Result<(), HostError>);

    /// Makes each touch of the absent pages of a range an error from now on, as that of memory that has failed (SIGBUS for
    /// a thread, EFAULT or EHWPOISON for a system call), and wakes who waits for them. Present pages are passed over. A
    /// page that is given later takes the error's place. Returns how many pages it is.
    ///
    /// # Errors
    /// [`HostError::Changing`], [`HostError::NotSupported`] by a kernel that has no such thing,
    /// [`HostError::NoMapping`], [`HostError::OutOfMemory`]; the pages before are poisoned then.
    fn poison(&self, range: VirtRange) -> (u64, Result<(), HostError>);

    /// Lets every thread go on that waits for a page of the range; each touches its page again.
    fn wake(&self, range: VirtRange);

    /// Ends the write protection of present pages and lets every thread go on that waits for it.
    ///
    /// # Errors
    /// [`HostError::Changing`]; nothing is changed then.
    fn unprotect(&self, range: VirtRange) -> Result<(), HostError>;

    /// A staging slot of 2 MiB in private memory, its pages absent at `empty` positions; `None` when all are in
    /// use (bounded: one per thread that serves, plus a few).
    fn staging(&self, empty: &PageMask) -> Option<StagingId>;

    /// As `staging`, for pages of `block` that are about to be copied to the slot and given: a host that knows how to
    /// bring them back as a huge page picks a slot for that.
    fn staging_for(&self, block: BlockNo, pages: &PageMask) -> Option<StagingId> {
        let _ = (block, pages);
        self.staging(&PageMask::EMPTY)
    }

    /// The memory of a staging slot: one block, positional.
    fn staging_words(&self, staging: StagingId) -> &[Word];

    /// Where the contents of pages of `block` stand while they are in transit through `staging`, or are to be put on
    /// their way home: as many pages from `run.start` on as lie together, at least one. That is the staging slot,
    /// unless the service has a view of its own of this memory: then they stay where they are, and `take` and
    /// `give` only unmap and map them.
    fn moving_words(&self, block: BlockNo, run: Range<usize>, staging: StagingId) -> &[Word] {
        let _ = block;
        &self.staging_words(staging)[run.start * WORDS_PER_PAGE..run.end * WORDS_PER_PAGE]
    }

    /// Pages of a block of which the service has a view of its own: their contents are wherever `moving_words` says, and
    /// a child after fork shares them.
    fn shared_pages(&self, block: BlockNo) -> PageMask {
        let _ = block;
        PageMask::EMPTY
    }

    /// Gives a slot back. Its pages are kept as the pool from which pages return to the application.
    fn staging_done(&self, staging: StagingId);

    /// Reads everything that waits to be read, as far as `out` has room, without waiting. Called by the reader with the
    /// gate closed: the caller of munmap, madvise, mremap or fork goes on once its event was read.
    fn drain(&self, out: &mut [HostEvent]) -> usize;

    /// Lets other threads run; called between two tries, outside gate and locks. [`HostError::Changing`] lasts until
    /// a thread of the application has run again.
    fn pause(&self);

    /// Sleeps until `word` moves away from `seen`, at most `limit_ns`. Called by the reader: touches private memory
    /// only.
    fn wait_word(&self, word: &AtomicU32, seen: u32, limit_ns: u64);

    /// Copies `words` to absent pages of a child that was forked, at the same address. Best effort: a page that the
    /// child has already is left alone.
    fn child_fill(&self, child: u32, at: VirtAddr, words: &[Word]);

    /// The child has everything; it is let go on its own.
    fn child_done(&self, child: u32);
}

/// See [`Host::follow_count`]. Compare for equality only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FollowCount(pub u64);

/// Since when a mapping is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mirrored {
    /// Since before: every change since then is or will be an event.
    Already,
    /// Since this call: look at the mapping again.
    FromNow,
}

/// A staging slot of a [`Host`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StagingId(pub u32);

/// What stands at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lookup {
    /// This mapping holds the address.
    Mapped(Vma),
    /// Nothing, up to this address (exclusive) at least.
    Hole {
        /// Where the next mapping may begin.
        until: VirtAddr,
    },
}

/// A mapping of the process as it was when it was asked for. The kernel tells no one when permissions change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vma {
    /// The whole mapping.
    pub range: VirtRange,
    /// What the CPU may do; `None` for PROT_NONE.
    pub access: Option<Access>,
    /// What kind of memory it is.
    pub kind: VmaKind,
}

/// How a mapping may be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmaKind {
    /// Private anonymous memory that may move to a device.
    Movable,
    /// Memory that gives events but stays: shared memory, stacks, what the kernel refuses to move.
    LinkOnly,
    /// Private memory of the library itself, or memory that gives no events: not served.
    Unfollowed,
}

/// What `take` did with each page that it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Take {
    /// These are in staging now, or protected and brought there by `copy_taken`.
    pub taken: PageMask,
    /// These the kernel refuses to move (pinned, shared with a child, locked): link them.
    pub refused: PageMask,
    /// Why pages that are in neither set were not tried.
    pub stopped: Option<HostError>,
}

/// What `give` did with each page that it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Give {
    /// The application has these now.
    pub given: PageMask,
    /// Where these were to go, pages of the application's own stand: newer than what staging holds.
    pub present: PageMask,
    /// Why pages that are in neither set were not given; of several reasons the last.
    pub stopped: Option<HostError>,
}

impl Give {
    /// These pages were given, and nothing else was asked for.
    pub const fn all(given: PageMask) -> Self {
        Self { given, present: PageMask::EMPTY, stopped: None }
    }
    /// What need not be brought any more: given, or present already.
    pub fn settled(&self) -> PageMask {
        self.given | self.present
    }
}

/// What the reader of events hands to the fault path, in the order in which the kernel told it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostEvent {
    /// A thread waits for a page.
    Fault {
        /// The address it touched.
        at: VirtAddr,
        /// What it wanted.
        access: Access,
        /// Whether the page is present and write-protected, rather than absent.
        write_protected: bool,
    },
    /// The range is unmapped already.
    Unmap(VirtRange),
    /// The range's contents are about to be discarded; they are still there.
    Remove(VirtRange),
    /// `from` was moved to `to`, same length.
    Remap {
        /// Where it was.
        from: VirtRange,
        /// Where it is.
        to: VirtAddr,
    },
    /// A child was made that inherits the mappings.
    Fork {
        /// Names the child's side to the host.
        child: u32,
    },
    /// A child was made that shares the memory of which the service has a view of its own. None of that is taken any
    /// more.
    ForkShared {
        /// Names the child's side to the host.
        child: u32,
    },
}

/// What the world may answer; errno values are translated once, in `os`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// An event waits to be read.
    #[error("the address space is changing; leave the gate and try again")]
    Changing,
    /// A page is there already.
    #[error("the page is present already")]
    Present,
    /// Nothing is mapped there.
    #[error("nothing is mapped there")]
    NoMapping,
    /// The mapping does not allow it.
    #[error("the mapping does not permit this access")]
    NotPermitted,
    /// The kernel cannot do this to this kind of memory.
    #[error("the kernel does not support this for this kind of memory")]
    NotSupported,
    /// No memory.
    #[error("out of memory")]
    OutOfMemory,
    /// The process has as many mappings as it may have.
    #[error("the limit on mappings is reached; raise vm.max_map_count")]
    MappingLimit,
    /// A page of it is trapped, and the kernel's own accesses cannot wait there.
    #[error("a page there is trapped where a system call cannot wait; serve it as a touch, then try again")]
    Trapped,
    /// The address space is gone (the process is exiting, or this is a child after fork).
    #[error("the address space is gone")]
    Gone,
}
