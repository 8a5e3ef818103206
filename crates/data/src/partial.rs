//! A file that appears under its name only when it is whole.
//!
//! It is written beside its place, under a name that no other writer has, and renamed at the end; dropped before that,
//! it is removed. A reader never sees half a file, and a mapped one is never written to.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::DataError;
use crate::source::{exists, with_suffix};

/// A file being written.
#[derive(Debug)]
pub(crate) struct PartialFile {
    place: PathBuf,
    partial: PathBuf,
    /// `None` once it has its name.
    writer: Option<BufWriter<File>>,
}

impl PartialFile {
    /// Begins a file that is to be at `place`, where nothing may be yet.
    pub(crate) fn create(place: PathBuf) -> Result<PartialFile, DataError> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        refuse_existing(&place)?;
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let partial = with_suffix(&place, &format!(".{}-{number}.partial", std::process::id()));
        let file = File::create_new(&partial).map_err(DataError::io("create", &partial))?;
        Ok(PartialFile { place, partial, writer: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Where it is going to be.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        let PartialFile { partial, writer, .. } = self;
        match writer {
            Some(writer) => writer.write_all(bytes).map_err(DataError::io("write", partial.as_path())),
            None => Ok(()),
        }
    }

    /// Makes its bytes durable, then gives it its name.
    pub(crate) fn commit(mut self) -> Result<(), DataError> {
        if let Some(writer) = &mut self.writer {
            writer.flush().map_err(DataError::io("write", &self.partial))?;
            writer.get_ref().sync_all().map_err(DataError::io("sync", &self.partial))?;
        }
        refuse_existing(&self.place)?;
        fs::rename(&self.partial, &self.place).map_err(DataError::io("rename to its name", &self.partial))?;
        self.writer = None;
        Ok(())
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            // Nobody is left to tell, and what remains has a name that says what it is.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

fn refuse_existing(place: &Path) -> Result<(), DataError> {
    if exists(place)? { Err(DataError::Exists { path: place.into() }) } else { Ok(()) }
}
