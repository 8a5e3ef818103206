//! Every refusal of an index with its place and value, and that no bytes at all make it panic.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The fields of an index, to be written as they are.
#[derive(Clone, Debug)]
struct Fields {
    code: u8,
    sizes: Vec<i32>,
    pointers: Vec<i64>,
    documents: Vec<i64>,
    modes: Vec<u8>,
}

impl Fields {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1u64.to_le_bytes());
        bytes.push(self.code);
        bytes.extend((self.sizes.len() as u64).to_le_bytes());
        bytes.extend((self.documents.len() as u64).to_le_bytes());
        bytes.extend(self.sizes.iter().flat_map(|size| size.to_le_bytes()));
        bytes.extend(self.pointers.iter().flat_map(|pointer| pointer.to_le_bytes()));
        bytes.extend(self.documents.iter().flat_map(|document| document.to_le_bytes()));
        bytes.extend(&self.modes);
        bytes
    }
}

/// Sequences of 3, 0, 5 and 2 u16 tokens in three documents; the `.bin` has 20 bytes.
fn valid() -> Fields {
    Fields { code: 8, sizes: vec![3, 0, 5, 2], pointers: vec![0, 6, 6, 16], documents: vec![0, 1, 3, 4], modes: vec![] }
}

const BIN_BYTES: u64 = 20;
const SIZES_AT: u64 = 34;
const POINTERS_AT: u64 = SIZES_AT + 16;
const INDICES_AT: u64 = POINTERS_AT + 32;
const MODES_AT: u64 = INDICES_AT + 32;

fn parse(bytes: &[u8], bin_bytes: u64) -> Result<Index, DataError> {
    Index::parse(Path::new("a.idx"), bytes, Path::new("a.bin"), bin_bytes)
}

/// The offset and value of the error about `a.idx`.
#[track_caller]
fn refused(bytes: &[u8]) -> (u64, String) {
    match parse(bytes, BIN_BYTES).unwrap_err() {
        DataError::Corrupt { path, offset, value, .. } => {
            assert_eq!(path, Path::new("a.idx"));
            (offset, value)
        }
        other => panic!("{other}"),
    }
}

#[track_caller]
fn refused_fields(change: impl FnOnce(&mut Fields)) -> (u64, String) {
    let mut fields = valid();
    change(&mut fields);
    refused(&fields.bytes())
}

#[test]
fn sequences_in_the_order_of_the_bin_are_one_run() {
    let index = parse(&valid().bytes(), BIN_BYTES).unwrap();
    assert_eq!(index.dtype, TokenDtype::U16);
    assert_eq!((index.sequence_count, index.document_count, index.token_count), (4, 3, 10));
    assert_eq!(index.runs, [Run { token: 0, byte: 0 }]);
    let with_modes = Fields { modes: vec![0; 4], ..valid() };
    assert_eq!(parse(&with_modes.bytes(), BIN_BYTES).unwrap().runs, index.runs);
}

#[test]
fn sequences_in_another_order_are_runs_in_the_order_of_the_index() {
    let fields = Fields { sizes: vec![2, 0, 3, 5], pointers: vec![16, 6, 0, 6], ..valid() };
    let index = parse(&fields.bytes(), BIN_BYTES).unwrap();
    assert_eq!(index.runs, [Run { token: 0, byte: 16 }, Run { token: 2, byte: 0 }]);
    assert_eq!(index.token_count, 10);
}

#[test]
fn a_wrong_header_is_refused_with_its_place_and_value() {
    let with = |offset: usize, value: &[u8]| {
        let mut bytes = valid().bytes();
        bytes[offset..offset + value.len()].copy_from_slice(value);
        refused(&bytes)
    };
    assert_eq!(with(0, b"TNTIDX\0\0\x01"), (0, "\"TNTIDX\\x00\\x00\\x01\"".into()));
    assert_eq!(with(9, &[2]), (9, "2".into()));
    assert_eq!(with(17, &[0]), (17, "0".into()));
    assert_eq!(with(17, &[9]), (17, "9".into()));
    assert_eq!(with(18, &u64::MAX.to_le_bytes()), (18, u64::MAX.to_string()));
    assert_eq!(with(18, &7u64.to_le_bytes()), (18, "7".into()));
    assert_eq!(with(26, &0u64.to_le_bytes()), (26, "0".into()));
    assert_eq!(with(26, &5u64.to_le_bytes()), (26, "5".into()));
    assert_eq!(with(26, &(u64::MAX / 8 + 2).to_le_bytes()), (26, (u64::MAX / 8 + 2).to_string()));
}

