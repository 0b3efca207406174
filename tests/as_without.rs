//! A random program runs twice, step by step: over memory that a device works on, and over memory that no device knows,
//! where the CPU does the device's part. Whatever the kernel makes of the second is what must be found in the first, on
//! both sides, in system calls and in children.
//!
//! What is left out, because a program cannot tell or `docs/kernel.md` names it: contents after `MADV_FREE`, the device's
//! accesses to pages whose protection has shrunk, and other threads that move pages in the write-protect way.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "maps, unmaps, moves and forks as an application does")]

mod real;

use std::sync::atomic::{AtomicBool, Ordering};

use granule::Granularity;
use granule::os::TakeWay;
use granule::policy::LinkOnly;
use granule::ports::{Count, FaultCause};
use granule_backends::software::AccessError;
use real::{MIB, PAGE, World, alone, peek, poke};

/// Pages of each twin: a part of three blocks.
const PAGES: usize = 700;
/// Where they lie: far from where the kernel puts mappings by itself, so that nobody else fills a hole.
const WITH: usize = 0x2000_0000_0000 + 2 * MIB - 90 * PAGE;
const WITHOUT: usize = 0x2100_0000_0000 + 2 * MIB - 90 * PAGE;

fn steps() -> usize {
    std::env::var("GRANULE_TWIN_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(700)
}

fn first_seed() -> u64 {
    std::env::var("GRANULE_TWIN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1)
}

/// Numbers that look random, from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    /// A run of pages: mostly short, at times across blocks.
    fn pages(&mut self) -> std::ops::Range<usize> {
        let first = self.below(PAGES);
        let most = [4, 40, 400][self.below(3)];
        first..PAGES.min(first + 1 + self.below(most))
    }
}

/// What a page may be used for. Not what it holds: that the twin says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Hole,
    Writable,
    ReadOnly,
    Closed,
}

/// How pages move in a run.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Moves(TakeWay, Granularity),
    Links,
    /// Another thread moves pages there and back all the time.
    Races,
}

struct Twins<'a> {
    world: &'a World,
    state: Vec<Page>,
    random: Random,
    pipe: [libc::c_int; 2],
    step: u64,
    races: bool,
    remaps: u64,
}

