//! A figure: what was measured, beside what limits it.

use std::fmt;

use serde_json::{Value, json};

/// What is to be reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// The ratio to the baseline is at least this.
    RatioAtLeast(f64),
    /// The ratio to the baseline is at most this.
    RatioAtMost(f64),
    /// The value is above this.
    Above(f64),
    /// The value is below this.
    Below(f64),
    /// Told for comparison.
    None,
}

/// A figure and its limit, a value of each for every turn.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
    pub(crate) baseline: &'static str,
    pub(crate) baselines: Vec<f64>,
    pub(crate) goal: Goal,
}

impl Figure {
    /// The median.
    pub(crate) fn value(&self) -> f64 {
        median(&self.values)
    }

    /// The median of the ratios of the turns: what slows one turn down slows both of its sides.
    pub(crate) fn ratio(&self) -> f64 {
        let ratios = self.values.iter().zip(&self.baselines);
        let ratios: Vec<f64> = ratios.map(|(value, baseline)| value / baseline).collect();
        median(&ratios)
    }

    /// Whether the goal is met, if there is one.
    pub(crate) fn met(&self) -> Option<bool> {
        match self.goal {
            Goal::RatioAtLeast(least) => Some(self.ratio() >= least),
            Goal::RatioAtMost(most) => Some(self.ratio() <= most),
            Goal::Above(limit) => Some(self.value() > limit),
            Goal::Below(limit) => Some(self.value() < limit),
            Goal::None => None,
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let goal = match self.goal {
            Goal::RatioAtLeast(least) => json!({ "ratio_at_least": least }),
            Goal::RatioAtMost(most) => json!({ "ratio_at_most": most }),
            Goal::Above(limit) => json!({ "value_above": limit }),
            Goal::Below(limit) => json!({ "value_below": limit }),
            Goal::None => Value::Null,
        };
        json!({
            "name": self.name,
            "unit": self.unit,
            "value": rounded(self.value()),
            "baseline": { "name": self.baseline, "value": rounded(median(&self.baselines)) },
            "ratio": rounded(self.ratio()),
            "goal": goal,
            "met": self.met(),
            "turns": {
                "value": self.values.iter().copied().map(rounded).collect::<Vec<_>>(),
                "baseline": self.baselines.iter().copied().map(rounded).collect::<Vec<_>>(),
            },
        })
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "no goal",
        };
        write!(
            f,
            "{}: {} {}, {} {}, ratio {} ({met})",
            self.name,
            rounded(self.value()),
            self.unit,
            self.baseline,
            rounded(median(&self.baselines)),
            rounded(self.ratio()),
        )
    }
}

/// Measures both sides in turns: A B, B A, A B, so that neither always follows the other.
pub(crate) fn in_turns<T>(
    turns: usize,
    mut ours: impl FnMut() -> anyhow::Result<T>,
    mut limit: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<(Vec<T>, Vec<T>)> {
    let (mut values, mut limits) = (Vec::new(), Vec::new());
    for turn in 0..turns {
        if turn % 2 == 0 {
            values.push(ours()?);
            limits.push(limit()?);
        } else {
            limits.push(limit()?);
            values.push(ours()?);
        }
    }
    Ok((values, limits))
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// The value that this share of all is at or below.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a list of measurements"
    )]
    let at = (values.len() as f64 * share) as usize;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

/// Four digits that count.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    #[allow(clippy::cast_possible_truncation, reason = "a number of digits")]
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}
