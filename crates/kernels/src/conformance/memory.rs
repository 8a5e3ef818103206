//! Cases of memory: copies, host tensors, conversions, and the account of bytes.

use candle_core::{DType, Device, Tensor};
use half::f16;

use super::argument::{Argument, Placed, round};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::compare::same_bits;
use super::tolerance::Tolerance;
use super::{FLOATS, Failure, type_pairs};
use crate::backend::{Backend, Outcome};
use crate::buffer::{Buffer, Element};
use crate::error::KernelError;

/// The f32 right above the middle of two neighbours in bf16: whoever drops digits before rounding takes it for a tie.
const JUST_ABOVE_A_TIE: f64 = 1.0 + 1.0 / 256.0 + 1.0 / 8_388_608.0;

const LENGTHS: [usize; 5] = [0, 1, 15, 64, 1001];

#[derive(Debug)]
struct FillZero;

impl Kernel<1> for FillZero {
    fn call<B: Backend>(&self, on: &B, [target]: &mut [Placed<B>; 1]) -> Outcome<Reply> {
        on.fill_zero(target.get_mut()).map(Reply::from)
    }
}

pub(super) fn fill_zero<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for len in LENGTHS {
        for element in FLOATS {
            let target = Argument::floats("target", element, vec![0.0; len]);
            bench.agree(&FillZero, [target.overwritten(Tolerance::Exact)])?;
        }
        let target = Argument::indices("target", &vec![0; len]);
        bench.agree(&FillZero, [target.overwritten(Tolerance::Exact)])?;
    }
    for element in [Element::F32, Element::Bf16, Element::U32] {
        let zeros = bench.subject.zeros(element, 37)?;
        expect(zeros.element() == element && zeros.len() == 37, || format!("zeros of {element:?} are something else"))?;
        let values = bench.subject.read(zeros.view(), &[37])?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        expect(values.iter().all(|v| *v == 0.0), || format!("zeros of {element:?} are not zero"))?;
    }
    Ok(())
}

#[derive(Debug)]
struct Copy;

impl Kernel<2> for Copy {
    fn call<B: Backend>(&self, on: &B, [source, target]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.copy(source.get(), target.get_mut()).map(Reply::from)
    }
}

pub(super) fn copy<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for len in LENGTHS {
        for (from, to) in type_pairs() {
            let tolerance =
                if (from, to) == (Element::F32, Element::Bf16) { Tolerance::operations(0.0) } else { Tolerance::Exact };
            let arguments = [
                Argument::floats("source", from, bench.draw.normals(len)),
                Argument::floats("target", to, vec![0.0; len]).overwritten(tolerance),
            ];
            bench.agree(&Copy, arguments.clone())?;
            if len == 15 {
                bench.refuses_faults(&Copy, &arguments)?;
            }
        }
        let ids = bench.draw.indices(len, usize::MAX >> 32);
        let target = Argument::indices("target", &vec![0; len]).overwritten(Tolerance::Exact);
        let arguments = [Argument::indices("source", &ids), target];
        bench.agree(&Copy, arguments.clone())?;
        if len == 15 {
            bench.refuses_faults(&Copy, &arguments)?;
        }
    }
    bfloat16_is_rounded_to_nearest_even(bench)
}

