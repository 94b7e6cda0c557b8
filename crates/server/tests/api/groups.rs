//! Service Groups.

use tidelog_proto::v1;
use tidelog_proto::v1::groups_client::GroupsClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{Fixture, told, told_within};

async fn start() -> (Fixture, GroupsClient<Channel>) {
    let mut f = Fixture::start().await;
    f.create("t", 2).await;
    f.append("t", 0, &["a", "b", "c"]).await;
    let groups = GroupsClient::new(f.channel.clone());
    (f, groups)
}

fn offset(topic: &str, partition: u32, offset: u64) -> v1::OffsetCommit {
    v1::OffsetCommit {
        topic: topic.to_owned(),
        partition,
        offset,
        ..v1::OffsetCommit::default()
    }
}

fn commit(group: &str, offsets: Vec<v1::OffsetCommit>) -> v1::CommitOffsetsRequest {
    v1::CommitOffsetsRequest {
        group: group.to_owned(),
        offsets,
        ..v1::CommitOffsetsRequest::default()
    }
}

/// As clients do, who are told to try again.
async fn committed(
    groups: &mut GroupsClient<Channel>,
    request: v1::CommitOffsetsRequest,
) -> Result<Vec<v1::CommittedOffset>, Status> {
    loop {
        match groups.commit_offsets(request.clone()).await {
            Ok(answer) => return Ok(answer.into_inner().offsets),
            Err(status) if status.code() == Code::Unavailable => tokio::task::yield_now().await,
            Err(status) => return Err(status),
        }
    }
}

async fn found(groups: &mut GroupsClient<Channel>, group: &str) -> Vec<v1::GroupOffset> {
    let request = v1::FetchOffsetsRequest {
        group: group.to_owned(),
        partitions: Vec::new(),
    };
    groups
        .fetch_offsets(request)
        .await
        .unwrap()
        .into_inner()
        .offsets
}

fn partition(topic: &str, partition: u32) -> v1::TopicPartition {
    v1::TopicPartition {
        topic: topic.to_owned(),
        partition,
    }
}

#[tokio::test]
async fn a_groups_life() {
    let (_f, mut groups) = start().await;
    let mut first = offset("t", 0, 2);
    first.metadata = "half".to_owned();
    first.leader_epoch = Some(6);
    let results = committed(&mut groups, commit("g", vec![first, offset("t", 1, 0)]));
    assert!(results.await.unwrap().iter().all(|one| one.error.is_none()));

    let listed = found(&mut groups, "g").await;
    assert_eq!(listed.len(), 2);
    let half = &listed[0];
    assert_eq!(
        (half.topic.as_str(), half.partition, half.offset),
        ("t", 0, Some(2))
    );
    assert_eq!(
        (half.metadata.as_str(), half.leader_epoch),
        ("half", Some(6))
    );
    assert!(half.committed_at_ms > 0 && half.topic_id.len() == 16);
    let request = v1::FetchOffsetsRequest {
        group: "g".to_owned(),
        partitions: vec![partition("t", 1), partition("other", 7)],
    };
    let asked = groups
        .fetch_offsets(request)
        .await
        .unwrap()
        .into_inner()
        .offsets;
    assert_eq!((asked[0].offset, asked[1].offset), (Some(0), None));

    let list = v1::ListGroupsRequest::default();
    let list = groups.list_groups(list).await.unwrap().into_inner();
    assert!(list.missing.is_empty(), "{:?}", list.missing);
    let summary = v1::GroupSummary {
        group: "g".to_owned(),
        kind: v1::GroupKind::Offsets.into(),
        members: 0,
        offsets: 2,
    };
    assert_eq!(list.groups, std::slice::from_ref(&summary));
    let describe = v1::DescribeGroupRequest {
        group: "g".to_owned(),
    };
    let described = groups
        .describe_group(describe.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (described.group, described.offsets.len()),
        (Some(summary), 2)
    );
    assert_eq!(described.coordinator.unwrap().node_id, 1);

    let request = v1::DeleteOffsetsRequest {
        group: "g".to_owned(),
        partitions: vec![partition("t", 1), partition("t", 1)],
    };
    let deleted = groups
        .delete_offsets(request)
        .await
        .unwrap()
        .into_inner()
        .deleted;
    assert_eq!(deleted, [true, false]);
    let delete = v1::DeleteGroupRequest {
        group: "g".to_owned(),
    };
    groups.delete_group(delete.clone()).await.unwrap();
    assert!(found(&mut groups, "g").await.is_empty());
    for gone in [
        groups.describe_group(describe).await.unwrap_err(),
        groups.delete_group(delete).await.unwrap_err(),
    ] {
        told(gone, Code::NotFound, "GROUP_NOT_FOUND").fact("group", "g");
    }
}

