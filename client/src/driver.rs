//! The task that holds the connection and obeys the session.

use std::{
    collections::{HashMap, hash_map::Entry},
    convert::Infallible,
    sync::Arc,
};

use muster_wire::{
    ChannelName, Millis,
    client::{self as wire, CallNumber, Output, Refused, Session},
    close::CloseCode,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, Sleep, sleep_until},
};
use tracing::debug;

use crate::{
    Error, Event, Payload, Publication, SubscriptionError,
    client::Shared,
    command::{Command, Reply, Subscriber},
    connection::{Connection, Endpoint, Happened},
    feed::{Feeder, Offer},
};

/// Commands that are taken in one turn.
const COMMANDS_PER_TURN: usize = 64;
/// The task looks at least this often, though nothing is due.
const IDLE: std::time::Duration = std::time::Duration::from_secs(60 * 60);

/// Owns everything of one client.
pub(crate) struct Driver {
    session: Session,
    endpoint: Endpoint,
    connection: Connection,
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    /// What the session counts its time from.
    start: Instant,
    calls: HashMap<CallNumber, Reply<Payload>>,
    channels: HashMap<ChannelName, Channel>,
    events: Vec<Feeder<Event, Infallible>>,
    /// Who waits for the outcome of the first attempt.
    first: Option<oneshot::Sender<Result<(), Error>>>,
    /// Why the present attempt failed, if there is more to say than a code.
    attempt_error: Option<Error>,
}

/// A channel's subscribers here.
#[derive(Default)]
struct Channel {
    subscribers: Vec<Subscriber>,
    /// The present connection has it.
    is_acknowledged: bool,
}

/// What the task waits for.
enum Turn {
    Happened(Happened),
    Commands(usize),
    Released,
    Timeout,
}

impl Driver {
    pub(crate) fn new(
        session: Session,
        endpoint: Endpoint,
        commands: mpsc::Receiver<Command>,
        shared: Arc<Shared>,
        first: Option<oneshot::Sender<Result<(), Error>>>,
    ) -> Self {
        Self {
            session,
            endpoint,
            connection: Connection::new(),
            commands,
            shared,
            start: Instant::now(),
            calls: HashMap::new(),
            channels: HashMap::new(),
            events: Vec::new(),
            first,
            attempt_error: None,
        }
    }

    /// Runs until the session has ended and the last connection is closed.
    pub(crate) async fn run(mut self) {
        let mut inbox = Vec::new();
        let mut timer = std::pin::pin!(sleep_until(self.start));
        self.session.start(self.now());
        while let Some(until) = self.obey() {
            let until = until.map_or_else(|| Instant::now() + IDLE, |until| self.instant(until));
            match self.turn(until, timer.as_mut(), &mut inbox).await {
                Turn::Happened(happened) => self.handle_happened(happened),
                // All handles are gone.
                Turn::Commands(0) => self.session.close(CloseCode::NORMAL, ""),
                Turn::Commands(_) => {
                    for command in inbox.drain(..) {
                        self.handle_command(command);
                    }
                }
                Turn::Released => self.release(),
                Turn::Timeout => self.session.handle_timeout(self.now()),
            }
        }
        self.connection.closed().await;
    }

    /// Waits for the next thing to do. Cancel-safe.
    async fn turn(
        &mut self,
        until: Instant,
        mut timer: std::pin::Pin<&mut Sleep>,
        inbox: &mut Vec<Command>,
    ) -> Turn {
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        let has_room = self.connection.has_room();
        tokio::select! {
            happened = self.connection.happened() => Turn::Happened(happened),
            count = self.commands.recv_many(inbox, COMMANDS_PER_TURN), if has_room => {
                Turn::Commands(count)
            }
            () = self.shared.releases.changed.notified() => Turn::Released,
            () = timer => Turn::Timeout,
        }
    }

    /// Does what the session says; answers until when to wait, or nothing if it
    /// has ended.
    fn obey(&mut self) -> Option<Option<Millis>> {
        loop {
            match self.session.poll_output() {
                Output::Connect => self.connection.open(&self.endpoint),
                Output::Send(packet) => self.connection.send(packet),
                Output::Close { code, reason } => self.connection.close(code, &reason),
                Output::Event(event) => self.handle_event(event),
                Output::Wait { until } => {
                    return self.shared.ended.get().is_none().then_some(until);
                }
            }
        }
    }

