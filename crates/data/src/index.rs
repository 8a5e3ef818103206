//! The Megatron `.idx` file: what it says about its `.bin`, checked to the last byte.
//!
//! All integers little-endian, nothing aligned:
//!
//! | byte | what |
//! |---|---|
//! | 0 | magic `MMIDIDX\0\0` |
//! | 9 | version, u64, 1 |
//! | 17 | dtype code, u8 |
//! | 18 | sequences n, u64 |
//! | 26 | document indices d, u64: the number of documents plus one |
//! | 34 | sizes in tokens, i32 (n) |
//! | 34 + 4n | pointers into the `.bin` in bytes, i64 (n) |
//! | 34 + 12n | document indices, i64 (d): where each document begins, in sequences, and n |
//! | 34 + 12n + 8d | modes, u8 (n), only in multimodal files; 0 is text |
//!
//! **Invariant:** the sequences of an accepted index tile the `.bin`: no byte is in two of them and none is in no one.
//! Megatron writes them one after the other; in another order they are taken too, and their tokens are those of the
//! sequences in the order of the index. So the text of a file is one array of tokens in a few contiguous [`Run`]s. A
//! sequence of no tokens may point anywhere in the `.bin`.
//!
//! Parsing is pure, takes time linear in the sequences (a sort more if they are out of order) and memory in proportion
//! to the runs, whatever the counts claim.

use std::path::Path;

use crate::dtype::TokenDtype;
use crate::error::DataError;

pub(crate) const MAGIC: &[u8; 9] = b"MMIDIDX\0\0";
pub(crate) const VERSION: u64 = 1;
const DTYPE_AT: u64 = 17;
const SEQUENCES_AT: u64 = 18;
const DOCUMENTS_AT: u64 = 26;
const HEADER_BYTES: u64 = 34;

/// Tokens that lie one after the other in the `.bin`, up to where the next run begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first token, counted in the order of the text.
    pub(crate) token: u64,
    /// Where it lies in the `.bin`, in bytes.
    pub(crate) byte: u64,
}

/// A checked index.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) dtype: TokenDtype,
    pub(crate) sequence_count: u64,
    pub(crate) document_count: u64,
    pub(crate) token_count: u64,
    /// In the order of the text; the first begins at token 0.
    pub(crate) runs: Vec<Run>,
}

/// Sequences that follow each other in the index and in the `.bin`, in bytes of the latter.
#[derive(Clone, Copy)]
struct Span {
    begin: u64,
    end: u64,
    /// The first of them.
    sequence: usize,
}

impl Index {
    /// Reads the index `bytes` of the file `idx` against a `bin` of `bin_bytes` bytes.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] and [`DataError::Length`], with the file, the place and the value.
    pub(crate) fn parse(idx: &Path, bytes: &[u8], bin: &Path, bin_bytes: u64) -> Result<Index, DataError> {
        Parser { idx, bytes, bin, bin_bytes }.parse()
    }
}

struct Parser<'a> {
    idx: &'a Path,
    bytes: &'a [u8],
    bin: &'a Path,
    bin_bytes: u64,
}

