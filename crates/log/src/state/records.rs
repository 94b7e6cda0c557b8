//! The records of the state file and their bytes.

use tidelog_record::{PartitionId, TopicId};

use super::{DirectoryIdentity, GROUP_MEMBERS_MAX, GroupKey, GroupMembers, GroupState};
use crate::segment::LogEnd;
use crate::wire::Fields;

/// One change of the [`BrokerState`](super::BrokerState).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateRecord {
    /// Who the directory belongs to.
    Identity(DirectoryIdentity),
    /// A broker started: how many times now. Takes back [`StateRecord::Clean`].
    Boot(u64),
    /// The broker stopped, with every log at its checkpoint.
    Clean,
    /// A partition has a log here, or its Raft state changed. The checkpoint in it is ignored.
    Group(GroupKey, GroupState),
    /// A log is durable up to here.
    Checkpoint(GroupKey, LogEnd),
    /// A partition's log was deleted.
    GroupRemoved(GroupKey),
    /// Who is in a partition's group.
    Members(GroupKey, GroupMembers),
}

const IDENTITY: u8 = 1;
const BOOT: u8 = 2;
const CLEAN: u8 = 3;
const GROUP: u8 = 4;
const CHECKPOINT: u8 = 5;
const GROUP_REMOVED: u8 = 6;
/// The snapshot is complete; the content is the number of records before it.
pub(crate) const SNAPSHOT_END: u8 = 7;
/// The journal is complete: what follows is in the next generation.
pub(crate) const JOURNAL_END: u8 = 8;
/// The journal was durable up to the position in the content when this was written: damage below
/// is no torn end.
pub(crate) const SYNCED: u8 = 9;
const MEMBERS: u8 = 10;

/// Length, checksum.
pub(crate) const FRAME_LEN: usize = 8;
/// No record is longer, kind included.
pub(crate) const RECORD_LEN_MAX: usize = 256;

impl StateRecord {
    /// Appends the framed record to `out`.
    pub(crate) fn encode(&self, generation: u64, out: &mut Vec<u8>) {
        match self {
            Self::Identity(identity) => frame(generation, IDENTITY, out, |out| {
                out.extend_from_slice(&identity.cluster_id);
                out.extend_from_slice(&identity.node_id.to_be_bytes());
                out.extend_from_slice(&identity.directory_id);
            }),
            Self::Boot(boots) => frame(generation, BOOT, out, |out| {
                out.extend_from_slice(&boots.to_be_bytes());
            }),
            Self::Clean => frame(generation, CLEAN, out, |_| {}),
            Self::Group(key, group) => frame(generation, GROUP, out, |out| {
                put_key(out, key);
                out.extend_from_slice(&group.incarnation.to_be_bytes());
                out.extend_from_slice(&group.replica_id.to_be_bytes());
                out.extend_from_slice(&group.term.to_be_bytes());
                out.extend_from_slice(&group.vote.to_be_bytes());
                out.extend_from_slice(&group.commit.to_be_bytes());
            }),
            Self::Checkpoint(key, end) => frame(generation, CHECKPOINT, out, |out| {
                put_key(out, key);
                end.put(out);
            }),
            Self::GroupRemoved(key) => {
                frame(generation, GROUP_REMOVED, out, |out| put_key(out, key));
            }
            Self::Members(key, members) => frame(generation, MEMBERS, out, |out| {
                put_key(out, key);
                put_members(out, members);
            }),
        }
    }

    /// The record of this kind; `None` when it is malformed or of an unknown kind.
    pub(crate) fn decode(kind: u8, content: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(content);
        let record = match kind {
            IDENTITY => Self::Identity(DirectoryIdentity {
                cluster_id: fields.array()?,
                node_id: fields.u32()?,
                directory_id: fields.array()?,
            }),
            BOOT => Self::Boot(fields.u64()?),
            CLEAN => Self::Clean,
            GROUP => {
                let key = take_key(&mut fields)?;
                Self::Group(
                    key,
                    GroupState {
                        incarnation: fields.u32()?,
                        replica_id: fields.u64()?,
                        term: fields.u64()?,
                        vote: fields.u64()?,
                        commit: fields.u64()?,
                        checkpoint: None,
                    },
                )
            }
            CHECKPOINT => {
                let key = take_key(&mut fields)?;
                Self::Checkpoint(key, LogEnd::take(&mut fields)?)
            }
            GROUP_REMOVED => Self::GroupRemoved(take_key(&mut fields)?),
            MEMBERS => Self::Members(take_key(&mut fields)?, take_members(&mut fields)?),
            _ => return None,
        };
        fields.rest().is_empty().then_some(record)
    }
}

/// Frames one record: length of kind and content, CRC-32 of generation, kind and content.
pub(crate) fn frame(
    generation: u64,
    kind: u8,
    out: &mut Vec<u8>,
    content: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_LEN]);
    out.push(kind);
    content(out);
    let body = &out[start + FRAME_LEN..];
    let len = u32::try_from(body.len()).expect("records are short");
    let crc = frame_crc(generation, body);
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_be_bytes());
}

/// Frames what need not be a record.
#[cfg(feature = "fuzzing")]
pub(crate) fn frame_any(generation: u64, kind: u8, content: &[u8], out: &mut Vec<u8>) {
    frame(generation, kind, out, |out| out.extend_from_slice(content));
}

/// The generation is in the checksum, so that a record left over in a reused block never passes.
pub(crate) fn frame_crc(generation: u64, body: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&generation.to_be_bytes());
    crc.update(body);
    crc.finalize()
}

fn put_key(out: &mut Vec<u8>, key: &GroupKey) {
    out.extend_from_slice(&key.topic_id.to_bytes());
    out.extend_from_slice(&key.partition.get().to_be_bytes());
}

fn put_members(out: &mut Vec<u8>, members: &GroupMembers) {
    out.extend_from_slice(&members.index.to_be_bytes());
    out.push(u8::from(members.auto_leave));
    let GroupMembers {
        voters,
        learners,
        voters_outgoing,
        learners_next,
        ..
    } = members;
    for list in [voters, learners, voters_outgoing, learners_next] {
        out.push(u8::try_from(list.len()).expect("at most GROUP_MEMBERS_MAX"));
        list.iter()
            .for_each(|id| out.extend_from_slice(&id.to_be_bytes()));
    }
}

fn take_members(fields: &mut Fields<'_>) -> Option<GroupMembers> {
    let index = fields.u64()?;
    let auto_leave = match fields.u8()? {
        0 => false,
        1 => true,
        _ => return None,
    };
    let mut list = || {
        let count = usize::from(fields.u8()?);
        (0..count).map(|_| fields.u64()).collect::<Option<Vec<_>>>()
    };
    let members = GroupMembers {
        index,
        voters: list()?,
        learners: list()?,
        voters_outgoing: list()?,
        learners_next: list()?,
        auto_leave,
    };
    (members.count() <= GROUP_MEMBERS_MAX).then_some(members)
}

fn take_key(fields: &mut Fields<'_>) -> Option<GroupKey> {
    Some(GroupKey {
        topic_id: TopicId::from_bytes(fields.array()?),
        partition: PartitionId::new(fields.u32()?),
    })
}
