//! The sections of a run spec that say how it trains: `[optimizer]`, `[losses]`, `[train]`, `[schedule]`.

use serde_json::{Map, Value};

use super::read::{COUNT_MAX, close};
use super::{ComputeDtype, DecayShape, Optimizer, Schedule, ScheduleKind, Train};
use crate::Balance;
use crate::fields::Fields;
use crate::problem::Problem;

/// The most steps and tokens: exact in an f64.
const LENGTH_MAX: u64 = 1 << 53;

pub(super) fn read_optimizer(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Optimizer {
    let mut fields = Fields::new(map, "optimizer.");
    let default = Optimizer::default();
    let optimizer = Optimizer {
        lr: fields.not_negative("lr", default.lr),
        beta1: fields.float_or("beta1", default.beta1),
        beta2: fields.float_or("beta2", default.beta2),
        eps: fields.not_negative("eps", default.eps),
        weight_decay: fields.not_negative("weight_decay", default.weight_decay),
        grad_clip: fields.not_negative("grad_clip", default.grad_clip),
    };
    for (key, beta) in [("beta1", optimizer.beta1), ("beta2", optimizer.beta2)] {
        let holds = (0.0..1.0).contains(&beta);
        fields.refuse_unless(holds, key, beta, "is outside of [0, 1)", "give the decay of a moment, such as 0.9");
    }
    let rule = "divides by zero where a gradient is zero";
    fields.refuse_unless(optimizer.eps != 0.0, "eps", 0, rule, "give a small positive number, such as 1e-8");
    close(fields, "optimizer", problems);
    optimizer
}

pub(super) fn read_losses(map: &Map<String, Value>, problems: &mut Vec<Problem>) -> Balance {
    let mut fields = Fields::new(map, "losses.");
    let losses = Balance {
        load_balance: fields.not_negative("load_balance", 0.0),
        z: fields.not_negative("z", 0.0),
        bias_update: fields.not_negative("bias_update", 0.0),
    };
    close(fields, "losses", problems);
    losses
}

pub(super) fn read_train(map: &Map<String, Value>, seq_len: usize, problems: &mut Vec<Problem>) -> Train {
    let mut fields = Fields::new(map, "train.");
    let rows_per_step = fields.count("rows_per_step", 8, 1..=COUNT_MAX);
    let microbatch_rows = fields.count("microbatch_rows", rows_per_step, 1..=COUNT_MAX);
    if microbatch_rows > 0 && !fields.unread.contains("rows_per_step") {
        let rule = format!("does not divide train.rows_per_step = {rows_per_step}");
        let holds = rows_per_step.is_multiple_of(microbatch_rows);
        fields.refuse_unless(holds, "microbatch_rows", microbatch_rows, rule, "choose a divisor of it");
    }
    let threads = fields.count("threads", 0, 0..=COUNT_MAX);
    let seed = fields.size_or("seed", 0) as u64;
    let rule = "exceeds 2^63-1, the largest number of TOML";
    fields.refuse_unless(i64::try_from(seed).is_ok(), "seed", seed, rule, "give a smaller one");
    let train = Train {
        steps: read_steps(&mut fields, (rows_per_step as u64).saturating_mul(seq_len as u64)),
        rows_per_step,
        microbatch_rows,
        dtype: fields.choice("dtype", &[("f32", ComputeDtype::F32), ("bf16", ComputeDtype::Bf16)]),
        seed,
        recompute: fields.flag_or("recompute", false),
        threads,
        metrics: fields.path("metrics"),
        output: fields.path("output"),
    };
    close(fields, "train", problems);
    train
}

/// The length of the run in steps, from `steps` or `tokens`.
fn read_steps(fields: &mut Fields<'_>, tokens_per_step: u64) -> u64 {
    let steps = fields.optional_size("steps", None).map(|steps| steps as u64);
    let tokens = fields.optional_size("tokens", None).map(|tokens| tokens as u64);
    for (key, length) in [("steps", steps), ("tokens", tokens)] {
        if let Some(length) = length {
            let rule = format!("is not from 1 to {LENGTH_MAX}");
            let holds = (1..=LENGTH_MAX).contains(&length);
            fields.refuse_unless(holds, key, length, rule, "give the length of the run");
        }
    }
    if let (Some(steps), Some(tokens)) = (steps, tokens) {
        let rule = format!("stands beside train.steps = {steps}");
        fields.refuse("tokens", tokens, rule, "a run has one length: remove one of the two");
    }
    let unread = fields.unread.contains("steps") || fields.unread.contains("tokens");
    if steps.is_none() && tokens.is_none() && !unread {
        fields.missing("steps", "give train.steps or train.tokens");
    }
    steps.or_else(|| tokens.map(|tokens| tokens.div_ceil(tokens_per_step.max(1)))).unwrap_or(0)
}

pub(super) fn read_schedule(map: &Map<String, Value>, steps: u64, problems: &mut Vec<Problem>) -> Schedule {
    let mut fields = Fields::new(map, "schedule.");
    let kinds = [
        ("constant", ScheduleKind::Constant),
        ("linear", ScheduleKind::Linear),
        ("cosine", ScheduleKind::Cosine),
        ("wsd", ScheduleKind::Wsd),
    ];
    let shapes = [("cosine", DecayShape::Cosine), ("linear", DecayShape::Linear), ("sqrt", DecayShape::Sqrt)];
    let schedule = Schedule {
        kind: fields.choice("kind", &kinds),
        warmup_steps: fields.size_or("warmup_steps", 0) as u64,
        decay_steps: fields.optional_size("decay_steps", None).map(|steps| steps as u64),
        min_lr_ratio: fields.float_or("min_lr_ratio", 0.0),
        decay_shape: fields.choice("decay_shape", &shapes),
    };
    let Schedule { kind, warmup_steps, decay_steps, min_lr_ratio, .. } = schedule;
    let holds = (0.0..=1.0).contains(&min_lr_ratio);
    fields.refuse_unless(
        holds,
        "min_lr_ratio",
        min_lr_ratio,
        "is outside of [0, 1]",
        "give a fraction of optimizer.lr",
    );
    let known = !fields.unread.contains("kind");
    let (constant, wsd) = (kind == ScheduleKind::Constant, kind == ScheduleKind::Wsd);
    for (key, allowed, needed) in [
        ("decay_steps", !constant, "a constant rate does not decay"),
        ("min_lr_ratio", !constant, "a constant rate does not decay"),
        ("decay_shape", wsd, "only a wsd schedule has a choice of shapes"),
    ] {
        if let (false, true, Some(value)) = (allowed, known, map.get(key)) {
            fields.refuse(key, value, format!("has no effect: {needed}"), "remove it or change schedule.kind");
        }
    }
    if let Some(decay) = decay_steps {
        let rule = "is no length of a decay";
        fields.refuse_unless(decay > 0, "decay_steps", decay, rule, "give at least 1 or remove it");
    }
    if steps > 0 {
        let rule = format!("exceeds train.steps = {steps}");
        fields.refuse_unless(warmup_steps <= steps, "warmup_steps", warmup_steps, rule, "shorten the warm-up");
        let decay = schedule.decay_steps(steps);
        if wsd && known && warmup_steps <= steps && warmup_steps.saturating_add(decay) > steps {
            let rule = format!("and schedule.warmup_steps = {warmup_steps} together exceed train.steps = {steps}");
            fields.refuse("decay_steps", decay, rule, "shorten one of the two");
        }
    }
    close(fields, "schedule", problems);
    schedule
}
