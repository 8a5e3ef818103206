//! The conformance suite over every backend that this machine has, one test for each kernel of each.
//!
//! Every test runs twice: with a fixed seed, and with a fresh one from the operating system. A failure prints its seed;
//! `CAMBIUM_TEST_SEED=<seed>` runs that one in place of the fresh one.

use std::collections::BTreeSet;
use std::env;
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use cambium_kernels::backend::Backend;
use cambium_kernels::conformance::{self, Verdict};
use cambium_kernels::cpu::{Cpu, Isa};
use cambium_kernels::reference::Reference;

/// The seed of the run that is the same every time. A seed that once failed can be pasted here.
const FIXED_SEED: u64 = 0xcafe_f00d;

/// From the environment, or fresh.
fn seed() -> u64 {
    let Ok(text) = env::var("CAMBIUM_TEST_SEED") else { return rand::random() };
    text.parse().unwrap_or_else(|error| panic!("CAMBIUM_TEST_SEED = {text} is not a number: {error}"))
}

/// Says once what is not tested, past the test harness, which shows the output of failed tests only.
fn announce(what: String) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(what.clone()) {
        writeln!(io::stderr(), "{what}").expect("stderr is open");
    }
}

/// Runs one case on two backends of a kind, that have to give the same bits. Where this machine cannot run them, the
/// reason is printed and nothing is asked.
fn holds<B: Backend>(case: &str, backends: Result<[B; 2], String>, may_be_missing: &[&str]) {
    let [backend, twin] = match backends {
        Ok(backends) => backends,
        Err(reason) => return announce(format!("skipped: {reason}")),
    };
    for seed in [FIXED_SEED, seed()] {
        match conformance::run(case, &backend, &twin, seed, may_be_missing) {
            Ok(Verdict::Agrees) => {}
            Ok(Verdict::Missing) => announce(format!("missing: the {} backend has no {case} kernel", backend.name())),
            Err(failure) => {
                panic!("{case} on {}: {failure}\nrun it again with CAMBIUM_TEST_SEED={seed}", backend.name())
            }
        }
    }
}

/// A module with a test for each case, on the two backends that `$make` gives.
macro_rules! conforms {
    ($module:ident, $make:expr, may_be_missing: $missing:expr) => {
        conforms!(@cases $module, $make, $missing;
            fill_zero copy host_copies account
            gemm grouped_gemm
            rms_norm_forward rms_norm_backward rope swiglu_forward swiglu_backward
            sigmoid_gate_forward sigmoid_gate_backward bias_forward bias_backward add copy_columns sum_columns
            attention_forward attention_backward
            router_forward router_backward sort_by_expert gather_rows scatter_rows_add combine_forward combine_backward
            embedding_forward embedding_backward cross_entropy
            adamw sum_squares fill_normal
        );
    };
    (@cases $module:ident, $make:expr, $missing:expr; $($case:ident)*) => {
        mod $module {
            use super::*;

            $(
                #[test]
                fn $case() {
                    holds(stringify!($case), $make, $missing);
                }
            )*

            #[test]
            fn no_case_of_the_suite_is_left_out() {
                let listed = [$(stringify!($case)),*];
                let suite: Vec<_> = conformance::cases::<Reference>().iter().map(|case| case.name).collect();
                assert_eq!(listed[..], suite[..]);
            }
        }
    };
}

conforms!(reference_agrees_with_itself_on, Ok::<_, String>([Reference::new(), Reference::new()]), may_be_missing: &[]);

/// One thread beside two: both have to give the same bits.
fn cpu(isa: Isa) -> Result<[Cpu; 2], String> {
    if !Isa::available().contains(&isa) {
        return Err(format!("this CPU has no {isa:?}"));
    }
    Ok([1, 2].map(|threads| Cpu::with_isa(threads, isa).expect("the system starts two threads")))
}

conforms!(portable_cpu_agrees_with_the_reference_on, cpu(Isa::Portable), may_be_missing: &[]);
conforms!(avx2_cpu_agrees_with_the_reference_on, cpu(Isa::Avx2), may_be_missing: &[]);
conforms!(avx512_cpu_agrees_with_the_reference_on, cpu(Isa::Avx512), may_be_missing: &[]);
conforms!(avx512_bf16_cpu_agrees_with_the_reference_on, cpu(Isa::Avx512Bf16), may_be_missing: &[]);

/// The first card. Where there is none, the reason is said and nothing is asked.
#[cfg(feature = "cuda")]
fn cuda() -> Result<[cambium_kernels::cuda::Cuda; 2], String> {
    let cuda = cambium_kernels::cuda::Cuda::new(0).map_err(|error| format!("no CUDA device ({error})"))?;
    Ok([cuda.clone(), cuda])
}

#[cfg(feature = "cuda")]
conforms!(
    cuda_agrees_with_the_reference_on,
    cuda(),
    may_be_missing: &["attention_forward", "attention_backward", "router_forward", "router_backward"]
);
