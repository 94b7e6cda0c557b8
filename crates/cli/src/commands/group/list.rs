//! `tidelog group list`.

use serde_json::json;
use tidelog_client::Client;
use tidelog_client::proto::GroupKind;

use crate::args::OutputForm;
use crate::failure::{Exit, Failure};
use crate::output::numbers::grouped;
use crate::output::sink::print;
use crate::output::table::Table;

pub(super) async fn run(client: &Client, form: OutputForm) -> Result<(), Failure> {
    let (groups, missing) = client.list_groups().await?;
    let mut table = Table::new(&["GROUP", "KIND", "MEMBERS", "OFFSETS"]);
    let mut lines = String::new();
    for group in &groups {
        let kind = kind(group.kind());
        table.row([
            group.group.clone(),
            kind.to_owned(),
            grouped(u64::from(group.members)),
            grouped(u64::from(group.offsets)),
        ]);
        let line = json!({
            "group": group.group,
            "kind": kind,
            "members": group.members,
            "offsets": group.offsets,
        });
        lines.push_str(&format!("{line}\n"));
    }
    print(&match form {
        OutputForm::Table => table.text(),
        OutputForm::Json => lines,
    })?;
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let why = first
        .error
        .as_ref()
        .map_or("", |error| error.message.as_str());
    let message = format!(
        "the groups of {} of the partitions of __consumer_offsets are not listed: {why}",
        missing.len()
    );
    Err(Failure::new(Exit::Unavailable, message)
        .hint("see how the brokers are with: tidelog cluster status"))
}

/// The kind of a group, as it is shown.
pub(super) fn kind(kind: GroupKind) -> &'static str {
    match kind {
        GroupKind::Offsets => "offsets",
        GroupKind::Stream => "stream",
        GroupKind::Unspecified => "-",
    }
}
