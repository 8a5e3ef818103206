//! A parameter buffer: master, compute copy, gradient, moments, and the tensors that lie in it.
//!
//! One buffer may hold several checkpoint tensors one after the other (the gate and up projections of every expert of a
//! layer), so that they are one operand of a grouped product. Each stays a tensor of its own by name: in checkpoints, in
//! the gradient norm and in the seeds of its initial values.

use std::ops::Range;

use cambium_kernels::{AdamW, Backend, Buffer, Element, View, ViewMut};
use cambium_spec::TensorSpec;

use crate::context::Precision;
use crate::error::{ModelError, Outcome};

/// A checkpoint tensor inside a [`Param`].
#[derive(Clone, Debug)]
pub struct Piece {
    /// Its name, role and shape.
    pub tensor: TensorSpec,
    /// Its elements in the buffer.
    pub range: Range<usize>,
}

/// What becomes of a parameter in a training run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Forward passes only: no gradient, no moments.
    Eval,
    /// Trained by gradient.
    Train,
}

/// In which type a parameter takes part in products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// The run's precision: matrices.
    Run,
    /// Always f32: norm gains, biases, the router.
    F32,
}

struct Training<Buf> {
    grad: Buf,
    moment1: Buf,
    moment2: Buf,
    /// The gradient holds something of this step; otherwise its contents are those of an earlier one.
    started: bool,
}

/// A parameter buffer. Values are zero until they are loaded or initialised.
pub struct Param<B: Backend> {
    pieces: Vec<Piece>,
    master: B::Buffer,
    compute: Option<B::Buffer>,
    training: Option<Training<B::Buffer>>,
}

impl<B: Backend> Param<B> {
    /// Room for `tensors`, one after the other.
    ///
    /// # Errors
    /// If the backend has no memory left.
    pub fn new(
        backend: &B,
        tensors: impl IntoIterator<Item = TensorSpec>,
        compute: Compute,
        precision: Precision,
        usage: Use,
    ) -> Outcome<Self> {
        let mut end = 0;
        let pieces: Vec<Piece> = tensors
            .into_iter()
            .map(|tensor| {
                let start = end;
                end += tensor.shape.iter().product::<usize>();
                Piece { tensor, range: start..end }
            })
            .collect();
        let compute = match (compute, precision) {
            (Compute::Run, Precision::Bf16) => Some(backend.zeros(Element::Bf16, end)?),
            _ => None,
        };
        let training = match usage {
            Use::Eval => None,
            Use::Train => Some(Training {
                grad: backend.zeros(Element::F32, end)?,
                moment1: backend.zeros(Element::F32, end)?,
                moment2: backend.zeros(Element::F32, end)?,
                started: false,
            }),
        };
        Ok(Self { pieces, master: backend.zeros(Element::F32, end)?, compute, training })
    }

