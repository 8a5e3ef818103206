use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::*;
use crate::buffer::Element;
use crate::cpu::trial::{ELEMENTS, Stored, draw, draw_indices, on_every_pool};

/// (tokens, top_k, width), the last one large enough for several parts.
const SIZES: [(usize, usize, usize); 6] = [(0, 2, 3), (1, 1, 1), (5, 2, 7), (9, 3, 64), (4, 5, 131), (150, 4, 200)];

/// Each instruction set with each pair of element types.
fn forms() -> impl Iterator<Item = (Isa, Element, Element)> {
    let pairs = ELEMENTS.into_iter().flat_map(|from| ELEMENTS.map(|to| (from, to)));
    pairs.flat_map(|(from, to)| Isa::available().into_iter().map(move |isa| (isa, from, to)))
}

fn permutation(seed: u64, count: usize) -> Vec<u32> {
    let mut rows: Vec<u32> = (0..count as u32).collect();
    rows.shuffle(&mut StdRng::seed_from_u64(seed));
    rows
}

#[test]
fn assignments_are_sorted_by_expert_and_stay_in_order_within_one() {
    for (count, experts) in [(0, 1), (1, 1), (10, 3), (1000, 17), (50, 400)] {
        let ids = draw_indices(count as u64, count, experts);
        let mut sorted: Vec<u32> = (0..count as u32).collect();
        sorted.sort_by_key(|&a| ids[a as usize]);
        let offsets: Vec<usize> = (0..=experts).map(|e| ids.iter().filter(|&&id| id < e).count()).collect();
        let (mut assignment, mut position) = (vec![9; count], vec![9; count]);
        sort_by_expert(&ids, &offsets, &mut assignment, &mut position).unwrap();
        assert_eq!(assignment, sorted, "{count} ids of {experts} experts");
        assert!(assignment.iter().enumerate().all(|(row, &a)| position[a as usize] as usize == row));
    }
}

#[test]
fn dispatched_rows_are_those_of_their_tokens_and_their_gradients_come_back_summed() {
    for (tokens, top_k, width) in SIZES {
        let seed = (tokens * 1000 + width) as u64;
        let assignments = tokens * top_k;
        // A part of all assignments is gathered; gradients come back through any rows, some of them used twice.
        let assignment = &permutation(seed, assignments)[..assignments.div_ceil(2)];
        let row_count = assignments.div_ceil(2);
        let position = draw_indices(seed, assignments, row_count.max(1) as u32);
        for (isa, from, to) in forms() {
            let what = format!("{isa:?}, {tokens} tokens, top {top_k}, width {width}, {from:?} to {to:?}, seed {seed}");
            let x = Stored::new(from, &draw(seed + 1, tokens * width));
            let rows = on_every_pool(|| {
                let mut rows = Stored::new(from, &vec![9.0; assignment.len() * width]);
                gather_rows(isa, top_k, width, x.floats(), assignment, rows.floats_mut()).unwrap();
                rows
            });
            let exact = x.exact();
            let expected = assignment.iter().flat_map(|&a| exact[a as usize / top_k * width..][..width].to_vec());
            assert_eq!(rows.exact(), expected.collect::<Vec<_>>(), "{what}");

            let d_rows = Stored::new(from, &draw(seed + 2, row_count * width));
            let before = Stored::new(to, &draw(seed + 3, tokens * width));
            let (mut expected, exact) = (before.exact(), d_rows.exact());
            for (a, &row) in position.iter().enumerate() {
                (0..width).for_each(|c| expected[a / top_k * width + c] += exact[row as usize * width + c]);
            }
            let dx = on_every_pool(|| {
                let mut dx = before.clone();
                scatter_rows_add(isa, top_k, width, d_rows.floats(), &position, dx.floats_mut()).unwrap();
                dx
            });
            dx.assert_near(&expected, 1e-6, &what); // a few roundings of sums below 8
        }
    }
}

