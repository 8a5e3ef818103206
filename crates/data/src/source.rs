//! What a run spec calls a source, and which files it means.
//!
//! A path may be a Megatron prefix (`corpus/train` for `corpus/train.bin` and `corpus/train.idx`), either file of such a
//! pair, or a flat file whose extension is its dtype (`.u16`, `.u32`). A `.bin` without an `.idx` is flat in some
//! toolkits and half a pair in others, so it is refused unless the format is given. A path that fits more than one of
//! these is refused too: guessing would train on the wrong text in silence.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::dtype::TokenDtype;
use crate::error::DataError;

/// One source of a blend.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSpec {
    /// A Megatron prefix, its `.bin` or `.idx`, or a flat token file.
    pub path: PathBuf,
    /// Its share of the windows, relative to the other sources; above 0.
    pub weight: f64,
    /// What the files are.
    pub format: SourceFormat,
}

impl SourceSpec {
    /// A source of weight 1 whose format its name tells.
    pub fn new(path: impl Into<PathBuf>) -> SourceSpec {
        SourceSpec { path: path.into(), weight: 1.0, format: SourceFormat::ByName }
    }

    /// The same source with another weight.
    #[must_use]
    pub fn with_weight(self, weight: f64) -> SourceSpec {
        SourceSpec { weight, ..self }
    }

    /// The same source in a given format.
    #[must_use]
    pub fn with_format(self, format: SourceFormat) -> SourceSpec {
        SourceSpec { format, ..self }
    }
}

/// What the files of a source are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceFormat {
    /// As their names say; see [`SourceSpec::path`].
    #[default]
    ByName,
    /// A Megatron pair.
    Megatron,
    /// One file of little-endian u16, whatever its name.
    FlatU16,
    /// One file of little-endian u32, whatever its name.
    FlatU32,
}

/// The files that a source means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Files {
    Megatron { bin: PathBuf, idx: PathBuf },
    Flat { path: PathBuf, dtype: TokenDtype },
}

/// Finds the files that `path` means. Those of a Megatron pair both exist; a flat one may not.
///
/// # Errors
/// [`DataError::NotFound`], [`DataError::Ambiguous`], [`DataError::MissingPartner`], [`DataError::Io`].
pub(crate) fn resolve(path: &Path, format: SourceFormat) -> Result<Files, DataError> {
    match format {
        SourceFormat::FlatU16 => Ok(Files::Flat { path: path.into(), dtype: TokenDtype::U16 }),
        SourceFormat::FlatU32 => Ok(Files::Flat { path: path.into(), dtype: TokenDtype::U32 }),
        SourceFormat::Megatron => {
            let pairs = pairs(path)?;
            let missing = || not_found(path, &[with_suffix(path, ".bin"), with_suffix(path, ".idx")]);
            only(path, pairs)?.ok_or_else(missing)
        }
        SourceFormat::ByName => {
            let mut found = pairs(path)?;
            if let Some(dtype) = flat_dtype(path)
                && exists(path)?
            {
                found.push(Files::Flat { path: path.into(), dtype });
            }
            match only(path, found)? {
                Some(Files::Megatron { bin, idx }) if !exists(&idx)? => Err(DataError::Ambiguous {
                    path: path.into(),
                    reason: format!(
                        "there is {} but no {}; add the index of a Megatron pair, or name a flat file .u16 or .u32",
                        bin.display(),
                        idx.display()
                    ),
                }),
                Some(files) => Ok(files),
                None if exists(path)? => Err(DataError::Ambiguous {
                    path: path.into(),
                    reason:
                        "the name does not tell its format; give a Megatron prefix, or name a flat file .u16 or .u32"
                            .into(),
                }),
                None => Err(not_found(path, &[with_suffix(path, ".bin"), with_suffix(path, ".idx")])),
            }
        }
    }
    .and_then(complete)
}

/// The Megatron pairs, whole or half, that a path can mean: as a prefix, and as one of the two files.
fn pairs(path: &Path) -> Result<Vec<Files>, DataError> {
    let mut prefixes = vec![path.to_path_buf()];
    if matches!(path.extension().and_then(|extension| extension.to_str()), Some("bin" | "idx")) {
        prefixes.push(path.with_extension(""));
    }
    let mut found = Vec::new();
    for prefix in prefixes {
        let (bin, idx) = (with_suffix(&prefix, ".bin"), with_suffix(&prefix, ".idx"));
        if exists(&bin)? || exists(&idx)? {
            found.push(Files::Megatron { bin, idx });
        }
    }
    Ok(found)
}

fn only(path: &Path, mut found: Vec<Files>) -> Result<Option<Files>, DataError> {
    if found.len() < 2 {
        return Ok(found.pop());
    }
    let names = found.iter().map(|files| match files {
        Files::Megatron { bin, idx } => format!("the pair {} and {}", bin.display(), idx.display()),
        Files::Flat { path, .. } => format!("the flat file {}", path.display()),
    });
    let names = names.collect::<Vec<_>>().join(" or ");
    Err(DataError::Ambiguous { path: path.into(), reason: format!("it can mean {names}; rename one") })
}

