#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;

const OWN: Own = Own {
    node_id: 1,
    directory_id: [1; 16],
};

fn founder(node_id: u32) -> Founder {
    Founder {
        node_id,
        directory_id: [u8::try_from(node_id).unwrap(); 16],
    }
}

fn fresh(node_id: u32) -> Here {
    Here {
        node_id,
        directory_id: founder(node_id).directory_id,
        wanted: [1, 2, 3].into(),
        ..Here::default()
    }
}

/// One that has agreed with these.
fn agreed(node_id: u32, founders: &[Founder]) -> Here {
    Here {
        cluster_id: Some(cluster_id_of(founders)),
        founders: founders.to_vec(),
        wanted: BTreeSet::new(),
        ..fresh(node_id)
    }
}

fn registered(node_id: u32, directory_id: [u8; 16], generation: u32) -> KnownBroker {
    KnownBroker {
        node_id,
        directory_id,
        generation,
        ..KnownBroker::default()
    }
}

fn asked(node_id: u32, answer: Option<Here>) -> Asked {
    Asked {
        node_id: Some(node_id),
        address: format!("host-{node_id}:1"),
        answer: answer.ok_or_else(|| "silence".to_owned()),
    }
}

fn three() -> Vec<Founder> {
    (1..=3).map(founder).collect()
}

