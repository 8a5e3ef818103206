//! Windows of T+1 tokens out of one or several sources, in an order that is a pure function of (settings, index).
//!
//! The documents of a source are concatenated; window i covers the tokens i*T to i*T + T, so that each token but the
//! first is a target exactly once, and a source of n tokens has (n - 1) / T windows (the rest at its end is not used).
//! Sample k of the run is found without its predecessors: [`Blend`] says the source and how many samples that source
//! gave before; these, modulo the windows of the source, are its epoch and a position in it, which `sequential` takes as
//! the window and `shuffled` permutes anew in each epoch. Row r of step s is sample s * rows_per_step + r, wherever and
//! in whatever microbatches it is computed.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::blend::{Blend, weight_rule};
use crate::error::DataError;
use crate::permutation::{Permutation, key};
use crate::source::SourceSpec;
use crate::token_file::TokenFile;

/// In which order the windows of a source come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they lie in the file, from the first again when all were seen.
    Sequential,
    /// Every window once per epoch, each epoch in another order; decided by the seed.
    Shuffled,
}

/// One source of a [`Dataset`].
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    share: f64,
    tokens: TokenFile,
    window_count: u64,
}

impl Source {
    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its share of the samples: 0 to 1, all sources together 1.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Its tokens.
    pub fn tokens(&self) -> &TokenFile {
        &self.tokens
    }

    /// Windows in one epoch of this source; 1 at least.
    pub fn window_count(&self) -> u64 {
        self.window_count
    }
}

/// Where a sample comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Index of the source.
    pub source: usize,
    /// How often all windows of that source were seen before.
    pub epoch: u64,
    /// Index of the window in that source: its tokens begin at window * T.
    pub window: u64,
}

/// Rows of one step, row-major: `inputs` and `targets` are (rows, T), `targets` one token further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Rows.
    pub rows: usize,
    /// T.
    pub seq_len: usize,
    /// (rows, T).
    pub inputs: Vec<u32>,
    /// (rows, T).
    pub targets: Vec<u32>,
}

/// Token sources, blended, as an endless sequence of samples.
#[derive(Debug)]
pub struct Dataset {
    sources: Vec<Source>,
    blend: Blend,
    seq_len: usize,
    vocab_size: u64,
    order: Order,
    seed: u64,
}

impl Dataset {
    /// Opens and checks all sources. `seq_len` is T, `vocab_size` V; `seed` is for [`Order::Shuffled`] only.
    ///
    /// # Errors
    /// Everything that is wrong with the settings and any source, at once ([`DataError::Many`] if more than one thing):
    /// [`DataError::Setting`], [`DataError::Weight`], [`DataError::TooShort`] and the errors of [`TokenFile::open`].
    pub fn open(
        sources: &[SourceSpec],
        seq_len: usize,
        vocab_size: usize,
        order: Order,
        seed: u64,
    ) -> Result<Dataset, DataError> {
        let mut errors = Vec::new();
        let mut setting = |valid: bool, name, value: usize, rule: &str| {
            if !valid {
                errors.push(DataError::Setting { name, value: value.to_string(), rule: rule.into() });
            }
        };
        setting(!sources.is_empty(), "number of sources", sources.len(), "there has to be one at least");
        setting((1..1 << 32).contains(&seq_len), "seq_len", seq_len, "a window has from 1 to 2^32 - 1 targets");
        setting((1..=1 << 32).contains(&vocab_size), "vocab_size", vocab_size, "a vocabulary has from 1 to 2^32 ids");

        let largest = sources.iter().map(|spec| spec.weight).filter(|weight| weight.is_finite()).fold(0.0, f64::max);
        let total = sources.iter().map(|spec| spec.weight / largest).sum::<f64>();
        let mut opened = Vec::with_capacity(sources.len());
        for spec in sources {
            if let Some(rule) = weight_rule(spec.weight, largest) {
                errors.push(DataError::Weight { path: spec.path.clone(), weight: spec.weight, rule });
            }
            match Source::open(spec, seq_len.max(1) as u64, spec.weight / largest / total) {
                Ok(source) => opened.push(source),
                Err(error) => errors.push(error),
            }
        }
        if let Some(error) = DataError::collect(errors) {
            return Err(error);
        }
        let weights = sources.iter().map(|spec| spec.weight).collect::<Vec<_>>();
        Ok(Dataset {
            sources: opened,
            blend: Blend::new(&weights),
            seq_len,
            vocab_size: vocab_size as u64,
            order,
            seed,
        })
    }

