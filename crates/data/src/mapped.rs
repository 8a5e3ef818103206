//! A file, read-only, mapped into memory: the one place of this crate with `unsafe`.
//!
//! A mapping is only sound while nobody changes the file below it, which no process can rule out for another one. What
//! can be done is done: the length is taken from the open handle, and [`MappedFile::bytes`] asks for it again before it
//! hands out a single byte, so a file that was truncated, or replaced in place by one of another length, is an error and
//! not a SIGBUS, save in the instant between the check and the copy. Writers of this crate never touch a finished file:
//! they write beside it and rename, which leaves the mapped one alive.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::DataError;

/// A mapped file that is not empty.
#[derive(Debug)]
pub(crate) struct MappedFile {
    path: PathBuf,
    file: File,
    map: Mmap,
}

impl MappedFile {
    /// Maps a regular file.
    ///
    /// # Errors
    /// [`DataError::NotAFile`], [`DataError::Empty`], [`DataError::Io`].
    pub(crate) fn open(path: &Path) -> Result<MappedFile, DataError> {
        // Asked before opening: to open a pipe would wait for its writer.
        let metadata = fs::metadata(path).map_err(DataError::io("open", path))?;
        if !metadata.is_file() {
            return Err(DataError::NotAFile { path: path.into() });
        }
        let file = File::open(path).map_err(DataError::io("open", path))?;
        if file.metadata().map_err(DataError::io("inspect", path))?.len() == 0 {
            return Err(DataError::Empty { path: path.into() });
        }
        let map = map(&file).map_err(DataError::io("map", path))?;
        Ok(MappedFile { path: path.into(), file, map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes, at opening.
    pub(crate) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// The whole file.
    ///
    /// # Errors
    /// [`DataError::Changed`] if the file has another length by now.
    pub(crate) fn bytes(&self) -> Result<&[u8], DataError> {
        let found_bytes = self.file.metadata().map_err(DataError::io("inspect", &self.path))?.len();
        if found_bytes != self.len() {
            return Err(DataError::Changed { path: self.path.clone(), opened_bytes: self.len(), found_bytes });
        }
        Ok(&self.map)
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the mapping is private to this module, read-only, as long as the file was at this moment, and lives as
    // long as `MappedFile`, which keeps the file open. Its bytes are only ever lent as `&[u8]` right after the length
    // has been confirmed, and every bit pattern is a valid u8. What remains is another process that truncates the file
    // (SIGBUS: the run stops) or overwrites its bytes between check and copy: the token values read are then checked
    // like any others, and no length or offset is ever taken from bytes that could have changed since they were checked.
    unsafe { Mmap::map(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_its_length_while_open_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.u16");
        fs::write(&path, [1, 2, 3, 4]).unwrap();
        let mapped = MappedFile::open(&path).unwrap();
        assert_eq!(mapped.bytes().unwrap(), [1, 2, 3, 4]);
        File::options().write(true).open(&path).unwrap().set_len(2).unwrap();
        let error = mapped.bytes().unwrap_err();
        assert!(matches!(error, DataError::Changed { opened_bytes: 4, found_bytes: 2, .. }), "{error}");
    }

    #[test]
    fn a_directory_and_an_empty_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(MappedFile::open(dir.path()), Err(DataError::NotAFile { .. })));
        let path = dir.path().join("a.u16");
        fs::write(&path, []).unwrap();
        assert!(matches!(MappedFile::open(&path), Err(DataError::Empty { .. })));
    }
}
