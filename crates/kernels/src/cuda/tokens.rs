//! Both ends of the model: embedding and cross-entropy.

use super::arguments::{Arguments, Array, In, Out, elements};
use super::buffer::CudaBuffer;
use super::compile::{Kernel, Source};
use super::launch::{Grid, Value};
use crate::backend::Outcome;
use crate::buffer::Element;

pub(super) static SOURCE: Source = Source {
    file: "tokens.cu",
    text: include_str!("tokens.cu"),
    kernels: &[&EMBEDDING_FORWARD, &EMBEDDING_BACKWARD, &CROSS_ENTROPY, &CROSS_ENTROPY_GRADIENT],
};
static EMBEDDING_FORWARD: Kernel = Kernel { source: &SOURCE, name: "embedding_forward", types: 2 };
static EMBEDDING_BACKWARD: Kernel = Kernel { source: &SOURCE, name: "embedding_backward", types: 1 };
static CROSS_ENTROPY: Kernel = Kernel { source: &SOURCE, name: "cross_entropy", types: 0 };
static CROSS_ENTROPY_GRADIENT: Kernel = Kernel { source: &SOURCE, name: "cross_entropy_gradient", types: 1 };

pub(super) fn embedding_forward(at: Arguments<'_>, width: usize, table: In<'_>, ids: In<'_>, out: Out<'_>) -> Outcome {
    let vocab = at.rows("table", table.len, width)?;
    let table = at.floats("table", table, elements([vocab, width]))?;
    let ids = at.indices("ids", ids, ids.len)?;
    let out = at.floats("out", &out, elements([ids.len, width]))?;
    at.below("token", ids, vocab)?;
    if ids.len == 0 {
        return Ok(());
    }
    let arguments = [width.into(), table.into(), ids.into(), out.into()];
    let grid = Grid::rows(at.0, ids.len, width)?;
    // SAFETY: a block for each id, which out has a row of `width` of; ids are below the rows of `width` in table.
    unsafe { at.1.launch(&EMBEDDING_FORWARD, &[table.element, out.element], grid, &arguments) }
}

/// Tokens are sorted by id on the host, so that each row of the table is added to by one block, in order.
pub(super) fn embedding_backward(
    at: Arguments<'_>,
    width: usize,
    d_out: In<'_>,
    ids: In<'_>,
    d_table: Out<'_>,
) -> Outcome {
    let vocab = at.rows("d_table", d_table.len, width)?;
    let d_table = at.f32s("d_table", &d_table, elements([vocab, width]))?;
    let ids = at.indices("ids", ids, ids.len)?;
    let d_out = at.floats("d_out", d_out, elements([ids.len, width]))?;
    at.shape(u32::try_from(ids.len).is_ok(), || format!("{} tokens exceed 32-bit indices; use fewer", ids.len))?;
    let ids: Vec<u32> = at.download(ids)?;
    at.below_on_host("token", &ids, vocab)?;
    if ids.is_empty() {
        return Ok(());
    }
    let order = Occurrences::of(&ids);
    let (ids, _ids) = placed(at, &order.ids)?;
    let (starts, _starts) = placed(at, &order.starts)?;
    let (tokens, _tokens) = placed(at, &order.tokens)?;
    let arguments = [width.into(), d_out.into(), ids.into(), starts.into(), tokens.into(), d_table.into()];
    let grid = Grid::rows(at.0, ids.len, width)?;
    // SAFETY: a block for each different id, which is below the rows of `width` in d_table; starts has one value more, all
    // within tokens; tokens are below the rows of `width` in d_out.
    unsafe { at.1.launch(&EMBEDDING_BACKWARD, &[d_out.element], grid, &arguments) }
}

/// Where each id occurs.
struct Occurrences {
    /// The different ids, ascending.
    ids: Vec<u32>,
    /// Where each one's tokens begin, and at the end their number.
    starts: Vec<u32>,
    /// All tokens, by id, those of one id in order.
    tokens: Vec<u32>,
}

impl Occurrences {
    fn of(ids: &[u32]) -> Self {
        let mut tokens: Vec<u32> = (0..).take(ids.len()).collect();
        tokens.sort_by_key(|&token| ids[token as usize]); // stable
        let (mut different, mut starts) = (Vec::new(), Vec::new());
        for (place, &token) in (0..).zip(&tokens) {
            let id = ids[token as usize];
            if different.last() != Some(&id) {
                different.push(id);
                starts.push(place);
            }
        }
        starts.push(tokens.len() as u32);
        Self { ids: different, starts, tokens }
    }
}

/// Indices of the host in device memory of their own.
fn placed(at: Arguments<'_>, indices: &[u32]) -> Outcome<(Array, CudaBuffer)> {
    let memory = CudaBuffer::new(at.1, Element::U32, indices.len())?;
    let array = Array { address: memory.address(), element: Element::U32, len: indices.len() };
    at.upload(indices, array)?;
    Ok((array, memory))
}

pub(super) fn cross_entropy(
    at: Arguments<'_>,
    vocab: usize,
    grad_scale: f64,
    logits: In<'_>,
    targets: In<'_>,
    nll: Out<'_>,
    d_logits: Option<Out<'_>>,
) -> Outcome {
    let targets = at.indices("targets", targets, targets.len)?;
    let tokens = targets.len;
    let logits = at.f32s("logits", logits, elements([tokens, vocab]))?;
    let nll = at.f32s("nll", &nll, tokens)?;
    let d_logits = d_logits.map(|d| at.floats("d_logits", &d, elements([tokens, vocab]))).transpose()?;
    at.below("target", targets, vocab)?;
    if tokens == 0 {
        return Ok(());
    }
    let grid = Grid::rows(at.0, tokens, vocab)?;
    let Some(d_logits) = d_logits else {
        let arguments = [vocab.into(), logits.into(), targets.into(), nll.into()];
        // SAFETY: a block for each of `tokens`, which logits has rows of `vocab` of, and targets and nll a value of;
        // targets are below `vocab`.
        return unsafe { at.1.launch(&CROSS_ENTROPY, &[], grid, &arguments) };
    };
    let scale = Value::F32(grad_scale as f32);
    let arguments = [vocab.into(), scale, logits.into(), targets.into(), nll.into(), d_logits.into()];
    // SAFETY: as above, and d_logits has `tokens` rows of `vocab`.
    unsafe { at.1.launch(&CROSS_ENTROPY_GRADIENT, &[d_logits.element], grid, &arguments) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_occurrences_of_an_id_are_in_order() {
        let order = Occurrences::of(&[7, 2, 7, 0, 2, 7]);
        assert_eq!(order.ids, [0, 2, 7]);
        assert_eq!(order.starts, [0, 1, 3, 6]);
        assert_eq!(order.tokens, [3, 1, 4, 0, 2, 5]);
    }
}
