//! The comparison: one kernel, one set of arguments, the backend under test beside the reference.

use std::fmt::Debug;

use super::Failure;
use super::argument::{Argument, Placed};
use super::compare::{compare, same_bits};
use super::draw::Draw;
use super::tolerance::Tolerance;
use crate::backend::{Backend, Outcome};
use crate::buffer::Element;
use crate::error::KernelError;
use crate::ops::RouterStats;
use crate::reference::Reference;

/// A call of a kernel, on whatever backend, with arguments in its memory.
pub(super) trait Kernel<const N: usize>: Debug {
    fn call<B: Backend>(&self, on: &B, arguments: &mut [Placed<B>; N]) -> Outcome<Reply>;
}

/// Numbers that a kernel returns to the host: name, tolerance, values.
#[derive(Debug, Default)]
pub(super) struct Reply(pub(super) Vec<(&'static str, Tolerance, Vec<f64>)>);

impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::default()
    }
}

impl From<RouterStats> for Reply {
    fn from(stats: RouterStats) -> Self {
        Self(vec![
            ("counts", Tolerance::Exact, stats.counts.into_iter().map(f64::from).collect()),
            ("score_sum", Tolerance::operations(64.0), stats.score_sum),
            ("z_sum", Tolerance::operations(64.0), vec![stats.z_sum]),
        ])
    }
}

/// The backend under test, one that has to give the same bits, the reference, and a stream of random inputs.
pub(super) struct Bench<'a, B: Backend> {
    pub(super) subject: &'a B,
    twin: &'a B,
    pub(super) oracle: Reference,
    pub(super) draw: Draw,
}

impl<'a, B: Backend> Bench<'a, B> {
    pub(super) fn new(subject: &'a B, twin: &'a B, seed: u64) -> Self {
        Self { subject, twin, oracle: Reference::new(), draw: Draw::new(seed) }
    }

    /// Both sides get the same arguments and give the same results, within each output's tolerance; what is read only
    /// and what lies around the views stays as it is; a second call, by the twin and elsewhere in memory, gives the same
    /// bits.
    pub(super) fn agree<const N: usize>(&mut self, kernel: &impl Kernel<N>, arguments: [Argument; N]) -> Checked {
        let (want, want_reply) = call(&self.oracle, kernel, &arguments, &mut self.draw)?;
        let (got, got_reply) = call(self.subject, kernel, &arguments, &mut self.draw)?;
        let (again, again_reply) = call(self.twin, kernel, &arguments, &mut self.draw)?;
        let context = |what: String| Failure::wrong(format!("{kernel:?}: {what}"));

        for (i, argument) in arguments.iter().enumerate() {
            let name = argument.name;
            match argument.written {
                None if !same_bits(&got[i], &argument.values) => {
                    return Err(context(format!("{name} is read only, but was written")));
                }
                None => {}
                Some(tolerance) => {
                    // What an output holds that is overwritten is NaN, and no term of the result.
                    let before = if argument.values.iter().any(|v| v.is_nan()) { &[][..] } else { &argument.values };
                    compare(name, argument.element, tolerance, &got[i], &want[i], before).map_err(context)?;
                    if !same_bits(&got[i], &again[i]) {
                        return Err(context(format!(
                            "{name} has other bits when the call is repeated elsewhere in memory"
                        )));
                    }
                }
            }
        }
        for (i, (name, tolerance, want)) in want_reply.0.iter().enumerate() {
            compare(name, Element::F32, *tolerance, &got_reply.0[i].2, want, &[]).map_err(context)?;
            if !same_bits(&got_reply.0[i].2, &again_reply.0[i].2) {
                return Err(context(format!("{name} has other bits when the call is repeated elsewhere in memory")));
            }
        }
        Ok(())
    }

