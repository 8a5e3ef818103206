//! The learning rate as a function of the step.
//!
//! `linear`, `cosine` and `wsd` are those of transformers (`get_linear_schedule_with_warmup`,
//! `get_cosine_with_min_lr_schedule_with_warmup`, `get_wsd_schedule`), step for step: step 0 of a run with warm-up has
//! rate 0 (or, for `wsd`, the least rate), and the last step is one short of the end of the decay.

use std::f64::consts::PI;

use serde::Serialize;

/// Warm-up, then what `kind` says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Schedule {
    /// Default: `constant`.
    pub kind: ScheduleKind,
    /// Steps over which the rate rises linearly to its full value. Default: 0.
    pub warmup_steps: u64,
    /// Steps of the decay: `linear` and `cosine` decay right after the warm-up, by default to the last step; `wsd`
    /// decays in the last so many steps, by default a tenth of the run, rounded down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// The rate after the decay, as a fraction of the full one, in [0, 1]. Not for `constant`. Default: 0.
    #[serde(skip_serializing_if = "is_zero")]
    pub min_lr_ratio: f64,
    /// The shape of the decay of `wsd`, only. Default: `cosine`.
    #[serde(skip_serializing_if = "DecayShape::is_default")]
    pub decay_shape: DecayShape,
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// The full rate.
    Constant,
    /// A line down to the least rate.
    Linear,
    /// Half a cosine down to the least rate.
    Cosine,
    /// Warm-up, stable, decay: the full rate, then a decay at the end.
    Wsd,
}

/// The shape of the decay of a `wsd` schedule, with p its progress from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayShape {
    /// `(1 + cos(pi * p)) / 2`
    Cosine,
    /// `1 - p`
    Linear,
    /// `1 - sqrt(p)` (arXiv 2405.18392)
    Sqrt,
}

impl DecayShape {
    fn is_default(&self) -> bool {
        *self == Self::Cosine
    }

    fn at(self, progress: f64) -> f64 {
        match self {
            Self::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
            Self::Linear => 1.0 - progress,
            Self::Sqrt => 1.0 - progress.sqrt(),
        }
    }
}

fn is_zero(ratio: &f64) -> bool {
    *ratio == 0.0
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            kind: ScheduleKind::Constant,
            warmup_steps: 0,
            decay_steps: None,
            min_lr_ratio: 0.0,
            decay_shape: DecayShape::Cosine,
        }
    }
}

impl Schedule {
    /// The learning rate of step `step`, counted from 0, of a run of `steps_total`, where `base` is the full rate.
    #[must_use]
    pub fn lr(&self, step: u64, steps_total: u64, base: f64) -> f64 {
        base * self.factor(step, steps_total)
    }

    /// Steps of the decay in a run of `steps_total`; 0 for a constant rate.
    #[must_use]
    pub fn decay_steps(&self, steps_total: u64) -> u64 {
        self.decay_steps.unwrap_or(match self.kind {
            ScheduleKind::Constant => 0,
            ScheduleKind::Linear | ScheduleKind::Cosine => steps_total.saturating_sub(self.warmup_steps),
            ScheduleKind::Wsd => steps_total / 10,
        })
    }

    fn factor(&self, step: u64, steps_total: u64) -> f64 {
        let above_least = |factor: f64| factor * (1.0 - self.min_lr_ratio) + self.min_lr_ratio;
        if step < self.warmup_steps {
            let progress = step as f64 / self.warmup_steps as f64;
            return if self.kind == ScheduleKind::Wsd { above_least(progress) } else { progress };
        }
        let decay = self.decay_steps(steps_total);
        let (begin, shape) = match self.kind {
            ScheduleKind::Constant => return 1.0,
            ScheduleKind::Linear => (self.warmup_steps, DecayShape::Linear),
            ScheduleKind::Cosine => (self.warmup_steps, DecayShape::Cosine),
            ScheduleKind::Wsd => (steps_total.saturating_sub(decay).max(self.warmup_steps), self.decay_shape),
        };
        if step < begin {
            1.0
        } else if step - begin < decay {
            above_least(shape.at((step - begin) as f64 / decay as f64))
        } else {
            self.min_lr_ratio
        }
    }
}