    /// T: targets of a window.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The sources in the order that they were given.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Windows of all sources together, each once.
    pub fn window_count(&self) -> u64 {
        self.sources.iter().fold(0, |sum, source| sum.saturating_add(source.window_count))
    }

    /// Tokens of all sources together.
    pub fn token_count(&self) -> u64 {
        self.sources.iter().fold(0, |sum, source| sum.saturating_add(source.tokens.token_count()))
    }

    /// Where sample number `sample` of the run comes from. Pure: no file is read.
    ///
    /// With a single source and [`Order::Sequential`] it is window `sample % window_count`.
    pub fn locate(&self, sample: u64) -> Sample {
        let (source, nth) = self.blend.pick(sample);
        let window_count = self.sources[source].window_count;
        let (epoch, position) = (nth / window_count, nth % window_count);
        let window = match self.order {
            Order::Sequential => position,
            Order::Shuffled => Permutation::new(window_count, key(self.seed, source as u64, epoch)).apply(position),
        };
        Sample { source, epoch, window }
    }

    /// The T+1 tokens of sample number `sample`.
    ///
    /// # Errors
    /// [`DataError::Token`] for an id outside the vocabulary, [`DataError::Changed`] and [`DataError::Io`] for a file
    /// that was altered since it was opened.
    pub fn window(&self, sample: u64) -> Result<Vec<u32>, DataError> {
        let mut tokens = vec![0; self.seq_len + 1];
        self.read_window_into(sample, &mut tokens)?;
        Ok(tokens)
    }

    /// Reads the T+1 tokens of sample number `sample` into `out`, which has that length.
    ///
    /// # Errors
    /// Those of [`Dataset::window`], and [`DataError::Setting`] if `out` has another length.
    pub fn read_window_into(&self, sample: u64, out: &mut [u32]) -> Result<(), DataError> {
        if out.len() != self.seq_len + 1 {
            let rule = format!("a window has seq_len + 1 = {} tokens", self.seq_len + 1);
            return Err(DataError::Setting { name: "window buffer length", value: out.len().to_string(), rule });
        }
        let Sample { source, window, .. } = self.locate(sample);
        // Below the tokens of the source, since window < (tokens - 1) / T.
        self.sources[source].tokens.read(window * self.seq_len as u64, self.vocab_size, out)
    }

    /// All rows of a step; row r is sample `step * rows_per_step + r`.
    ///
    /// # Errors
    /// Those of [`Dataset::batch_rows`].
    pub fn batch(&self, step: u64, rows_per_step: usize) -> Result<Batch, DataError> {
        self.batch_rows(step, rows_per_step, 0..rows_per_step)
    }

    /// Some rows of a step: those of a microbatch, the same as in [`Dataset::batch`].
    ///
    /// # Errors
    /// Those of [`Dataset::window`]; [`DataError::Setting`] if `rows` are not among those of the step, none at all, or
    /// the sample index exceeds 64 bits.
    pub fn batch_rows(&self, step: u64, rows_per_step: usize, rows: Range<usize>) -> Result<Batch, DataError> {
        if rows.is_empty() || rows.end > rows_per_step {
            let rule = format!("a step has the rows 0..{rows_per_step} and a batch one of them at least");
            return Err(DataError::Setting { name: "rows", value: format!("{rows:?}"), rule });
        }
        let first =
            (rows_per_step as u64).checked_mul(step).filter(|first| first.checked_add(rows.end as u64).is_some());
        let Some(first) = first else {
            let rule = format!("with {rows_per_step} rows per step its sample index exceeds 2^64");
            return Err(DataError::Setting { name: "step", value: step.to_string(), rule });
        };
        let seq_len = self.seq_len;
        let mut window = vec![0; seq_len + 1];
        let mut inputs = Vec::with_capacity(rows.len() * seq_len);
        let mut targets = Vec::with_capacity(rows.len() * seq_len);
        for row in rows.clone() {
            self.read_window_into(first + row as u64, &mut window)?;
            inputs.extend_from_slice(&window[..seq_len]);
            targets.extend_from_slice(&window[1..]);
        }
        Ok(Batch { rows: rows.len(), seq_len, inputs, targets })
    }
}

impl Source {
    fn open(spec: &SourceSpec, seq_len: u64, share: f64) -> Result<Source, DataError> {
        let tokens = TokenFile::open(&spec.path, spec.format)?;
        let window_count = (tokens.token_count() - 1) / seq_len;
        if window_count == 0 {
            let token_count = tokens.token_count();
            return Err(DataError::TooShort { path: spec.path.clone(), token_count, window_tokens: seq_len + 1 });
        }
        Ok(Source { path: spec.path.clone(), share, tokens, window_count })
    }
}