impl Parser<'_> {
    fn parse(&self) -> Result<Index, DataError> {
        let (dtype, sequence_count, document_indices) = self.header()?;
        let body = &self.bytes[HEADER_BYTES as usize..];
        // The lengths were checked against the file, so all of these fit into usize and into the body.
        let n = sequence_count as usize;
        let (sizes, rest) = body.split_at(4 * n);
        let (pointers, rest) = rest.split_at(8 * n);
        let (documents, modes) = rest.split_at(8 * document_indices as usize);
        let (sizes, pointers) = (sizes.as_chunks::<4>().0, pointers.as_chunks::<8>().0);

        self.check_documents(documents.as_chunks::<8>().0, n)?;
        self.check_modes(modes)?;
        let (runs, token_count) = self.runs(dtype, sizes, pointers)?;
        Ok(Index { dtype, sequence_count, document_count: document_indices - 1, token_count, runs })
    }

    /// The dtype, the sequences and the document indices, with which the file has exactly its length.
    fn header(&self) -> Result<(TokenDtype, u64, u64), DataError> {
        let magic = self.bytes.get(..MAGIC.len()).unwrap_or(self.bytes);
        if magic != MAGIC {
            let rule = "a Megatron index begins with \"MMIDIDX\\0\\0\"; give the .idx that belongs to the .bin";
            return Err(self.corrupt(0, "magic", format!("\"{}\"", magic.escape_ascii()), rule));
        }
        let found = self.bytes.len() as u64;
        if found < HEADER_BYTES {
            return Err(self.length(format!("the header alone takes {HEADER_BYTES} bytes")));
        }
        let version = self.u64_at(MAGIC.len() as u64);
        if version != VERSION {
            return Err(self.corrupt(MAGIC.len() as u64, "version", version, "only version 1 is known"));
        }
        let code = self.bytes[DTYPE_AT as usize];
        let dtype = TokenDtype::from_megatron_code(code)
            .ok_or_else(|| self.corrupt(DTYPE_AT, "dtype code", code, "Megatron's codes go from 1 to 8"))?;

        let sequences = self.u64_at(SEQUENCES_AT);
        let documents = self.u64_at(DOCUMENTS_AT);
        let body = found - HEADER_BYTES;
        if sequences > body / 12 {
            let rule = format!("the file's {found} bytes have room for {} at most; copy it again", body / 12);
            return Err(self.corrupt(SEQUENCES_AT, "sequence count", sequences, rule));
        }
        if documents == 0 {
            let rule = "it counts where documents begin and where the last one ends, so it is 1 at least";
            return Err(self.corrupt(DOCUMENTS_AT, "document index count", documents, rule));
        }
        let rest = body - 12 * sequences;
        if documents > rest / 8 {
            let rule = format!(
                "the file's {found} bytes have room for {} after {sequences} sequences; copy it again",
                rest / 8
            );
            return Err(self.corrupt(DOCUMENTS_AT, "document index count", documents, rule));
        }
        let modes = rest - 8 * documents;
        if modes != 0 && modes != sequences {
            let expected = found - modes;
            return Err(self.length(format!(
                "{sequences} sequences and {documents} document indices take {expected} bytes ({} with modes); copy \
                 the file again",
                expected + sequences
            )));
        }
        Ok((dtype, sequences, documents))
    }

    fn check_documents(&self, documents: &[[u8; 8]], sequences: usize) -> Result<(), DataError> {
        let at = |index: usize| HEADER_BYTES + 12 * sequences as u64 + 8 * index as u64;
        let mut previous = 0;
        for (index, word) in documents.iter().enumerate() {
            let value = i64::from_le_bytes(*word);
            let rule = if index == 0 && value != 0 {
                "the first document begins at sequence 0".into()
            } else if value < previous {
                format!("the one before is {previous}, and documents are in order")
            } else if index + 1 == documents.len() && value as u64 != sequences as u64 {
                format!("the last document ends after {sequences} sequences")
            } else {
                previous = value;
                continue;
            };
            return Err(self.corrupt(at(index), format!("document index {index}"), value, rule));
        }
        Ok(())
    }

    fn check_modes(&self, modes: &[u8]) -> Result<(), DataError> {
        match modes.iter().position(|&mode| mode != 0) {
            None => Ok(()),
            Some(sequence) => {
                let offset = (self.bytes.len() - modes.len() + sequence) as u64;
                let rule = "only text (mode 0) can be read; tokenize the text alone";
                Err(self.corrupt(offset, format!("mode of sequence {sequence}"), modes[sequence], rule))
            }
        }
    }

    /// The runs and the tokens in them, once the sequences are known to tile the `.bin`.
    fn runs(&self, dtype: TokenDtype, sizes: &[[u8; 4]], pointers: &[[u8; 8]]) -> Result<(Vec<Run>, u64), DataError> {
        let mut spans: Vec<Span> = Vec::new();
        let mut covered = 0;
        let mut in_order = true;
        for (sequence, (size, pointer)) in sizes.iter().zip(pointers).enumerate() {
            let span = self.span(dtype, sequence, sizes.len(), *size, *pointer)?;
            if span.begin == span.end && (span.begin == covered || span.begin <= self.bin_bytes) {
                continue;
            }
            in_order &= span.begin == covered;
            covered = span.end;
            match spans.last_mut() {
                Some(last) if last.end == span.begin => last.end = span.end,
                _ => spans.push(span),
            }
        }
        if !in_order {
            self.check_tiling(&spans, sizes.len())?;
        } else if covered != self.bin_bytes {
            return Err(self.bin_length(covered));
        }
        let mut runs = Vec::with_capacity(spans.len());
        let mut token = 0;
        for Span { begin, end, .. } in spans {
            runs.push(Run { token, byte: begin });
            token += (end - begin) / dtype.bytes();
        }
        Ok((runs, token))
    }

    /// For sequences in another order than that of the `.bin`: sorted, each has to begin where the last one ended.
    fn check_tiling(&self, spans: &[Span], sequences: usize) -> Result<(), DataError> {
        let bin = self.bin.display();
        let contradiction = |span: &Span, rule| {
            let offset = HEADER_BYTES + 4 * sequences as u64 + 8 * span.sequence as u64;
            self.corrupt(offset, format!("pointer of sequence {}", span.sequence), span.begin, rule)
        };
        if let Some(span) = spans.iter().find(|span| span.end > self.bin_bytes) {
            let bytes = span.end - span.begin;
            let rule = format!("{bytes} bytes are to follow there and {bin} ends at {}", self.bin_bytes);
            return Err(contradiction(span, rule));
        }
        let mut spans = spans.to_vec();
        spans.sort_unstable_by_key(|span| span.begin);
        let mut covered = 0;
        for span in &spans {
            if span.begin != covered {
                let problem = if span.begin < covered { "two sequences" } else { "none" };
                let at = span.begin.min(covered);
                let rule = format!("byte {at} of {bin} would belong to {problem}; sizes and pointers contradict");
                return Err(contradiction(span, rule));
            }
            covered = span.end;
        }
        if covered == self.bin_bytes { Ok(()) } else { Err(self.bin_length(covered)) }
    }

    fn span(
        &self,
        dtype: TokenDtype,
        sequence: usize,
        sequences: usize,
        size: [u8; 4],
        pointer: [u8; 8],
    ) -> Result<Span, DataError> {
        let (size, pointer) = (i32::from_le_bytes(size), i64::from_le_bytes(pointer));
        let Ok(tokens) = u64::try_from(size) else {
            let offset = HEADER_BYTES + 4 * sequence as u64;
            return Err(self.corrupt(offset, format!("size of sequence {sequence}"), size, "a size is 0 at least"));
        };
        let Ok(begin) = u64::try_from(pointer) else {
            let offset = HEADER_BYTES + 4 * sequences as u64 + 8 * sequence as u64;
            let field = format!("pointer of sequence {sequence}");
            return Err(self.corrupt(offset, field, pointer, "a pointer is 0 at least"));
        };
        // Cannot overflow: 2^63 at the most plus less than 2^34.
        Ok(Span { begin, end: begin + tokens * dtype.bytes(), sequence })
    }

    /// Only for offsets inside the header, whose length has been checked.
    fn u64_at(&self, offset: u64) -> u64 {
        let offset = offset as usize;
        let mut word = [0; 8];
        word.copy_from_slice(&self.bytes[offset..offset + 8]);
        u64::from_le_bytes(word)
    }

    fn corrupt(
        &self,
        offset: u64,
        field: impl Into<String>,
        value: impl ToString,
        rule: impl Into<String>,
    ) -> DataError {
        DataError::Corrupt {
            path: self.idx.into(),
            offset,
            field: field.into(),
            value: value.to_string(),
            rule: rule.into(),
        }
    }

    fn bin_length(&self, described: u64) -> DataError {
        let reason = format!(
            "{} describes {described} bytes of sequences; copy both files again or tokenize again",
            self.idx.display()
        );
        DataError::Length { path: self.bin.into(), found: self.bin_bytes, reason }
    }

    fn length(&self, reason: String) -> DataError {
        DataError::Length { path: self.idx.into(), found: self.bytes.len() as u64, reason }
    }
}

#[cfg(test)]
mod tests;
