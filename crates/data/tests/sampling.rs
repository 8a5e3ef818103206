//! Which tokens a sample has: packing, orders, epochs, blends, and rows of a step.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cambium_data::{Dataset, FlatWriter, MegatronWriter, Order, SourceFormat, SourceSpec, TokenDtype, TokenFile};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const VOCAB: usize = 1 << 16;

fn cases(cases: u32) -> ProptestConfig {
    let failure_persistence = Some(Box::new(FileFailurePersistence::WithSource("regressions")) as _);
    ProptestConfig { cases, failure_persistence, ..ProptestConfig::default() }
}

/// A flat file with the tokens `first..first + count`.
fn counting(dir: &Path, name: &str, first: u32, count: u32) -> PathBuf {
    let path = dir.join(name).with_extension("u32");
    // Not by a writer: that would wait for the disk.
    std::fs::write(&path, (first..first + count).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).unwrap();
    path
}

fn one(dir: &Path, count: u32, seq_len: usize, order: Order, seed: u64) -> Dataset {
    let path = counting(dir, "a", 0, count);
    Dataset::open(&[SourceSpec::new(path)], seq_len, VOCAB, order, seed).unwrap()
}

#[test]
fn the_last_window_ends_within_the_file_and_the_next_begins_again() {
    let dir = tempfile::tempdir().unwrap();
    for (count, windows) in [(5, 1), (8, 1), (9, 2), (12, 2), (13, 3)] {
        let dir = tempfile::tempdir_in(dir.path()).unwrap();
        let dataset = one(dir.path(), count, 4, Order::Sequential, 0);
        assert_eq!(dataset.window_count(), windows);
        for epoch in 0..3 {
            for window in 0..windows {
                let first = window as u32 * 4;
                let sample = epoch * windows + window;
                assert_eq!(dataset.window(sample).unwrap(), (first..=first + 4).collect::<Vec<_>>());
                assert_eq!(dataset.locate(sample).epoch, epoch);
            }
        }
    }
}

#[test]
fn row_r_of_step_s_is_sample_s_times_rows_plus_r_and_targets_are_one_further() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = one(dir.path(), 1000, 4, Order::Sequential, 0);
    let batch = dataset.batch(5, 3).unwrap();
    assert_eq!((batch.rows, batch.seq_len), (3, 4));
    assert_eq!(batch.inputs, (60..72).collect::<Vec<_>>());
    assert_eq!(batch.targets, (61..73).collect::<Vec<_>>());
}

#[test]
fn shuffled_samples_are_those_of_the_first_release() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| counting(dir.path(), name, 0, 41));
    let sources = [SourceSpec::new(&paths[0]), SourceSpec::new(&paths[1]).with_weight(0.5)];
    let dataset = Dataset::open(&sources, 4, VOCAB, Order::Shuffled, 1234).unwrap();
    let samples = (0..12).map(|sample| dataset.locate(sample)).map(|s| (s.source, s.window)).collect::<Vec<_>>();
    // A resumed run sees these again whatever version resumes it. Made by an independent program.
    let expected = [(0, 8), (1, 0), (0, 1), (0, 4), (1, 5), (0, 0), (0, 7), (1, 3), (0, 2), (0, 3), (1, 4), (0, 5)];
    assert_eq!(samples, expected);
}

#[test]
fn seeds_epochs_and_sources_are_shuffled_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = counting(dir.path(), "a", 0, 401);
    let windows = |seed, samples: std::ops::Range<u64>| {
        let dataset = Dataset::open(&[SourceSpec::new(&path)], 4, VOCAB, Order::Shuffled, seed).unwrap();
        samples.map(|sample| dataset.locate(sample).window).collect::<Vec<_>>()
    };
    assert_eq!(windows(1, 0..100), windows(1, 0..100));
    let orders = [windows(1, 0..100), windows(1, 100..200), windows(2, 0..100), (0..100).collect()];
    for (index, order) in orders.iter().enumerate() {
        assert!(orders[..index].iter().all(|other| other != order));
    }
    let twice = [SourceSpec::new(&path), SourceSpec::new(&path)];
    let dataset = Dataset::open(&twice, 4, VOCAB, Order::Shuffled, 1).unwrap();
    let of_source = |source| (0..200).map(|s| dataset.locate(s)).filter(move |s| s.source == source).map(|s| s.window);
    assert!(of_source(0).ne(of_source(1)));
}

