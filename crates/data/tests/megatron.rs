//! Agreement with Megatron-LM: its files are read, and ours are theirs byte for byte (`fixtures/make_megatron.py`).

use std::fs;
use std::path::{Path, PathBuf};

use cambium_data::{MegatronWriter, SourceFormat, TokenDtype, TokenFile};

const TOKENS: [u32; 7] = [1, 2, 3, 4, 5, 6, 100];

const NAMES: [(&str, TokenDtype); 8] = [
    ("uint8", TokenDtype::U8),
    ("int8", TokenDtype::I8),
    ("int16", TokenDtype::I16),
    ("uint16", TokenDtype::U16),
    ("int32", TokenDtype::I32),
    ("int64", TokenDtype::I64),
    ("float32", TokenDtype::F32),
    ("float64", TokenDtype::F64),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/megatron").join(name)
}

fn tokens(file: &TokenFile) -> Vec<u32> {
    let mut tokens = vec![0; file.token_count() as usize];
    file.read(0, 101, &mut tokens).unwrap();
    tokens
}

#[test]
fn files_of_every_dtype_that_megatron_wrote_are_read() {
    for (name, dtype) in NAMES {
        let file = TokenFile::open(fixture(name), SourceFormat::ByName).unwrap();
        assert_eq!(file.dtype(), dtype);
        assert_eq!((file.sequence_count(), file.document_count()), (Some(3), Some(2)));
        assert_eq!(tokens(&file), TOKENS, "{name}");
        let error = file.read(0, 100, &mut [0; 7]).unwrap_err().to_string();
        let place = format!("{name}.bin at byte {}: token 100 ", 6 * dtype.bytes());
        assert!(error.contains(&place), "{error}");
    }
}

#[test]
fn a_multimodal_file_of_text_alone_is_read() {
    let file = TokenFile::open(fixture("multimodal"), SourceFormat::ByName).unwrap();
    assert_eq!((file.sequence_count(), file.document_count()), (Some(2), Some(1)));
    assert_eq!(tokens(&file), TOKENS);
}

#[test]
fn files_of_every_dtype_are_written_as_megatron_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    for (name, dtype) in NAMES {
        let mut writer = MegatronWriter::create(dir.path().join(name), dtype).unwrap();
        writer.append_sequence(&[1, 2, 3]).unwrap();
        writer.append_sequence(&[4]).unwrap();
        writer.end_document();
        writer.append_document(&[5, 6, 100]).unwrap();
        writer.finish().unwrap();
        for extension in ["bin", "idx"] {
            let ours = fs::read(dir.path().join(name).with_extension(extension)).unwrap();
            let theirs = fs::read(fixture(name).with_extension(extension)).unwrap();
            assert_eq!(ours, theirs, "{name}.{extension}");
        }
    }
}
