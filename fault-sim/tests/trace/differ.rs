//! Policies of one kind differ. Each trace here is small enough to be played by hand, and the numbers are those that
//! playing by hand gives. A pair of policies that no trace tells apart fails.
//!
//! Evictions are told apart by rule in the unit of 2 MiB, and by unit; 64 KiB has rules of its own besides.

use fault_sim::policy::catalogue;
use fault_sim::policy::parts::PARTS;
use fault_sim::replay::{Cost, Limits};
use fault_sim::trace::{Access, Advice, Event, EventKind};

use super::support::{BASE, BLOCK, map, play, play_with, reads, unmap};

/// Every two rows differ in a column where both have a number, and every part of this kind has a row.
fn all_differ<T: PartialEq + std::fmt::Debug>(rows: &[(&str, Vec<Option<T>>)]) {
    for (at, (name, row)) in rows.iter().enumerate() {
        for (other, other_row) in &rows[at + 1..] {
            let differs = row.iter().zip(other_row).any(|(a, b)| a.is_some() && b.is_some() && a != b);
            assert!(differs, "no trace tells {name} from {other}");
        }
    }
}

fn names(kind: &str) -> Vec<&'static str> {
    PARTS.iter().filter(|part| part.kind() == kind).map(|part| part.name).collect()
}

fn written_by_cpu(at_ns: u64, page: u64) -> Event {
    Event::cpu(at_ns, BASE + page, Access::Write)
}

#[test]
fn prefetchers() {
    let split = {
        let mut events = vec![map(0, 0, 512)];
        events.extend(reads(&[0]));
        events.extend([unmap(2000, 256, 16), map(2000, 256, 16), written_by_cpu(3000, 0)]);
        events.push(Event::access(4000, BASE, Access::Read, 0));
        events
    };
    let small = [vec![map(0, 0, 100)], reads(&[0])].concat();
    let traces = [reads(&[0]), reads(&[8, 20]), reads(&[0, 16, 32]), small, split, reads(&[0, 20, 40, 60])];
    // Faults, and pages that came.
    let by_hand: [(&str, [(u64, u64); 6]); 9] = [
        ("on-demand-4k", [(1, 1), (2, 2), (3, 3), (1, 1), (2, 2), (4, 4)]),
        ("on-demand-64k", [(1, 16), (2, 32), (3, 48), (1, 16), (2, 32), (4, 64)]),
        // The CPU takes home all but the 16 unmapped pages; then all 512 come again.
        ("whole-2m", [(1, 512), (1, 512), (1, 512), (1, 100), (2, 1024), (1, 512)]),
        ("sequential-64k", [(1, 16), (1, 16), (3, 48), (1, 16), (2, 32), (4, 64)]),
        // The third equal distance brings eight more.
        ("stride", [(1, 1), (2, 2), (3, 11), (1, 1), (2, 2), (3, 11)]),
        // 48 of 64 pages are more than 51 percent, 32 of 64 are not.
        ("nvidia-tree", [(1, 16), (2, 32), (3, 64), (1, 16), (2, 32), (3, 64)]),
        // 2 MiB does not fit into 100 pages; an unmap destroys the range, and the next one is whole again.
        ("gpusvm-chunks", [(1, 512), (1, 512), (1, 512), (1, 16), (2, 1024), (1, 512)]),
        // The unmap splits the range at 256: only that half goes home and comes back.
        ("amd-ranges", [(1, 512), (1, 512), (1, 512), (1, 100), (2, 768), (1, 512)]),
        ("oracle", [(1, 1), (1, 2), (1, 3), (1, 1), (2, 2), (1, 4)]),
    ];
    for (name, expected) in by_hand {
        for (number, (trace, expected)) in traces.iter().zip(expected).enumerate() {
            let m = play(&format!("{name}+lru-4k"), 1024, trace);
            assert_eq!(
                (m.faults_unique, m.demand_pages + m.prefetch_pages),
                expected,
                "{name}, trace {number}"
            );
        }
    }
    let random = play("random-page+lru-4k", 1024, &traces[0]);
    assert_eq!((random.demand_pages, random.prefetch_pages), (1, 1));
    let mut rows: Vec<_> = by_hand.map(|(name, row)| (name, row.map(Some).to_vec())).into();
    rows.push(("random-page", vec![Some((1, 2)), None, None, None, None, None]));
    all_differ(&rows);
    // Ours is today what its unit says; if the live policy learns more, it gets a row of its own above.
    for (ours, same) in
        [("granule-4k", "on-demand-4k"), ("granule-64k", "on-demand-64k"), ("granule-2m", "whole-2m")]
    {
        let expected = by_hand.iter().find(|row| row.0 == same).map(|row| row.1);
        let found = std::array::from_fn(|at| {
            let m = play(&format!("{ours}+lru-4k"), 1024, &traces[at]);
            (m.faults_unique, m.demand_pages + m.prefetch_pages)
        });
        assert_eq!(expected, Some(found), "{ours}");
    }
    assert_eq!(rows.len() + 3, names("prefetch").len(), "a prefetcher is not compared");
}