fn refusal(decision: Decision) -> String {
    match decision {
        Decision::Refuse(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_come_to_the_same_id() {
    let id = cluster_id_of(&three());
    let mut turned = three();
    turned.reverse();
    assert_eq!(cluster_id_of(&turned), id);
    assert_eq!(hex(&id), "b230e2d9e549829c1b84e7070829bbdb");
    let mut other = three();
    other[1].directory_id[0] ^= 1;
    assert_ne!(cluster_id_of(&other), id);
}

#[test]
fn it_founds_once_all_are_fresh_and_not_before() {
    for answers in [[None, None], [Some(fresh(2)), None], [None, Some(fresh(3))]] {
        let missing = answers.iter().filter(|answer| answer.is_none()).count();
        let [two, three] = answers;
        match decide(&OWN, &[asked(2, two), asked(3, three)]) {
            Decision::Wait(whom) => {
                assert_eq!(whom.len(), missing);
                assert!(whom.iter().all(|one| one.contains("(silence)")), "{whom:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let founding = decide(&OWN, &[asked(3, Some(fresh(3))), asked(2, Some(fresh(2)))]);
    let expected = Decision::Found {
        cluster_id: cluster_id_of(&three()),
        founders: three(),
    };
    assert_eq!(founding, expected);
    let alone = [founder(1)];
    let expected = Decision::Found {
        cluster_id: cluster_id_of(&alone),
        founders: alone.to_vec(),
    };
    assert_eq!(decide(&OWN, &[]), expected);
}

#[test]
fn it_goes_where_others_have_agreed_with_it_though_some_are_silent() {
    let decision = decide(&OWN, &[asked(2, Some(agreed(2, &three()))), asked(3, None)]);
    let expected = Decision::Return {
        cluster_id: cluster_id_of(&three()),
        known: InCluster {
            founders: three(),
            generation: 0,
            metadata_incarnation: 1,
            brokers: Vec::new(),
        },
    };
    assert_eq!(decision, expected);
}

#[test]
fn another_directory_is_refused_with_what_to_do() {
    let mut others = three();
    others[0].directory_id = [9; 16];
    let by_founders = agreed(2, &others);
    let by_registration = Here {
        brokers: vec![registered(1, [9; 16], 2)],
        ..agreed(2, &three())
    };
    for here in [by_founders, by_registration] {
        let join = decide_join(&OWN, &asked(2, Some(here.clone())));
        let peers = decide(&OWN, &[asked(2, Some(here)), asked(3, None)]);
        for decision in [join, peers] {
            let why = refusal(decision);
            let ids = [hex(&[1; 16]), hex(&[9; 16])];
            assert!(ids.iter().all(|id| why.contains(id)), "{why}");
            let command = format!("tidelog cluster replace 1 --directory {}", ids[0]);
            assert!(why.contains(&command), "{why}");
        }
    }
}

#[test]
fn a_replaced_directory_is_known_by_those_who_have_heard_of_it() {
    let mut founders = three();
    founders[0].directory_id = [9; 16];
    let stale = agreed(2, &founders);
    let heard = Here {
        brokers: vec![registered(1, [1; 16], 4), registered(2, [2; 16], 0)],
        ..agreed(3, &founders)
    };
    for answers in [
        [asked(2, Some(stale.clone())), asked(3, Some(heard.clone()))],
        [asked(2, None), asked(3, Some(heard.clone()))],
    ] {
        let Decision::Return { known, .. } = decide(&OWN, &answers) else {
            panic!("another decision");
        };
        assert_eq!((known.generation, known.brokers.len()), (4, 2));
        assert_eq!(known.founders, founders);
    }
    // It may come with a list that is not that of the founding.
    let one = decide(&OWN, &[asked(3, Some(heard))]);
    assert!(matches!(one, Decision::Return { known, .. } if known.generation == 4));
}

#[test]
fn whoever_is_not_meant_is_refused() {
    let others = [founder(2), founder(3)];
    let stranger = asked(2, Some(agreed(2, &others)));
    let why = refusal(decide(&OWN, &[stranger, asked(3, None)]));
    assert!(why.contains("--join host-2:1"), "{why}");

    let why = refusal(decide(&OWN, &[asked(2, Some(fresh(3))), asked(3, None)]));
    assert!(why.contains("broker 3 answers at host-2:1"), "{why}");

    let copied = Here {
        directory_id: [1; 16],
        ..fresh(2)
    };
    let why = refusal(decide(&OWN, &[asked(2, Some(copied.clone()))]));
    assert!(why.contains("copied"), "{why}");
    assert!(refusal(decide_join(&OWN, &asked(2, Some(copied)))).contains("copied"));

    let two_clusters = [
        asked(2, Some(agreed(2, &three()))),
        asked(3, Some(agreed(3, &[founder(1), founder(3)]))),
    ];
    let why = refusal(decide(&OWN, &two_clusters));
    assert!(
        why.contains("host-2:1") && why.contains("host-3:1"),
        "{why}"
    );
}

#[test]
fn lists_that_differ_are_refused_before_and_after_others_have_agreed() {
    let wants_two = Here {
        wanted: [1, 2].into(),
        ..fresh(2)
    };
    let wants_none = Here {
        wanted: BTreeSet::new(),
        ..fresh(2)
    };
    let agreed_with_two = agreed(2, &[founder(1), founder(2)]);
    for here in [wants_two, wants_none, agreed_with_two] {
        let why = refusal(decide(&OWN, &[asked(2, Some(here)), asked(3, None)]));
        assert!(why.contains("the same at each"), "{why}");
    }
}

#[test]
fn whoever_joins_asks_those_who_decide() {
    let others = [founder(2), founder(3)];
    let join = |here| {
        let asked = Asked {
            node_id: None,
            ..asked(2, here)
        };
        decide_join(&OWN, &asked)
    };
    assert!(matches!(join(None), Decision::Wait(_)));
    assert!(matches!(join(Some(fresh(2))), Decision::Wait(_)));
    let cluster_id = cluster_id_of(&others);
    let address = |decision| match decision {
        Decision::Join {
            cluster_id: found,
            address,
        } => {
            assert_eq!(found, cluster_id);
            address
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(address(join(Some(agreed(2, &others)))), "host-2:1");
    let knows = Here {
        leader_address: Some("leader:1".to_owned()),
        ..agreed(2, &others)
    };
    assert_eq!(address(join(Some(knows.clone()))), "leader:1");
    // It was let in before.
    let again = Here {
        brokers: vec![registered(1, [1; 16], 0)],
        ..knows
    };
    assert!(matches!(join(Some(again)), Decision::Return { .. }));
    assert!(refusal(join(Some(fresh(1)))).contains("itself"));
}

#[test]
fn a_founder_that_was_removed_is_none_any_more() {
    let here = Here {
        removed: BTreeSet::from([1]),
        ..agreed(2, &three())
    };
    let why = refusal(decide(&OWN, &[asked(2, Some(here)), asked(3, None)]));
    assert!(why.contains("--join host-2:1"), "{why}");
}

#[test]
fn a_broker_that_returns_is_told_in_which_incarnation_the_metadata_are() {
    let here = Here {
        metadata_incarnation: 3,
        ..agreed(2, &three())
    };
    let returned = decide(&OWN, &[asked(2, Some(here)), asked(3, None)]);
    assert!(matches!(returned, Decision::Return { known, .. } if known.metadata_incarnation == 3));
}
