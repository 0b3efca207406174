//! Whatever a file holds, importing it ends: with events that a trace can hold, or with an error of its own kind.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fault_sim::import::{Format, ImportError, Settings};
use fault_sim::seed::{below, word};
use fault_sim::trace::{Event, EventKind};

use super::support::{Folder, fixture, imported};
use super::uvm_tools::queue;

/// Changed files for each fixture.
const MUTANTS: u64 = 2000;
/// Of a long text only the beginning is changed.
const MOST_BYTES: usize = 8 << 10;
/// What breaks parsers: numbers at the edges, separators, bytes that are no text.
const PIECES: [&[u8]; 18] = [
    b"18446744073709551615",
    b"18446744073709551616",
    b"ffffffffffffffff",
    b"0xffffffffffffffff",
    b"-1",
    b"0x",
    b"\n",
    b"\r\n",
    b" ",
    b",",
    b"(",
    b")",
    b"=>",
    b"@",
    b"[",
    b"\xff\xfe",
    "\u{2003}\u{e9}".as_bytes(),
    b"\0\0\0\0\0\0\0\0",
];

/// A file, changed in one to four places as a seed says.
fn mutant(good: &[u8], seed: u64) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for change in 0..1 + below(seed, 0, 4) {
        let pick = |index, end: usize| below(seed, change * 8 + index, end.max(1) as u64) as usize;
        let at = pick(1, bytes.len());
        let end = (at + pick(2, 64)).min(bytes.len());
        match pick(3, 7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << pick(4, 8),
            1 if at < bytes.len() => bytes[at] = word(seed, change * 8 + 5) as u8,
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..end)),
            4 => {
                let part = bytes[at..end].to_vec();
                let to = pick(4, bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            5 => {
                let piece = PIECES[pick(4, PIECES.len())];
                bytes.splice(at..end, piece.iter().copied());
            }
            _ => {
                let piece = PIECES[pick(4, PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes
}

/// Whether a trace can hold it.
fn can_be(event: &Event) -> bool {
    let single = matches!(event.kind, EventKind::Access | EventKind::DeviceFault | EventKind::CpuFault);
    let pages = u64::from(event.pages);
    pages > 0 && (!single || pages == 1) && event.page < 1 << 52 && pages <= (1 << 52) - event.page
}

/// Imports changed files, strictly and leniently in turn, of a named format and of one that must be found.
fn try_all(name: &str, good: &[u8], format: Format) {
    let folder = Folder::new();
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..MUTANTS {
        let path = folder.with("mutant", mutant(good, seed));
        let settings = Settings {
            format: (seed % 3 == 0).then_some(format),
            lenient: seed % 2 == 0,
            pids: if seed % 5 == 0 { fault_sim::import::Pids::All } else { Default::default() },
            ..Settings::default()
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| imported(&path, &settings)));
        match outcome.unwrap_or_else(|_| panic!("{name}, seed {seed}: it panics")) {
            Ok((report, events)) => {
                taken += 1;
                let counted = report.kinds.iter().map(|(_, count)| count).sum::<u64>();
                assert_eq!(
                    (report.events, counted),
                    (events.len() as u64, events.len() as u64),
                    "seed {seed}"
                );
                assert!(settings.lenient || report.skipped == 0, "{name}, seed {seed}");
                for event in &events {
                    assert!(can_be(event), "{name}, seed {seed}: {event:?}");
                }
            }
            Err(error) => {
                refused += 1;
                let sentence = error.to_string();
                assert!(!sentence.contains('\n'), "{name}, seed {seed}: {sentence}");
                let expected = !matches!(error, ImportError::Io { .. } | ImportError::Trace(_));
                assert!(expected, "{name}, seed {seed}: {sentence}");
            }
        }
    }
    // Both happen, or the changes do not reach what they are meant for.
    assert!(taken > MUTANTS / 50 && refused > MUTANTS / 50, "{name}: {taken} taken, {refused} refused");
}

fn texts(names: &[(&str, Format)]) {
    for (name, format) in names {
        let mut good = fixture(name);
        good.truncate(MOST_BYTES);
        if let Some(end) = good.iter().rposition(|byte| *byte == b'\n') {
            good.truncate(end + 1);
        }
        try_all(name, &good, *format);
    }
}

#[test]
fn texts_of_cpu_programs() {
    texts(&[
        ("ftrace.txt", Format::Ftrace),
        ("perf-script.txt", Format::PerfScript),
        ("perf-trace.txt", Format::PerfTrace),
        ("lackey.txt", Format::Lackey),
        ("touches.csv", Format::Csv),
    ]);
}

#[test]
fn texts_of_drivers() {
    texts(&[
        ("prq_report.txt", Format::Prq),
        ("kfd.txt", Format::Kfd),
        ("xe.txt", Format::Xe),
        ("uvm-eval-14.txt", Format::UvmEval),
        ("uvm-eval-15.txt", Format::UvmEval),
    ]);
}

#[test]
fn queues() {
    try_all("v1", &queue("uvm-tools-v1.hex"), Format::UvmToolsV1);
    try_all("v2", &queue("uvm-tools-v2.hex"), Format::UvmToolsV2);
}

#[test]
fn data_bases() {
    try_all("nsys", &fixture("nsys.sqlite"), Format::Nsys);
}

/// A file of one format, said to be of another.
#[test]
fn every_format_reads_every_fixture_or_says_why_not() {
    use clap::ValueEnum;
    let folder = Folder::new();
    let names =
        std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/import/fixtures")).expect("fixtures");
    for name in names.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()) {
        let path = folder.with("t", fixture(&name));
        for format in Format::value_variants() {
            let settings = Settings { format: Some(*format), lenient: true, ..Settings::default() };
            if let Ok((report, events)) = imported(&path, &settings) {
                assert_eq!(report.events, events.len() as u64);
                assert!(events.iter().all(can_be), "{name} as {}", format.name());
            }
        }
    }
}
