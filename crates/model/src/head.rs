//! The end of the model: final norm, output projection and cross-entropy, fused over chunks of tokens.
//!
//! The logits of all tokens, (T, V), never exist: a chunk's logits become its loss and, in training, at once its
//! gradients, so the forward pass already leaves the gradient of the projection and of its input behind.

use cambium_kernels::{Backend, Buffer, Element, Gemm, KernelError};
use candle_core::DType;

use crate::context::Context;
use crate::error::Outcome;
use crate::norm::{Norm, NormSaved};
use crate::param::Param;

/// Bytes that the f32 logits of one chunk may take.
const CHUNK_BYTES: usize = 32 << 20;

/// Final norm of the model; the projection is a parameter of its own because it may be the embedding.
pub struct Head<B: Backend> {
    /// Over H.
    pub norm: Norm<B>,
    /// V.
    pub vocab: usize,
}

/// What a head keeps for its backward.
pub struct HeadSaved<B: Backend> {
    x: B::Buffer,
    norm: NormSaved<B>,
    /// The gradient of the normed input, already there.
    d_normed: B::Buffer,
}

impl<B: Backend> Head<B> {
    /// Per-token negative log-likelihood (T) of `targets` (T, `U32`), without gradients.
    ///
    /// # Errors
    /// If a kernel fails, or a target is not below V.
    pub fn nll(
        &self,
        cx: &Context<'_, B>,
        projection: &Param<B>,
        x: &B::Buffer,
        targets: &B::Buffer,
    ) -> Outcome<Vec<f64>> {
        let mut normed = cx.activation(self.norm.width)?;
        self.norm.forward(cx, x.into(), (&mut normed).into(), false)?;
        let mut nll = cx.f32(cx.tokens())?;
        let mut logits = cx.f32(self.chunk(cx) * self.vocab)?;
        for range in self.chunks(cx) {
            let size = range.len() * self.vocab;
            self.logits(cx, projection, &normed, range.clone(), &mut logits)?;
            let (logits, targets) = (logits.slice(0..size), targets.slice(range.clone()));
            cx.backend.cross_entropy(self.vocab, 0.0, logits, targets, nll.slice_mut(range), None)?;
        }
        read_f64(cx.backend, &nll)
    }

    /// As [`Self::nll`], and the gradients of `grad_scale * sum of nll`: the projection's at once, x's when
    /// [`Self::backward`] is called.
    ///
    /// # Errors
    /// If a kernel fails, a target is not below V, or the model was loaded for evaluation.
    pub fn forward(
        &self,
        cx: &Context<'_, B>,
        projection: &mut Param<B>,
        x: B::Buffer,
        targets: &B::Buffer,
        grad_scale: f64,
    ) -> Outcome<(Vec<f64>, HeadSaved<B>)> {
        let hidden = self.norm.width;
        let mut normed = cx.activation(hidden)?;
        let norm = self.norm.forward(cx, (&x).into(), (&mut normed).into(), false)?;
        let mut nll = cx.f32(cx.tokens())?;
        let mut logits = cx.f32(self.chunk(cx) * self.vocab)?;
        let mut d_logits = cx.activation_rows(self.chunk(cx), self.vocab)?;
        let mut d_normed = cx.activation(hidden)?;
        for range in self.chunks(cx) {
            let (rows, size) = (range.len(), range.len() * self.vocab);
            self.logits(cx, projection, &normed, range.clone(), &mut logits)?;
            cx.backend.cross_entropy(
                self.vocab,
                grad_scale,
                logits.slice(0..size),
                targets.slice(range.clone()),
                nll.slice_mut(range.clone()),
                Some(d_logits.slice_mut(0..size)),
            )?;
            // logits = normed · Wᵀ
            let values = range.start * hidden..range.end * hidden;
            let input =
                Gemm { m: rows, n: hidden, k: self.vocab, a_transposed: false, b_transposed: false, accumulate: false };
            cx.backend.gemm(input, d_logits.slice(0..size), projection.weight(), d_normed.slice_mut(values.clone()))?;
            let (grad, accumulate) = projection.grad()?;
            let weight =
                Gemm { m: self.vocab, n: hidden, k: rows, a_transposed: true, b_transposed: false, accumulate };
            cx.backend.gemm(weight, d_logits.slice(0..size), normed.slice(values), grad)?;
        }
        Ok((read_f64(cx.backend, &nll)?, HeadSaved { x, norm, d_normed }))
    }

    /// The gradient of x (T, H).
    ///
    /// # Errors
    /// If a kernel fails, or the model was loaded for evaluation.
    pub fn backward(&mut self, cx: &Context<'_, B>, saved: &HeadSaved<B>) -> Outcome<B::Buffer> {
        let mut dx = cx.activation(self.norm.width)?;
        let (d_normed, x) = ((&saved.d_normed).into(), (&saved.x).into());
        self.norm.backward(cx, d_normed, x, &saved.norm, (&mut dx).into(), false)?;
        Ok(dx)
    }

    /// The logits (T, V) in f32, whole: for comparisons and sampling, not for training.
    ///
    /// # Errors
    /// If a kernel fails.
    pub fn all_logits(&self, cx: &Context<'_, B>, projection: &Param<B>, x: &B::Buffer) -> Outcome<B::Buffer> {
        let mut normed = cx.activation(self.norm.width)?;
        self.norm.forward(cx, x.into(), (&mut normed).into(), false)?;
        let mut logits = cx.f32(cx.tokens() * self.vocab)?;
        self.logits(cx, projection, &normed, 0..cx.tokens(), &mut logits)?;
        Ok(logits)
    }

    fn logits(
        &self,
        cx: &Context<'_, B>,
        projection: &Param<B>,
        normed: &B::Buffer,
        range: std::ops::Range<usize>,
        logits: &mut B::Buffer,
    ) -> Outcome {
        let hidden = self.norm.width;
        let shape = Gemm {
            m: range.len(),
            n: self.vocab,
            k: hidden,
            a_transposed: false,
            b_transposed: true,
            accumulate: false,
        };
        let input = normed.slice(range.start * hidden..range.end * hidden);
        Ok(cx.backend.gemm(shape, input, projection.weight(), logits.slice_mut(0..range.len() * self.vocab))?)
    }

    fn chunk(&self, cx: &Context<'_, B>) -> usize {
        (CHUNK_BYTES / (self.vocab * Element::F32.bytes())).clamp(1, cx.tokens().max(1))
    }

    fn chunks(&self, cx: &Context<'_, B>) -> impl Iterator<Item = std::ops::Range<usize>> + use<B> {
        let (tokens, chunk) = (cx.tokens(), self.chunk(cx));
        (0..tokens).step_by(chunk).map(move |start| start..(start + chunk).min(tokens))
    }
}

/// All values of a buffer; f64 because the reference backend has that much to give.
fn read_f64<B: Backend>(backend: &B, buffer: &B::Buffer) -> Outcome<Vec<f64>> {
    let host = backend.read(buffer.into(), &[buffer.len()])?;
    let values = host.to_dtype(DType::F64).and_then(|host| host.to_vec1());
    Ok(values.map_err(KernelError::Host)?)
}
