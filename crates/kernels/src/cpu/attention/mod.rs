//! Blockwise causal attention, forward and backward (arXiv 2205.14135, 2307.08691): no (T, T) matrix exists.
//!
//! Sequences are cut into blocks of 64 tokens. A pair of a query block and a key block is a handful of small products
//! on packed operands and one pass over its scores; pairs above the diagonal are skipped, and on it each product
//! leaves out what the mask would.
//!
//! **Numerics.** Products accumulate in f32. f32 tensors: everything is f32, the exponential within 2 ulp. bf16 tensors:
//! where the machine has `vdpbf16ps`, operands of products are bf16: q, k, v, d_out as they are, probabilities and
//! gradients of scores rounded to nearest even (as flash attention on other devices does; the softmax's sum is of the
//! unrounded ones), and denormals count as zero; elsewhere they are widened and everything is f32. Results are rounded
//! once. Score statistics (greatest, sums, log sums, delta) are f32 always.
//!
//! **Invariant:** a result's bits depend on shapes, inputs and the instruction set: not on the number of threads.
//!
//! `product.rs` is the one register-tiled product, `softmax.rs` what is done to scores, both written over
//! [`form::Form`] and [`lanes::Lanes`]; `table.rs` compiles them for each instruction set; `forward.rs` and
//! `backward.rs` walk the blocks; `oracle.rs` is the same mathematics in plain f64 loops, for the tests.

mod backward;
mod form;
mod forward;
mod geometry;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
#[cfg(test)]
mod oracle;
mod pack;
mod product;
mod scratch;
mod softmax;
mod table;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod transpose_x86;

use backward::{Cut, Inputs};
use geometry::Geometry;
use table::Table;

use crate::buffer::Element;
use crate::cpu::isa::Isa;
use crate::cpu::slices::{Floats, FloatsMut};
use crate::error::KernelError;
use crate::ops::AttentionShape;

/// Causal attention on the current pool: q (B*T, N, qk), k (B*T, G, qk), v (B*T, G, v), out (B*T, N, v) of one float
/// type, `lse` (B, N, T). `out` and `lse` are overwritten.
///
/// # Errors
/// [`KernelError::Shape`] for head counts that do not divide or sizes of zero, [`KernelError::Length`] and
/// [`KernelError::Element`] for tensors that do not fit the shape or one another.
pub(crate) fn attention_forward(
    isa: Isa,
    shape: AttentionShape,
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
    out: FloatsMut<'_>,
    lse: &mut [f32],
) -> Result<(), KernelError> {
    let check = Check::new("attention_forward", shape, q.element())?;
    check.tensor("q", q.element(), q.len(), check.queries)?;
    check.tensor("k", k.element(), k.len(), check.keys)?;
    check.tensor("v", v.element(), v.len(), check.values)?;
    check.tensor("out", out.element(), out.len(), check.out)?;
    check.length("lse", lse.len(), check.lse)?;
    if check.lse == 0 {
        return Ok(());
    }
    forward::run(&Geometry::new(shape, Table::choose(isa, q.element())), q, k, v, out, lse);
    Ok(())
}

/// The gradients of [`attention_forward`] on the current pool, from its inputs, its `out` and `lse` and the gradient
/// of `out`. dq, dk and dv have the shapes of q, k and v and are overwritten. All but `lse` are of one float type.
///
/// # Errors
/// As [`attention_forward`].
pub(crate) fn attention_backward(
    isa: Isa,
    shape: AttentionShape,
    d_out: Floats<'_>,
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
    out: Floats<'_>,
    lse: &[f32],
    dq: FloatsMut<'_>,
    dk: FloatsMut<'_>,
    dv: FloatsMut<'_>,
) -> Result<(), KernelError> {
    let check = Check::new("attention_backward", shape, q.element())?;
    check.tensor("d_out", d_out.element(), d_out.len(), check.out)?;
    check.tensor("q", q.element(), q.len(), check.queries)?;
    check.tensor("k", k.element(), k.len(), check.keys)?;
    check.tensor("v", v.element(), v.len(), check.values)?;
    check.tensor("out", out.element(), out.len(), check.out)?;
    check.length("lse", lse.len(), check.lse)?;
    check.tensor("dq", dq.element(), dq.len(), check.queries)?;
    check.tensor("dk", dk.element(), dk.len(), check.keys)?;
    check.tensor("dv", dv.element(), dv.len(), check.values)?;
    if check.lse == 0 {
        return Ok(());
    }
    let geometry = Geometry::new(shape, Table::choose(isa, q.element()));
    let cut = Cut::choose(&geometry, rayon::current_num_threads());
    backward::run(&geometry, cut, Inputs { d_out, q, k, v, out, lse }, dq, dk, dv);
    Ok(())
}

/// What the tensors of a call must be.
struct Check {
    kernel: &'static str,
    element: Element,
    queries: usize,
    keys: usize,
    values: usize,
    out: usize,
    lse: usize,
}

impl Check {
    fn new(kernel: &'static str, shape: AttentionShape, element: Element) -> Result<Self, KernelError> {
        let refuse = |reason: String| KernelError::Shape { kernel, reason };
        let AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, .. } = shape;
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            let reason = format!(
                "{heads} query heads are not a multiple of {kv_heads} key/value heads; both come from the model"
            );
            return Err(refuse(reason));
        }
        if qk_dim == 0 || v_dim == 0 {
            return Err(refuse(format!("heads of {qk_dim} and {v_dim} values; both sizes must be at least 1")));
        }
        let size = |heads: usize, width: usize| {
            let product = [batch, seq_len, heads, width].into_iter().try_fold(1_usize, usize::checked_mul);
            product.ok_or_else(|| {
                refuse(format!("{shape:?} has more elements than memory has addresses; lower its sizes"))
            })
        };
        Ok(Self {
            kernel,
            element,
            queries: size(heads, qk_dim)?,
            keys: size(kv_heads, qk_dim)?,
            values: size(kv_heads, v_dim)?,
            out: size(heads, v_dim)?,
            lse: size(heads, 1)?,
        })
    }

    fn tensor(&self, argument: &'static str, found: Element, len: usize, expected: usize) -> Result<(), KernelError> {
        if found != self.element {
            return Err(KernelError::Element { kernel: self.kernel, argument, found });
        }
        self.length(argument, len, expected)
    }

    fn length(&self, argument: &'static str, found: usize, expected: usize) -> Result<(), KernelError> {
        if found != expected {
            return Err(KernelError::Length { kernel: self.kernel, argument, expected, found });
        }
        Ok(())
    }
}
