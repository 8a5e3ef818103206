//! Kernels that work row by row.

use cambium_kernels::backend::Backend;
use cambium_kernels::buffer::Buffer;
use cambium_kernels::reference::{Reference, ReferenceBuffer};
use cambium_kernels::{Columns, RmsNorm, RopeShape};

use crate::{Outcome, Values, agrees, draw, floats, fresh, values, with_seeds, zeros};

#[test]
fn rms_norm_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        for (rows, width, eps) in [(3, 5, 1e-6), (2, 1, 0.3), (1, 8, 0.01)] {
            let shape = RmsNorm { rows, width, eps, accumulate: false };
            let inputs = [draw(random, rows * width), draw(random, width)];
            let run = |i: &[Values]| -> Outcome<[ReferenceBuffer; 2]> {
                let (mut y, mut inverse_rms) = (fresh(rows * width)?, fresh(rows)?);
                let (x, weight) = (floats(&i[0])?, floats(&i[1])?);
                let (to, saved) = (y.view_mut(), inverse_rms.view_mut());
                Reference::new().rms_norm_forward(shape, x.view(), weight.view(), to, saved)?;
                Ok([y, inverse_rms])
            };
            agrees(
                "rms_norm",
                random,
                &inputs,
                |i| Ok(vec![values(&run(i)?[0])?]),
                |d| {
                    let (x, weight, [_, inverse_rms]) = (floats(&inputs[0])?, floats(&inputs[1])?, run(&inputs)?);
                    let (mut dx, mut d_weight) = (fresh(rows * width)?, zeros(width)?);
                    Reference::new().rms_norm_backward(
                        shape,
                        floats(&d[0])?.view(),
                        x.view(),
                        weight.view(),
                        inverse_rms.view(),
                        dx.view_mut(),
                        d_weight.view_mut(),
                    )?;
                    Ok(vec![values(&dx)?, values(&d_weight)?])
                },
            )?;
        }
        Ok(())
    });
}

#[test]
fn rope_has_its_inverse_as_gradient() {
    with_seeds(|random| {
        for interleaved in [false, true] {
            let shape = RopeShape {
                tokens: 6,
                seq_len: 3,
                heads: 2,
                head_dim: 7,
                rotary_start: 2,
                rotary_dim: 4,
                interleaved,
                inverse: false,
            };
            let table: Values = draw(random, 6).iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
            let rotate = |shape: RopeShape, x: &[f64]| -> Outcome<Vec<Values>> {
                let mut x = floats(x)?;
                Reference::new().rope(shape, floats(&table)?.view(), x.view_mut())?;
                Ok(vec![values(&x)?])
            };
            let inputs = [draw(random, 6 * 2 * 7)];
            let inverse = RopeShape { inverse: true, ..shape };
            agrees("rope", random, &inputs, |i| rotate(shape, &i[0]), |d| rotate(inverse, &d[0]))?;
        }
        Ok(())
    });
}

#[test]
fn swiglu_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (rows, width) = (3, 4);
        let inputs = [draw(random, 2 * rows * width)];
        agrees(
            "swiglu",
            random,
            &inputs,
            |i| {
                let mut out = fresh(rows * width)?;
                Reference::new().swiglu_forward(rows, width, floats(&i[0])?.view(), out.view_mut())?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, gate_up) = (floats(&d[0])?, floats(&inputs[0])?);
                let mut d_gate_up = fresh(2 * rows * width)?;
                let to = d_gate_up.view_mut();
                Reference::new().swiglu_backward(rows, width, d_out.view(), gate_up.view(), to)?;
                Ok(vec![values(&d_gate_up)?])
            },
        )
    });
}

#[test]
fn the_sigmoid_gate_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (rows, width) = (3, 4);
        // The output that the gated values are added to is an input too: its gradient passes through.
        let inputs = [draw(random, rows), draw(random, rows * width), draw(random, rows * width)];
        agrees(
            "sigmoid_gate",
            random,
            &inputs,
            |i| {
                let (logit, x, mut out) = (floats(&i[0])?, floats(&i[1])?, floats(&i[2])?);
                Reference::new().sigmoid_gate_forward(rows, width, logit.view(), x.view(), out.view_mut())?;
                Ok(vec![values(&out)?])
            },
            |d| {
                let (d_out, logit, x) = (floats(&d[0])?, floats(&inputs[0])?, floats(&inputs[1])?);
                let (mut dx, mut d_logit) = (fresh(rows * width)?, fresh(rows)?);
                Reference::new().sigmoid_gate_backward(
                    rows,
                    width,
                    d_out.view(),
                    logit.view(),
                    x.view(),
                    dx.view_mut(),
                    d_logit.view_mut(),
                )?;
                Ok(vec![values(&d_logit)?, values(&dx)?, d[0].clone()])
            },
        )
    });
}

#[test]
fn a_bias_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        let (rows, width) = (4, 3);
        let inputs = [draw(random, width), draw(random, rows * width)];
        agrees(
            "bias",
            random,
            &inputs,
            |i| {
                let mut x = floats(&i[1])?;
                Reference::new().bias_forward(rows, width, floats(&i[0])?.view(), x.view_mut())?;
                Ok(vec![values(&x)?])
            },
            |d| {
                let mut d_bias = zeros(width)?;
                Reference::new().bias_backward(rows, width, floats(&d[0])?.view(), d_bias.view_mut())?;
                Ok(vec![values(&d_bias)?, d[0].clone()])
            },
        )
    });
}

#[test]
fn summing_columns_is_the_gradient_of_copying_them() {
    with_seeds(|random| {
        for repeat in [1, 3] {
            let copy = Columns {
                rows: 6,
                columns: 4,
                source_width: 7,
                source_start: 2,
                target_width: 5,
                target_start: 1,
                repeat,
            };
            let sum = Columns { source_width: 5, source_start: 1, target_width: 7, target_start: 2, ..copy };
            let inputs = [draw(random, 6 / repeat * 7)];
            agrees(
                "columns",
                random,
                &inputs,
                |i| {
                    let mut target = zeros(6 * 5)?;
                    Reference::new().copy_columns(copy, floats(&i[0])?.view(), target.view_mut())?;
                    Ok(vec![values(&target)?])
                },
                |d| {
                    let mut d_source = zeros(6 / repeat * 7)?;
                    Reference::new().sum_columns(sum, floats(&d[0])?.view(), d_source.view_mut())?;
                    Ok(vec![values(&d_source)?])
                },
            )?;
        }
        Ok(())
    });
}