    fn handle_happened(&mut self, happened: Happened) {
        let now = self.now();
        for text in std::mem::take(&mut self.connection.inbox) {
            self.session.handle_text(now, text.as_str());
        }
        match happened {
            Happened::Opened => self.session.handle_opened(now),
            Happened::Received => {}
            Happened::OpenFailed(error) => {
                debug!(
                    error = &error as &dyn std::error::Error,
                    "Could not connect."
                );
                self.attempt_error = Some(error);
                self.session.handle_closed(now, CloseCode::ABNORMAL, "");
            }
            Happened::Closed { code, reason } => self.session.handle_closed(now, code, &reason),
        }
    }

    fn handle_command(&mut self, command: Command) {
        let now = self.now();
        match command {
            Command::Call { event, data, reply } => {
                let call = self.session.call(now, &event, data.as_deref());
                self.expect_answer(call, reply);
            }
            Command::Publish {
                channel,
                data,
                reply,
            } => {
                let call = self.session.publish(now, &channel, Some(&data));
                self.expect_answer(call, reply);
            }
            Command::Authenticate { token, reply } => {
                let call = self.session.authenticate(now, &token);
                self.expect_answer(call, reply);
            }
            Command::Deauthenticate => self.session.deauthenticate(),
            Command::Transmit { event, data, reply } => {
                let sent = self.session.transmit(&event, data.as_deref());
                answer(reply, sent.map_err(Error::from));
            }
            Command::TransmitPublish {
                channel,
                data,
                reply,
            } => {
                let sent = self.session.transmit_publish(&channel, Some(&data));
                answer(reply, sent.map_err(Error::from));
            }
            Command::Subscribe {
                channel,
                options,
                subscriber,
            } => {
                self.subscribe(channel, options, subscriber);
            }
            Command::Events { feeder } => self.events.push(feeder),
            Command::Close => self.session.close(CloseCode::NORMAL, ""),
        }
    }

    fn expect_answer(&mut self, call: Result<CallNumber, Refused>, reply: Reply<Payload>) {
        match call {
            Ok(call) => {
                self.calls.insert(call, reply);
            }
            Err(refused) => answer(reply, Err(refused.into())),
        }
    }

    fn subscribe(
        &mut self,
        name: ChannelName,
        options: wire::SubscribeOptions,
        mut subscriber: Subscriber,
    ) {
        if subscriber.feeder.is_gone() {
            // Dropped meanwhile, and its release may have been seen already.
            return;
        }
        if let Err(refused) = self.session.subscribe(&name, options) {
            acknowledge(&mut subscriber, Err(refused.into()));
            return;
        }
        let channel = self.channels.entry(name).or_default();
        if channel.is_acknowledged {
            acknowledge(&mut subscriber, Ok(()));
        }
        channel.subscribers.push(subscriber);
    }

    /// Removes the subscriptions that were dropped.
    fn release(&mut self) {
        for (name, id) in self.shared.releases.take() {
            let Entry::Occupied(mut channel) = self.channels.entry(name) else {
                continue;
            };
            channel
                .get_mut()
                .subscribers
                .retain(|subscriber| subscriber.id != id);
            if channel.get().subscribers.is_empty() {
                self.session.unsubscribe(channel.key());
                channel.remove();
            }
        }
    }

    fn handle_event(&mut self, event: wire::Event) {
        match event {
            wire::Event::Answered { call, result } => {
                if let Some(reply) = self.calls.remove(&call) {
                    answer(reply, result.map(Payload::new).map_err(Error::from));
                }
            }
            wire::Event::Publication {
                channel,
                data,
                offset,
            } => {
                let publication = Publication {
                    channel,
                    data: Payload::new(data),
                    offset,
                };
                self.deliver(publication);
            }
            wire::Event::Missed { channel } => {
                let channel = self.channels.get_mut(&channel);
                for subscriber in channel.into_iter().flat_map(|one| &mut one.subscribers) {
                    offer(subscriber, Err(SubscriptionError::Missed));
                }
            }
            wire::Event::Subscribed { channel } => {
                if let Some(channel) = self.channels.get_mut(&channel) {
                    channel.is_acknowledged = true;
                    for subscriber in &mut channel.subscribers {
                        acknowledge(subscriber, Ok(()));
                    }
                }
            }
            wire::Event::SubscribeFailed { channel, error } => {
                self.end_channel(
                    &channel,
                    || Error::Server(error.clone()),
                    &SubscriptionError::Refused(error.clone()),
                );
            }
            wire::Event::KickedOut { channel, message } => {
                let reason = SubscriptionError::KickedOut {
                    message: message.clone(),
                };
                self.end_channel(&channel, || Error::KickedOut, &reason);
                self.tell(&Event::KickedOut { channel, message });
            }
            wire::Event::Connected { .. }
            | wire::Event::Disconnected { .. }
            | wire::Event::Ended { .. }
            | wire::Event::HandshakeRefused(_)
            | wire::Event::Received { .. }
            | wire::Event::Authenticated { .. }
            | wire::Event::Deauthenticated
            | wire::Event::AuthenticationFailed(_) => self.handle_state(event),
        }
    }