#[test]
fn every_cut_and_every_surplus_is_refused() {
    let bytes = valid().bytes();
    for end in 0..bytes.len() {
        parse(&bytes[..end], BIN_BYTES).unwrap_err();
    }
    for surplus in (1..20).filter(|&surplus| surplus != 4) {
        let longer = [&bytes[..], &vec![0; surplus]].concat();
        let error = parse(&longer, BIN_BYTES).unwrap_err();
        assert!(
            matches!(&error, DataError::Length { path, found, .. }
                if path.ends_with("a.idx") && *found == longer.len() as u64),
            "{surplus}: {error}"
        );
    }
}

#[test]
fn negative_sizes_and_pointers_are_refused() {
    assert_eq!(refused_fields(|f| f.sizes[2] = -5), (SIZES_AT + 8, "-5".into()));
    assert_eq!(refused_fields(|f| f.sizes[3] = i32::MIN), (SIZES_AT + 12, i32::MIN.to_string()));
    assert_eq!(refused_fields(|f| f.pointers[1] = -1), (POINTERS_AT + 8, "-1".into()));
}

#[test]
fn sizes_and_pointers_that_contradict_each_other_are_refused() {
    // A gap before, an overlap with, and a place behind the others.
    assert_eq!(refused_fields(|f| f.pointers[2] = 8), (POINTERS_AT + 16, "8".into()));
    assert_eq!(refused_fields(|f| f.pointers[3] = 14), (POINTERS_AT + 24, "14".into()));
    assert_eq!(refused_fields(|f| f.pointers[0] = i64::MAX), (POINTERS_AT, i64::MAX.to_string()));
    assert_eq!(refused_fields(|f| f.pointers[3] = 1 << 40), (POINTERS_AT + 24, (1u64 << 40).to_string()));
    assert_eq!(refused_fields(|f| f.sizes[0] = 4), (POINTERS_AT + 16, "6".into()));
    assert_eq!(refused_fields(|f| f.sizes[2] = i32::MAX), (POINTERS_AT, "0".into()));
    // A sequence of no tokens has to stay inside, too.
    assert_eq!(refused_fields(|f| f.pointers[1] = 22), (POINTERS_AT + 8, "22".into()));
}

#[test]
fn document_indices_out_of_order_or_out_of_the_sequences_are_refused() {
    assert_eq!(refused_fields(|f| f.documents[0] = 1), (INDICES_AT, "1".into()));
    assert_eq!(refused_fields(|f| f.documents[2] = 0), (INDICES_AT + 16, "0".into()));
    assert_eq!(refused_fields(|f| f.documents[1] = -1), (INDICES_AT + 8, "-1".into()));
    assert_eq!(refused_fields(|f| f.documents[3] = 5), (INDICES_AT + 24, "5".into()));
    assert_eq!(refused_fields(|f| f.documents[3] = 3), (INDICES_AT + 24, "3".into()));
    // Megatron-LM refuses an index whose last sequence was never ended, too.
    assert_eq!(refused_fields(|f| f.documents = vec![0]), (INDICES_AT, "0".into()));
}

#[test]
fn sequences_that_are_no_text_are_refused() {
    assert_eq!(refused_fields(|f| f.modes = vec![0, 0, 1, 0]), (MODES_AT + 2, "1".into()));
}

