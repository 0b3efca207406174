//! What the tests of the Linux side share: memory to experiment on, and a reader of events.
#![allow(unsafe_code, reason = "maps memory for experiments")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use granule::os::private::PrivateArc;
use granule::os::thread::{self, ServiceThread};
use granule::os::{HostOptions, LinuxHost, TakeWay};
use granule::ports::{Give, Host, HostError, HostEvent, StagingId, WORDS_PER_PAGE, Word};
use granule::units::{BLOCK_BYTES, BlockNo, PAGE_BYTES, PAGES_PER_BLOCK, PageMask, VirtAddr, VirtRange};

pub const WAYS: [TakeWay; 2] = [TakeWay::Move, TakeWay::WriteProtect];

/// Opens a host, or fails with the sentence that says what to grant.
pub fn open(way: TakeWay) -> PrivateArc<LinuxHost> {
    // SAFETY: every test serves faults through `Reader` and gives back what it takes from memory that it uses.
    unsafe { LinuxHost::open(HostOptions { take_way: Some(way), staging_slots: 4, ..Default::default() }) }
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Private anonymous memory of whole blocks.
pub struct Memory {
    pub range: VirtRange,
}

impl Memory {
    pub fn blocks(blocks: u64) -> Self {
        let bytes = (blocks + 1) * BLOCK_BYTES;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping; the ends beyond the aligned part are unmapped again.
        unsafe {
            let at = libc::mmap(
                std::ptr::null_mut(),
                bytes as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            );
            assert_ne!(at, libc::MAP_FAILED);
            let start = (at as u64).next_multiple_of(BLOCK_BYTES);
            let (head, tail) = (start - at as u64, BLOCK_BYTES - (start - at as u64));
            if head != 0 {
                libc::munmap(at, head as usize);
            }
            libc::munmap((start + blocks * BLOCK_BYTES) as *mut _, tail as usize);
            libc::madvise(start as *mut _, (blocks * BLOCK_BYTES) as usize, libc::MADV_NOHUGEPAGE);
            Self { range: VirtRange::of_pages(VirtAddr(start), blocks * PAGES_PER_BLOCK as u64) }
        }
    }

    pub fn block(&self, index: u64) -> BlockNo {
        BlockNo::of(self.range.start() + index * BLOCK_BYTES)
    }

    pub fn pages(&self, from: u64, count: u64) -> VirtRange {
        VirtRange::of_pages(self.range.start() + from * PAGE_BYTES, count)
    }

    /// The first word of a page. The mapping must still be there.
    pub fn word(&self, page: u64) -> &AtomicU64 {
        let at = self.range.start() + page * PAGE_BYTES;
        // SAFETY: within the mapping, which the test keeps as long as it asks for words of it.
        unsafe { &*(at.0 as *const AtomicU64) }
    }

    /// Writes all words of pages: different for every word.
    pub fn fill(&self, pages: std::ops::Range<u64>, seed: u64) {
        for page in pages {
            for (index, word) in words_at(self.range.start() + page * PAGE_BYTES).iter().enumerate() {
                word.store(expected(page, index, seed), Ordering::Relaxed);
            }
        }
    }

    pub fn check(&self, pages: std::ops::Range<u64>, seed: u64) {
        for page in pages {
            check_words(words_at(self.range.start() + page * PAGE_BYTES), page, seed);
        }
    }

    pub fn unmap(&self, range: VirtRange) {
        // SAFETY: the test uses that part no more.
        assert_eq!(unsafe { libc::munmap(range.start().0 as *mut _, range.bytes() as usize) }, 0);
    }

    pub fn advise(&self, range: VirtRange, advice: i32) -> i32 {
        // SAFETY: discarding pages of the test's own memory.
        unsafe { libc::madvise(range.start().0 as *mut _, range.bytes() as usize, advice) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the test's own mapping; parts of it may be gone.
        unsafe { libc::munmap(self.range.start().0 as *mut _, self.range.bytes() as usize) };
    }
}

pub fn words_at(page: VirtAddr) -> &'static [Word] {
    // SAFETY: a page of a mapping that the caller keeps.
    unsafe { std::slice::from_raw_parts(page.0 as *const Word, WORDS_PER_PAGE) }
}

pub fn expected(page: u64, index: usize, seed: u64) -> u64 {
    (page << 32 | index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed
}

pub fn check_words(words: &[Word], page: u64, seed: u64) {
    for (index, word) in words.iter().enumerate() {
        assert_eq!(word.load(Ordering::Relaxed), expected(page, index, seed), "page {page} word {index}");
    }
}

/// What a reader does with a fault.
pub type Serve = Box<dyn Fn(&LinuxHost, HostEvent) + Send>;

/// Reads events until it is dropped, keeps them, and serves faults. `gate` is held while it reads and serves.
///
/// A thread of the service's kind that allocates nothing: `fork` in the C library holds the heap's locks while it
/// waits for its event to be read.
pub struct Reader {
    host: PrivateArc<LinuxHost>,
    pub events: Arc<Mutex<Vec<HostEvent>>>,
    pub gate: Arc<RwLock<()>>,
    stop: Arc<AtomicBool>,
    thread: Option<ServiceThread>,
}

impl Reader {
    pub fn start(host: &PrivateArc<LinuxHost>, serve: Serve) -> Self {
        let (events, gate) = (Arc::new(Mutex::new(Vec::with_capacity(1024))), Arc::new(RwLock::new(())));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn("test-reader", {
            let (host, events, gate, stop) = (host.clone(), events.clone(), gate.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Acquire) {
                    host.wait();
                    let _closed = gate.write().expect("nobody panics inside");
                    let mut some = [HostEvent::Fork { child: 0 }; 64];
                    let count = host.drain(&mut some);
                    events.lock().expect("nobody panics inside").extend_from_slice(&some[..count]);
                    some[..count].iter().for_each(|event| serve(&host, *event));
                }
            }
        })
        .expect("a thread");
        Self { host: host.clone(), events, gate, stop, thread: Some(thread) }
    }

    /// Fills every page that is touched with zeros.
    pub fn zero_filling(host: &PrivateArc<LinuxHost>) -> Self {
        Self::start(host, Box::new(fill_fault_with_zeros))
    }

    /// Everything but faults, in the order of reading.
    pub fn changes(&self) -> Vec<HostEvent> {
        let events = self.events.lock().expect("nobody panics inside");
        events.iter().filter(|event| !matches!(event, HostEvent::Fault { .. })).copied().collect()
    }

    /// Until the reader has read so many changes in all.
    pub fn wait_for_changes(&self, count: usize) -> Vec<HostEvent> {
        loop {
            let changes = self.changes();
            if changes.len() >= count {
                // The reader has let go of the gate, so everything that it read is applied.
                drop(self.gate.read());
                return changes;
            }
            std::thread::yield_now();
        }
    }

    pub fn faults(&self) -> Vec<HostEvent> {
        let events = self.events.lock().expect("nobody panics inside");
        events.iter().filter(|event| matches!(event, HostEvent::Fault { .. })).copied().collect()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.host.release();
        self.stop.store(true, Ordering::Release);
        self.host.interrupt();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the reader panicked");
        }
    }
}

