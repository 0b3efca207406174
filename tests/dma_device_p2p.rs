//! Two devices that really reach one another's memory: at bus addresses below one switch, and through the host bridge.
#![cfg(not(granule_loom))]

mod dma_device;

use dma_device::*;
use granule::ports::{Device, PeerMemory, Word};
use granule::sync::Ordering;
use granule::units::{DevMemAddr, Iova, PAGE_BYTES};
use granule_backends::software::{DmaRefused, SoftwareDevice, Switch};

const AT: Iova = Iova(64 << 20);

fn page(value: u64) -> Vec<Word> {
    (0..512).map(|word| Word::new(value << 16 | word)).collect()
}

/// What a device's own memory holds.
fn word(device: &SoftwareDevice, at: u64) -> u64 {
    device.window(DevMemAddr(at), 8).unwrap()[0].load(Ordering::SeqCst)
}

#[test]
fn below_one_switch_devices_read_and_write_each_other_past_the_iommu() {
    let switch = Switch::new();
    let pair = [(); 2].map(|()| builder().switch(switch).build().unwrap());
    for (number, device) in pair.iter().enumerate() {
        device.copy_in(DevMemAddr(PAGE_BYTES), &page(number as u64 + 1)).unwrap();
    }
    for (number, (one, other)) in [(&pair[0], &pair[1]), (&pair[1], &pair[0])].into_iter().enumerate() {
        let window = other.peer_window();
        assert_eq!(window.bytes, 2 * MIB);
        let at = Iova((window.bus + PAGE_BYTES).0);
        assert_eq!(read(one, at + 24), Ok((2 - number as u64) << 16 | 3));
        write(one, at + 512, 0xabc + number as u64).unwrap();
        assert_eq!(word(other, PAGE_BYTES + 512), 0xabc + number as u64);
        let end = Iova((window.bus + window.bytes).0);
        assert_eq!(read(one, end), Err(DmaRefused::NotMapped(end)), "beyond the peer's memory");
        assert_eq!(one.iommu_domain().counters().leaves, Default::default(), "never in the IOMMU");
        assert_eq!(one.counters().device_iotlb_misses, 1, "only what is beyond was asked for");
    }
    // Below another switch, and below none, the address leads nowhere.
    let at = Iova(pair[0].peer_window().bus.0);
    for stranger in [builder().switch(Switch::new()).build().unwrap(), builder().build().unwrap()] {
        assert_eq!(read(&stranger, at), Err(DmaRefused::NotMapped(at)));
    }
}

#[test]
fn through_the_host_bridge_a_peer_is_mapped_like_memory_and_unmapped_like_memory() {
    let pair = [(); 2].map(|()| builder().build().unwrap());
    pair[1].copy_in(DevMemAddr(0), &page(9)).unwrap();
    let window = pair[1].peer_window();
    let iommu = pair[0].iommu();
    iommu.map(AT, window.phys, window.bytes, RW).unwrap();
    assert_eq!(pair[0].iommu_domain().counters().leaves.large, 1, "a window is as contiguous as memory");
    let mut seen = vec![0u8; PAGE_BYTES as usize];
    pair[0].dma_read(PLAIN, AT, &mut seen).unwrap();
    for (index, word) in seen.chunks_exact(8).enumerate() {
        assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), 9 << 16 | index as u64);
    }
    pair[0].dma_write(PLAIN, AT + (2 * MIB - 8), &5u64.to_le_bytes()).unwrap();
    assert_eq!(word(&pair[1], 2 * MIB - 8), 5);
    unlink(iommu, AT, window.bytes);
    assert_eq!(read(&pair[0], AT), Err(DmaRefused::NotMapped(AT)));
}

#[test]
fn a_peer_that_is_gone_is_an_error_and_not_somebody_elses_memory() {
    let one = builder().build().unwrap();
    let other = builder().build().unwrap();
    let phys = other.peer_window().phys;
    one.iommu().map(AT, phys, PAGE_BYTES, RW).unwrap();
    write(&one, AT, 1).unwrap();
    drop(other);
    assert_eq!(read(&one, AT), Err(DmaRefused::MemoryGone { at: AT, phys }));
}

#[test]
fn a_device_that_is_not_coherent_does_not_cache_its_peers_memory() {
    let one = builder().non_coherent().build().unwrap();
    let other = builder().build().unwrap();
    one.iommu().map(AT, other.peer_window().phys, PAGE_BYTES, RW).unwrap();
    for value in [1, 2] {
        other.copy_in(DevMemAddr(0), &page(value)).unwrap();
        assert_eq!(read(&one, AT), Ok(value << 16));
    }
    write(&one, AT, 77).unwrap();
    assert_eq!(word(&other, 0), 77);
}

/// Devices below one switch copy to and fro while one of them is dropped: nobody reaches memory that is gone.
#[test]
fn a_peer_may_go_while_others_reach_for_it() {
    let switch = Switch::new();
    for _ in 0..20 {
        let [one, other] = [(); 2].map(|()| builder().switch(switch).build().unwrap());
        let at = Iova(other.peer_window().bus.0);
        let started = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                started.wait();
                for _ in 0..200 {
                    let mut bytes = [0u8; 4096];
                    match one.dma_read(PLAIN, at, &mut bytes).map_err(refused) {
                        Ok(()) => assert!(bytes.iter().all(|byte| *byte == 0)),
                        Err(why) => assert_eq!(why, DmaRefused::NotMapped(at)),
                    }
                }
            });
            started.wait();
            drop(other);
        });
    }
}
