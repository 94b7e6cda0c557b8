//! What a measurement found.

use std::time::Duration;

use serde_json::{Value, json};

use super::histogram::Histogram;
use crate::args::OutputForm;
use crate::failure::Failure;
use crate::output::numbers::{grouped, millis};
use crate::output::sink::print;

/// The result of one run.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    /// What was measured, to be repeated: names and values. Null is not told: it was not asked for.
    pub(super) parameters: Vec<(&'static str, Value)>,
    pub(super) records: u64,
    /// Keys and values.
    pub(super) bytes: u64,
    pub(super) elapsed: Duration,
    pub(super) cpu: Duration,
    /// By what they measure.
    pub(super) latencies: Vec<(&'static str, Histogram)>,
}

impl Report {
    pub(super) fn print(&self, form: OutputForm) -> Result<(), Failure> {
        print(&match form {
            OutputForm::Json => format!("{}\n", self.json()),
            OutputForm::Table => self.text(),
        })
    }

    fn json(&self) -> Value {
        let mut json = json!({ "bench": self.bench });
        for (name, value) in self.told() {
            json[*name] = value.clone();
        }
        json["records"] = self.records.into();
        json["bytes"] = self.bytes.into();
        json["seconds"] = rounded(self.elapsed.as_secs_f64());
        json["records_per_second"] = rounded(self.records_per_second());
        json["mib_per_second"] = rounded(self.mib_per_second());
        json["cpu_seconds"] = rounded(self.cpu.as_secs_f64());
        for (name, histogram) in &self.latencies {
            let ms = |duration: Duration| rounded(duration.as_secs_f64() * 1000.0);
            json[*name] = json!({
                "p50": ms(histogram.per_mille(500)),
                "p95": ms(histogram.per_mille(950)),
                "p99": ms(histogram.per_mille(990)),
                "max": ms(histogram.max()),
            });
        }
        json
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| text.push_str(&format!("{name:<22}{value}\n"));
        line("bench", self.bench.to_owned());
        for (name, value) in self.told() {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            line(&name.replace('_', " "), value);
        }
        line(
            "records",
            format!("{} in {}", grouped(self.records), millis(self.elapsed)),
        );
        line("records/s", format!("{:.0}", self.records_per_second()));
        line("MiB/s", format!("{:.1}", self.mib_per_second()));
        for (name, histogram) in &self.latencies {
            let name = name.trim_end_matches("_ms").replace('_', " ");
            line(
                &name,
                format!(
                    "p50 {}, p95 {}, p99 {}, max {}",
                    millis(histogram.per_mille(500)),
                    millis(histogram.per_mille(950)),
                    millis(histogram.per_mille(990)),
                    millis(histogram.max()),
                ),
            );
        }
        line(
            "CPU of this process",
            format!("{:.2} s", self.cpu.as_secs_f64()),
        );
        text
    }

    fn told(&self) -> impl Iterator<Item = &(&'static str, Value)> {
        self.parameters.iter().filter(|(_, value)| !value.is_null())
    }

    fn records_per_second(&self) -> f64 {
        per_second(self.records, self.elapsed)
    }

    fn mib_per_second(&self) -> f64 {
        per_second(self.bytes, self.elapsed) / (1024.0 * 1024.0)
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a rate has three digits that matter"
)]
fn per_second(count: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 {
        count as f64 / seconds
    } else {
        0.0
    }
}

/// Without digits that say nothing.
fn rounded(number: f64) -> Value {
    json!((number * 1000.0).round() / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_say_what_was_measured() {
        let mut histogram = Histogram::new();
        histogram.record(Duration::from_millis(2));
        let report = Report {
            bench: "produce",
            parameters: vec![
                ("topic", "t".into()),
                ("record_bytes", 1024.into()),
                ("rate", None::<u64>.into()),
            ],
            records: 1024,
            bytes: 1024 * 1024,
            elapsed: Duration::from_millis(500),
            cpu: Duration::from_millis(250),
            latencies: vec![("latency_ms", histogram)],
        };
        assert_eq!(
            report.json().to_string(),
            r#"{"bench":"produce","topic":"t","record_bytes":1024,"records":1024,"bytes":1048576,"seconds":0.5,"records_per_second":2048.0,"mib_per_second":2.0,"cpu_seconds":0.25,"latency_ms":{"p50":2.0,"p95":2.0,"p99":2.0,"max":2.0}}"#
        );
        let text = report.text();
        for part in [
            "MiB/s                 2.0",
            "p99 2.00 ms",
            "0.25 s",
            "record bytes          1024",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("rate"), "{text}");
    }

    #[test]
    fn nothing_in_no_time_is_no_rate() {
        assert!(per_second(5, Duration::ZERO).abs() < f64::EPSILON);
    }
}
