//! The way of tokens to their experts and back.

use super::arguments::{Arguments, Array, In, Out, elements};
use super::buffer::CudaBuffer;
use super::compile::{Kernel, Source};
use super::launch::{Grid, Value};
use crate::backend::Outcome;
use crate::buffer::Element;

pub(super) static SOURCE: Source = Source {
    file: "routing.cu",
    text: include_str!("routing.cu"),
    kernels: &[&FIRST_NOT_BELOW, &GATHER, &SCATTER, &COMBINE_FORWARD, &COMBINE_BACKWARD],
};
static FIRST_NOT_BELOW: Kernel = Kernel { source: &SOURCE, name: "first_not_below", types: 0 };
static GATHER: Kernel = Kernel { source: &SOURCE, name: "gather_rows", types: 1 };
static SCATTER: Kernel = Kernel { source: &SOURCE, name: "scatter_rows_add", types: 2 };
static COMBINE_FORWARD: Kernel = Kernel { source: &SOURCE, name: "combine_forward", types: 2 };
static COMBINE_BACKWARD: Kernel = Kernel { source: &SOURCE, name: "combine_backward", types: 3 };

/// Position and value of the first index that is not below `bound`. The host waits for the answer.
pub(super) fn first_not_below(at: Arguments<'_>, indices: Array, bound: usize) -> Outcome<Option<(usize, u32)>> {
    const NONE: u32 = u32::MAX;
    // Any index is below a bound of more than 32 bits.
    let Ok(bound) = u32::try_from(bound) else { return Ok(None) };
    if indices.len == 0 {
        return Ok(None);
    }
    at.shape(indices.len < NONE as usize, || format!("{} indices exceed 32-bit positions; use fewer", indices.len))?;
    let memory = CudaBuffer::new(at.1, Element::U32, 1)?;
    let first = Array { address: memory.address(), element: Element::U32, len: 1 };
    at.fill_bytes(first, 0xff)?;
    let arguments = [indices.len.into(), Value::U32(bound), indices.into(), first.into()];
    // SAFETY: the kernel keeps to the indices' length and to the one value of `first`.
    unsafe { at.1.launch(&FIRST_NOT_BELOW, &[], Grid::elements(at.0, indices.len)?, &arguments) }?;
    let position = at.download::<u32>(first)?[0];
    if position == NONE {
        return Ok(None);
    }
    let position = position as usize;
    Ok(Some((position, at.download::<u32>(indices.part(position, 1))?[0])))
}

/// Sorted on the host, by counting: A indices travel there and 2A back, while the card waits.
pub(super) fn sort_by_expert(
    at: Arguments<'_>,
    ids: In<'_>,
    offsets: &[usize],
    assignment: Out<'_>,
    position: Out<'_>,
) -> Outcome {
    let ids = at.indices("ids", ids, ids.len)?;
    let assignment = at.indices("assignment", &assignment, ids.len)?;
    let position = at.indices("position", &position, ids.len)?;
    at.shape(u32::try_from(ids.len).is_ok(), || format!("{} assignments exceed 32-bit indices; use fewer", ids.len))?;
    at.shape(!offsets.is_empty(), || "offsets are empty; give one more than there are experts".to_owned())?;
    let experts = offsets.len() - 1;
    let ids: Vec<u32> = at.download(ids)?;
    at.below_on_host("expert", &ids, experts)?;

    let mut counted = vec![0; experts + 1];
    ids.iter().for_each(|&id| counted[id as usize + 1] += 1);
    (0..experts).for_each(|e| counted[e + 1] += counted[e]);
    at.shape(offsets == counted, || {
        format!("offsets {offsets:?} do not count the ids, which make {counted:?}; take them from the router's counts")
    })?;
    let mut next = counted;
    let (mut sorted, mut rows) = (vec![0u32; ids.len()], vec![0u32; ids.len()]);
    for ((a, id), row) in (0..).zip(&ids).zip(&mut rows) {
        let at = &mut next[*id as usize];
        sorted[*at] = a;
        *row = *at as u32;
        *at += 1;
    }
    at.upload(&sorted, assignment)?;
    at.upload(&rows, position)
}

pub(super) fn gather_rows(
    at: Arguments<'_>,
    top_k: usize,
    width: usize,
    x: In<'_>,
    assignment: In<'_>,
    rows: Out<'_>,
) -> Outcome {
    check_top_k(at, top_k)?;
    let tokens = at.rows("x", x.len, width)?;
    let x = at.floats("x", x, elements([tokens, width]))?;
    let assignment = at.indices("assignment", assignment, assignment.len)?;
    let rows = at.of(x.element, "rows", &rows, elements([assignment.len, width]))?;
    at.below("assignment", assignment, elements([tokens, top_k]))?;
    if rows.len == 0 {
        return Ok(());
    }
    let grid = Grid::rows(at.0, assignment.len, width)?;
    let arguments = [top_k.into(), width.into(), x.into(), assignment.into(), rows.into()];
    // SAFETY: a block for each assignment, of which rows has `width` values; assignments divided by `top_k` are below
    // `tokens`, which x has rows of `width` of.
    unsafe { at.1.launch(&GATHER, &[x.element], grid, &arguments) }
}

