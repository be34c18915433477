//! How a client is made.

use std::{sync::Arc, time::Duration};

use muster_wire::client::{ReconnectConfig, Session, SessionConfig};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Client, Error,
    client::{COMMANDS_MAX, Shared},
    connection::Endpoint,
    driver::Driver,
};

/// Longest message from the server, in bytes, unless set.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Publications that a subscription keeps, unless set.
const SUBSCRIPTION_CAPACITY: usize = 1024;

/// Settings of a client; see [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClientBuilder {
    url: String,
    session: SessionConfig,
    subscription_capacity: usize,
    message_bytes_max: usize,
    seed: Option<u64>,
}

impl ClientBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            session: SessionConfig::default(),
            subscription_capacity: SUBSCRIPTION_CAPACITY,
            message_bytes_max: MESSAGE_BYTES_MAX,
            seed: None,
        }
    }

    /// Authenticates with this token in the handshake.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.session.token = Some(token.into());
        self
    }

    /// How long a call waits for its answer; 10 s unless set.
    pub fn ack_timeout(mut self, timeout: Duration) -> Self {
        self.session.ack_timeout = timeout;
        self
    }

    /// How long opening a connection may take, and its handshake again; 20 s
    /// unless set.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.session.connect_timeout = timeout;
        self
    }

    /// Calls that may wait for an answer at the same time; 4096 unless set.
    pub fn calls_max(mut self, max: usize) -> Self {
        self.session.calls_max = max;
        self
    }

    /// When to connect again after a connection ended; never, if `None`.
    pub fn reconnect(mut self, reconnect: Option<ReconnectConfig>) -> Self {
        self.session.reconnect = reconnect;
        self
    }

    /// Publications that each subscription keeps for a consumer that is slow;
    /// 1024 unless set, at least 1.
    pub fn subscription_capacity(mut self, publications: usize) -> Self {
        self.subscription_capacity = publications;
        self
    }

    /// Longest message from the server, in bytes; 16 MiB unless set. A longer
    /// one ends the connection.
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.message_bytes_max = bytes;
        self
    }

    /// Seed of the jitter between attempts, for tests; random unless set.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Connects, and waits until the server has answered the handshake.
    ///
    /// # Errors
    /// When the first attempt fails; later ones are repeated.
    pub async fn connect(self) -> Result<Client, Error> {
        let (reply, connected) = oneshot::channel();
        let client = self.spawn(Some(reply))?;
        match connected.await {
            Ok(result) => result.map(|()| client),
            Err(_) => Err(client.ended()),
        }
    }

    /// Starts to connect, for as many attempts as it takes.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn connect_lazily(self) -> Result<Client, Error> {
        self.spawn(None)
    }

    fn spawn(self, first: Option<oneshot::Sender<Result<(), Error>>>) -> Result<Client, Error> {
        let endpoint = Endpoint::new(&self.url, self.message_bytes_max)?;
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let shared = Arc::new(Shared::new(self.subscription_capacity));
        let seed = self.seed.unwrap_or_else(rand::random);
        let session = Session::new(self.session, seed);
        let driver = Driver::new(session, endpoint, inbox, Arc::clone(&shared), first);
        // The task ends with the last handle.
        tokio::spawn(driver.run());
        Ok(Client::new(commands, shared))
    }
}
