//! PASIDs of a device's ordinary DMA: the same addresses, tagged.
#![cfg(not(granule_loom))]
#![allow(unsafe_code, reason = "makes a device without an IOMMU")]

mod dma_device;

use dma_device::*;
use granule::ports::{AttachError, Device, PasidDevice};
use granule::units::{Iova, PAGE_BYTES, Pasid};
use granule_backends::software::{Broken, DmaRefused, MOST_PASIDS};

const AT: Iova = Iova(64 << 20);
const TAG: Pasid = Pasid(77);

#[test]
fn a_pasid_agrees_with_plain_dma_on_every_address_while_it_is_attached() {
    let (domain, memory) = (domain(), Memory::new(2));
    let device = in_domain(&domain);
    let other = in_domain(&domain);
    memory.fill(1, 3);
    domain.iommu().map(AT, memory.phys(0), 2 * PAGE_BYTES, RW).unwrap();
    let at = AT + PAGE_BYTES;
    assert_eq!(read_as(&device, TAG, at), Err(DmaRefused::NotAttached(TAG)));
    device.attach_pasid(TAG).unwrap();
    assert_eq!(device.attach_pasid(TAG), Err(AttachError::Busy(TAG)));
    assert_eq!([read_as(&device, TAG, at), read(&device, at)], [Ok(3), Ok(3)]);
    assert_eq!(read_as(&other, TAG, at), Err(DmaRefused::NotAttached(TAG)), "attached to one device");
    write_as(&device, TAG, AT, 8).unwrap();
    assert_eq!(memory.word(0, 0), 8);
    device.detach_pasid(TAG);
    device.detach_pasid(TAG);
    assert_eq!(read_as(&device, TAG, at), Err(DmaRefused::NotAttached(TAG)));
    assert_eq!(read(&device, at), Ok(3), "plain DMA goes on");
}

#[test]
fn what_cannot_be_attached_is_refused_by_name() {
    let device = builder().pasid_bits(8).build().unwrap();
    for pasid in [Pasid(0), Pasid(256), Pasid(u32::MAX)] {
        assert_eq!(device.attach_pasid(pasid), Err(AttachError::NotSupported(pasid)));
    }
    for number in 1..=MOST_PASIDS as u32 {
        device.attach_pasid(Pasid(number)).unwrap();
    }
    let next = Pasid(200);
    assert_eq!(device.attach_pasid(next), Err(AttachError::NotSupported(next)));
    device.detach_pasid(Pasid(5));
    device.attach_pasid(next).unwrap();
    device.detach_pasid(Pasid(6));
    device.lose();
    assert_eq!(device.attach_pasid(Pasid(6)), Err(AttachError::Resetting));
    assert_ne!(device.key(), builder().build().unwrap().key());
    // The layer below a device that cannot tag says success, and nothing comes of it.
    let plain = builder().build().unwrap();
    assert_eq!(plain.pasid_bits(), 0);
    plain.attach_pasid(TAG).unwrap();
    assert_eq!(read_as(&plain, TAG, AT), Err(DmaRefused::NotAttached(TAG)));
}

#[test]
fn a_device_that_only_tags_works_through_a_pasid() {
    let memory = Memory::new(1);
    let device = builder().pasid_bits(20).tagged_dma_only().build().unwrap();
    device.iommu().map(AT, memory.phys(0), PAGE_BYTES, RW).unwrap();
    assert_eq!(read(&device, AT), Err(DmaRefused::Untagged));
    device.attach_pasid(TAG).unwrap();
    write_as(&device, TAG, AT + 16, 5).unwrap();
    assert_eq!((memory.word(0, 2), read_as(&device, TAG, AT + 16)), (5, Ok(5)));
}

#[test]
fn a_flush_reaches_what_the_device_remembers_under_each_pasid() {
    let stale = |promise: Option<Broken>| {
        let memory = Memory::new(2);
        let device = builder().pasid_bits(20).build().unwrap();
        promise.into_iter().for_each(|promise| device.break_promise(promise));
        let iommu = device.iommu();
        memory.fill(0, 1);
        memory.fill(1, 2);
        let tags = [PLAIN, TAG, Pasid(78)];
        tags[1..].iter().for_each(|tag| device.attach_pasid(*tag).unwrap());
        iommu.map(AT, memory.phys(0), PAGE_BYTES, RW).unwrap();
        assert!(tags.iter().all(|tag| read_as(&device, *tag, AT) == Ok(1)));
        unlink(iommu, AT, PAGE_BYTES);
        iommu.map(AT, memory.phys(1), PAGE_BYTES, RW).unwrap();
        tags.map(|tag| read_as(&device, tag, AT).unwrap() == 1)
    };
    assert_eq!(stale(None), [false; 3]);
    assert_eq!(
        stale(Some(Broken::FlushReachesPasids)),
        [false, true, true],
        "the test sees an omitted flush"
    );
}

#[test]
fn nothing_is_remembered_under_a_pasid_that_was_detached() {
    let memory = Memory::new(2);
    let device = builder().pasid_bits(20).build().unwrap();
    let iommu = device.iommu();
    memory.fill(0, 1);
    memory.fill(1, 2);
    iommu.map(AT, memory.phys(0), PAGE_BYTES, RW).unwrap();
    device.attach_pasid(TAG).unwrap();
    assert_eq!(read_as(&device, TAG, AT), Ok(1));
    let before = device.counters().device_iotlb_dropped;
    device.detach_pasid(TAG);
    assert_eq!(device.counters().device_iotlb_dropped, before + 1);
    // No flush: nothing is remembered that would need one.
    iommu.unmap(AT, PAGE_BYTES).unwrap();
    iommu.map(AT, memory.phys(1), PAGE_BYTES, RW).unwrap();
    device.attach_pasid(TAG).unwrap();
    assert_eq!(read_as(&device, TAG, AT), Ok(2));
}

#[test]
fn direct_mode_adds_its_offset_tagged_or_not() {
    let memory = Memory::new(1);
    let offset = 0x7000_0000_0000_0000;
    // SAFETY: DMA of the test goes to `memory`, which lives to its end.
    let device = unsafe { builder().pasid_bits(20).direct(offset) }.build().unwrap();
    let at = Iova(memory.phys(0).0.wrapping_add(offset));
    write(&device, at + 8, 7).unwrap();
    assert_eq!(memory.word(0, 1), 7);
    assert_eq!(read_as(&device, TAG, at + 8), Err(DmaRefused::NotAttached(TAG)));
    device.attach_pasid(TAG).unwrap();
    assert_eq!(read_as(&device, TAG, at + 8), Ok(7));
    // SAFETY: as above.
    let short = unsafe { builder().direct(offset) }.dma_last(at).build().unwrap();
    assert_eq!(read(&short, at + 8), Err(DmaRefused::BeyondReach { at: at + 8, last: at }));
}
