//! What the data directory says before the broker is opened: to which cluster it belongs, if to any.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidelog_broker::{Random, StartError};
use tidelog_disk::{DirLock, Disk, LockError};
use tidelog_log::state::{DirectoryIdentity, StateError, StateFile};

use super::decide::Own;
use super::file::{FileError, FoundingFile, Phase};
use super::settle::Settled;
use super::{Founder, hex};
use crate::Config;

/// What was found. As long as this is held, no other broker starts on the directory.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) data_dir: PathBuf,
    /// By the state file, if there is one.
    identity: Option<DirectoryIdentity>,
    file: Option<FoundingFile>,
    _lock: Box<dyn DirLock>,
}

/// How to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The broker is alone, as it has been.
    Alone,
    /// It is known to which cluster it belongs.
    Go(Settled),
    /// That is to be found out. The file is to be written first where it says something else.
    Ask(Own),
    /// Nothing, for this reason.
    Refuse(String),
}

impl Standing {
    /// Looks. Blocks.
    pub(crate) fn look(disk: &Arc<dyn Disk>, data_dir: &Path) -> Result<Self, StartError> {
        disk.create_dir_all(data_dir)?;
        let lock = disk.lock(&data_dir.join("LOCK")).map_err(|e| match e {
            LockError::Held { .. } => StartError::Locked(e.to_string()),
            LockError::Disk(e) => e.into(),
        })?;
        let identity = match StateFile::identity_in(&**disk, &data_dir.join("state")) {
            Ok(identity) => Some(identity),
            Err(StateError::Missing { .. }) => None,
            Err(StateError::Disk(e)) => return Err(e.into()),
            Err(e @ StateError::Damaged { .. }) => return Err(StartError::Damaged(e.to_string())),
        };
        let file = FoundingFile::read(&**disk, data_dir).map_err(|e| match e {
            FileError::Disk(e) => StartError::Disk(e),
            e => StartError::Damaged(e.to_string()),
        })?;
        Ok(Self {
            data_dir: data_dir.to_owned(),
            identity,
            file,
            _lock: lock,
        })
    }

    /// What the file says, unless it is about another directory or broker.
    pub(crate) fn is_written(&self, own: &Own) -> bool {
        let file = self.file.as_ref();
        file.is_some_and(|file| {
            (file.node_id, file.directory_id) == (own.node_id, own.directory_id)
        })
    }

    /// How to go on from here.
    pub(crate) fn next(&self, config: &Config, random: &dyn Random) -> Next {
        let data_dir = self.data_dir.display();
        // What is fresh only says which id a directory is to have that has none yet.
        let settled = self.file.as_ref().filter(|file| file.phase != Phase::Fresh);
        let node_id = match (&self.identity, settled) {
            (Some(identity), _) => Some(identity.node_id),
            (None, Some(file)) => Some(file.node_id),
            (None, None) => None,
        };
        if let Some(node_id) = node_id.filter(|node_id| *node_id != config.node_id) {
            return Next::Refuse(format!(
                "{data_dir} is of broker {node_id}, and node_id is {}: give --node-id {node_id}, or \
                 another --data-dir",
                config.node_id
            ));
        }
        let is_among_others = config.cluster_listen_addr().is_some();
        match (&self.identity, settled) {
            (Some(identity), settled) => {
                let going = settled_by(identity, settled);
                let is_alone = going
                    .founders
                    .iter()
                    .all(|one| one.node_id == config.node_id);
                match settled.and_then(|file| contradiction(identity, file)) {
                    Some(what) => Next::Refuse(format!("{data_dir} contradicts itself: {what}")),
                    None if is_among_others => Next::Go(going),
                    None if is_alone => Next::Alone,
                    None => Next::Refuse(others_needed(&going)),
                }
            }
            (None, Some(file)) if file.phase == Phase::Done => Next::Refuse(format!(
                "{data_dir} has lost its state file: what broker {} has acknowledged is not known any \
                 more. Empty the directory, start on it again, and run what the broker says then: \
                 tidelog cluster replace {} --directory <the new id>",
                file.node_id, file.node_id
            )),
            (None, Some(file)) => {
                let going = Settled {
                    cluster_id: file.cluster_id.unwrap_or_default(),
                    directory_id: file.directory_id,
                    founders: file.founders.clone(),
                    generation: file.generation,
                    metadata_incarnation: file.metadata_incarnation,
                };
                if is_among_others {
                    Next::Go(going)
                } else {
                    Next::Refuse(others_needed(&going))
                }
            }
            (None, None) if !is_among_others => Next::Alone,
            (None, None) => {
                let known = self
                    .file
                    .as_ref()
                    .filter(|file| file.node_id == config.node_id);
                Next::Ask(Own {
                    node_id: config.node_id,
                    directory_id: known.map_or_else(|| random.id(), |file| file.directory_id),
                })
            }
        }
    }
}

/// The identity in the state file rules; who founds is only in the other.
fn settled_by(identity: &DirectoryIdentity, file: Option<&FoundingFile>) -> Settled {
    let alone = || {
        vec![Founder {
            node_id: identity.node_id,
            directory_id: identity.directory_id,
        }]
    };
    Settled {
        cluster_id: identity.cluster_id,
        directory_id: identity.directory_id,
        founders: file.map_or_else(alone, |file| file.founders.clone()),
        generation: file.map_or(0, |file| file.generation),
        metadata_incarnation: file.map_or(1, |file| file.metadata_incarnation),
    }
}

fn contradiction(identity: &DirectoryIdentity, file: &FoundingFile) -> Option<String> {
    if file.directory_id != identity.directory_id {
        return Some(format!(
            "its id is {} by the state file and {} by founding.json",
            hex(&identity.directory_id),
            hex(&file.directory_id)
        ));
    }
    let founded = file.cluster_id.unwrap_or_default();
    (founded != identity.cluster_id).then(|| {
        format!(
            "its cluster is {} by the state file and {} by founding.json",
            hex(&identity.cluster_id),
            hex(&founded)
        )
    })
}

fn others_needed(settled: &Settled) -> String {
    let founders: Vec<_> = settled
        .founders
        .iter()
        .map(|one| one.node_id.to_string())
        .collect();
    format!(
        "the data directory belongs to cluster {}, founded by broker(s) {}: give --peers as before, or \
         --cluster-addr where the broker has joined it",
        hex(&settled.cluster_id),
        founders.join(", ")
    )
}