fn complete(files: Files) -> Result<Files, DataError> {
    if let Files::Megatron { bin, idx } = &files {
        let missing = if !exists(bin)? {
            Some((idx, bin))
        } else if !exists(idx)? {
            Some((bin, idx))
        } else {
            None
        };
        if let Some((present, missing)) = missing {
            return Err(DataError::MissingPartner { present: present.clone(), missing: missing.clone() });
        }
    }
    Ok(files)
}

/// The dtype that the extension of a flat file says.
pub(crate) fn flat_dtype(path: &Path) -> Option<TokenDtype> {
    match path.extension()?.to_str()? {
        "u16" => Some(TokenDtype::U16),
        "u32" => Some(TokenDtype::U32),
        _ => None,
    }
}

/// `path` with `suffix` after its whole name: a prefix may have dots of its own.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Whether anything is at a path; that one may not look is an error, not a no.
pub(crate) fn exists(path: &Path) -> Result<bool, DataError> {
    match fs::metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(error) => Err(DataError::io("look at", path)(error)),
    }
}

fn not_found(path: &Path, tried: &[PathBuf]) -> DataError {
    let tried = tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" nor ");
    DataError::NotFound { path: path.into(), tried: format!("neither it nor {tried} exists") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir_with(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), [0, 0]).unwrap();
        }
        dir
    }

    fn pair(dir: &tempfile::TempDir, prefix: &str) -> Files {
        let at = |suffix| dir.path().join(format!("{prefix}{suffix}"));
        Files::Megatron { bin: at(".bin"), idx: at(".idx") }
    }

    #[test]
    fn a_prefix_and_either_file_of_a_pair_mean_the_pair() {
        let dir = dir_with(&["train.v2.bin", "train.v2.idx", "other.u16"]);
        for name in ["train.v2", "train.v2.bin", "train.v2.idx"] {
            for format in [SourceFormat::ByName, SourceFormat::Megatron] {
                assert_eq!(resolve(&dir.path().join(name), format).unwrap(), pair(&dir, "train.v2"), "{name}");
            }
        }
    }

    #[test]
    fn the_extension_of_a_flat_file_is_its_dtype_and_a_given_format_needs_none() {
        let dir = dir_with(&["a.u16", "a.u32", "a.bin"]);
        let flat = |name: &str, dtype| Files::Flat { path: dir.path().join(name), dtype };
        let resolve = |name: &str, format| resolve(&dir.path().join(name), format).unwrap();
        assert_eq!(resolve("a.u16", SourceFormat::ByName), flat("a.u16", TokenDtype::U16));
        assert_eq!(resolve("a.u32", SourceFormat::ByName), flat("a.u32", TokenDtype::U32));
        assert_eq!(resolve("a.bin", SourceFormat::FlatU16), flat("a.bin", TokenDtype::U16));
        assert_eq!(resolve("a.bin", SourceFormat::FlatU32), flat("a.bin", TokenDtype::U32));
    }

    #[test]
    fn half_a_pair_is_refused_with_what_is_missing() {
        let dir = dir_with(&["a.bin", "b.idx"]);
        for name in ["a", "a.bin"] {
            let error = resolve(&dir.path().join(name), SourceFormat::ByName).unwrap_err();
            assert!(matches!(&error, DataError::Ambiguous { reason, .. } if reason.contains("a.idx")), "{error}");
            let error = resolve(&dir.path().join(name), SourceFormat::Megatron).unwrap_err();
            assert!(
                matches!(&error, DataError::MissingPartner { missing, .. } if missing.ends_with("a.idx")),
                "{error}"
            );
        }
        for name in ["b", "b.idx"] {
            let error = resolve(&dir.path().join(name), SourceFormat::ByName).unwrap_err();
            assert!(
                matches!(&error, DataError::MissingPartner { missing, .. } if missing.ends_with("b.bin")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_path_that_can_mean_two_things_is_refused() {
        let dir = dir_with(&["a.u16", "a.u16.bin", "a.u16.idx", "b.bin", "b.idx", "b.bin.bin", "b.bin.idx", "c.txt"]);
        for name in ["a.u16", "b.bin", "c.txt"] {
            let error = resolve(&dir.path().join(name), SourceFormat::ByName).unwrap_err();
            assert!(matches!(error, DataError::Ambiguous { .. }), "{error}");
        }
    }

    #[test]
    fn nothing_at_a_path_is_refused_with_what_was_looked_for() {
        let dir = dir_with(&["file"]);
        for name in ["a", "a.u16", "a.bin", "file/a"] {
            for format in [SourceFormat::ByName, SourceFormat::Megatron] {
                let error = resolve(&dir.path().join(name), format).unwrap_err();
                assert!(matches!(error, DataError::NotFound { .. }), "{error}");
            }
        }
    }
}
