//! What a broker tells the others of what it leads.

use std::collections::BTreeMap;

use crate::cluster::PartitionKey;
use crate::notes::{Note, ReplicaFault, Resigning};
use crate::plan::Report;

/// Every so many turns all is told, also what has not changed.
const TELL_ALL_TURNS: u32 = 6;
/// Reports in one note.
const REPORTS_MAX: usize = 1000;

/// What was told last.
#[derive(Debug, Default)]
pub struct Teller {
    turn: u32,
    told: BTreeMap<PartitionKey, Report>,
}

impl Teller {
    /// What all others are to be told now: what has changed, and now and then all.
    pub fn notes(
        &mut self,
        epoch: u64,
        reports: Vec<(PartitionKey, Report)>,
        faults: Vec<ReplicaFault>,
        resigning: Option<Resigning>,
    ) -> Vec<Note> {
        self.turn = self.turn.wrapping_add(1);
        let is_all = self.turn.is_multiple_of(TELL_ALL_TURNS);
        let mut news: Vec<(PartitionKey, Report)> = reports
            .iter()
            .filter(|(key, report)| is_all || self.told.get(key) != Some(report))
            .cloned()
            .collect();
        self.told = reports.into_iter().collect();
        let mut faults = Some(faults);
        let mut notes = Vec::new();
        loop {
            let rest = news.split_off(news.len().min(REPORTS_MAX));
            notes.push(Note::Heartbeat {
                epoch,
                reports: std::mem::replace(&mut news, rest),
                // All in the last one, which is the one that counts.
                faults: if news.is_empty() {
                    faults.take().unwrap_or_default()
                } else {
                    Vec::new()
                },
                resigning,
            });
            if news.is_empty() {
                return notes;
            }
        }
    }
}