pub fn fill_fault_with_zeros(host: &LinuxHost, event: HostEvent) {
    if let HostEvent::Fault { at, write_protected: false, .. } = event {
        let page = VirtRange::of_pages(at.page_floor(), 1);
        if host.fill_zero(page).1.is_err() {
            host.wake(page);
        }
    }
}

pub fn mask(pages: std::ops::Range<usize>) -> PageMask {
    PageMask::of_range(pages)
}

/// Mirrors and arms whole memory.
pub fn arm(host: &LinuxHost, memory: &Memory) {
    host.mirror(memory.range).expect("mirrored");
    memory.range.blocks().for_each(|block| host.arm(block.range()).expect("armed"));
}

/// Takes pages to the end, as the state machine does it.
pub fn take(host: &LinuxHost, block: BlockNo, pages: &PageMask) -> (StagingId, granule::ports::Take) {
    let staging = host.staging(pages).expect("a slot");
    let take = host.take(block, pages, staging);
    if !take.taken.is_empty() {
        assert_eq!(host.copy_taken(block, &take.taken), take.taken);
        assert_eq!(host.drop_taken(block, &take.taken), take.taken);
    }
    (staging, take)
}

/// Gives pages back until nothing is left to try. The kernel may ask for another try at any moment: a page that it moves
/// from one place of physical memory to another (compaction) answers EAGAIN like a change of the address space.
pub fn give(host: &LinuxHost, block: BlockNo, pages: &PageMask, staging: StagingId) -> Give {
    let mut all = Give::default();
    loop {
        let give = host.give(block, &(*pages - all.settled()), staging);
        all.given |= give.given;
        all.present |= give.present;
        if give.stopped != Some(HostError::Changing) {
            return Give { stopped: give.stopped, ..all };
        }
        std::thread::yield_now();
    }
}
