//! Cases of the way of tokens to their experts and back.

use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::tolerance::Tolerance;
use super::{FLOATS, Failure, type_pairs};
use crate::backend::{Backend, Outcome};
use crate::buffer::Element;

/// Tokens, experts, experts per token, width.
const SIZES: [[usize; 4]; 6] =
    [[0, 3, 2, 5], [1, 1, 1, 3], [5, 7, 3, 17], [13, 16, 4, 32], [40, 5, 2, 33], [9, 60, 8, 70]];

#[derive(Debug)]
struct Sort<'a> {
    offsets: &'a [usize],
}

impl Kernel<3> for Sort<'_> {
    fn call<B: Backend>(&self, on: &B, [ids, assignment, position]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.sort_by_expert(ids.get(), self.offsets, assignment.get_mut(), position.get_mut()).map(Reply::from)
    }
}

/// Of every token K different experts, of which some have many tokens and some none.
fn choices<B: Backend>(
    bench: &mut Bench<'_, B>,
    tokens: usize,
    experts: usize,
    top_k: usize,
) -> (Vec<u32>, Vec<usize>) {
    let favourites = (top_k + experts) / 2;
    let mut ids = Vec::new();
    for _ in 0..tokens {
        let mut candidates: Vec<u32> = (0..).take(favourites.max(top_k)).collect();
        ids.extend((0..top_k).map(|_| candidates.swap_remove(bench.draw.below(candidates.len()))));
    }
    let mut offsets = vec![0; experts + 1];
    ids.iter().for_each(|&id| offsets[id as usize + 1] += 1);
    (0..experts).for_each(|e| offsets[e + 1] += offsets[e]);
    (ids, offsets)
}

fn sort_inputs(ids: &[u32]) -> [Argument; 3] {
    [
        Argument::indices("ids", ids),
        Argument::indices("assignment", ids).overwritten(Tolerance::Exact),
        Argument::indices("position", ids).overwritten(Tolerance::Exact),
    ]
}

/// `assignment` and `position` of random choices.
fn sorted<B: Backend>(
    bench: &mut Bench<'_, B>,
    [tokens, experts, top_k, _]: [usize; 4],
) -> Result<[Argument; 2], Failure> {
    let (ids, offsets) = choices(bench, tokens, experts, top_k);
    let [_, mut assignment, mut position] = bench.on_reference(&Sort { offsets: &offsets }, sort_inputs(&ids))?;
    (assignment.written, position.written) = (None, None);
    Ok([assignment, position])
}

pub(super) fn sort_by_expert<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for [tokens, experts, top_k, _] in SIZES {
        let (ids, offsets) = choices(bench, tokens, experts, top_k);
        bench.agree(&Sort { offsets: &offsets }, sort_inputs(&ids))?;
    }
    // All assignments to the last expert.
    bench.agree(&Sort { offsets: &[0, 0, 0, 4] }, sort_inputs(&[2, 2, 2, 2]))?;

    let arguments = sort_inputs(&[2, 0, 2, 1, 0]);
    let sort = Sort { offsets: &[0, 2, 3, 5] };
    bench.refuses_faults(&sort, &arguments)?;
    bench.refuses_index(&sort, arguments.clone(), 0, 3)?;
    for offsets in [&[][..], &[0, 2, 3, 4], &[0, 3, 3, 5], &[0, 2, 3, 6], &[1, 2, 3, 5]] {
        bench.refuses_shape(&Sort { offsets }, &arguments)?;
    }
    Ok(())
}

#[derive(Debug)]
struct Gather(usize, usize);

impl Kernel<3> for Gather {
    fn call<B: Backend>(&self, on: &B, [x, assignment, rows]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.gather_rows(self.0, self.1, x.get(), assignment.get(), rows.get_mut()).map(Reply::from)
    }
}

pub(super) fn gather_rows<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for size @ [tokens, _, top_k, width] in SIZES {
        for element in FLOATS {
            let [assignment, _] = sorted(bench, size)?;
            let rows = Argument::floats("rows", element, vec![0.0; tokens * top_k * width]);
            let arguments = [
                Argument::floats("x", element, bench.draw.normals(tokens * width)).matched(),
                assignment,
                rows.matched().overwritten(Tolerance::Exact),
            ];
            bench.agree(&Gather(top_k, width), arguments.clone())?;
            if tokens == 5 {
                bench.refuses_faults(&Gather(top_k, width), &arguments)?;
                bench.refuses_index(&Gather(top_k, width), arguments.clone(), 1, tokens * top_k)?;
                bench.refuses_shape(&Gather(0, width), &arguments)?;
            }
            // The rows of some experts only, as they go to one of several workers.
            let [x, mut assignment, mut rows] = arguments;
            let some = assignment.values.len() / 3..assignment.values.len() / 2;
            rows.values.truncate(some.len() * width);
            assignment.values = assignment.values[some].to_vec();
            bench.agree(&Gather(top_k, width), [x, assignment, rows])?;
        }
    }
    Ok(())
}

