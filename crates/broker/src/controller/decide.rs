//! What the leader of the metadata log does in a turn: registers who asks for it, plans, has the members of
//! its own group change, and cuts the log.

use parking_lot::Mutex;
use tidelog_controller::{
    Action, ClusterCommand, Note, PlanOptions, Step, node_of, plan, plan_metadata,
};
use tidelog_record::Offset;
use tokio::sync::oneshot;

use super::METADATA_KEY;
use crate::error::TopicError;
use crate::mailbox::Command;
use crate::metadata::Folded;
use crate::{Broker, Inner};

/// Decides, as the leader of the metadata log.
pub(super) async fn decide(
    broker: &Broker,
    leads_since: &Mutex<Option<u32>>,
) -> Result<(), TopicError> {
    let inner = broker.inner();
    let epoch = inner.metadata.leader_epoch().get();
    if leads_since.lock().replace(epoch) != Some(epoch) {
        let now = inner.now_ms();
        inner.seen.with(|observed| observed.begin(now));
    }
    if inner.cluster.read().was_removed(inner.identity.node_id) {
        // All that is left to be done is to have another one decide.
        change_metadata_members(broker);
        return Ok(());
    }
    let registrations = std::mem::take(&mut *inner.asked.registrations.lock());
    if !registrations.is_empty() || !broker.is_registered() {
        let mut folded = broker.begin_change().await?;
        for (node, (cluster, registration, epoch_before)) in registrations {
            let registered = broker.register(&mut folded, cluster, registration, epoch_before);
            match registered.await {
                Ok(()) => tracing::info!(broker = node, "a broker is registered"),
                Err(TopicError::Broker(e)) => {
                    let cause = e.to_string();
                    inner.send_note(node, &Note::RegisterRefused { cause });
                }
                Err(e) => tracing::debug!(broker = node, error = %e, "it is not registered"),
            }
        }
    }
    plan_all(broker).await?;
    change_metadata_members(broker);
    snapshot(broker).await
}

async fn plan_all(broker: &Broker) -> Result<(), TopicError> {
    let inner = broker.inner();
    let steps = planned(inner);
    let is_commit = |step: &Step| matches!(step, Step::Commit(_));
    if !steps.iter().any(is_commit) {
        steps.into_iter().for_each(|step| act(broker, step));
        return Ok(());
    }
    // With all that was decided before, and nothing in between.
    let mut folded = broker.begin_change().await?;
    for step in planned(inner) {
        match step {
            Step::Commit(command) => {
                log(&command);
                broker.commit(&mut folded, &command).await?;
            }
            step => act(broker, step),
        }
    }
    Ok(())
}

/// Puts the whole state into the log when there is much to fold, and trims what is before it.
async fn snapshot(broker: &Broker) -> Result<(), TopicError> {
    let inner = broker.inner();
    let is_due = |folded: &Folded| {
        let since = folded
            .applied
            .get()
            .saturating_sub(folded.snapshot_at.get());
        since >= inner.config.snapshot_commands
    };
    match inner.metadata_folded.try_lock() {
        Ok(folded) if is_due(&folded) => {}
        _ => return Ok(()),
    }
    let mut folded = broker.begin_change().await?;
    if !is_due(&folded) {
        return Ok(());
    }
    let commands = inner.cluster.read().snapshot();
    let mut first: Option<Offset> = None;
    for command in &commands {
        let offset = broker.commit(&mut folded, command).await?;
        first.get_or_insert(offset);
    }
    let Some(to) = first else { return Ok(()) };
    let (reply, replied) = oneshot::channel();
    let metadata = &inner.metadata;
    let trim = Command::Trim {
        partition: metadata.clone(),
        to,
        end: metadata.high_watermark(),
        reply,
    };
    if metadata.shard.send(trim).await.is_ok()
        && let Ok(Err(e)) = replied.await
    {
        tracing::warn!(error = %e, "the metadata log cannot be trimmed below its snapshot");
    }
    Ok(())
}

/// Has the group of the metadata log, which is led here, get other members where that is needed.
fn change_metadata_members(broker: &Broker) {
    let inner = broker.inner();
    let Some(report) = inner.seen.report(METADATA_KEY) else {
        return;
    };
    let action = plan_metadata(&inner.cluster.read(), &report);
    if let Some(action) = action {
        tracing::info!(?action, "the members of the metadata group change");
        broker.order(report.order(METADATA_KEY, action));
    }
}

fn planned(inner: &Inner) -> Vec<Step> {
    let now = inner.now_ms();
    let cluster = inner.cluster.read();
    inner
        .seen
        .with(|observed| plan(&cluster, observed, &PlanOptions::default(), now))
}

fn log(command: &ClusterCommand) {
    match command {
        ClusterCommand::SetFenced {
            node, is_fenced, ..
        } if *is_fenced => tracing::warn!(
            broker = node,
            "a broker is not heard any more: it is fenced"
        ),
        ClusterCommand::SetFenced { node, .. } => {
            tracing::info!(broker = node, "a broker is heard again");
        }
        command => tracing::debug!(?command, "decided"),
    }
}

/// Has the leader of a partition do something.
fn act(broker: &Broker, step: Step) {
    let Step::Act(order) = step else {
        return;
    };
    let inner = broker.inner();
    tracing::debug!(?order, "a replica is asked to do something");
    if matches!(order.action, Action::TransferLeadership(_)) {
        let now = inner.now_ms();
        inner
            .seen
            .with(|observed| observed.transfers_asked.insert(order.key, now));
    }
    let node = node_of(order.leader);
    if node == inner.identity.node_id {
        broker.order(order);
    } else {
        inner.send_note(node, &Note::Act(order));
    }
}