/// Touches of pages given as (block, page).
fn touches(of: &[(u64, u64)]) -> Vec<Event> {
    reads(&of.iter().map(|(block, page)| block * BLOCK + page).collect::<Vec<_>>())
}

#[test]
fn evictions_by_rule() {
    const A: u64 = 0;
    const B: u64 = 1;
    const C: u64 = 2;
    // Device memory holds two blocks.
    let traces = [
        touches(&[(A, 0), (B, 0), (A, 1), (C, 0), (A, 0)]),
        touches(&[(A, 0), (B, 0), (A, 0), (C, 0), (A, 0)]),
        touches(&[(A, 0), (B, 0), (C, 0), (A, 0)]),
        touches(&[(A, 0), (B, 0), (B, 0), (A, 0), (C, 0), (B, 0)]),
        touches(&[(A, 0), (A, 0), (A, 0), (B, 0), (C, 0), (A, 0)]),
        touches(&[(A, 0), (A, 0), (A, 0), (B, 0), (B, 0), (C, 0), (B, 0)]),
    ];
    // Faults: one more where the last touch misses.
    let by_hand: [(&str, [u64; 6]); 8] = [
        // The second page of A makes A young; a hit does not.
        ("lrm-2m", [4, 4, 4, 3, 4, 3]),
        ("fifo-2m", [5, 4, 4, 3, 4, 3]),
        ("lru-2m", [4, 3, 4, 4, 4, 3]),
        ("mru-2m", [5, 4, 3, 3, 3, 4]),
        // Both were touched: the hand clears both, and the one that came first leaves.
        ("clock-2m", [4, 3, 4, 3, 3, 3]),
        ("lfu-2m", [4, 3, 4, 4, 3, 4]),
        ("srrip-2m", [4, 3, 4, 4, 3, 3]),
        ("belady-2m", [4, 3, 3, 3, 3, 3]),
    ];
    for (name, expected) in by_hand {
        for (number, (trace, expected)) in traces.iter().zip(expected).enumerate() {
            let m = play(&format!("on-demand-4k+{name}"), 1024, trace);
            assert_eq!(m.faults_unique, expected, "{name}, trace {number}");
        }
    }
    all_differ(&by_hand.map(|(name, row)| (name, row.map(Some).to_vec())));
    // Three blocks round and round through two: chance keeps the right one now and then, which those that go by age
    // never do and who knows the future does every other time.
    let round: Vec<_> = (0..300).map(|at| (at % 3, 0)).collect();
    let faults = |name: &str| play(&format!("on-demand-4k+{name}"), 1024, &touches(&round)).faults_unique;
    assert_eq!(
        (faults("lru-2m"), faults("fifo-2m"), faults("lrm-2m"), faults("clock-2m")),
        (300, 300, 300, 300)
    );
    assert_eq!(faults("belady-2m"), 151);
    assert!((170..270).contains(&faults("random-2m")), "{}", faults("random-2m"));
}

#[test]
fn evictions_by_unit() {
    // A page in each of three blocks, and a page in each of 65 units of 64 KiB: device memory holds 2 blocks, 64 such
    // units, 1024 pages.
    let blocks = touches(&[(0, 0), (1, 0), (2, 0)]);
    let units = reads(&(0..65).map(|unit| unit * 16).collect::<Vec<_>>());
    for name in names("eviction") {
        let expected = match catalogue::parse(name).expect("a part").parts()[1].name.rsplit('-').next() {
            Some("2m") => (1, 1),
            Some("64k") => (0, 1),
            _ => (0, 0),
        };
        let evictions = |trace| play(&format!("on-demand-4k+{name}"), 1024, trace).evictions;
        assert_eq!((evictions(&blocks), evictions(&units)), expected, "{name}");
    }
}