pub(super) fn scatter_rows_add(
    at: Arguments<'_>,
    top_k: usize,
    width: usize,
    d_rows: In<'_>,
    position: In<'_>,
    dx: Out<'_>,
) -> Outcome {
    check_top_k(at, top_k)?;
    let tokens = at.rows("dx", dx.len, width)?;
    let row_count = at.rows("d_rows", d_rows.len, width)?;
    let dx = at.floats("dx", &dx, elements([tokens, width]))?;
    let d_rows = at.floats("d_rows", d_rows, elements([row_count, width]))?;
    let position = at.indices("position", position, elements([tokens, top_k]))?;
    at.below("row", position, row_count)?;
    if tokens == 0 {
        return Ok(());
    }
    let arguments = [top_k.into(), width.into(), d_rows.into(), position.into(), dx.into()];
    let grid = Grid::rows(at.0, tokens, width)?;
    // SAFETY: a block for each of `tokens`, which dx has rows of `width` of and position `top_k` indices of, each below
    // the number of rows of `width` in d_rows.
    unsafe { at.1.launch(&SCATTER, &[d_rows.element, dx.element], grid, &arguments) }
}

pub(super) fn combine_forward(
    at: Arguments<'_>,
    top_k: usize,
    width: usize,
    expert_out: In<'_>,
    position: In<'_>,
    gates: In<'_>,
    out: Out<'_>,
) -> Outcome {
    check_top_k(at, top_k)?;
    let tokens = at.rows("out", out.len, width)?;
    let out = at.floats("out", &out, elements([tokens, width]))?;
    let expert_out = at.floats("expert_out", expert_out, elements([tokens, top_k, width]))?;
    let position = at.indices("position", position, elements([tokens, top_k]))?;
    let gates = at.f32s("gates", gates, elements([tokens, top_k]))?;
    at.below("row", position, tokens * top_k)?;
    if tokens == 0 {
        return Ok(());
    }
    let arguments = [top_k.into(), width.into(), expert_out.into(), position.into(), gates.into(), out.into()];
    let grid = Grid::rows(at.0, tokens, width)?;
    // SAFETY: a block for each of `tokens`, which out has rows of `width` of, and position and gates `top_k` values of;
    // positions are below `tokens * top_k`, which expert_out has rows of `width` of.
    unsafe { at.1.launch(&COMBINE_FORWARD, &[expert_out.element, out.element], grid, &arguments) }
}

pub(super) fn combine_backward(
    at: Arguments<'_>,
    top_k: usize,
    width: usize,
    d_out: In<'_>,
    expert_out: In<'_>,
    position: In<'_>,
    gates: In<'_>,
    d_expert_out: Out<'_>,
    d_gates: Out<'_>,
) -> Outcome {
    check_top_k(at, top_k)?;
    let tokens = at.rows("d_out", d_out.len, width)?;
    let d_out = at.floats("d_out", d_out, elements([tokens, width]))?;
    let expert_out = at.floats("expert_out", expert_out, elements([tokens, top_k, width]))?;
    let position = at.indices("position", position, elements([tokens, top_k]))?;
    let gates = at.f32s("gates", gates, elements([tokens, top_k]))?;
    let d_expert_out = at.floats("d_expert_out", &d_expert_out, elements([tokens, top_k, width]))?;
    let d_gates = at.f32s("d_gates", &d_gates, elements([tokens, top_k]))?;
    at.below("row", position, tokens * top_k)?;
    if tokens == 0 {
        return Ok(());
    }
    let arguments = [
        top_k.into(),
        width.into(),
        d_out.into(),
        expert_out.into(),
        position.into(),
        gates.into(),
        d_expert_out.into(),
        d_gates.into(),
    ];
    let types = [d_out.element, expert_out.element, d_expert_out.element];
    let grid = Grid::rows(at.0, tokens * top_k, width)?;
    // SAFETY: a block for each of `tokens * top_k` assignments, which expert_out and d_expert_out have rows of `width` of,
    // and position, gates and d_gates a value of; positions are below that number; d_out has `tokens` rows of `width`.
    unsafe { at.1.launch(&COMBINE_BACKWARD, &types, grid, &arguments) }
}

fn check_top_k(at: Arguments<'_>, top_k: usize) -> Outcome {
    at.shape(top_k > 0, || "top_k is 0; a token needs at least one expert".to_owned())
}
