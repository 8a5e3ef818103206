//! Writing token files, streaming: Megatron pairs and flat files.
//!
//! Tokens go to disk as they come; of a pair, 4 bytes per sequence and 8 per document stay in memory for the index, as
//! in Megatron. Nothing has its final name before `finish`, and nothing that exists is overwritten.

use std::path::{Path, PathBuf};

use crate::dtype::TokenDtype;
use crate::error::DataError;
use crate::index::{MAGIC, VERSION};
use crate::partial::PartialFile;
use crate::source::{flat_dtype, with_suffix};

/// Writes `PREFIX.bin` and `PREFIX.idx`.
///
/// ```
/// # fn main() -> Result<(), cambium_data::DataError> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let prefix = dir.path().join("train");
/// use cambium_data::{MegatronWriter, SourceFormat, TokenDtype, TokenFile};
///
/// let mut writer = MegatronWriter::create(&prefix, TokenDtype::U16)?;
/// writer.append_document(&[17, 4, 0])?;
/// writer.append_document(&[23, 0])?;
/// writer.finish()?;
/// assert_eq!(TokenFile::open(&prefix, SourceFormat::ByName)?.token_count(), 5);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MegatronWriter {
    bin: PartialFile,
    idx_path: PathBuf,
    dtype: TokenDtype,
    code: u8,
    sizes: Vec<i32>,
    /// The sequence that each document begins with, and that the next one will.
    documents: Vec<u64>,
    buffer: Vec<u8>,
}

impl MegatronWriter {
    /// Begins a pair of the given dtype.
    ///
    /// # Errors
    /// [`DataError::Exists`] if either file does, [`DataError::Setting`] for [`TokenDtype::U32`], which Megatron does not
    /// have, [`DataError::Io`].
    pub fn create(prefix: impl AsRef<Path>, dtype: TokenDtype) -> Result<MegatronWriter, DataError> {
        let Some(code) = dtype.megatron_code() else {
            let rule = "Megatron files do not have it; write i32, or a flat .u32 file".into();
            return Err(DataError::Setting { name: "dtype", value: dtype.to_string(), rule });
        };
        let bin = PartialFile::create(with_suffix(prefix.as_ref(), ".bin"))?;
        let idx_path = with_suffix(prefix.as_ref(), ".idx");
        if crate::source::exists(&idx_path)? {
            return Err(DataError::Exists { path: idx_path });
        }
        Ok(MegatronWriter { bin, idx_path, dtype, code, sizes: Vec::new(), documents: vec![0], buffer: Vec::new() })
    }

    /// Appends a document of one sequence.
    ///
    /// # Errors
    /// Those of [`MegatronWriter::append_sequence`].
    pub fn append_document(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        self.append_sequence(tokens)?;
        self.end_document();
        Ok(())
    }

    /// Appends a sequence to the document that is open.
    ///
    /// # Errors
    /// [`DataError::DoesNotFit`] for a token that the dtype cannot hold, and then nothing was appended;
    /// [`DataError::Setting`] from 2^31 tokens on; [`DataError::Io`], and then this writer is of no more use.
    pub fn append_sequence(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        let Ok(size) = i32::try_from(tokens.len()) else {
            let rule = "an index holds sizes below 2^31; split the document".into();
            return Err(DataError::Setting { name: "sequence size", value: tokens.len().to_string(), rule });
        };
        write_tokens(&mut self.bin, self.dtype, tokens, &mut self.buffer)?;
        self.sizes.push(size);
        Ok(())
    }

    /// Ends the document that is open, after [`MegatronWriter::append_sequence`].
    pub fn end_document(&mut self) {
        self.documents.push(self.sizes.len() as u64);
    }

    /// Writes the index and gives both files their names, the index last: a pair that was interrupted is half a pair.
    /// A document that is still open is ended.
    ///
    /// # Errors
    /// [`DataError::Empty`] if no token was appended, [`DataError::Exists`], [`DataError::Io`].
    pub fn finish(mut self) -> Result<(), DataError> {
        if self.sizes.iter().all(|&size| size == 0) {
            return Err(DataError::Empty { path: self.bin.place().into() });
        }
        if self.documents.last() != Some(&(self.sizes.len() as u64)) {
            self.end_document();
        }
        let mut idx = PartialFile::create(self.idx_path)?;
        idx.write(MAGIC)?;
        idx.write(&VERSION.to_le_bytes())?;
        idx.write(&[self.code])?;
        idx.write(&(self.sizes.len() as u64).to_le_bytes())?;
        idx.write(&(self.documents.len() as u64).to_le_bytes())?;
        for size in &self.sizes {
            idx.write(&size.to_le_bytes())?;
        }
        let mut pointer = 0u64;
        for &size in &self.sizes {
            idx.write(&pointer.to_le_bytes())?;
            pointer += size as u64 * self.dtype.bytes();
        }
        for document in &self.documents {
            idx.write(&document.to_le_bytes())?;
        }
        self.bin.commit()?;
        idx.commit()
    }
}

/// Writes one flat file, whose extension is its dtype: `.u16` or `.u32`.
#[derive(Debug)]
pub struct FlatWriter {
    file: PartialFile,
    dtype: TokenDtype,
    token_count: u64,
    buffer: Vec<u8>,
}

impl FlatWriter {
    /// Begins a flat file.
    ///
    /// # Errors
    /// [`DataError::Ambiguous`] for another extension, [`DataError::Exists`], [`DataError::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<FlatWriter, DataError> {
        let path = path.as_ref();
        let Some(dtype) = flat_dtype(path) else {
            let reason = "the extension of a flat file is its dtype; name it .u16 or .u32".into();
            return Err(DataError::Ambiguous { path: path.into(), reason });
        };
        Ok(FlatWriter { file: PartialFile::create(path.into())?, dtype, token_count: 0, buffer: Vec::new() })
    }

    /// Appends tokens.
    ///
    /// # Errors
    /// [`DataError::DoesNotFit`] for a token that the dtype cannot hold, and then nothing was appended;
    /// [`DataError::Io`], and then this writer is of no more use.
    pub fn append(&mut self, tokens: &[u32]) -> Result<(), DataError> {
        write_tokens(&mut self.file, self.dtype, tokens, &mut self.buffer)?;
        self.token_count += tokens.len() as u64;
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// [`DataError::Empty`] if no token was appended, [`DataError::Exists`], [`DataError::Io`].
    pub fn finish(self) -> Result<(), DataError> {
        if self.token_count == 0 {
            return Err(DataError::Empty { path: self.file.place().into() });
        }
        self.file.commit()
    }
}

fn write_tokens(
    file: &mut PartialFile,
    dtype: TokenDtype,
    tokens: &[u32],
    buffer: &mut Vec<u8>,
) -> Result<(), DataError> {
    buffer.clear();
    dtype.encode(tokens, buffer).map_err(|position| DataError::DoesNotFit {
        path: file.place().into(),
        value: tokens[position],
        position,
        dtype,
    })?;
    file.write(buffer)
}