/// f32 values between two neighbours in bf16, in any position of a vector.
fn bfloat16_is_rounded_to_nearest_even<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    let mut values =
        vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0, 1.0 + 1.0 / 256.0 + 1e-6, 3.4e38, 0.0];
    values.extend([
        JUST_ABOVE_A_TIE,
        -JUST_ABOVE_A_TIE,
        f64::from(f32::MIN_POSITIVE),
        f64::INFINITY,
        f64::NEG_INFINITY,
    ]);
    values.extend(bench.draw.normals(200));
    let source = Argument::floats("source", Element::F32, values);
    let target = Argument::floats("target", Element::Bf16, vec![0.0; source.values.len()]);
    let rounds = is_stored_rounded(bench.subject)?;
    let expected: Vec<f64> = source.values.iter().map(|&v| if rounds { round(Element::Bf16, v) } else { v }).collect();
    let [_, got] = bench.on_subject(&Copy, &[source.clone(), target])?;
    let wrong = (0..got.len()).find(|&i| got[i] != expected[i]);
    expect(wrong.is_none(), || {
        let i = wrong.unwrap_or_default();
        format!("copy of {} to Bf16 gave {} instead of {}", source.values[i], got[i], expected[i])
    })?;

    let not_a_number = Argument::floats("source", Element::F32, vec![f64::NAN; 17]);
    let target = Argument::floats("target", Element::Bf16, vec![0.0; 17]);
    let [_, got] = bench.on_subject(&Copy, &[not_a_number, target])?;
    expect(got.iter().all(|v| v.is_nan()), || "copy of NaN to Bf16 gave a number".to_owned())
}

/// Does it store what a type can represent? The reference stores f64 for every float.
fn is_stored_rounded<B: Backend>(backend: &B) -> Result<bool, Failure> {
    let buffer = backend.zeros(Element::F32, 1)?;
    Ok(backend.read(buffer.view(), &[1])?.dtype() != DType::F64)
}

/// Host tensors of every type to floats and back, views into the middle, and what does not fit.
pub(super) fn host_copies<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    let rounds = is_stored_rounded(bench.subject)?;
    for len in LENGTHS {
        let mut values = bench.draw.normals(len);
        values.iter_mut().step_by(7).for_each(|value| *value = JUST_ABOVE_A_TIE);
        for element in FLOATS {
            for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
                // Whether an f64 goes to bf16 at once or through f32 is left open: give it f32's digits.
                let digits = |&v: &f64| if element == Element::Bf16 { round(Element::F32, v) } else { v };
                let host = Tensor::from_vec(values.iter().map(digits).collect(), len, &Device::Cpu)?.to_dtype(dtype)?;
                let want = host.to_dtype(DType::F64)?.to_vec1::<f64>()?.into_iter();
                let want: Vec<f64> = if rounds { want.map(|v| round(element, v)).collect() } else { want.collect() };
                let around = Argument::floats("target", element, vec![0.0; len]);
                let mut placed = Placed::place(bench.subject, &around, &mut bench.draw)?;
                bench.subject.write(&host, placed.get_mut())?;
                let got = placed.values(bench.subject, "target")?;
                expect(same_bits(&got, &want), || format!("a host tensor of {dtype:?} was not kept as {element:?}"))?;

                let read = bench.subject.read(placed.get(), &[1, len])?;
                let stored = if element == Element::F32 { DType::F32 } else { DType::BF16 };
                let stored = if rounds { stored } else { DType::F64 };
                expect(read.dtype() == stored && read.dims() == [1, len], || {
                    format!("read {:?} of shape {:?} instead of {stored:?} of [1, {len}]", read.dtype(), read.dims())
                })?;
                let singles: Vec<f64> = bench.subject.read_f32(placed.get())?.into_iter().map(f64::from).collect();
                let want: Vec<f64> = want.into_iter().map(|v| f64::from(v as f32)).collect();
                expect(same_bits(&singles, &want), || format!("read_f32 of {element:?} gave other values"))?;
            }
        }
        let ids = bench.draw.indices(len, usize::MAX >> 32);
        let around = Argument::indices("target", &vec![0; len]);
        let mut placed = Placed::place(bench.subject, &around, &mut bench.draw)?;
        bench.subject.write_u32(&ids, placed.get_mut())?;
        placed.values(bench.subject, "target")?;
        expect(bench.subject.read_u32(placed.get())? == ids, || "read_u32 gave other indices".to_owned())?;
        let read = bench.subject.read(placed.get(), &[len])?;
        expect(read.dtype() == DType::U32, || format!("indices were read as {:?}", read.dtype()))?;
    }
    let halves = Tensor::from_vec(vec![f16::from_f64(1.5); 2], (1, 2), &Device::Cpu)?;
    let mut buffer = bench.subject.zeros(Element::Bf16, 2)?;
    bench.subject.write(&halves, buffer.view_mut())?;
    expect(bench.subject.read_f32(buffer.view())? == [1.5, 1.5], || "an F16 matrix was not written".to_owned())?;
    host_faults(bench.subject)
}

