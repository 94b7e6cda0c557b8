#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| tidelog_fuzzing::group_record(data));
