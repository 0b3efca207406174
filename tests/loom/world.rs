//! One space over simulated ports, for one run of a model.

use std::rc::Rc;
use std::sync::OnceLock;

use granule::fault::{BlockFault, CpuFault, Reader, RoundEnd, round, serve};
use granule::granule::{BlockIndex, check_block};
use granule::migrate::{Space, SpaceDevice, to_ram};
use granule::policy::{Granularity, MigrateOnFault};
use granule::ports::{Host, HostEvent, NoProbe, VmaKind, Word};
use granule::units::{Access, BlockNo, DeviceId, GranuleNo, PAGES_PER_BLOCK, PageMask, Seat, VirtRange};

use crate::support::{
    Faulted, Mapping, SimDevice, SimHost, SimMemory, TickClock, one, page_at, words, yield_now,
};

pub const RW: Mapping = Mapping { access: Access::Write, kind: VmaKind::Movable };
pub const RO: Mapping = Mapping { access: Access::Read, kind: VmaKind::Movable };
/// As above; it stays in system memory and is linked.
pub const RW_LINKED: Mapping = Mapping { access: Access::Write, kind: VmaKind::LinkOnly };
/// As above, read-only.
pub const RO_LINKED: Mapping = Mapping { access: Access::Read, kind: VmaKind::LinkOnly };
const POLICY: MigrateOnFault = MigrateOnFault { granularity: Granularity::Kib64 };

/// The threads of a model share one system thread: no counting across threads is needed, nor any switch point for it.
pub struct World {
    pub host: &'static SimHost,
    pub device: &'static SimDevice,
    pub space: &'static Space<'static, SimHost>,
    /// Last: freed after everything that refers to it.
    _lent: Lent,
}

/// What a run borrows from, freed at its end.
struct Lent {
    host: *mut SimHost,
    device: *mut SimDevice,
    memory: *mut SimMemory,
    devices: *mut [SpaceDevice<'static>; 1],
    space: *mut Space<'static, SimHost>,
}

#[allow(unsafe_code, reason = "a run's world borrows from itself; it is freed by its last owner")]
mod lent {
    use super::Lent;
    impl Drop for Lent {
        fn drop(&mut self) {
            // SAFETY: each came from Box::into_raw once; the space goes before what it borrows from, and nobody has
            // the world any more.
            unsafe {
                drop(Box::from_raw(self.space));
                drop(Box::from_raw(self.devices));
                drop(Box::from_raw(self.memory));
                drop(Box::from_raw(self.device));
                drop(Box::from_raw(self.host));
            }
        }
    }
    /// Lends what a raw box holds.
    pub fn lend<T>(at: *mut T) -> &'static T {
        // SAFETY: freed by `Lent` when the last thread of the run has dropped the world.
        unsafe { &*at }
    }
}
use lent::lend;

fn staging() -> &'static [Word] {
    static WORDS: OnceLock<&'static [Word]> = OnceLock::new();
    WORDS.get_or_init(|| words(3 * PAGES_PER_BLOCK))
}
fn device_memory() -> &'static [Word] {
    static WORDS: OnceLock<&'static [Word]> = OnceLock::new();
    WORDS.get_or_init(|| words(PAGES_PER_BLOCK))
}

impl World {
    /// A space with seats for `workers`.
    pub fn new(workers: usize) -> Rc<Self> {
        let host = Box::into_raw(Box::new(SimHost::new(staging())));
        let device = Box::into_raw(Box::new(SimDevice::new(device_memory())));
        let memory = Box::into_raw(Box::new(SimMemory::new(2, workers, lend(device))));
        let devices = Box::into_raw(Box::new([lend(memory).device(lend(device))]));
        let lent_devices: &'static [SpaceDevice<'static>] = lend::<[_; 1]>(devices);
        let space = lend(memory).space(lend(host), lent_devices, &POLICY, &NoProbe);
        let space = Box::into_raw(Box::new(space));
        Rc::new(Self {
            host: lend(host),
            device: lend(device),
            space: lend(space),
            _lent: Lent { host, device, memory, devices, space },
        })
    }

    /// Runs `bodies` as threads and this one as the reader, until the others have ended.
    pub fn run<const N: usize>(self: &Rc<Self>, bodies: [fn(&World); N]) {
        self.host.expect_users(N as u32);
        let threads = bodies.map(|body| {
            let world = self.clone();
            loom::thread::spawn(move || {
                body(&world);
                world.host.user_done();
            })
        });
        self.read();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    /// The reader, until nobody needs it.
    fn read(&self) {
        let mut waiting = [CpuFault::NONE; 2];
        let mut events = [HostEvent::Unmap(VirtRange::default()); 3];
        let mut reader = Reader::new(&mut waiting, &mut events);
        while self.host.wait_event() {
            while round(self.space, &TickClock::new(), &mut reader) == RoundEnd::WorkLeft {
                yield_now();
            }
        }
    }

    /// An engine's access: faults are served by the worker at `seat`, then it is made again. `None`: the access failed.
    pub fn engine(&self, seat: u16, page: u64, access: Access, change: impl Fn(u64) -> u64) -> Option<u64> {
        loop {
            match self.device.touch(self.host, page, access, &change) {
                Ok(old) => return Some(old),
                Err(Faulted) => {
                    let written = if access == Access::Write { one(page) } else { PageMask::EMPTY };
                    let fault = BlockFault {
                        block: block_of(page),
                        device: DeviceId(0),
                        faulted: one(page),
                        written,
                        ..BlockFault::NONE
                    };
                    if !serve(self.space, Seat(seat), &fault).failed().is_empty() {
                        return None;
                    }
                }
            }
        }
    }

    /// Brings the page to the device, as an earlier fault did.
    pub fn start_on_device(&self, page: u64, value: u64) {
        self.host.mmap_with(page, RW, 0);
        self.engine(0, page, Access::Write, |_| value).expect("the page can go to the device");
    }

    /// Follows the page's mapping, as a fault on another page of it does.
    pub fn follow(&self, seat: u16, page: u64) {
        let _inside = self.space.gate.enter(Seat(seat), self.space.park);
        self.host.mirror(VirtRange::of_pages(page_at(page), 1)).expect("the mapping can be followed");
    }

    pub fn index(&self, page: u64) -> BlockIndex {
        self.space.tables.block_or_make(block_of(page), self.space.park).unwrap()
    }

    pub fn granule_of(page: u64) -> GranuleNo {
        block_of(page).granule()
    }

    /// An eviction of some pages of the first block.
    pub fn evict(&self, seat: u16, pages: &PageMask) {
        let _ = to_ram(self.space, Seat(seat), self.index(0), pages);
    }

    /// The page's value after everything, brought home if need be.
    pub fn final_value(&self, page: u64) -> Option<u64> {
        let index = self.index(page);
        check_block(&self.space.tables.lock(index, self.space.park)).unwrap();
        let _ = to_ram(self.space, Seat(0), index, &PageMask::FULL).expect("nothing moves any more");
        self.host.present(page)
    }
}

fn block_of(page: u64) -> BlockNo {
    BlockNo::of(page_at(page))
}
