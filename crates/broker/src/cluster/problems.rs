//! What is not well with a partition, in a word and for people.

use std::collections::BTreeMap;

use tidelog_controller::{NodeId, Phase};

use super::{PartitionPlace, PartitionProblem, ProblemKind};

/// The replicas that do not serve and why, by topic and number of their partition, and broker.
pub(super) type Faults = BTreeMap<(String, u32), BTreeMap<NodeId, String>>;

/// What is not well with a partition, if anything: the worst of it, once. `how_is` says how a broker is
/// whose replica is not in sync.
pub(super) fn problem(
    place: &PartitionPlace,
    faults: &Faults,
    how_is: impl Fn(NodeId) -> &'static str,
) -> Option<PartitionProblem> {
    let faults = faults.get(&(place.topic.clone(), place.partition));
    let fault_of = |node: &NodeId| faults.and_then(|faults| faults.get(node));
    let told = |kind, cause| {
        Some(PartitionProblem {
            topic: place.topic.clone(),
            partition: place.partition,
            kind,
            cause,
        })
    };
    let how = |node: &NodeId| match fault_of(node) {
        Some(fault) => format!("broker {node} does not serve it: {fault}"),
        None => format!("broker {node} {}", how_is(*node)),
    };
    if place.leader.is_none() {
        let replicas = place.replicas.iter().map(how);
        let replicas = replicas.map(|said| said.replace("is catching up", "is there"));
        let replicas: Vec<String> = replicas.collect();
        let cause = format!("no leader is known: {}", replicas.join(", "));
        return told(ProblemKind::Leaderless, cause);
    }
    let is_missing = |node: &&NodeId| !place.in_sync.contains(node) || fault_of(node).is_some();
    let missing: Vec<&NodeId> = place.replicas.iter().filter(is_missing).collect();
    if missing.is_empty() {
        let lacking = place.lacking;
        if lacking == 0 {
            return None;
        }
        let cause =
            format!("replicas that it lost for good and no broker has taken yet: {lacking}");
        return told(ProblemKind::UnderReplicated, cause);
    }
    let is_faulted = missing.iter().any(|node| fault_of(node).is_some());
    let missing: Vec<String> = missing.into_iter().map(how).collect();
    let missing = missing.join(", ");
    if is_faulted {
        return told(ProblemKind::Faulted, missing);
    }
    let change = place.change.as_ref();
    let is_moving = change.is_some_and(|change| change.phase != Phase::Adding);
    let cause = match is_moving {
        true => format!("{missing} (its replicas are being changed)"),
        false => missing,
    };
    told(ProblemKind::UnderReplicated, cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(leader: Option<NodeId>, in_sync: &[NodeId]) -> PartitionPlace {
        PartitionPlace {
            topic: "t".to_owned(),
            partition: 0,
            leader,
            leader_epoch: 7,
            replicas: vec![1, 2, 3],
            in_sync: in_sync.to_vec(),
            lacking: 0,
            change: None,
            lag: BTreeMap::new(),
        }
    }

    #[test]
    fn a_partition_is_told_of_once_with_the_worst() {
        let how_is = |node| {
            if node == 3 {
                "is silent"
            } else {
                "is catching up"
            }
        };
        let told = |place, faults: &Faults| {
            problem(&place, faults, how_is).map(|told| (told.kind, told.cause))
        };
        let none = Faults::new();
        assert_eq!(told(place(Some(1), &[1, 2, 3]), &none), None);
        let (kind, cause) = told(place(Some(1), &[1]), &none).unwrap();
        assert_eq!(kind, ProblemKind::UnderReplicated);
        assert_eq!(cause, "broker 2 is catching up, broker 3 is silent");

        let lacks = PartitionPlace {
            lacking: 2,
            ..place(Some(1), &[1, 2, 3])
        };
        let (kind, cause) = told(lacks, &none).unwrap();
        assert_eq!(kind, ProblemKind::UnderReplicated);
        assert!(cause.ends_with(": 2"), "{cause}");
        let fault = BTreeMap::from([(2, "no disk".to_owned())]);
        let faults = Faults::from([(("t".to_owned(), 0), fault)]);
        let (kind, cause) = told(place(Some(1), &[1]), &faults).unwrap();
        assert_eq!(kind, ProblemKind::Faulted);
        assert_eq!(
            cause,
            "broker 2 does not serve it: no disk, broker 3 is silent"
        );
        // Its leader may count on it yet.
        let told_early = told(place(Some(1), &[1, 2, 3]), &faults).unwrap();
        assert_eq!(told_early.1, "broker 2 does not serve it: no disk");
        let (kind, cause) = told(place(None, &[]), &faults).unwrap();
        assert_eq!(kind, ProblemKind::Leaderless);
        assert!(cause.contains("broker 2 does not serve it: no disk, broker 3 is silent"));
    }
}