#[derive(Debug)]
struct Scatter(usize, usize);

impl Kernel<3> for Scatter {
    fn call<B: Backend>(&self, on: &B, [d_rows, position, dx]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.scatter_rows_add(self.0, self.1, d_rows.get(), position.get(), dx.get_mut()).map(Reply::from)
    }
}

pub(super) fn scatter_rows_add<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for size @ [tokens, _, top_k, width] in SIZES {
        for (inner, outer) in type_pairs() {
            let [_, position] = sorted(bench, size)?;
            let dx = Argument::floats("dx", outer, bench.draw.normals(tokens * width));
            let arguments = [
                Argument::floats("d_rows", inner, bench.draw.normals(tokens * top_k * width)),
                position,
                dx.updated(Tolerance::sum(top_k)),
            ];
            bench.agree(&Scatter(top_k, width), arguments.clone())?;
            if tokens == 5 {
                bench.refuses_faults(&Scatter(top_k, width), &arguments)?;
                bench.refuses_index(&Scatter(top_k, width), arguments.clone(), 1, tokens * top_k)?;
                bench.refuses_shape(&Scatter(0, width), &arguments)?;
            }
        }
    }
    Ok(())
}

#[derive(Debug)]
struct CombineForward(usize, usize);

impl Kernel<4> for CombineForward {
    fn call<B: Backend>(&self, on: &B, [expert_out, position, gates, out]: &mut [Placed<B>; 4]) -> Outcome<Reply> {
        let (expert_out, position, gates) = (expert_out.get(), position.get(), gates.get());
        on.combine_forward(self.0, self.1, expert_out, position, gates, out.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct CombineBackward(usize, usize);

impl Kernel<6> for CombineBackward {
    fn call<B: Backend>(&self, on: &B, arguments: &mut [Placed<B>; 6]) -> Outcome<Reply> {
        let [d_out, expert_out, position, gates, d_expert_out, d_gates] = arguments;
        let (d_out, expert_out, position, gates) = (d_out.get(), expert_out.get(), position.get(), gates.get());
        let (d_expert_out, d_gates) = (d_expert_out.get_mut(), d_gates.get_mut());
        on.combine_backward(self.0, self.1, d_out, expert_out, position, gates, d_expert_out, d_gates).map(Reply::from)
    }
}

fn combine_inputs<B: Backend>(
    bench: &mut Bench<'_, B>,
    size: [usize; 4],
    (inner, outer): (Element, Element),
) -> Result<[Argument; 4], Failure> {
    let [tokens, _, top_k, width] = size;
    let [_, position] = sorted(bench, size)?;
    Ok([
        Argument::floats("expert_out", inner, bench.draw.normals(tokens * top_k * width)),
        position,
        Argument::f32("gates", bench.draw.uniforms(tokens * top_k, 0.0, 1.0)),
        Argument::floats("out", outer, bench.draw.normals(tokens * width)).updated(Tolerance::sum(top_k)),
    ])
}

pub(super) fn combine_forward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for size @ [tokens, _, top_k, width] in SIZES {
        for types in type_pairs() {
            let arguments = combine_inputs(bench, size, types)?;
            bench.agree(&CombineForward(top_k, width), arguments.clone())?;
            if tokens == 5 {
                bench.refuses_faults(&CombineForward(top_k, width), &arguments)?;
                bench.refuses_index(&CombineForward(top_k, width), arguments.clone(), 1, tokens * top_k)?;
                bench.refuses_shape(&CombineForward(0, width), &arguments)?;
            }
        }
    }
    Ok(())
}

pub(super) fn combine_backward<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for size @ [tokens, _, top_k, width] in SIZES {
        for types @ (inner, outer) in type_pairs() {
            let [expert_out, position, gates, _] = combine_inputs(bench, size, types)?;
            let d_expert_out = Argument::floats("d_expert_out", inner, vec![0.0; tokens * top_k * width]);
            let d_gates = Argument::f32("d_gates", vec![0.0; tokens * top_k]);
            let arguments = [
                Argument::floats("d_out", outer, bench.draw.normals(tokens * width)),
                expert_out,
                position,
                gates,
                d_expert_out.overwritten(Tolerance::operations(2.0)),
                d_gates.overwritten(Tolerance::products(width)),
            ];
            bench.agree(&CombineBackward(top_k, width), arguments.clone())?;
            if tokens == 5 {
                bench.refuses_faults(&CombineBackward(top_k, width), &arguments)?;
                bench.refuses_index(&CombineBackward(top_k, width), arguments.clone(), 2, tokens * top_k)?;
                bench.refuses_shape(&CombineBackward(0, width), &arguments)?;
            }
        }
    }
    Ok(())
}
