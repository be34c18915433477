//! Hands connections over to other workers, one after the other.

use std::{
    collections::VecDeque,
    io,
    os::fd::{BorrowedFd, OwnedFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use muster_daemon::{adoption, runtime_dir};
use muster_proto::{
    Pauses,
    control::{HandOver, HandOverTarget, HandedOver},
};
use muster_wire::Millis;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
    time::Instant,
};
use tracing::{info, warn};

use super::{
    Own,
    giving::{Action, Event, Giving},
    message::{Announced, FromGiver, FromTaker, decode, reason},
    packets::{Outgoing, Packet, Packets, pair},
};
use crate::{
    connection::ConnectionKey,
    engine::{Arrival, Engine, Wanted},
    now,
};

/// Longest that clients which wait for an answer are left for later: one that
/// asks on and on must not hold the others up.
const ANSWERS_PATIENCE: Duration = Duration::from_secs(1);
/// Longest that HTTP requests which are not answered yet are waited for.
const HEADS_PATIENCE: Duration = Duration::from_secs(12);
/// Between two reports while it goes on.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// An order to hand connections over, while it is carried out.
#[derive(Debug)]
pub(crate) struct Giver {
    order: HandOver,
    own: Own,
    targets: VecDeque<HandOverTarget>,
    current: Option<Current>,
    /// Took clients when this began.
    was_accepting: bool,
    moved: u64,
    failed: u64,
    pauses: Pauses,
    started: Instant,
    /// From then to the last connection that moved.
    took: Duration,
    error: Option<String>,
    note: Option<String>,
    reported: Instant,
    is_stuck: bool,
    /// Its last report is out.
    is_over: bool,
}

/// What goes to one worker.
#[derive(Debug)]
struct Current {
    target: HandOverTarget,
    machine: Giving,
    peer: Peer,
    /// To be looked at in this pass through all connections.
    candidates: Vec<ConnectionKey>,
    /// Some of those may go in the next one.
    later: bool,
    /// The number of the last channel that was announced.
    announced: u32,
    frozen_at: Instant,
    /// Since when only those are left who were left for later.
    waiting_since: Option<Instant>,
    is_finished: bool,
}

#[derive(Debug)]
enum Peer {
    Connecting(JoinHandle<io::Result<(OwnedFd, Process)>>),
    Connected(Packets, Process),
    /// Its socket has ended.
    Lost(Process),
    Gone,
}

/// Tells when a process has ended.
type Process = AsyncFd<OwnedFd>;

/// Something came from the other worker.
#[derive(Debug)]
pub(crate) enum Input {
    Connected(Packets, Process),
    Packet(Packet),
    Lost(String),
    Dead,
}

impl Giver {
    pub(super) fn new(order: HandOver, own: Own, engine: &mut Engine) -> Self {
        let mut giver = Self {
            targets: order.targets.clone().into(),
            order,
            own,
            current: None,
            was_accepting: engine.is_accepting(),
            moved: 0,
            failed: 0,
            pauses: Pauses::default(),
            started: Instant::now(),
            took: Duration::ZERO,
            error: None,
            note: None,
            reported: Instant::now(),
            is_stuck: false,
            is_over: false,
        };
        if giver.order.leave && !giver.replaces() {
            engine.leave();
        }
        giver.next_target();
        giver
    }

    /// Whether another process fills this worker's slot.
    fn replaces(&self) -> bool {
        let mut targets = self.targets.iter();
        targets.any(|target| target.slot == self.own.slot)
    }

    /// Whether it says what this is about already.
    pub(super) fn is_for(&self, order: &HandOver) -> bool {
        self.order.targets == order.targets && self.order.leave == order.leave
    }

    /// The same order again, perhaps of another orchestrator.
    pub(super) fn goes_on(&mut self, order: &HandOver) {
        self.order.id = order.id;
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    fn next_target(&mut self) {
        let Some(target) = self.targets.pop_front() else {
            return;
        };
        info!(
            slot = target.slot,
            incarnation = target.incarnation,
            connections = target.connections,
            "Handing connections over."
        );
        let wanted = (target.connections > 0).then_some(target.connections);
        let dir = &self.own.runtime_dir;
        let path = runtime_dir::worker_socket(dir, target.slot, target.incarnation);
        let connect = async move {
            let (own, offered) = pair()?;
            let pid = adoption::offer(&path, offered).await?;
            Ok((own, process(pid)?))
        };
        self.current = Some(Current {
            target,
            machine: Giving::new(now().millis, wanted),
            peer: Peer::Connecting(tokio::spawn(connect)),
            candidates: Vec::new(),
            later: false,
            announced: 0,
            frozen_at: Instant::now(),
            waiting_since: None,
            is_finished: false,
        });
    }

    pub(super) fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        match &mut self.current {
            Some(current) => current.poll_input(cx),
            None => Poll::Pending,
        }
    }

    pub(super) fn wake_at(&self) -> Option<Millis> {
        let current = self.current.as_ref()?;
        current.machine.wake_at()
    }

    pub(super) fn handle(&mut self, input: Input, engine: &mut Engine) {
        let Some(current) = &mut self.current else {
            return;
        };
        let event = match input {
            Input::Connected(packets, process) => {
                let replace = current.target.slot == self.own.slot;
                let begin = FromGiver::begin(self.own.slot, self.own.incarnation, replace);
                let said = packets.say(&begin);
                current.peer = Peer::Connected(packets, process);
                match said {
                    Ok(()) => return,
                    Err(error) => current.lose(error.to_string()),
                }
            }
            Input::Packet(packet) => match decode::<FromTaker>(&packet.bytes) {
                Ok((message, _)) => Event::Said(message),
                Err(error) => current.lose(format!("it makes no sense: {error}")),
            },
            Input::Lost(reason) => current.lose(reason),
            Input::Dead => {
                current.peer = Peer::Gone;
                Event::Dead
            }
        };
        self.feed(event, engine);
    }

    pub(super) fn finish_turn(&mut self, engine: &mut Engine) {
        self.feed(Event::Woken, engine);
        if self.current.as_ref().is_some_and(|one| one.is_finished) {
            self.current = None;
            self.next_target();
        }
    }

    pub(super) fn stop(&mut self, engine: &mut Engine) {
        self.targets.clear();
        self.was_accepting = false;
        self.feed(Event::Stop, engine);
    }

    /// Ends it in between, if it is the order with this number.
    pub(super) fn call_off(&mut self, id: u64, engine: &mut Engine) {
        if self.order.id == id {
            self.targets.clear();
            self.feed(Event::CallOff, engine);
        }
    }

    fn feed(&mut self, event: Event, engine: &mut Engine) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(current) = &mut self.current else {
                return;
            };
            for action in current.machine.handle(now().millis, event) {
                events.extend(self.act(action, engine));
            }
        }
    }

    /// Does what was decided, and says what came of it.
    fn act(&mut self, action: Action, engine: &mut Engine) -> Option<Event> {
        let current = self.current.as_mut()?;
        match action {
            Action::Replaced => {
                if current.target.slot == self.own.slot {
                    engine.give_place();
                }
                None
            }
            Action::Announce => Some(current.announce(engine)),
            Action::Freeze { at_most, batch } => Some(current.freeze(at_most, batch, engine)),
            Action::Commit { batch } => current.say(&FromGiver::Commit { batch }),
            Action::Abort { batch } => current.say(&FromGiver::Abort { batch }),
            Action::Release(keys) => {
                self.pauses
                    .record(current.frozen_at.elapsed(), keys.len() as u64);
                self.took = self.started.elapsed();
                engine.release(&keys);
                None
            }
            Action::Thaw(keys) => {
                for key in keys {
                    engine.thaw(key);
                }
                None
            }
            Action::Judge(keys) => {
                let count = keys.len();
                let arrivals = keys.into_iter().map(|key| Arrival {
                    key,
                    unacked: Vec::new(),
                });
                let running = engine.judge(arrivals.collect());
                warn!(
                    running,
                    of = count,
                    "A worker ended with connections that were committed to it."
                );
                None
            }
            Action::Abandon(keys) => {
                engine.abandon(&keys);
                None
            }
            Action::ReportStuck => {
                self.is_stuck = true;
                None
            }
            Action::End => current.say(&FromGiver::End),
            Action::Finish(result) => {
                self.finish(result, engine);
                None
            }
        }
    }

    fn finish(&mut self, result: Result<(), String>, engine: &mut Engine) {
        let Some(current) = &mut self.current else {
            return;
        };
        let outcome = current.machine.outcome();
        self.moved += outcome.moved;
        self.failed += outcome.failed;
        if outcome.last_reason.is_some() {
            self.note.clone_from(&outcome.last_reason);
        }
        if let Err(error) = result {
            let slot = current.target.slot;
            warn!(slot, error, "A hand-over ended before it was through.");
            self.error = Some(reason(&error));
            if self.was_accepting && self.targets.is_empty() {
                engine.take_place_back();
            }
        }
        current.is_finished = true;
    }

    pub(super) fn take_report(&mut self, engine: &Engine) -> Option<HandedOver> {
        let is_done = self.current.is_none();
        let is_due = self.reported.elapsed() >= REPORT_EVERY;
        let is_stuck = std::mem::take(&mut self.is_stuck);
        if !(is_done || is_due || is_stuck) {
            return None;
        }
        self.reported = Instant::now();
        self.is_over = is_done;
        let under_way = self.current.as_ref().map(|one| one.machine.outcome());
        let stuck = self.current.as_ref().filter(|_| is_stuck);
        Some(HandedOver {
            id: self.order.id,
            moved: self.moved + under_way.map_or(0, |outcome| outcome.moved),
            failed: self.failed + under_way.map_or(0, |outcome| outcome.failed),
            left: engine.len() as u64,
            pauses: self.pauses.counts().to_vec(),
            pause_max_us: micros(self.pauses.max()),
            done: is_done,
            error: self.error.clone().unwrap_or_default(),
            stuck_slot: stuck.map_or(0, |one| one.target.slot),
            stuck_incarnation: stuck.map_or(0, |one| one.target.incarnation),
            note: self.note.clone().unwrap_or_default(),
            took_us: micros(self.took),
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Current {
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        let input = match &mut self.peer {
            Peer::Connecting(task) => {
                let connected = ready!(std::pin::Pin::new(task).poll(cx));
                let connected = connected.unwrap_or_else(|error| Err(io::Error::other(error)));
                let connected =
                    connected.and_then(|(socket, process)| Ok((Packets::new(socket)?, process)));
                match connected {
                    Ok((packets, process)) => Input::Connected(packets, process),
                    Err(error) => {
                        self.peer = Peer::Gone;
                        Input::Lost(format!("cannot reach it: {error}"))
                    }
                }
            }
            Peer::Connected(packets, _) => match ready!(packets.poll_receive(cx)) {
                Ok(Some(packet)) => Input::Packet(packet),
                Ok(None) => Input::Lost("it closed its socket".to_owned()),
                Err(error) => Input::Lost(error.to_string()),
            },
            Peer::Lost(process) => {
                let _ended = ready!(process.poll_read_ready(cx));
                Input::Dead
            }
            Peer::Gone => return Poll::Pending,
        };
        Poll::Ready(input)
    }

    /// What its worker says counts no more; whether it lives may.
    fn lose(&mut self, reason: String) -> Event {
        self.peer = match std::mem::replace(&mut self.peer, Peer::Gone) {
            Peer::Connected(_, process) | Peer::Lost(process) => Peer::Lost(process),
            Peer::Connecting(_) | Peer::Gone => Peer::Gone,
        };
        Event::Lost(reason)
    }

    fn say(&mut self, message: &FromGiver) -> Option<Event> {
        let Peer::Connected(packets, _) = &self.peer else {
            return None;
        };
        match packets.say(message) {
            Ok(()) => None,
            Err(error) => Some(self.lose(format!("cannot tell it: {error}"))),
        }
    }

    fn send(
        &mut self,
        message: &FromGiver,
        body: &Outgoing,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Event> {
        let Peer::Connected(packets, _) = &self.peer else {
            return Err(Event::Lost("it is gone".to_owned()));
        };
        let sent = packets.send(message, body, descriptors);
        sent.map_err(|error| self.lose(format!("cannot send to it: {error}")))
    }

    fn announce(&mut self, engine: &Engine) -> Event {
        let (places, last) = engine.announce(self.announced);
        if last == self.announced {
            return Event::Announced;
        }
        self.announced = last;
        let announced = serde_json::to_vec(&Announced { places });
        let body = announced.map_err(io::Error::other).and_then(Outgoing::new);
        match body {
            Ok(outgoing) => {
                let body = outgoing.body();
                let sent = self.send(&FromGiver::Announce { body }, &outgoing, &[]);
                sent.map_or_else(|event| event, |()| Event::AnnouncementSent)
            }
            Err(error) => self.lose(format!("cannot announce the channels: {error}")),
        }
    }

    fn freeze(&mut self, at_most: usize, batch: u32, engine: &mut Engine) -> Event {
        if self.candidates.is_empty() {
            self.later = false;
            self.candidates = engine.keys();
            let machine = &self.machine;
            self.candidates.retain(|key| !machine.is_given_up(*key));
        }
        self.frozen_at = Instant::now();
        let waited = self.waiting_since.map(|since| since.elapsed());
        let waited = waited.unwrap_or_default();
        let is_urgent = waited > ANSWERS_PATIENCE;
        let wanted = Wanted {
            at_most,
            version: self.machine.version(),
            is_urgent,
        };
        let Some(frozen) = engine.freeze(&mut self.candidates, wanted, &mut self.later) else {
            self.waiting_since.get_or_insert_with(Instant::now);
            // Who was asked for a number only does not wait for others.
            let is_waiting = self.target.connections == 0 && waited < HEADS_PATIENCE;
            let later = self.later && is_waiting;
            return Event::NobodyLeft { later };
        };
        let sent = Outgoing::new(frozen.body).map_err(|error| self.lose(error.to_string()));
        let sent = sent.and_then(|outgoing| {
            let message = FromGiver::Prepare {
                batch,
                connections: frozen.keys.len(),
                body: outgoing.body(),
            };
            let sockets = frozen.keys.iter().filter_map(|key| engine.socket(*key));
            let sockets: Vec<_> = sockets.collect();
            self.send(&message, &outgoing, &sockets)
        });
        match sent {
            Ok(()) => Event::Sent(frozen.keys),
            Err(event) => {
                for key in frozen.keys {
                    engine.thaw(key);
                }
                event
            }
        }
    }
}

/// Must be called within the runtime.
pub(super) fn process(pid: u32) -> io::Result<Process> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or(io::ErrorKind::InvalidInput)?;
    let process = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
    #[expect(
        deprecated,
        reason = "its successor is unsafe for descriptors that may close early; this one is owned"
    )]
    AsyncFd::with_interest(process, Interest::READABLE)
}
