//! What the conformance suite does not ask: the backend's own settings.

mod parts;

use super::*;
use crate::backend::Backend;

#[test]
fn instructions_that_the_machine_has_not_are_refused() {
    for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16] {
        let cpu = Cpu::with_isa(1, isa);
        assert_eq!(cpu.is_ok(), Isa::available().contains(&isa), "{isa:?}: {cpu:?}");
    }
}

#[test]
fn a_kernel_runs_on_the_threads_of_its_backend() {
    let cpu = Cpu::new(3).expect("threads");
    assert_eq!(cpu.threads(), 3);
    assert_eq!(cpu.run(rayon::current_num_threads), 3);
    let name = cpu.run(|| std::thread::current().name().map(str::to_owned));
    assert!(name.is_some_and(|name| name.starts_with("cambium-cpu-")));
}
