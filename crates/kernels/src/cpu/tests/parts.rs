//! Work that is cut into several parts, the last of them short: it agrees with the reference backend, and on one, two
//! and three threads has the same bits. The conformance suite's shapes mostly fit one part.

use candle_core::{DType, Device, Tensor};
use half::bf16;

use super::super::{Cpu, Isa};
use crate::backend::{Backend, Outcome};
use crate::buffer::{Buffer, Element};
use crate::noise::normal_at;
use crate::ops::{AdamW, Columns, NoiseKey, RmsNorm, RopeShape};
use crate::reference::Reference;

/// A backend, and the type of the floats that a kernel leaves open.
struct On<'a, B> {
    backend: &'a B,
    element: Element,
}

impl<B: Backend> On<'_, B> {
    /// Normal values, the same ones on every backend.
    fn floats(&self, stream: u64, len: usize) -> Outcome<B::Buffer> {
        let mut buffer = self.backend.alloc(self.element, len)?;
        let values = (0..len as u64).map(|i| normal_at(NoiseKey { seed: 17, stream }, i));
        let rounded = values.map(|value| match self.element {
            Element::Bf16 => f64::from(bf16::from_f64(value)),
            _ => f64::from(value as f32),
        });
        let host = Tensor::from_vec(rounded.collect::<Vec<f64>>(), len, &Device::Cpu)?;
        self.backend.write(&host, buffer.view_mut())?;
        Ok(buffer)
    }

    fn f32s(&self, stream: u64, len: usize) -> Outcome<B::Buffer> {
        On { backend: self.backend, element: Element::F32 }.floats(stream, len)
    }

    fn values(&self, buffer: &B::Buffer) -> Outcome<Vec<f64>> {
        let host = self.backend.read(buffer.view(), &[buffer.len()])?;
        Ok(host.to_dtype(DType::F64)?.to_vec1()?)
    }
}

/// A kernel's results, on whatever backend.
trait Kernel {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>>;
}

