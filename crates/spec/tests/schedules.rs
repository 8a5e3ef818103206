//! Learning rates step by step, against transformers (`fixtures/make_schedules.py`).

use cambium_spec::RunSpec;
use serde_json::{Value, json};

fn run(schedule: &Value, lr: f64, steps: u64) -> RunSpec {
    let spec = json!({
        "model": { "from": "model" },
        "data": { "seq_len": 8, "sources": [{ "path": "tokens" }] },
        "optimizer": { "lr": lr },
        "schedule": schedule,
        "train": { "steps": steps },
    });
    RunSpec::from_json(&spec).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_schedule_gives_the_rates_of_transformers() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/schedules.json")).unwrap();
    let (base, steps) = (fixture["base"].as_f64().unwrap(), fixture["steps"].as_u64().unwrap());
    for case in fixture["cases"].as_array().unwrap() {
        let spec = run(&case["schedule"], base, steps);
        for (step, expected) in (0..steps).zip(case["lr"].as_array().unwrap()) {
            let (expected, lr) = (expected.as_f64().unwrap(), spec.schedule.lr(step, spec.train.steps, base));
            // A few roundings of f64, in another order of multiplication.
            assert!((lr - expected).abs() <= 4e-16 * base, "{}: step {step}: {lr} != {expected}", case["schedule"]);
        }
    }
}

#[test]
fn the_rate_stays_at_its_least_after_the_decay() {
    let spec = run(&json!({ "kind": "linear", "decay_steps": 4, "min_lr_ratio": 0.25 }), 1.0, 10);
    let rates: Vec<f64> = (0..7).map(|step| spec.schedule.lr(step, 10, 1.0)).collect();
    assert_eq!(rates, [1.0, 0.8125, 0.625, 0.4375, 0.25, 0.25, 0.25]);
}
