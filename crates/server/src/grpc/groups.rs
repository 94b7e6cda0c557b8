//! Service `tidelog.v1.Groups`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tidelog_broker::{CoordinatorError, CoordinatorPlace};
use tidelog_group::{
    Answer, CommitOffsets, DeleteOffsets, FetchOffsets, GroupId, NewOffset, Request as Asked,
};
use tidelog_proto::v1;
use tidelog_proto::v1::groups_client::GroupsClient;
use tidelog_proto::v1::groups_server::Groups;
use tidelog_proto::v1::log_client::LogClient;
use tidelog_record::Offset;
use tonic::{Request, Response, Status};

use super::log::{PARTITIONS_MAX, check_partitions};
use super::status::{RequestError, failure};
use super::{Shared, elsewhere};
use crate::room::Alone;
use crate::transport::held;

mod convert;

/// How many groups a page of the list has at most.
const PAGE_SIZE_MAX: u32 = 1000;
/// What a group takes in a list, at most.
const GROUP_SUMMARY: usize = 512;
/// What each partition that a request names takes beside its bytes until it is answered.
const PARTITION_OVERHEAD: usize = 256;
/// What an answer about one partition takes at most, names aside: an error with its details.
const PARTITION_ANSWER: usize = 512;
/// How long the leader of a partition may take to say where it ends.
const END_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long another coordinator may take to list its groups.
const LIST_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct GroupsService {
    shared: Arc<Shared>,
}

