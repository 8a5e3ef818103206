//! A linear layer, `y = x · Wᵀ + b`, W (outputs, inputs) as Hugging Face stores it.

use cambium_kernels::{Backend, Gemm, View, ViewMut};

use crate::context::Context;
use crate::error::Outcome;
use crate::param::Param;

/// A linear layer. What it needs for its backward (x) the block that owns it keeps.
pub struct Linear<B: Backend> {
    /// (outputs, inputs).
    pub weight: Param<B>,
    /// (outputs).
    pub bias: Option<Param<B>>,
    /// Width of x.
    pub inputs: usize,
    /// Width of y.
    pub outputs: usize,
}

impl<B: Backend> Linear<B> {
    /// `y = x · Wᵀ + b`, or `y +=` with `accumulate`; x (rows, inputs), y (rows, outputs).
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        rows: usize,
        x: View<'_, B::Buffer>,
        mut y: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome {
        let shape =
            Gemm { m: rows, n: self.outputs, k: self.inputs, a_transposed: false, b_transposed: true, accumulate };
        cx.backend.gemm(shape, x, self.weight.weight(), y.reborrow())?;
        if let Some(bias) = &self.bias {
            cx.backend.bias_forward(rows, self.outputs, bias.master(), y)?;
        }
        Ok(())
    }

    /// `dx = dy · W`, or `dx +=` with `accumulate`.
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn backward_input(
        &self,
        cx: &Context<'_, B>,
        rows: usize,
        dy: View<'_, B::Buffer>,
        dx: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome {
        let shape =
            Gemm { m: rows, n: self.inputs, k: self.outputs, a_transposed: false, b_transposed: false, accumulate };
        Ok(cx.backend.gemm(shape, dy, self.weight.weight(), dx)?)
    }

    /// `dW += dyᵀ · x`, `db += sum over rows of dy`.
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward_weight(
        &mut self,
        cx: &Context<'_, B>,
        rows: usize,
        dy: View<'_, B::Buffer>,
        x: View<'_, B::Buffer>,
    ) -> Outcome {
        let (grad, accumulate) = self.weight.grad()?;
        let shape =
            Gemm { m: self.outputs, n: self.inputs, k: rows, a_transposed: true, b_transposed: false, accumulate };
        cx.backend.gemm(shape, dy, x, grad)?;
        if let Some(bias) = &mut self.bias {
            cx.backend.bias_backward(rows, self.outputs, dy, bias.grad_sum(cx.backend)?)?;
        }
        Ok(())
    }

    /// Its parameters.
    pub fn params_mut<'a>(&'a mut self, out: &mut Vec<&'a mut Param<B>>) {
        out.push(&mut self.weight);
        out.extend(&mut self.bias);
    }

    /// Its parameters.
    pub fn params<'a>(&'a self, out: &mut Vec<&'a Param<B>>) {
        out.push(&self.weight);
        out.extend(&self.bias);
    }
}
