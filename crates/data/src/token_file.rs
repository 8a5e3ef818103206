//! The tokens of one source: a Megatron pair or a flat file, as one array.
//!
//! Opening checks everything but the tokens themselves (an index against its `.bin`, lengths against dtypes) in time
//! linear in the sequences; a token is checked when it is read, since checking all would read the whole corpus.

use std::path::Path;

use crate::dtype::TokenDtype;
use crate::error::DataError;
use crate::index::{Index, Run};
use crate::mapped::MappedFile;
use crate::source::{Files, SourceFormat, resolve};

/// A memory-mapped array of tokens: the documents of a source, one after the other.
#[derive(Debug)]
pub struct TokenFile {
    data: MappedFile,
    dtype: TokenDtype,
    token_count: u64,
    runs: Vec<Run>,
    sequence_count: Option<u64>,
    document_count: Option<u64>,
}

impl TokenFile {
    /// Opens a Megatron prefix, its `.bin` or `.idx`, or a flat file.
    ///
    /// # Errors
    /// If the path means no files or several ([`DataError::NotFound`], [`DataError::Ambiguous`],
    /// [`DataError::MissingPartner`]), or they are damaged ([`DataError::Corrupt`], [`DataError::Length`],
    /// [`DataError::Empty`], [`DataError::NotAFile`], [`DataError::Io`]).
    pub fn open(path: impl AsRef<Path>, format: SourceFormat) -> Result<TokenFile, DataError> {
        match resolve(path.as_ref(), format)? {
            Files::Megatron { bin, idx } => Self::open_megatron(&bin, &idx),
            Files::Flat { path, dtype } => Self::open_flat(&path, dtype),
        }
    }

    fn open_megatron(bin: &Path, idx: &Path) -> Result<TokenFile, DataError> {
        let data = MappedFile::open(bin)?;
        // The index is unmapped again: what is needed of it are a few runs.
        let mapped = MappedFile::open(idx)?;
        let index = Index::parse(idx, mapped.bytes()?, bin, data.len())?;
        Ok(TokenFile {
            data,
            dtype: index.dtype,
            token_count: index.token_count,
            runs: index.runs,
            sequence_count: Some(index.sequence_count),
            document_count: Some(index.document_count),
        })
    }

    fn open_flat(path: &Path, dtype: TokenDtype) -> Result<TokenFile, DataError> {
        let data = MappedFile::open(path)?;
        if data.len() % dtype.bytes() != 0 {
            let reason = format!("it has to be a multiple of the {} bytes of a {dtype}; copy it again", dtype.bytes());
            return Err(DataError::Length { path: path.into(), found: data.len(), reason });
        }
        let token_count = data.len() / dtype.bytes();
        let runs = vec![Run { token: 0, byte: 0 }];
        Ok(TokenFile { data, dtype, token_count, runs, sequence_count: None, document_count: None })
    }

    /// The file that the tokens are in: the flat one, or the `.bin`.
    pub fn path(&self) -> &Path {
        self.data.path()
    }

    /// How a token lies in the file.
    pub fn dtype(&self) -> TokenDtype {
        self.dtype
    }

    /// All tokens; 1 at least.
    pub fn token_count(&self) -> u64 {
        self.token_count
    }

    /// The sequences of a Megatron index; `None` for a flat file.
    pub fn sequence_count(&self) -> Option<u64> {
        self.sequence_count
    }

    /// The documents of a Megatron index; `None` for a flat file.
    pub fn document_count(&self) -> Option<u64> {
        self.document_count
    }

    /// Reads the tokens `first..first + out.len()`, in the order of the documents.
    ///
    /// # Errors
    /// [`DataError::Token`] for the first that is not an id below `vocab_size` (at most 2^32), with its place in the
    /// file; [`DataError::Setting`] beyond the last token; [`DataError::Changed`] if the file was altered since opening.
    pub fn read(&self, first: u64, vocab_size: u64, out: &mut [u32]) -> Result<(), DataError> {
        let end = first.checked_add(out.len() as u64).filter(|&end| end <= self.token_count);
        let Some(end) = end else {
            let value = format!("{first} to {}", first.saturating_add(out.len() as u64));
            let rule = format!("{} has {} tokens", self.path().display(), self.token_count);
            return Err(DataError::Setting { name: "token range", value, rule });
        };
        let bytes = self.data.bytes()?;
        let mut run = self.runs.partition_point(|run| run.token <= first).saturating_sub(1);
        let mut token = first;
        let mut out = out;
        while token < end {
            let next = self.runs.get(run + 1).map_or(end, |next| next.token.min(end));
            let (here, rest) = out.split_at_mut((next - token) as usize);
            self.read_run(bytes, self.runs[run], token, vocab_size, here)?;
            (out, token, run) = (rest, next, run + 1);
        }
        Ok(())
    }

    fn read_run(&self, bytes: &[u8], run: Run, token: u64, vocab_size: u64, out: &mut [u32]) -> Result<(), DataError> {
        let width = self.dtype.bytes();
        let begin = run.byte + (token - run.token) * width;
        // The index tiles the file, so both ends are inside it and fit into usize.
        let words = &bytes[begin as usize..(begin + out.len() as u64 * width) as usize];
        self.dtype.decode(words, vocab_size, out).map_err(|(index, value)| DataError::Token {
            path: self.path().into(),
            offset: begin + index as u64 * width,
            value,
            vocab_size,
        })
    }
}
