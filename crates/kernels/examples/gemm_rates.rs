//! Rates of the CPU's matrix products on the shapes of a small model, against the rate of a large square product.
//!
//! ```text
//! cargo run --release -p cambium-kernels --example gemm_rates [-- THREADS]
//! ```
//!
//! Best of several rounds, GFLOP/s, and the percentage of the square product's rate in the same types. Columns: f32;
//! bf16 with bf16 results; bf16 added to f32 results, as weight gradients are.

use std::time::{Duration, Instant};

use cambium_kernels::cpu::Cpu;
use cambium_kernels::{Backend, Buffer, Element, Gemm, GroupedGemm, GroupedProduct, KernelError};

/// Types of the factors and of the product, and whether it is added to what is there.
const TYPES: [(Element, Element, bool); 3] =
    [(Element::F32, Element::F32, false), (Element::Bf16, Element::Bf16, false), (Element::Bf16, Element::F32, true)];

/// Time spent on each figure.
const MEASURED: Duration = Duration::from_millis(400);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let threads = std::env::args().nth(1).map_or(Ok(0), |threads| threads.parse())?;
    let cpu = Cpu::new(threads)?;
    println!("{} threads, {:?}", cpu.threads(), cpu.isa());
    println!("{:34}{:>16}{:>16}{:>16}", "m x n x k", "f32", "bf16", "bf16 into f32");

    let mut ceilings = [0.0; 3];
    let plain = |m, n, k, a_transposed, b_transposed| Gemm { m, n, k, a_transposed, b_transposed, accumulate: false };
    for (name, shape) in [
        ("square", plain(2048, 2048, 2048, false, false)),
        ("query, output", plain(2048, 384, 384, false, true)),
        ("key, value", plain(2048, 128, 384, false, true)),
        ("logits", plain(1024, 8192, 384, false, true)),
        ("logits, input gradient", plain(1024, 384, 8192, false, false)),
        ("logits, weight gradient", plain(8192, 384, 1024, true, false)),
        ("query, input gradient", plain(2048, 384, 384, false, false)),
        ("query, weight gradient", plain(384, 384, 2048, true, false)),
        ("router", plain(2048, 16, 384, false, true)),
        ("router, weight gradient", plain(16, 384, 2048, true, false)),
        ("one column", plain(2048, 1, 384, false, true)),
    ] {
        let lengths = [shape.m * shape.k, shape.k * shape.n, shape.m * shape.n];
        let rates = rates(&cpu, shape.flops(), lengths, |accumulate, a, b, c| {
            cpu.gemm(Gemm { accumulate, ..shape }, a.into(), b.into(), c.into())
        })?;
        if name == "square" {
            ceilings = rates;
        }
        print_row(&format!("{name} {}x{}x{}", shape.m, shape.n, shape.k), rates, ceilings);
    }

    use GroupedProduct::{Forward, InputGradient, WeightGradient};
    for (groups, rows, n, k) in [(16, 512, 384, 384), (16, 512, 384, 192), (64, 256, 192, 192)] {
        let offsets = uneven_offsets(groups, rows);
        let total = offsets[groups];
        let (inputs, outputs, weights) = (total * k, total * n, groups * n * k);
        for (name, product, lengths) in [
            ("experts", Forward, [inputs, weights, outputs]),
            ("experts dx", InputGradient, [outputs, weights, inputs]),
            ("experts dw", WeightGradient, [outputs, inputs, weights]),
        ] {
            let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate: false };
            let rates = rates(&cpu, shape.flops(), lengths, |accumulate, a, b, c| {
                cpu.grouped_gemm(GroupedGemm { accumulate, ..shape }, a.into(), b.into(), c.into())
            })?;
            print_row(&format!("{name} {groups} x {rows}x{n}x{k}"), rates, ceilings);
        }
    }
    Ok(())
}

type Held = <Cpu as Backend>::Buffer;

/// GFLOP/s for each of [`TYPES`].
fn rates(
    cpu: &Cpu,
    flops: u64,
    lengths: [usize; 3],
    product: impl Fn(bool, &Held, &Held, &mut Held) -> Result<(), KernelError> + Sync,
) -> Result<[f64; 3], KernelError> {
    let mut rates = [0.0; 3];
    for (rate, (factor, result, accumulate)) in rates.iter_mut().zip(TYPES) {
        let [a, b] = [filled(cpu, factor, lengths[0])?, filled(cpu, factor, lengths[1])?];
        let mut c = cpu.zeros(result, lengths[2])?;
        let best = cpu.run(|| {
            let (begun, mut best) = (Instant::now(), Duration::MAX);
            while begun.elapsed() < MEASURED {
                let start = Instant::now();
                product(accumulate, &a, &b, &mut c)?;
                best = best.min(start.elapsed());
            }
            Ok::<_, KernelError>(best)
        })?;
        *rate = flops as f64 / best.as_secs_f64() / 1e9;
    }
    Ok(rates)
}

/// Values from -1 to 1, the same in every run.
fn filled(cpu: &Cpu, element: Element, len: usize) -> Result<Held, KernelError> {
    let mut state = 1_u32;
    let values: Vec<f32> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    let tensor = candle_core::Tensor::from_vec(values, len, &candle_core::Device::Cpu)?;
    let mut buffer = cpu.alloc(element, len)?;
    cpu.write(&tensor, buffer.view_mut())?;
    Ok(buffer)
}

/// Groups of three to five quarters of `rows`.
fn uneven_offsets(groups: usize, rows: usize) -> Vec<usize> {
    let mut offsets = vec![0];
    for group in 0..groups {
        offsets.push(offsets[group] + rows * 3 / 4 + group * 7919 % (rows / 2 + 1));
    }
    offsets
}

fn print_row(name: &str, rates: [f64; 3], ceilings: [f64; 3]) {
    print!("{name:34}");
    for (rate, ceiling) in rates.into_iter().zip(ceilings) {
        print!("{:>16}", format!("{rate:.0} {:>3.0} %", 100.0 * rate / ceiling));
    }
    println!();
}
