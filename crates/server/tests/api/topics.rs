//! Service Topics.

use std::collections::HashMap;

use tidelog_proto::v1;
use tonic::Code;

use crate::support::{Fixture, told};

fn create(name: &str, partitions: u32, settings: &[(&str, &str)]) -> v1::CreateTopicRequest {
    v1::CreateTopicRequest {
        name: name.to_owned(),
        partitions,
        settings: settings
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect(),
        validate_only: false,
        ..v1::CreateTopicRequest::default()
    }
}

fn describe(name: &str) -> v1::DescribeTopicRequest {
    v1::DescribeTopicRequest {
        name: name.to_owned(),
        include_segments: true,
    }
}

#[tokio::test]
async fn a_topics_life() {
    let mut f = Fixture::start().await;
    let made = f
        .topics
        .create_topic(create("a", 3, &[("retention.ms", "5")]))
        .await
        .unwrap();
    let made = made.into_inner().topic.unwrap();
    assert_eq!(
        (made.name.as_str(), made.partitions, made.internal),
        ("a", 3, false)
    );
    assert_eq!(made.topic_id.len(), 16);
    assert_eq!(
        made.settings,
        HashMap::from([("retention.ms".to_owned(), "5".to_owned())])
    );

    f.append("a", 1, &["x", "y"]).await;
    let described = f
        .topics
        .describe_topic(describe("a"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(described.topic.unwrap().topic_id, made.topic_id);
    let setting = |name: &str| {
        let setting = described
            .settings
            .iter()
            .find(|setting| setting.name == name)
            .unwrap();
        (setting.value.as_str(), setting.is_default)
    };
    assert_eq!(setting("retention.ms"), ("5", false));
    assert_eq!(setting("message.timestamp.type"), ("CreateTime", true));
    let partition = &described.partitions[1];
    assert_eq!(partition.partition, 1);
    assert_eq!(
        (partition.log_start_offset, partition.high_watermark),
        (0, 2)
    );
    assert_eq!(partition.log_end_offset, 2);
    assert!(partition.size_bytes > 0 && partition.leader_epoch > 0);
    assert_eq!((partition.segment_count, partition.segments.len()), (1, 1));
    assert_eq!(partition.segments[0].file, "00000000000000000000.log");
    assert_eq!(
        (
            partition.segments[0].base_offset,
            partition.segments[0].end_offset
        ),
        (0, 2)
    );
    assert_eq!(partition.fault, "");

    let altered = f
        .topics
        .alter_topic(v1::AlterTopicRequest {
            name: "a".to_owned(),
            set: HashMap::from([("retention.bytes".to_owned(), "7".to_owned())]),
            reset: vec!["retention.ms".to_owned()],
            validate_only: false,
        })
        .await
        .unwrap();
    let settings = altered.into_inner().topic.unwrap().settings;
    assert_eq!(
        settings,
        HashMap::from([("retention.bytes".to_owned(), "7".to_owned())])
    );

    let added = f
        .topics
        .add_partitions(v1::AddPartitionsRequest {
            name: "a".to_owned(),
            total: 5,
            ..v1::AddPartitionsRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(added.into_inner().topic.unwrap().partitions, 5);
    assert_eq!(f.append("a", 4, &["z"]).await, 0);

    f.topics
        .delete_topic(v1::DeleteTopicRequest {
            name: "a".to_owned(),
        })
        .await
        .unwrap();
    let gone = f.topics.describe_topic(describe("a")).await.unwrap_err();
    told(gone, Code::NotFound, "TOPIC_NOT_FOUND")
        .fact("topic", "a")
        .cannot_be_retried();
    f.create("a", 1).await;
    let again = f
        .topics
        .describe_topic(describe("a"))
        .await
        .unwrap()
        .into_inner();
    assert_ne!(again.topic.unwrap().topic_id, made.topic_id);
    assert_eq!(again.partitions[0].log_end_offset, 0);
}

#[tokio::test]
async fn lists_go_page_by_page() {
    let mut f = Fixture::start().await;
    for name in ["c", "a", "e", "b", "d"] {
        f.create(name, 1).await;
    }
    let (mut names, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = v1::ListTopicsRequest {
            include_internal: false,
            page_size: 2,
            page_token,
        };
        let page = f.topics.list_topics(request).await.unwrap().into_inner();
        assert!(page.topics.len() <= 2);
        names.extend(page.topics.into_iter().map(|topic| topic.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((names.join(""), pages), ("abcde".to_owned(), 3));

    let all = v1::ListTopicsRequest {
        include_internal: true,
        ..Default::default()
    };
    let all = f.topics.list_topics(all).await.unwrap().into_inner();
    assert_eq!(all.next_page_token, "");
    assert!(all.topics.iter().filter(|topic| !topic.internal).count() == 5);

    let forged = v1::ListTopicsRequest {
        page_token: "no/topic".to_owned(),
        ..Default::default()
    };
    let forged = f.topics.list_topics(forged).await.unwrap_err();
    told(forged, Code::InvalidArgument, "INVALID_REQUEST").field("page_token");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_with_what_is() {
    let mut f = Fixture::start().await;
    f.create("there", 2).await;
    let refused = async |request, code, reason| {
        let mut topics = f.topics.clone();
        told(
            topics.create_topic(request).await.unwrap_err(),
            code,
            reason,
        )
    };
    let invalid = Code::InvalidArgument;
    refused(create("there", 1, &[]), Code::AlreadyExists, "TOPIC_EXISTS")
        .await
        .fact("topic", "there");
    refused(create("a/b", 1, &[]), invalid, "INVALID_TOPIC_NAME")
        .await
        .says("allowed are a-z, A-Z, 0-9, '.', '_' and '-'")
        .field("name");
    refused(
        create(&"x".repeat(250), 1, &[]),
        invalid,
        "INVALID_TOPIC_NAME",
    )
    .await
    .says("249");
    refused(create("", 1, &[]), invalid, "INVALID_TOPIC_NAME")
        .await
        .says("empty");
    refused(
        create("__mine", 1, &[]),
        Code::PermissionDenied,
        "INTERNAL_TOPIC",
    )
    .await;
    refused(create("t", 10_001, &[]), invalid, "INVALID_PARTITIONS")
        .await
        .fact("asked", 10_001)
        .fact("max", 10_000)
        .field("partitions");
    refused(
        create("t", 1, &[("retention.msec", "1")]),
        invalid,
        "INVALID_SETTING",
    )
    .await
    .says("did you mean \"retention.ms\"?")
    .field("settings");
    refused(
        create("t", 1, &[("max.message.bytes", "-1")]),
        invalid,
        "INVALID_SETTING",
    )
    .await
    .says("allowed is an integer from");
    // Nothing of all that was made.
    let all = f
        .topics
        .list_topics(v1::ListTopicsRequest::default())
        .await
        .unwrap();
    assert_eq!(all.into_inner().topics.len(), 1);

    let fewer = v1::AddPartitionsRequest {
        name: "there".to_owned(),
        total: 2,
        ..v1::AddPartitionsRequest::default()
    };
    let fewer = f.topics.add_partitions(fewer).await.unwrap_err();
    told(fewer, invalid, "INVALID_PARTITIONS")
        .fact("min", 3)
        .field("total");
    let unknown = v1::AddPartitionsRequest {
        name: "t".to_owned(),
        total: 2,
        ..v1::AddPartitionsRequest::default()
    };
    let unknown = f.topics.add_partitions(unknown).await.unwrap_err();
    told(unknown, Code::NotFound, "TOPIC_NOT_FOUND");
    let unknown = v1::DeleteTopicRequest {
        name: "t".to_owned(),
    };
    let unknown = f.topics.delete_topic(unknown).await.unwrap_err();
    told(unknown, Code::NotFound, "TOPIC_NOT_FOUND");
    let alter = v1::AlterTopicRequest {
        name: "there".to_owned(),
        set: HashMap::from([("cleanup.policy".to_owned(), "burn".to_owned())]),
        ..Default::default()
    };
    let refused = f.topics.alter_topic(alter.clone()).await.unwrap_err();
    told(refused, invalid, "INVALID_SETTING")
        .says("allowed is delete")
        .field("set");
    for (set, reset, field) in [
        (alter.set.clone(), "retention.ms", "set"),
        (alter.set, "retention.msec", "reset"),
        (HashMap::new(), "retention.msec", "reset"),
    ] {
        let alter = v1::AlterTopicRequest {
            name: "there".to_owned(),
            set,
            reset: vec![reset.to_owned()],
            ..Default::default()
        };
        let refused = f.topics.alter_topic(alter).await.unwrap_err();
        told(refused, invalid, "INVALID_SETTING").field(field);
    }
}

#[tokio::test]
async fn limits_of_topics_and_partitions_are_told_by_name() {
    let mut f = Fixture::with(|config| {
        config.limits.topics_max = 2;
        config.limits.partitions_max = 4;
    })
    .await;
    f.create("a", 1).await;
    let exhausted = Code::ResourceExhausted;
    let refused = f.topics.create_topic(create("b", 4, &[])).await;
    told(refused.unwrap_err(), exhausted, "LIMIT_REACHED")
        .fact("limit", "partitions_max")
        .quota("partitions_max")
        .cannot_be_retried();
    f.create("b", 1).await;
    let refused = f.topics.create_topic(create("c", 1, &[])).await;
    told(refused.unwrap_err(), exhausted, "LIMIT_REACHED")
        .fact("limit", "topics_max")
        .fact("max", 2)
        .quota("topics_max")
        .cannot_be_retried();
}

#[tokio::test]
async fn validating_changes_nothing() {
    let mut f = Fixture::start().await;
    let request = v1::CreateTopicRequest {
        validate_only: true,
        ..create("t", 2, &[])
    };
    let would_be = f
        .topics
        .create_topic(request)
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    assert_eq!(would_be.partitions, 2);
    let gone = f.topics.describe_topic(describe("t")).await.unwrap_err();
    told(gone, Code::NotFound, "TOPIC_NOT_FOUND");
    f.create("t", 0).await;
    let alter = v1::AlterTopicRequest {
        name: "t".to_owned(),
        set: HashMap::from([("retention.ms".to_owned(), "9".to_owned())]),
        validate_only: true,
        ..Default::default()
    };
    f.topics.alter_topic(alter).await.unwrap();
    let topic = f
        .topics
        .describe_topic(describe("t"))
        .await
        .unwrap()
        .into_inner()
        .topic
        .unwrap();
    assert_eq!((topic.settings.len(), topic.partitions), (0, 1));
}
