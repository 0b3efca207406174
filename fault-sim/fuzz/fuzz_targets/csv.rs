//! One format, whatever the bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fault_sim_fuzz::import(bytes, Some(fault_sim::import::Format::Csv)));
