//! Two-step DMA by several threads at once: the counts of a reservation, the bounce pages, the users of a PASID. The
//! IOMMU and the IOVA space are simulated: each call is one step.

use std::collections::BTreeMap;
use std::sync::Mutex;

use granule::dma::{Attributes, DmaError, Domain, IovaSpace, PasidSpace, ReserveIova};
use granule::ports::{AttachError, BounceFault, BounceMemory, Iommu, IommuError, Mapped, PasidDevice};
use granule::units::{Access, Iova, PAGE_BYTES, Pasid, PhysAddr, PhysRange};

use crate::explore::{Bounds, model};
use crate::support::{SimPark, Step};

const BOTH: Attributes = Attributes::BOTH;
/// Where bounce pages lie.
const BOUNCE: u64 = 1 << 30;

/// A table of pages, bounce pages and a device with PASIDs. What is looked at is under a lock that no model sees; the
/// step before it is where threads are switched.
#[derive(Default)]
struct Hardware {
    step: Step,
    table: Mutex<BTreeMap<u64, u64>>,
    attached: Mutex<Option<Pasid>>,
}

impl Iommu for Hardware {
    fn aperture(&self) -> (Iova, Iova) {
        (Iova(0), Iova((1 << 20) - 1))
    }
    fn map(&self, iova: Iova, phys: PhysAddr, bytes: u64, _: Access) -> Result<(), IommuError> {
        self.step.take_in_order();
        let mut table = self.table.lock().unwrap();
        let pages = iova.0 / PAGE_BYTES..(iova.0 + bytes) / PAGE_BYTES;
        if let Some((page, _)) = table.range(pages.clone()).next() {
            return Err(IommuError::AlreadyMapped(Iova(page * PAGE_BYTES)));
        }
        pages.enumerate().for_each(|(n, page)| drop(table.insert(page, phys.0 + n as u64 * PAGE_BYTES)));
        Ok(())
    }
    fn protect(&self, _: Iova, _: u64, _: Access) -> Result<(), IommuError> {
        Ok(())
    }
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), IommuError> {
        self.step.take_in_order();
        let mut table = self.table.lock().unwrap();
        for page in iova.0 / PAGE_BYTES..(iova.0 + bytes) / PAGE_BYTES {
            table.remove(&page).ok_or(IommuError::NotMapped(Iova(page * PAGE_BYTES)))?;
        }
        Ok(())
    }
    fn mapped(&self, iova: Iova, bytes: u64) -> Option<Mapped> {
        self.step.take_in_order();
        let table = self.table.lock().unwrap();
        let (page, phys) = table.range(iova.0 / PAGE_BYTES..(iova.0 + bytes) / PAGE_BYTES).next()?;
        let (iova, phys) = (Iova(page * PAGE_BYTES), PhysAddr(*phys));
        Some(Mapped { iova, phys, bytes: PAGE_BYTES, access: Access::Write })
    }
    fn flush(&self, _: Iova, _: u64) {}
}

impl BounceMemory for Hardware {
    fn pages(&self) -> usize {
        2
    }
    fn page_bytes(&self) -> u64 {
        PAGE_BYTES
    }
    fn phys(&self, slot: usize) -> PhysAddr {
        PhysAddr(BOUNCE + slot as u64 * PAGE_BYTES)
    }
    fn clear(&self, _: usize) {}
    fn copy_in(&self, _: usize, _: u64, _: PhysAddr, _: u64) -> Result<(), BounceFault> {
        Ok(())
    }
    fn copy_out(&self, _: usize, _: u64, _: PhysAddr, _: u64) -> Result<(), BounceFault> {
        Ok(())
    }
}

