//! A stage: consecutive layers, the embedding if they begin the model, the head if they end it.
//!
//! A whole model in one process is one stage of all layers. What goes between stages is one (T, H) activation forward
//! and one (T, H) gradient back per microbatch.

use std::ops::Range;

use cambium_kernels::{Backend, Element};
use cambium_spec::ModelSpec;

use crate::context::{Context, Precision};
use crate::error::{ModelError, Outcome};
use crate::head::{Head, HeadSaved};
use crate::layer::{FeedForwardBlock, Layer, LayerSaved};
use crate::moe::{BalanceWeight, MoeBlock, Routing};
use crate::param::{Param, Use};

/// Consecutive layers of a model, with its ends if they are here.
pub struct Stage<B: Backend> {
    /// The whole model's spec.
    pub spec: ModelSpec,
    /// The type of weights and activations.
    pub precision: Precision,
    /// Global index of the first layer here.
    pub first_layer: usize,
    /// Token ids enter here.
    pub embeds: bool,
    /// (V, H): the embedding, or the projection of a tied model.
    pub embedding: Option<Param<B>>,
    /// The layers, in order.
    pub layers: Vec<Layer<B>>,
    /// The end of the model.
    pub head: Option<Head<B>>,
    /// (V, H): the output projection of an untied model.
    pub projection: Option<Param<B>>,
}

/// What enters a stage.
pub enum StageInput<'a, B: Backend> {
    /// Token ids (T), rows one after the other.
    Tokens(&'a [u32]),
    /// The output (T, H) of the stage before.
    Hidden(B::Buffer),
}

/// What leaves a stage.
pub enum StageOutput<B: Backend> {
    /// (T, H), for the next stage.
    Hidden(B::Buffer),
    /// (T): negative log-likelihood of the targets.
    Nll(Vec<f64>),
}

/// What a stage keeps of a microbatch for its backward.
pub struct StageSaved<B: Backend> {
    tokens: Option<B::Buffer>,
    layers: Vec<LayerSaved<B>>,
    head: Option<HeadSaved<B>>,
}

/// How a training pass is to be run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pass {
    /// Multiplies the gradient of each token's negative log-likelihood: 1 / tokens of the step.
    pub grad_scale: f64,
    /// Keep only each layer's input, compute its inside again in the backward.
    pub recompute: bool,
}

impl<B: Backend> Stage<B> {
    /// A stage of `layers` of the model; all parameters are zero.
    ///
    /// # Errors
    /// If `layers` is not part of the model, or the backend has no memory left.
    pub fn zeros(
        backend: &B,
        spec: &ModelSpec,
        layers: Range<usize>,
        precision: Precision,
        usage: Use,
    ) -> Outcome<Self> {
        if layers.start > layers.end || layers.end > spec.layer_count() {
            let count = spec.layer_count();
            return Err(ModelError::Input(format!("layers {layers:?} of a model of {count} layers")));
        }
        crate::build::stage(backend, spec, layers, precision, usage)
    }

    /// One microbatch forward, keeping what the backward needs. The last stage needs `targets` (T).
    ///
    /// # Errors
    /// If input and stage do not fit, or a kernel fails.
    pub fn forward(
        &mut self,
        cx: &Context<'_, B>,
        input: StageInput<'_, B>,
        targets: Option<&[u32]>,
        pass: Pass,
    ) -> Outcome<(StageOutput<B>, StageSaved<B>, Vec<Routing>)> {
        let (mut x, tokens) = self.enter(cx, input)?;
        let mut saved = Vec::with_capacity(self.layers.len());
        let mut routings = Vec::new();
        for layer in &self.layers {
            let (out, kept, routing) = layer.forward(cx, x, pass.recompute)?;
            x = out;
            saved.push(kept);
            routings.extend(routing);
        }
        let Some(head) = &self.head else {
            return Ok((StageOutput::Hidden(x), StageSaved { tokens, layers: saved, head: None }, routings));
        };
        let targets = upload_targets(cx, targets)?;
        let projection = self.projection.as_mut().or(self.embedding.as_mut()).ok_or_else(no_projection)?;
        let (nll, kept) = head.forward(cx, projection, x, &targets, pass.grad_scale)?;
        Ok((StageOutput::Nll(nll), StageSaved { tokens, layers: saved, head: Some(kept) }, routings))
    }

    /// One microbatch backward: `d_out` (T, H) comes from the next stage, none at the last. Gives the gradient (T, H)
    /// for the stage before, none at the first.
    ///
    /// # Errors
    /// If gradient and stage do not fit, a kernel fails, or the model was loaded for evaluation.
    pub fn backward(
        &mut self,
        cx: &Context<'_, B>,
        d_out: Option<B::Buffer>,
        saved: StageSaved<B>,
        weight: BalanceWeight,
    ) -> Outcome<Option<B::Buffer>> {
        let mut d = match (&mut self.head, saved.head, d_out) {
            (Some(head), Some(saved), None) => head.backward(cx, &saved)?,
            (None, None, Some(d_out)) => d_out,
            _ => {
                return Err(ModelError::Input(
                    "a stage takes a gradient from outside if and only if it has no head".into(),
                ));
            }
        };
        for (layer, saved) in self.layers.iter_mut().zip(saved.layers).rev() {
            d = layer.backward(cx, d, saved, weight)?;
        }
        match (saved.tokens, &mut self.embedding) {
            (Some(tokens), Some(embedding)) => {
                let grad = embedding.grad_sum(cx.backend)?;
                cx.backend.embedding_backward(self.spec.hidden_size, (&d).into(), (&tokens).into(), grad)?;
                Ok(None)
            }
            _ => Ok(Some(d)),
        }
    }