fn host_faults<B: Backend>(backend: &B) -> Checked {
    let mut floats = backend.zeros(Element::F32, 3)?;
    let mut ids = backend.zeros(Element::U32, 3)?;
    let tensor = |len: usize, dtype| Tensor::zeros(len, dtype, &Device::Cpu);
    let refused = |what: &str, outcome: Outcome, length: bool| match outcome {
        Err(KernelError::Length { .. }) if length => Ok(()),
        Err(KernelError::Element { .. }) if !length => Ok(()),
        other => Err(Failure::wrong(format!("{what} gave {other:?}"))),
    };
    refused("write of 4 into 3", backend.write(&tensor(4, DType::F32)?, floats.view_mut()), true)?;
    refused("write of floats into U32", backend.write(&tensor(3, DType::F32)?, ids.view_mut()), false)?;
    refused("write of U32 into floats", backend.write(&tensor(3, DType::U32)?, floats.view_mut()), false)?;
    refused("write_u32 of 2 into 3", backend.write_u32(&[1, 2], ids.view_mut()), true)?;
    refused("write_u32 into floats", backend.write_u32(&[1, 2, 3], floats.view_mut()), false)?;
    refused("read of 3 as 2 by 2", backend.read(floats.view(), &[2, 2]).map(drop), true)?;
    refused("read_u32 of floats", backend.read_u32(floats.view()).map(drop), false)?;
    refused("read_f32 of U32", backend.read_f32(ids.view()).map(drop), false)?;
    match backend.write(&tensor(3, DType::I64)?, ids.view_mut()) {
        Err(KernelError::Shape { .. } | KernelError::Element { .. }) => Ok(()),
        other => Err(Failure::wrong(format!("write of I64 into U32 gave {other:?}"))),
    }
}

/// What is alive counts, what is dropped does not, the peak stays until it is reset.
///
/// Only inequalities: clones of the backend may allocate at the same time.
pub(super) fn account<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    let backend = bench.subject;
    backend.synchronize()?;
    backend.reset_peak();
    let before = backend.memory();
    let buffers = [Element::F32, Element::Bf16, Element::U32].map(|element| (element, backend.alloc(element, 10_000)));
    let mut bytes = 0;
    for (element, buffer) in &buffers {
        let buffer = buffer.as_ref().map_err(|e| Failure::wrong(e.to_string()))?;
        bytes += buffer.len() * element.bytes();
    }
    let during = backend.memory();
    let line = |what: &str| format!("{what}: {before:?}, then with {bytes} bytes more {during:?}");
    expect(during.live_bytes >= before.live_bytes + bytes, || line("buffers alive are not counted"))?;
    expect(during.peak_bytes >= during.live_bytes, || line("the peak is below what is alive"))?;
    expect(during.held_bytes >= during.live_bytes, || line("less is held than is alive"))?;
    drop(buffers);
    let after = backend.memory();
    expect(after.live_bytes == before.live_bytes, || format!("dropped buffers count: {before:?}, then {after:?}"))?;
    expect(after.peak_bytes >= during.live_bytes, || format!("the peak was forgotten: {during:?}, then {after:?}"))?;
    backend.reset_peak();
    let reset = backend.memory();
    expect(reset.peak_bytes == reset.live_bytes, || format!("the peak was not reset: {reset:?}"))
}

fn expect(holds: bool, otherwise: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(Failure::wrong(otherwise())) }
}