#[test]
fn evictions_of_64_kib() {
    // All 16 pages of 64 units, one after the other, then a 65th unit, then one of the 64 again.
    let again = |unit: u64| {
        let mut pages: Vec<_> = (0..1024).collect();
        pages.extend([1024, unit * 16]);
        reads(&pages)
    };
    // Two units of one block first, then all 32 of a second one and 30 of a third, then one more.
    let sparse: Vec<_> = (0..2).chain(32..64).chain(64..94).chain([96]).map(|unit| unit * 16).collect();
    let traces = [again(0), again(63), again(58), reads(&sparse)];
    let by_hand: [(&str, [u64; 4]); 8] = [
        ("lru-64k", [1026, 1025, 1025, 1]),
        ("fifo-64k", [1026, 1025, 1025, 1]),
        ("clock-64k", [1026, 1025, 1025, 1]),
        ("lfu-64k", [1026, 1025, 1025, 1]),
        ("srrip-64k", [1026, 1025, 1025, 1]),
        ("mru-64k", [1025, 1026, 1025, 1]),
        // Sixteen intervals of 64 faults: units 0 to 58 are old, and every one was touched as often as it has pages, so
        // that the youngest of the old ones leaves.
        ("hpe-64k", [1025, 1025, 1026, 1]),
        ("belady-64k", [1025, 1025, 1025, 1]),
    ];
    for (name, expected) in by_hand {
        for (number, (trace, expected)) in traces.iter().zip(expected).enumerate() {
            let m = play(&format!("on-demand-4k+{name}"), 1024, trace);
            let found = if number == 3 { m.evicted_pages } else { m.faults_unique };
            assert_eq!(found, expected, "{name}, trace {number}");
        }
    }
    // With the first unit, the second one of its block leaves: less than half of their subtree of 256 KiB is left.
    let tree = |trace| play("on-demand-4k+tree-64k", 1024, trace);
    assert_eq!(tree(&traces[3]).evicted_pages, 2);
}

fn touched_often(times: u64) -> Vec<Event> {
    (0..times).map(|at| Event::access(at * 1000, BASE, Access::Read, 0)).collect()
}

fn advised(advice: Advice, events: Vec<Event>) -> Vec<Event> {
    let advice = Event { detail: advice as u8, ..Event::range(0, BASE, 512, EventKind::Advice) };
    [vec![map(0, 0, 512), advice], events].concat()
}

/// Pages that came, pages that were mapped where they are, CPU faults, throttles.
type Residence = (u64, u64, u64, u64);

/// Entries read, entries merged on arrival, batches, replays.
type Read = (u64, u64, u64, u64);

/// Writes of one page, by the device and the CPU by turns, at these microseconds.
fn bounced(times_us: &[u64]) -> Vec<Event> {
    let event = |(at, us): (usize, &u64)| match at % 2 {
        0 => Event::access(us * 1000, BASE, Access::Write, 0),
        _ => written_by_cpu(us * 1000, 0),
    };
    times_us.iter().enumerate().map(event).collect()
}

