use granule::units::PAGE_SHIFT;

/// What happened. The codes are those of the file and never change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// A device touched a page, whether that faulted or not.
    Access = 0,
    /// A device touched a page and faulted.
    DeviceFault = 1,
    /// The CPU touched a page; it faults if the page is on a device.
    CpuFault = 2,
    /// Pages were moved; `detail` says why. What a recorded policy did, not what the program asked for.
    Migration = 3,
    /// The program unmapped pages: their contents are gone.
    Unmap = 4,
    /// The program gave advice; `detail` says which.
    Advice = 5,
    /// The program mapped pages: one allocation begins to exist.
    Map = 6,
}

/// How a page was touched. Ordered by how much it asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[repr(u8)]
pub enum Access {
    /// The device may need it soon.
    Prefetch = 0,
    /// Read.
    #[default]
    Read = 1,
    /// Written.
    Write = 2,
    /// Read and written in one.
    Atomic = 3,
}

impl Access {
    /// Whether the page differs afterwards.
    pub fn writes(self) -> bool {
        self >= Access::Write
    }
}

/// Why pages were moved, in `detail` of a [`EventKind::Migration`]. The codes are those of NVIDIA's tools.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum MigrationCause {
    /// The program asked for it.
    User = 1,
    /// A fault of either side.
    Fault = 2,
    /// A prefetcher.
    Prefetch = 3,
    /// Device memory was needed.
    Eviction = 4,
    /// Access counters.
    AccessCounter = 5,
}

/// What the program advised, in `detail` of a [`EventKind::Advice`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Advice {
    /// These pages belong on the device.
    PreferDevice = 1,
    /// These pages belong in system memory.
    PreferCpu = 2,
    /// No preference any more.
    PreferNothing = 3,
    /// The device may reach them where they are.
    AccessedByDevice = 4,
    /// That is over.
    NotAccessedByDevice = 5,
    /// They are mostly read: copies on both sides are welcome.
    ReadMostly = 6,
    /// That is over.
    NotReadMostly = 7,
}

/// One event. The pages are `page..page + pages`, numbered by address / 4096 over the whole 64-bit address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When, in nanoseconds of the trace's own clock.
    pub time_ns: u64,
    /// The first page: address / 4096.
    pub page: u64,
    /// How many pages; 1 for accesses and faults.
    pub pages: u32,
    /// Which engine of the device (a uTLB, a queue), or which CPU. Of a migration where the pages went: 0 is system
    /// memory, otherwise it is 1 + the number of the device.
    pub engine: u16,
    /// What happened.
    pub kind: EventKind,
    /// How the page was touched.
    pub access: Access,
    /// The [`MigrationCause`] or the [`Advice`]; 0 otherwise.
    pub detail: u8,
}

/// The number of pages in a 64-bit address space.
pub(super) const ALL_PAGES: u64 = 1 << (u64::BITS - PAGE_SHIFT);

impl Event {
    /// A device's touch of one page.
    pub fn access(time_ns: u64, page: u64, access: Access, engine: u16) -> Self {
        Self { time_ns, page, pages: 1, engine, kind: EventKind::Access, access, detail: 0 }
    }

    /// A touch of one page by the CPU.
    pub fn cpu(time_ns: u64, page: u64, access: Access) -> Self {
        Self { kind: EventKind::CpuFault, ..Self::access(time_ns, page, access, 0) }
    }

    /// An event over a range: [`EventKind::Map`], [`EventKind::Unmap`].
    pub fn range(time_ns: u64, page: u64, pages: u32, kind: EventKind) -> Self {
        Self { pages, kind, ..Self::access(time_ns, page, Access::Read, 0) }
    }

    /// The address of its first byte.
    pub fn address(&self) -> u64 {
        self.page << PAGE_SHIFT
    }
}

impl EventKind {
    pub(super) fn of_code(code: i32) -> Option<Self> {
        Some(match code {
            0 => Self::Access,
            1 => Self::DeviceFault,
            2 => Self::CpuFault,
            3 => Self::Migration,
            4 => Self::Unmap,
            5 => Self::Advice,
            6 => Self::Map,
            _ => return None,
        })
    }

    /// All kinds, in the order of their codes.
    pub const ALL: [Self; 7] = [
        Self::Access,
        Self::DeviceFault,
        Self::CpuFault,
        Self::Migration,
        Self::Unmap,
        Self::Advice,
        Self::Map,
    ];

    /// Its name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Access => "accesses",
            Self::DeviceFault => "device faults",
            Self::CpuFault => "CPU faults",
            Self::Migration => "migrations",
            Self::Unmap => "unmaps",
            Self::Advice => "advice",
            Self::Map => "maps",
        }
    }
}

impl Access {
    pub(super) fn of_code(code: i32) -> Option<Self> {
        Some(match code {
            0 => Self::Prefetch,
            1 => Self::Read,
            2 => Self::Write,
            3 => Self::Atomic,
            _ => return None,
        })
    }
}

impl Advice {
    /// The advice with this code.
    pub fn of_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::PreferDevice,
            2 => Self::PreferCpu,
            3 => Self::PreferNothing,
            4 => Self::AccessedByDevice,
            5 => Self::NotAccessedByDevice,
            6 => Self::ReadMostly,
            7 => Self::NotReadMostly,
            _ => return None,
        })
    }
}