#[test]
fn a_bin_of_another_length_is_refused() {
    for bin_bytes in [2, 18, 19, 21, 22, 40] {
        let error = parse(&valid().bytes(), bin_bytes).unwrap_err();
        assert!(
            matches!(&error, DataError::Length { path, found, reason }
                if path.ends_with("a.bin") && *found == bin_bytes && reason.contains("20 bytes")),
            "{error}"
        );
    }
    let scattered = Fields { sizes: vec![2, 0, 3, 5], pointers: vec![16, 6, 0, 6], ..valid() };
    let error = parse(&scattered.bytes(), 22).unwrap_err();
    assert!(matches!(&error, DataError::Length { path, .. } if path.ends_with("a.bin")), "{error}");
    let error = parse(&scattered.bytes(), 18).unwrap_err();
    assert!(matches!(&error, DataError::Corrupt { offset: POINTERS_AT, value, .. } if value == "16"), "{error}");
    // With another dtype the same index describes another length.
    parse(&Fields { code: 4, ..valid() }.bytes(), BIN_BYTES).unwrap_err();
}

/// What every accepted index has to keep: its runs tile the `.bin`.
fn assert_tiles(index: &Index, bytes: &[u8], bin_bytes: u64) {
    assert!(index.runs.len() * 12 <= bytes.len());
    assert_eq!(index.token_count * index.dtype.bytes(), bin_bytes);
    let ends = index.runs[1..].iter().map(|run| run.token).chain([index.token_count]);
    let mut spans = index
        .runs
        .iter()
        .zip(ends)
        .map(|(run, end)| (run.byte, run.byte + (end - run.token) * index.dtype.bytes()))
        .collect::<Vec<_>>();
    spans.sort_unstable();
    let mut covered = 0;
    for (begin, end) in spans {
        assert!(begin == covered && end > begin);
        covered = end;
    }
    assert_eq!(covered, bin_bytes);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn random_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200), bin_bytes in 1u64..1000) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1u64.to_le_bytes());
        bytes.extend(tail);
        if let Ok(index) = parse(&bytes, bin_bytes) {
            assert_tiles(&index, &bytes, bin_bytes);
        }
        if let Ok(index) = parse(&bytes[17..], bin_bytes) {
            panic!("accepted without a magic: {index:?}");
        }
    }

    #[test]
    fn an_index_with_one_byte_changed_is_refused_or_still_tiles_its_bin(
        at in 0..MODES_AT as usize + 4, value: u8, modes: bool, scattered: bool,
    ) {
        let mut fields = valid();
        if modes {
            fields.modes = vec![0; 4];
        }
        if scattered {
            (fields.sizes, fields.pointers) = (vec![2, 0, 3, 5], vec![16, 6, 0, 6]);
        }
        let mut bytes = fields.bytes();
        let at = at % bytes.len();
        let before = std::mem::replace(&mut bytes[at], value);
        match parse(&bytes, BIN_BYTES) {
            Ok(index) => assert_tiles(&index, &bytes, BIN_BYTES),
            Err(error) => prop_assert!(value != before, "{error}"),
        }
    }

    #[test]
    fn any_order_of_any_sequences_is_accepted(
        sizes in prop::collection::vec(0i32..9, 1..12), order in any::<prop::sample::Index>(), seed: u64,
    ) {
        prop_assume!(sizes.iter().any(|&size| size > 0));
        let n = sizes.len();
        let mut pointers = Vec::new();
        let mut end = 0;
        for &size in &sizes {
            pointers.push(end);
            end += i64::from(size) * 4;
        }
        let mut sequences = (0..n).collect::<Vec<_>>();
        sequences.rotate_left(order.index(n));
        sequences.sort_by_key(|&sequence| seed.wrapping_mul(sequence as u64 | 1) >> 60);
        let fields = Fields {
            code: 4,
            sizes: sequences.iter().map(|&s| sizes[s]).collect(),
            pointers: sequences.iter().map(|&s| pointers[s]).collect(),
            documents: vec![0, n as i64],
            modes: vec![],
        };
        let bytes = fields.bytes();
        assert_tiles(&parse(&bytes, end as u64).unwrap(), &bytes, end as u64);
    }
}
