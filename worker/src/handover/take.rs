//! Takes connections over from another worker.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    task::{Context, Poll, ready},
};

use muster_wire::{
    ChannelName, Millis,
    snapshot::{Snapshots, Unacked},
};
use rustix::net::sockopt::socket_peercred;
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

use super::{
    give::process,
    message::{Announced, FromGiver, RefusedConnection, decode, reason},
    packets::{Packet, Packets, take_body},
    taking::{Action, Event, Taking},
};
use crate::{
    connection::ConnectionKey,
    engine::{Arrival, Engine},
    now,
};

/// What is taken over from one worker.
#[derive(Debug)]
pub(crate) struct Taker {
    machine: Taking,
    packets: Option<Packets>,
    process: AsyncFd<OwnedFd>,
    /// Channels that were announced and whose owners have not answered.
    awaited: Vec<ChannelName>,
    /// Connections that do not run yet, and what they had published.
    arrivals: HashMap<ConnectionKey, Vec<Unacked>>,
    taken: usize,
    is_over: bool,
}

/// Something came from the other worker.
#[derive(Debug)]
pub(crate) enum Input {
    Packet(Packet),
    Lost,
    Dead,
}

impl Taker {
    /// Must be called within the runtime.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        // Of whoever made the socket.
        let pid = socket_peercred(&socket)?.pid.as_raw_nonzero().get();
        Ok(Self {
            machine: Taking::new(),
            process: process(pid.unsigned_abs())?,
            packets: Some(Packets::new(socket)?),
            awaited: Vec::new(),
            arrivals: HashMap::new(),
            taken: 0,
            is_over: false,
        })
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        !self.machine.is_subscribing()
    }

    pub(super) fn wake_at(&self) -> Option<Millis> {
        self.machine.wake_at()
    }

    pub(super) fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        let Some(packets) = &mut self.packets else {
            let _ended = ready!(self.process.poll_read_ready(cx));
            return Poll::Ready(Input::Dead);
        };
        Poll::Ready(match ready!(packets.poll_receive(cx)) {
            Ok(Some(packet)) => Input::Packet(packet),
            Ok(None) => Input::Lost,
            Err(error) => {
                warn!(%error, "The socket to a worker that hands over broke.");
                Input::Lost
            }
        })
    }

    pub(super) fn handle(&mut self, input: Input, engine: &mut Engine) {
        match input {
            Input::Packet(Packet { bytes, descriptors }) => match decode(&bytes) {
                Ok((message, inline)) => self.said(message, inline, descriptors, engine),
                Err(error) => {
                    warn!(%error, "A worker that hands over makes no sense.");
                    self.lose(engine);
                }
            },
            Input::Lost => self.lose(engine),
            Input::Dead => self.feed(Event::Dead, engine),
        }
    }

    pub(super) fn finish_turn(&mut self, engine: &mut Engine) {
        if self.machine.is_subscribing() && self.is_subscribed(engine) {
            self.feed(Event::Subscribed, engine);
        }
        self.feed(Event::Woken, engine);
    }

    /// The clients that do not run yet stay with the other worker.
    pub(super) fn stop(&mut self, engine: &mut Engine) {
        let keys = self.arrivals.drain().map(|(key, _)| key);
        engine.abandon(&keys.collect::<Vec<_>>());
        self.packets = None;
        self.is_over = true;
    }

    fn is_subscribed(&self, engine: &Engine) -> bool {
        if self.machine.is_announced_to() {
            return engine.is_subscribed_to(&self.awaited);
        }
        let keys: Vec<_> = self.arrivals.keys().copied().collect();
        engine.is_subscribed_for(&keys)
    }

    fn lose(&mut self, engine: &mut Engine) {
        self.packets = None;
        self.feed(Event::Lost, engine);
    }

    fn said(
        &mut self,
        message: FromGiver,
        inline: &[u8],
        mut descriptors: Vec<OwnedFd>,
        engine: &mut Engine,
    ) {
        let body = match &message {
            FromGiver::Announce { body } | FromGiver::Prepare { body, .. } => {
                take_body(*body, inline, &mut descriptors)
            }
            FromGiver::Begin { .. }
            | FromGiver::Commit { .. }
            | FromGiver::Abort { .. }
            | FromGiver::End => Ok(Vec::new()),
        };
        let mut carried = Carried {
            body,
            descriptors,
            connections: match message {
                FromGiver::Prepare { connections, .. } => connections,
                FromGiver::Begin { .. }
                | FromGiver::Announce { .. }
                | FromGiver::Commit { .. }
                | FromGiver::Abort { .. }
                | FromGiver::End => 0,
            },
        };
        for action in self.machine.handle(now().millis, Event::Said(message)) {
            self.act(action, &mut carried, engine);
        }
    }

    fn feed(&mut self, event: Event, engine: &mut Engine) {
        let mut nothing = Carried {
            body: Ok(Vec::new()),
            descriptors: Vec::new(),
            connections: 0,
        };
        for action in self.machine.handle(now().millis, event) {
            self.act(action, &mut nothing, engine);
        }
    }

    fn act(&mut self, action: Action, carried: &mut Carried, engine: &mut Engine) {
        match action {
            Action::Answer(answer) => {
                let said = self.packets.as_ref().map(|packets| packets.say(&answer));
                if let Some(Err(error)) = said {
                    warn!(%error, "Cannot answer a worker that hands over.");
                    self.lose(engine);
                }
            }
            Action::Keep => match carried.announced() {
                Ok(Announced { places }) => {
                    self.awaited = places.iter().map(|place| place.channel.clone()).collect();
                    engine.keep(places);
                }
                // The batches wait for what is missing.
                Err(error) => warn!(%error, "Channels that were announced are malformed."),
            },
            Action::Build => self.build(carried, engine),
            Action::Replace => engine.take_place_back(),
            Action::Run(keys) => {
                self.taken += keys.len();
                for arrival in self.arrived(keys) {
                    engine.run(arrival);
                }
            }
            Action::Discard(keys) => {
                for key in &keys {
                    self.arrivals.remove(key);
                }
                engine.abandon(&keys);
            }
            Action::Judge(keys) => {
                let count = keys.len();
                let arrivals = self.arrived(keys);
                let running = engine.judge(arrivals);
                warn!(
                    running,
                    of = count,
                    "A worker ended while it handed connections over."
                );
            }
            Action::Finish => {
                self.packets = None;
                self.is_over = true;
                info!(connections = self.taken, "Connections were taken over.");
            }
        }
    }

    fn arrived(&mut self, keys: Vec<ConnectionKey>) -> Vec<Arrival> {
        let arrivals = keys.into_iter().map(|key| Arrival {
            key,
            unacked: self.arrivals.remove(&key).unwrap_or_default(),
        });
        arrivals.collect()
    }

    /// All of the batch or nothing: what makes no sense in part makes none.
    fn build(&mut self, carried: &mut Carried, engine: &mut Engine) {
        let (keys, refused) = match carried.snapshots(engine) {
            Ok(snapshots) => {
                let descriptors = std::mem::take(&mut carried.descriptors);
                let mut keys = Vec::new();
                for Arrival { key, unacked } in engine.build(snapshots, descriptors) {
                    keys.push(key);
                    self.arrivals.insert(key, unacked);
                }
                (keys, Vec::new())
            }
            Err(error) => {
                warn!(%error, "Refused connections that were to be taken over.");
                let reason = reason(&error.to_string());
                let refused = |index| RefusedConnection {
                    index,
                    reason: reason.clone(),
                };
                (Vec::new(), (0..carried.connections).map(refused).collect())
            }
        };
        self.feed(Event::Built { keys, refused }, engine);
    }
}

/// What came with a message.
struct Carried {
    body: io::Result<Vec<u8>>,
    descriptors: Vec<OwnedFd>,
    connections: usize,
}

impl Carried {
    fn body(&mut self) -> io::Result<Vec<u8>> {
        std::mem::replace(&mut self.body, Ok(Vec::new()))
    }

    fn announced(&mut self) -> io::Result<Announced> {
        Ok(serde_json::from_slice(&self.body()?)?)
    }

    fn snapshots(&mut self, engine: &Engine) -> io::Result<Snapshots> {
        if !engine.has_room_for(self.connections) {
            return Err(io::Error::other(
                "it has as many connections as it may have",
            ));
        }
        let snapshots = Snapshots::from_bytes(&self.body()?).map_err(io::Error::other)?;
        let counts = [
            self.connections,
            snapshots.connections.len(),
            self.descriptors.len(),
        ];
        if counts.iter().any(|count| *count != counts[0]) {
            return Err(io::Error::other(format!(
                "{} connections were to come, with {} snapshots and {} descriptors",
                counts[0], counts[1], counts[2]
            )));
        }
        Ok(snapshots)
    }
}
