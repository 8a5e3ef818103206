//! Every CUDA kernel compiles to machine code for every architecture that the backend runs on, without a card.
//!
//! Where NVRTC is not on the machine this says so and asks nothing, unless `CAMBIUM_REQUIRE_NVRTC=1`;
//! `eval "$(tests/cuda-toolchain.sh)"` gets it.
#![cfg(feature = "cuda")]

use std::env;
use std::io::{self, Write as _};

use cambium_kernels::cuda::compile::{compile_all, entries, is_available};

/// Every source's cubin has every entry point that the backend may ask for.
fn compiles_for(arch: &str) {
    if !is_available() {
        let required = env::var("CAMBIUM_REQUIRE_NVRTC").is_ok_and(|value| value == "1");
        assert!(!required, "NVRTC is not on this machine; run: eval \"$(tests/cuda-toolchain.sh)\"");
        // Past the test harness, which shows the output of failed tests only.
        writeln!(io::stderr(), "skipped: NVRTC is not on this machine, so no kernel was compiled for {arch}")
            .expect("stderr is open");
        return;
    }
    let cubins = compile_all(arch).unwrap_or_else(|error| panic!("{error}"));
    let entries = entries();
    assert_eq!(cubins.len(), entries.len());
    for ((file, cubin), (of, names)) in cubins.iter().zip(&entries) {
        assert_eq!(file, of);
        assert!(cubin.starts_with(b"\x7fELF"), "{file} for {arch} is no ELF file");
        assert!(!names.is_empty(), "{file} has no kernels");
        for name in names {
            // As a symbol: between zero bytes, since one kernel's name may begin with another's.
            let symbol = [b"\0", name.as_bytes(), b"\0"].concat();
            assert!(cubin.windows(symbol.len()).any(|part| part == symbol), "{file} for {arch} has no {name}");
        }
    }
}

#[test]
fn every_kernel_compiles_for_ampere() {
    compiles_for("sm_80");
}

#[test]
fn every_kernel_compiles_for_hopper() {
    compiles_for("sm_90a");
}

#[test]
fn every_kernel_compiles_for_blackwell() {
    compiles_for("sm_100");
}

#[test]
fn an_architecture_that_there_is_not_is_refused_with_what_the_compiler_says() {
    if is_available() {
        let error = compile_all("sm_1").expect_err("no compiler takes this").to_string();
        assert!(error.contains("sm_1") && error.contains("NVRTC_ERROR_INVALID_OPTION"), "{error}");
    }
}
