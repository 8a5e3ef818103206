//! Configs, tensor names and shapes against what transformers saved (`fixtures/make_layouts.py`).

use std::collections::BTreeMap;

use cambium_spec::{Family, ModelSpec, TorchDtype};
use serde_json::Value;

fn layouts() -> BTreeMap<String, Value> {
    serde_json::from_str(include_str!("fixtures/layouts.json")).unwrap()
}

fn spec_of(layout: &Value) -> ModelSpec {
    ModelSpec::from_hf(&layout["config"]).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_family_has_layouts() {
    let families: Vec<Family> = layouts().values().map(|layout| spec_of(layout).family).collect();
    assert!(Family::ALL.iter().all(|family| families.contains(family)), "{families:?}");
}

#[test]
fn names_and_shapes_are_those_that_transformers_saves() {
    for (title, layout) in layouts() {
        let ours: BTreeMap<String, Vec<usize>> =
            spec_of(&layout).tensors().into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
        let theirs: BTreeMap<String, Vec<usize>> = serde_json::from_value(layout["tensors"].clone()).unwrap();
        assert_eq!(ours, theirs, "{title}");
    }
}

#[test]
fn every_saved_name_parses_to_the_tensor_of_that_name() {
    for (title, layout) in layouts() {
        let spec = spec_of(&layout);
        for tensor in spec.tensors() {
            assert_eq!(spec.family.parse_tensor_name(&tensor.name), Some(tensor.id), "{title}");
        }
    }
}

#[test]
fn parameter_counts_are_the_sizes_of_the_trained_tensors() {
    for (title, layout) in layouts() {
        let spec = spec_of(&layout);
        let trained = spec.tensors().into_iter().filter(|tensor| tensor.id.is_trained());
        let total: usize = trained.map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        assert_eq!(spec.parameter_count(), total as u64, "{title}");
    }
}

#[test]
fn a_written_config_reads_back_as_the_same_spec() {
    for (title, layout) in layouts() {
        let spec = spec_of(&layout);
        let written = spec.to_hf(TorchDtype::Float32).unwrap();
        assert_eq!(ModelSpec::from_hf(&written).unwrap_or_else(|error| panic!("{title}: {error}")), spec, "{title}");
    }
}

#[test]
fn a_spec_survives_its_own_json() {
    for (title, layout) in layouts() {
        let spec = spec_of(&layout);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<ModelSpec>(&text).unwrap(), spec, "{title}");
    }
}