impl GroupsService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn group(&self, name: &str) -> Result<GroupId, Status> {
        GroupId::new(name).map_err(|e| {
            let failure = failure(&e).in_field("group");
            failure.status(self.shared.broker.metrics())
        })
    }

    /// Refuses a list that is too long, or empty where it must not be.
    fn check(&self, field: &'static str, found: usize) -> Result<(), Status> {
        let checked = match check_partitions(found) {
            Err(RequestError::Missing { .. }) => Err(RequestError::Missing {
                field,
                what: "at least one partition must be named",
            }),
            Err(RequestError::TooMany { found, max, .. }) => {
                Err(RequestError::TooMany { field, found, max })
            }
            checked => checked,
        };
        checked.map_err(|e| self.shared.reject(e))
    }

    /// Asks the leaders elsewhere where those partitions end of which it is not known here whether they reach so far.
    /// Where a leader does not say, the offset is believed: a reader must be able to commit while it is away.
    async fn ask_ends(&self, offsets: &mut [NewOffset]) {
        let broker = &self.shared.broker;
        let mut unknown: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (at, new) in offsets.iter_mut().enumerate() {
            new.end = broker.known_end(new.topic.as_str(), new.partition, new.offset);
            if new.end.is_none()
                && let Some(address) = broker.leader_address(new.topic.as_str(), new.partition)
            {
                unknown.entry(address).or_default().push(at);
            }
        }
        let asked = unknown.into_iter().map(|(address, ats)| {
            let partitions = ats.iter().map(|at| v1::ListOffsetsPartition {
                topic: offsets[*at].topic.to_string(),
                partition: offsets[*at].partition,
                at: Some(v1::OffsetSpec {
                    at: Some(v1::offset_spec::At::Latest(true)),
                }),
            });
            let request = v1::ListOffsetsRequest {
                partitions: partitions.collect(),
            };
            let channel = self.shared.elsewhere.channel(&address);
            async move {
                let mut client = LogClient::new(channel?);
                let listed = client.list_offsets(elsewhere::passed_on(request));
                let listed = tokio::time::timeout(END_WAIT_MAX, listed)
                    .await
                    .ok()?
                    .ok()?;
                Some((ats, listed.into_inner().partitions))
            }
        });
        for (ats, listed) in join_all(asked).await.into_iter().flatten() {
            for (at, listed) in ats.into_iter().zip(listed) {
                if listed.error.is_none() {
                    offsets[at].end = Offset::new(listed.offset);
                }
            }
        }
    }

    async fn commit(
        &self,
        mut commit: CommitOffsets,
    ) -> Result<v1::CommitOffsetsResponse, CoordinatorError> {
        let broker = &self.shared.broker;
        if broker.coordinates(&commit.group).await? {
            self.ask_ends(&mut commit.offsets).await;
        }
        let names: Vec<_> = commit
            .offsets
            .iter()
            .map(|new| (new.topic.clone(), new.partition))
            .collect();
        let group = commit.group.clone();
        let answer = broker.ask_group(&group, Asked::Commit(commit)).await?;
        let Answer::Committed(results) = answer else {
            unreachable!("that is how a commit is answered")
        };
        let offsets = names.into_iter().zip(results);
        let offsets = offsets.map(|((topic, partition), result)| v1::CommittedOffset {
            topic: topic.to_string(),
            partition,
            error: result.err().map(|e| self.shared.refuse_within(&e)),
        });
        Ok(v1::CommitOffsetsResponse {
            offsets: offsets.collect(),
        })
    }

    async fn describe(
        &self,
        group: &GroupId,
    ) -> Result<v1::DescribeGroupResponse, CoordinatorError> {
        let broker = &self.shared.broker;
        let answer = broker.ask_group(group, Asked::Describe(group.clone()));
        let Answer::Group(description) = answer.await? else {
            unreachable!("that is how a description is answered")
        };
        let place = broker.group_coordinator(group).await.ok();
        Ok(v1::DescribeGroupResponse {
            group: Some(convert::summary(description.summary)),
            offsets: description
                .offsets
                .into_iter()
                .map(convert::group_offset)
                .collect(),
            coordinator: place.map(convert::coordinator),
        })
    }

    /// The first groups of all coordinators after a name, and of which coordinators there are none, and why.
    async fn list_all(
        &self,
        request: &v1::ListGroupsRequest,
        is_passed_on: bool,
    ) -> (Vec<v1::GroupSummary>, Vec<v1::MissingCoordinator>) {
        let shared = &self.shared;
        let list = Asked::List {
            after: request.page_token.clone(),
            // One more, which tells that there are more.
            max: request.page_size as usize + 1,
        };
        let (mut groups, mut missing) = (Vec::new(), Vec::new());
        for (partition, answer) in shared.broker.ask_groups_here(&list).await {
            match answer {
                Ok(Answer::Groups(of_one)) => {
                    groups.extend(of_one.into_iter().map(convert::summary));
                }
                Ok(_) => unreachable!("that is how a list is answered"),
                Err(e) => missing.push(v1::MissingCoordinator {
                    partition,
                    error: Some(shared.refuse_within(&e)),
                }),
            }
        }
        if !is_passed_on {
            let own = shared.broker.node_id();
            let places = shared.broker.coordinators();
            let mut others: BTreeMap<String, Vec<CoordinatorPlace>> = BTreeMap::new();
            for place in places.into_iter().filter(|one| one.broker.node_id != own) {
                let address = place.broker.grpc_address.clone();
                others.entry(address).or_default().push(place);
            }
            let asked = others.into_iter().map(|(address, places)| async move {
                (self.list_of(&address, request).await, places)
            });
            for (listed, places) in join_all(asked).await {
                match listed {
                    Ok(listed) => {
                        groups.extend(listed.groups);
                        missing.extend(listed.missing);
                    }
                    Err(error) => {
                        missing.extend(places.iter().map(|place| v1::MissingCoordinator {
                            partition: place.partition,
                            error: Some(error.clone()),
                        }))
                    }
                }
            }
            missing.extend(self.leaderless());
        }
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        missing.sort_by_key(|one| one.partition);
        (groups, missing)
    }

    /// The partitions of groups that nobody is known to lead.
    fn leaderless(&self) -> Vec<v1::MissingCoordinator> {
        let broker = &self.shared.broker;
        let count = broker
            .partitions_of(tidelog_broker::OFFSETS_TOPIC)
            .unwrap_or(0);
        let led: Vec<u32> = broker
            .coordinators()
            .iter()
            .map(|one| one.partition)
            .collect();
        let leaderless = (0..count).filter(|partition| !led.contains(partition));
        let missing = leaderless.map(|partition| {
            let error = CoordinatorError::NoLeader { partition };
            v1::MissingCoordinator {
                partition,
                error: Some(self.shared.refuse_within(&error)),
            }
        });
        missing.collect()
    }

    async fn list_of(
        &self,
        address: &str,
        request: &v1::ListGroupsRequest,
    ) -> Result<v1::ListGroupsResponse, tonic_types::Status> {
        let unknown = |cause: String| {
            let error = CoordinatorError::Unknown { cause };
            self.shared.refuse_within(&error)
        };
        let Some(channel) = self.shared.elsewhere.channel(address) else {
            return Err(unknown(format!("{address:?} is no address")));
        };
        let mut client = GroupsClient::new(channel);
        let listed = client.list_groups(elsewhere::passed_on(request.clone()));
        match tokio::time::timeout(LIST_WAIT_MAX, listed).await {
            Ok(Ok(listed)) => Ok(listed.into_inner()),
            Ok(Err(status)) => Err(unknown(format!("{address}: {}", status.message()))),
            Err(_elapsed) => Err(unknown(format!("{address} does not answer"))),
        }
    }
}

