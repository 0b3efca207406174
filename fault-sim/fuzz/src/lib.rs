//! What all fuzz targets do: import bytes as a file.
//!
//! A target per format, and `any`, which has the format detected:
//!
//! ```text
//! cargo install cargo-fuzz
//! cd fault-sim
//! cargo +nightly fuzz run perf_script -- -max_total_time=60 fuzz/corpus/perf_script tests/import/fixtures
//! ```
//!
//! The second folder holds the seeds: the fixtures of the tests.

use std::path::PathBuf;

use fault_sim::import::{Format, Settings, import as import_file};
use fault_sim::progress::Progress;

/// Imports bytes strictly and leniently; every event that comes out must be one that a trace can hold.
pub fn import(bytes: &[u8], format: Option<Format>) {
    let path = file();
    std::fs::write(&path, bytes).expect("the folder for temporary files can be written");
    for lenient in [false, true] {
        let settings = Settings { format, lenient, ..Settings::default() };
        let mut events = Vec::new();
        if let Ok(report) = import_file(&path, &settings, &mut events, &Progress::new()) {
            assert_eq!(report.events, events.len() as u64);
            assert!(lenient || report.skipped == 0);
            for event in &events {
                let pages = u64::from(event.pages);
                assert!(pages > 0 && event.page < 1 << 52 && pages <= (1 << 52) - event.page, "{event:?}");
            }
        }
    }
}

/// A file of this process. Fuzzers run in processes of their own.
fn file() -> PathBuf {
    std::env::temp_dir().join(format!("fault-sim-fuzz-{}", std::process::id()))
}
