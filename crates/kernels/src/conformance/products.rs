//! Cases of the matrix products.

use super::Failure;
use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::tolerance::Tolerance;
use crate::backend::{Backend, Outcome};
use crate::buffer::Element;
use crate::ops::{Gemm, GroupedGemm, GroupedProduct};

/// Types of the factors and of the product.
const TYPES: [(Element, Element); 3] =
    [(Element::F32, Element::F32), (Element::Bf16, Element::Bf16), (Element::Bf16, Element::F32)];

impl Kernel<3> for Gemm {
    fn call<B: Backend>(&self, on: &B, [a, b, c]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.gemm(*self, a.get(), b.get(), c.get_mut()).map(Reply::from)
    }
}

impl Kernel<3> for GroupedGemm<'_> {
    fn call<B: Backend>(&self, on: &B, [a, b, c]: &mut [Placed<B>; 3]) -> Outcome<Reply> {
        on.grouped_gemm(*self, a.get(), b.get(), c.get_mut()).map(Reply::from)
    }
}

pub(super) fn gemm<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    // Empty sides, single rows and columns, sizes around and between the widths of vectors and tiles.
    let mut sizes = vec![(0, 5, 3), (5, 0, 3), (4, 3, 0), (1, 1, 1), (1, 17, 33), (33, 1, 7), (9, 7, 1)];
    sizes.extend([(16, 16, 16), (64, 48, 32), (65, 31, 129), (7, 130, 67), (3, 257, 300), (130, 100, 70)]);
    // Large enough to be split between threads.
    sizes.push((150, 260, 310));
    sizes.extend((0..4).map(|_| (1 + bench.draw.below(96), 1 + bench.draw.below(96), 1 + bench.draw.below(96))));
    for (m, n, k) in sizes {
        for switches in 0..8 {
            let (a_transposed, b_transposed, accumulate) = (switches & 1 > 0, switches & 2 > 0, switches & 4 > 0);
            let shape = Gemm { m, n, k, a_transposed, b_transposed, accumulate };
            for (factor, product) in TYPES {
                let arguments = factors(bench, factor, product, [m * k, k * n, m * n], k, accumulate);
                bench.agree(&shape, arguments)?;
            }
        }
    }
    let shape = Gemm { m: 5, n: 7, k: 3, a_transposed: false, b_transposed: true, accumulate: false };
    for (factor, product) in TYPES {
        let arguments = factors(bench, factor, product, [15, 21, 35], 3, false);
        bench.refuses_faults(&shape, &arguments)?;
    }
    Ok(())
}

pub(super) fn grouped_gemm<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    // Rows of each group: none at all, none here and there, one, many.
    let mut groups: Vec<Vec<usize>> = vec![vec![], vec![0, 0, 0], vec![1], vec![0, 5, 0, 1, 33, 0], vec![16, 32, 48]];
    groups.push((0..7).map(|_| bench.draw.below(40)).collect());
    for rows in groups {
        let offsets = offsets(&rows);
        for (n, k) in [(1, 1), (17, 33), (48, 32), (130, 67)] {
            for product in [GroupedProduct::Forward, GroupedProduct::InputGradient, GroupedProduct::WeightGradient] {
                for accumulate in [false, true] {
                    let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate };
                    grouped(bench, shape)?;
                }
            }
        }
    }
    group_results_are_their_own(bench)?;

    for product in [GroupedProduct::Forward, GroupedProduct::InputGradient, GroupedProduct::WeightGradient] {
        let shape = GroupedGemm { product, n: 5, k: 3, offsets: &[0, 2, 2, 6], accumulate: false };
        for (factor, out) in TYPES {
            let arguments = grouped_arguments(bench, shape, factor, out);
            bench.refuses_faults(&shape, &arguments)?;
        }
        let arguments = grouped_arguments(bench, shape, Element::F32, Element::F32);
        for offsets in [&[][..], &[1, 2, 2, 6], &[0, 3, 2, 6]] {
            bench.refuses_shape(&GroupedGemm { offsets, ..shape }, &arguments)?;
        }
    }
    Ok(())
}

fn offsets(rows: &[usize]) -> Vec<usize> {
    let mut offsets = vec![0];
    for rows in rows {
        offsets.push(offsets[offsets.len() - 1] + rows);
    }
    offsets
}

fn grouped<B: Backend>(bench: &mut Bench<'_, B>, shape: GroupedGemm<'_>) -> Checked {
    for (factor, product) in TYPES {
        let arguments = grouped_arguments(bench, shape, factor, product);
        bench.agree(&shape, arguments)?;
    }
    Ok(())
}

/// A group's rows do not change by a bit when the other groups have other rows.
fn group_results_are_their_own<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    let (n, k, rows) = (33, 20, 13);
    for element in [Element::F32, Element::Bf16] {
        let x = bench.draw.normals(rows * k);
        let w = bench.draw.normals(n * k);
        let mut seen: Option<Vec<f64>> = None;
        for before in [0, 1, 30] {
            let offsets = [0, before, before + rows, before + rows + 5];
            let mut a = bench.draw.normals(before * k);
            a.extend(&x);
            a.extend(bench.draw.normals(5 * k));
            let mut b = bench.draw.normals(n * k);
            b.extend(&w);
            b.extend(bench.draw.normals(n * k));
            let c = vec![0.0; (before + rows + 5) * n];
            let shape = GroupedGemm { product: GroupedProduct::Forward, n, k, offsets: &offsets, accumulate: false };
            let arguments = [("a", a), ("b", b), ("c", c)].map(|(name, v)| Argument::floats(name, element, v));
            let [_, _, c] = bench.on_subject(&shape, &arguments)?;
            let own = c[before * n..(before + rows) * n].to_vec();
            if seen.get_or_insert_with(|| own.clone()) != &own {
                return Err(Failure::wrong(format!("{shape:?}: a group's rows depend on the groups beside it")));
            }
        }
    }
    Ok(())
}

fn grouped_arguments<B: Backend>(
    bench: &mut Bench<'_, B>,
    shape: GroupedGemm<'_>,
    factor: Element,
    product: Element,
) -> [Argument; 3] {
    let GroupedGemm { n, k, offsets, accumulate, .. } = shape;
    let rows = offsets[offsets.len() - 1];
    let (inputs, outputs, weights) = (rows * k, rows * n, (offsets.len() - 1) * n * k);
    let (lengths, terms) = match shape.product {
        GroupedProduct::Forward => ([inputs, weights, outputs], k),
        GroupedProduct::InputGradient => ([outputs, weights, inputs], n),
        GroupedProduct::WeightGradient => ([outputs, inputs, weights], rows),
    };
    factors(bench, factor, product, lengths, terms, accumulate)
}

fn factors<B: Backend>(
    bench: &mut Bench<'_, B>,
    factor: Element,
    product: Element,
    lengths: [usize; 3],
    terms: usize,
    accumulate: bool,
) -> [Argument; 3] {
    let [a, b, c] = lengths.map(|len| bench.draw.normals(len));
    let c = Argument::floats("c", product, c);
    // An F32 product of bf16 factors could be Bf16 as well; beside F32 factors nothing but F32 will do.
    let c = if factor == Element::F32 { c.matched() } else { c };
    let tolerance = Tolerance::products(terms);
    [
        Argument::floats("a", factor, a).matched(),
        Argument::floats("b", factor, b).matched(),
        if accumulate { c.updated(tolerance) } else { c.overwritten(tolerance) },
    ]
}