    /// Events that applications see as they are.
    fn handle_state(&mut self, event: wire::Event) {
        let event = match event {
            wire::Event::Connected {
                id,
                is_authenticated,
            } => {
                self.attempt_error = None;
                self.resolve_first(Ok(()));
                Event::Connected {
                    id,
                    is_authenticated,
                }
            }
            wire::Event::Disconnected {
                code,
                reason,
                retry_after,
            } => {
                self.connection_lost(code);
                Event::Disconnected {
                    code,
                    reason,
                    retry_after,
                }
            }
            wire::Event::Ended { code, reason } => {
                self.connection_lost(code);
                self.end(code);
                Event::Ended { code, reason }
            }
            wire::Event::HandshakeRefused(error) => {
                self.attempt_error = Some(Error::HandshakeRefused(error.clone()));
                Event::HandshakeRefused(error)
            }
            wire::Event::Received { event, data } => Event::Received {
                event,
                data: Payload::new(data),
            },
            wire::Event::Authenticated { token } => Event::Authenticated { token },
            wire::Event::Deauthenticated => Event::Deauthenticated,
            wire::Event::AuthenticationFailed(error) => Event::AuthenticationFailed(error),
            wire::Event::Answered { .. }
            | wire::Event::Subscribed { .. }
            | wire::Event::Missed { .. }
            | wire::Event::SubscribeFailed { .. }
            | wire::Event::KickedOut { .. }
            | wire::Event::Publication { .. } => return,
        };
        self.tell(&event);
    }

    fn connection_lost(&mut self, code: CloseCode) {
        for channel in self.channels.values_mut() {
            channel.is_acknowledged = false;
        }
        let error = self
            .attempt_error
            .take()
            .unwrap_or(Error::ConnectionLost { code });
        // Whoever waited for the first attempt wants no second.
        if self.resolve_first(Err(error)) {
            self.session.close(CloseCode::NORMAL, "");
        }
    }

    fn resolve_first(&mut self, result: Result<(), Error>) -> bool {
        // It may have stopped waiting; then its handle is gone, too.
        self.first.take().map(|first| first.send(result)).is_some()
    }

    fn end(&mut self, code: CloseCode) {
        // Set only here; a session ends once.
        let _ = self.shared.ended.set(code);
        for channel in std::mem::take(&mut self.channels).into_values() {
            for mut subscriber in channel.subscribers {
                acknowledge(&mut subscriber, Err(Error::Ended { code }));
                subscriber.feeder.finish(SubscriptionError::Ended { code });
            }
        }
    }

    fn end_channel(
        &mut self,
        channel: &str,
        error: impl Fn() -> Error,
        reason: &SubscriptionError,
    ) {
        let Some(channel) = self.channels.remove(channel) else {
            return;
        };
        for mut subscriber in channel.subscribers {
            acknowledge(&mut subscriber, Err(error()));
            subscriber.feeder.finish(reason.clone());
        }
    }

    fn deliver(&mut self, publication: Publication) {
        let Some(channel) = self.channels.get_mut(&publication.channel) else {
            return;
        };
        let Some((last, others)) = channel.subscribers.split_last_mut() else {
            return;
        };
        for subscriber in others {
            offer(subscriber, Ok(publication.clone()));
        }
        // Nearly always there is one, and nothing is copied.
        offer(last, Ok(publication));
    }

    fn tell(&mut self, event: &Event) {
        self.events
            .retain_mut(|feeder| match feeder.offer(event.clone()) {
                Offer::Accepted | Offer::Full => true,
                Offer::Gone => false,
            });
    }

    fn now(&self) -> Millis {
        Millis(0) + self.start.elapsed()
    }

    /// Not before `until`, though the session counts whole milliseconds.
    fn instant(&self, until: Millis) -> Instant {
        self.start + until.since(Millis(0))
    }
}

fn offer(subscriber: &mut Subscriber, item: Result<Publication, SubscriptionError>) {
    match subscriber.feeder.offer(item) {
        // A full queue tells its consumer; a dropped one is released by its drop.
        Offer::Accepted | Offer::Full | Offer::Gone => {}
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    // Whoever asked may have stopped waiting.
    let _ = reply.send(result);
}

fn acknowledge(subscriber: &mut Subscriber, result: Result<(), Error>) {
    if let Some(acknowledgement) = subscriber.acknowledgement.take() {
        answer(acknowledgement, result);
    }
}