#[tokio::test]
async fn offsets_that_cannot_be_are_refused_one_by_one() {
    let (f, mut groups) = start().await;
    let mut long = offset("t", 0, 1);
    long.metadata = "m".repeat(5000);
    let mut replaced = offset("t", 0, 1);
    replaced.topic_id = vec![7; 16].into();
    let all = vec![
        offset("t", 0, 3),
        offset("t", 0, 4),
        offset("t", 0, 1),
        offset("t", 2, 0),
        offset("nobody", 0, 0),
        long,
        replaced,
    ];
    let results = committed(&mut groups, commit("g", all)).await.unwrap();
    assert_eq!(results[0].error, None);
    let error = |at: usize| results[at].error.clone();
    told_within(error(1), Code::OutOfRange, "OFFSET_OUT_OF_RANGE")
        .fact("requested", 4)
        .fact("high_watermark", 3);
    told_within(error(2), Code::FailedPrecondition, "OFFSET_BEHIND")
        .fact("committed", 3)
        .says("allow_backwards");
    told_within(error(3), Code::NotFound, "PARTITION_NOT_FOUND").fact("partitions", 2);
    told_within(error(4), Code::NotFound, "TOPIC_NOT_FOUND").fact("topic", "nobody");
    told_within(error(5), Code::InvalidArgument, "OFFSET_METADATA_TOO_LONG").fact("max", 4096);
    told_within(error(6), Code::FailedPrecondition, "TOPIC_REPLACED").fact("topic", "t");
    assert_eq!(found(&mut groups, "g").await[0].offset, Some(3));

    let mut back = commit("g", vec![offset("t", 0, 1)]);
    back.allow_backwards = true;
    assert_eq!(committed(&mut groups, back).await.unwrap()[0].error, None);
    assert_eq!(found(&mut groups, "g").await[0].offset, Some(1));
    drop(f);
}

#[tokio::test]
async fn what_was_committed_for_a_topic_means_nothing_in_another_one_of_its_name() {
    let (mut f, mut groups) = start().await;
    let first = commit("g", vec![offset("t", 0, 3)]);
    committed(&mut groups, first).await.unwrap();
    let old = found(&mut groups, "g").await[0].topic_id.clone();
    let delete = v1::DeleteTopicRequest {
        name: "t".to_owned(),
    };
    f.topics.delete_topic(delete).await.unwrap();
    f.create("t", 1).await;
    let anew = commit("g", vec![offset("t", 0, 0)]);
    assert_eq!(committed(&mut groups, anew).await.unwrap()[0].error, None);
    let new = found(&mut groups, "g").await[0].clone();
    assert_eq!(new.offset, Some(0));
    assert_ne!(new.topic_id, old);
}

