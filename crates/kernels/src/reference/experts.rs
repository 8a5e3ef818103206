//! The way of tokens to their experts and back.

use super::arguments::{Arguments, elements};
use super::{In, Out};
use crate::backend::Outcome;
use crate::buffer::Buffer;

pub(super) fn sort_by_expert(ids: In<'_>, offsets: &[usize], assignment: Out<'_>, position: Out<'_>) -> Outcome {
    let at = Arguments("sort_by_expert");
    let ids = at.indices("ids", ids, ids.len)?;
    let assignment = at.indices_mut("assignment", assignment, ids.len())?;
    let position = at.indices_mut("position", position, ids.len())?;
    at.shape(u32::try_from(ids.len()).is_ok(), || format!("{} assignments exceed 32-bit indices", ids.len()))?;
    at.shape(!offsets.is_empty(), || "offsets are empty; give one more than there are experts".to_owned())?;
    let experts = offsets.len() - 1;
    at.below("expert", ids, experts)?;

    let mut counted = vec![0; experts + 1];
    ids.iter().for_each(|&id| counted[id as usize + 1] += 1);
    (0..experts).for_each(|e| counted[e + 1] += counted[e]);
    at.shape(offsets == counted, || format!("offsets {offsets:?} do not count the ids, which make {counted:?}"))?;

    let mut sorted: Vec<u32> = (0..).take(ids.len()).collect();
    sorted.sort_by_key(|&a| ids[a as usize]); // stable
    assignment.copy_from_slice(&sorted);
    (0..).zip(&sorted).for_each(|(row, &a)| position[a as usize] = row);
    Ok(())
}

pub(super) fn gather_rows(top_k: usize, width: usize, x: In<'_>, assignment: In<'_>, rows: Out<'_>) -> Outcome {
    let at = Arguments("gather_rows");
    check_top_k(at, top_k)?;
    at.is("rows", rows.buffer, x.buffer.element())?;
    let tokens = at.rows("x", x.len, width)?;
    let x = at.floats("x", x, tokens * width)?;
    let assignment = at.indices("assignment", assignment, assignment.len)?;
    let rows = at.floats_mut("rows", rows, elements([assignment.len(), width]))?;
    at.below("assignment", assignment, tokens * top_k)?;
    for (row, &a) in rows.chunks_exact_mut(width).zip(assignment) {
        let token = a as usize / top_k;
        row.copy_from_slice(&x[token * width..(token + 1) * width]);
    }
    Ok(())
}

pub(super) fn scatter_rows_add(top_k: usize, width: usize, d_rows: In<'_>, position: In<'_>, dx: Out<'_>) -> Outcome {
    let at = Arguments("scatter_rows_add");
    check_top_k(at, top_k)?;
    let tokens = at.rows("dx", dx.len, width)?;
    let row_count = at.rows("d_rows", d_rows.len, width)?;
    let dx = at.floats_mut("dx", dx, tokens * width)?;
    let d_rows = at.floats("d_rows", d_rows, row_count * width)?;
    let position = at.indices("position", position, elements([tokens, top_k]))?;
    at.below("row", position, row_count)?;
    for (dx, position) in dx.chunks_exact_mut(width).zip(position.chunks_exact(top_k)) {
        for &row in position {
            let d_row = &d_rows[row as usize * width..(row as usize + 1) * width];
            dx.iter_mut().zip(d_row).for_each(|(dx, d_row)| *dx += d_row);
        }
    }
    Ok(())
}

pub(super) fn combine_forward(
    top_k: usize,
    width: usize,
    expert_out: In<'_>,
    position: In<'_>,
    gates: In<'_>,
    out: Out<'_>,
) -> Outcome {
    let at = Arguments("combine_forward");
    check_top_k(at, top_k)?;
    let tokens = at.rows("out", out.len, width)?;
    let out = at.floats_mut("out", out, tokens * width)?;
    let expert_out = at.floats("expert_out", expert_out, elements([tokens, top_k, width]))?;
    let position = at.indices("position", position, elements([tokens, top_k]))?;
    let gates = at.f32s("gates", gates, elements([tokens, top_k]))?;
    at.below("row", position, tokens * top_k)?;
    for token in 0..tokens {
        let out = &mut out[token * width..(token + 1) * width];
        for a in token * top_k..(token + 1) * top_k {
            let row = position[a] as usize;
            let expert_out = &expert_out[row * width..(row + 1) * width];
            out.iter_mut().zip(expert_out).for_each(|(out, expert_out)| *out += gates[a] * expert_out);
        }
    }
    Ok(())
}

pub(super) fn combine_backward(
    top_k: usize,
    width: usize,
    d_out: In<'_>,
    expert_out: In<'_>,
    position: In<'_>,
    gates: In<'_>,
    d_expert_out: Out<'_>,
    d_gates: Out<'_>,
) -> Outcome {
    let at = Arguments("combine_backward");
    check_top_k(at, top_k)?;
    let tokens = at.rows("d_out", d_out.len, width)?;
    let d_out = at.floats("d_out", d_out, tokens * width)?;
    let expert_out = at.floats("expert_out", expert_out, elements([tokens, top_k, width]))?;
    let position = at.indices("position", position, elements([tokens, top_k]))?;
    let gates = at.f32s("gates", gates, elements([tokens, top_k]))?;
    let d_expert_out = at.floats_mut("d_expert_out", d_expert_out, elements([tokens, top_k, width]))?;
    let d_gates = at.f32s_mut("d_gates", d_gates, elements([tokens, top_k]))?;
    at.below("row", position, tokens * top_k)?;
    for token in 0..tokens {
        let d_out = &d_out[token * width..(token + 1) * width];
        for a in token * top_k..(token + 1) * top_k {
            let row = position[a] as usize * width..(position[a] as usize + 1) * width;
            // out += gate * expert_out
            d_gates[a] = d_out.iter().zip(&expert_out[row.clone()]).map(|(d, e)| d * e).sum();
            d_expert_out[row].iter_mut().zip(d_out).for_each(|(d_expert, d)| *d_expert = gates[a] * d);
        }
    }
    Ok(())
}

fn check_top_k(at: Arguments, top_k: usize) -> Outcome {
    at.shape(top_k > 0, || "top_k is 0; a token needs at least one expert".to_owned())
}
