//! What is refused when a dataset is opened and read, through the files themselves: each with file, offset and value.

use std::fs;
use std::path::{Path, PathBuf};

use cambium_data::{
    DataError, Dataset, FlatWriter, MegatronWriter, Order, SourceFormat, SourceSpec, TokenDtype, TokenFile,
};

const T: usize = 4;
const VOCAB: usize = 100;

fn open(sources: &[SourceSpec]) -> Result<Dataset, DataError> {
    Dataset::open(sources, T, VOCAB, Order::Sequential, 0)
}

/// A pair of two documents, 12 tokens.
fn pair(dir: &Path, name: &str) -> PathBuf {
    let prefix = dir.join(name);
    let mut writer = MegatronWriter::create(&prefix, TokenDtype::U16).unwrap();
    writer.append_document(&[1, 2, 3, 4, 5]).unwrap();
    writer.append_document(&[6, 7, 8, 9, 10, 11, 12]).unwrap();
    writer.finish().unwrap();
    prefix
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_with_file_offset_and_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.u32");
    let mut writer = FlatWriter::create(&path).unwrap();
    writer.append(&[0, 99, 5, 5, 5, 5, 100, 4_000_000_000, 1]).unwrap();
    writer.finish().unwrap();
    let dataset = open(&[SourceSpec::new(&path)]).unwrap();
    assert_eq!(dataset.window(0).unwrap(), [0, 99, 5, 5, 5]);
    let text = dataset.window(1).unwrap_err().to_string();
    assert!(text.starts_with(&format!("{} at byte 24: token 100 is not an id", path.display())), "{text}");
    let error = dataset.batch(0, 2).unwrap_err();
    assert!(matches!(error, DataError::Token { offset: 24, vocab_size: 100, .. }), "{error}");
}

#[test]
fn a_bad_token_behind_a_jump_in_the_file_is_named_by_its_place_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = pair(dir.path(), "a");
    // The second document first: sizes 7, 5 at byte 34 and pointers 10, 0 at byte 42.
    let idx = dir.path().join("a.idx");
    let mut bytes = fs::read(&idx).unwrap();
    bytes[34..42].copy_from_slice(&[7i32, 5].map(i32::to_le_bytes).concat());
    bytes[42..58].copy_from_slice(&[10i64, 0].map(i64::to_le_bytes).concat());
    fs::write(&idx, bytes).unwrap();
    let dataset = Dataset::open(&[SourceSpec::new(&prefix)], 11, VOCAB, Order::Sequential, 0).unwrap();
    assert_eq!(dataset.window(0).unwrap(), [6, 7, 8, 9, 10, 11, 12, 1, 2, 3, 4, 5]);
    drop(dataset);

    let bin = dir.path().join("a.bin");
    let mut bytes = fs::read(&bin).unwrap();
    bytes[6..8].copy_from_slice(&1000u16.to_le_bytes());
    fs::write(&bin, bytes).unwrap();
    let dataset = Dataset::open(&[SourceSpec::new(&prefix)], 11, VOCAB, Order::Sequential, 0).unwrap();
    let error = dataset.window(0).unwrap_err();
    assert!(matches!(&error, DataError::Token { path, offset: 6, .. } if *path == bin), "{error}");
}

#[test]
fn damaged_pairs_are_refused_with_file_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = pair(dir.path(), "a");
    let (bin, idx) = (dir.path().join("a.bin"), dir.path().join("a.idx"));
    let (bin_bytes, idx_bytes) = (fs::read(&bin).unwrap(), fs::read(&idx).unwrap());
    let text = |bin_now: &[u8], idx_now: &[u8]| {
        fs::write(&bin, bin_now).unwrap();
        fs::write(&idx, idx_now).unwrap();
        open(&[SourceSpec::new(&prefix)]).unwrap_err().to_string()
    };
    let cut = text(&bin_bytes[..23], &idx_bytes);
    assert!(
        cut.starts_with(&format!("{} ends at byte 23, but {} describes 24", bin.display(), idx.display())),
        "{cut}"
    );
    let cut = text(&bin_bytes, &idx_bytes[..60]);
    assert!(cut.starts_with(&format!("{} at byte 26: document index count is 3", idx.display())), "{cut}");
    let mut negative = idx_bytes.clone();
    negative[34..38].copy_from_slice(&(-5i32).to_le_bytes());
    let negative = text(&bin_bytes, &negative);
    assert!(negative.starts_with(&format!("{} at byte 34: size of sequence 0 is -5", idx.display())), "{negative}");
    let empty = text(&[], &idx_bytes);
    assert!(empty.starts_with(&format!("{} holds no tokens", bin.display())), "{empty}");
    text(&bin_bytes, &[]);
    fs::write(&idx, &idx_bytes).unwrap();
    open(&[SourceSpec::new(&prefix)]).unwrap();
}