    /// The arguments as the reference leaves them, rounded to their types: inputs of a backward pass.
    pub(super) fn on_reference<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        mut arguments: [Argument; N],
    ) -> Result<[Argument; N], Failure> {
        let (values, _) = call(&self.oracle, kernel, &arguments, &mut self.draw)?;
        for (argument, values) in arguments.iter_mut().zip(values) {
            argument.values = values.into_iter().map(|v| super::argument::round(argument.element, v)).collect();
        }
        Ok(arguments)
    }

    /// What the backend under test makes of the arguments.
    pub(super) fn on_subject<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        arguments: &[Argument; N],
    ) -> Result<[Vec<f64>; N], Failure> {
        Ok(call(self.subject, kernel, arguments, &mut self.draw)?.0)
    }

    /// Every argument one element too long or too short, and of every type that the kernel does not take there, is
    /// refused by the right error, and nothing is written.
    pub(super) fn refuses_faults<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        arguments: &[Argument; N],
    ) -> Checked {
        for i in 0..N {
            let mut longer = arguments.clone();
            let last = longer[i].values.last().copied().unwrap_or(0.0);
            longer[i].values.push(last);
            self.refuses(kernel, &longer, "a length error", |e| matches!(e, KernelError::Length { .. }))?;
            let mut shorter = arguments.clone();
            if shorter[i].values.pop().is_some() {
                self.refuses(kernel, &shorter, "a length error", |e| matches!(e, KernelError::Length { .. }))?;
            }
        }
        self.refuses_elements(kernel, arguments)
    }

    /// The half of [`Self::refuses_faults`] that is about element types.
    pub(super) fn refuses_elements<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        arguments: &[Argument; N],
    ) -> Checked {
        for i in 0..N {
            for element in arguments[i].refused.clone() {
                let mut other = arguments.clone();
                other[i].element = element;
                other[i].values.fill(0.0);
                self.refuses(kernel, &other, "an element type error", |e| matches!(e, KernelError::Element { .. }))?;
            }
        }
        Ok(())
    }

    /// The call is refused by `expected`, and nothing is written.
    pub(super) fn refuses<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        arguments: &[Argument; N],
        expected: &'static str,
        is_expected: impl Fn(&KernelError) -> bool,
    ) -> Checked {
        let lengths: Vec<_> = arguments.iter().map(|a| (a.name, a.element, a.values.len())).collect();
        let context = |what: String| Failure::wrong(format!("{kernel:?} with {lengths:?}: {what}"));
        let mut placed = place(self.subject, arguments, &mut self.draw)?;
        match kernel.call(self.subject, &mut placed) {
            Err(missing @ KernelError::Missing { .. }) => return Err(missing.into()),
            Err(error) if is_expected(&error) => {}
            Err(error) => return Err(context(format!("expected {expected}, but was refused by: {error}"))),
            Ok(_) => return Err(context(format!("expected {expected}, but it ran"))),
        }
        for (argument, placed) in arguments.iter().zip(&placed) {
            // What was rounded to another type by the fault itself is compared as it lies there.
            let now = placed.values(self.subject, argument.name)?;
            let before =
                argument.values.iter().map(|&v| super::argument::round(argument.element, v)).collect::<Vec<_>>();
            if !same_bits(&now, &before) {
                return Err(context(format!("{} was written by a call that was refused", argument.name)));
            }
        }
        Ok(())
    }

    /// An index outside its range is refused.
    pub(super) fn refuses_index<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        mut arguments: [Argument; N],
        which: usize,
        bound: usize,
    ) -> Checked {
        let position = self.draw.below(arguments[which].values.len());
        arguments[which].values[position] = bound as f64;
        self.refuses(kernel, &arguments, "an index error", |e| {
            matches!(e, KernelError::Index { value, position: at, bound: b, .. }
                if *value == bound as u64 && *at == position && *b == bound as u64)
        })
    }

    /// Shapes that contradict one another are refused.
    pub(super) fn refuses_shape<const N: usize>(
        &mut self,
        kernel: &impl Kernel<N>,
        arguments: &[Argument; N],
    ) -> Checked {
        self.refuses(kernel, arguments, "a shape error", |e| matches!(e, KernelError::Shape { .. }))
    }
}

/// What a check says.
pub(super) type Checked = Result<(), Failure>;

fn place<B: Backend, const N: usize>(
    backend: &B,
    arguments: &[Argument; N],
    draw: &mut Draw,
) -> Result<[Placed<B>; N], Failure> {
    let placed =
        arguments.iter().map(|argument| Placed::place(backend, argument, draw)).collect::<Result<Vec<_>, _>>()?;
    placed.try_into().map_err(|_| Failure::wrong("arguments were lost".to_owned()))
}

type Called<const N: usize> = ([Vec<f64>; N], Reply);

fn call<B: Backend, const N: usize>(
    backend: &B,
    kernel: &impl Kernel<N>,
    arguments: &[Argument; N],
    draw: &mut Draw,
) -> Result<Called<N>, Failure> {
    let mut placed = place(backend, arguments, draw)?;
    let reply = kernel.call(backend, &mut placed).map_err(|error| match error {
        KernelError::Missing { .. } => Failure::from(error),
        error => Failure::wrong(format!("{kernel:?}: refused on {}: {error}", backend.name())),
    })?;
    let mut values = [const { Vec::new() }; N];
    for ((values, placed), argument) in values.iter_mut().zip(&placed).zip(arguments) {
        *values = placed.values(backend, argument.name)?;
    }
    Ok((values, reply))
}
