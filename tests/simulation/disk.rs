//! What happens to the disks that brokers keep their journals on.

use muster_broker::simulation::Appended;
use rand::RngExt as _;

use crate::{
    checker::Violation,
    client::publication_id,
    cluster::{Cluster, live},
};

/// Bytes of a shard that a process may still write before it dies.
const LAST_BYTES_MAX: u64 = 400;
/// Bytes that still fit on a disk that is about to be full.
const ROOM_MAX: u64 = 300;

impl Cluster {
    /// Publications turn out to be in the journal of a broker.
    pub(crate) fn note_appended(
        &mut self,
        owner: (u32, u64),
        appended: Vec<Appended>,
    ) -> Result<(), Violation> {
        for appended in appended {
            let number = appended.data.as_deref().and_then(publication_id);
            let number = number.ok_or_else(|| Violation(format!("{appended:?} is no data")))?;
            self.checker.appended(owner, &appended, number)?;
        }
        Ok(())
    }

    /// A broker that is about to be killed has taken one more batch; only some of
    /// what it writes is written, and nobody hears what it says.
    pub(crate) fn die_in_a_write(&mut self, slot: u32) -> Result<(), Violation> {
        let links = self.links.iter_mut();
        let mut busy = links.filter(|(_, link)| {
            link.slot == slot && link.broker_side_open && !link.to_broker.is_empty()
        });
        let Some((&id, link)) = busy.next() else {
            return Ok(());
        };
        let Some(broker) = live(&mut self.brokers, link) else {
            return Ok(());
        };
        let Some(batch) = link.to_broker.pop_front() else {
            return Ok(());
        };
        let owner = (link.slot, link.incarnation);
        let bytes = self.rng.random_range(0..LAST_BYTES_MAX);
        self.journal.set_last_bytes(bytes);
        let appended = broker.handle_batch(id, batch, &mut self.journal, self.now);
        self.journal.set_room(self.room);
        self.transcript.fault("broker killed in a write");
        let line = || format!("broker {slot} dies after {bytes} bytes of {appended:?}");
        self.transcript.line(self.now, line);
        match appended {
            Ok(appended) => self.note_appended(owner, appended),
            Err(error) => Err(Violation(error.to_string())),
        }
    }

    /// The machine goes down with every process on it: the brokers, and perhaps
    /// the workers.
    pub(crate) fn lose_power(&mut self) {
        for slot in self.brokers.keys().copied().collect::<Vec<_>>() {
            self.kill_broker(slot);
        }
        if self.rng.random_bool(0.5) {
            for index in 0..self.workers.len() {
                self.restart_worker(index);
            }
        }
        self.journal.lose_power(&mut self.rng);
        self.checker.power_lost();
        self.transcript.fault("power lost");
        self.transcript
            .line(self.now, || "the power is lost".into());
    }

    /// The disks are about to be full, or are not any more.
    pub(crate) fn fill_or_free_disks(&mut self) -> bool {
        let room = match self.room {
            Some(_) => None,
            None => Some(self.rng.random_range(0..ROOM_MAX)),
        };
        self.set_room(room);
        if room.is_some() {
            self.transcript.fault("disks full");
        }
        true
    }

    pub(crate) fn set_room(&mut self, room: Option<u64>) {
        self.room = room;
        self.journal.set_room(room);
        self.transcript.line(self.now, || {
            format!("bytes that fit on each disk: {room:?}")
        });
    }
}
