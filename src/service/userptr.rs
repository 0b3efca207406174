use dashmap::DashMap;
use thiserror::Error;

use super::core::Core;
use super::memory::{USERPTR_WORDS, USERPTRS};
use super::request::{Answered, Ask, Asker, RequestError};
use crate::dma::{DmaRange, IovaSpace};
use crate::fault::UserptrFault;
use crate::granule::{Sequence, UserptrNo, UserptrSpec};
use crate::os::private::PrivateArc;
use crate::ports::Host;
use crate::units::{Access, DevAddr, DeviceId, Iova, PAGE_BYTES, SPACE_BYTES, VirtAddr, VirtRange};

/// How a range is registered.
#[derive(Clone, Copy, Debug)]
pub struct UserptrOptions {
    /// For which device. Default: the first.
    pub device: DeviceId,
    /// What the device may do. Default: write.
    pub access: Access,
    /// Where the device sees the first byte: `None` for the process's own address, else an address of the driver's
    /// choice with the same offset in its page.
    pub device_at: Option<DevAddr>,
    /// Whether the pages may move to the device when it faults on them. Default: no, they stay linked.
    ///
    /// In the user-mode-only fault mode ([`Svm::is_user_mode_only`](super::Svm::is_user_mode_only)) this also *names* the
    /// range: no other memory than named memory and regions of the library moves there, and a system call into a
    /// page that is away fails with EFAULT. Dropping the userptr ends the name and brings the pages home.
    pub movable: bool,
}

impl Default for UserptrOptions {
    fn default() -> Self {
        Self { device: DeviceId(0), access: Access::Write, device_at: None, movable: false }
    }
}

/// Why a userptr was not made, or not linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum UserptrError {
    /// Length zero.
    #[error("a userptr of zero bytes has nothing to map; give a length")]
    Empty,
    /// The device address does not have the offset of the process's address in its page, or wraps.
    #[error("the device address {0} must have the page offset of the process's address and must not wrap")]
    BadDeviceAddress(DevAddr),
    /// Another userptr has a part of that device range.
    #[error("device addresses at {0} belong to another userptr; choose others")]
    Occupied(DevAddr),
    /// No IOVA range of that size is left.
    #[error("no IOVA range of {0} bytes is left; drop userptrs first")]
    NoIova(u64),
    /// The space has as many userptrs, or as much registered memory, as it may have.
    #[error("the address space has no room for another userptr; drop some first")]
    TooMany,
    /// A page cannot be linked.
    #[error(transparent)]
    Page(#[from] UserptrFault),
    /// The service did not do it.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The pages were invalidated since they were validated.
    #[error("the userptr was invalidated since it was validated; validate it again before submitting")]
    Invalidated,
}

/// What the service must remember of each userptr to take it apart. On the heap: the fault path never looks here.
#[derive(Debug)]
pub(super) struct Registrations {
    by_number: DashMap<u32, Registration>,
    free: parking_lot::Mutex<Free>,
    /// Held while names are entered or ended together with `by_number`.
    naming: parking_lot::Mutex<()>,
}

#[derive(Clone, Copy, Debug)]
struct Registration {
    device: DeviceId,
    device_at: DevAddr,
    bytes: u64,
    is_alias: bool,
    /// What it names.
    named: Option<VirtRange>,
}

#[derive(Debug)]
struct Free {
    numbers: Vec<u32>,
    next: u32,
    /// Words of link bitmaps; the unit of the allocator is a page, of ours 64 words.
    words: IovaSpace,
}

/// Words that one unit of the bitmap allocator stands for.
const UNIT_WORDS: u64 = 64;

impl Registrations {
    pub(super) fn new() -> Self {
        let units = USERPTR_WORDS as u64 / UNIT_WORDS;
        let words = IovaSpace::new((Iova(PAGE_BYTES), Iova(units * PAGE_BYTES - 1)), &[]);
        Self {
            by_number: DashMap::new(),
            free: parking_lot::Mutex::new(Free { numbers: Vec::new(), next: 0, words }),
            naming: parking_lot::Mutex::new(()),
        }
    }

    fn overlaps_alias(&self, device: DeviceId, at: DevAddr, bytes: u64) -> bool {
        self.by_number.iter().any(|known| {
            known.is_alias
                && known.device == device
                && known.device_at.0 < at.0 + bytes
                && at.0 < known.device_at.0 + known.bytes
        })
    }

