//! Ordinary memory on a device: a linked list, a vector and a map are built by the CPU with the ordinary allocator; a
//! device kernel follows and changes them through the same pointers; the CPU checks. Nothing is registered.
//!
//! `cargo run --release --example system_allocator`
#![allow(unsafe_code, reason = "reads through the pointers that a device wrote")]

use std::collections::HashMap;

use granule::Svm;
use granule::ports::Count;
use granule::units::PAGE_BYTES;
use granule_backends::software::{AccessError, Engine, SoftwareDevice};

/// A node of a list, as a device sees it: two words.
#[repr(C)]
struct Node {
    next: *mut Node,
    value: u64,
}

const NODES: u64 = 20_000;
const NUMBERS: u64 = 200_000;

fn build_list() -> *mut Node {
    (0..NODES).rev().fold(std::ptr::null_mut(), |next, value| Box::into_raw(Box::new(Node { next, value })))
}

/// Sums the list and doubles each value; returns the sum of what was there before.
fn follow(engine: &mut Engine<'_>, head: u64) -> Result<u64, AccessError> {
    let (mut at, mut sum) = (head, 0);
    while at != 0 {
        let next: u64 = engine.load(at)?;
        let value: u64 = engine.load(at + 8)?;
        engine.store(at + 8, 2 * value)?;
        sum += value;
        at = next;
    }
    Ok(sum)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = SoftwareDevice::builder().memory_bytes(64 << 20).engines(2).build()?;
    let svm = Svm::builder().device(device.clone()).build()?;

    let head = build_list() as u64;
    let mut numbers: Vec<u64> = (0..NUMBERS).collect();
    let names: HashMap<String, Box<u64>> = (0..1000).map(|n| (format!("number {n}"), Box::new(n))).collect();
    let boxed: Vec<u64> = names.values().map(|number| std::ptr::from_ref(&**number) as u64).collect();

    let (numbers_at, sum_at) = (numbers.as_mut_ptr() as u64, Box::into_raw(Box::new(0u64)) as u64);
    device.run(|engine| {
        if engine.index() == 0 {
            let sum = follow(engine, head)?;
            engine.store(sum_at, sum)?;
        } else {
            for at in &boxed {
                engine.fetch_add_u64(*at, 1_000_000)?;
            }
        }
        for index in engine.share(NUMBERS as usize) {
            let at = numbers_at + 8 * index as u64;
            let number: u64 = engine.load(at)?;
            engine.store(at, number * number)?;
        }
        Ok(())
    })?;
    let on_device = svm.stats();

    // The CPU touches all of it again, and gets it back.
    // SAFETY: made by `Box::into_raw` above, given back once; the kernel has ended.
    let sum = unsafe { *Box::from_raw(sum_at as *mut u64) };
    assert_eq!(sum, (0..NODES).sum::<u64>());
    let (mut at, mut expected) = (head as *mut Node, 0);
    while !at.is_null() {
        // SAFETY: as above, node by node.
        let node = unsafe { Box::from_raw(at) };
        assert_eq!(node.value, 2 * expected);
        (at, expected) = (node.next, expected + 1);
    }
    assert_eq!(expected, NODES);
    assert!(std::hint::black_box(&numbers).iter().zip(0..).all(|(number, index)| *number == index * index));
    for n in 0..1000 {
        let number = std::hint::black_box(&names).get(&format!("number {n}")).expect("it was put in");
        assert_eq!(**number, n + 1_000_000);
    }

    let stats = svm.stats();
    let kib = |what| stats.count(what) * PAGE_BYTES / 1024;
    assert!(on_device.count(Count::PagesToDevice) > 0 && stats.count(Count::PagesToRam) > 0);
    println!("list of {NODES} nodes, vector of {NUMBERS} numbers, map of 1000 boxes: all as expected");
    println!("  faults             {} of the device, {} of the CPU", stats.count(Count::DeviceFaults), {
        stats.count(Count::CpuFaults)
    });
    println!("  moved to device    {} KiB", kib(Count::PagesToDevice));
    println!("  moved to RAM       {} KiB", kib(Count::PagesToRam));
    println!("  linked             {} KiB", kib(Count::PagesLinked));
    Ok(())
}
