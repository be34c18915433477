//! The handle that applications hold.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering},
};

use muster_wire::{ChannelName, client::SubscribeOptions, close::CloseCode};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::{
    ClientBuilder, Error, Events, Payload, Subscription,
    command::{Command, Reply, Subscriber},
    feed::feed,
    payload::encode,
    subscription::{Release, Releases},
};

/// Commands that wait for the task; beyond it methods wait.
pub(crate) const COMMANDS_MAX: usize = 256;
/// Events that a stream keeps for a consumer that is slow.
const EVENTS_CAPACITY: usize = 256;

/// A client; clones are handles to the same one.
///
/// It ends with [`Client::close`], or when the last handle is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

/// What handles and the task share beside the commands.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Set when the client has ended.
    pub(crate) ended: OnceLock<CloseCode>,
    pub(crate) releases: Arc<Releases>,
    subscription_capacity: usize,
    next_subscription: AtomicU64,
}

impl Shared {
    pub(crate) fn new(subscription_capacity: usize) -> Self {
        Self {
            ended: OnceLock::new(),
            releases: Arc::default(),
            subscription_capacity,
            next_subscription: AtomicU64::new(0),
        }
    }
}

impl Client {
    /// A client of the server at `url`, such as
    /// `ws://127.0.0.1:8000/socketcluster/`.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder::new(url)
    }

    pub(crate) const fn new(commands: mpsc::Sender<Command>, shared: Arc<Shared>) -> Self {
        Self { commands, shared }
    }

    /// Subscribes, and waits until the server has acknowledged it.
    ///
    /// Not limited in time: while there is no connection, the client goes on
    /// trying.
    ///
    /// # Errors
    /// When the name is too long, the server refuses, or the client ends.
    pub async fn subscribe(&self, channel: &str) -> Result<Subscription, Error> {
        let options = SubscribeOptions {
            resume: true,
            ..SubscribeOptions::default()
        };
        let mut subscription = self.subscribe_pending(channel, options).await?;
        subscription.acknowledged().await?;
        Ok(subscription)
    }

    /// Subscribes without waiting for the server; see
    /// [`Subscription::acknowledged`].
    ///
    /// The options of a channel's first subscription count.
    ///
    /// # Errors
    /// When the name is too long, or the client has ended.
    pub async fn subscribe_pending(
        &self,
        channel: &str,
        options: SubscribeOptions,
    ) -> Result<Subscription, Error> {
        let channel = ChannelName::try_from(channel)?;
        let id = self
            .shared
            .next_subscription
            .fetch_add(1, Ordering::Relaxed);
        let (feeder, feed) = feed(self.shared.subscription_capacity);
        let (acknowledgement, acknowledged) = oneshot::channel();
        let subscriber = Subscriber {
            id,
            feeder,
            acknowledgement: Some(acknowledgement),
        };
        self.command(Command::Subscribe {
            channel: channel.clone(),
            options,
            subscriber,
        })
        .await?;
        let releases = Arc::clone(&self.shared.releases);
        let release = Release {
            channel,
            id,
            releases,
        };
        Ok(Subscription {
            feed,
            acknowledgement: Some(acknowledged),
            release,
        })
    }

    /// Publishes, and waits for the acknowledgement.
    ///
    /// # Errors
    /// When the server refuses, no answer comes, or the data is no JSON.
    pub async fn publish<T: Serialize + ?Sized>(
        &self,
        channel: &str,
        data: &T,
    ) -> Result<(), Error> {
        let channel = ChannelName::try_from(channel)?;
        let data = encode(data)?;
        self.ask(|reply| Command::Publish {
            channel,
            data,
            reply,
        })
        .await
        .map(drop)
    }

    /// Publishes without an acknowledgement: it may be lost without notice.
    ///
    /// # Errors
    /// When there is no connection now, or the data is no JSON.
    pub async fn transmit_publish<T: Serialize + ?Sized>(
        &self,
        channel: &str,
        data: &T,
    ) -> Result<(), Error> {
        let channel = ChannelName::try_from(channel)?;
        let data = encode(data)?;
        self.ask(|reply| Command::TransmitPublish {
            channel,
            data,
            reply,
        })
        .await
    }

    /// Calls a procedure of the server, and waits for its answer.
    ///
    /// # Errors
    /// When the server answers with an error, no answer comes, or the data is no
    /// JSON.
    pub async fn call<T: Serialize + ?Sized>(
        &self,
        event: &str,
        data: &T,
    ) -> Result<Payload, Error> {
        let event = event.to_owned();
        let data = Some(encode(data)?);
        self.ask(|reply| Command::Call { event, data, reply }).await
    }

    /// Sends a one-way packet to the server's application.
    ///
    /// # Errors
    /// When there is no connection now, or the data is no JSON.
    pub async fn transmit<T: Serialize + ?Sized>(
        &self,
        event: &str,
        data: &T,
    ) -> Result<(), Error> {
        let event = event.to_owned();
        let data = Some(encode(data)?);
        self.ask(|reply| Command::Transmit { event, data, reply })
            .await
    }

    /// Authenticates with a token, which is used for later connections too.
    ///
    /// # Errors
    /// When the server rejects the token, or no answer comes.
    pub async fn authenticate(&self, token: &str) -> Result<(), Error> {
        let token = token.to_owned();
        self.ask(|reply| Command::Authenticate { token, reply })
            .await
            .map(drop)
    }

    /// Forgets the token, here and at the server.
    ///
    /// # Errors
    /// When the client has ended.
    pub async fn deauthenticate(&self) -> Result<(), Error> {
        self.command(Command::Deauthenticate).await
    }

    /// What happens from now on.
    ///
    /// # Errors
    /// When the client has ended.
    pub async fn events(&self) -> Result<Events, Error> {
        let (feeder, feed) = feed(EVENTS_CAPACITY);
        self.command(Command::Events { feeder }).await?;
        Ok(Events { feed })
    }

    /// Closes the connection with 1000 and ends the client; waits until that is
    /// done, at most a few seconds.
    pub async fn close(&self) {
        // An error means that it has ended already.
        if self.command(Command::Close).await.is_ok() {
            self.commands.closed().await;
        }
    }

    /// The error that says how the client ended.
    pub(crate) fn ended(&self) -> Error {
        Error::Ended {
            code: self
                .shared
                .ended
                .get()
                .copied()
                .unwrap_or(CloseCode::NORMAL),
        }
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| self.ended())
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.command(command(reply)).await?;
        answer.await.unwrap_or_else(|_| Err(self.ended()))
    }
}