#[test]
fn a_flat_file_of_an_uneven_length_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (name, len) in [("a.u16", 15), ("a.u32", 18)] {
        let path = file(dir.path(), name, &vec![0; len]);
        let error = open(&[SourceSpec::new(&path)]).unwrap_err();
        assert!(matches!(error, DataError::Length { found, .. } if found == len as u64), "{error}");
    }
    let path = file(dir.path(), "empty.u16", &[]);
    assert!(matches!(open(&[SourceSpec::new(&path)]), Err(DataError::Empty { .. })));
}

#[test]
fn everything_that_is_wrong_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let sources = [
        SourceSpec::new(pair(dir.path(), "good")),
        SourceSpec::new(dir.path().join("missing")),
        SourceSpec::new(file(dir.path(), "short.u16", &[0; 8])).with_weight(-1.0),
        SourceSpec::new(file(dir.path(), "odd.u16", &[0; 31])),
    ];
    let error = Dataset::open(&sources, T, 0, Order::Shuffled, 0).unwrap_err();
    let DataError::Many(problems) = &error else { panic!("{error}") };
    let [vocab, missing, weight, short, odd] = &problems.0[..] else { panic!("{error}") };
    assert!(matches!(vocab, DataError::Setting { name: "vocab_size", .. }));
    assert!(matches!(missing, DataError::NotFound { .. }));
    assert!(matches!(weight, DataError::Weight { weight: -1.0, .. }));
    assert!(matches!(short, DataError::TooShort { token_count: 4, window_tokens: 5, .. }));
    assert!(matches!(odd, DataError::Length { found: 31, .. }));
    let text = error.to_string();
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.contains("missing") && text.contains("short.u16") && text.contains("odd.u16"), "{text}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = [SourceSpec::new(pair(dir.path(), "a"))];
    for (sources, seq_len, vocab_size) in [(&source[..0], T, VOCAB), (&source, 0, VOCAB), (&source, T, (1 << 32) + 1)] {
        let error = Dataset::open(sources, seq_len, vocab_size, Order::Sequential, 0).unwrap_err();
        assert!(matches!(error, DataError::Setting { .. }), "{error}");
    }
    for weight in [0.0, f64::NAN, f64::INFINITY] {
        let error = open(&[source[0].clone().with_weight(weight)]).unwrap_err();
        assert!(matches!(error, DataError::Weight { .. }), "{error}");
    }
    let dataset = open(&source).unwrap();
    for (step, rows_per_step, rows) in [(0, 2, 0..3), (0, 2, 1..1), (0, 0, 0..0), (u64::MAX / 2 + 1, 2, 0..1)] {
        let error = dataset.batch_rows(step, rows_per_step, rows).unwrap_err();
        assert!(matches!(error, DataError::Setting { .. }), "{error}");
    }
    dataset.read_window_into(0, &mut [0; T]).unwrap_err();
    dataset.sources()[0].tokens().read(11, VOCAB as u64, &mut [0; 2]).unwrap_err();
    dataset.sources()[0].tokens().read(u64::MAX, VOCAB as u64, &mut [0; 2]).unwrap_err();
}

#[test]
fn a_file_that_shrinks_while_in_use_is_an_error_and_not_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = pair(dir.path(), "a");
    let dataset = open(&[SourceSpec::new(&prefix)]).unwrap();
    fs::File::options().write(true).open(dir.path().join("a.bin")).unwrap().set_len(0).unwrap();
    let error = dataset.window(0).unwrap_err();
    assert!(matches!(error, DataError::Changed { opened_bytes: 24, found_bytes: 0, .. }), "{error}");
}

#[test]
fn writers_refuse_what_they_cannot_hold_and_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = MegatronWriter::create(dir.path().join("a"), TokenDtype::U16).unwrap();
    let error = writer.append_document(&[1, 65_536]).unwrap_err();
    assert!(matches!(error, DataError::DoesNotFit { value: 65_536, position: 1, .. }), "{error}");
    assert!(matches!(writer.finish(), Err(DataError::Empty { .. })));
    assert!(matches!(FlatWriter::create(dir.path().join("a.u16")).unwrap().finish(), Err(DataError::Empty { .. })));
    drop(FlatWriter::create(dir.path().join("a.u16")).unwrap());
    assert!(MegatronWriter::create(dir.path().join("a"), TokenDtype::U32).is_err());
    assert!(FlatWriter::create(dir.path().join("a.bin")).is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn writers_never_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    let prefix = pair(dir.path(), "a");
    assert!(matches!(MegatronWriter::create(&prefix, TokenDtype::U16), Err(DataError::Exists { .. })));
    fs::remove_file(dir.path().join("a.bin")).unwrap();
    assert!(matches!(MegatronWriter::create(&prefix, TokenDtype::U16), Err(DataError::Exists { .. })));
    // Two at once: the second to finish finds the file of the first.
    let path = dir.path().join("b.u16");
    let mut writers = [FlatWriter::create(&path).unwrap(), FlatWriter::create(&path).unwrap()];
    for writer in &mut writers {
        writer.append(&[1]).unwrap();
    }
    let [first, second] = writers;
    first.finish().unwrap();
    assert!(matches!(second.finish(), Err(DataError::Exists { .. })));
    assert_eq!(TokenFile::open(&path, SourceFormat::ByName).unwrap().token_count(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}