    /// The tensors in it, in order.
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// The f32 values.
    #[must_use]
    pub fn master(&self) -> View<'_, B::Buffer> {
        self.master.view()
    }

    /// The f32 values, for loading; call [`Self::refresh`] afterwards.
    pub fn master_mut(&mut self) -> &mut B::Buffer {
        &mut self.master
    }

    /// The values as products take them.
    #[must_use]
    pub fn weight(&self) -> View<'_, B::Buffer> {
        self.compute.as_ref().unwrap_or(&self.master).view()
    }

    /// The gradient of this step and the moments, if it is trained.
    #[must_use]
    pub fn trained(&self) -> Option<Trained<'_, B::Buffer>> {
        self.training.as_ref().map(|training| Trained {
            grad: training.started.then(|| training.grad.view()),
            moment1: training.moment1.view(),
            moment2: training.moment2.view(),
        })
    }

    /// The moments for loading, if it is trained.
    pub fn moments_mut(&mut self) -> Option<(&mut B::Buffer, &mut B::Buffer)> {
        self.training.as_mut().map(|training| (&mut training.moment1, &mut training.moment2))
    }

    /// Makes the compute copy follow the master.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn refresh(&mut self, backend: &B) -> Outcome {
        if let Some(compute) = &mut self.compute {
            backend.copy(self.master.view(), compute.view_mut())?;
        }
        Ok(())
    }

    /// Where a product writes the gradient, and whether it has to add to what is there.
    ///
    /// # Errors
    /// [`ModelError::NotTrainable`] if the model was loaded for evaluation.
    pub fn grad(&mut self) -> Outcome<(ViewMut<'_, B::Buffer>, bool)> {
        let training = Self::training(&mut self.training, &self.pieces)?;
        let accumulate = std::mem::replace(&mut training.started, true);
        Ok((training.grad.view_mut(), accumulate))
    }

    /// Where a kernel that always adds writes the gradient: zeros at the first call of a step.
    ///
    /// # Errors
    /// [`ModelError::NotTrainable`] if the model was loaded for evaluation.
    pub fn grad_sum(&mut self, backend: &B) -> Outcome<ViewMut<'_, B::Buffer>> {
        let (mut grad, accumulate) = self.grad()?;
        if !accumulate {
            backend.fill_zero(grad.reborrow())?;
        }
        Ok(grad)
    }

    /// The values, and [`Self::grad_sum`] beside them.
    ///
    /// # Errors
    /// [`ModelError::NotTrainable`] if the model was loaded for evaluation.
    pub fn master_and_grad_sum(&mut self, backend: &B) -> Outcome<ValueAndGrad<'_, B::Buffer>> {
        self.grad_sum(backend)?;
        let training = Self::training(&mut self.training, &self.pieces)?;
        Ok((self.master.view(), training.grad.view_mut()))
    }

    fn training<'a>(
        training: &'a mut Option<Training<B::Buffer>>,
        pieces: &[Piece],
    ) -> Outcome<&'a mut Training<B::Buffer>> {
        training.as_mut().ok_or_else(|| ModelError::NotTrainable {
            name: pieces.first().map(|piece| piece.tensor.name.clone()).unwrap_or_default(),
            what: "gradient",
        })
    }

    /// Sum of squares of the gradient of each tensor, by name.
    ///
    /// # Errors
    /// [`ModelError::MissingGradient`] if nothing was written in this step.
    pub fn grad_squares(&self, backend: &B, step: u64, squares: &mut Vec<(String, f64)>) -> Outcome {
        let Some(training) = &self.training else { return Ok(()) };
        for piece in &self.pieces {
            if !training.started {
                return Err(ModelError::MissingGradient { name: piece.tensor.name.clone(), step });
            }
            squares.push((piece.tensor.name.clone(), backend.sum_squares(training.grad.slice(piece.range.clone()))?));
        }
        Ok(())
    }

    /// One AdamW step; vectors do not decay. The gradient is spent.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn update(&mut self, backend: &B, step: AdamW) -> Outcome {
        let Some(training) = &mut self.training else { return Ok(()) };
        training.started = false;
        // All tensors of one buffer have the same number of dimensions: they are the same matrix of several experts.
        let matrix = self.pieces.first().is_some_and(|piece| piece.tensor.shape.len() >= 2);
        let step = AdamW { weight_decay: if matrix { step.weight_decay } else { 0.0 }, ..step };
        backend.adamw(
            step,
            training.grad.view(),
            self.master.view_mut(),
            training.moment1.view_mut(),
            training.moment2.view_mut(),
            self.compute.as_mut().map(Buffer::view_mut),
        )?;
        Ok(())
    }

    /// Forgets the gradient of an unfinished step.
    pub fn discard_grad(&mut self) {
        if let Some(training) = &mut self.training {
            training.started = false;
        }
    }
}

/// A parameter's values, and where its gradient adds up.
pub type ValueAndGrad<'a, Buf> = (View<'a, Buf>, ViewMut<'a, Buf>);

/// What training keeps of a parameter.
#[derive(Clone, Copy, Debug)]
pub struct Trained<'a, Buf> {
    /// The gradient of this step, if one was written.
    pub grad: Option<View<'a, Buf>>,
    /// First moment.
    pub moment1: View<'a, Buf>,
    /// Second moment.
    pub moment2: View<'a, Buf>,
}
