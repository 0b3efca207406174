//! What cannot be served is refused before any work, in one sentence, with exit status 2.

use super::{fault_sim, is_refusal};

fn refused(words: &[&str], why: &str) {
    is_refusal(&fault_sim(words), &format!("{words:?}"), why);
}

#[test]
fn sizes() {
    refused(&["run", "--size", "0"], "must not be zero");
    refused(&["run", "--size", "0MiB"], "must not be zero");
    refused(&["run", "--device-memory", "0"], "must not be zero");
    refused(&["run", "--size", "64mb"], "such as 64MiB");
    refused(&["run", "--size", "-1"], "unexpected argument");
    refused(&["run", "--size", "1.5GiB"], "such as 64MiB");
    refused(&["run", "--size", "16777216TiB"], "does not fit in 64 bits");
    refused(&["run", "--size", "18446744073709551615"], "larger than the memory");
    refused(&["run", "--size", "1024TiB"], "larger than the memory");
    refused(&["run", "--device-memory", "1024TiB"], "larger than the memory");
    refused(&["run", "--device-memory", "3MiB"], "not a multiple of 2MiB");
    refused(&["run", "--size", "4KiB"], "is the least");
}

/// A list takes more memory than its bytes: what would not fit is refused, too, and not ended by the kernel half way.
#[test]
fn a_list_that_fits_by_its_bytes_only() {
    let available = fault_sim::memory::available_bytes().expect("the kernel says");
    let size = (available * 2 / 3).to_string();
    refused(
        &["run", "--workload", "list", "--size", &size, "--device-memory", "2MiB"],
        "larger than the memory",
    );
}

#[test]
fn numbers_of_workers() {
    refused(&["run", "--engines", "0"], "--engines must not be zero");
    refused(&["run", "--threads", "0"], "--threads must not be zero");
    refused(&["run", "--threads", "100000"], "more than 256");
    refused(&["run", "--engines", "many"], "invalid digit");
}

#[test]
fn unknown_names() {
    refused(&["run", "--workload", "fft"], "possible values: saxpy, sum");
    refused(&["run", "--alloc", "jemalloc"], "possible values: malloc");
    refused(&["run", "--granularity", "1MiB"], "possible values: 4KiB, 64KiB, 2MiB");
    refused(&["run", "--backend", "abacus"], "possible values: software");
    refused(&["run", "--fast"], "unexpected argument '--fast'");
    refused(&["jump"], "unrecognized subcommand 'jump'");
    refused(&[], "a command is missing");
}

#[test]
fn conflicts() {
    refused(&["run", "--json", "--json"], "cannot be used multiple times");
    refused(&["run", "--size", "4MiB", "--size", "8MiB"], "cannot be used multiple times");
    refused(&["run", "--device", "0"], "add --backend vulkan");
    refused(&["run", "--mode", "sparse"], "add --backend vulkan");
    refused(&["run", "saxpy"], "unexpected argument 'saxpy'");
}