impl PasidDevice for Hardware {
    fn pasid_bits(&self) -> u32 {
        8
    }
    fn key(&self) -> u64 {
        1
    }
    fn attach_pasid(&self, pasid: Pasid) -> Result<(), AttachError> {
        self.step.take();
        let before = self.attached.lock().unwrap().replace(pasid);
        assert_eq!(before, None, "DATA: attached twice");
        Ok(())
    }
    fn detach_pasid(&self, pasid: Pasid) {
        self.step.take();
        let before = self.attached.lock().unwrap().take();
        assert_eq!(before, Some(pasid), "DATA: detached what was not attached");
    }
}

struct Iovas(Step, Mutex<IovaSpace>);
impl ReserveIova for Iovas {
    fn with(&self, act: &mut dyn FnMut(&mut IovaSpace)) {
        self.0.take_in_order();
        act(&mut self.1.lock().unwrap());
    }
}

/// Everything of one run.
struct Run {
    hardware: Hardware,
    iovas: Iovas,
    park: SimPark,
}

/// Runs `test` on a domain whose threads all end in it, and checks that nothing is left.
#[allow(unsafe_code, reason = "threads of a model want references that never end; the run ends after them")]
fn on_domain(is_untrusted: bool, test: impl FnOnce(&'static Domain<'static>, &'static Run)) {
    let hardware = Hardware::default();
    let space = IovaSpace::new(hardware.aperture(), &[]);
    let iovas = Iovas(Step::default(), Mutex::new(space));
    let raw = Box::into_raw(Box::new(Run { hardware, iovas, park: SimPark::default() }));
    // SAFETY: freed below, after `test` has joined its threads and the domain is gone.
    let run: &'static Run = unsafe { &*raw };
    let pasids = Box::into_raw(Box::new(PasidSpace::new(Pasid(3), &run.park)));
    // SAFETY: as above.
    let pasids_ref: &'static PasidSpace<'static> = unsafe { &*pasids };
    let builder = Domain::builder(&run.hardware, &run.iovas).park(&run.park).pasids(pasids_ref);
    let builder = if is_untrusted { builder.untrusted().bounce(&run.hardware) } else { builder };
    let domain = Box::into_raw(Box::new(builder.build()));
    // SAFETY: as above.
    test(unsafe { &*domain }, run);
    assert!(run.hardware.table.lock().unwrap().is_empty(), "DATA: something is still linked");
    assert_eq!(run.iovas.1.lock().unwrap().reserved_bytes(), 0, "DATA: something is still reserved");
    assert_eq!(pasids_ref.in_use(), 0, "DATA: a PASID is still in use");
    // SAFETY: each was made by Box::into_raw above and is freed once; nothing borrows from it any more: the domain goes
    // first, then what it borrowed from.
    unsafe {
        drop(Box::from_raw(domain));
        drop(Box::from_raw(pasids));
        drop(Box::from_raw(raw));
    }
}

fn page(n: u64) -> PhysRange {
    PhysRange::new(PhysAddr(n * PAGE_BYTES), PAGE_BYTES)
}

/// Two threads link and unlink in one reservation, at different pages and at the same one, and reserve and free beside.
fn links() {
    on_domain(false, |domain, _| {
        let shared = std::rc::Rc::new(domain.reserve(3 * PAGE_BYTES, PAGE_BYTES).unwrap());
        let work = move |own: u64, shared: &granule::dma::Reservation| {
            let span = domain.link(shared, own * PAGE_BYTES, [page(own)], BOTH).expect("DATA: its own page");
            let _ = domain.sync(span).unwrap();
            let both = domain.link(shared, 2 * PAGE_BYTES, [page(10 + own)], BOTH);
            let is_mine = match both {
                Ok(span) => domain.sync(span).is_ok(),
                Err(error) => {
                    assert!(matches!(error, DmaError::AlreadyLinked(_)), "DATA: {error}");
                    false
                }
            };
            let gone = domain.unlink(shared, own * PAGE_BYTES, PAGE_BYTES, BOTH).map(|gone| gone.pages);
            assert_eq!(gone, Ok(1), "DATA: its own page again");
            is_mine
        };
        let thread = {
            let shared = shared.clone();
            loom::thread::spawn(move || work(0, &shared))
        };
        let mine = work(1, &shared);
        let other = thread.join().unwrap();
        assert!(mine != other, "DATA: one of the two linked the page that both wanted");
        let shared = std::rc::Rc::into_inner(shared).expect("the other thread is gone");
        assert_eq!(shared.linked_pages(), 1, "DATA: the count is wrong");
        let (shared, error) = domain.free(shared).expect_err("DATA: a page is linked");
        assert_eq!(error, DmaError::LinksLeft(1));
        assert_eq!(domain.destroy(shared, BOTH).unwrap().pages, 1, "DATA: the one page");
    });
}

model!(
    links_of_two_threads_are_counted,
    Bounds { preemptions: Some(3), threads: 2, pages: 3 },
    links,
    twins: [CountLinksAtOnce]
);

/// Two threads reserve and free at once: never the same addresses.
fn reservations() {
    on_domain(false, |domain, _| {
        let work = move || {
            let one = domain.reserve(2 * PAGE_BYTES, PAGE_BYTES).unwrap();
            let span = domain.link(&one, 0, [page(1)], BOTH).expect("DATA: nobody else has this address");
            let _ = domain.sync(span).unwrap();
            domain.destroy(one, BOTH).unwrap().pages
        };
        let threads = [(); 2].map(|()| loom::thread::spawn(work));
        assert_eq!(work(), 1, "DATA: the own link");
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 1, "DATA: the own link");
        }
    });
}

