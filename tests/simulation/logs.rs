//! Every channel's log as brokers have appended to it: what everything that is
//! heard and read is compared with.

use std::collections::{BTreeMap, BTreeSet};

use muster_broker::simulation::Appended;

use crate::{checker::Violation, positions::Position};

/// One life of one channel's log. With a journal another one begins only after
/// the power was lost; else with every owner, at a higher epoch.
pub(crate) type Life = u64;

/// A place in a channel's logs.
pub(crate) type Place = (Life, usize);

/// The logs of all channels.
#[derive(Debug)]
pub(crate) struct Logs {
    is_durable: bool,
    by_channel: BTreeMap<usize, BTreeMap<Life, Log>>,
    /// Channels of which something may be lost since they were last appended to.
    lost: BTreeSet<usize>,
}

#[derive(Debug)]
struct Log {
    generation: u64,
    /// Its publications, in order.
    ids: Vec<u64>,
}

impl Logs {
    pub(crate) fn new(is_durable: bool) -> Self {
        Self {
            is_durable,
            by_channel: BTreeMap::new(),
            lost: BTreeSet::new(),
        }
    }

    /// Something of every log may be lost.
    pub(crate) fn lose(&mut self) {
        self.lost.extend(self.by_channel.keys());
    }

    /// Where a publication is: offsets have no holes, and a log begins anew only
    /// when it was lost.
    pub(crate) fn place(
        &mut self,
        channel: usize,
        appended: &Appended,
        id: u64,
    ) -> Result<Place, Violation> {
        let Appended {
            generation, offset, ..
        } = *appended;
        let logs = self.by_channel.entry(channel).or_default();
        let life = match logs.last_key_value() {
            _ if !self.is_durable => appended.epoch,
            None => 0,
            Some((life, log)) if log.generation == generation => *life,
            Some((life, _)) if self.lost.contains(&channel) => life + 1,
            Some((_, log)) => {
                return Err(Violation(format!(
                    "c{channel} begins anew with {log:?}, and nothing was lost"
                )));
            }
        };
        self.lost.remove(&channel);
        let log = logs.entry(life).or_insert(Log {
            generation,
            ids: Vec::new(),
        });
        if log.generation != generation || offset != log.ids.len() as u64 + 1 {
            return Err(Violation(format!(
                "c{channel} has {log:?}, and offset {offset} of generation {generation} follows"
            )));
        }
        log.ids.push(id);
        Ok((life, log.ids.len() - 1))
    }

    /// The publication at a position.
    pub(crate) fn at(&self, channel: usize, position: Position) -> Option<u64> {
        let mut logs = self.by_channel.get(&channel)?.values();
        let log = logs.find(|log| log.generation == position.generation)?;
        let index = usize::try_from(position.offset.checked_sub(1)?).ok()?;
        log.ids.get(index).copied()
    }

    /// Where a channel's present log ends, if it has a publication and is not
    /// lost.
    pub(crate) fn end(&self, channel: usize) -> Option<Position> {
        if self.lost.contains(&channel) {
            return None;
        }
        let (_, log) = self.by_channel.get(&channel)?.last_key_value()?;
        Some(Position {
            generation: log.generation,
            offset: log.ids.len() as u64,
        })
    }

    /// How long a channel's logs are.
    pub(crate) fn lengths(&self, channel: usize) -> BTreeMap<Life, usize> {
        let logs = self.by_channel.get(&channel).into_iter().flatten();
        logs.map(|(life, log)| (*life, log.ids.len())).collect()
    }
}