    /// Enters a registration and the name that it gives.
    fn enter(&self, asker: &Asker, number: u32, registration: Registration) -> Result<(), UserptrError> {
        let _naming = self.naming.lock();
        if let Some(range) = registration.named {
            match asker.ask(registration.device, Ask::Name(range))? {
                Answered::Named(named) => named.map_err(|_| UserptrError::TooMany)?,
                other => panic!("a name is answered by its result, not {other:?}"),
            }
        }
        self.by_number.insert(number, registration);
        Ok(())
    }

    /// Takes a registration out. Its name ends where no other registration gives it.
    fn leave(&self, core: &Core, number: u32) {
        let _naming = self.naming.lock();
        let Some((_, Registration { named: Some(range), .. })) = self.by_number.remove(&number) else {
            return;
        };
        let mut rest = vec![range];
        for other in self.by_number.iter().filter_map(|known| known.named) {
            let around = |part: VirtRange| {
                let hit = part.intersection(other);
                if hit.is_empty() {
                    return [part, VirtRange::default()];
                }
                [VirtRange::between(part.start(), hit.start()), VirtRange::between(hit.end(), part.end())]
            };
            rest = rest.into_iter().flat_map(around).filter(|part| !part.is_empty()).collect();
        }
        rest.into_iter().for_each(|part| core.host.end_name(part));
    }

    fn claim(&self, pages: u64) -> Option<(u32, u32)> {
        let mut free = self.free.lock();
        let number = match free.numbers.pop() {
            Some(number) => number,
            None if (free.next as usize) < USERPTRS => {
                free.next += 1;
                free.next - 1
            }
            None => return None,
        };
        match free.words.reserve(units_bytes(pages), PAGE_BYTES) {
            Ok(at) => Some((number, (at.0 / PAGE_BYTES * UNIT_WORDS) as u32)),
            Err(_) => {
                free.numbers.push(number);
                None
            }
        }
    }

    fn unclaim(&self, number: u32, first_word: u32, pages: u64) {
        let mut free = self.free.lock();
        let at = Iova(u64::from(first_word) / UNIT_WORDS * PAGE_BYTES);
        free.words.free(at, units_bytes(pages)).expect("bitmap words are freed as they were reserved");
        free.numbers.push(number);
    }
}

fn units_bytes(pages: u64) -> u64 {
    pages.div_ceil(64 * UNIT_WORDS) * PAGE_BYTES
}

/// A range registered in advance: linked for a device, with an IOVA range of just its size, until it is dropped.
///
/// The range may be unmapped by the application, wholly or in part: exactly those pages are dropped from the device,
/// and nothing else of it is touched. Memory that gives no events (private file mappings) is accepted: then whoever
/// holds the userptr promises to keep it mapped.
pub struct Userptr {
    core: PrivateArc<Core>,
    asker: Asker,
    no: UserptrNo,
    spec: UserptrSpec,
    offset: u64,
}

/// Proof that all pages of a userptr were linked at some moment. Whether they still are is asked at submission.
#[derive(Debug)]
pub struct Valid<'a> {
    userptr: &'a Userptr,
    sample: Sequence,
}

/// A submission that uses a userptr's pages. Until it is dropped, an invalidation of the userptr waits (a second at
/// most), and with it the thread that changes the mapping.
#[derive(Debug)]
pub struct Submission<'a> {
    userptr: &'a Userptr,
}

impl Userptr {
    pub(super) fn register(
        core: PrivateArc<Core>,
        asker: Asker,
        start: VirtAddr,
        bytes: u64,
        options: UserptrOptions,
    ) -> Result<Self, UserptrError> {
        if bytes == 0 {
            return Err(UserptrError::Empty);
        }
        let range = VirtRange::covering(start, bytes).map_err(RequestError::from)?;
        asker.check(options.device)?;
        if !core.host.window().covers(range) {
            return Err(RequestError::OutsideWindow(range).into());
        }
        let offset = start.0 % PAGE_BYTES;
        let device_at = options.device_at.unwrap_or(start.into());
        if device_at.0 % PAGE_BYTES != offset
            || device_at.checked_add(range.bytes()).is_none_or(|end| end.0 > SPACE_BYTES)
        {
            return Err(UserptrError::BadDeviceAddress(device_at));
        }
        let device_page = device_at.page_floor();
        let is_alias = device_page.0 != range.start().0;
        let registrations = &core.registrations;
        if is_alias && registrations.overlaps_alias(options.device, device_page, range.bytes()) {
            return Err(UserptrError::Occupied(device_at));
        }
        let iova = core.space.device(options.device).iova;
        let iova_at =
            iova.reserve(range.bytes(), PAGE_BYTES).map_err(|_| UserptrError::NoIova(range.bytes()))?;
        let Some((number, first_word)) = registrations.claim(range.pages()) else {
            let _ = iova.free(iova_at, range.bytes());
            return Err(UserptrError::TooMany);
        };
        let named = (options.movable && core.host.is_user_mode_only()).then_some(range);
        let bytes = range.bytes();
        let registration =
            Registration { device: options.device, device_at: device_page, bytes, is_alias, named };
        if let Err(error) = registrations.enter(&asker, number, registration) {
            registrations.unclaim(number, first_word, range.pages());
            let _ = iova.free(iova_at, bytes);
            return Err(error);
        }
        let spec = UserptrSpec {
            range,
            device: options.device,
            device_at: device_page,
            iova: iova_at,
            access: options.access,
            movable: options.movable,
            first_word,
        };
        let no = UserptrNo(number);
        // From here on `drop` takes it apart.
        let userptr = Self { core, asker, no, spec, offset };
        userptr.asker.ask(options.device, Ask::Register(no, spec))?;
        if !options.movable {
            userptr.validate()?;
        }
        Ok(userptr)
    }