#[tonic::async_trait]
impl Groups for GroupsService {
    async fn find_coordinator(
        &self,
        request: Request<v1::FindCoordinatorRequest>,
    ) -> Result<Response<v1::FindCoordinatorResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let group = self.group(&request.group)?;
        let find = || async {
            let place = self.shared.broker.group_coordinator(&group).await?;
            Ok(convert::coordinator(place))
        };
        let there = |channel, request| async move {
            GroupsClient::new(channel).find_coordinator(request).await
        };
        let shared = &self.shared;
        let found = shared.coordinated(is_passed_on, &request, find, there);
        Ok(Response::new(found.await?))
    }

    async fn commit_offsets(
        &self,
        request: Request<v1::CommitOffsetsRequest>,
    ) -> Result<Response<v1::CommitOffsetsResponse>, Status> {
        let shared = &self.shared;
        let is_passed_on = elsewhere::is_passed_on(&request);
        let peer = shared.peer(&request);
        let request = request.into_inner();
        self.check("offsets", request.offsets.len())?;
        let group = self.group(&request.group)?;
        let names: usize = request.offsets.iter().map(|one| one.topic.len()).sum();
        let count = request.offsets.len();
        let _asked = shared.asked(&peer, count * PARTITION_OVERHEAD + names)?;
        let room = count * PARTITION_ANSWER + 4 * names;
        let room = peer.unsent_whole(room, Alone::Goes).await;
        let commit = convert::commit(group, &request)
            .map_err(|failure| failure.status(shared.broker.metrics()))?;
        let here = || self.commit(commit.clone());
        let there = |channel, request| async move {
            GroupsClient::new(channel).commit_offsets(request).await
        };
        let committed = shared.coordinated(is_passed_on, &request, here, there);
        Ok(held(committed.await?, room))
    }

    async fn fetch_offsets(
        &self,
        request: Request<v1::FetchOffsetsRequest>,
    ) -> Result<Response<v1::FetchOffsetsResponse>, Status> {
        let shared = &self.shared;
        let is_passed_on = elsewhere::is_passed_on(&request);
        let peer = shared.peer(&request);
        let request = request.into_inner();
        let group = self.group(&request.group)?;
        let partitions = match request.partitions.len() {
            0 => None,
            count => {
                self.check("partitions", count)?;
                let partitions = convert::partitions(&request.partitions);
                let partitions = partitions.map_err(|e| e.status(shared.broker.metrics()))?;
                Some(partitions)
            }
        };
        let count = request.partitions.len().min(PARTITIONS_MAX);
        let _asked = shared.asked(&peer, count * PARTITION_OVERHEAD)?;
        let fetch = FetchOffsets { group, partitions };
        let here = || async {
            let asked = Asked::Committed(fetch.clone());
            let answer = shared.broker.ask_group(&fetch.group, asked).await?;
            let Answer::Offsets(offsets) = answer else {
                unreachable!("that is how a look-up is answered")
            };
            Ok(v1::FetchOffsetsResponse {
                offsets: offsets.into_iter().map(convert::group_offset).collect(),
            })
        };
        let there = |channel, request| async move {
            GroupsClient::new(channel).fetch_offsets(request).await
        };
        let fetched = shared.coordinated(is_passed_on, &request, here, there);
        Ok(peer.hold(fetched.await?).await)
    }

    async fn delete_offsets(
        &self,
        request: Request<v1::DeleteOffsetsRequest>,
    ) -> Result<Response<v1::DeleteOffsetsResponse>, Status> {
        let shared = &self.shared;
        let is_passed_on = elsewhere::is_passed_on(&request);
        let peer = shared.peer(&request);
        let request = request.into_inner();
        self.check("partitions", request.partitions.len())?;
        let _asked = shared.asked(&peer, request.partitions.len() * PARTITION_OVERHEAD)?;
        let group = self.group(&request.group)?;
        let partitions = convert::partitions(&request.partitions);
        let partitions = partitions.map_err(|e| e.status(shared.broker.metrics()))?;
        let delete = DeleteOffsets { group, partitions };
        let here = || async {
            let asked = Asked::DeleteOffsets(delete.clone());
            let answer = shared.broker.ask_group(&delete.group, asked).await?;
            let Answer::Deleted(deleted) = answer else {
                unreachable!("that is how it is answered")
            };
            Ok(v1::DeleteOffsetsResponse { deleted })
        };
        let there = |channel, request| async move {
            GroupsClient::new(channel).delete_offsets(request).await
        };
        let deleted = shared.coordinated(is_passed_on, &request, here, there);
        Ok(peer.hold(deleted.await?).await)
    }

    async fn list_groups(
        &self,
        request: Request<v1::ListGroupsRequest>,
    ) -> Result<Response<v1::ListGroupsResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let peer = self.shared.peer(&request);
        let mut request = request.into_inner();
        request.page_size = match request.page_size {
            0 => PAGE_SIZE_MAX,
            size => size.min(PAGE_SIZE_MAX),
        };
        // A token is the last name of the page before: groups that come or go in between neither repeat nor hide others.
        if !request.page_token.is_empty() && GroupId::new(&request.page_token).is_err() {
            return Err(self.shared.reject(RequestError::Value {
                field: "page_token",
                value: format!(
                    "{:?}",
                    request.page_token.chars().take(32).collect::<String>()
                ),
                allowed: "the next_page_token of the page before, or nothing",
            }));
        }
        let page_len = request.page_size as usize;
        let room = peer
            .unsent_whole(page_len * GROUP_SUMMARY, Alone::Goes)
            .await;
        let (mut groups, missing) = self.list_all(&request, is_passed_on).await;
        // Whoever asks all coordinators cuts the page.
        let page_len = page_len + usize::from(is_passed_on);
        let has_more = groups.len() > page_len;
        groups.truncate(page_len);
        let last = groups.last().filter(|_| has_more);
        let response = v1::ListGroupsResponse {
            next_page_token: last.map_or(String::new(), |last| last.group.clone()),
            groups,
            missing,
        };
        Ok(held(response, room))
    }

    async fn describe_group(
        &self,
        request: Request<v1::DescribeGroupRequest>,
    ) -> Result<Response<v1::DescribeGroupResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let peer = self.shared.peer(&request);
        let request = request.into_inner();
        let group = self.group(&request.group)?;
        let here = || self.describe(&group);
        let there = |channel, request| async move {
            GroupsClient::new(channel).describe_group(request).await
        };
        let shared = &self.shared;
        let described = shared.coordinated(is_passed_on, &request, here, there);
        Ok(peer.hold(described.await?).await)
    }

    async fn delete_group(
        &self,
        request: Request<v1::DeleteGroupRequest>,
    ) -> Result<Response<v1::DeleteGroupResponse>, Status> {
        let is_passed_on = elsewhere::is_passed_on(&request);
        let request = request.into_inner();
        let group = self.group(&request.group)?;
        let here = || async {
            let asked = Asked::DeleteGroup(group.clone());
            self.shared.broker.ask_group(&group, asked).await?;
            Ok(v1::DeleteGroupResponse {})
        };
        let there = |channel, request| async move {
            GroupsClient::new(channel).delete_group(request).await
        };
        let shared = &self.shared;
        let deleted = shared.coordinated(is_passed_on, &request, here, there);
        Ok(Response::new(deleted.await?))
    }
}

/// The bytes of a topic's id.
fn id_bytes(id: tidelog_record::TopicId) -> Bytes {
    Bytes::copy_from_slice(&id.to_bytes())
}