impl<'a> Twins<'a> {
    fn new(world: &'a World, races: bool, seed: u64) -> Self {
        let mut pipe = [0; 2];
        // SAFETY: an array of two.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        let mut twins = Self {
            world,
            state: vec![Page::Hole; PAGES],
            random: Random(0x9e37_79b9_7f4a_7c15 ^ seed << 20),
            pipe,
            step: 0,
            races,
            remaps: 0,
        };
        twins.map(0..PAGES);
        twins
    }

    /// Makes the same call for both.
    fn both(&self, what: &str, call: impl Fn(usize) -> isize) -> isize {
        let errno = |rc: isize| if rc < 0 { std::io::Error::last_os_error().raw_os_error() } else { None };
        let [with, without] = [WITH, WITHOUT].map(|base| {
            let rc = call(base);
            (if rc > 0 { rc - base as isize } else { rc }, errno(rc))
        });
        assert_eq!(with, without, "step {}: {what}", self.step);
        with.0
    }

    fn map(&mut self, pages: std::ops::Range<usize>) {
        self.both("mmap", |base| {
            let (at, bytes) = (base + pages.start * PAGE, pages.len() * PAGE);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            // SAFETY: within the twin's own range of addresses.
            unsafe {
                libc::mmap(at as *mut _, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) as isize
            }
        });
        self.state[pages].fill(Page::Writable);
    }

    fn unmap(&mut self, pages: std::ops::Range<usize>) {
        // SAFETY: within the twin's own range.
        self.both("munmap", |base| unsafe {
            libc::munmap((base + pages.start * PAGE) as *mut _, pages.len() * PAGE) as isize
        });
        self.state[pages].fill(Page::Hole);
    }

    fn discard(&mut self, pages: std::ops::Range<usize>) {
        // SAFETY: as above. Holes are an error that leaves the rest discarded.
        self.both("madvise", |base| unsafe {
            libc::madvise((base + pages.start * PAGE) as *mut _, pages.len() * PAGE, libc::MADV_DONTNEED)
                as isize
        });
    }

    fn protect(&mut self, pages: std::ops::Range<usize>) {
        let (page, protection) = [
            (Page::Writable, libc::PROT_READ | libc::PROT_WRITE),
            (Page::Writable, libc::PROT_READ | libc::PROT_WRITE),
            (Page::ReadOnly, libc::PROT_READ),
            (Page::Closed, libc::PROT_NONE),
        ][self.random.below(4)];
        // Up to the first hole, where the kernel would stop.
        let end = pages.clone().find(|page| self.state[*page] == Page::Hole).unwrap_or(pages.end);
        let pages = pages.start..end;
        // SAFETY: as above.
        self.both("mprotect", |base| unsafe {
            libc::mprotect((base + pages.start * PAGE) as *mut _, pages.len() * PAGE, protection) as isize
        });
        self.state[pages].fill(page);
    }

    /// Moves what the kernel holds as one mapping; with a device it may hold several (`docs/kernel.md`).
    fn remap(&mut self, pages: std::ops::Range<usize>) {
        let first = self.state[pages.start];
        let ends = [WITH, WITHOUT]
            .map(|base| one_mapping(base + pages.start * PAGE).map_or(0, |end| (end - base) / PAGE));
        let pages = pages.start..pages.end.min(ends[0]).min(ends[1]);
        if first == Page::Hole || pages.is_empty() {
            return;
        }
        let to = self.random.below(PAGES - pages.len() + 1);
        if to < pages.end && pages.start < to + pages.len() {
            return;
        }
        let stays = self.random.below(2) == 0;
        let flags =
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | if stays { libc::MREMAP_DONTUNMAP } else { 0 };
        let bytes = pages.len() * PAGE;
        let call = |base: usize| {
            let (from, to) = (base + pages.start * PAGE, base + to * PAGE);
            // SAFETY: both within the twin's own range.
            let got = unsafe { libc::mremap(from as *mut _, bytes, bytes, flags, to as *mut libc::c_void) };
            if got == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        if let Err(why) = call(WITH) {
            // Cut by a thread that moved pages since the mapping was looked at.
            assert!(self.races && why.raw_os_error() == Some(libc::EFAULT), "step {}: {why}", self.step);
            return;
        }
        call(WITHOUT).expect("one mapping moves");
        self.remaps += 1;
        self.state.copy_within(pages.clone(), to);
        if !stays {
            self.state[pages].fill(Page::Hole);
        }
    }

    /// What both sides write into a page at this step.
    fn value(&self, page: usize) -> u64 {
        self.step << 32 | page as u64 | 1 << 63
    }

    fn writable(&self, pages: std::ops::Range<usize>) -> Vec<usize> {
        pages.filter(|page| self.state[*page] == Page::Writable).collect()
    }

    fn cpu_writes(&mut self, pages: std::ops::Range<usize>) {
        let word = self.random.below(512) * 8;
        for page in self.writable(pages) {
            poke(WITH + page * PAGE + word, self.value(page));
            poke(WITHOUT + page * PAGE + word, self.value(page));
        }
    }

    /// The device adds to what is there, so that it must have found it.
    fn device_writes(&mut self, pages: std::ops::Range<usize>) {
        let word = self.random.below(512) * 8;
        let pages = self.writable(pages);
        let found = self.world.run(|engine| {
            pages
                .iter()
                .map(|page| engine.fetch_add_u64((WITH + page * PAGE + word) as u64, self.step))
                .collect()
        });
        let found: Vec<u64> = found.unwrap_or_else(|why| panic!("step {}: {why}", self.step));
        for (page, found) in pages.into_iter().zip(found) {
            let at = WITHOUT + page * PAGE + word;
            assert_eq!(found, peek(at), "step {}: page {page}, word {word}, seen by the device", self.step);
            poke(at, found.wrapping_add(self.step));
        }
    }

    fn device_reads(&mut self, pages: std::ops::Range<usize>) {
        let word = self.random.below(512) * 8;
        let found = self.world.load_all(pages.clone().map(|page| WITH + page * PAGE + word));
        for (page, found) in pages.zip(found) {
            let wanted = match self.state[page] {
                Page::Hole => {
                    let cause = match found {
                        Err(AccessError::Fault { cause, .. }) => Some(cause),
                        _ => None,
                    };
                    assert_eq!(
                        cause,
                        Some(FaultCause::NoMapping),
                        "step {}: page {page}: {found:?}",
                        self.step
                    );
                    continue;
                }
                // Rights that were taken are not seen: nothing is promised.
                Page::Closed => continue,
                Page::Writable | Page::ReadOnly => peek(WITHOUT + page * PAGE + word),
            };
            assert_eq!(found, Ok(wanted), "step {}: page {page}, word {word}, seen by the device", self.step);
        }
    }

    /// A page as a system call finds it; `None`: EFAULT.
    fn by_system_call(&self, at: usize) -> Option<Box<[u8; PAGE]>> {
        let mut bytes = Box::new([0; PAGE]);
        // SAFETY: the kernel reads a page that may not be there, which it refuses; and writes one of ours.
        unsafe {
            let sent = libc::write(self.pipe[1], at as *const _, PAGE);
            if sent < 0 {
                assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
                return None;
            }
            assert_eq!(sent, PAGE as isize);
            assert_eq!(libc::read(self.pipe[0], bytes.as_mut_ptr().cast(), PAGE), PAGE as isize);
        }
        Some(bytes)
    }

    fn compare(&self, pages: std::ops::Range<usize>) {
        for page in pages {
            let (with, without) =
                (self.by_system_call(WITH + page * PAGE), self.by_system_call(WITHOUT + page * PAGE));
            let readable = matches!(self.state[page], Page::Writable | Page::ReadOnly);
            assert_eq!(
                without.is_some(),
                readable,
                "step {}: page {page}, by the test's own book",
                self.step
            );
            assert_eq!(with.is_some(), readable, "step {}: page {page} is {:?}", self.step, self.state[page]);
            let (Some(with), Some(without)) = (with, without) else { continue };
            let wrong = (0..PAGE).find(|byte| with[*byte] != without[*byte]);
            assert_eq!(wrong, None, "step {}: page {page}: the first byte that differs", self.step);
        }
    }

    /// A child finds what the parent has; by `fork`, so that everything is in RAM.
    fn child(&self) {
        // SAFETY: the child reads memory and ends; it allocates nothing.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_same = (0..PAGES)
                .filter(|page| matches!(self.state[*page], Page::Writable | Page::ReadOnly))
                .all(|page| {
                    (0..PAGE)
                        .step_by(8)
                        .all(|word| peek(WITH + page * PAGE + word) == peek(WITHOUT + page * PAGE + word))
                });
            // SAFETY: ends the child without any destructor.
            unsafe { libc::_exit(i32::from(!is_same)) };
        }
        assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
        let mut status = 0;
        // SAFETY: our own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0, "step {}: the child found something else", self.step);
    }

    fn step(&mut self) {
        self.step += 1;
        let pages = self.random.pages();
        match self.random.below(24) {
            0..=4 => self.cpu_writes(pages.clone()),
            5..=9 => self.device_writes(pages.clone()),
            10..=12 => self.device_reads(pages.clone()),
            13 => self.unmap(pages.clone()),
            14..=16 => self.map(pages.clone()),
            17..=18 => self.discard(pages.clone()),
            19..=20 => self.remap(pages.clone()),
            21 => self.protect(pages.clone()),
            22 => drop(self.world.prefetch(WITH + pages.start * PAGE, pages.len())),
            _ => drop(self.world.to_ram(WITH + pages.start * PAGE, pages.len())),
        }
        if self.random.below(4) == 0 {
            self.compare(pages);
        }
        if self.step.is_multiple_of(100) {
            self.compare(0..PAGES);
            self.child();
        }
    }

    /// Without the space everything is ordinary memory again.
    fn end(self) {
        self.compare(0..PAGES);
        for base in [WITH, WITHOUT] {
            real::unmap(base, PAGES * PAGE);
        }
        for end in self.pipe {
            // SAFETY: opened by `new`, closed once.
            unsafe { libc::close(end) };
        }
    }
}

