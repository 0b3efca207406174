//! PASIDs: kept with the domain, attached once per device, detached by the last user.

mod dma_support;

use dma_support::{Iovas, Machine, plain};
use granule::dma::{Domain, PasidError, PasidSpace};
use granule::ports::AttachError;
use granule::sync::SpinPark;
use granule::units::Pasid;

static PARK: SpinPark = SpinPark;

fn machine(key: u64, bits: u32) -> Machine {
    let mut machine = Machine::new();
    (machine.key, machine.pasid_bits) = (key, bits);
    machine
}

#[test]
fn the_last_user_detaches_and_the_last_device_gives_the_number_back() {
    let (one, two) = (machine(1, 20), machine(2, 20));
    let iovas = Iovas::of(&one);
    let space = PasidSpace::new(Pasid(99), &PARK);
    for domain in
        [Domain::builder(&one, &iovas).pasids(&space).build(), Domain::direct(0).pasids(&space).build()]
    {
        assert_eq!(domain.pasid(), None);
        let first = domain.dma_pasid(&one).unwrap();
        let second = domain.dma_pasid(&one).unwrap();
        let other = domain.dma_pasid(&two).unwrap();
        assert_eq!((first.pasid(), second.pasid(), other.pasid()), (Pasid(1), Pasid(1), Pasid(1)));
        assert_eq!((one.attached(), two.attached()), (vec![Pasid(1)], vec![Pasid(1)]), "once per device");
        drop(first);
        assert_eq!(one.attached(), [Pasid(1)], "somebody still uses it");
        drop(second);
        assert_eq!((one.attached(), two.attached()), (vec![], vec![Pasid(1)]));
        assert_eq!((domain.pasid(), space.in_use()), (Some(Pasid(1)), 1));
        drop(other);
        assert_eq!((domain.pasid(), space.in_use()), (None, 0));
    }
    // Two domains have two.
    let a = Domain::direct(0).pasids(&space).build();
    let b = Domain::direct(0).pasids(&space).build();
    let (of_a, of_b) = (a.dma_pasid(&one).unwrap(), b.dma_pasid(&one).unwrap());
    assert_eq!((of_a.pasid(), of_b.pasid()), (Pasid(1), Pasid(2)));
    drop(of_a);
    assert_eq!(one.attached(), [Pasid(2)], "each domain keeps its own");
}

#[test]
fn every_refusal_attaches_nothing() {
    let space = PasidSpace::new(Pasid(70), &PARK);
    let domain = Domain::direct(0).pasids(&space).build();
    // A device without PASID, though the layer below would say success.
    let without = machine(1, 0);
    assert_eq!(domain.dma_pasid(&without).map(drop), Err(PasidError::NoPasid));
    assert!(without.attached().is_empty());
    let device = machine(2, 20);
    plain(&machine(3, 20), |none| {
        assert_eq!(none.dma_pasid(&device).map(drop), Err(PasidError::NoSpace));
    });
    for error in [AttachError::Busy(Pasid(1)), AttachError::Resetting, AttachError::NotSupported(Pasid(1))] {
        device.set_attach(Err(error));
        assert_eq!(domain.dma_pasid(&device).map(drop), Err(PasidError::Attach(error)));
        assert_eq!((space.in_use(), domain.pasid()), (0, None), "the number is given back");
    }
    device.set_attach(Ok(()));
    // Numbers: all of three bits, then too wide for a narrow device.
    let held: Vec<Pasid> = (0..7).map(|_| space.take(3).unwrap()).collect();
    assert_eq!(held, (1..8).map(Pasid).collect::<Vec<_>>());
    assert_eq!(space.take(3), Err(PasidError::Exhausted(3)));
    assert_eq!(space.take(0), Err(PasidError::NoPasid));
    let wide = domain.dma_pasid(&device).unwrap();
    assert_eq!(wide.pasid(), Pasid(8));
    let narrow = machine(4, 3);
    let refused = domain.dma_pasid(&narrow).map(drop);
    assert_eq!(refused, Err(PasidError::TooWide { pasid: Pasid(8), bits: 3 }));
    held.into_iter().for_each(|pasid| space.give_back(pasid));
    drop(wide);
    let rest: Vec<Pasid> = (0..70).map(|_| space.take(20).unwrap()).collect();
    assert_eq!(space.take(20), Err(PasidError::Exhausted(20)));
    assert_eq!(domain.dma_pasid(&device).map(drop), Err(PasidError::Exhausted(20)));
    rest.into_iter().for_each(|pasid| space.give_back(pasid));
    // Devices: sixteen, and then one more user of a known one.
    let many: Vec<Machine> = (10..27).map(|key| machine(key, 20)).collect();
    let users: Vec<_> = many[..16].iter().map(|device| domain.dma_pasid(device).unwrap()).collect();
    assert_eq!(domain.dma_pasid(&many[16]).map(drop), Err(PasidError::TooManyDevices));
    drop(domain.dma_pasid(&many[3]).unwrap());
    drop(users);
    assert!(many.iter().all(|device| device.attached().is_empty()) && space.in_use() == 0);
}