model!(
    reservations_of_three_threads_do_not_meet,
    Bounds { preemptions: Some(2), threads: 3, pages: 6 },
    reservations,
    twins: []
);

/// Two threads link what has to be bounced: a bounce page stands for one page at a time.
fn bounces() {
    on_domain(true, |domain, run| {
        let work = move |own: u64| {
            let one = domain.reserve(PAGE_BYTES, PAGE_BYTES).unwrap();
            let part = PhysRange::new(PhysAddr(own * PAGE_BYTES), 100);
            let span = domain.link(&one, 0, [part], BOTH).expect("DATA: there is a bounce page for each");
            let _ = domain.sync(span).unwrap();
            let phys = run.hardware.table.lock().unwrap()[&(one.base().0 / PAGE_BYTES)];
            let alike = run.hardware.table.lock().unwrap().values().filter(|other| **other == phys).count();
            assert_eq!(alike, 1, "DATA: a bounce page stands for two");
            let unlinked = domain.unlink(&one, 0, 100, BOTH).unwrap();
            assert_eq!(unlinked.bounced, 1, "DATA: somebody else gave the bounce page back");
            domain.free(one).map_err(|(_, error)| error).expect("DATA: nothing is linked");
        };
        let thread = loom::thread::spawn(move || work(7));
        work(8);
        thread.join().unwrap();
        assert_eq!(domain.bounce_pages_in_use(), 0, "DATA: a bounce page is still lent");
    });
}

model!(
    a_bounce_page_stands_for_one_page,
    Bounds { preemptions: Some(3), threads: 2, pages: 2 },
    bounces,
    twins: [LockWaits]
);

/// Three threads use the PASID of one device: attached by the first, detached by the last, whoever that is.
fn pasids() {
    on_domain(false, |domain, run| {
        let work = move || {
            let pasid = domain.dma_pasid(&run.hardware).unwrap();
            let attached = *run.hardware.attached.lock().unwrap();
            assert_eq!(attached, Some(pasid.pasid()), "DATA: in use and not attached");
        };
        let threads = [(); 2].map(|()| loom::thread::spawn(work));
        work();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(*run.hardware.attached.lock().unwrap(), None, "DATA: nobody uses it");
    });
}

model!(
    a_pasid_is_attached_while_anybody_uses_it,
    Bounds { preemptions: Some(3), threads: 3, pages: 0 },
    pasids,
    twins: [LockWaits]
);