#[test]
fn combined_rows_and_their_gradients_agree_with_plain_loops() {
    for (tokens, top_k, width) in SIZES {
        let seed = (tokens * 1000 + width) as u64;
        let assignments = tokens * top_k;
        let (position, gates) = (permutation(seed, assignments), draw(seed + 1, assignments));
        for (isa, from, to) in forms() {
            let what = format!("{isa:?}, {tokens} tokens, top {top_k}, width {width}, {from:?} to {to:?}, seed {seed}");
            let expert_out = Stored::new(from, &draw(seed + 2, assignments * width));
            let before = Stored::new(to, &draw(seed + 3, tokens * width));
            let d_out = Stored::new(to, &draw(seed + 4, tokens * width));
            let (rows, d) = (expert_out.exact(), d_out.exact());
            let (mut out, mut d_rows) = (before.exact(), vec![0.0; assignments * width]);
            let mut d_gates = vec![0.0; assignments];
            for (a, &row) in position.iter().enumerate() {
                let gate = f64::from(gates[a]);
                for (at, i) in (a / top_k * width..).zip(row as usize * width..(row as usize + 1) * width) {
                    out[at] += gate * rows[i];
                    d_gates[a] += d[at] * rows[i];
                    d_rows[i] = gate * d[at];
                }
            }

            let found = on_every_pool(|| {
                let mut out = before.clone();
                combine_forward(isa, top_k, width, expert_out.floats(), &position, &gates, out.floats_mut()).unwrap();
                out
            });
            found.assert_near(&out, 1e-6, &what); // a few roundings of sums below 8

            let (found, found_d_gates) = on_every_pool(|| {
                let mut d_rows = Stored::new(from, &vec![9.0; assignments * width]);
                let mut d_gates = vec![9.0; assignments];
                let (d, rows, target) = (d_out.floats(), expert_out.floats(), d_rows.floats_mut());
                combine_backward(isa, top_k, width, d, rows, &position, &gates, target, &mut d_gates).unwrap();
                (d_rows, d_gates)
            });
            found.assert_near(&d_rows, 1e-7, &what);
            // Sums of up to 200 products below 1, in lanes.
            Stored::F32(found_d_gates).assert_near(&d_gates, 1e-5, &what);
        }
    }
}

#[test]
fn routes_that_contradict_their_rows_are_refused() {
    let isa = Isa::detect();
    let error = sort_by_expert(&[0, 2], &[0, 1, 2], &mut [0; 2], &mut [0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "sort_by_expert: expert 2 at position 1 is not below 2");
    let error = sort_by_expert(&[0, 1], &[0, 2, 2], &mut [0; 2], &mut [0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "sort_by_expert: offsets [0, 2, 2] do not count the ids, which make [0, 1, 2]");
    let (x, mut out) = ([0.0; 4], [0.0; 4]);
    let x = Floats::F32(&x);
    let error = gather_rows(isa, 2, 2, x, &[3, 4], FloatsMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.to_string(), "gather_rows: assignment 4 at position 1 is not below 4");
    let error = gather_rows(isa, 0, 2, x, &[3, 4], FloatsMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.to_string(), "gather_rows: top_k is 0; a token needs at least one expert");
    let error = scatter_rows_add(isa, 1, 2, x, &[0, 2], FloatsMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.to_string(), "scatter_rows_add: row 2 at position 1 is not below 2");
    let error = combine_forward(isa, 1, 2, x, &[0, 2], &[0.0; 2], FloatsMut::F32(&mut out)).unwrap_err();
    assert_eq!(error.to_string(), "combine_forward: row 2 at position 1 is not below 2");
    let target = FloatsMut::F32(&mut out);
    let error = combine_backward(isa, 1, 2, x, x, &[1, 1], &[0.0; 2], target, &mut [0.0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "combine_backward: assignments 0 and 1 both name row 1; give each a row of its own");
}
