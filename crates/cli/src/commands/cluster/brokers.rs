//! `tidelog cluster brokers`.

use std::time::Duration;

use serde_json::{Value, json};
use tidelog_client::Client;
use tidelog_client::proto::{BrokerDescription, BrokerState, ResigningCause};

use super::unanswered;
use crate::args::{OutputArgs, OutputForm};
use crate::failure::Failure;
use crate::output::numbers::{grouped, millis};
use crate::output::sink::print;
use crate::output::table::Table;
use crate::parse::nodes::hex;

pub(super) async fn run(client: &Client, output: OutputArgs) -> Result<(), Failure> {
    let cluster = client.describe_cluster().await.map_err(unanswered)?;
    print(&match output.form {
        OutputForm::Table => table(&cluster.brokers).text(),
        OutputForm::Json => cluster
            .brokers
            .iter()
            .map(|broker| format!("{}\n", as_json(broker)))
            .collect(),
    })
}

pub(super) fn table(brokers: &[BrokerDescription]) -> Table {
    let mut table = Table::new(&[
        "NODE", "STATE", "RACK", "GRPC", "REPLICAS", "LEADERS", "VERSION",
    ]);
    let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    for broker in brokers {
        table.row([
            broker.node_id.to_string(),
            state(broker),
            or_dash(&broker.rack),
            or_dash(&broker.grpc_address),
            grouped(broker.replicas.into()),
            grouped(broker.leaders.into()),
            or_dash(&broker.version),
        ]);
    }
    table
}

/// `{"node_id","state","draining","silent_ms","rack",…}`.
pub(super) fn as_json(broker: &BrokerDescription) -> Value {
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "node_id": broker.node_id,
        "state": state_name(broker.state()),
        "draining": broker.draining,
        "resigning": resigning(broker).map(|why| why.name),
        "silent_ms": silence(broker).map(|silence| silence.as_millis()),
        "rack": text(&broker.rack),
        "grpc_address": text(&broker.grpc_address),
        "http_address": text(&broker.http_address),
        "cluster_address": text(&broker.cluster_address),
        "replicas": broker.replicas,
        "leaders": broker.leaders,
        "version": text(&broker.version),
        "directory_id": hex(&broker.directory_id),
    })
}

/// `alive`, `alive, with a disk that hangs`, `silent for 3.50 s`, `fenced, silent for 12.50 s, draining`. When it was fenced nobody remembers: only
/// when it was heard last.
pub(super) fn state(broker: &BrokerDescription) -> String {
    let name = state_name(broker.state());
    let mut text = match (broker.state(), silence(broker)) {
        (BrokerState::Alive, _) => name.to_owned(),
        (BrokerState::Fenced, Some(silence)) => format!("{name}, silent for {}", millis(silence)),
        (_, Some(silence)) => format!("{name} for {}", millis(silence)),
        (_, None) => format!("{name}, never heard"),
    };
    if broker.draining {
        text.push_str(", draining");
    }
    if let Some(why) = resigning(broker) {
        text.push_str(why.said);
    }
    text
}

/// Why a broker leads nothing that others can lead: for people, and for scripts.
struct Resigning {
    said: &'static str,
    name: &'static str,
}

fn resigning(broker: &BrokerDescription) -> Option<Resigning> {
    let (said, name) = match broker.resigning() {
        ResigningCause::Unspecified => return None,
        ResigningCause::Stopping => (", stopping", "stopping"),
        ResigningCause::NoSpace => (", without space on its disk", "no_space"),
        ResigningCause::DiskHangs => (", with a disk that hangs", "disk_hangs"),
        ResigningCause::Other => (", not to lead", "other"),
    };
    Some(Resigning { said, name })
}

pub(super) fn state_name(state: BrokerState) -> &'static str {
    match state {
        BrokerState::Alive => "alive",
        BrokerState::Silent => "silent",
        BrokerState::Fenced => "fenced",
        BrokerState::Unspecified => "unknown",
    }
}

/// How long it was not heard; `None` where the broker that answers never heard it.
fn silence(broker: &BrokerDescription) -> Option<Duration> {
    (broker.silent_ms < u64::MAX).then(|| Duration::from_millis(broker.silent_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_say_how_long_and_where_it_leads() {
        let broker = |state: BrokerState, silent_ms, draining| BrokerDescription {
            state: state.into(),
            silent_ms,
            draining,
            ..BrokerDescription::default()
        };
        for (broker, said) in [
            (broker(BrokerState::Alive, 20, false), "alive"),
            (broker(BrokerState::Alive, 0, true), "alive, draining"),
            (
                broker(BrokerState::Silent, 2500, false),
                "silent for 2.50 s",
            ),
            (
                broker(BrokerState::Fenced, 12_000, false),
                "fenced, silent for 12.00 s",
            ),
            (
                broker(BrokerState::Fenced, u64::MAX, true),
                "fenced, never heard, draining",
            ),
        ] {
            assert_eq!(state(&broker), said);
        }
        let full = BrokerDescription {
            resigning: ResigningCause::NoSpace.into(),
            ..broker(BrokerState::Alive, 0, false)
        };
        assert_eq!(state(&full), "alive, without space on its disk");
        assert_eq!(as_json(&full)["resigning"], "no_space");
        let never = broker(BrokerState::Fenced, u64::MAX, false);
        assert_eq!(as_json(&never)["resigning"], Value::Null);
        assert_eq!(as_json(&never)["silent_ms"], Value::Null);
    }
}
