//! RMSNorm: `y = x / sqrt(mean(x²) + eps) * gain`.

use cambium_kernels::{Backend, RmsNorm, View, ViewMut};

use crate::context::Context;
use crate::error::Outcome;
use crate::param::Param;

/// RMSNorm with its gain. What it needs for its backward (x) the block that owns it keeps.
pub struct Norm<B: Backend> {
    /// (width).
    pub gain: Param<B>,
    /// Values that are normalised together.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f64,
}

/// `1 / sqrt(mean(x²) + eps)` of every row.
pub struct NormSaved<B: Backend>(B::Buffer);

impl<B: Backend> Norm<B> {
    /// `y = norm(x)`, or `y +=` with `accumulate`; `values` in all, a whole number of rows.
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        x: View<'_, B::Buffer>,
        y: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome<NormSaved<B>> {
        let shape = self.shape(x.len, accumulate);
        let mut inverse_rms = cx.f32(shape.rows)?;
        cx.backend.rms_norm_forward(shape, x, self.gain.master(), y, (&mut inverse_rms).into())?;
        Ok(NormSaved(inverse_rms))
    }

    /// `dx =` (or `+=`) and the gain's gradient.
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        dy: View<'_, B::Buffer>,
        x: View<'_, B::Buffer>,
        saved: &NormSaved<B>,
        dx: ViewMut<'_, B::Buffer>,
        accumulate: bool,
    ) -> Outcome {
        let shape = self.shape(x.len, accumulate);
        // The gain is read while its gradient is written: two buffers of one parameter.
        let (gain, d_gain) = self.gain.master_and_grad_sum(cx.backend)?;
        Ok(cx.backend.rms_norm_backward(shape, dy, x, gain, (&saved.0).into(), dx, d_gain)?)
    }

    fn shape(&self, values: usize, accumulate: bool) -> RmsNorm {
        RmsNorm { rows: values / self.width, width: self.width, eps: self.eps, accumulate }
    }
}
