//! The format that the bytes themselves tell.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fault_sim_fuzz::import(bytes, None));