    /// One microbatch forward without gradients: negative log-likelihoods (T), or (T, H) for the next stage.
    ///
    /// # Errors
    /// If input and stage do not fit, or a kernel fails.
    pub fn evaluate(
        &self,
        cx: &Context<'_, B>,
        input: StageInput<'_, B>,
        targets: Option<&[u32]>,
    ) -> Outcome<StageOutput<B>> {
        let x = self.hidden(cx, input)?;
        let Some(head) = &self.head else { return Ok(StageOutput::Hidden(x)) };
        let targets = upload_targets(cx, targets)?;
        Ok(StageOutput::Nll(head.nll(cx, self.output_projection()?, &x, &targets)?))
    }

    /// Logits (T, V) in f32 of a whole model: for comparisons and sampling.
    ///
    /// # Errors
    /// If the stage has no head, input and stage do not fit, or a kernel fails.
    pub fn logits(&self, cx: &Context<'_, B>, input: StageInput<'_, B>) -> Outcome<B::Buffer> {
        let x = self.hidden(cx, input)?;
        let head = self.head.as_ref().ok_or_else(no_projection)?;
        head.all_logits(cx, self.output_projection()?, &x)
    }

    fn hidden(&self, cx: &Context<'_, B>, input: StageInput<'_, B>) -> Outcome<B::Buffer> {
        let (mut x, _) = self.enter(cx, input)?;
        for layer in &self.layers {
            x = layer.forward(cx, x, false)?.0;
        }
        Ok(x)
    }

    fn output_projection(&self) -> Outcome<&Param<B>> {
        self.projection.as_ref().or(self.embedding.as_ref()).ok_or_else(no_projection)
    }

    /// The first activation, and the uploaded ids if this stage embeds.
    fn enter(&self, cx: &Context<'_, B>, input: StageInput<'_, B>) -> Outcome<(B::Buffer, Option<B::Buffer>)> {
        match (input, &self.embedding) {
            (StageInput::Hidden(x), _) if !self.embeds => Ok((x, None)),
            (StageInput::Tokens(ids), Some(table)) if self.embeds => {
                let ids = upload(cx, ids, "token ids")?;
                let mut x = cx.activation(self.spec.hidden_size)?;
                let table = table.weight();
                cx.backend.embedding_forward(self.spec.hidden_size, table, (&ids).into(), (&mut x).into())?;
                Ok((x, Some(ids)))
            }
            _ => Err(ModelError::Input("the first stage takes token ids, every other one activations".into())),
        }
    }

    /// All parameters, selection biases included, in a fixed order.
    pub fn params_mut(&mut self) -> Vec<&mut Param<B>> {
        let mut params: Vec<_> = self.embedding.iter_mut().collect();
        for layer in &mut self.layers {
            layer.params_mut(&mut params);
        }
        params.extend(self.head.as_mut().map(|head| &mut head.norm.gain));
        params.extend(&mut self.projection);
        params
    }

    /// All parameters, selection biases included, in a fixed order.
    #[must_use]
    pub fn params(&self) -> Vec<&Param<B>> {
        let mut params: Vec<_> = self.embedding.iter().collect();
        for layer in &self.layers {
            layer.params(&mut params);
        }
        params.extend(self.head.as_ref().map(|head| &head.norm.gain));
        params.extend(&self.projection);
        params
    }

    /// The MoE blocks, in order of their layers.
    pub fn moe_blocks_mut(&mut self) -> impl Iterator<Item = &mut MoeBlock<B>> {
        self.layers.iter_mut().filter_map(|layer| match &mut layer.feed_forward {
            FeedForwardBlock::Moe(block) => Some(&mut **block),
            FeedForwardBlock::Dense(_) => None,
        })
    }
}

fn no_projection() -> ModelError {
    ModelError::Input("this stage does not end the model and has no output projection".into())
}

fn upload_targets<B: Backend>(cx: &Context<'_, B>, targets: Option<&[u32]>) -> Outcome<B::Buffer> {
    let targets = targets.ok_or_else(|| ModelError::Input("the last stage needs the targets of its tokens".into()))?;
    upload(cx, targets, "targets")
}

fn upload<B: Backend>(cx: &Context<'_, B>, ids: &[u32], what: &str) -> Outcome<B::Buffer> {
    if ids.len() != cx.tokens() {
        let (found, rows, length) = (ids.len(), cx.batch, cx.seq_len);
        return Err(ModelError::Input(format!("{found} {what} for {rows} rows of {length}")));
    }
    let mut buffer = cx.backend.alloc(Element::U32, ids.len())?;
    cx.backend.write_u32(ids, (&mut buffer).into())?;
    Ok(buffer)
}
