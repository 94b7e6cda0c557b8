//! `tidelog cluster status` and `tidelog cluster health`.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tidelog_client::Client;
use tidelog_client::proto::{
    BrokerDescription, BrokerState, DescribeClusterResponse, PartitionProblem, ProblemKind,
    ResigningCause,
};

use super::{brokers, unanswered};
use crate::args::{OutputArgs, OutputForm};
use crate::failure::{Exit, Failure};
use crate::output::numbers::{counted, grouped};
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::nodes::hex;

/// So many partitions that are not well fit on a screen.
const SHOWN_MAX: usize = 10;

pub(super) async fn status(client: &Client, output: OutputArgs) -> Result<(), Failure> {
    let cluster = client.describe_cluster().await.map_err(unanswered)?;
    print(&match output.form {
        OutputForm::Table => as_text(&cluster),
        OutputForm::Json => format!("{}\n", as_json(&cluster)),
    })?;
    if !cluster.refused.is_empty() {
        if output.form == OutputForm::Table {
            say!("ask another broker, with --broker");
        }
        return Ok(());
    }
    let is_silent = |broker: &BrokerDescription| broker.state() != BrokerState::Alive;
    let is_table = output.form == OutputForm::Table;
    if is_table && cluster.metadata_leader.is_none() && cluster.brokers.iter().any(is_silent) {
        say!(
            "start the brokers that are not heard; if they are lost for good, and a majority with them, see \
             what is left with: tidelog cluster recover"
        );
    }
    Ok(())
}

pub(super) async fn health(client: &Client, output: OutputArgs) -> Result<(), Failure> {
    let cluster = client.describe_cluster().await.map_err(unanswered)?;
    let problems = problems(&cluster);
    let unlisted = unlisted(&cluster);
    print(&match output.form {
        OutputForm::Json => {
            let listed: Vec<_> = problems.iter().map(Problem::as_json).collect();
            let health = json!({
                "healthy": problems.is_empty(),
                "problem_count": problems.len() as u64 + unlisted,
                "problems": listed,
            });
            format!("{health}\n")
        }
        OutputForm::Table if problems.is_empty() => format!(
            "healthy: {} alive, {} well\n",
            counted(cluster.brokers.len() as u64, "broker"),
            counted(cluster.partitions.into(), "partition")
        ),
        OutputForm::Table => {
            let mut text = String::new();
            for problem in &problems {
                text.push_str(&format!("{}\n", problem.text()));
            }
            if unlisted > 0 {
                let more = counted(unlisted, "more partition");
                text.push_str(&format!("{more} that are not well\n"));
            }
            text
        }
    })?;
    if problems.is_empty() {
        return Ok(());
    }
    let count = counted(problems.len() as u64 + unlisted, "problem");
    let failure = Failure::new(Exit::Failed, format!("the cluster is not healthy: {count}"));
    Err(if unlisted > 0 {
        failure.hint("see all partitions with: tidelog cluster partitions")
    } else {
        failure
    })
}

/// Something that is not as it should be.
#[derive(Debug)]
enum Problem<'a> {
    NoMetadataLeader,
    /// The broker that answers is none of the cluster.
    Refused {
        node_id: u32,
        cause: &'a str,
    },
    Broker {
        node_id: u32,
        state: String,
    },
    Partition(&'a PartitionProblem),
}

impl Problem<'_> {
    fn text(&self) -> String {
        match self {
            Self::NoMetadataLeader => {
                "no broker is known to lead the metadata: nothing can be changed".to_owned()
            }
            Self::Refused { node_id, cause } => {
                format!("broker {node_id} answers, and is not taken by the cluster: {cause}")
            }
            Self::Broker { node_id, state } => format!("broker {node_id} is {state}"),
            Self::Partition(problem) => format!(
                "partition {} of topic {} is {}: {}",
                problem.partition,
                problem.topic,
                kind_name(problem.kind()),
                problem.cause
            ),
        }
    }

    fn as_json(&self) -> Value {
        match self {
            Self::NoMetadataLeader => json!({ "problem": "no_metadata_leader" }),
            Self::Broker { node_id, state } => {
                json!({ "problem": "broker", "node_id": node_id, "cause": state })
            }
            Self::Refused { node_id, cause } => {
                json!({ "problem": "refused", "node_id": node_id, "cause": cause })
            }
            Self::Partition(problem) => partition_json(problem),
        }
    }
}

/// All that is not well; a broker that drains is. Of one that the cluster does not take nothing else counts: what
/// it says of the others is old.
fn problems(cluster: &DescribeClusterResponse) -> Vec<Problem<'_>> {
    if !cluster.refused.is_empty() {
        return vec![Problem::Refused {
            node_id: cluster.answered_by,
            cause: &cluster.refused,
        }];
    }
    let mut problems = Vec::new();
    if cluster.metadata_leader.is_none() {
        problems.push(Problem::NoMetadataLeader);
    }
    let unwell = cluster.brokers.iter().filter(|broker| {
        broker.state() != BrokerState::Alive || broker.resigning() != ResigningCause::Unspecified
    });
    problems.extend(unwell.map(|broker| Problem::Broker {
        node_id: broker.node_id,
        state: brokers::state(broker),
    }));
    problems.extend(cluster.problems.iter().map(Problem::Partition));
    problems
}