/// Holds a kernel to the reference on every instruction set, for either type, whatever the number of threads.
#[track_caller]
fn hold(kernel: &(impl Kernel + Sync)) {
    for element in [Element::F32, Element::Bf16] {
        let reference = On { backend: &Reference::new(), element };
        let expected = kernel.results(&reference).expect("the reference runs it");
        // Sums are of some hundred f32 terms; what is stored as bf16 has 8 bits.
        let tolerance = if element == Element::Bf16 { 4e-3 } else { 4e-6 };
        for isa in Isa::available() {
            let on_threads = |threads| {
                let cpu = Cpu::with_isa(threads, isa).expect("threads");
                cpu.run(|| kernel.results(&On { backend: &cpu, element })).expect("the kernel runs")
            };
            let found = on_threads(1);
            for threads in [2, 3] {
                assert!(on_threads(threads) == found, "{isa:?} {element:?}: {threads} threads change the bits");
            }
            for (output, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
                let distance = square(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
                let relative = (distance / square(&mut expected.iter().copied())).sqrt();
                assert!(relative <= tolerance, "{isa:?} {element:?}: output {output} is off by {relative:e}");
            }
        }
    }
}

/// Rows that are cut into four parts.
const ROWS: usize = 800;
const WIDTH: usize = 65;

struct Norm {
    accumulate: bool,
}

impl Kernel for Norm {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>> {
        let norm = RmsNorm { rows: ROWS, width: WIDTH, eps: 1e-5, accumulate: self.accumulate };
        let (x, dy, weight) = (on.floats(1, ROWS * WIDTH)?, on.floats(2, ROWS * WIDTH)?, on.f32s(3, WIDTH)?);
        let (mut y, mut dx) = (on.floats(4, ROWS * WIDTH)?, on.floats(5, ROWS * WIDTH)?);
        let (mut r, mut d_weight) = (on.f32s(6, ROWS)?, on.f32s(7, WIDTH)?);
        on.backend.rms_norm_forward(norm, x.view(), weight.view(), y.view_mut(), r.view_mut())?;
        on.backend.rms_norm_backward(
            norm,
            dy.view(),
            x.view(),
            weight.view(),
            r.view(),
            dx.view_mut(),
            d_weight.view_mut(),
        )?;
        [y, r, dx, d_weight].iter().map(|output| on.values(output)).collect()
    }
}

#[test]
fn norms_and_their_gradients_agree_across_parts() {
    hold(&Norm { accumulate: false });
    hold(&Norm { accumulate: true });
}

struct Rope {
    interleaved: bool,
}

impl Kernel for Rope {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>> {
        let (tokens, seq_len, heads, head_dim, rotary_dim) = (3 * 131, 131, 3, 41, 34);
        let shape = RopeShape {
            tokens,
            seq_len,
            heads,
            head_dim,
            rotary_start: 5,
            rotary_dim,
            interleaved: self.interleaved,
            inverse: self.interleaved,
        };
        let (table, mut x) = (on.f32s(1, seq_len * rotary_dim)?, on.floats(2, tokens * heads * head_dim)?);
        on.backend.rope(shape, table.view(), x.view_mut())?;
        Ok(vec![on.values(&x)?])
    }
}

#[test]
fn rotations_know_the_position_of_a_token_in_every_part() {
    hold(&Rope { interleaved: false });
    hold(&Rope { interleaved: true });
}

struct Gates;

impl Kernel for Gates {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>> {
        let (narrow, wide) = (ROWS * WIDTH, 2 * ROWS * WIDTH);
        let (gate_up, d_out, logit) = (on.floats(1, wide)?, on.floats(2, narrow)?, on.f32s(3, ROWS)?);
        let (mut out, mut d_gate_up) = (on.floats(4, narrow)?, on.floats(5, wide)?);
        let (mut dx, mut d_logit) = (on.floats(6, narrow)?, on.f32s(7, ROWS)?);
        let backend = on.backend;
        backend.swiglu_forward(ROWS, WIDTH, gate_up.view(), out.view_mut())?;
        backend.swiglu_backward(ROWS, WIDTH, d_out.view(), gate_up.view(), d_gate_up.view_mut())?;
        let (x, mut gated) = (gate_up.slice(0..narrow), on.floats(8, narrow)?);
        backend.sigmoid_gate_forward(ROWS, WIDTH, logit.view(), x, gated.view_mut())?;
        let (d_out, logit) = (d_out.view(), logit.view());
        backend.sigmoid_gate_backward(ROWS, WIDTH, d_out, logit, x, dx.view_mut(), d_logit.view_mut())?;
        [out, d_gate_up, gated, dx, d_logit].iter().map(|output| on.values(output)).collect()
    }
}

#[test]
fn gated_activations_and_their_gradients_agree_across_parts() {
    hold(&Gates);
}

struct Additions;

impl Kernel for Additions {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>> {
        let (x, mut sum) = (on.floats(1, ROWS * WIDTH)?, on.floats(2, ROWS * WIDTH)?);
        let (bias, mut d_bias) = (on.f32s(3, WIDTH)?, on.f32s(4, WIDTH)?);
        on.backend.add(x.view(), sum.view_mut())?;
        on.backend.bias_forward(ROWS, WIDTH, bias.view(), sum.view_mut())?;
        on.backend.bias_backward(ROWS, WIDTH, x.view(), d_bias.view_mut())?;
        [sum, d_bias].iter().map(|output| on.values(output)).collect()
    }
}

#[test]
fn sums_and_biases_agree_across_parts() {
    hold(&Additions);
}

struct Moves;

impl Kernel for Moves {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>> {
        let (repeat, narrow, wide) = (3, 70, 90);
        let rows = ROWS / repeat * repeat;
        let shape = Columns {
            rows,
            columns: WIDTH,
            source_width: narrow,
            source_start: 4,
            target_width: wide,
            target_start: 7,
            repeat,
        };
        let (source, mut target) = (on.floats(1, rows / repeat * narrow)?, on.floats(2, rows * wide)?);
        on.backend.copy_columns(shape, source.view(), target.view_mut())?;
        let back = Columns { source_width: wide, source_start: 7, target_width: narrow, target_start: 4, ..shape };
        let mut sum = on.floats(3, rows / repeat * narrow)?;
        on.backend.sum_columns(back, target.view(), sum.view_mut())?;
        let mut other = on.backend.alloc(Element::F32, source.len())?;
        on.backend.copy(source.view(), other.view_mut())?;
        [target, sum, other].iter().map(|output| on.values(output)).collect()
    }
}

#[test]
fn columns_and_copies_agree_across_parts() {
    hold(&Moves);
}

struct Steps;

impl Kernel for Steps {
    fn results<B: Backend>(&self, on: &On<'_, B>) -> Outcome<Vec<Vec<f64>>> {
        let len = 40_000;
        let step = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 7, grad_scale: 0.5 };
        let (grad, mut master, mut compute) = (on.f32s(1, len)?, on.f32s(2, len)?, on.floats(3, len)?);
        let (mut moment1, mut moment2) = (on.f32s(4, len)?, on.backend.zeros(Element::F32, len)?);
        // Twice: the first step fills the second moment.
        for _ in 0..2 {
            let (moments, compute) = ((moment1.view_mut(), moment2.view_mut()), Some(compute.view_mut()));
            on.backend.adamw(step, grad.view(), master.view_mut(), moments.0, moments.1, compute)?;
        }
        let sum = on.backend.sum_squares(compute.view())?;
        let mut outputs = vec![vec![sum]];
        for output in [master, moment1, moment2, compute] {
            outputs.push(on.values(&output)?);
        }
        Ok(outputs)
    }
}

#[test]
fn optimizer_steps_and_sums_of_squares_agree_across_parts() {
    hold(&Steps);
}
