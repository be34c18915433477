//! One message on one path: client to worker, worker to broker and back, credit.

use muster_broker::simulation::Pulled;
use muster_proto::link::{BrokerBatch, broker_frame::Frame};
use muster_worker::simulation::Heard as WorkerSaid;

use crate::{
    checker::Violation,
    client::{Call, Connection, Heard, Packet, channel_number, publication_id},
    cluster::{Cluster, WorkerSide, live},
    positions::News,
};

/// Of the credit, what a worker gives back in one go.
const CREDIT_STEPS: u64 = 8;
/// Bytes of a publication in the router beside its data, at most.
const ENVELOPE_BYTES_MAX: usize = 80;
/// Publications of one client message, at most.
const PACKETS_MAX: usize = 6;

impl Cluster {
    /// The next message of a client reaches its worker, if that reads it.
    pub(crate) fn uplink(&mut self, client: usize) -> Result<bool, Violation> {
        let Self {
            clients,
            workers,
            checker,
            transcript,
            now,
            ..
        } = self;
        let index = clients[client].worker;
        let worker = &mut workers[index].sim;
        let Some(connection) = &mut clients[client].connection else {
            return Ok(false);
        };
        if !worker.is_reading(connection.key) {
            return Ok(false);
        }
        let Some(message) = connection.uplink.pop_front() else {
            return Ok(false);
        };
        transcript.line(*now, || {
            format!(
                "worker {index} reads connection {}: {:?}",
                connection.serial, message.packets
            )
        });
        for packet in &message.packets {
            match *packet {
                Packet::Publish(id) => checker.handed(id, *now),
                Packet::Subscribe(channel, cid) => {
                    checker.subscribes(index, connection.serial, channel, cid);
                }
                Packet::Follow(channel, cid, since) => {
                    let who = (client, connection.serial);
                    checker.follows(who, (channel, cid), since, *now);
                }
                Packet::History(cid, question) => {
                    checker.asks(connection.serial, cid, question, *now);
                }
                Packet::Unsubscribe(channel) => checker.unsubscribes(connection.serial, channel),
                Packet::Handshake | Packet::Pong => {}
            }
        }
        connection.unfinished = message.packets;
        worker.handle_text(connection.key, &message.text, *now);
        self.end_worker_turn(index)?;
        Ok(true)
    }

    /// What follows each turn of a worker: clients are read again, and hear.
    pub(crate) fn end_worker_turn(&mut self, index: usize) -> Result<(), Violation> {
        let worker = &mut self.workers[index].sim;
        worker.resume(self.now);
        let heard = worker.take_heard();
        self.send_reads(index);
        for said in heard {
            self.client_hears(index, &said)?;
        }
        self.note_finished(index);
        Ok(())
    }

    fn note_finished(&mut self, index: usize) {
        let worker = &mut self.workers[index].sim;
        for client in self.clients.iter_mut().filter(|it| it.worker == index) {
            let Some(connection) = &mut client.connection else {
                continue;
            };
            if connection.unfinished.is_empty() || worker.is_unfinished(connection.key) {
                continue;
            }
            for packet in connection.unfinished.drain(..) {
                if let Packet::Publish(id) = packet {
                    self.checker.taken(id, self.now);
                }
            }
        }
    }