/// How many partitions are not well that the answer does not list.
fn unlisted(cluster: &DescribeClusterResponse) -> u64 {
    if !cluster.refused.is_empty() {
        return 0;
    }
    u64::from(cluster.problem_count).saturating_sub(cluster.problems.len() as u64)
}

fn as_text(cluster: &DescribeClusterResponse) -> String {
    let mut text = String::new();
    head(&mut text, cluster).expect("writing to a String does not fail");
    text.push('\n');
    if !cluster.refused.is_empty() {
        let mut others = cluster.brokers.clone();
        others.retain(|broker| broker.node_id != cluster.answered_by);
        text.push_str(&brokers::table(&others).text());
        return text;
    }
    text.push_str(&brokers::table(&cluster.brokers).text());
    if cluster.problems.is_empty() {
        return text;
    }
    let mut table = Table::new(&["TOPIC", "PARTITION", "PROBLEM", "CAUSE"]);
    for problem in cluster.problems.iter().take(SHOWN_MAX) {
        table.row([
            problem.topic.clone(),
            problem.partition.to_string(),
            kind_name(problem.kind()).to_owned(),
            problem.cause.clone(),
        ]);
    }
    text.push('\n');
    text.push_str(&table.text());
    let more = u64::from(cluster.problem_count).saturating_sub(SHOWN_MAX as u64);
    if more > 0 {
        let more = grouped(more);
        text.push_str(&format!("and {more} more: tidelog cluster health\n"));
    }
    text
}

fn head(text: &mut String, cluster: &DescribeClusterResponse) -> std::fmt::Result {
    let id = if cluster.cluster_id.is_empty() {
        "without an id".to_owned()
    } else {
        hex(&cluster.cluster_id)
    };
    writeln!(
        text,
        "cluster {id}, as broker {} sees it",
        cluster.answered_by
    )?;
    if !cluster.refused.is_empty() {
        return writeln!(
            text,
            "broker {} is not taken by the cluster: {}\nthe others, as it knew them last:",
            cluster.answered_by, cluster.refused
        );
    }
    let voters: Vec<_> = cluster.metadata_voters.iter().map(u32::to_string).collect();
    let voters = voters.join(", ");
    match cluster.metadata_leader {
        Some(leader) => writeln!(text, "metadata: broker {leader} leads; voters {voters}")?,
        None => writeln!(
            text,
            "metadata: nobody is known to lead, so that nothing can be changed; voters {voters}"
        )?,
    }
    let with = |state| {
        let brokers = cluster.brokers.iter().filter(|b| b.state() == state);
        brokers.count() as u64
    };
    write!(text, "brokers: {} alive", grouped(with(BrokerState::Alive)))?;
    for state in [BrokerState::Silent, BrokerState::Fenced] {
        let count = with(state);
        if count > 0 {
            write!(text, ", {} {}", grouped(count), brokers::state_name(state))?;
        }
    }
    let draining = cluster.brokers.iter().filter(|b| b.draining).count();
    if draining > 0 {
        write!(text, ", {} draining", grouped(draining as u64))?;
    }
    write!(text, "\npartitions: {}", grouped(cluster.partitions.into()))?;
    if cluster.problem_count == 0 {
        return writeln!(text, ", all well");
    }
    write!(text, ", {} not well", grouped(cluster.problem_count.into()))?;
    // Where not all are listed, their kinds cannot be counted.
    if unlisted(cluster) == 0 {
        let of = |kind| {
            let problems = cluster.problems.iter().filter(|p| p.kind() == kind);
            problems.count() as u64
        };
        let kinds = [
            ProblemKind::Leaderless,
            ProblemKind::UnderReplicated,
            ProblemKind::Faulted,
        ];
        let counts: Vec<_> = kinds
            .into_iter()
            .filter(|&kind| of(kind) > 0)
            .map(|kind| format!("{} {}", grouped(of(kind)), kind_name(kind)))
            .collect();
        write!(text, ": {}", counts.join(", "))?;
    }
    writeln!(text)
}

fn kind_name(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Leaderless => "leaderless",
        ProblemKind::UnderReplicated => "under-replicated",
        ProblemKind::Faulted => "faulted",
        ProblemKind::Unspecified => "not well",
    }
}

fn partition_json(problem: &PartitionProblem) -> Value {
    let kind = match problem.kind() {
        ProblemKind::Leaderless => "leaderless",
        ProblemKind::UnderReplicated => "under_replicated",
        ProblemKind::Faulted => "faulted",
        ProblemKind::Unspecified => "unknown",
    };
    json!({
        "problem": kind,
        "topic": problem.topic,
        "partition": problem.partition,
        "cause": problem.cause,
    })
}