    /// The address at which the device sees the first byte.
    pub fn device_address(&self) -> DevAddr {
        self.spec.device_at + self.offset
    }

    /// The whole pages that it covers.
    pub fn range(&self) -> VirtRange {
        self.spec.range
    }

    /// The DMA ranges of the pages that are linked now, neighbours merged. Positional: a page that is not linked leaves
    /// a gap, and gets the same address when it is linked again.
    ///
    /// # Errors
    /// [`UserptrError::Request`].
    pub fn dma_ranges(&self) -> Result<Vec<DmaRange>, UserptrError> {
        match self.asker.ask(self.spec.device, Ask::DmaRanges(self.no))? {
            Answered::Ranges(ranges) => Ok(ranges),
            other => panic!("a question about ranges is answered by ranges, not {other:?}"),
        }
    }

    /// Links anew what was invalidated. Waits until it is done.
    ///
    /// # Errors
    /// [`UserptrError::Page`] names the first page that cannot be linked (it was unmapped, say); pages before it may be
    /// linked.
    pub fn validate(&self) -> Result<Valid<'_>, UserptrError> {
        match self.asker.ask(self.spec.device, Ask::Validate(self.no, self.spec.range))? {
            Answered::Validated(result) => Ok(Valid { userptr: self, sample: result? }),
            other => panic!("a validation is answered by its result, not {other:?}"),
        }
    }
}

impl std::fmt::Debug for Userptr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Userptr").field("no", &self.no).field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl Drop for Userptr {
    fn drop(&mut self) {
        // In a child after fork nothing of it is there. A service that has ended has unlinked everything itself.
        if !self.asker.is_this_process() {
            return;
        }
        let _ = self.asker.ask(self.spec.device, Ask::Release(self.no));
        let registrations = &self.core.registrations;
        registrations.leave(&self.core, self.no.0);
        if self.spec.movable && self.core.host.is_user_mode_only() {
            // What it alone named is not taken any more; what was, comes home.
            let _ = self.asker.ask(self.spec.device, Ask::ToRam(self.spec.range));
        }
        registrations.unclaim(self.no.0, self.spec.first_word, self.spec.range.pages());
        let _ = self.core.space.device(self.spec.device).iova.free(self.spec.iova, self.spec.range.bytes());
    }
}

impl<'a> Valid<'a> {
    /// Whether nothing was invalidated until now. It may be a moment later: [`Valid::submit`] is what settles it.
    pub fn is_current(&self) -> bool {
        self.userptr.core.space.userptrs.sample(self.userptr.no) == self.sample
    }

    /// Begins a submission to the device. Between the return of the application's `munmap` (or `madvise`) and the moment
    /// in which its event is applied a submission may still begin; the invalidation then waits for it.
    ///
    /// # Errors
    /// [`UserptrError::Invalidated`] if the sequence moved since; then nothing is begun.
    pub fn submit(&self) -> Result<Submission<'a>, UserptrError> {
        let userptr = self.userptr;
        let begun =
            userptr.core.space.userptrs.begin_submission(userptr.no, self.sample, userptr.core.space.park);
        if begun { Ok(Submission { userptr }) } else { Err(UserptrError::Invalidated) }
    }
}

impl Drop for Submission<'_> {
    fn drop(&mut self) {
        self.userptr.core.space.userptrs.end_submission(self.userptr.no, self.userptr.core.space.park);
    }
}
