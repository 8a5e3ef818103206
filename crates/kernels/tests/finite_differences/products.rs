//! Products and attention.

use cambium_kernels::backend::Backend;
use cambium_kernels::buffer::Buffer;
use cambium_kernels::reference::{Reference, ReferenceBuffer};
use cambium_kernels::{AttentionShape, Gemm, GroupedGemm, GroupedProduct};

use crate::{Outcome, Values, agrees, draw, floats, fresh, values, with_seeds};

#[test]
fn the_products_of_a_linear_layer_are_each_others_gradients() {
    with_seeds(|random| {
        let (m, n, k) = (3, 4, 5);
        let inputs = [draw(random, m * k), draw(random, n * k)];
        let product = |shape: Gemm, a: &[f64], b: &[f64]| -> Outcome<Values> {
            let mut c = fresh(shape.m * shape.n)?;
            Reference::new().gemm(shape, floats(a)?.view(), floats(b)?.view(), c.view_mut())?;
            values(&c)
        };
        let shape =
            |m, n, k, a_transposed, b_transposed| Gemm { m, n, k, a_transposed, b_transposed, accumulate: false };
        agrees(
            "gemm",
            random,
            &inputs,
            |i| Ok(vec![product(shape(m, n, k, false, true), &i[0], &i[1])?]),
            |d| {
                let dx = product(shape(m, k, n, false, false), &d[0], &inputs[1])?;
                Ok(vec![dx, product(shape(n, k, m, true, false), &d[0], &inputs[0])?])
            },
        )?;

        let offsets = [0, 2, 2, 3, 7];
        let inputs = [draw(random, 7 * k), draw(random, 4 * n * k)];
        let product = |product, a: &[f64], b: &[f64], len| -> Outcome<Values> {
            let shape = GroupedGemm { product, n, k, offsets: &offsets, accumulate: false };
            let mut c = fresh(len)?;
            Reference::new().grouped_gemm(shape, floats(a)?.view(), floats(b)?.view(), c.view_mut())?;
            values(&c)
        };
        agrees(
            "grouped_gemm",
            random,
            &inputs,
            |i| Ok(vec![product(GroupedProduct::Forward, &i[0], &i[1], 7 * n)?]),
            |d| {
                let dx = product(GroupedProduct::InputGradient, &d[0], &inputs[1], 7 * k)?;
                Ok(vec![dx, product(GroupedProduct::WeightGradient, &d[0], &inputs[0], 4 * n * k)?])
            },
        )
    });
}

#[test]
fn attention_has_the_gradient_of_its_forward() {
    with_seeds(|random| {
        // batch, tokens, heads, key/value heads, size of keys, size of values
        for [batch, seq_len, heads, kv_heads, qk_dim, v_dim] in
            [[1, 1, 1, 1, 2, 2], [2, 4, 4, 2, 3, 3], [1, 5, 3, 1, 4, 2], [1, 3, 2, 2, 2, 5]]
        {
            let shape = AttentionShape { batch, seq_len, heads, kv_heads, qk_dim, v_dim, scale: 0.7 };
            let tokens = batch * seq_len;
            let inputs = [tokens * heads * qk_dim, tokens * kv_heads * qk_dim, tokens * kv_heads * v_dim]
                .map(|len| draw(random, len));
            let run = |i: &[Values]| -> Outcome<[ReferenceBuffer; 2]> {
                let (q, k, v) = (floats(&i[0])?, floats(&i[1])?, floats(&i[2])?);
                let (mut out, mut lse) = (fresh(tokens * heads * v_dim)?, fresh(tokens * heads)?);
                let (to, saved) = (out.view_mut(), lse.view_mut());
                Reference::new().attention_forward(shape, q.view(), k.view(), v.view(), to, saved)?;
                Ok([out, lse])
            };
            agrees(
                "attention",
                random,
                &inputs,
                |i| Ok(vec![values(&run(i)?[0])?]),
                |d| {
                    let (q, k, v) = (floats(&inputs[0])?, floats(&inputs[1])?, floats(&inputs[2])?);
                    let [out, lse] = run(&inputs)?;
                    let (mut dq, mut dk, mut dv) = (fresh(q.len())?, fresh(k.len())?, fresh(v.len())?);
                    Reference::new().attention_backward(
                        shape,
                        floats(&d[0])?.view(),
                        q.view(),
                        k.view(),
                        v.view(),
                        out.view(),
                        lse.view(),
                        dq.view_mut(),
                        dk.view_mut(),
                        dv.view_mut(),
                    )?;
                    Ok(vec![values(&dq)?, values(&dk)?, values(&dv)?])
                },
            )?;
        }
        Ok(())
    });
}