#[test]
fn residencies() {
    let shared = {
        let mut events = touched_often(1);
        events.push(Event::cpu(1000, BASE, Access::Read));
        events.push(Event::access(2000, BASE, Access::Read, 0));
        events
    };
    let traces = [
        touched_often(10),
        touched_often(300),
        shared,
        advised(Advice::PreferCpu, touched_often(2)),
        advised(Advice::AccessedByDevice, touched_often(300)),
        // Three moves within the lapse make the page thrash; the CPU is not throttled at 50 us, the device is at 60 us,
        // and once more at the end of the nap, of which it is not the first microsecond yet.
        bounced(&[0, 10, 20, 30, 40, 50, 60]),
        // The vote at 50 us makes the lapse as written 562.5 us long, so that 520 us later the page still thrashes.
        bounced(&[0, 10, 20, 30, 40, 50, 570, 580]),
    ];
    let by_hand: [(&str, [Residence; 7]); 9] = [
        (
            "first-touch",
            [
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (2, 0, 1, 0),
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (4, 0, 3, 0),
                (4, 0, 4, 0),
            ],
        ),
        (
            "remote-only",
            [
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
            ],
        ),
        (
            "delayed-8",
            [
                (1, 1, 0, 0),
                (1, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (1, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
            ],
        ),
        (
            "delayed-256",
            [
                (0, 1, 0, 0),
                (1, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (1, 1, 0, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
            ],
        ),
        (
            "read-duplication",
            [
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (4, 0, 3, 0),
                (4, 0, 4, 0),
            ],
        ),
        (
            "nvidia-residency-no-thrashing",
            [
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (2, 0, 1, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (4, 0, 3, 0),
                (4, 0, 4, 0),
            ],
        ),
        (
            "nvidia-residency-535",
            [
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (2, 0, 1, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (4, 0, 3, 2),
                (4, 0, 4, 0),
            ],
        ),
        (
            "nvidia-residency-590",
            [
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (2, 0, 1, 0),
                (0, 1, 0, 0),
                (0, 1, 0, 0),
                (4, 0, 3, 2),
                (4, 0, 4, 2),
            ],
        ),
        (
            "nvidia-residency-counters",
            [
                (1, 0, 0, 0),
                (1, 0, 0, 0),
                (2, 0, 1, 0),
                (0, 1, 0, 0),
                (1, 1, 0, 0),
                (4, 0, 3, 2),
                (4, 0, 4, 2),
            ],
        ),
    ];
    let numbers = |name: &str, trace: &[Event]| {
        let m = play(&format!("on-demand-4k+lru-4k+{name}"), 1024, trace);
        (m.demand_pages, m.linked_pages, m.cpu_faults, m.throttles)
    };
    for (name, expected) in by_hand {
        for (number, (trace, expected)) in traces.iter().zip(expected).enumerate() {
            assert_eq!(numbers(name, trace), expected, "{name}, trace {number}");
        }
    }
    all_differ(&by_hand.map(|(name, row)| (name, row.map(Some).to_vec())));
    // As intended, a few votes change nothing; many short ones make the lapse shorter than the fixed one.
    let intended = "nvidia-residency-590-intended";
    assert_eq!(numbers(intended, &traces[6]), (4, 0, 4, 0));
    let mut votes = Vec::new();
    for block in 0..33 {
        // One short vote for each block, at its 50 us.
        let more =
            if block == 32 { &[0, 10, 20, 30, 40, 50, 520, 530][..] } else { &[0, 10, 20, 30, 40, 50] };
        votes.extend(bounced(more).into_iter().map(|event| Event {
            page: event.page + block * BLOCK,
            time_ns: event.time_ns + block * 10_000_000,
            ..event
        }));
    }
    // After 32 of them the lapse is 437.5 us, and 470 us without a move are the end of it. With a fixed one the device
    // is throttled at 520 us and at the end of the nap, and the CPU after it likewise.
    assert_eq!(numbers(intended, &votes).3, 0);
    assert_eq!(numbers("nvidia-residency-535", &votes).3, 4);
    assert_eq!(by_hand.len() + 1, names("residency").len(), "a residency is not compared");
}

#[test]
fn batchings() {
    let at_once = |touches: &[(u16, u64)]| -> Vec<Event> {
        touches.iter().map(|(engine, page)| Event::access(0, BASE + page, Access::Read, *engine)).collect()
    };
    // One page three times by one engine, and a page of another block.
    let merged = at_once(&[(0, 0), (0, 0), (0, 0), (1, 600)]);
    // 256 pages, and 44 of them again while the buffer is full.
    let flushed: Vec<_> = (0..256).map(|page| (0, page)).chain((0..44).map(|page| (1, page))).collect();
    let traces = [merged, at_once(&flushed)];
    let by_hand: [(&str, [Read; 2]); 6] = [
        // The first fault is served before the next touch, which hits.
        ("serial", [(2, 0, 2, 2), (256, 0, 256, 256)]),
        ("batch-nvidia", [(4, 2, 1, 1), (256, 0, 1, 1)]),
        ("batch-nvidia-block", [(4, 2, 1, 2), (300, 0, 2, 2)]),
        ("batch-nvidia-batch", [(4, 2, 1, 1), (300, 0, 2, 2)]),
        ("batch-nvidia-once", [(4, 2, 1, 1), (300, 0, 2, 1)]),
        ("batch-granule", [(4, 0, 1, 1), (300, 0, 2, 2)]),
    ];
    for (name, expected) in by_hand {
        for (number, (trace, expected)) in traces.iter().zip(expected).enumerate() {
            let limits = Limits { outstanding: 300, ..Limits::new(4 << 20) };
            let cost = Cost { replay_ns: 1000, ..Cost::FREE };
            let m = play_with(&format!("on-demand-4k+lru-4k+{name}"), limits, cost, trace);
            let replays = m.phase_ns[fault_sim::replay::Phase::Replay as usize] / 1000;
            assert_eq!(
                (m.faults, m.faults_coalesced, m.batches, replays),
                expected,
                "{name}, trace {number}"
            );
        }
    }
    all_differ(&by_hand.map(|(name, row)| (name, row.map(Some).to_vec())));
    assert_eq!(by_hand.len(), names("batching").len(), "a batching is not compared");
}