    fn client_hears(&mut self, index: usize, said: &WorkerSaid) -> Result<(), Violation> {
        let Self {
            clients,
            checker,
            transcript,
            now,
            ..
        } = self;
        let connections = clients
            .iter_mut()
            .filter(|client| client.worker == index)
            .filter_map(|client| client.connection.as_mut());
        let mut connections = connections.filter(|connection| connection.key == said.key);
        let Some(connection) = connections.next() else {
            return Err(Violation(format!("{said:?} went to a client that is gone")));
        };
        let serial = connection.serial;
        if let Some(code) = said.closed {
            return Err(Violation(format!("connection {serial} was closed: {code}")));
        }
        for text in &said.texts {
            match connection.hear(text)? {
                Heard::Ping => connection.pong(),
                Heard::Answer { call, error, data } => {
                    transcript.line(*now, || {
                        format!("connection {serial} hears {call:?} answered: {error:?} {data}")
                    });
                    let error = error.as_deref();
                    match call {
                        Call::History(cid) => {
                            let answer = error.map_or(Ok(&data), Err);
                            checker.read_answered(serial, cid, answer, *now)?;
                            transcript.count("history read");
                        }
                        Call::Follow(channel, cid) if error.is_none() => {
                            checker.follow_answered(serial, (channel, cid), &data, *now)?;
                            transcript.count("follower began");
                        }
                        Call::Follow(..)
                        | Call::Handshake
                        | Call::Subscribe(..)
                        | Call::Unsubscribe(_)
                        | Call::Publish(_) => checker.answered(serial, call, error, *now)?,
                    }
                }
                Heard::News { channel, news } => {
                    transcript.line(*now, || {
                        format!("connection {serial} hears {news:?} of c{channel}")
                    });
                    if let News::Hole(_) = news {
                        transcript.count("hole told");
                    }
                    checker.follower_heard(serial, channel, news, *now)?;
                }
                Heard::Publication { channel, id } => {
                    transcript.line(*now, || {
                        format!("connection {serial} hears {id} of c{channel}")
                    });
                    checker.heard(serial, channel, id)?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn check_bounds(&self, index: usize) -> Result<(), Violation> {
        let fill = self.workers[index].sim.fill();
        if fill.kept_bytes != fill.accounted_bytes {
            return Err(Violation(format!(
                "worker {index} has lost count: {fill:?}"
            )));
        }
        // A window closes after the message that fills it, and those of several
        // brokers become one's when their shards move there.
        let scenario = &self.scenario;
        let message = PACKETS_MAX * (scenario.data_bytes.end + ENVELOPE_BYTES_MAX);
        let windows = scenario.brokers as usize + 1;
        let bound = windows * scenario.window_bytes + scenario.clients * message;
        if fill.window_bytes > bound {
            return Err(Violation(format!(
                "worker {index} keeps too much: {fill:?}"
            )));
        }
        Ok(())
    }

    /// A worker hands a batch to a link that has room.
    pub(crate) fn worker_sends(&mut self, id: u64) -> bool {
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        if link.worker_side != WorkerSide::Up || link.to_broker.len() >= self.scenario.path_batches
        {
            return false;
        }
        let Some(batch) = self.workers[link.worker]
            .sim
            .next_batch(link.slot, self.now)
        else {
            return false;
        };
        self.transcript.line(self.now, || {
            format!(
                "worker {} sends on link {id}: {}",
                link.worker,
                frames(&batch.frames)
            )
        });
        if !link.is_cut {
            link.to_broker.push_back(batch);
        }
        true
    }

    /// The next batch of a worker reaches the broker, if that reads it.
    pub(crate) fn broker_receives(&mut self, id: u64) -> Result<bool, Violation> {
        let Self {
            links,
            brokers,
            journal,
            transcript,
            now,
            ..
        } = self;
        let Some(link) = links.get_mut(&id) else {
            return Ok(false);
        };
        let Some(broker) = live(brokers, link) else {
            return Ok(false);
        };
        if !link.broker_side_open || !broker.is_reading(id) {
            return Ok(false);
        }
        let Some(batch) = link.to_broker.pop_front() else {
            return Ok(false);
        };
        let appended = broker
            .handle_batch(id, batch, journal, *now)
            .map_err(|error| Violation(error.to_string()))?;
        let owner = (link.slot, link.incarnation);
        transcript.line(*now, || {
            let ids = appended
                .iter()
                .filter_map(|it| publication_id(it.data.as_deref()?));
            format!(
                "broker {owner:?} reads link {id}, appends {:?}",
                ids.collect::<Vec<_>>()
            )
        });
        self.note_appended(owner, appended)?;
        Ok(true)
    }

    /// A broker hands a batch to a link that has room.
    pub(crate) fn broker_sends(&mut self, id: u64) -> Result<bool, Violation> {
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(false);
        };
        let Some(broker) = live(&mut self.brokers, link) else {
            return Ok(false);
        };
        if !link.broker_side_open || link.to_worker.len() >= self.scenario.path_batches {
            return Ok(false);
        }
        let batch = match broker.pull(id, self.now) {
            Pulled::Batch(batch) => batch,
            Pulled::Nothing => return Ok(false),
            Pulled::Ended => {
                self.transcript.fault("link ended by the broker");
                self.broker_notices(id);
                return Ok(true);
            }
        };
        self.transcript.line(self.now, || {
            format!(
                "broker {} sends on link {id}: {}",
                link.slot,
                frames(&batch.frames)
            )
        });
        link.uncredited += relayed_bytes(&batch);
        let most = self.scenario.credit_bytes + self.scenario.data_bytes.end as u64 + 20;
        if link.uncredited > most {
            let uncredited = link.uncredited;
            return Err(Violation(format!(
                "link {id} got {uncredited} bytes without credit"
            )));
        }
        if !link.is_cut {
            link.to_worker.push_back(batch);
        }
        Ok(true)
    }

    /// The next batch of a broker reaches the worker.
    pub(crate) fn worker_receives(&mut self, id: u64) -> Result<bool, Violation> {
        let Some(link) = self.links.get_mut(&id) else {
            return Ok(false);
        };
        if link.worker_side != WorkerSide::Up {
            return Ok(false);
        }
        let Some(batch) = link.to_worker.pop_front() else {
            return Ok(false);
        };
        let index = link.worker;
        self.transcript
            .line(self.now, || format!("worker {index} reads link {id}"));
        let (confirmed, concerned) = channels_in(&batch);
        for channel in confirmed {
            self.checker.confirmed(index, channel);
        }
        let worker = &mut self.workers[index].sim;
        let holes = worker.holes();
        let bytes = worker
            .handle_batch(link.slot, batch, self.now)
            .map_err(|error| Violation(error.to_string()))?;
        link.owed += bytes;
        if link.owed >= (self.scenario.credit_bytes / CREDIT_STEPS).max(1) {
            if !link.is_cut {
                link.credits.push_back(link.owed);
            }
            link.owed = 0;
        }
        if worker.holes() > holes {
            self.transcript.fault("hole counted");
            self.checker.holes(index, &concerned)?;
        }
        self.end_worker_turn(index)?;
        Ok(true)
    }

    /// Credit reaches a broker.
    pub(crate) fn credit(&mut self, id: u64) -> bool {
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        let Some(bytes) = link.credits.pop_front() else {
            return false;
        };
        link.uncredited = link.uncredited.saturating_sub(bytes);
        if let Some(broker) = live(&mut self.brokers, link) {
            broker.add_credit(id, bytes, self.now);
        }
        true
    }

    /// A worker hears that a broker has accepted its link.
    pub(crate) fn worker_hears_up(&mut self, id: u64) -> bool {
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        if link.worker_side != WorkerSide::Connecting || link.is_cut {
            return false;
        }
        link.worker_side = WorkerSide::Up;
        let worker = &mut self.workers[link.worker].sim;
        let is_wanted = worker.handle_link_up(link.slot, link.incarnation);
        self.transcript.line(self.now, || {
            format!("worker {} has link {id}, wanted: {is_wanted}", link.worker)
        });
        true
    }

    /// A client connects.
    pub(crate) fn client_connects(&mut self, client: usize, random: [u8; 15]) {
        let worker = &mut self.workers[self.clients[client].worker].sim;
        let key = worker.connect(random, self.now);
        let serial = self.next_connection;
        self.next_connection += 1;
        self.clients[client].connection = Some(Connection::new(key, serial));
    }

    /// A client's connection breaks, with all that was on its way.
    pub(crate) fn client_leaves(&mut self, client: usize) -> Result<bool, Violation> {
        let Some(connection) = self.clients[client].connection.take() else {
            return Ok(false);
        };
        self.transcript.line(self.now, || {
            format!("connection {} goes away", connection.serial)
        });
        self.checker.left(connection.serial);
        let index = self.clients[client].worker;
        self.workers[index].sim.disconnect(connection.key);
        self.end_worker_turn(index)?;
        Ok(true)
    }

    /// Calls that no client has got an answer to.
    pub(crate) fn open_calls(&self) -> Vec<(u64, Call)> {
        let connections = self.clients.iter().filter_map(|it| it.connection.as_ref());
        connections
            .flat_map(|it| it.calls().map(|call| (it.serial, call)))
            .collect()
    }
}

/// Channels that a batch confirms, and those of which it may reveal a hole.
fn channels_in(batch: &BrokerBatch) -> (Vec<usize>, Vec<usize>) {
    let (mut confirmed, mut lost, mut relayed) = (Vec::new(), Vec::new(), Vec::new());
    for frame in &batch.frames {
        match &frame.frame {
            Some(Frame::Subscribed(subscribed)) => {
                let channel = channel_number(&subscribed.channel);
                confirmed.extend(channel);
                if !subscribed.recovered {
                    lost.extend(channel);
                }
            }
            Some(Frame::Relay(relay)) => relayed.extend(channel_number(&relay.channel)),
            Some(Frame::NotOwner(_) | Frame::Ack(_) | Frame::Refusal(_)) | None => {}
        }
    }
    let concerned = if lost.is_empty() { relayed } else { lost };
    (confirmed, concerned)
}

fn relayed_bytes(batch: &BrokerBatch) -> u64 {
    let data = |frame: &Option<Frame>| match frame {
        Some(Frame::Relay(relay)) => relay.data.as_ref().map_or(0, |data| data.len()),
        Some(_) | None => 0,
    };
    batch.frames.iter().map(|it| data(&it.frame) as u64).sum()
}

/// Frames as a transcript shows them: without padding, and without the numbers
/// of requests, which follow the order of a hash map.
fn frames(frames: &[impl std::fmt::Debug]) -> String {
    let text = format!("{frames:?}").replace("xxxxxxxx", "");
    let mut parts = text.split(", request: ");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str(part.trim_start_matches(|digit: char| digit.is_ascii_digit()));
    }
    shown
}
