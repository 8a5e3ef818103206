//! Cases of the kernels that move values inside rows: rotation and columns.

use super::FLOATS;
use super::argument::{Argument, Placed};
use super::bench::{Bench, Checked, Kernel, Reply};
use super::tolerance::Tolerance;
use crate::backend::{Backend, Outcome};
use crate::buffer::Element;
use crate::ops::{Columns, RopeShape};

impl Kernel<2> for RopeShape {
    fn call<B: Backend>(&self, on: &B, [table, x]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.rope(*self, table.get(), x.get_mut()).map(Reply::from)
    }
}

pub(super) fn rope<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    // tokens, seq_len, heads, head_dim, rotary_start, rotary_dim
    let sizes = [
        (0, 5, 2, 8, 0, 8),
        (1, 1, 1, 2, 0, 2),
        (6, 3, 2, 8, 0, 8),
        (10, 5, 3, 24, 16, 8),
        (17, 17, 1, 64, 0, 64),
        (8, 4, 2, 70, 3, 34),
        (4, 2, 5, 7, 1, 0),
    ];
    for (tokens, seq_len, heads, head_dim, rotary_start, rotary_dim) in sizes {
        for switches in 0..4 {
            let (interleaved, inverse) = (switches & 1 > 0, switches & 2 > 0);
            let shape = RopeShape { tokens, seq_len, heads, head_dim, rotary_start, rotary_dim, interleaved, inverse };
            for element in FLOATS {
                let arguments = rope_inputs(bench, shape, element);
                bench.agree(&shape, arguments)?;
            }
        }
    }
    let shape = RopeShape {
        tokens: 6,
        seq_len: 3,
        heads: 2,
        head_dim: 10,
        rotary_start: 2,
        rotary_dim: 8,
        interleaved: false,
        inverse: false,
    };
    let arguments = rope_inputs(bench, shape, Element::Bf16);
    bench.refuses_faults(&shape, &arguments)?;
    for wrong in [
        RopeShape { rotary_dim: 7, ..shape },
        RopeShape { rotary_start: 3, ..shape },
        RopeShape { tokens: 7, ..shape },
        RopeShape { seq_len: 0, ..shape },
    ] {
        bench.refuses_shape(&wrong, &arguments)?;
    }
    Ok(())
}

fn rope_inputs<B: Backend>(bench: &mut Bench<'_, B>, shape: RopeShape, element: Element) -> [Argument; 2] {
    let angles = bench.draw.uniforms(shape.seq_len * shape.rotary_dim / 2, -10.0, 10.0);
    let table = angles.into_iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
    let x = bench.draw.normals(shape.tokens * shape.heads * shape.head_dim);
    [Argument::f32("table", table), Argument::floats("x", element, x).updated(Tolerance::operations(4.0))]
}

#[derive(Debug)]
struct CopyColumns(Columns);

impl Kernel<2> for CopyColumns {
    fn call<B: Backend>(&self, on: &B, [source, target]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.copy_columns(self.0, source.get(), target.get_mut()).map(Reply::from)
    }
}

#[derive(Debug)]
struct SumColumns(Columns);

impl Kernel<2> for SumColumns {
    fn call<B: Backend>(&self, on: &B, [source, target]: &mut [Placed<B>; 2]) -> Outcome<Reply> {
        on.sum_columns(self.0, source.get(), target.get_mut()).map(Reply::from)
    }
}

const COLUMNS: [Columns; 6] = [
    columns([0, 2], 3, [5, 1], [4, 0]),
    columns([1, 1], 1, [1, 0], [1, 0]),
    columns([7, 1], 5, [9, 2], [6, 1]),
    columns([12, 4], 16, [16, 0], [48, 32]),
    columns([6, 3], 33, [40, 7], [35, 2]),
    columns([4, 2], 0, [3, 3], [2, 1]),
];

const fn columns([rows, repeat]: [usize; 2], columns: usize, source: [usize; 2], target: [usize; 2]) -> Columns {
    let ([source_width, source_start], [target_width, target_start]) = (source, target);
    Columns { rows, columns, source_width, source_start, target_width, target_start, repeat }
}

pub(super) fn copy_columns<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for shape in COLUMNS {
        let (source, target) = (shape.rows / shape.repeat * shape.source_width, shape.rows * shape.target_width);
        moved(bench, &CopyColumns(shape), source, target, Tolerance::Exact)?;
    }
    refusals(bench, CopyColumns, [6 / 3 * 40, 6 * 35])
}

pub(super) fn sum_columns<B: Backend>(bench: &mut Bench<'_, B>) -> Checked {
    for shape in COLUMNS {
        let (source, target) = (shape.rows * shape.source_width, shape.rows / shape.repeat * shape.target_width);
        moved(bench, &SumColumns(shape), source, target, Tolerance::sum(shape.repeat))?;
    }
    refusals(bench, SumColumns, [6 * 40, 6 / 3 * 35])
}

fn moved<B: Backend>(
    bench: &mut Bench<'_, B>,
    kernel: &impl Kernel<2>,
    source: usize,
    target: usize,
    tolerance: Tolerance,
) -> Checked {
    for element in FLOATS {
        // Columns beside those that are written keep what they hold.
        let arguments = [
            Argument::floats("source", element, bench.draw.normals(source)),
            Argument::floats("target", element, bench.draw.normals(target)).updated(tolerance),
        ];
        bench.agree(kernel, arguments)?;
    }
    Ok(())
}

fn refusals<B: Backend, K: Kernel<2>>(
    bench: &mut Bench<'_, B>,
    kernel: impl Fn(Columns) -> K,
    [source, target]: [usize; 2],
) -> Checked {
    let shape = COLUMNS[4];
    for element in FLOATS {
        let arguments = [
            Argument::floats("source", element, bench.draw.normals(source)).matched(),
            Argument::floats("target", element, bench.draw.normals(target)).matched().updated(Tolerance::Exact),
        ];
        bench.refuses_faults(&kernel(shape), &arguments)?;
        for wrong in [
            Columns { repeat: 0, ..shape },
            Columns { repeat: 4, ..shape },
            Columns { source_start: 8, ..shape },
            Columns { target_start: 3, ..shape },
        ] {
            bench.refuses_shape(&kernel(wrong), &arguments)?;
        }
    }
    Ok(())
}
