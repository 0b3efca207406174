//! What happened, by kind. A kind that never happens is a part of the state machine that was not tried.

use std::fmt::Write;

use granule::ports::Count;

macro_rules! steps {
    ($($name:ident $says:literal),* $(,)?) => {
        /// One kind of step.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs, reason = "each has its words in `says`")]
        pub enum Did { $($name),* }

        impl Did {
            /// Every kind, in the order of their numbers.
            pub const ALL: &'static [Did] = &[$(Did::$name),*];

            /// What it is.
            pub fn says(self) -> &'static str {
                match self { $(Did::$name => $says),* }
            }
        }
    };
}

steps! {
    CpuRead "a thread reads a page",
    CpuWrite "a thread writes a page",
    CpuWait "a thread waits for a page",
    CpuServesItself "a thread serves its own fault",
    CpuError "a thread's touch is an error",
    Mmap "mmap",
    Munmap "munmap of something",
    Discard "madvise(MADV_DONTNEED)",
    Zap "the discard that follows it",
    Mremap "mremap of something",
    Fork "a raw clone",
    DeviceReads "an engine reads its memory",
    DeviceWrites "an engine writes its memory",
    DmaReads "an engine reads system memory",
    DmaWrites "an engine writes system memory",
    DmaFaults "an engine finds a linked page absent",
    DeviceFault "an engine faults",
    BufferFull "the fault buffer is full",
    Submission "a submission through a userptr",
    Lookup "a mapping is looked up",
    Mirror "a mapping is followed",
    MirrorRefused "a mapping cannot be followed now",
    Arm "touches are trapped",
    ArmRefused "touches cannot be trapped: no memory",
    Disarm "touches are not trapped any more",
    Populate "pages are made present",
    PopulateWaits "making present waits for the reader",
    PopulateTrapped "making present is refused: trapped",
    Take "pages are taken",
    TakeStopped "a take stops in the middle",
    TakeRefused "a page is not taken: refused",
    TakeRemoving "a page is not taken: a madvise may discard it",
    Give "pages are given",
    GiveStopped "a give stops",
    GiveWords "a page is given from device memory",
    FillZero "pages are filled with zeros",
    Poison "a page is made an error",
    Wake "a range is woken",
    WakeBlock "a whole block is woken",
    NoStaging "no staging slot for a worker",
    Drain "events are read",
    EventUnmap "an unmap is read",
    EventRemove "a madvise is read",
    EventRemap "an mremap is read",
    EventFork "a clone is read",
    EventFault "a fault is read",
    Pause "somebody lets others run",
    Park "somebody waits for a word",
    WaitFence "the reader waits for a submission",
    ChildFill "a child gets a page",
    CopyIn "pages are copied in",
    CopyInFails "a copy in fails",
    CopyOut "pages are copied out",
    CopyOutFails "a copy out fails",
    Window "a page is read through the window",
    DeviceMap "a device gets translations",
    DeviceMapFails "a device has no room for translations",
    DeviceUnmap "a device loses translations",
    Flush "a TLB is flushed",
    FlushWaits "a flush waits for an engine",
    Quiesce "engines are stopped",
    QuiesceWaits "stopping waits for an engine",
    EngineHeld "an engine waits to go on",
    Fetch "faults are fetched",
    Replay "faults are replayed",
    Cancel "a fault is cancelled",
    IommuMap "pages are mapped for DMA",
    IommuMapFails "the IOMMU has no room",
    IommuProtect "a mapping for DMA gets more rights",
    IommuUnmap "pages are unmapped for DMA",
    ReserveIova "a granule's IOVAs are reserved",
    Decide "the policy is asked",
    Prefetch "a prefetch is asked for",
    ToRam "pages are asked back to RAM",
    Register "a userptr is registered",
    Revalidate "a userptr is linked",
    AliasFault "a fault at a userptr's own address",
    Release "a userptr is released",
    Audit "a block is looked over",
}

/// How often each kind of step was taken, and what the library itself counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts {
    steps: Vec<u64>,
    library: [u64; Count::ALL.len()],
}

impl Default for Counts {
    fn default() -> Self {
        Self { steps: vec![0; Did::ALL.len()], library: [0; Count::ALL.len()] }
    }
}

impl Counts {
    /// One more.
    #[inline]
    pub fn step(&mut self, did: Did) {
        self.steps[did as usize] += 1;
    }

    /// What the library's probe is told.
    pub fn library(&mut self, what: Count, n: u64) {
        self.library[what as usize] += n;
    }

    /// How often.
    pub fn of(&self, did: Did) -> u64 {
        self.steps[did as usize]
    }

    /// How often by the library's own count.
    pub fn of_library(&self, what: Count) -> u64 {
        self.library[what as usize]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.steps.iter_mut().zip(&other.steps).for_each(|(all, n)| *all += n);
        self.library.iter_mut().zip(&other.library).for_each(|(all, n)| *all += n);
    }

    /// Every row: name and number.
    pub fn rows(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let steps = Did::ALL.iter().map(|did| (did.says().to_owned(), self.of(*did)));
        steps.chain(Count::ALL.iter().map(|count| (format!("{count:?}"), self.of_library(*count))))
    }

    /// What never happened.
    pub fn never(&self) -> Vec<String> {
        self.rows().filter(|(_, n)| *n == 0).map(|(name, _)| name).collect()
    }

    /// A table for people.
    pub fn table(&self) -> String {
        self.rows().fold(String::new(), |mut text, (name, n)| {
            let _ = writeln!(text, "  {name:<52} {n:>14}");
            text
        })
    }
}
