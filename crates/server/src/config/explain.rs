//! Shows a configuration with the origin of every value, for `tidelog config explain`.

use std::fmt::Write;

use serde_json::json;

use super::Explained;

/// A table for people: key, value, and who set it.
pub fn explain_table(explained: &[Explained]) -> String {
    let width = |of: fn(&Explained) -> usize, least: usize| {
        explained.iter().map(of).max().unwrap_or(0).max(least)
    };
    let key = width(|e| e.key.len(), 3);
    let value = width(|e| e.value.chars().count(), 5);
    let mut table = format!("{:key$}  {:value$}  SOURCE\n", "KEY", "VALUE");
    for e in explained {
        writeln!(table, "{:key$}  {:value$}  {}", e.key, e.value, e.source)
            .expect("writing to a String does not fail");
    }
    table
}

/// One JSON object a line: `{"key","value","source","place"}`; `source` is flag, environment,
/// file or default, `place` the flag, variable or file, or null.
pub fn explain_json(explained: &[Explained]) -> String {
    let mut lines = String::new();
    for e in explained {
        let line = json!({
            "key": e.key,
            "value": e.value,
            "source": e.source.kind(),
            "place": e.source.place(),
        });
        writeln!(lines, "{line}").expect("writing to a String does not fail");
    }
    lines
}
