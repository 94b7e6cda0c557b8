//! `tidelog group lag` and `tidelog group describe`.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tidelog_client::{Client, Committed, Offset, OffsetSpec, PartitionId, Timestamp, TopicName};

use super::list::kind;
use super::{NamedArgs, hinted};
use crate::args::OutputForm;
use crate::failure::Failure;
use crate::output::numbers::{counted, grouped};
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::time::show_time;

/// How far a group is behind in a partition.
struct Behind {
    committed: Committed,
    /// `None` where the topic it was committed for is gone.
    end: Option<Offset>,
    records: Option<u64>,
    /// How old the first record is that is not done with.
    millis: Option<u64>,
}

pub(super) async fn run(client: &Client, args: &NamedArgs) -> Result<(), Failure> {
    // One that does not exist has committed nothing: that is to be told.
    let described = client.group(&args.group).describe().await;
    described.map_err(|e| hinted(e.into()))?;
    let behind = lag(client, &args.group).await?;
    let mut table = Table::new(&["TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "BEHIND"]);
    let mut lines = String::new();
    for one in &behind {
        table.row([
            one.committed.topic.to_string(),
            one.committed.partition.to_string(),
            one.committed.offset.to_string(),
            dash(one.end),
            one.records.map_or_else(|| "-".to_owned(), grouped),
            one.millis.map_or_else(|| "-".to_owned(), span),
        ]);
        lines.push_str(&format!("{}\n", line(one)));
    }
    let total: u64 = behind.iter().filter_map(|one| one.records).sum();
    say!(
        "group {} is {} behind",
        args.group,
        counted(total, "record")
    );
    print(&match args.output.form {
        OutputForm::Table => table.text(),
        OutputForm::Json => lines,
    })
}

pub(super) async fn describe(client: &Client, args: &NamedArgs) -> Result<(), Failure> {
    let described = client.group(&args.group).describe().await;
    let described = described.map_err(|e| hinted(e.into()))?;
    let behind = lag(client, &args.group).await?;
    let group = described.group.unwrap_or_default();
    let place = described.coordinator.unwrap_or_default();
    let mut table = Table::new(&[
        "TOPIC",
        "PARTITION",
        "COMMITTED",
        "END",
        "LAG",
        "COMMITTED AT",
        "METADATA",
    ]);
    for one in &behind {
        table.row([
            one.committed.topic.to_string(),
            one.committed.partition.to_string(),
            one.committed.offset.to_string(),
            dash(one.end),
            one.records.map_or_else(|| "-".to_owned(), grouped),
            show_time(one.committed.committed_at),
            one.committed.metadata.escape_debug().to_string(),
        ]);
    }
    let offsets: Vec<Value> = behind.iter().map(line).collect();
    let shown = json!({
        "group": group.group,
        "kind": kind(group.kind()),
        "members": group.members,
        "coordinator": place.node_id,
        "coordinator_address": place.grpc_address,
        "offsets": offsets,
    });
    print(&match args.output.form {
        OutputForm::Table => format!(
            "group        {}\nkind         {}\nmembers      {}\ncoordinator  broker {} ({})\n\n{}",
            group.group,
            kind(group.kind()),
            group.members,
            place.node_id,
            place.grpc_address,
            table.text()
        ),
        OutputForm::Json => format!("{shown}\n"),
    })
}

/// What a group has committed, and how far behind it is, by topic and partition.
async fn lag(client: &Client, group: &str) -> Result<Vec<Behind>, Failure> {
    let mut by_topic: BTreeMap<TopicName, Vec<Committed>> = BTreeMap::new();
    for committed in client.group(group).committed().await? {
        let of_topic = by_topic.entry(committed.topic.clone()).or_default();
        of_topic.push(committed);
    }
    let mut all = Vec::new();
    for (topic, of_topic) in by_topic {
        all.extend(of_topic_lag(client, &topic, of_topic).await?);
    }
    Ok(all)
}

async fn of_topic_lag(
    client: &Client,
    topic: &TopicName,
    of_topic: Vec<Committed>,
) -> Result<Vec<Behind>, Failure> {
    let described = match client.describe_topic(topic, false).await {
        Ok(described) => Some(described),
        Err(e) if e.is_not_found() => None,
        Err(e) => return Err(e.into()),
    };
    let id = described
        .and_then(|described| described.topic)
        .map(|topic| topic.topic_id);
    let is_there = |one: &Committed| id.as_ref() == Some(&one.topic_id);
    let there: Vec<_> = of_topic.iter().filter(|one| is_there(one)).collect();
    let latest: Vec<_> = there
        .iter()
        .map(|one| (one.partition, OffsetSpec::Latest))
        .collect();
    let earliest: Vec<_> = there
        .iter()
        .map(|one| (one.partition, OffsetSpec::Earliest))
        .collect();
    let mut ends = BTreeMap::new();
    let mut open = Vec::new();
    if !there.is_empty() {
        let starts = client.list_offsets(topic, &earliest).await?;
        for (end, start) in client
            .list_offsets(topic, &latest)
            .await?
            .iter()
            .zip(&starts)
        {
            ends.insert(end.partition, (start.offset, end.offset));
        }
        for one in &there {
            let (start, end) = ends[&one.partition];
            // What was trimmed meanwhile is read no more.
            let next = one.offset.max(start);
            if next < end {
                open.push((one.partition, next));
            }
        }
    }
    let mut times: BTreeMap<PartitionId, Timestamp> = BTreeMap::new();
    if !open.is_empty() {
        let at = client.timestamps_at(topic, &open).await?;
        let known = open.iter().zip(at);
        times = known
            .filter_map(|((partition, _), time)| Some((*partition, time?)))
            .collect();
    }
    let now = crate::clock::now().millis();
    let behind = of_topic.into_iter().map(|committed| {
        let ends = ends
            .get(&committed.partition)
            .filter(|_| is_there(&committed));
        let time = times.get(&committed.partition).filter(|_| ends.is_some());
        let next = ends.map(|(start, end)| (committed.offset.max(*start), *end));
        Behind {
            end: next.map(|(_, end)| end),
            records: next.map(|(next, end)| end.records_since(next)),
            millis: match time {
                Some(time) => Some(u64::try_from(now.saturating_sub(time.millis())).unwrap_or(0)),
                None => next.map(|_| 0),
            },
            committed,
        }
    });
    Ok(behind.collect())
}

fn line(one: &Behind) -> Value {
    json!({
        "topic": one.committed.topic.as_str(),
        "partition": one.committed.partition.get(),
        "committed_offset": one.committed.offset.get(),
        "end_offset": one.end.map(Offset::get),
        "lag": one.records,
        "lag_ms": one.millis,
        "committed_at": one.committed.committed_at.millis(),
        "metadata": one.committed.metadata,
    })
}

fn dash(offset: Option<Offset>) -> String {
    offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string())
}

/// A span of time for people: its two largest units.
fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{}d{}h", hours / 24, hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn spans_have_two_units() {
        for (millis, shown) in [
            (0, "0ms"),
            (999, "999ms"),
            (59_999, "59s"),
            (61_000, "1m1s"),
            (3_600_000, "1h0m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(span(millis), shown);
        }
    }
}
