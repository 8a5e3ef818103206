//! What data can be refused for.
//!
//! None of these is worth a retry: a file, a setting or a call is wrong, and the run stops. Only [`DataError::Io`] may
//! pass by itself, when its source says so.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use crate::dtype::{TokenDtype, TokenValue};

/// Why token data cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The operating system refused; the source has its words.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Nothing that could be token data is at a path.
    #[error(
        "there is no token data at {path}: {tried}; give a Megatron prefix, its .bin or .idx, or a .u16 or .u32 file"
    )]
    NotFound {
        /// The path as given.
        path: PathBuf,
        /// What was looked for.
        tried: String,
    },
    /// A path names more than one thing, or a file whose format its name does not tell.
    #[error("the path {path} is ambiguous: {reason}")]
    Ambiguous {
        /// The path as given.
        path: PathBuf,
        /// What it could be, and what to write instead.
        reason: String,
    },
    /// One file of a `.bin`/`.idx` pair is missing.
    #[error("{present} has no {missing} beside it; copy it there too, or tokenize again")]
    MissingPartner {
        /// The file that exists.
        present: PathBuf,
        /// The file that does not.
        missing: PathBuf,
    },
    /// A directory, a pipe or a device where a file has to be.
    #[error("{path} is not a regular file; give the path of a token file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file without a single token.
    #[error("{path} holds no tokens; leave it out or tokenize again")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Bytes that contradict the format or each other.
    #[error("{path} at byte {offset}: {field} is {value}, but {rule}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the field begins, in bytes from the start of the file.
        offset: u64,
        /// What stands there.
        field: String,
        /// Its value.
        value: String,
        /// What it has to be, and what to do.
        rule: String,
    },
    /// A file is shorter or longer than its contents or its index say.
    #[error("{path} ends at byte {found}, but {reason}")]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// How long it has to be, by what, and what to do.
        reason: String,
    },
    /// A token that is no id of the vocabulary: too large, negative or not an integer.
    #[error(
        "{path} at byte {offset}: token {value} is not an id below the vocabulary size {vocab_size}; tokenize with this \
         model's tokenizer, or check vocab_size"
    )]
    Token {
        /// The file.
        path: PathBuf,
        /// Where the token begins, in bytes from the start of the file.
        offset: u64,
        /// What stands there.
        value: TokenValue,
        /// V: ids have to be below it.
        vocab_size: u64,
    },
    /// A file got another length after it had been opened.
    #[error(
        "{path} had {opened_bytes} bytes when it was opened and has {found_bytes} now; leave token files alone while they are in use, and start again"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Length at opening.
        opened_bytes: u64,
        /// Length now.
        found_bytes: u64,
    },
    /// A source that cannot fill one window.
    #[error(
        "{path} has {token_count} tokens, but one window takes seq_len + 1 = {window_tokens}; shorten seq_len or leave the source out"
    )]
    TooShort {
        /// The source as given.
        path: PathBuf,
        /// Its tokens.
        token_count: u64,
        /// Tokens that one window needs.
        window_tokens: u64,
    },
    /// A weight that cannot be a share.
    #[error("source {path} has weight = {weight}, but {rule}")]
    Weight {
        /// The source as given.
        path: PathBuf,
        /// Its weight.
        weight: f64,
        /// What it has to be.
        rule: &'static str,
    },
    /// A setting or an argument outside its range.
    #[error("{name} = {value}, but {rule}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it has to be.
        rule: String,
    },
    /// A token that the dtype of the file being written cannot hold.
    #[error(
        "{path}: token {value} at position {position} of the appended tokens does not fit {dtype}; write a wider dtype"
    )]
    DoesNotFit {
        /// The file being written.
        path: PathBuf,
        /// The token.
        value: u32,
        /// Its position in the slice that was appended.
        position: usize,
        /// The dtype of the file.
        dtype: TokenDtype,
    },
    /// A file that would be overwritten.
    #[error("{path} exists already; remove it or write to another name")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Several problems, found in one go.
    #[error("{0}")]
    Many(Problems),
}

impl DataError {
    /// The one error, or all of them as [`DataError::Many`]; `None` if there is none.
    pub(crate) fn collect(mut errors: Vec<DataError>) -> Option<DataError> {
        if errors.len() > 1 { Some(DataError::Many(Problems(errors))) } else { errors.pop() }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> DataError {
        let path = path.into();
        move |source| DataError::Io { action, path, source }
    }
}

/// More than one problem; its text has one per line, each with its causes.
#[derive(Debug)]
pub struct Problems(pub Vec<DataError>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the data has {} problems:", self.0.len())?;
        for problem in &self.0 {
            write!(f, "\n- {problem}")?;
            let mut cause = problem.source();
            while let Some(error) = cause {
                write!(f, ": {error}")?;
                cause = error.source();
            }
        }
        Ok(())
    }
}