#[tokio::test]
async fn requests_that_make_no_sense_say_what_is_wrong() {
    let (_f, mut groups) = start().await;
    let long = "g".repeat(256);
    for (name, says) in [
        ("", "cannot be empty"),
        (long.as_str(), "256 bytes"),
        ("a\nb", "control character"),
    ] {
        let refused = groups
            .find_coordinator(v1::FindCoordinatorRequest {
                group: name.to_owned(),
            })
            .await
            .unwrap_err();
        told(refused, Code::InvalidArgument, "INVALID_NAME")
            .field("group")
            .says(says);
    }
    let refused = groups
        .commit_offsets(commit("g", Vec::new()))
        .await
        .unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST").field("offsets");
    let many = vec![offset("t", 0, 0); 10_001];
    let refused = groups.commit_offsets(commit("g", many)).await.unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST")
        .field("offsets")
        .fact("max", 10_000);
    let bad = vec![offset("t", 0, 0), offset("t", 0, u64::MAX)];
    let refused = groups.commit_offsets(commit("g", bad)).await.unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST").field("offsets[1].offset");
    let bad = vec![offset("no topic", 0, 0)];
    let refused = groups.commit_offsets(commit("g", bad)).await.unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_TOPIC_NAME").field("offsets[0].topic");
    let mut bad = offset("t", 0, 0);
    bad.topic_id = vec![1; 3].into();
    let refused = groups
        .commit_offsets(commit("g", vec![bad]))
        .await
        .unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST").field("offsets[0].topic_id");
    let mut bad = offset("t", 0, 0);
    bad.leader_epoch = Some(u32::MAX);
    let refused = groups
        .commit_offsets(commit("g", vec![bad]))
        .await
        .unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST").field("offsets[0].leader_epoch");
    let refused = groups
        .list_groups(v1::ListGroupsRequest {
            page_size: 0,
            page_token: "\u{7}".to_owned(),
        })
        .await
        .unwrap_err();
    told(refused, Code::InvalidArgument, "INVALID_REQUEST").field("page_token");

    let mut stranger = commit("g", vec![offset("t", 0, 0)]);
    stranger.member = Some(v1::Member {
        member_id: "m".to_owned(),
        generation: 1,
        instance_id: String::new(),
    });
    let refused = committed(&mut groups, stranger).await.unwrap_err();
    told(refused, Code::FailedPrecondition, "UNKNOWN_MEMBER").fact("member", "m");
}

#[tokio::test]
async fn groups_are_listed_in_pages() {
    let (_f, mut groups) = start().await;
    let names: Vec<String> = (10..35).map(|number| format!("group-{number}")).collect();
    for name in &names {
        let one = commit(name, vec![offset("t", 0, 1)]);
        committed(&mut groups, one).await.unwrap();
    }
    let (mut listed, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListGroupsRequest {
            page_size: 10,
            page_token: token,
        };
        let page = groups.list_groups(request).await.unwrap().into_inner();
        assert!(page.groups.len() <= 10);
        listed.extend(page.groups.into_iter().map(|one| one.group));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, names);
}

#[tokio::test]
async fn how_far_groups_are_behind_is_among_the_metrics() {
    let (f, mut groups) = start().await;
    let quoted = "a \"group\"";
    let offsets = vec![offset("t", 0, 1), offset("t", 1, 0)];
    committed(&mut groups, commit(quoted, offsets))
        .await
        .unwrap();
    let of = |name: &str, partition: u32| {
        format!(
            "tidelog_group_{name}{{group=\"a \\\"group\\\"\",topic=\"t\",partition=\"{partition}\"}}"
        )
    };
    let metric = async |name: &str, partition| f.metric(&of(name, partition)).await;
    assert!((metric("committed_offset", 0).await - 1.0).abs() < f64::EPSILON);
    assert!((metric("lag_records", 0).await - 2.0).abs() < f64::EPSILON);
    // The records are from 1970.
    assert!(metric("lag_seconds", 0).await > 1e9);
    assert!(metric("lag_records", 1).await.abs() < f64::EPSILON);
    assert!(metric("lag_seconds", 1).await.abs() < f64::EPSILON);
    assert!((f.metric("tidelog_group_commits_total").await - 2.0).abs() < f64::EPSILON);
}