/// Where the mapping that holds an address ends.
fn one_mapping(at: usize) -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("/proc is mounted");
    maps.lines().find_map(|line| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (start..end).contains(&at).then_some(end)
    })
}

/// Moves pages there and back until it is told to stop.
fn race(world: &World, seed: u64, stop: &AtomicBool) {
    let mut random = Random(!seed);
    while !stop.load(Ordering::Relaxed) {
        let pages = random.pages();
        let (at, len) = (WITH + pages.start * PAGE, pages.len());
        if random.below(2) == 0 {
            world.prefetch(at, len)
        } else {
            world.to_ram(at, len)
        };
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn run(mode: Mode, seed: u64) {
    // Two blocks of device memory for data in three.
    let world = World::new(4 * MIB, |builder| match mode {
        Mode::Moves(way, granularity) => builder.take_way(way).granularity(granularity),
        Mode::Links => builder.policy(LinkOnly),
        Mode::Races => builder.take_way(TakeWay::Move),
    });
    let races = matches!(mode, Mode::Races);
    let stop = AtomicBool::new(false);
    let twins = std::thread::scope(|scope| {
        if races {
            scope.spawn(|| race(&world, seed, &stop));
        }
        let _ends = StopOnDrop(&stop);
        let mut twins = Twins::new(&world, races, seed);
        (0..steps()).for_each(|_| twins.step());
        twins
    });
    let (moved, changes, remaps) =
        (world.count(Count::PagesToDevice), world.count(Count::Invalidations), twins.remaps);
    println!(
        "{mode:?}, seed {seed}: {moved} pages to the device, {changes} changes of mappings, {remaps} moves of them"
    );
    assert_eq!(world.device.counters().iommu_errors, 0);
    let Twins { state, random, pipe, step, .. } = twins;
    world.svm.close().expect("everything comes home");
    let world = World::new(4 * MIB, |builder| builder);
    Twins { world: &world, state, random, pipe, step, races, remaps }.end();
    if !matches!(mode, Mode::Links) {
        assert!(moved as usize > 4 * steps(), "only {moved} pages moved");
    }
    assert!(changes as usize > steps() / 10, "only {changes} changes of mappings were met");
}

#[test]
fn a_program_finds_what_it_would_find_without_a_device() {
    let _alone = alone(300);
    for way in [TakeWay::Move, TakeWay::WriteProtect] {
        for granularity in [Granularity::Kib4, Granularity::Kib64, Granularity::Mib2] {
            run(Mode::Moves(way, granularity), first_seed());
        }
    }
    run(Mode::Links, first_seed());
}

/// The same while another thread moves the pages.
#[test]
fn so_it_does_while_its_pages_are_moved() {
    let _alone = alone(300);
    for seed in first_seed()..first_seed() + 3 {
        run(Mode::Races, seed);
    }
}

/// All that a device has of a block moves to another place in the same block. Nothing is away for a moment then, and yet
/// the new place must be trapped until the pages are home.
#[test]
fn pages_that_move_within_their_block_come_home_before_they_are_seen() {
    const MOVED: usize = 8;
    let _alone = alone(120);
    for way in [TakeWay::Move, TakeWay::WriteProtect] {
        let world = World::new(4 * MIB, |builder| builder.take_way(way).granularity(Granularity::Kib4));
        let block = real::map_aligned(2 * MIB);
        for round in 1..200u64 {
            let (from, to) = if round % 2 == 0 { (300, 40) } else { (40, 300) };
            let word = |first: usize, page: usize| block + (first + page) * PAGE + 8;
            for page in 0..MOVED {
                world.store(word(from, page), round << 8 | page as u64).expect("writable");
            }
            assert_eq!(real::present(block + from * PAGE, MOVED), 0, "round {round}");
            let bytes = MOVED * PAGE;
            let (old, new) = (block + from * PAGE, block + to * PAGE);
            assert_eq!(real::remap(old, bytes, bytes, libc::MREMAP_DONTUNMAP, new), new);
            for page in 0..MOVED {
                assert_eq!(
                    peek(word(to, page)),
                    round << 8 | page as u64,
                    "{way:?}, round {round}, page {page}"
                );
                assert_eq!(peek(word(from, page)), 0, "{way:?}, round {round}, page {page}: left behind");
            }
        }
        drop(world);
        real::unmap(block, 2 * MIB);
    }
}

/// What a device splits for the kernel: docs/kernel.md names it, and what a program can do about it.
#[test]
fn a_mapping_of_which_a_part_is_away_moves_as_a_whole_when_it_is_home() {
    let _alone = alone(60);
    let world = World::new(16 * MIB, |builder| builder);
    let at = real::map_aligned(8 * MIB);
    for page in 0..2048 {
        poke(at + page * PAGE, page as u64);
    }
    let grow = |at: usize| {
        // SAFETY: the test's own mapping; nothing else points into it.
        let got = unsafe { libc::mremap(at as *mut _, 8 * MIB, 10 * MIB, libc::MREMAP_MAYMOVE) };
        if got == libc::MAP_FAILED {
            Err(std::io::Error::last_os_error().raw_os_error().expect("set"))
        } else {
            Ok(got as usize)
        }
    };
    world.store(at + 3 * MIB + 8, 7).expect("writable");
    assert_eq!(grow(at), Err(libc::EFAULT), "one block of four is trapped: three mappings");
    assert!(world.to_ram(at, 2048) > 0);
    let moved = grow(at).expect("one mapping again");
    for page in 0..2048 {
        assert_eq!(peek(moved + page * PAGE), page as u64);
    }
    assert_eq!(peek(moved + 3 * MIB + 8), 7);
    // Where all of it is away, it is one mapping, too.
    assert_eq!(world.prefetch(moved, 2560), 2560);
    assert_eq!(real::remap(moved, 10 * MIB, 8 * MIB, 0, 0), moved);
    let back = grow(moved).expect("one mapping");
    assert_eq!((peek(back + 3 * MIB + 8), peek(back + 2047 * PAGE)), (7, 2047));
    real::unmap(back, 10 * MIB);
}