#[test]
fn a_dataset_can_be_read_from_several_threads() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = one(dir.path(), 4001, 8, Order::Shuffled, 3);
    let alone = (0..8).map(|step| dataset.batch(step, 16).unwrap()).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        for (step, batch) in alone.iter().enumerate() {
            let dataset = &dataset;
            scope.spawn(move || assert_eq!(dataset.batch(step as u64, 16).unwrap(), *batch));
        }
    });
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn windows_go_over_the_documents_one_after_the_other(
        documents in prop::collection::vec(prop::collection::vec(0u32..128, 0..20), 1..20),
        dtype in prop::sample::select(TokenDtype::ALL.to_vec()),
        seq_len in 1usize..9,
    ) {
        let text = documents.concat();
        prop_assume!(text.len() > seq_len);
        let dir = tempfile::tempdir().unwrap();
        let path = if dtype == TokenDtype::U32 {
            let path = dir.path().join("a.u32");
            let mut writer = FlatWriter::create(&path).unwrap();
            documents.iter().for_each(|document| writer.append(document).unwrap());
            writer.finish().unwrap();
            path
        } else {
            let prefix = dir.path().join("a");
            let mut writer = MegatronWriter::create(&prefix, dtype).unwrap();
            documents.iter().for_each(|document| writer.append_document(document).unwrap());
            writer.finish().unwrap();
            prefix
        };
        let file = TokenFile::open(&path, SourceFormat::ByName).unwrap();
        prop_assert_eq!(file.dtype(), dtype);
        prop_assert_eq!(file.token_count(), text.len() as u64);
        let dataset = Dataset::open(&[SourceSpec::new(&path)], seq_len, 128, Order::Sequential, 0).unwrap();
        let windows = (text.len() - 1) / seq_len;
        prop_assert_eq!(dataset.window_count(), windows as u64);
        for window in 0..windows {
            prop_assert_eq!(dataset.window(window as u64).unwrap(), &text[window * seq_len..][..=seq_len]);
        }
    }

    #[test]
    fn every_epoch_of_a_shuffle_has_every_window_once(windows in 1u32..300, epoch in 0u64..1 << 40, seed: u64) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = one(dir.path(), windows * 2 + 1, 2, Order::Shuffled, seed);
        let count = u64::from(windows);
        prop_assert_eq!(dataset.window_count(), count);
        let seen = (0..count).map(|position| dataset.locate(epoch * count + position));
        let seen = seen.inspect(|sample| assert_eq!(sample.epoch, epoch)).map(|sample| sample.window);
        prop_assert_eq!(seen.collect::<BTreeSet<_>>(), (0..count).collect::<BTreeSet<_>>());
    }

    #[test]
    fn a_blend_keeps_its_shares_and_goes_through_each_source_in_its_own_order(
        parts in prop::collection::vec((0.01f64..1.0, 1u32..30), 1..6), shuffled: bool, seed: u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let order = if shuffled { Order::Shuffled } else { Order::Sequential };
        let sources = parts.iter().enumerate().map(|(index, (weight, windows))| {
            // The tokens say which source they are from.
            let path = counting(dir.path(), &index.to_string(), index as u32 * 1000, windows * 3 + 1);
            SourceSpec::new(path).with_weight(*weight)
        });
        let dataset = Dataset::open(&sources.collect::<Vec<_>>(), 3, VOCAB, order, seed).unwrap();
        let mut seen = vec![Vec::new(); parts.len()];
        for sample in 0..500 {
            let place = dataset.locate(sample);
            let first = place.source as u32 * 1000 + place.window as u32 * 3;
            prop_assert_eq!(dataset.window(sample).unwrap(), (first..first + 4).collect::<Vec<_>>());
            seen[place.source].push((place.epoch, place.window));
        }
        for (seen, source) in seen.iter().zip(dataset.sources()) {
            prop_assert!((seen.len() as f64 - source.share() * 500.0).abs() < 2.0);
            let windows = source.window_count();
            for (nth, (epoch, window)) in seen.iter().enumerate() {
                prop_assert_eq!(*epoch, nth as u64 / windows);
                prop_assert!(shuffled || *window == nth as u64 % windows);
            }
            for epoch in seen.chunk_by(|a, b| a.0 == b.0) {
                prop_assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), epoch.len());
            }
        }
    }

    #[test]
    fn the_rows_of_a_microbatch_are_those_of_the_step(
        rows_per_step in 1usize..9, microbatch_rows in 1usize..9, step in 0u64..1 << 40, seed: u64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let dataset = one(dir.path(), 500, 5, Order::Shuffled, seed);
        let batch = dataset.batch(step, rows_per_step).unwrap();
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        for first in (0..rows_per_step).step_by(microbatch_rows) {
            let rows = first..(first + microbatch_rows).min(rows_per_step);
            let part = dataset.batch_rows(step, rows_per_step, rows).unwrap();
            inputs.extend(part.inputs);
            targets.extend(part.targets);
        }
        prop_assert_eq!(inputs, batch.inputs);
        prop_assert_eq!(targets, batch.targets);
    }
}