fn as_json(cluster: &DescribeClusterResponse) -> Value {
    let brokers: Vec<_> = cluster.brokers.iter().map(brokers::as_json).collect();
    let problems: Vec<_> = cluster.problems.iter().map(partition_json).collect();
    json!({
        "cluster_id": hex(&cluster.cluster_id),
        "answered_by": cluster.answered_by,
        "metadata_leader": cluster.metadata_leader,
        "metadata_voters": cluster.metadata_voters,
        "feature_level": cluster.feature_level,
        "partitions": cluster.partitions,
        "problem_count": cluster.problem_count,
        "problems": problems,
        "brokers": brokers,
        "refused": (!cluster.refused.is_empty()).then_some(&cluster.refused),
    })
}

#[cfg(test)]
mod tests {
    use tidelog_client::proto::BrokerDescription;

    use super::*;

    fn cluster(listed: u32, count: u32) -> DescribeClusterResponse {
        let broker = |node_id, state: BrokerState| BrokerDescription {
            node_id,
            state: state.into(),
            draining: node_id == 2,
            silent_ms: 12_000,
            ..BrokerDescription::default()
        };
        let problem = |partition| PartitionProblem {
            topic: "t".to_owned(),
            partition,
            kind: if partition == 0 {
                ProblemKind::Leaderless
            } else {
                ProblemKind::UnderReplicated
            }
            .into(),
            cause: "broker 3 is gone".to_owned(),
        };
        DescribeClusterResponse {
            cluster_id: vec![0xab; 16].into(),
            answered_by: 1,
            metadata_leader: Some(2),
            metadata_voters: vec![1, 2, 3],
            brokers: vec![
                broker(1, BrokerState::Alive),
                broker(2, BrokerState::Alive),
                broker(3, BrokerState::Fenced),
            ],
            problems: (0..listed).map(problem).collect(),
            partitions: 100,
            problem_count: count,
            ..DescribeClusterResponse::default()
        }
    }

    #[test]
    fn the_screen_says_what_is_not_well_and_why() {
        let text = as_text(&cluster(2, 2));
        for part in [
            "cluster abababababababababababababababab, as broker 1 sees it\n",
            "metadata: broker 2 leads; voters 1, 2, 3\n",
            "brokers: 2 alive, 1 fenced, 1 draining\n",
            "partitions: 100, 2 not well: 1 leaderless, 1 under-replicated\n",
            "fenced, silent for 12.00 s",
            "broker 3 is gone",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let well = as_text(&cluster(0, 0));
        assert!(well.contains("partitions: 100, all well\n"), "{well}");
        assert!(!well.contains("PROBLEM"), "{well}");
    }

    #[test]
    fn many_problems_still_fit_on_a_screen() {
        let text = as_text(&cluster(40, 77));
        assert!(text.contains("77 not well\n"), "{text}");
        assert!(
            text.ends_with("and 67 more: tidelog cluster health\n"),
            "{text}"
        );
        assert!(text.lines().count() < 24, "{text}");
    }

    #[test]
    fn a_broker_that_drains_is_well_and_one_that_is_gone_is_not() {
        let cluster = cluster(1, 1);
        let said: Vec<_> = problems(&cluster).iter().map(Problem::text).collect();
        assert_eq!(
            said,
            [
                "broker 3 is fenced, silent for 12.00 s",
                "partition 0 of topic t is leaderless: broker 3 is gone"
            ]
        );
    }

    #[test]
    fn a_broker_that_was_removed_says_that_and_nothing_that_is_old() {
        let removed = DescribeClusterResponse {
            refused: "node 1 was removed from the cluster".to_owned(),
            metadata_leader: None,
            ..cluster(2, 77)
        };
        let text = as_text(&removed);
        let said = "\nbroker 1 is not taken by the cluster: node 1 was removed from the cluster\n";
        assert!(text.contains(said), "{text}");
        assert!(!text.contains("leaderless"), "{text}");
        let told: Vec<_> = problems(&removed).iter().map(Problem::as_json).collect();
        let cause = &removed.refused;
        let only = json!([{ "problem": "refused", "node_id": 1, "cause": cause }]);
        assert_eq!(Value::from(told), only);
        assert_eq!(unlisted(&removed), 0);
        assert_eq!(as_json(&removed)["refused"], removed.refused.as_str());
        assert_eq!(as_json(&cluster(0, 0))["refused"], Value::Null);
    }

    #[test]
    fn without_a_metadata_leader_nothing_is_well() {
        let mut cluster = cluster(0, 0);
        cluster.brokers.clear();
        cluster.metadata_leader = None;
        assert_eq!(problems(&cluster).len(), 1);
        assert!(as_text(&cluster).contains("nothing can be changed"));
        assert_eq!(as_json(&cluster)["metadata_leader"], Value::Null);
    }
}
